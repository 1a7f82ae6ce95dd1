"""What picks elements by index, and puts gradients back where they were picked: getitem, take, scatter, one_hot, sort.

How `x[key]` is read stands in `keys.py`.

Indices are integer tensors; negative ones count from the end, others out of range are an error at run time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nbflow import op
from nbflow.errors import ShapeError
from nbflow.graph import Node, Tensor
from nbflow.op import Attrs, Cost
from nbflow.ops._build import (
    DEFAULT_FLOAT,
    INT64,
    ArrayLike,
    build,
    convert,
    require_kind,
    same_infer,
    unary,
)
from nbflow.ops.creation import zeros_like
from nbflow.ops.shape import shape_infer, shape_like, unbroadcast
from nbflow.ops.slices import Gradient, sliced
from nbflow.spec import Dim, DTypeLike, TensorSpec, as_dtype, broadcast_shapes, format_shape, kind_of, normalize_axis

Grads = Sequence[Tensor | None]


def _only(grads: Grads) -> Tensor:
    (grad,) = grads
    assert grad is not None  # the only output of the op
    return grad


# --- getitem ---------------------------------------------------------------------------------------------------------
#
# An index is the attribute `index`: a tuple of ints, (start, stop, step) triples, "newaxis" and at most one "...".


def _expanded(index: tuple[Any, ...], rank: int) -> list[Any]:
    """`index` with the ellipsis (or the end) replaced by full slices."""
    used = sum(item not in ("newaxis", "...") for item in index)
    if used > rank:
        raise ShapeError(f"{used} indices for a tensor of {rank} dimensions")
    full = [(None, None, None)] * (rank - used)
    if "..." in index:
        place = index.index("...")
        return [*index[:place], *full, *index[place + 1 :]]
    return [*index, *full]


def _sliced(dim: Dim, start: int | None, stop: int | None, step: int | None) -> Dim:
    return None if dim is None else len(range(*slice(start, stop, step).indices(dim)))


def _getitem_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    shape, index = inputs[0].shape, attrs["index"]
    if shape is None:
        return [TensorSpec(None, inputs[0].dtype)]
    dims = iter(enumerate(shape))
    out: list[Dim] = []
    for item in _expanded(index, len(shape)):
        if item == "newaxis":
            out.append(1)
            continue
        axis, dim = next(dims)
        if isinstance(item, tuple):
            out.append(_sliced(dim, *item))
        elif dim is not None and not -dim <= item < dim:
            raise ShapeError(f"index {item} is out of range for dimension {axis} of {format_shape(shape)}")
    return [TensorSpec(tuple(out), inputs[0].dtype)]


def _getitem_gradient(node: Node, grads: Grads) -> Grads:
    shape, extra = shape_like(node.inputs[0])
    return [build("getitem_grad", (_only(grads), *extra), {"index": node.attrs["index"], "shape": shape})]


def _getitem_grad_gradient(node: Node, grads: Grads) -> Grads:
    back = build("getitem", (_only(grads),), {"index": node.attrs["index"]})
    return [back, *[None] * (len(node.inputs) - 1)]


op.define(
    "getitem",
    infer=_getitem_infer,
    gradient=_getitem_gradient,
    cost=op.free_cost,
    alias=True,
    doc="Basic indexing; a view. attrs: index (ints, (start, stop, step), 'newaxis', '...').",
)
op.define(
    "getitem_grad",
    infer=lambda inputs, attrs: [TensorSpec(shape_infer(inputs[1:], attrs), inputs[0].dtype)],
    gradient=_getitem_grad_gradient,
    out=True,
    doc="The transpose of getitem: the values where the index points, zeros elsewhere. inputs: values, and the shape "
    "unless known. attrs: index, shape.",
)


# --- take and scatter ------------------------------------------------------------------------------------------------


def _take_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    x, indices = inputs
    require_kind(indices, "iu", "indices are integers")
    if x.shape is None:
        return [TensorSpec(None, x.dtype)]
    axis = normalize_axis(attrs["axis"], len(x.shape))
    if indices.shape is None:
        return [TensorSpec(None, x.dtype)]
    return [TensorSpec((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]), x.dtype)]


def _take_gradient(node: Node, grads: Grads) -> Sequence[Gradient | None]:
    x, indices = node.inputs
    if x.shape is not None and normalize_axis(node.attrs["axis"], len(x.shape)) == 0:
        return [sliced(x, indices, _only(grads)), None]
    return [scatter_add(zeros_like(x), indices, _only(grads), axis=node.attrs["axis"]), None]


def _moved_cost(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], attrs: Attrs) -> Cost:
    return Cost(0.0, 2 * op.nbytes_of(outputs) + op.nbytes_of(inputs[1:2]))


op.define(
    "take",
    infer=_take_infer,
    gradient=_take_gradient,
    cost=_moved_cost,
    doc="Slices along one dimension, by index. inputs: x, indices (integers of any shape). attrs: axis.",
)


def take(x: ArrayLike, indices: ArrayLike, /, *, axis: int | None = None, name: str | None = None) -> Tensor:
    """The slices of `x` at `indices` along `axis`, which may be left out for a vector.

    Indices of shape s give the result `x.shape[:axis] + s + x.shape[axis+1:]`.
    """
    tensor = convert(x)
    if axis is None:
        if tensor.ndim != 1:
            raise ShapeError(f"take from {tensor!r} needs an axis: only a vector has just one")
        axis = 0
    return build("take", (tensor, convert(indices)), {"axis": int(axis)}, name=name)


def gather(x: ArrayLike, indices: ArrayLike, /, *, axis: int = 0, name: str | None = None) -> Tensor:
    """The slices of `x` at `indices` along `axis`: TensorFlow's name for `take`."""
    return take(x, indices, axis=axis, name=name)


def _scatter_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    x, indices, updates = inputs
    require_kind(x, "iufc", "only numbers add up")
    require_kind(
        updates, kind_of(x.dtype) if updates.dtype == x.dtype else "", f"updates are {x.dtype} like the tensor"
    )
    (wanted,) = _take_infer((x, indices), attrs)
    merged = broadcast_shapes(wanted.shape, updates.shape)
    if merged is not None and wanted.shape is not None and len(merged) != len(wanted.shape):
        raise ShapeError(f"updates of {format_shape(updates.shape)} do not fit {format_shape(wanted.shape)}")
    return same_infer(inputs, attrs)


def _scatter_gradient(node: Node, grads: Grads) -> Grads:
    grad = _only(grads)
    x, indices, updates = node.inputs
    (wanted,) = _take_infer((x.spec, indices.spec), node.attrs)
    return [grad, None, unbroadcast(take(grad, indices, axis=node.attrs["axis"]), updates, wanted.shape)]


op.define(
    "scatter_add",
    infer=_scatter_infer,
    gradient=_scatter_gradient,
    doc="x with updates added to its slices at indices; repeated indices add up, in order. inputs: x, indices, updates "
    "(shaped like take's result). attrs: axis.",
)


def scatter_add(
    x: ArrayLike, indices: ArrayLike, updates: ArrayLike, /, *, axis: int = 0, name: str | None = None
) -> Tensor:
    """`x` with `updates` added to its slices at `indices` along `axis`; repeated indices add up.

    `updates` broadcast to the shape of `nf.take(x, indices, axis=axis)`.
    """
    tensor = convert(x)
    inputs = (tensor, convert(indices), convert(updates, like=tensor))
    return build("scatter_add", inputs, {"axis": int(axis)}, name=name)


def _along_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    x, indices = inputs[:2]
    require_kind(indices, "iu", "indices are integers")
    if x.shape is None or indices.shape is None:
        return [TensorSpec(None, x.dtype)]
    if len(x.shape) != len(indices.shape):
        raise ShapeError(f"indices of {format_shape(indices.shape)} need the rank of {format_shape(x.shape)}")
    axis = normalize_axis(attrs["axis"], len(x.shape))
    rest = broadcast_shapes(
        tuple(1 if i == axis else d for i, d in enumerate(x.shape)),
        tuple(1 if i == axis else d for i, d in enumerate(indices.shape)),
    )
    assert rest is not None  # neither is
    return [TensorSpec((*rest[:axis], indices.shape[axis], *rest[axis + 1 :]), x.dtype)]


def _along_gradient(node: Node, grads: Grads) -> Grads:
    x, indices = node.inputs
    inputs = (zeros_like(x), indices, _only(grads))
    return [build("scatter_add_along_axis", inputs, node.attrs), None]


def _scatter_along_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    x, _, updates = inputs
    require_kind(x, "iufc", "only numbers add up")
    require_kind(
        updates, kind_of(x.dtype) if updates.dtype == x.dtype else "", f"updates are {x.dtype} like the tensor"
    )
    (wanted,) = _along_infer(inputs, attrs)
    broadcast_shapes(wanted.shape, updates.shape)
    return same_infer(inputs, attrs)


def _scatter_along_gradient(node: Node, grads: Grads) -> Grads:
    grad = _only(grads)
    _, indices, updates = node.inputs
    (wanted,) = _along_infer([t.spec for t in node.inputs], node.attrs)
    picked = build("take_along_axis", (grad, indices), node.attrs)
    return [grad, None, unbroadcast(picked, updates, wanted.shape)]


op.define(
    "take_along_axis",
    infer=_along_infer,
    gradient=_along_gradient,
    cost=_moved_cost,
    doc="One element for each index, in the vector along a dimension where the index stands. attrs: axis.",
)
op.define(
    "scatter_add_along_axis",
    infer=_scatter_along_infer,
    gradient=_scatter_along_gradient,
    doc="The transpose of take_along_axis: x with updates added where the indices point. attrs: axis.",
)


def take_along_axis(x: ArrayLike, indices: ArrayLike, /, *, axis: int = -1, name: str | None = None) -> Tensor:
    """`x[..., indices[..., j, ...], ...]` along `axis`; `indices` have the rank of `x` and broadcast with it."""
    return build("take_along_axis", (convert(x), convert(indices)), {"axis": int(axis)}, name=name)


# --- one_hot ---------------------------------------------------------------------------------------------------------


def _one_hot_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    require_kind(inputs[0], "iu", "one_hot takes class ids, integers")
    shape = inputs[0].shape
    return [TensorSpec(None if shape is None else (*shape, attrs["depth"]), attrs["dtype"])]


op.define(
    "one_hot",
    infer=_one_hot_infer,
    gradient=None,
    out=True,
    doc="A new last dimension with a one at the index, zeros elsewhere; all zeros where the index is out of range. "
    "attrs: depth (its length), dtype.",
)


def one_hot(indices: ArrayLike, depth: int, /, *, dtype: DTypeLike = None, name: str | None = None) -> Tensor:
    """A vector of `depth` elements for each index: one there, zeros elsewhere. float32 unless `dtype` is given."""
    attrs = {"depth": int(depth), "dtype": DEFAULT_FLOAT if dtype is None else as_dtype(dtype)}
    return unary("one_hot", indices, attrs, name=name)


# --- sorting ---------------------------------------------------------------------------------------------------------


def _sort_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    if inputs[0].shape is not None:
        normalize_axis(attrs["axis"], len(inputs[0].shape))
    return same_infer(inputs, attrs)


def _argsort_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    return [TensorSpec(_sort_infer(inputs, attrs)[0].shape, INT64)]


def _sort_gradient(node: Node, grads: Grads) -> Grads:
    x = node.inputs[0]
    order = build("argsort", (x,), node.attrs)
    inputs = (zeros_like(x), order, _only(grads))
    return [build("scatter_add_along_axis", inputs, {"axis": node.attrs["axis"]})]


def _sort_cost(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], attrs: Attrs) -> Cost:
    size = op.size_of(inputs[0])
    return Cost(size * max(1.0, float(np.log2(size + 1))), op.nbytes_of(inputs) + op.nbytes_of(outputs))


op.define(
    "sort",
    infer=_sort_infer,
    gradient=_sort_gradient,
    cost=_sort_cost,
    doc="Sorted along a dimension; equal elements keep their order. attrs: axis, descending.",
)
op.define(
    "argsort",
    infer=_argsort_infer,
    gradient=None,
    cost=_sort_cost,
    doc="The indices (int64) that sort along a dimension; equal elements keep their order. attrs: axis, descending.",
)


def sort(
    x: ArrayLike, /, *, axis: int = -1, descending: bool = False, stable: bool = True, name: str | None = None
) -> Tensor:
    """`x` sorted along `axis`; equal elements keep their order, whatever `stable` is. NaN counts as the greatest."""
    return unary("sort", x, {"axis": int(axis), "descending": bool(descending)}, name=name)


def argsort(
    x: ArrayLike, /, *, axis: int = -1, descending: bool = False, stable: bool = True, name: str | None = None
) -> Tensor:
    """The int64 indices that sort `x` along `axis`; equal elements keep their order, whatever `stable` is.

    NaN counts as the greatest: last, or first when `descending`.
    """
    return unary("argsort", x, {"axis": int(axis), "descending": bool(descending)}, name=name)
