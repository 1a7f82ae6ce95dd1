"""Sums, means, extremes and the like over dimensions.

`axis` is None (all dimensions), an int or ints; with `keepdims` reduced dimensions stay, with length 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nbflow import op
from nbflow.errors import DTypeError, ShapeError
from nbflow.graph import Node, Tensor
from nbflow.op import Attrs, Cost, GradientRule
from nbflow.ops._build import (
    BOOL,
    INT64,
    ArrayLike,
    axis_attr,
    build,
    convert,
    require_kind,
    ufunc_dtype,
    unary,
)
from nbflow.ops._complex import fitted, holomorphic
from nbflow.ops.casting import astype
from nbflow.ops.comparison import equal, isfinite, where
from nbflow.ops.creation import stop_gradient, zeros_like
from nbflow.ops.elementwise import exp, log, sqrt, square
from nbflow.ops.manipulation import expand_dims, flip, squeeze
from nbflow.ops.shape import broadcast_like
from nbflow.spec import (
    FLOAT32,
    Dim,
    DTypeLike,
    Shape,
    TensorSpec,
    as_dtype,
    format_shape,
    is_half,
    kind_of,
    normalize_axes,
    normalize_axis,
)

Grads = Sequence[Tensor | None]
Axis = int | Sequence[int] | None


def _only(grads: Grads) -> Tensor:
    (grad,) = grads
    assert grad is not None  # the only output of the op
    return grad


# --- common rules ----------------------------------------------------------------------------------------------------


def _reduced(shape: Shape, attrs: Attrs) -> Shape:
    axis, keepdims = attrs["axis"], attrs["keepdims"]
    if shape is None:
        return () if axis is None and not keepdims else None
    axes = normalize_axes(axis, len(shape))
    if keepdims:
        return tuple(1 if i in axes else d for i, d in enumerate(shape))
    return tuple(d for i, d in enumerate(shape) if i not in axes)


def _count(x: Tensor, axis: Any, dtype: np.dtype[Any] | None = None) -> Tensor | int:
    """How many elements each result of a reduction of `x` comes from: an int, or a scalar of `dtype` (None: that of x)
    at run time."""
    if x.shape is not None:
        total = 1
        for a in normalize_axes(axis, len(x.shape)):
            dim = x.shape[a]
            if dim is None:
                break
            total *= dim
        else:
            return total
    return build("count", (x,), {"axis": axis, "dtype": dtype or x.dtype})


def _kept(reduced: Tensor, node: Node) -> Tensor:
    """`reduced`, shaped like the output of `node`, with the reduced dimensions put back as length 1."""
    axis = node.attrs["axis"]
    if node.attrs["keepdims"] or axis is None:
        return reduced  # a scalar broadcasts as it is
    axes = (axis,) if isinstance(axis, int) else axis
    return expand_dims(reduced, axes) if axes else reduced


def _reduction_cost(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], attrs: Attrs) -> Cost:
    return Cost(op.size_of(inputs[0]), op.nbytes_of(inputs) + op.nbytes_of(outputs))


def _define(name: str, dtype_rule: Any, gradient: GradientRule | None, doc: str, *, some: bool = False) -> None:
    """`some`: the op needs elements to choose from."""

    def infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
        if some:
            _require_some(inputs[0], attrs, name)
        return [TensorSpec(_reduced(inputs[0].shape, attrs), dtype_rule(inputs[0].dtype, attrs))]

    op.define(
        name,
        infer=infer,
        gradient=gradient,
        cost=_reduction_cost,
        out=True,
        doc=doc + " attrs: axis (None, int or tuple), keepdims.",
    )


def _reduce(op_name: str, x: ArrayLike, axis: Axis, keepdims: bool, name: str | None, **more: Any) -> Tensor:
    return unary(op_name, x, {"axis": axis_attr(axis), "keepdims": bool(keepdims), **more}, name=name)


# --- sum, mean, prod -------------------------------------------------------------------------------------------------


def accumulator(dtype: np.dtype[Any], attrs: Attrs) -> np.dtype[Any]:
    """The array API's: small integers and booleans are added as 64-bit ones."""
    asked: np.dtype[Any] | None = attrs["dtype"]
    if asked is not None:
        if kind_of(dtype) == "c" and kind_of(asked) != "c":
            raise DTypeError(f"adding {dtype} as {asked} would drop the imaginary part; use nf.real first")
        return asked
    if kind_of(dtype) == "b":
        return INT64
    return np.dtype(f"{kind_of(dtype)}8") if kind_of(dtype) in "iu" else dtype


def _sum_gradient(node: Node, grads: Grads) -> Grads:
    x = node.inputs[0]
    if kind_of(x.dtype) not in "fc":
        return [None]
    return [broadcast_like(_kept(fitted(_only(grads), x), node), x)]


_define("sum", accumulator, _sum_gradient, "The sum. attrs: dtype (None: the input's; 64 bits for integers).")


def sum(
    x: ArrayLike, /, *, axis: Axis = None, dtype: DTypeLike = None, keepdims: bool = False, name: str | None = None
) -> Tensor:
    """The sum over `axis`. Booleans and small integers are added as 64-bit integers unless `dtype` says otherwise."""
    return _reduce("sum", x, axis, keepdims, name, dtype=None if dtype is None else as_dtype(dtype))


def _floating(what: str) -> Any:
    def rule(dtype: np.dtype[Any], attrs: Attrs) -> np.dtype[Any]:
        if kind_of(dtype) not in "fc":
            raise DTypeError(f"{what} of {dtype} is not defined; use nf.astype(x, 'float32') first")
        return dtype

    return rule


def _mean_gradient(node: Node, grads: Grads) -> Grads:
    x, grad = node.inputs[0], _only(grads)
    if is_half(x.dtype):
        # A count above 65504 is no float16, and above 256 hardly a bfloat16.
        part = astype(astype(grad, FLOAT32) / astype(_count(x, node.attrs["axis"], INT64), FLOAT32), x.dtype)
    else:
        part = grad / _count(x, node.attrs["axis"])
    return [broadcast_like(_kept(part, node), x)]


_define("mean", _floating("the mean"), _mean_gradient, "The arithmetic mean of floating point values.")


def mean(x: ArrayLike, /, *, axis: Axis = None, keepdims: bool = False, name: str | None = None) -> Tensor:
    """The mean over `axis`; NaN over nothing. Raises DTypeError for integers and booleans: use `nf.astype` first."""
    return _reduce("mean", x, axis, keepdims, name)


def _prod_gradient(node: Node, grads: Grads) -> Grads:
    x = node.inputs[0]
    if kind_of(x.dtype) not in "fc":
        return [None]
    others = build("prod_others", (x,), {"axis": node.attrs["axis"]})
    return [_kept(fitted(_only(grads), x), node) * others]


_define(
    "prod",
    accumulator,
    holomorphic(_prod_gradient),
    "The product. attrs: dtype (None: the input's; 64 bits for integers).",
)


def prod(
    x: ArrayLike, /, *, axis: Axis = None, dtype: DTypeLike = None, keepdims: bool = False, name: str | None = None
) -> Tensor:
    """The product over `axis`. Booleans and small integers multiply as 64-bit ones unless `dtype` says otherwise."""
    return _reduce("prod", x, axis, keepdims, name, dtype=None if dtype is None else as_dtype(dtype))


op.define(
    "count",
    infer=lambda inputs, attrs: [TensorSpec((), attrs["dtype"])],
    gradient=None,
    cost=op.free_cost,
    doc="How many elements a reduction over axis takes together, a scalar. attrs: axis, dtype.",
)

# --- extremes --------------------------------------------------------------------------------------------------------


def _extreme_gradient(node: Node, grads: Grads) -> Grads:
    # Equal extremes share the gradient evenly.
    x = node.inputs[0]
    hit = astype(equal(x, _kept(node.outputs[0], node)), x.dtype)
    hits = sum(hit, axis=node.attrs["axis"], keepdims=True)
    return [_kept(_only(grads), node) * hit / hits]


def _require_some(spec: TensorSpec, attrs: Attrs, what: str) -> None:
    """Raises ShapeError where there is certainly nothing to choose from."""
    if spec.shape is None:
        return
    empty = [a for a in normalize_axes(attrs["axis"], len(spec.shape)) if spec.shape[a] == 0]
    if empty:
        raise ShapeError(f"{what} of nothing: {format_shape(spec.shape)} has no elements along dimension {empty[0]}")


def _ordered(dtype: np.dtype[Any], attrs: Attrs) -> np.dtype[Any]:
    return ufunc_dtype(np.maximum, dtype, dtype)


_define("max", _ordered, _extreme_gradient, "The greatest element; NaN if there is one.", some=True)
_define("min", _ordered, _extreme_gradient, "The least element; NaN if there is one.", some=True)


def max(x: ArrayLike, /, *, axis: Axis = None, keepdims: bool = False, name: str | None = None) -> Tensor:
    """The greatest element over `axis`, of which there must be one. Equal ones share the gradient."""
    return _reduce("max", x, axis, keepdims, name)


def min(x: ArrayLike, /, *, axis: Axis = None, keepdims: bool = False, name: str | None = None) -> Tensor:
    """The least element over `axis`, of which there must be one. Equal ones share the gradient."""
    return _reduce("min", x, axis, keepdims, name)


def _define_arg(name: str, doc: str) -> None:
    def infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
        if isinstance(attrs["axis"], tuple):
            raise ShapeError(f"{name} takes one axis or None, not {attrs['axis']}")
        _require_some(inputs[0], attrs, name)
        return [TensorSpec(_reduced(inputs[0].shape, attrs), INT64)]

    op.define(
        name,
        infer=infer,
        gradient=None,
        cost=_reduction_cost,
        out=True,
        doc=doc + " attrs: axis (None: of the flattened tensor), keepdims.",
    )


_define_arg("argmax", "The index (int64) of the first greatest element.")
_define_arg("argmin", "The index (int64) of the first least element.")


def argmax(x: ArrayLike, /, *, axis: int | None = None, keepdims: bool = False, name: str | None = None) -> Tensor:
    """The int64 index of the first greatest element along `axis`; None: of the flattened tensor."""
    return _reduce("argmax", x, axis, keepdims, name)


def argmin(x: ArrayLike, /, *, axis: int | None = None, keepdims: bool = False, name: str | None = None) -> Tensor:
    """The int64 index of the first least element along `axis`; None: of the flattened tensor."""
    return _reduce("argmin", x, axis, keepdims, name)


# --- truth -----------------------------------------------------------------------------------------------------------

_define("any", lambda dtype, attrs: BOOL, None, "One element is true (not 0).")
_define("all", lambda dtype, attrs: BOOL, None, "Every element is true (not 0).")


def any(x: ArrayLike, /, *, axis: Axis = None, keepdims: bool = False, name: str | None = None) -> Tensor:
    """Whether an element over `axis` is true (not 0); false over nothing."""
    return _reduce("any", x, axis, keepdims, name)


def all(x: ArrayLike, /, *, axis: Axis = None, keepdims: bool = False, name: str | None = None) -> Tensor:
    """Whether every element over `axis` is true (not 0); true over nothing."""
    return _reduce("all", x, axis, keepdims, name)


# --- cumulative_sum --------------------------------------------------------------------------------------------------


def _cumulative_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    shape = inputs[0].shape
    dtype = accumulator(inputs[0].dtype, attrs)
    if shape is None:
        return [TensorSpec(None, dtype)]
    axis = normalize_axis(attrs["axis"], len(shape))
    dim: Dim = shape[axis]
    if attrs["include_initial"] and dim is not None:
        dim += 1
    return [TensorSpec((*shape[:axis], dim, *shape[axis + 1 :]), dtype)]


def _cumulative_gradient(node: Node, grads: Grads) -> Grads:
    x, axis = node.inputs[0], node.attrs["axis"]
    if kind_of(x.dtype) not in "fc":
        return [None]
    grad = fitted(_only(grads), x)
    total = flip(cumulative_sum(flip(grad, axis=axis), axis=axis), axis=axis)
    if node.attrs["include_initial"]:
        after = [slice(None)] * (-1 - axis) if axis < 0 else []
        before: list[Any] = [...] if axis < 0 else [slice(None)] * axis
        total = total[(*before, slice(1, None), *after)]
    return [total]


op.define(
    "cumulative_sum",
    infer=_cumulative_infer,
    gradient=_cumulative_gradient,
    cost=_reduction_cost,
    out=True,
    doc="Running sums along a dimension. attrs: axis, include_initial (start with a 0), dtype (as for sum).",
)


def cumulative_sum(
    x: ArrayLike,
    /,
    *,
    axis: int | None = None,
    dtype: DTypeLike = None,
    include_initial: bool = False,
    name: str | None = None,
) -> Tensor:
    """Running sums along `axis`, which may be left out for a vector; `include_initial` puts a 0 before the first."""
    tensor = convert(x)
    if axis is None:
        if tensor.ndim != 1:
            raise ShapeError(f"cumulative_sum of {tensor!r} needs an axis: only a vector has just one")
        axis = 0
    attrs = {
        "axis": int(axis),
        "include_initial": bool(include_initial),
        "dtype": None if dtype is None else as_dtype(dtype),
    }
    return build("cumulative_sum", (tensor,), attrs, name=name)


# --- made of others --------------------------------------------------------------------------------------------------


def var(
    x: ArrayLike, /, *, axis: Axis = None, correction: float = 0.0, keepdims: bool = False, name: str | None = None
) -> Tensor:
    """The variance over `axis`: squared distances from the mean, summed, divided by their number less `correction`."""
    tensor = convert(x)
    require_kind(tensor.spec, "f", "the variance is of floating point values")
    if is_half(tensor.dtype):  # squares leave the range of float16, and differences the precision of bfloat16
        made = var(astype(tensor, FLOAT32), axis=axis, correction=correction, keepdims=keepdims)
        return build("astype", (made,), {"dtype": tensor.dtype}, name=name)
    away = square(tensor - mean(tensor, axis=axis, keepdims=True))
    if correction == 0:
        return mean(away, axis=axis, keepdims=keepdims, name=name)
    total = sum(away, axis=axis, keepdims=keepdims)
    return build("divide", (total, convert(_count(tensor, axis_attr(axis)) - correction, like=total)), name=name)


def std(
    x: ArrayLike, /, *, axis: Axis = None, correction: float = 0.0, keepdims: bool = False, name: str | None = None
) -> Tensor:
    """The standard deviation over `axis`, the square root of `nf.var`; the gradient where it is 0 is 0."""
    tensor = convert(x)
    if is_half(tensor.dtype):
        made = std(astype(tensor, FLOAT32), axis=axis, correction=correction, keepdims=keepdims)
        return build("astype", (made,), {"dtype": tensor.dtype}, name=name)
    spread = var(tensor, axis=axis, correction=correction, keepdims=keepdims)
    nothing = equal(spread, 0)
    return build("where", (nothing, zeros_like(spread), sqrt(where(nothing, 1, spread))), name=name)


def logsumexp(x: ArrayLike, /, *, axis: Axis = None, keepdims: bool = False, name: str | None = None) -> Tensor:
    """log(sum(exp(x))) over `axis`, without overflow; -inf over nothing but -inf, where the gradient is 0."""
    tensor = convert(x)
    require_kind(tensor.spec, "f", "logsumexp is of floating point values")
    if is_half(tensor.dtype):
        made = logsumexp(astype(tensor, FLOAT32), axis=axis, keepdims=keepdims)
        return build("astype", (made,), {"dtype": tensor.dtype}, name=name)
    top = stop_gradient(max(tensor, axis=axis, keepdims=True))
    shift = where(isfinite(top), top, 0)  # inf - inf would be NaN
    total = sum(exp(tensor - shift), axis=axis, keepdims=True)
    none = equal(total, 0)
    made = where(none, top, log(where(none, 1, total))) + shift
    if keepdims:
        return made if name is None else build("identity", (made,), name=name)
    axes = axis_attr(axis)
    if axes is None:
        return build("reshape", (made,), {"shape": ()}, name=name)
    return squeeze(made, axes, name=name)
