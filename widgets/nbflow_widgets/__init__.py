"""Live widgets for nbflow: the graph, the training curves, the cluster.

Reading order: `scopes` · `layout` · `series` (pure), `sheet` · `picture` (the PNGs), `bundle`, `graph_view` ·
`curves_view` · `cluster_view` (traits), `bridge` (events to widgets). The browser's side is in `widgets/src`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from IPython.display import display

from nbflow_widgets.bridge import Bridge
from nbflow_widgets.cluster_view import ClusterView
from nbflow_widgets.curves_view import CurvesView
from nbflow_widgets.graph_view import GraphView

__all__ = ["Bridge", "ClusterView", "CurvesView", "GraphView", "show"]


def show(graph_json: Mapping[str, Any]) -> GraphView:
    """Displays a graph (`nbflow.graph.v1`) and returns its view. This is `nf.show` in a notebook."""
    view = GraphView(graph_json)
    display(view)  # type: ignore[no-untyped-call]  # IPython gives it no types
    return view
