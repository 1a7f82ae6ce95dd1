"""The doors to the rooms above, which this package never imports: entry points of the group `nbflow.notebook`."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from nbflow.current import describe
from nbflow.errors import GraphError
from nbflow.graph import get_graph

_GROUP = "nbflow.notebook"


def _load(name: str, what: str) -> Any:
    for entry in entry_points(group=_GROUP, name=name):
        return entry.load()
    raise GraphError(f"{what} needs the notebook part of nbflow, which is not installed; run: pip install nbflow")


def show(target: Any = None) -> None:
    """Shows a graph, or what running the fetches `target` would run: each op, its device, and why it is there.

    Without an argument: the current graph. Returns nothing, so that a cell that ends with it shows one view;
    `nbflow_widgets.GraphView(nf.describe(target))` is the view as an object.
    """
    display = _load("show", "nf.show")
    display(describe(get_graph() if target is None else target))


def load_ipython_extension(ipython: Any) -> None:
    """`%load_ext nbflow`: cells own their ops, magics, widgets, on any IPython kernel."""
    _load("extension", "%load_ext nbflow")(ipython)


def unload_ipython_extension(ipython: Any) -> None:
    """`%unload_ext nbflow`."""
    _load("unload", "%unload_ext nbflow")(ipython)
