"""Messages of `wire.proto`: graphs, plans, commands, events. `scripts/generate-protos` makes `wire_pb2`."""
