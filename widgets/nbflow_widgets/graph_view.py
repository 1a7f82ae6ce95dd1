"""The graph view: what the browser needs, as traits."""

from __future__ import annotations

import gzip
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import anywidget
import traitlets

from nbflow_widgets import picture
from nbflow_widgets.bundle import Bundle, Metadata, static_bundle, widget_bundle
from nbflow_widgets.scopes import Tree, shares

_STATIC = pathlib.Path(__file__).parent / "static"
_SCHEMA = "nbflow.graph.v1"
COLOURS = ("device", "asked", "cell", "op")
_EMPTY: Mapping[str, Any] = {"schema": _SCHEMA, "nodes": []}


class GraphView(anywidget.AnyWidget):
    """A graph (`nbflow.graph.v1`, made by `nbflow.explain.graph_json`) whose scopes open and close.

    `expanded` (scope ids, which end in `/`), `selected` (a node's name or a scope id) and `color_by` (one of
    `COLOURS`) may be set and observed. Raises ValueError for another schema.
    """

    _esm = _STATIC / "graph.js"
    _css = _STATIC / "graph.css"

    graph = traitlets.Bytes().tag(sync=True)
    label = traitlets.Unicode().tag(sync=True)
    expanded = traitlets.List(traitlets.Unicode()).tag(sync=True)
    selected = traitlets.Unicode().tag(sync=True)
    color_by = traitlets.Enum(COLOURS, "device").tag(sync=True)
    # Pixels; 0 fits the content.
    height = traitlets.Int(0, min=0).tag(sync=True)

    def __init__(self, graph_json: Mapping[str, Any] | None = None, **traits: Any) -> None:
        self._tree = Tree(_EMPTY)
        packed = self._take(graph_json or _EMPTY)
        super().__init__(graph=packed, label=self._summary(), **{"expanded": self._tree.initial_expansion(), **traits})

    def set_graph(self, graph_json: Mapping[str, Any]) -> None:
        """Shows another graph; scopes that still exist stay open."""
        was_empty = not self._tree.nodes
        packed = self._take(graph_json)
        kept = [scope for scope in self.expanded if scope in self._tree.items]
        with self.hold_sync():
            self.graph = packed
            self.label = self._summary()
            self.expanded = self._tree.initial_expansion() if was_empty else kept
            if self.selected not in self._tree.items:
                self.selected = ""

    def png(self) -> bytes:
        """The graph as it stands, open scopes included."""
        return picture.graph_png(self._tree, frozenset(self.expanded))

    def static_bundle(self) -> tuple[Bundle, Metadata]:
        """(data, metadata) with the PNG and the text, without the widget."""
        return static_bundle(self)

    def __str__(self) -> str:
        tree = self._tree
        lines = [self._summary()]
        for item in tree.level(tree.root).main[:12]:
            devices = ", ".join(sorted(shares(tree, item)))
            lines.append(f"  {item.label}: {item.ops} {'op' if item.ops == 1 else 'ops'} on {devices}")
        return "\n".join(lines)

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[Bundle, Metadata]:
        return widget_bundle(self, self.model_id)

    def _take(self, graph_json: Mapping[str, Any]) -> bytes:
        if graph_json.get("schema") != _SCHEMA:
            raise ValueError(
                f"this is not a graph of schema {_SCHEMA!r} but of {graph_json.get('schema')!r}; "
                "make one with nbflow.explain.graph_json(graph)"
            )
        self._tree = Tree(graph_json)
        text = json.dumps(graph_json, ensure_ascii=False, separators=(",", ":"))
        # A saved notebook carries this; mtime=0 keeps the bytes the same for the same graph.
        return gzip.compress(text.encode(), mtime=0)

    def _summary(self) -> str:
        nodes = self._tree.nodes
        devices = {node["device"] for node in nodes if node["device"]}
        parts = [f"{len(nodes):,} {'op' if len(nodes) == 1 else 'ops'}"]
        if devices:
            parts.append(f"{len(devices)} {'device' if len(devices) == 1 else 'devices'}")
        if self._tree.root.stale:
            parts.append(f"{self._tree.root.stale} stale")
        return " · ".join(parts)
