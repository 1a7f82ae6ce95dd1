"""Permutations and reshapes: two in a row become one, those that undo each other go, also through elementwise ops.

An elementwise op on permuted tensors is the permuted result of the op: the permutation moves behind the op where some
reader of the result undoes it. Exact: elements move, none is computed otherwise. What broadcasts against the permuted
tensors (a bias) is brought into the other order, where it is small.
"""

from __future__ import annotations

from collections.abc import Sequence

from nbflow.graph import Node, Tensor
from nbflow.optimize.draft import Draft

Axes = tuple[int, ...]

_RESHAPES = ("reshape", "expand_dims", "squeeze")
# An operand this many times smaller than the result may be put in another order for it.
_SMALL = 8


def transposes(draft: Draft) -> None:
    """Moves permutations to where they cancel, and takes out those that do."""
    wanted = _wanted(draft)

    def rule(node: Node) -> None:
        if node.op in ("permute_dims", "matrix_transpose"):
            _join_permutations(draft, node)
        elif node.op in _RESHAPES:
            _join_reshapes(draft, node)
        elif node.definition.elementwise and len(node.outputs) == 1 and node in wanted:
            _sink(draft, node, wanted[node])

    draft.walk(rule)


def permutation(node: Node) -> Axes | None:
    """The axes of a permuting op; None for another op, or where the rank is not known."""
    if node.op == "permute_dims":
        return tuple(node.attrs["axes"])
    rank = node.outputs[0].spec.rank if node.op == "matrix_transpose" else None
    return None if rank is None else (*range(rank - 2), rank - 1, rank - 2)


def inverse(axes: Axes) -> Axes:
    """The permutation that undoes `axes`."""
    return tuple(axes.index(i) for i in range(len(axes)))


def _join_permutations(draft: Draft, node: Node) -> None:
    outer, inner = permutation(node), permutation(node.inputs[0].node)
    if outer is None:
        return
    x, axes = node.inputs[0], outer
    if inner is not None:
        x, axes = x.node.inputs[0], tuple(inner[a] for a in outer)
    if axes == tuple(range(len(axes))):
        if draft.may_stand(x, node):
            draft.replace(node, [x], f"is {x.name}: the dimensions are in their order again")
    elif inner is not None:
        draft.become(node, "permute_dims", (x,), {"axes": axes}, f"permutes {x.name} at once")


def _join_reshapes(draft: Draft, node: Node) -> None:
    x = node.inputs[0]
    if x.node.op not in _RESHAPES or len(x.node.inputs) > 1 or len(node.inputs) > 1:
        return
    first = x.node.inputs[0]
    # All shapes are known, so that no error that the run would have had is passed by.
    if not (first.spec.is_static and x.spec.is_static and node.outputs[0].spec.is_static):
        return
    if first.shape == node.outputs[0].shape and draft.may_stand(first, node):
        draft.replace(node, [first], f"is {first.name}, in its own shape again")
    else:
        attrs = {"shape": node.outputs[0].shape}
        draft.become(node, "reshape", (first,), attrs, f"reshapes {first.name} at once")


# --- through elementwise ops -----------------------------------------------------------------------------------------


def _wanted(draft: Draft) -> dict[Node, set[Axes]]:
    """For elementwise ops: the permutations that some reader of the result undoes, at once or after more such ops."""
    found: dict[Node, set[Axes]] = {}
    for node in reversed(list(draft.graph.nodes.values())):
        axes = permutation(node) if node.outputs else None
        if axes is not None:
            undone = {inverse(axes)}
        elif node.definition.elementwise and node in found:
            undone = found[node]
        else:
            continue
        for tensor in node.inputs:
            if tensor.node.definition.elementwise:
                found.setdefault(tensor.node, set()).update(undone)
    return found


def _sink(draft: Draft, node: Node, wanted: set[Axes]) -> None:
    rank = node.outputs[0].spec.rank
    permuted = [(t, permutation(t.node)) for t in node.inputs if t.spec.rank == rank]
    axes = next((a for _, a in permuted if a is not None and a in wanted), None)
    if axes is None or not draft.may_go(node):
        return
    inputs = [_unpermuted(draft, node, t, axes) for t in node.inputs]
    if all(t is not None for t in inputs):
        draft.wrap(
            node,
            [t for t in inputs if t is not None],
            node.attrs,
            ("permute_dims", {"axes": axes}, "permuted"),
            "is computed before its inputs are permuted",
        )


def _unpermuted(draft: Draft, node: Node, tensor: Tensor, axes: Axes) -> Tensor | None:
    """What `tensor` was before the permutation `axes`, or what broadcasts there as `tensor` does here; None when that
    would take more than it saves."""
    if tensor.spec.rank == len(axes) and permutation(tensor.node) == axes:
        return tensor.node.inputs[0]
    if tensor.spec.rank == 0:
        return tensor
    sizes = tensor.spec.size, node.outputs[0].spec.size
    if sizes[0] is None or sizes[1] is None or sizes[0] * _SMALL > sizes[1]:
        return None
    shape = tensor.shape or ()
    full: Sequence[int | None] = (*(1,) * (len(axes) - len(shape)), *shape)
    if len(full) != len(shape):
        tensor = draft.make(node, "reshape", (tensor,), {"shape": tuple(full)}, "operand")
    return draft.make(node, "permute_dims", (tensor,), {"axes": inverse(axes)}, "operand")
