"""Messages of `wire.proto`: graphs, plans, commands and events as protobuf. `scripts/generate-protos` makes `wire_pb2`."""
