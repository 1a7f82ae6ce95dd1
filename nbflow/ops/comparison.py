"""Comparisons, logic and bits, and what chooses by them: where, maximum, minimum, clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nbflow import op
from nbflow.errors import DTypeError
from nbflow.graph import Node, Tensor
from nbflow.op import Attrs
from nbflow.ops._build import ArrayLike, build, convert, convert_promoted, is_scalar, promote, require_kind, same_infer
from nbflow.ops._complex import fitted
from nbflow.ops._elementwise import Grads, binary_op, unary_op, zero
from nbflow.ops.shape import unbroadcast
from nbflow.spec import TensorSpec, broadcast_shapes, kind_of

# --- comparison and logic --------------------------------------------------------------------------------------------

equal = binary_op("equal", np.equal, None, "x == y, boolean. No gradient.")
not_equal = binary_op("not_equal", np.not_equal, None, "x != y, boolean. No gradient.")
less = binary_op("less", np.less, None, "x < y, boolean. No gradient.")
less_equal = binary_op("less_equal", np.less_equal, None, "x <= y, boolean. No gradient.")
greater = binary_op("greater", np.greater, None, "x > y, boolean. No gradient.")
greater_equal = binary_op("greater_equal", np.greater_equal, None, "x >= y, boolean. No gradient.")
logical_and = binary_op("logical_and", np.logical_and, None, "Both are true (not 0). No gradient.")
logical_or = binary_op("logical_or", np.logical_or, None, "One is true (not 0). No gradient.")
logical_xor = binary_op("logical_xor", np.logical_xor, None, "Exactly one is true (not 0). No gradient.")
logical_not = unary_op("logical_not", np.logical_not, None, "It is false (0). No gradient.")
isnan = unary_op("isnan", np.isnan, None, "It is not a number. No gradient.")
isinf = unary_op("isinf", np.isinf, None, "It is infinite. No gradient.")
isfinite = unary_op("isfinite", np.isfinite, None, "It is neither infinite nor NaN. No gradient.")
bitwise_and = binary_op("bitwise_and", np.bitwise_and, None, "Bits set in both; `and` of booleans. No gradient.")
bitwise_or = binary_op("bitwise_or", np.bitwise_or, None, "Bits set in one; `or` of booleans. No gradient.")
bitwise_xor = binary_op("bitwise_xor", np.bitwise_xor, None, "Bits set in exactly one. No gradient.")
bitwise_invert = unary_op("bitwise_invert", np.bitwise_invert, None, "Bits flipped; `not` of booleans. No gradient.")
bitwise_left_shift = binary_op("bitwise_left_shift", np.left_shift, None, "x * 2**y of integers. No gradient.")
bitwise_right_shift = binary_op("bitwise_right_shift", np.right_shift, None, "x // 2**y of integers. No gradient.")

# --- choice ----------------------------------------------------------------------------------------------------------

# At a tie the whole gradient goes to x, so that the two parts always add up to it.
maximum = binary_op(
    "maximum",
    np.maximum,
    (
        lambda g, x, y, z: where(greater_equal(x, y), g, zero(g)),
        lambda g, x, y, z: where(greater_equal(x, y), zero(g), g),
    ),
    "The greater one; NaN if one is NaN.",
)
minimum = binary_op(
    "minimum",
    np.minimum,
    (
        lambda g, x, y, z: where(less_equal(x, y), g, zero(g)),
        lambda g, x, y, z: where(less_equal(x, y), zero(g), g),
    ),
    "The lesser one; NaN if one is NaN.",
)


def _where_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    require_kind(inputs[0], "b", "the condition of where is boolean")
    shape = broadcast_shapes(*(s.shape for s in inputs))
    return [TensorSpec(shape, promote(inputs[1].dtype, inputs[2].dtype))]


def _where_gradient(node: Node, grads: Grads) -> Grads:
    (grad,) = grads
    assert grad is not None  # the only output
    condition, x, y = node.inputs
    return [
        None,
        fitted(unbroadcast(where(condition, grad, zero(grad)), x, condition.shape, y.shape), x),
        fitted(unbroadcast(where(condition, zero(grad), grad), y, condition.shape, x.shape), y),
    ]


op.define(
    "where",
    infer=_where_infer,
    gradient=_where_gradient,
    out=True,
    elementwise=True,
    doc="x where the condition holds, y elsewhere.",
)


def where(condition: ArrayLike, x: ArrayLike, y: ArrayLike, /, *, name: str | None = None) -> Tensor:
    """`x` where the boolean `condition` holds, `y` elsewhere; all three broadcast together."""
    found = convert(condition)
    values = convert_promoted((x, y)) if not (is_scalar(x) and is_scalar(y)) else [convert(x), convert(y)]
    return build("where", (found, *values), name=name)


def _clip_gradient(node: Node, grads: Grads) -> Grads:
    (grad,) = grads
    assert grad is not None  # the only output
    # Inside, bounds included: a NaN is neither, and its gradient is 0.
    low, high = node.attrs["min"], node.attrs["max"]
    x = node.inputs[0]
    if low is None and high is None:
        return [grad]
    inside = [greater_equal(x, low)] if low is not None else []
    inside += [less_equal(x, high)] if high is not None else []
    both = inside[0] if len(inside) == 1 else logical_and(*inside)
    return [where(both, grad, zero(grad))]


def _clip_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    require_kind(inputs[0], "iuf", "clip orders real numbers")
    return same_infer(inputs, attrs)


op.define(
    "clip",
    infer=_clip_infer,
    gradient=_clip_gradient,
    out=True,
    elementwise=True,
    doc="x moved into [min, max]. attrs: min, max (numbers or None).",
)


def clip(
    x: ArrayLike, /, min: ArrayLike | None = None, max: ArrayLike | None = None, *, name: str | None = None
) -> Tensor:
    """`x` moved into [`min`, `max`]; None leaves a side open. Bounds are numbers, or tensors broadcast with `x`."""
    tensor = convert(x)
    if all(b is None or is_scalar(b) for b in (min, max)):
        for bound in (min, max):
            if bound is not None:
                _check_bound(bound, tensor)
        return build("clip", (tensor,), {"min": min, "max": max}, name=name)
    low = tensor if min is None else maximum(tensor, min, name=name if max is None else None)
    return low if max is None else minimum(low, max, name=name)


def _check_bound(bound: Any, x: Tensor) -> None:
    fits = {"b": (), "i": (int,), "u": (int,), "f": (int, float)}.get(kind_of(x.dtype), ())
    small = isinstance(bound, int) and kind_of(x.dtype) in "iu" and not _holds(x.dtype, bound)
    if isinstance(bound, bool) or not isinstance(bound, fits) or small:
        raise DTypeError(f"the bound {bound!r} does not fit {x.name}, which is {x.dtype}; use nf.astype first")


def _holds(dtype: np.dtype[Any], number: int) -> bool:
    info = np.iinfo(dtype)
    return bool(info.min <= number <= info.max)
