"""Passes over a graph, one a file, each `Graph -> Graph`. They work on copies: the user's graph is never changed.

`prune` finds what a run needs; the passes of `pipeline` then make that cheaper. docs/optimizer.md lists them.
"""

from nbflow.optimize.pipeline import Optimized, optimize
from nbflow.optimize.prune import Pruned, prune
from nbflow.optimize.report import PassReport, Report
from nbflow.optimize.settings import EXACT, INEXACT, ORDER, chosen, disabled, set_passes

__all__ = [
    "EXACT",
    "INEXACT",
    "ORDER",
    "Optimized",
    "PassReport",
    "Pruned",
    "Report",
    "chosen",
    "disabled",
    "optimize",
    "prune",
    "set_passes",
]
