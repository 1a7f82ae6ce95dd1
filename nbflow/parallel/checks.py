"""What can be known to be wrong of a strategy before anything runs: data that is too little to be divided."""

from __future__ import annotations

from collections.abc import Sequence

from nbflow.data.describe import call, count, most_rows
from nbflow.errors import GraphError
from nbflow.graph import Node


def check_data(readers: Sequence[Node], parts: int, *, dealt: bool, what: str) -> None:
    """Raises GraphError when some of `parts` would never get anything to compute with.

    `readers`: the `iterator_next` nodes that each part has of its own. `dealt`: each part takes whole batches, and not
    its rows of every batch. `what`: what the parts are called, for people.
    """
    for node in readers if parts > 1 else ():
        tree = node.attrs["tree"]
        if dealt:
            found, of = count(tree), "elements in all"
            advice = "let it .repeat(), make the batches smaller, or use fewer workers"
        else:
            known = most_rows(tree)
            found, of = -1 if known is None else known, "rows in a batch at most"
            advice = f"make it .batch({parts}) or more, or use fewer {what}"
        if 0 <= found < parts:
            raise GraphError(
                f"dataset {node.inputs[0].node.name!r} has {found} {of} ({call(tree)}) for {parts} {what}: "
                f"{parts - found} of them would never have any; {advice}",
                where=node.where,
            )
