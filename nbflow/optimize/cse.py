"""Common subexpressions: of ops that compute the same from the same, all but the first go.

Value numbering in one walk (Cocke and Schwartz, "Programming Languages and Their Compilers", 1970, chapter 6): two ops
are the same when op, attributes, inputs, control inputs and the places they are tied to are. Exact: the value that
stays is the one that both would have had.

What stays as it is: ops that are `stateful` (each random op draws from its own stream) and ops fetched as such. The
copies that `nf.checkpoint` makes read their inputs through stateful barriers, so they are never the same as the
originals.
"""

from __future__ import annotations

from collections.abc import Hashable

from nbflow.body import ARGUMENT, is_stateful
from nbflow.graph import Node, Tensor
from nbflow.optimize.draft import Draft
from nbflow.optimize.values import token

# Constants up to this size are taken as equal, so that what reads them merges, but stay apart: placed beside its
# reader a number costs nothing, while one for two devices would travel in every step.
SMALL_BYTES = 1024

_SOURCES = ("placeholder", ARGUMENT)


def cse(draft: Draft) -> None:
    """Merges ops that compute the same."""
    first: dict[Hashable, Node] = {}
    stands: dict[Node, Node] = {}  # a small constant -> the first that is equal to it

    def source(tensor: Tensor) -> tuple[int, int]:
        return id(stands.get(tensor.node, tensor.node)), tensor.index

    def rule(node: Node) -> None:
        if not node.outputs or node.op in _SOURCES or is_stateful(node):
            return
        key = (
            node.op,
            tuple(source(t) for t in node.inputs),
            tuple((k, token(v)) for k, v in sorted(node.attrs.items())),
            draft.places.of(node),
            frozenset(node.control_inputs),
        )
        other = first.setdefault(key, node)
        if other is node:
            return
        if node.op == "constant" and (node.outputs[0].spec.nbytes or 0) <= SMALL_BYTES:
            stands[node] = other
        elif not draft.is_held(node):
            draft.replace(node, other.outputs, f"is the same as {other.name}")

    draft.walk(rule)
