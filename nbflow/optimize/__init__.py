"""Passes over a graph, one a file, each `Graph -> Graph`. They work on copies: the user's graph is never changed."""

from nbflow.optimize.loops import merge_twins
from nbflow.optimize.prune import Pruned, prune

__all__ = ["Pruned", "merge_twins", "prune"]
