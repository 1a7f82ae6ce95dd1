"""Messages of `worker.proto`: the control plane. `scripts/generate-protos` makes `worker_pb2`."""
