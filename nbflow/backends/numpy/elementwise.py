"""numpy: arithmetic, element by element. Most ops are numpy's own ufuncs, called as they are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.polynomial import Chebyshev, Polynomial

from nbflow.backends.base import Table
from nbflow.spec import kind_of

TABLE = Table()
A = np.ndarray[Any, Any]

UFUNCS: dict[str, np.ufunc] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.true_divide,
    "floor_divide": np.floor_divide,
    "remainder": np.remainder,
    "pow": np.power,
    "negative": np.negative,
    "positive": np.positive,
    "abs": np.absolute,
    "sign": np.sign,
    "square": np.square,
    "sqrt": np.sqrt,
    "reciprocal": np.reciprocal,
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "log2": np.log2,
    "log10": np.log10,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "tanh": np.tanh,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "atan2": np.arctan2,
    "hypot": np.hypot,
    "logaddexp": np.logaddexp,
    "floor": np.floor,
    "ceil": np.ceil,
    "trunc": np.trunc,
    "equal": np.equal,
    "not_equal": np.not_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "logical_xor": np.logical_xor,
    "logical_not": np.logical_not,
    "isnan": np.isnan,
    "isinf": np.isinf,
    "isfinite": np.isfinite,
    "bitwise_and": np.bitwise_and,
    "bitwise_or": np.bitwise_or,
    "bitwise_xor": np.bitwise_xor,
    "bitwise_invert": np.bitwise_not,
    "bitwise_left_shift": np.left_shift,
    "bitwise_right_shift": np.right_shift,
    "maximum": np.maximum,
    "minimum": np.minimum,
}
TABLE.update(UFUNCS)


def _define_gated(name: str, ufunc: np.ufunc, zeros: Callable[[A, A], A]) -> None:
    @TABLE.implements(name)
    def gated(x: A, y: A, *, out: A | None = None) -> A:
        made: A = ufunc(x, y, out=out)
        if np.isfinite(made).all():  # which costs less than looking for zeros each time
            return made
        zero = zeros(x, y)
        if out is None:
            return np.where(zero, made.dtype.type(0), made)
        np.copyto(out, 0, where=zero)
        return out


_define_gated("gated_multiply", np.multiply, lambda x, y: np.equal(x, 0) | np.equal(y, 0))
_define_gated(
    "gated_divide", np.true_divide, lambda x, y: np.broadcast_to(np.equal(x, 0), np.broadcast_shapes(x.shape, y.shape))
)


@TABLE.implements("rsqrt")
def _rsqrt(x: A, *, out: A | None = None) -> A:
    made: A = np.reciprocal(np.sqrt(x, out=out), out=out)
    return made


@TABLE.implements("round")
def _round(x: A, *, out: A | None = None) -> A:
    if kind_of(x.dtype) in "fc":
        made: A = np.rint(x, out=out)
        return made
    return _cast(x, x.dtype, out)


@TABLE.implements("where")
def _where(condition: A, x: A, y: A, *, out: A | None = None) -> A:
    if out is None:
        return np.where(condition, x, y)
    np.copyto(out, y)
    np.copyto(out, x, where=condition)
    return out


@TABLE.implements("clip")
def _clip(x: A, *, min: float | None, max: float | None, out: A | None = None) -> A:
    if min is None and max is None:
        return _cast(x, x.dtype, out)
    # Bounds as numbers of x's dtype: beside a Python number, ml_dtypes gives float32 for bfloat16.
    made: A = x if min is None else np.maximum(x, x.dtype.type(min), out=out)
    if max is not None:
        made = np.minimum(made, x.dtype.type(max), out=out)
    return made


@TABLE.implements("astype")
def _astype(x: A, *, dtype: np.dtype[Any], out: A | None = None) -> A:
    return _cast(x, dtype, out)


def _cast(x: A, dtype: np.dtype[Any], out: A | None) -> A:
    if out is None:
        return x.astype(dtype)
    np.copyto(out, x, casting="unsafe")
    return out


@TABLE.implements("add_n")
def _add_n(first: A, *rest: A, out: A | None = None) -> A:
    if not rest:
        return _cast(first, first.dtype, out)
    out = np.add(first, rest[0], out=out) if out is not None else np.asarray(first + rest[0])
    for value in rest[1:]:
        np.add(out, value, out=out)
    return out


@TABLE.implements("weighted_sum")
def _weighted_sum(*inputs: A, out: A | None = None) -> A:
    count = len(inputs) // 2
    dtype = inputs[0].dtype
    if out is None:
        out = np.empty(inputs[0].shape, dtype)
    empty = True
    for value, weight in zip(inputs[:count], inputs[count:], strict=True):
        if weight == 0:
            continue
        factor = np.asarray(weight, dtype)
        if empty:
            np.multiply(value, factor, out=out)
            empty = False
        else:
            np.add(out, value * factor, out=out)
    if empty:
        out.fill(0)
    return out


# --- erf -------------------------------------------------------------------------------------------------------------
#
# numpy has none.
#   |x| <= 1:  the Taylor series 2/sqrt(pi) * x * sum of (-x*x)**n / (n! (2n+1));
#   |x| >  1:  1 - exp(-x*x) * Q(t), Q interpolating the C library's values at Chebyshev points, t a linear map of
#              1 / (1 + x/2) over x in [1, 6] onto [-1, 1].
# Beyond 6, erf is 1 to double precision. The error is at most 6 units in the last place.

_T1, _T6 = 1 / 1.5, 1 / 4.0  # 1 / (1 + x/2) at x = 1 and at x = 6


def _far(t: A) -> A:
    x = 2 / ((t + 1) / 2 * (_T1 - _T6) + _T6) - 2
    return np.array([math.erfc(v) * math.exp(v * v) for v in x])


# Terms that are below half a unit in the last place at x = 1.
_NEAR = {
    np.dtype(kind): np.array(
        [2 / math.sqrt(math.pi) * (-1) ** n / (math.factorial(n) * (2 * n + 1)) for n in range(terms)]
    )
    for kind, terms in (("float32", 10), ("float64", 18), ("longdouble", 21))
}
_FAR = Chebyshev.interpolate(_far, 20).convert(kind=Polynomial).coef


def _horner(coefficients: A, x: A) -> A:
    made = np.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        made *= x
        made += x.dtype.type(c)
    return made


@TABLE.implements("erf")
def _erf(x: A, *, out: A | None = None) -> A:
    floats = np.asarray(x, np.result_type(x, np.float32) if kind_of(x.dtype) == "f" else np.float64)
    size = np.minimum(np.abs(floats), 6)
    square = size * size
    near = size * _horner(_NEAR[floats.dtype], np.minimum(square, 1))
    t = (1 / (1 + size / 2) - _T6) / (_T1 - _T6) * 2 - 1
    far = 1 - np.exp(-square) * _horner(_FAR, np.minimum(t, 1))
    made = np.copysign(np.where(size <= 1, near, far), floats)
    if out is None:
        out = np.empty(x.shape, np.sqrt(np.zeros((), x.dtype)).dtype)
    np.copyto(out, made, casting="same_kind")
    return out
