"""Workers: the processes that run plans, the way to them, and the clusters made of them.

In the order data passes: `cluster` (what a notebook holds) → `client` (a Transport over gRPC) → `rpc`, `frames`,
`status`, `security` (methods, streams, errors, tokens) → `server` → `nbflow.executor`; tensors between workers take
`dataplane/`. `protocol` and `membership` are the state machines, as tables.
"""

import os

# A notebook's `!ls` forks; gRPC's fork handlers would then hang or break its channels. Set before grpc is imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from nbflow_workers.cluster import Cluster, attach, local  # after the variable above

__all__ = ["Cluster", "attach", "local"]
