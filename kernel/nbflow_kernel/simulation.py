"""`%cluster simulate`: the notebook's training step on machines that are only described; a picture and a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nbflow.errors import GraphError
from nbflow.graph import Graph, Node, get_graph
from nbflow.parallel import strategy_of
from nbflow.simulate.asked import Asked
from nbflow.simulate.plot import HEIGHT, WIDTH, draw
from nbflow.simulate.report import Backups, Curve


def answer(asked: Asked, step: Any = None) -> Curve | Backups:
    """`step`: a training step; None: the last one that was built. Raises GraphError when there is none."""
    found = last_step(get_graph()) if step is None else step
    if not isinstance(found, Node):
        raise GraphError(f"{found!r} is no training step: name what optimizer.minimize returned")
    return asked.answer(found, found.name)


def last_step(graph: Graph) -> Node:
    """The training step that was built last: of those with a strategy, if some have one."""
    steps = [n for n in graph.nodes.values() if n.op == "group" and any(_updates(c) for c in n.control_inputs)]
    if not steps:
        raise GraphError("there is no training step yet: build one with optimizer.minimize(loss)")
    return ([n for n in steps if strategy_of(n)] or steps)[-1]


def _updates(node: Node) -> bool:
    return node.op.startswith("apply_")


@dataclass(frozen=True, slots=True)
class _Pictured:
    found: Curve | Backups

    def png(self) -> bytes:
        # The drawing takes a while to import, and a kernel that only computes needs none.
        from nbflow_widgets.sheet import Sheet

        sheet = Sheet(WIDTH, HEIGHT)
        draw(self.found, sheet)
        return sheet.png()

    def __str__(self) -> str:
        return f"a picture of: {str(self.found).splitlines()[0]}"


def bundle(found: Curve | Backups) -> tuple[dict[str, Any], Any]:
    """The picture, for a notebook; the table, with what was assumed, is beside it: of one output it shows one form."""
    from nbflow_widgets.bundle import static_bundle

    return static_bundle(_Pictured(found))
