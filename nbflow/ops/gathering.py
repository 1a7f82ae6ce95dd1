"""Elements picked by several index tensors at once, as `x[i, j]` and `x[mask]` do, and put back for gradients."""

from __future__ import annotations

from collections.abc import Sequence

from nbflow import op
from nbflow.errors import DTypeError, ShapeError
from nbflow.graph import Node, Tensor
from nbflow.op import Attrs, Cost
from nbflow.ops._build import build, require_kind, same_infer
from nbflow.ops.creation import zeros_like
from nbflow.ops.shape import unbroadcast
from nbflow.ops.slices import Gradient, sliced
from nbflow.spec import Shape, TensorSpec, broadcast_shapes, format_shape, normalize_axis

Grads = Sequence[Tensor | None]


def _only(grads: Grads) -> Tensor:
    (grad,) = grads
    assert grad is not None  # the only output of the op
    return grad


def _gathered(x: TensorSpec, indices: Sequence[TensorSpec], attrs: Attrs) -> Shape:
    if not indices:
        raise ShapeError("gather_nd takes at least one index tensor")
    for spec in indices:
        require_kind(spec, "iu", "indices are integers")
    if x.shape is None:
        return None
    axis = normalize_axis(attrs["axis"], len(x.shape))
    if axis + len(indices) > len(x.shape):
        raise ShapeError(
            f"{len(indices)} index tensors from dimension {axis} on are too many for {format_shape(x.shape)}"
        )
    picked = broadcast_shapes(*(s.shape for s in indices))
    return None if picked is None else (*x.shape[:axis], *picked, *x.shape[axis + len(indices) :])


def _gather_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    return [TensorSpec(_gathered(inputs[0], inputs[1:], attrs), inputs[0].dtype)]


def _gather_gradient(node: Node, grads: Grads) -> Sequence[Gradient | None]:
    x, *indices = node.inputs
    if len(indices) == 1 and x.shape is not None and normalize_axis(node.attrs["axis"], len(x.shape)) == 0:
        return [sliced(x, indices[0], _only(grads)), None]
    return [build("scatter_nd_add", (zeros_like(x), _only(grads), *indices), node.attrs), *[None] * len(indices)]


def _scatter_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    x, updates, *indices = inputs
    require_kind(x, "iufc", "only numbers add up")
    if updates.dtype != x.dtype:
        raise DTypeError(f"updates are {x.dtype} like the tensor, not {updates.dtype}; use nf.astype first")
    wanted = _gathered(x, indices, attrs)
    merged = broadcast_shapes(wanted, updates.shape)
    if merged is not None and wanted is not None and len(merged) != len(wanted):
        raise ShapeError(f"updates of {format_shape(updates.shape)} do not fit {format_shape(wanted)}")
    return same_infer(inputs, attrs)


def _scatter_gradient(node: Node, grads: Grads) -> Grads:
    grad = _only(grads)
    x, updates, *indices = node.inputs
    wanted = _gathered(x.spec, [t.spec for t in indices], node.attrs)
    picked = build("gather_nd", (grad, *indices), node.attrs)
    return [grad, unbroadcast(picked, updates, wanted), *[None] * len(indices)]


def _moved(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], attrs: Attrs) -> Cost:
    return Cost(0.0, 2 * op.nbytes_of(outputs) + op.nbytes_of(inputs[1:]))


op.define(
    "gather_nd",
    infer=_gather_infer,
    gradient=_gather_gradient,
    cost=_moved,
    doc="Elements or slices by several indices at once. inputs: x, an index tensor for each of consecutive dimensions; "
    "these broadcast together, and their shape stands in the place of the dimensions. attrs: axis (the first of them).",
)
op.define(
    "scatter_nd_add",
    infer=_scatter_infer,
    gradient=_scatter_gradient,
    cost=_moved,
    doc="The transpose of gather_nd: x with updates added where the indices point; repeated ones add up, in order. "
    "inputs: x, updates, index tensors. attrs: axis.",
)


def gather_nd(x: Tensor, indices: Sequence[Tensor], axis: int, *, name: str | None = None) -> Tensor:
    """`x[:, …, *indices, …]`, the first of `indices` at dimension `axis`."""
    return build("gather_nd", (x, *indices), {"axis": int(axis)}, name=name)
