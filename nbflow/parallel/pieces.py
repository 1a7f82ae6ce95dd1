"""Variables in pieces by rows: which can be, what their pieces are called, and what lies beside them.

Values in, values out; `sharding` rewrites graphs by it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

from nbflow.errors import GraphError
from nbflow.graph import Graph, Node, Tensor
from nbflow.ops.rows import LAZY, SCATTER_UPDATES
from nbflow.ops.state import GRADIENT_INPUT

# Variable name -> rows of each of its pieces.
Splits = Mapping[str, tuple[int, ...]]

_SPARSE = tuple(f"{name}_sparse" for name in LAZY)
_SCATTERS = tuple(f"variable_scatter_{how}" for how in SCATTER_UPDATES)
# Norms over all rows decide how far a row moves.
_WHOLE = ("apply_lamb", "apply_lars")
_PIECEWISE = {
    "initialize",
    "read_variable",
    "assign",
    "assign_add",
    "assign_sub",
    *_SPARSE,
    *_SCATTERS,
    *(name for name in GRADIENT_INPUT if name not in _WHOLE),
}


def even(rows: int, pieces: int) -> tuple[int, ...]:
    """`rows` in nearly equal parts, the larger first."""
    return tuple(rows // pieces + (n < rows % pieces) for n in range(pieces))


def piece_name(variable: str, number: int) -> str:
    """What the state of a piece is called."""
    return f"{variable}/rows_{number}"


def splittable(graph: Graph, variable: Node) -> bool:
    """Whether all that `graph` does with the state of `variable` can be done piece by piece."""
    users = [n for n in graph.nodes.values() if any(t.node is variable for t in n.inputs)]
    return all(n.op in _PIECEWISE for n in users)


def companions(graph: Graph, splits: Splits) -> dict[str, tuple[int, ...]]:
    """`splits`, with the variables that lie beside a split one and have as many rows: an optimizer's slots, averages.

    Raises GraphError for a variable that is split, and used as a whole."""
    found = dict(splits)
    for node in graph.nodes.values():
        leader = next((c for c in node.colocate if c in found), None)
        if node.op == "variable" and leader is not None and node.name not in found:
            shape = node.attrs["shape"]
            if shape and shape[0] == sum(found[leader]) and not str(node.device):
                found[node.name] = found[leader]
    for name in found:
        if name in graph.nodes.keys():
            for user in graph.nodes.values():
                if any(t.node.name == name for t in user.inputs) and user.op not in _PIECEWISE:
                    raise GraphError(
                        f"variable {name!r} is split by rows over several tasks, and {user.op} {user.name!r} needs it "
                        "whole; train it with another strategy or a larger split_bytes, in a session of its own",
                        where=user.where,
                    )
    return found


def starts_of(sizes: Sequence[int]) -> tuple[int, ...]:
    return (0, *accumulate(sizes[:-1]))


def rows_at(node: Node) -> tuple[int, int] | tuple[()]:
    """Which inputs of an op on some rows are the values, and the row numbers."""
    if node.op in _SCATTERS:
        return 2, 1
    if node.op in _SPARSE:
        handles = sum(t.spec.resource for t in node.inputs)
        at = handles + 1 + (node.op == "apply_adam_sparse")
        return at, at + 1
    return ()


def partners(graph: Graph) -> dict[str, tuple[Tensor, Tensor]]:
    """Name of a sparse_join -> the values and the row numbers of the gradient that it joins a half of.

    The two are made one after the other, under one scope.
    """
    by_place: dict[tuple[str, str], list[tuple[int, Node]]] = {}
    for node in graph.nodes.values():
        if node.op == "sparse_join":
            scope, _, last = node.name.rpartition("/")
            number = int(last.rpartition(".")[2]) if "." in last else 0
            by_place.setdefault((scope, node.inputs[1].node.name), []).append((number, node))
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for members in by_place.values():
        ordered = [node for _, node in sorted(members, key=lambda m: m[0])]
        for first, second in pairwise(ordered):
            if (first.attrs["part"], second.attrs["part"]) == ("values", "indices"):
                found[first.name] = found[second.name] = (first.inputs[0], second.inputs[0])
    return found
