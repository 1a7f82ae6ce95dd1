"""Tensors between processes: shared memory on one host, ZeroMQ between hosts; `base` is what both promise."""
