"""Tensors between processes; docs/dataplane.md is the page for users.

In the order in which a tensor passes: `plane` (sessions, which way), `outbox` with `credit` (what may be under way),
then `local` with `segments` (one host) or `zmq` with `memory` (others), `arrivals` (what came, checked). `base` is what
it promises; `shm` is for feeds and fetches.
"""
