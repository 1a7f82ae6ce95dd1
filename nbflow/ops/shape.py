"""Shapes as values, and what gradients need of them: `shape_of`, `reshape`, `broadcast_to`, `sum_to_shape`.

An op that makes a tensor of a given shape has the attribute `shape` (None for what is not known yet) and, unless it is
fully known, the shape as a second input: an int64 vector, made at run time by `shape_of`. So a gradient rule never
keeps a whole tensor alive, or sends one to another device, only for its shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nbflow import op
from nbflow.errors import ShapeError
from nbflow.graph import Node, Tensor
from nbflow.op import Attrs, Cost
from nbflow.ops._build import INT64, ArrayLike, as_tensor, build, convert, require_kind, static_shape
from nbflow.spec import Dim, Shape, TensorSpec, broadcast_shapes, format_shape, kind_of, merge_shapes

ShapeLike = Any  # int, sequence of ints and integer scalar tensors, or an integer vector
Grads = Sequence[Tensor | None]


# --- shape_of --------------------------------------------------------------------------------------------------------


def _shape_of_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    return [TensorSpec((inputs[0].rank,), INT64)]


op.define(
    "shape_of",
    infer=_shape_of_infer,
    gradient=None,
    cost=op.free_cost,
    doc="The shape at run time, an int64 vector. It lives on the host, whatever the device of the input.",
)


def shape_of(x: ArrayLike, /, *, name: str | None = None) -> Tensor:
    """The shape of `x` at run time, an int64 vector; `x.shape` is what is known of it before."""
    return build("shape_of", (convert(x),), name=name)


def shape_like(x: Tensor) -> tuple[Shape, tuple[Tensor, ...]]:
    """What stands for the shape of `x` in an op's attribute `shape` and, when not fully known, its further input."""
    return (x.shape, ()) if x.spec.is_static else (x.shape, (shape_of(x),))


def shape_argument(shape: ShapeLike) -> tuple[Shape, tuple[Tensor, ...]]:
    """A user's `shape` argument as attribute and further input. Raises ShapeError for anything that is no shape."""
    vector = as_tensor(shape)
    if vector is not None:
        return _vector_argument(vector)
    if isinstance(shape, (int, np.integer)):
        return (int(shape),), ()
    try:
        items = list(shape)
    except TypeError:
        raise ShapeError(f"a shape is an int or a sequence of ints, not {shape!r}") from None
    tensors = [as_tensor(item) for item in items]
    dims: list[Dim] = []
    for item, tensor in zip(items, tensors, strict=True):
        if tensor is not None:
            dims.append(None)
            continue
        try:
            dims.append(int(item.__index__()))
        except AttributeError:
            hint = "; nf.shape_of(x)[i] is a dimension known at run time" if item is None else ""
            raise ShapeError(f"a dimension is an integer or an integer tensor, not {item!r}{hint}") from None
    like = next((t for t in tensors if t is not None), None)
    if like is None:
        return tuple(dims), ()
    parts = [t if t is not None else convert(item, like=like) for item, t in zip(items, tensors, strict=True)]
    for part in parts:
        require_kind(part.spec, "iu", "a dimension is an integer")
    return tuple(dims), (build("stack", parts, {"axis": 0}),)


def _vector_argument(vector: Tensor) -> tuple[Shape, tuple[Tensor, ...]]:
    require_kind(vector.spec, "iu", "a shape holds integers")
    if vector.node.op == "shape_of":
        known = vector.node.inputs[0].shape
        return known, (() if static_shape(known) is not None else (vector,))
    if vector.node.op == "constant":
        return tuple(int(d) for d in vector.node.attrs["value"]), ()
    rank = vector.shape[0] if vector.shape else None
    return (None if rank is None else (None,) * rank), (vector,)


def shape_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Shape:
    """The output shape of an op with attribute `shape` and perhaps a shape vector as its last input."""
    shape: Shape = attrs["shape"]
    if static_shape(shape) is None and not (
        inputs and kind_of(inputs[-1].dtype) in "iu" and inputs[-1].rank in (1, None)
    ):
        raise ShapeError(f"shape {format_shape(shape)} is not fully known, and no shape vector is given")
    if shape is not None and any(d is not None and d < 0 for d in shape):
        raise ShapeError(f"a dimension cannot be negative: {shape}")
    return shape


# --- reshape ---------------------------------------------------------------------------------------------------------


def _reshape_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    shape: Shape = attrs["shape"]
    if shape is None or (len(inputs) == 2 and None in shape):
        return [TensorSpec(shape if shape is None else tuple(None if d == -1 else d for d in shape), inputs[0].dtype)]
    if sum(d == -1 for d in shape) > 1 or any(d is not None and d < -1 for d in shape):
        raise ShapeError(f"a shape has at most one -1 and no other negative number: {shape}")
    known = 1
    for dim in shape:
        known *= 1 if dim is None or dim == -1 else dim
    size = inputs[0].size
    if -1 in shape:
        free: Dim = None
        if size is not None:
            if known == 0 or size % known:
                raise ShapeError(f"cannot reshape {format_shape(inputs[0].shape)} ({size} elements) to {shape}")
            free = size // known
        return [TensorSpec(tuple(free if d == -1 else d for d in shape), inputs[0].dtype)]
    if size is not None and size != known:
        raise ShapeError(
            f"cannot reshape {format_shape(inputs[0].shape)} ({size} elements) to {shape} ({known} elements)"
        )
    return [TensorSpec(shape, inputs[0].dtype)]


def _reshape_gradient(node: Node, grads: Grads) -> Grads:
    (grad,) = grads
    assert grad is not None  # the only output
    return [reshape_like(grad, node.inputs[0]), *[None] * (len(node.inputs) - 1)]


op.define(
    "reshape",
    infer=_reshape_infer,
    gradient=_reshape_gradient,
    cost=op.free_cost,
    alias=True,
    doc="Another shape, same elements in row-major order. inputs: x, and the shape (int vector) unless known. "
    "attrs: shape, with one -1 for what is left.",
)


def reshape(x: ArrayLike, /, shape: ShapeLike, *, copy: bool | None = None, name: str | None = None) -> Tensor:
    """`x` in another shape, row-major. One dimension may be -1 (or None, as in `x.shape`): what is left.

    Dimensions may be integer scalar tensors such as `nf.shape_of(x)[0]`. Raises ShapeError when sizes differ.
    """
    tensor = convert(x)
    if as_tensor(shape) is None and not isinstance(shape, (int, np.integer)):
        dims = list(shape)
        if sum(d is None for d in dims) == 1 and not any(isinstance(d, int) and d == -1 for d in dims):
            shape = [-1 if d is None else d for d in dims]
    attr, extra = shape_argument(shape)
    return build("reshape", (tensor, *extra), {"shape": attr}, name=name)


def reshape_like(x: Tensor, like: Tensor) -> Tensor:
    """`x` in the shape of `like`, found at run time only when it must be."""
    if like.shape is not None and x.spec.is_static and like.shape == x.shape:
        return x
    if like.shape is not None and sum(d is None for d in like.shape) == 1 and 0 not in like.shape:
        return build("reshape", (x,), {"shape": tuple(-1 if d is None else d for d in like.shape)})
    attr, extra = shape_like(like)
    return build("reshape", (x, *extra), {"shape": attr})


# --- broadcast_to ----------------------------------------------------------------------------------------------------


def _broadcast_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    shape = shape_infer(inputs[1:], attrs)
    source = inputs[0].shape
    if shape is not None and source is not None:
        merged = broadcast_shapes(source, shape)
        if merged is None or len(merged) != len(shape) or not _fits(merged, shape):
            raise ShapeError(f"{format_shape(source)} does not broadcast to {format_shape(shape)}")
        # A known dimension above 1 stays itself, whatever the run-time shape says.
        shape = tuple(m if s is None and m not in (None, 1) else s for m, s in zip(merged, shape, strict=True))
    return [TensorSpec(shape, inputs[0].dtype)]


def _fits(merged: Sequence[Dim], wanted: Sequence[Dim]) -> bool:
    return all(w is None or m is None or m == w for m, w in zip(merged, wanted, strict=True))


def _broadcast_gradient(node: Node, grads: Grads) -> Grads:
    (grad,) = grads
    assert grad is not None  # the only output
    return [sum_to_shape(grad, node.inputs[0]), *[None] * (len(node.inputs) - 1)]


op.define(
    "broadcast_to",
    infer=_broadcast_infer,
    gradient=_broadcast_gradient,
    cost=op.free_cost,
    alias=True,
    doc="Repeated along new dimensions and those of length 1; a view. inputs: x, and the shape unless known. "
    "attrs: shape.",
)


def broadcast_to(x: ArrayLike, /, shape: ShapeLike, *, name: str | None = None) -> Tensor:
    """`x` broadcast to `shape`. Raises ShapeError when it does not fit."""
    attr, extra = shape_argument(shape)
    return build("broadcast_to", (convert(x), *extra), {"shape": attr}, name=name)


def broadcast_like(x: Tensor, like: Tensor) -> Tensor:
    """`x` broadcast to the shape of `like`, found at run time only when it must be."""
    if x.spec.is_static and x.shape == like.shape:
        return x
    attr, extra = shape_like(like)
    return build("broadcast_to", (x, *extra), {"shape": attr})


# --- sum_to_shape ----------------------------------------------------------------------------------------------------


def _sum_to_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    shape = shape_infer(inputs[1:], attrs)
    source = inputs[0].shape
    if shape is not None and source is not None:
        merged = broadcast_shapes(source, shape)
        if merged is None or len(merged) != len(source) or not _fits(merged, source):
            raise ShapeError(f"{format_shape(source)} cannot be summed to {format_shape(shape)}")
    return [TensorSpec(shape, inputs[0].dtype)]


def _sum_to_gradient(node: Node, grads: Grads) -> Grads:
    (grad,) = grads
    assert grad is not None  # the only output
    return [broadcast_like(grad, node.inputs[0]), *[None] * (len(node.inputs) - 1)]


def _sum_to_cost(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], attrs: Attrs) -> Cost:
    return Cost(op.size_of(inputs[0]), op.nbytes_of(inputs) + op.nbytes_of(outputs))


op.define(
    "sum_to_shape",
    infer=_sum_to_infer,
    gradient=_sum_to_gradient,
    cost=_sum_to_cost,
    alias=True,
    doc="The transpose of broadcast_to: sums over the dimensions that it would repeat. inputs: x, and the shape unless "
    "known. attrs: shape.",
)


def sum_to_shape(x: Tensor, like: Tensor) -> Tensor:
    """`x` summed to the shape of `like`, which broadcasts to that of `x`."""
    if x.spec.is_static and x.shape == like.shape:
        return x
    attr, extra = shape_like(like)
    return build("sum_to_shape", (x, *extra), {"shape": attr})


def unbroadcast(grad: Tensor, x: Tensor, *others: Shape) -> Tensor:
    """The gradient for input `x` of an op that broadcast `x` with tensors of shapes `others`.

    Builds nothing where the shapes prove that `x` was not repeated, also with unknown dimensions.
    """
    return grad if _never_repeated(x.shape, others) else sum_to_shape(grad, x)


def _never_repeated(shape: Shape, others: Sequence[Shape]) -> bool:
    if shape is None:
        return all(o == () for o in others)
    for other in others:
        if other is None or len(other) > len(shape):
            return False
        for mine, theirs in zip(reversed(shape), reversed(other), strict=False):
            # A dimension of unknown length may be 1, and then be repeated, unless the other is known to be 1.
            if theirs != 1 and (mine is None or mine == 1):
                return False
    return True


def merge_specs(specs: Sequence[TensorSpec], what: str) -> TensorSpec:
    """The one spec that all have. Raises ShapeError or DTypeError, starting with `what`, when they differ."""
    shape, dtype = specs[0].shape, specs[0].dtype
    for spec in specs[1:]:
        require_kind_same(spec, dtype, what)
        shape = merge_shapes(shape, spec.shape)
    return TensorSpec(shape, dtype)


def require_kind_same(spec: TensorSpec, dtype: np.dtype[Any], what: str) -> None:
    """Raises DTypeError unless `spec` has exactly `dtype`."""
    require_kind(spec, kind_of(dtype) if spec.dtype == dtype else "", f"{what} have one dtype, {dtype}")
