"""Strategies: rewrites of the graph, one a file. The user writes the model once, on one device."""

from nbflow.parallel.base import Expanded, Strategy, strategy_of
from nbflow.parallel.data_parallel import DataParallel, expand

__all__ = ["DataParallel", "Expanded", "Strategy", "expand", "strategy_of"]
