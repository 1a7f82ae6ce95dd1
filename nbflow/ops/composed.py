"""Functions of the array API that other ops make up: differences, grids, running products, conversions, constants.

All but `cumulative_prod` build ops of other families and have their gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from nbflow import op
from nbflow.errors import GraphError, ShapeError
from nbflow.graph import Node, Tensor
from nbflow.op import Attrs, Cost
from nbflow.ops._build import (
    BOOL,
    ArrayLike,
    DeviceLike,
    as_tensor,
    build,
    convert,
    convert_all,
    known_rank,
    placing,
    require_kind,
    unary,
)
from nbflow.ops._complex import fitted, holomorphic
from nbflow.ops.casting import astype
from nbflow.ops.comparison import logical_or, not_equal, where
from nbflow.ops.creation import arange, constant, identity, ones_like, zeros, zeros_like
from nbflow.ops.indexing import take
from nbflow.ops.joining import concat
from nbflow.ops.manipulation import expand_dims, moveaxis, tril
from nbflow.ops.manipulation import repeat as repeat_evenly
from nbflow.ops.reduction import accumulator, cumulative_sum
from nbflow.ops.reduction import sum as sum_over
from nbflow.ops.sets import searchsorted
from nbflow.ops.shape import ShapeLike, broadcast_like, reshape
from nbflow.spec import Dim, DTypeLike, TensorSpec, as_dtype, kind_of, normalize_axis

Grads = Sequence[Tensor | None]

# The standard's constants.
e = math.e
inf = math.inf
nan = math.nan
pi = math.pi
newaxis = None

# --- conversion and creation -----------------------------------------------------------------------------------------


@placing
def asarray(
    value: ArrayLike,
    /,
    *,
    dtype: DTypeLike = None,
    device: DeviceLike = None,
    copy: bool | None = None,
    name: str | None = None,
) -> Tensor:
    """`value` as a tensor: one passes as it is (converted to `dtype` if that differs), others become constants.

    Raises GraphError for `copy=False` with anything but a tensor: constants are copies.
    """
    tensor = as_tensor(value)
    if copy is False and tensor is None:
        raise GraphError("a constant is a copy of its value; leave out copy=False")
    if tensor is None:
        return constant(value, dtype, name=name)
    if dtype is not None and as_dtype(dtype) != tensor.dtype:
        return astype(tensor, dtype, name=name)
    return tensor if name is None else identity(tensor, name=name)


@placing
def from_dlpack(x: Any, /, *, device: DeviceLike = None, copy: bool | None = None, name: str | None = None) -> Tensor:
    """A constant with the values of an array of another library, by the DLPack protocol; on the host.

    Raises GraphError for `copy=False`: constants are copies.
    """
    if copy is False:
        raise GraphError("a constant is a copy of its value; leave out copy=False")
    return constant(np.from_dlpack(x), name=name)


@placing
def empty(shape: ShapeLike, *, dtype: DTypeLike = None, device: DeviceLike = None, name: str | None = None) -> Tensor:
    """A tensor whose values nobody should read; they are zeros, so that runs repeat. float32 unless given."""
    return zeros(shape, dtype=dtype, name=name)


@placing
def empty_like(
    x: ArrayLike, /, *, dtype: DTypeLike = None, device: DeviceLike = None, name: str | None = None
) -> Tensor:
    """A tensor in the shape of `x` whose values nobody should read; they are zeros, so that runs repeat."""
    return zeros_like(x, dtype=dtype, name=name)


def repeat(x: ArrayLike, repeats: Any, /, *, axis: int | None = None, name: str | None = None) -> Tensor:
    """Each element of `x` `repeats` times in a row, along `axis`; None: of the flattened tensor.

    `repeats` is a positive int, or a vector of a number for each element, at least 0; the length of the result is then
    known only at run time, unless they are no tensor.
    """
    if isinstance(repeats, (int, np.integer)) and not isinstance(repeats, bool):
        return repeat_evenly(x, int(repeats), axis=axis, name=name)
    tensor = convert(x)
    if axis is None:
        tensor, axis = reshape(tensor, (-1,)), 0
    counts = convert(repeats)
    require_kind(counts.spec, "iu", "numbers of repeats are integers")
    length = None if tensor.shape is None else tensor.shape[normalize_axis(axis, len(tensor.shape))]
    if counts.ndim != 1 or (length is not None and counts.shape not in ((length,), (None,))):
        raise ShapeError(f"{counts!r} does not say for each of {length} elements how often it comes")
    if as_tensor(repeats) is None:
        places = convert(np.repeat(np.arange(len(repeats)), np.asarray(repeats)))
    else:
        ends = cumulative_sum(counts)
        places = searchsorted(ends, arange(ends[-1], dtype=ends.dtype), side="right")
    return take(tensor, places, axis=axis, name=name)


# --- grids -----------------------------------------------------------------------------------------------------------


def broadcast_arrays(*arrays: ArrayLike) -> tuple[Tensor, ...]:
    """`arrays`, all broadcast to the shape that they have together."""
    tensors = [convert(a) for a in arrays]
    if len(tensors) < 2:
        return tuple(tensors)
    # Booleans that are all false: whatever is in the arrays, and whatever their dtypes, they have the shape.
    whole = zeros_like(tensors[0], dtype=BOOL)
    for tensor in tensors[1:]:
        whole = logical_or(whole, zeros_like(tensor, dtype=BOOL))
    return tuple(broadcast_like(t, whole) for t in tensors)


def meshgrid(*arrays: ArrayLike, indexing: str = "xy") -> tuple[Tensor, ...]:
    """For each vector a tensor that repeats it along the dimensions of the others.

    `indexing` 'ij': vector i lies along dimension i; 'xy': the first two are exchanged, as for pictures.
    """
    if indexing not in ("xy", "ij"):
        raise ShapeError(f"indexing is 'xy' or 'ij', not {indexing!r}")
    tensors = convert_all(arrays)
    for tensor in tensors:
        if tensor.ndim not in (1, None):
            raise ShapeError(f"meshgrid takes vectors, not {tensor!r}")
    count = len(tensors)
    places = list(range(count))
    if indexing == "xy" and count > 1:
        places[:2] = [1, 0]
    spread = [expand_dims(t, [n for n in range(count) if n != place]) for t, place in zip(tensors, places, strict=True)]
    return broadcast_arrays(*spread)


# --- differences and running products --------------------------------------------------------------------------------


def _along(axis: int, part: slice) -> tuple[Any, ...]:
    """The index that takes `part` of one dimension."""
    if axis < 0:
        return (..., part, *[slice(None)] * (-1 - axis))
    return (*[slice(None)] * axis, part)


def diff(
    x: ArrayLike,
    /,
    *,
    axis: int = -1,
    n: int = 1,
    prepend: ArrayLike | None = None,
    append: ArrayLike | None = None,
    name: str | None = None,
) -> Tensor:
    """Each element along `axis` less the one before, `n` times; `prepend` and `append` are joined on first."""
    tensor = convert(x)
    require_kind(tensor.spec, "iufc", "differences are of numbers")
    if not isinstance(n, (int, np.integer)) or n < 0:
        raise ShapeError(f"n is how often differences are taken, at least 0 times, not {n!r}")
    ends = [None if v is None else convert(v, like=tensor) for v in (prepend, append)]
    parts = [p for p in (ends[0], tensor, ends[1]) if p is not None]
    if len(parts) > 1:
        tensor = concat(parts, axis=axis)
    for _ in range(n):
        tensor = tensor[_along(axis, slice(1, None))] - tensor[_along(axis, slice(None, -1))]
    return tensor if name is None else identity(tensor, name=name)


def _cumulative_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    shape, dtype = inputs[0].shape, accumulator(inputs[0].dtype, attrs)
    if shape is None:
        return [TensorSpec(None, dtype)]
    axis = normalize_axis(attrs["axis"], len(shape))
    dim: Dim = shape[axis]
    if attrs["include_initial"] and dim is not None:
        dim += 1
    return [TensorSpec((*shape[:axis], dim, *shape[axis + 1 :]), dtype)]


def _cumulative_gradient(node: Node, grads: Grads) -> Grads:
    # Row i of a table holds what product i takes, ones elsewhere: then it is the gradient of nf.prod, which is exact
    # where elements are 0. Dividing the products by the elements would be faster, and NaN there.
    (grad,) = grads
    assert grad is not None  # the only output
    x, axis = node.inputs[0], node.attrs["axis"]
    if kind_of(x.dtype) not in "fc":
        return [None]
    grad = fitted(grad, x)
    if node.attrs["include_initial"]:
        grad = grad[_along(axis, slice(1, None))]
    if axis != -1:
        known_rank(x.spec, "the gradient of cumulative_prod along another dimension than the last")
        x, grad = moveaxis(x, axis, -1), moveaxis(grad, axis, -1)
    wide = expand_dims(x, -2) * expand_dims(ones_like(x), -1)
    taken = not_equal(tril(ones_like(wide)), 0)
    others = build("prod_others", (where(taken, wide, 1),), {"axis": -1})
    made = sum_over(where(taken, expand_dims(grad, -1) * others, 0), axis=-2)
    return [made if axis == -1 else moveaxis(made, -1, axis)]


op.define(
    "cumulative_prod",
    infer=_cumulative_infer,
    gradient=holomorphic(_cumulative_gradient),
    cost=lambda inputs, outputs, attrs: Cost(op.size_of(inputs[0]), op.nbytes_of(inputs) + op.nbytes_of(outputs)),
    out=True,
    doc="Running products along a dimension. Its gradient takes memory for the square of the dimension. attrs: axis, "
    "include_initial (start with a 1), dtype (as for prod).",
)


def cumulative_prod(
    x: ArrayLike,
    /,
    *,
    axis: int | None = None,
    dtype: DTypeLike = None,
    include_initial: bool = False,
    name: str | None = None,
) -> Tensor:
    """Running products along `axis`, which may be left out for a vector; `include_initial` puts a 1 before the first.

    The gradient takes memory for the square of the dimension.
    """
    tensor = convert(x)
    if axis is None:
        if tensor.ndim != 1:
            raise ShapeError(f"cumulative_prod of {tensor!r} needs an axis: only a vector has just one")
        axis = 0
    attrs = {
        "axis": int(axis),
        "include_initial": bool(include_initial),
        "dtype": None if dtype is None else as_dtype(dtype),
    }
    return unary("cumulative_prod", tensor, attrs, name=name)
