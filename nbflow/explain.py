"""The graph for people: as JSON for the graph view (schema in docs/architecture.md), and placement as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nbflow.errors import NbflowError
from nbflow.graph import Graph, Node, topological
from nbflow.placement import Placed

SCHEMA = "nbflow.graph.v1"
# An attribute is shown up to this many characters; constants may be megabytes.
ATTR_CHARS = 80


def graph_json(graph: Graph, placement: Mapping[str, Placed] | None = None) -> dict[str, Any]:
    """The graph as plain JSON values."""
    nodes = [*graph.nodes.values(), *(n for n in (graph.pending or {}).values() if n.name not in graph.nodes)]
    return {"schema": SCHEMA, "nodes": [_node_json(n, (placement or {}).get(n.name)) for n in topological(nodes)]}


def _node_json(node: Node, placed: Placed | None) -> dict[str, Any]:
    try:
        cost = node.definition.cost([t.spec for t in node.inputs], [t.spec for t in node.outputs], node.attrs)
        flops, nbytes = float(cost.flops), float(cost.nbytes)
    except NbflowError:
        flops = nbytes = 0.0
    return {
        "name": node.name,
        "op": node.op,
        "inputs": [t.name for t in node.inputs] + [f"^{c.name}" for c in node.control_inputs],
        "outputs": [{"shape": None if t.shape is None else list(t.shape), "dtype": t.dtype.name} for t in node.outputs],
        "attrs": {key: _short(value) for key, value in sorted(node.attrs.items())},
        "asked": str(node.device),
        "device": None if placed is None else str(placed.device),
        "why": "" if placed is None else placed.why,
        "cell": {"id": node.owner.id, "label": node.owner.label},
        "line": node.line,
        "stale": node.stale,
        "flops": flops,
        "nbytes": nbytes,
    }


def _short(value: Any) -> str:
    if isinstance(value, np.ndarray) and value.size > 8:
        return f"{value.dtype.name} array of shape {value.shape}"
    if isinstance(value, np.ndarray):
        value = value.tolist()
    elif isinstance(value, tuple):
        return "(" + ", ".join(_short(v) for v in value[:8]) + (", …)" if len(value) > 8 else ")")
    text = str(value)
    return text if len(text) <= ATTR_CHARS else text[: ATTR_CHARS - 1] + "…"


@dataclass(frozen=True, slots=True)
class PlacementRow:
    """Where one op goes. `asked` is what the user wrote, possibly partial or empty."""

    op: str
    type: str
    asked: str
    actual: str
    why: str
    cell: str


class PlacementTable(Sequence[PlacementRow]):
    """Rows in the order of the graph; prints as a table."""

    def __init__(self, rows: Sequence[PlacementRow]) -> None:
        self.rows = tuple(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __iter__(self) -> Iterator[PlacementRow]:
        return iter(self.rows)

    def __repr__(self) -> str:
        head = ("op", "asked", "actual", "why")
        lines = [head, *((r.op, r.asked or "–", r.actual, r.why) for r in self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(3)]
        padded = [[*(c.ljust(w) for c, w in zip(line, widths, strict=False)), line[3]] for line in lines]
        return "\n".join("  ".join(cells) for cells in padded)


def placement_table(graph: Graph, placement: Mapping[str, Placed]) -> PlacementTable:
    """One row a node."""
    return PlacementTable(
        [
            PlacementRow(n.name, n.op, p.asked, str(p.device), p.why, n.where)
            for n in graph.nodes.values()
            if (p := placement.get(n.name)) is not None
        ]
    )
