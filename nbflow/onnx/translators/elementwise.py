"""Operators on each element: arithmetic, comparison, logic, rounding, casts, and the activations built of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np

from nbflow import ops
from nbflow.graph import Tensor
from nbflow.onnx.registry import Call, translates
from nbflow.ops import nn
from nbflow.ops._build import INT64, build
from nbflow.ops.activations import celu, mish, selu, softsign, thresholded_relu
from nbflow.spec import kind_of

# --- one input -------------------------------------------------------------------------------------------------------

UNARY: dict[str, Callable[..., Tensor]] = {
    "Abs": ops.abs,
    "Acos": ops.acos,
    "Acosh": ops.acosh,
    "Asin": ops.asin,
    "Asinh": ops.asinh,
    "Atan": ops.atan,
    "Atanh": ops.atanh,
    "BitwiseNot": ops.bitwise_invert,
    "Ceil": ops.ceil,
    "Cos": ops.cos,
    "Cosh": ops.cosh,
    "Erf": ops.erf,
    "Exp": ops.exp,
    "Floor": ops.floor,
    "Identity": ops.identity,
    "IsNaN": ops.isnan,
    "Log": ops.log,
    "Mish": mish,
    "Neg": ops.negative,
    "Not": ops.logical_not,
    "Reciprocal": ops.reciprocal,
    "Relu": nn.relu,
    "Round": ops.round,
    "Sigmoid": nn.sigmoid,
    "Sign": ops.sign,
    "Sin": ops.sin,
    "Sinh": ops.sinh,
    "Softplus": nn.softplus,
    "Softsign": softsign,
    "Sqrt": ops.sqrt,
    "Tan": ops.tan,
    "Tanh": ops.tanh,
}


def _unary(function: Callable[..., Tensor]) -> Callable[[Call], Any]:
    return lambda c: function(c[0])


for _name, _function in UNARY.items():
    if _name != "Identity":
        translates(_name)(_unary(_function))


@translates("Identity")
def _identity(c: Call) -> Any:
    value = c.inputs[0]
    return ops.identity(value) if isinstance(value, Tensor) else (value,)


# --- two inputs ------------------------------------------------------------------------------------------------------


def quotient(x: Tensor, y: Tensor) -> Tensor:
    """x / y; of integers, rounded towards 0."""
    if kind_of(x.dtype) not in "iu":
        return ops.divide(x, y)
    if kind_of(x.dtype) == "u":
        return ops.floor_divide(x, y)
    return x * 0 + _truncated(x, y) if x.dtype == np.bool_ else _truncated(x, y)


def _truncated(x: Tensor, y: Tensor) -> Tensor:
    # |x| // |y| with the sign of the quotient. The most negative number has no absolute value, and wraps to itself.
    return ops.floor_divide(ops.abs(x), ops.abs(y)) * ops.sign(x) * ops.sign(y)


def _power(x: Tensor, y: Tensor) -> Tensor:
    """x ** y in the dtype of x, whatever that of y."""
    if x.dtype == y.dtype:
        return ops.pow(x, y)
    common = np.result_type(x.dtype, y.dtype)
    return ops.astype(ops.pow(ops.astype(x, common), ops.astype(y, common)), x.dtype)


BINARY: dict[str, Callable[..., Tensor]] = {
    "Add": ops.add,
    "And": ops.logical_and,
    "BitwiseAnd": ops.bitwise_and,
    "BitwiseOr": ops.bitwise_or,
    "BitwiseXor": ops.bitwise_xor,
    "Div": quotient,
    "Equal": ops.equal,
    "Greater": ops.greater,
    "GreaterOrEqual": ops.greater_equal,
    "Less": ops.less,
    "LessOrEqual": ops.less_equal,
    "Mul": ops.multiply,
    "Or": ops.logical_or,
    "Pow": _power,
    "Sub": ops.subtract,
    "Xor": ops.logical_xor,
}


def _binary(function: Callable[..., Tensor]) -> Callable[[Call], Any]:
    def translate(c: Call) -> Any:
        x, y = c[0], c[1]
        # Before opset 7 the second input was placed at `axis` of the first.
        if c.opset < 7 and c.attr("broadcast", 0) and "axis" in c.attrs:
            after = c.rank(0) - c.attrs["axis"] - c.rank(1)
            y = ops.expand_dims(y, axis=tuple(range(c.rank(1), c.rank(1) + after)))
        return function(x, y)

    return translate


for _name, _function in BINARY.items():
    translates(_name)(_binary(_function))


@translates("PRelu")
def _prelu(c: Call) -> Any:
    x, slope = c[0], c[1]
    # Before opset 7 one slope a channel, which is dimension 1.
    if c.opset < 7 and slope.shape is not None and len(slope.shape) == 1 and slope.shape != (1,):
        slope = ops.expand_dims(slope, axis=tuple(range(1, c.rank(0) - 1)))
    return ops.where(ops.less(x, _zero(x)), slope * x, x)


def _zero(like: Tensor) -> Tensor:
    return number(0, like)


def number(value: Any, like: Tensor) -> Tensor:
    """A constant in the dtype of `like`."""
    array = np.array(value, like.dtype)
    array.flags.writeable = False
    return build("constant", (), {"value": array})


@translates("BitShift")
def _shift(c: Call) -> Any:
    # A shift by all bits or more leaves none of them; C leaves it undefined.
    move = ops.bitwise_left_shift if c.attrs["direction"] == "LEFT" else ops.bitwise_right_shift
    bits = number(8 * c[0].dtype.itemsize, c[1])
    within = ops.less(c[1], bits)
    moved = move(c[0], ops.where(within, c[1], _zero(c[1])))
    # A negative number keeps its sign when it moves right.
    beyond = _zero(c[0]) if move is ops.bitwise_left_shift else ops.minimum(ops.sign(c[0]), _zero(c[0]))
    return ops.where(within, moved, beyond if kind_of(c[0].dtype) == "i" else _zero(c[0]))


@translates("Mod")
def _mod(c: Call) -> Any:
    x, y = c[0], c[1]
    if not c.attr("fmod", 0):
        return ops.remainder(x, y)
    rest = ops.remainder(ops.abs(x), ops.abs(y))  # C's fmod: the sign is that of x
    return ops.copysign(rest, x) if kind_of(x.dtype) == "f" else rest * ops.sign(x)


# --- any number of inputs --------------------------------------------------------------------------------------------


@translates("Sum")
def _sum(c: Call) -> Any:
    return ops.identity(c[0]) if len(c) == 1 else reduce(ops.add, c.tensors)


@translates("Mean")
def _mean(c: Call) -> Any:
    return reduce(ops.add, c.tensors) / number(len(c), c[0])


@translates("Max")
def _max(c: Call) -> Any:
    return ops.identity(c[0]) if len(c) == 1 else reduce(ops.maximum, c.tensors)


@translates("Min")
def _min(c: Call) -> Any:
    return ops.identity(c[0]) if len(c) == 1 else reduce(ops.minimum, c.tensors)


@translates("Where")
def _where(c: Call) -> Any:
    return ops.where(c[0], c[1], c[2])


# --- bounds ----------------------------------------------------------------------------------------------------------


@translates("Clip")
def _clip(c: Call) -> Any:
    x = c[0]
    low: Any = number(c.attrs["min"], x) if c.attrs.get("min") is not None else c.get(1)
    high: Any = number(c.attrs["max"], x) if c.attrs.get("max") is not None else c.get(2)
    low, high = _bound(c, x, low), _bound(c, x, high)
    # The upper bound last: it wins where the bounds contradict each other.
    return ops.identity(x) if low is None and high is None else ops.clip(x, low, high)


def _bound(c: Call, x: Tensor, bound: Tensor | None) -> Any:
    if bound is None:
        return None
    value = c.statics.value(bound)
    if value is None or kind_of(x.dtype) not in "fiu" or x.dtype.kind == "V":
        return bound
    return value.item() if math.isfinite(value.item()) else bound


@translates("IsInf")
def _isinf(c: Call) -> Any:
    x = c[0]
    down, up = c.attr("detect_negative", 1), c.attr("detect_positive", 1)
    if not (down or up):
        return ops.not_equal(x, x) & ops.equal(x, x)
    if down and up:
        return ops.isinf(x)
    sign = ops.greater(x, _zero(x)) if up else ops.less(x, _zero(x))
    return ops.logical_and(ops.isinf(x), sign)


@translates("Size")
def _size(c: Call) -> Any:
    if c[0].spec.size is not None:
        return ops.constant(np.int64(c[0].spec.size))
    return ops.prod(ops.shape_of(c[0]), dtype=INT64)


# --- activations with numbers ----------------------------------------------------------------------------------------


@translates("Elu")
def _elu(c: Call) -> Any:
    return nn.elu(c[0], c.attrs["alpha"])


@translates("LeakyRelu")
def _leaky(c: Call) -> Any:
    return nn.leaky_relu(c[0], c.attrs["alpha"])


@translates("Selu")
def _selu(c: Call) -> Any:
    return selu(c[0], c.attrs["alpha"], c.attrs["gamma"])


@translates("Celu")
def _celu(c: Call) -> Any:
    return celu(c[0], c.attrs["alpha"])


@translates("HardSigmoid")
def _hard_sigmoid(c: Call) -> Any:
    return ops.clip(c[0] * c.attrs["alpha"] + c.attrs["beta"], 0, 1)


@translates("HardSwish")
def _hard_swish(c: Call) -> Any:
    return c[0] * ops.clip(c[0] * (1 / 6) + 0.5, 0, 1)


@translates("ThresholdedRelu")
def _thresholded(c: Call) -> Any:
    return thresholded_relu(c[0], c.attrs["alpha"])


@translates("Shrink")
def _shrink(c: Call) -> Any:
    x, bias, limit = c[0], number(c.attrs["bias"], c[0]), number(c.attrs["lambd"], c[0])
    shrunk = ops.where(ops.greater(x, limit), x - bias, _zero(x))
    return ops.where(ops.less(x, ops.negative(limit)), x + bias, shrunk)


@translates("Gelu")
def _gelu(c: Call) -> Any:
    return nn.gelu(c[0], c.attr("approximate", "none") == "tanh")


@translates("Swish")
def _swish(c: Call) -> Any:
    return c[0] * nn.sigmoid(c[0] * c.attrs["alpha"])


@translates("Softmax", "LogSoftmax", since=13)
def _softmax(c: Call) -> Any:
    return _SOFT[c.proto.op_type](c[0], c.attrs["axis"])


@translates("Softmax", "LogSoftmax")
def _softmax_flat(c: Call) -> Any:
    """Before opset 13: over all dimensions from `axis` on."""
    axis = c.attrs["axis"] % max(c.rank(), 1)
    flat = flattened(c[0], axis)
    return like(_SOFT[c.proto.op_type](flat, -1), c[0])


_SOFT = {"Softmax": nn.softmax, "LogSoftmax": nn.log_softmax}


@translates("Hardmax", since=13)
def _hardmax(c: Call) -> Any:
    return _one_at_max(c[0], c.attrs["axis"])


@translates("Hardmax")
def _hardmax_flat(c: Call) -> Any:
    return like(_one_at_max(flattened(c[0], c.attrs["axis"] % max(c.rank(), 1)), -1), c[0])


def _one_at_max(x: Tensor, axis: int) -> Tensor:
    """1 at the first maximum along `axis`, 0 elsewhere."""
    rank = x.spec.rank or 0
    length = ops.shape_of(x)[axis] if x.shape is None or x.shape[axis] is None else x.shape[axis]
    places = ops.arange(length, dtype=INT64)
    column = ops.expand_dims(places, axis=tuple(range(1, rank - axis % rank)))
    return ops.astype(ops.equal(ops.argmax(x, axis=axis, keepdims=True), column), x.dtype)


def dims(x: Tensor) -> list[Any]:
    """The dimensions of `x`: ints where they are known, scalars found at run time elsewhere."""
    shape: Sequence[Any] = x.shape or ()
    if None not in shape:
        return list(shape)
    found = ops.shape_of(x)
    return [found[n] if d is None else d for n, d in enumerate(shape)]


def flattened(x: Tensor, axis: int) -> Tensor:
    """`x` as a matrix: the dimensions before `axis`, and those from it on."""
    shape = x.shape or ()
    before, after = shape[:axis], shape[axis:]
    if None not in before:
        return ops.reshape(x, (math.prod(d or 0 for d in before), -1)) if 0 not in shape else _empty(x, axis)
    if None not in after:
        return ops.reshape(x, (-1, math.prod(d or 0 for d in after))) if 0 not in after else _empty(x, axis)
    vector = ops.shape_of(x)
    return ops.reshape(x, [ops.prod(vector[:axis], dtype=INT64), ops.prod(vector[axis:], dtype=INT64)])


def _empty(x: Tensor, axis: int) -> Tensor:
    shape = x.spec.shape or ()
    return ops.reshape(x, (math.prod(d or 0 for d in shape[:axis]), math.prod(d or 0 for d in shape[axis:])))


def like(x: Tensor, other: Tensor) -> Tensor:
    """`x` in the shape of `other`."""
    return ops.reshape(x, other.shape if other.spec.is_static else ops.shape_of(other))
