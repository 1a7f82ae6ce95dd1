"""Casts, and numbers of few bits with a scale: quantizing, and computing with what is quantized."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper

from nbflow import ops
from nbflow.errors import DTypeError
from nbflow.graph import Tensor
from nbflow.onnx.registry import Call, translates
from nbflow.onnx.translators.elementwise import number
from nbflow.onnx.translators.matrices import centred
from nbflow.spec import NARROW, as_dtype, kind_of, normalize_axis

# --- casts -----------------------------------------------------------------------------------------------------------


def _code(c: Call, name: str) -> np.dtype[Any]:
    if c.attrs[name] == TensorProto.STRING:
        raise DTypeError(f"{c.what} makes strings; tensors hold numbers and booleans")
    return as_dtype(helper.tensor_dtype_to_np_dtype(c.attrs[name]))


@translates("Cast")
def _cast(c: Call) -> Any:
    return cast(c[0], _code(c, "to"), bool(c.attr("saturate", 1)), c.attr("round_mode", "up"))


@translates("CastLike")
def _cast_like(c: Call) -> Any:
    return cast(c[0], c[1].dtype, bool(c.attr("saturate", 1)), c.attr("round_mode", "up"))


def cast(x: Tensor, dtype: np.dtype[Any], saturate: bool = True, rounding: str = "up") -> Tensor:
    """`x` in another dtype, as ONNX casts: narrow floats saturate, and powers of two round as is asked."""
    if x.dtype == dtype:
        return ops.identity(x)
    if NARROW.get(dtype) == "float8_e8m0fnu":
        return _power_of_two(x, dtype, rounding)
    if saturate and "float" in NARROW.get(dtype, ""):
        return ops.saturate_cast(x, dtype)
    return ops.astype(x, dtype)


def _power_of_two(x: Tensor, dtype: np.dtype[Any], rounding: str) -> Tensor:
    """The exponent of a float32, one more where the fraction rounds up. Zero becomes the least power."""
    bits = ops.bitcast(ops.astype(x, "float32"), "int32")
    exponent = ops.bitwise_and(ops.bitwise_right_shift(bits, number(23, bits)), number(255, bits))
    fraction = ops.bitwise_and(bits, number((1 << 23) - 1, bits))
    least = {"up": 1, "nearest": 1 << 22, "down": 1 << 23}[rounding]
    up = ops.astype(ops.greater_equal(fraction, number(least, bits)), "int32")
    finite = ops.minimum(exponent + up, number(254, bits))
    made = ops.where(ops.isnan(x), number(255, bits), finite)
    return ops.bitcast(ops.astype(made, "uint8"), dtype)


@translates("BitCast")
def _bit_cast(c: Call) -> Any:
    return ops.bitcast(c[0], _code(c, "to"))


# --- scales ----------------------------------------------------------------------------------------------------------


def _beside(c: Call, scale: Tensor) -> Tensor:
    """A scale or zero point, so that it broadcasts with the input: for all, one a slice along axis, or one a block."""
    rank, block = c.rank(), c.attr("block_size", 0)
    if not scale.shape:
        return scale
    axis = normalize_axis(c.attr("axis", 1), rank) if rank > 1 else 0
    if len(scale.shape) == rank and block:
        wide = ops.repeat(scale, block, axis=axis)
        key: list[slice] = [slice(None)] * rank
        key[axis] = slice(0, (c[0].shape or ())[axis])
        return wide[tuple(key)]
    if scale.shape == (1,):
        return ops.reshape(scale, ())
    return ops.expand_dims(scale, axis=tuple(range(1, rank - axis)))


@translates("QuantizeLinear")
def _quantize(c: Call) -> Any:
    x, scale, zero = c[0], _beside(c, c[1]), c.get(2)
    if zero is not None:
        dtype = zero.dtype
    elif c.attr("output_dtype", 0):
        dtype = _code(c, "output_dtype")
    else:
        dtype = np.dtype(np.uint8)
    wide = x if kind_of(x.dtype) == "f" else ops.astype(x, "float32")
    made = wide / ops.astype(scale, wide.dtype)
    if "float" in NARROW.get(dtype, ""):
        return cast(made, dtype, bool(c.attr("saturate", 1)))
    rounded = ops.astype(ops.round(made), "float64")
    if zero is not None:
        rounded = rounded + _beside(c, _wide(zero, np.dtype(np.float64)))
    return ops.saturate_cast(rounded, dtype)


def _wide(x: Tensor, dtype: np.dtype[Any]) -> Tensor:
    return x if x.dtype == dtype else ops.astype(x, dtype)


@translates("DequantizeLinear")
def _dequantize(c: Call) -> Any:
    scale, zero = _beside(c, c[1]), c.get(2)
    dtype = _code(c, "output_dtype") if c.attr("output_dtype", 0) else scale.dtype
    computed = np.dtype(np.float32) if dtype.itemsize < 4 else dtype
    x = _wide(c[0], computed)
    if zero is not None:
        x = x - _beside(c, _wide(zero, computed))
    return _wide(x * _wide(scale, computed), dtype)


@translates("QLinearMatMul")
def _qlinear_matmul(c: Call) -> Any:
    """a, its scale and zero point, b, the same of it, scale and zero point of the result."""
    wide = np.dtype(np.float64)
    # Products and sums of 8-bit integers are exact in float64, whose matrix product is the fast one.
    a = _wide(centred(c[0], c[2], rows=True), wide)
    b = _wide(centred(c[3], c[5], rows=False), wide)
    first = _wide(c[1], wide)
    if first.spec.rank == 1 and first.shape != (1,):
        first = ops.expand_dims(first, axis=1)
    scale = first * _wide(c[4], wide) / _wide(c[6], wide)
    rounded = ops.round(ops.matmul(a, b) * scale) + _wide(c[7], wide)
    return ops.saturate_cast(rounded, c[7].dtype)
