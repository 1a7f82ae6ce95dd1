"""What was made, for people: the graph as JSON for the graph view (schema in docs/architecture.md), placement as a
table, a plan as a listing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nbflow.body import ARGUMENT, Body, bodies_of
from nbflow.cost import LINK, CostModel, LinkModel
from nbflow.errors import NbflowError
from nbflow.graph import Graph, Node, topological
from nbflow.placement import Placed
from nbflow.placement_problem import size_text, time_text
from nbflow.plan import Instruction, Plan
from nbflow.spec import TensorSpec
from nbflow.transport import CLIENT, LinkInfo

SCHEMA = "nbflow.graph.v1"
# An attribute is shown up to this many characters; constants may be megabytes.
ATTR_CHARS = 80
# The attributes of one line of a listing: enough to tell two ops apart.
LINE_CHARS = 48
NOTHING = "–"
# Of the links below a table of placements.
LISTED_LINKS = 3


def graph_json(
    graph: Graph,
    placement: Mapping[str, Placed] | None = None,
    cost: CostModel | None = None,
    measured: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """The graph as plain JSON values. `cost` and `measured`: as for `placement_table`."""
    # As the running cell sees it: without what it is about to replace.
    nodes = [*(n for n in graph.nodes.values() if graph.find(n.name) is n), *(graph.pending or {}).values()]
    made = []
    for node in topological(nodes):
        placed = (placement or {}).get(node.name)
        predicted_s = None if placed is None else _predicted(node, placed, cost)
        made.append(_node_json(node, placed, predicted_s, (measured or {}).get(node.name)))
    return {"schema": SCHEMA, "nodes": made}


def _node_json(
    node: Node, placed: Placed | None, predicted_s: float | None = None, measured_s: float | None = None
) -> dict[str, Any]:
    try:
        cost = node.definition.cost([t.spec for t in node.inputs], [t.spec for t in node.outputs], node.attrs)
        flops, nbytes = float(cost.flops), float(cost.nbytes)
    except NbflowError:
        flops = nbytes = 0.0
    made = {
        "name": node.name,
        "op": node.op,
        "inputs": [t.name for t in node.inputs] + [f"^{c.name}" for c in node.control_inputs],
        "outputs": [{"shape": None if t.shape is None else list(t.shape), "dtype": t.dtype.name} for t in node.outputs],
        "attrs": {key: _short(value) for key, value in sorted(node.attrs.items())},
        "asked": str(node.device),
        "device": None if placed is None else str(placed.device) or None,
        "why": "" if placed is None else placed.why,
        "cell": {"id": node.owner.id, "label": node.owner.label},
        "line": node.line,
        "stale": node.stale,
        "flops": flops,
        "nbytes": nbytes,
        "predicted_s": predicted_s,
        "measured_s": measured_s,
    }
    bodies = {key: _body_json(body) for key, body in bodies_of(node).items()}
    return {**made, "bodies": bodies} if bodies else made


def _body_json(body: Body) -> dict[str, Any]:
    """A body as a graph of its own. Its names are relative to the node; nothing is known of its ops' devices here."""
    return {
        "nodes": [_node_json(n, None) for n in body.graph.nodes.values()],
        "arguments": [t.name for t in body.arguments],
        "outputs": [t.name for t in body.outputs],
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
    """Where one op goes. `asked` is what the user wrote, possibly partial or empty; `actual` is empty for an op that a
    pass removed without anything in its place. Times are seconds: what the placer takes it to take there, and what the
    last traced step measured; None where that is not known."""

    op: str
    type: str
    asked: str
    actual: str
    why: str
    cell: str
    predicted_s: float | None = None
    measured_s: float | None = None


class PlacementTable(Sequence[PlacementRow]):
    """Rows in the order of the graph; prints as a table. `links`: of the links that tensors take, which were measured
    and which are assumed; empty where there are none."""

    def __init__(self, rows: Sequence[PlacementRow], links: str = "") -> None:
        self.rows = tuple(rows)
        self.links = links

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __iter__(self) -> Iterator[PlacementRow]:
        return iter(self.rows)

    def __repr__(self) -> str:
        head = ("op", "asked", "actual", "predicted", "measured", "why")
        lines = [head, *map(cells, self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(5)]
        padded = [[*(c.ljust(w) for c, w in zip(line, widths, strict=False)), line[5]] for line in lines]
        return "\n".join(["  ".join(line) for line in padded] + ([f"links: {self.links}"] if self.links else []))


def cells(row: PlacementRow) -> tuple[str, str, str, str, str, str]:
    """A row as text: op, asked, actual, predicted, measured, why."""
    times = [NOTHING if s is None else time_text(s) for s in (row.predicted_s, row.measured_s)]
    return row.op, row.asked or NOTHING, row.actual or NOTHING, times[0], times[1], row.why


def placement_table(
    graph: Graph,
    placement: Mapping[str, Placed],
    cost: CostModel | None = None,
    measured: Mapping[str, float] | None = None,
) -> PlacementTable:
    """One row a node, and one for each op in its bodies. `cost` gives what was predicted, `measured` maps names to
    seconds."""
    rows = []
    for name, node in _everywhere(graph, ""):
        placed = placement.get(name)
        if placed is None:
            continue
        predicted_s, took_s = _predicted(node, placed, cost), (measured or {}).get(name)
        rows.append(
            PlacementRow(name, node.op, placed.asked, str(placed.device), placed.why, node.where, predicted_s, took_s)
        )
    return PlacementTable(rows, "" if cost is None else _links_text(cost))


def _predicted(node: Node, placed: Placed, cost: CostModel | None) -> float | None:
    if cost is None or placed.device not in cost.devices or node.op == ARGUMENT:
        return None
    return cost.compute_seconds(node, placed.device)


def _links_text(cost: CostModel) -> str:
    """The links between the tasks of a model, and the client: measured ones, and how many are assumed."""
    tasks = sorted({d.task_name for d in cost.devices})
    if len(tasks) < 2:
        return ""
    lines = links_rows(cost.links, tasks)
    parts = [f"{ends} {figures}" for ends, figures, how in lines if how == "measured"][:LISTED_LINKS]
    measured, assumed = (sum(how == kind for _, _, how in lines) for kind in ("measured", "assumed"))
    if measured > len(parts):
        parts.append(f"{measured - len(parts)} more")
    text = f"measured {', '.join(parts)}" if parts else ""
    rest = f"{assumed} assumed to have {link_text(cost.link)}" if assumed else ""
    return "; ".join(part for part in (text, rest) if part)


def links_rows(
    links: Mapping[tuple[str, str], LinkModel | LinkInfo], tasks: Sequence[str]
) -> list[tuple[str, str, str]]:
    """For each pair of `tasks`, and each of them and the client: the two ends, what the link has, and whether that was
    measured or is assumed."""
    rows = []
    for pair in [*((CLIENT, t) for t in sorted(tasks)), *itertools.combinations(sorted(tasks), 2)]:
        link = links.get(pair)
        ends = " – ".join("client" if t == CLIENT else t.removeprefix("/job:").replace("/task", "") for t in pair)
        rows.append((ends, link_text(link or LINK), "assumed" if link is None else "measured"))
    return rows


def link_text(link: LinkModel | LinkInfo) -> str:
    """`95 µs, 5.1 GB/s, shared memory`."""
    via = f", {link.via}" if isinstance(link, LinkInfo) and link.via else ""
    return f"{time_text(link.latency_s)}, {size_text(link.bytes_per_s)}/s{via}"


def _everywhere(graph: Graph, prefix: str) -> Iterator[tuple[str, Node]]:
    """All nodes with their names, those in bodies after the node that they belong to."""
    for node in graph.nodes.values():
        yield prefix + node.name, node
        for body in bodies_of(node).values():
            yield from _everywhere(body.graph, f"{prefix}{node.name}/")


def explain_plan(plan: Plan) -> str:
    """The program of one device as text: one line an instruction, in the order in which they run.

    `s4` is slot 4, `b0` is buffer 0, `frees` are the slots that nobody reads afterwards. The bodies of loops and
    branches follow, indented.
    """
    lines = [_heading(plan)]
    lines += [f"  feed   s{f.slot} = {f.name}  {f.spec}" for f in plan.feeds]
    lines += [f"  const  s{c.slot} = {_short(c.value)}" for c in plan.constants]
    rows = [(str(n), _call(i), _effects(i), i.node) for n, i in enumerate(plan.instructions)]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    lines += [f"  {n:>{widths[0]}}  {call:<{widths[1]}}  {what:<{widths[2]}}  # {node}" for n, call, what, node in rows]
    lines += [f"  fetch  {f.name} = s{f.slot}{' (copied)' if f.copy else ''}" for f in plan.fetches]
    for number, instruction in enumerate(plan.instructions):
        for body in instruction.bodies:
            inside = explain_plan(body).splitlines()
            lines += [f"  body of instruction {number}, on {inside[0]}", *(f"  {line}" for line in inside[1:])]
    return "\n".join(lines)


def _heading(plan: Plan) -> str:
    parts = [f"{len(plan.instructions)} instructions", f"{plan.slots} slots"]
    if plan.buffers:
        total = sum(b.nbytes or 0 for b in plan.buffers)
        parts.append(f"buffers of {total:,} bytes: " + _buffers(plan.buffers))
    return f"{plan.device}: " + ", ".join(parts)


def _buffers(buffers: Sequence[TensorSpec]) -> str:
    shown = [f"b{n} {b}" for n, b in enumerate(buffers[:6])]
    return ", ".join(shown) + (", …" if len(buffers) > 6 else "")


def _call(instruction: Instruction) -> str:
    inputs = ", ".join(f"s{i}" for i in instruction.inputs)
    if instruction.op == "send":
        return f"send {inputs or 'a token'} to {instruction.attrs['destination']}"
    outputs = ", ".join(f"s{o}" for o in instruction.outputs)
    if instruction.op == "recv":
        return f"{outputs} = recv from {instruction.attrs['source']}"
    attrs = ", ".join(f"{k}={_short(v)}" for k, v in sorted(instruction.attrs.items()))
    if len(attrs) > LINE_CHARS:
        attrs = attrs[: LINE_CHARS - 1] + "…"
    call = f"{instruction.op}({', '.join(part for part in (inputs, attrs) if part)})"
    return f"{outputs} = {call}" if outputs else call


def _effects(instruction: Instruction) -> str:
    parts = []
    if instruction.buffer >= 0:
        parts.append(f"in b{instruction.buffer}")
    if instruction.frees:
        parts.append("frees " + " ".join(f"s{slot}" for slot in instruction.frees))
    return "; ".join(parts)
