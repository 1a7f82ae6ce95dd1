"""All passes, one after the other, on one copy of the graph that a run needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from nbflow.body import Body, bodies_of
from nbflow.graph import Graph, Node, Tensor
from nbflow.optimize.cse import cse
from nbflow.optimize.draft import Draft, Leaf, Log
from nbflow.optimize.fold import Evaluate, fold
from nbflow.optimize.inexact import matmul, power
from nbflow.optimize.layout import layout
from nbflow.optimize.report import PassReport, Report, peaks_text
from nbflow.optimize.simplify import simplify
from nbflow.optimize.transposes import transposes
from nbflow.optimize.trim import trim

Pass = Callable[[Draft], None]


@dataclass(frozen=True, slots=True)
class Optimized:
    """The graph after the passes, what stands for the fetches in it, and the log of each pass that ran."""

    graph: Graph
    wanted: tuple[Leaf, ...]
    draft: Draft
    logs: tuple[tuple[str, Log], ...] = ()
    before: int = 0

    @property
    def fate(self) -> dict[str, str]:
        """What became of each op that a pass removed or changed."""
        return self.draft.fate

    def stands_for(self, tensor: Tensor) -> Tensor:
        """What stands for a tensor of the graph before; it may be gone from the graph, if no fetch needs it."""
        return self.draft.stands_for(tensor)

    def node_for(self, node: Node) -> Node:
        """What runs in place of a node of the graph before; it may be gone from the graph."""
        return self.draft.node_for(node)

    def report(self, peaks: Mapping[str, tuple[float, float]] | None = None) -> Report:
        """What the passes did. Costs are estimated now, not while a run is prepared. `peaks`: what `schedule` gave."""
        rows = tuple(PassReport.of(name, log) for name, log in self.logs)
        if peaks:
            rows += (PassReport("schedule", (), 0, 0, 0.0, 0.0, peaks_text(peaks)),)
        return Report(rows, self.before, len(self.graph.nodes), self.fate)


def optimize(graph: Graph, wanted: Sequence[Leaf], passes: Sequence[str], evaluate: Evaluate) -> Optimized:
    """Runs `passes` (names, in order; see `settings`) on a copy of `graph` and in the bodies of its loops and branches.

    `wanted`: the fetched tensors and nodes; their values do not change. `evaluate`: computes an op at once. Whatever
    the passes, bodies get the shapes that come in, and a loop that runs for its gradient too runs once.
    """
    draft = Draft(graph, wanted)
    table: dict[str, Pass] = {
        "trim": trim,
        "fold": lambda draft: fold(draft, evaluate),
        "simplify": simplify,
        "power": power,
        "layout": layout,
        "transposes": transposes,
        "matmul": matmul,
        "cse": cse,
    }
    logs = []
    for name in passes:
        if name in table:
            draft.log = Log()
            table[name](draft)
            _in_bodies(draft, table[name])
            logs.append((name, draft.log))
    kept = tuple(draft.node_for(x) if isinstance(x, Node) else draft.stands_for(x) for x in wanted)
    return Optimized(draft.graph, kept, draft, tuple(logs), len(graph.nodes))


def _in_bodies(draft: Draft, run: Pass) -> None:
    """Runs a pass in each body. What a body takes and gives stays; changes are told under the name of its node."""
    for node in draft.graph.nodes.values():
        for key, body in bodies_of(node).items():
            inner = Draft(body.graph, [*body.arguments, *body.outputs])
            run(inner)
            _in_bodies(inner, run)
            if inner.log.changes or inner.log.gone:
                stands = inner.stands_for
                node.attrs[key] = Body(inner.graph, _all(stands, body.arguments), _all(stands, body.outputs))
                draft.take(inner, node.name)


def _all(stands: Callable[[Tensor], Tensor], tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(stands(t) for t in tensors)
