"""Strategies: rewrites of the graph, one a file. The user writes the model once, on one device."""

from nbflow.parallel.base import ALL, Expanded, Role, RoleKind, Strategy, strategy_of
from nbflow.parallel.data_parallel import DataParallel
from nbflow.parallel.expand import expand, read_strategy, wanted_splits
from nbflow.parallel.local_sgd import LocalSGD
from nbflow.parallel.pieces import companions, piece_name
from nbflow.parallel.pipeline import Pipeline
from nbflow.parallel.sharding import shard

__all__ = [
    "ALL",
    "DataParallel",
    "Expanded",
    "LocalSGD",
    "Pipeline",
    "Role",
    "RoleKind",
    "Strategy",
    "companions",
    "expand",
    "piece_name",
    "read_strategy",
    "shard",
    "strategy_of",
    "wanted_splits",
]
