"""Elementwise ops as ONNX nodes.

Inputs are cast to the dtype that nbflow promotes them to: ONNX promotes nothing. Where ONNX has no such operator, it is
made of others that keep the precision: `expm1` and `log1p` by W. Kahan's formulas (in N. Higham, "Accuracy and
Stability of Numerical Algorithms", 2nd edition, section 1.14.1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from nbflow.onnx.exporting.writer import Rule, Rules, Site
from nbflow.spec import kind_of, result_dtype

RULES = Rules()
BOOL = np.dtype(np.bool_)
UINT64 = np.dtype(np.uint64)
INT64 = np.dtype(np.int64)
FLOAT = np.dtype(np.float32)


# --- one input -------------------------------------------------------------------------------------------------------

# Computed in the dtype of the result: integers become floats first where numpy makes floats of them.
UNARY = {
    "negative": "Neg",
    "abs": "Abs",
    "sign": "Sign",
    "sqrt": "Sqrt",
    "reciprocal": "Reciprocal",
    "exp": "Exp",
    "log": "Log",
    "sin": "Sin",
    "cos": "Cos",
    "tan": "Tan",
    "sinh": "Sinh",
    "cosh": "Cosh",
    "tanh": "Tanh",
    "asin": "Asin",
    "acos": "Acos",
    "atan": "Atan",
    "asinh": "Asinh",
    "acosh": "Acosh",
    "atanh": "Atanh",
    "erf": "Erf",
}
# Of integers these are the integers themselves.
ROUNDING = {"floor": "Floor", "ceil": "Ceil", "round": "Round"}


def _unary(op: str) -> Rule:
    def rule(s: Site, x: str) -> str:
        keep = "int8 int16 int32 int64" if op == "Neg" else "int8 int16 int32 int64 uint8 uint16 uint32 uint64"
        return s.widely(op, s.cast(x, s.specs[0].dtype, s.out.dtype), dtype=s.out.dtype, keep=keep)

    return rule


def _rounding(op: str) -> Rule:
    return lambda s, x: s.add(op, x) if kind_of(s.out.dtype) == "f" else x


for _name, _op in UNARY.items():
    RULES[_name] = _unary(_op)
for _name, _op in ROUNDING.items():
    RULES[_name] = _rounding(_op)


@RULES.writes("positive", "identity", "stop_gradient", "recompute_barrier", "compressed")
def _same(s: Site, x: str) -> str:
    return x


@RULES.writes("checkpoint", "checkpoint_many")
def _results(s: Site, *inputs: str) -> Sequence[str]:
    """The results come first, then what they can be computed from again."""
    return inputs[: len(s.node.outputs)]


@RULES.writes("square")
def _square(s: Site, x: str) -> str:
    return s.add("Mul", x, x)


@RULES.writes("rsqrt")
def _rsqrt(s: Site, x: str) -> str:
    return s.add("Reciprocal", s.add("Sqrt", s.cast(x, s.specs[0].dtype, s.out.dtype)))


@RULES.writes("trunc")
def _trunc(s: Site, x: str) -> str:
    if kind_of(s.out.dtype) != "f":
        return x
    return s.add("Mul", s.add("Sign", x), s.add("Floor", s.add("Abs", x)))


@RULES.writes("expm1")
def _expm1(s: Site, x: str) -> str:
    x = s.cast(x, s.specs[0].dtype, s.out.dtype)
    one, half = s.const(1, s.out.dtype), s.const(0.5, s.out.dtype)
    u = s.add("Exp", x)
    plain = s.add("Sub", u, one)
    exact = s.add("Where", s.add("Equal", u, one), x, s.add("Div", s.add("Mul", plain, x), s.add("Log", u)))
    return s.add("Where", s.add("Less", s.add("Abs", x), half), exact, plain)


def log1p(s: Site, x: str) -> str:
    """log(1 + x) in the dtype of the output."""
    one, half = s.const(1, s.out.dtype), s.const(0.5, s.out.dtype)
    u = s.add("Add", x, one)
    plain = s.add("Log", u)
    exact = s.add("Where", s.add("Equal", u, one), x, s.add("Div", s.add("Mul", plain, x), s.add("Sub", u, one)))
    return s.add("Where", s.add("Less", s.add("Abs", x), half), exact, plain)


@RULES.writes("log1p")
def _log1p(s: Site, x: str) -> str:
    return log1p(s, s.cast(x, s.specs[0].dtype, s.out.dtype))


def _logarithm(base: float) -> Rule:
    def rule(s: Site, x: str) -> str:
        found = s.add("Log", s.cast(x, s.specs[0].dtype, s.out.dtype))
        return s.add("Div", found, s.const(math.log(base), s.out.dtype))

    return rule


RULES["log2"] = _logarithm(2)
RULES["log10"] = _logarithm(10)


def _float_test(s: Site, x: str) -> str:
    """`x` as floating numbers, which ONNX's tests take."""
    return x if kind_of(s.specs[0].dtype) == "f" else s.cast(x, s.specs[0].dtype, FLOAT)


@RULES.writes("isnan")
def _isnan(s: Site, x: str) -> str:
    return s.add("IsNaN", _float_test(s, x))


@RULES.writes("isinf")
def _isinf(s: Site, x: str) -> str:
    return s.add("IsInf", _float_test(s, x))


@RULES.writes("isfinite")
def _isfinite(s: Site, x: str) -> str:
    x = _float_test(s, x)
    return s.add("Not", s.add("Or", s.add("IsNaN", x), s.add("IsInf", x)))


@RULES.writes("signbit")
def _signbit(s: Site, x: str) -> str:
    # 1 / -0 is -infinity. The sign of a NaN is lost.
    zero = s.const(0, s.specs[0].dtype)
    return s.add("Or", s.add("Less", x, zero), s.add("Less", s.add("Reciprocal", x), zero))


@RULES.writes("copysign")
def _copysign(s: Site, x: str, y: str) -> str:
    x, y = _promoted(s, x, y)
    zero, size = s.const(0, s.out.dtype), s.add("Abs", x)
    minus = s.add("Or", s.add("Less", y, zero), s.add("Less", s.add("Reciprocal", y), zero))
    return s.add("Where", minus, s.add("Neg", size), size)


# --- two inputs ------------------------------------------------------------------------------------------------------

_INTEGERS = "int8 int16 int32 int64 uint8 uint16 uint32 uint64"
# (operator, the one for booleans, integer dtypes that runtimes have kernels for)
BINARY = {
    "add": ("Add", "Or", _INTEGERS),
    "subtract": ("Sub", "", _INTEGERS),
    "multiply": ("Mul", "And", _INTEGERS),
    "divide": ("Div", "", _INTEGERS),
    "pow": ("Pow", "", "int64"),
    "maximum": ("Max", "Or", "int8 int32 int64 uint8 uint32 uint64"),
    "minimum": ("Min", "And", "int8 int32 int64 uint8 uint32 uint64"),
}
COMPARISONS = {"equal": "Equal", "less": "Less", "less_equal": "LessOrEqual", "greater": "Greater",
               "greater_equal": "GreaterOrEqual"}  # fmt: skip
LOGICAL = {"logical_and": "And", "logical_or": "Or", "logical_xor": "Xor"}
# (of integers, of booleans)
BITWISE = {"bitwise_and": ("BitwiseAnd", "And"), "bitwise_or": ("BitwiseOr", "Or"),
           "bitwise_xor": ("BitwiseXor", "Xor")}  # fmt: skip


def _promoted(s: Site, x: str, y: str, dtype: np.dtype[Any] | None = None) -> tuple[str, str]:
    """Both inputs in `dtype`, that of the output when left out."""
    wanted = dtype or s.out.dtype
    return s.cast(x, s.specs[0].dtype, wanted), s.cast(y, s.specs[1].dtype, wanted)


def _common(s: Site) -> np.dtype[Any]:
    return result_dtype(s.specs[0].dtype, s.specs[1].dtype)


def _binary(op: str, of_booleans: str, keep: str) -> Rule:
    def rule(s: Site, x: str, y: str) -> str:
        if s.out.dtype == BOOL and of_booleans:
            return s.add(of_booleans, x, y)
        return s.widely(op, *_promoted(s, x, y), dtype=s.out.dtype, keep=keep)

    return rule


def _comparison(op: str) -> Rule:
    def rule(s: Site, x: str, y: str) -> str:
        common = _common(s)
        return s.add(op, *_promoted(s, x, y, INT64 if common == BOOL and op != "Equal" else common))

    return rule


def _logical(op: str) -> Rule:
    return lambda s, x, y: s.add(op, *_promoted(s, x, y, BOOL))


def _bitwise(integers: str, booleans: str) -> Rule:
    return lambda s, x, y: s.add(booleans if s.out.dtype == BOOL else integers, *_promoted(s, x, y))


for _name, _ops in BINARY.items():
    RULES[_name] = _binary(*_ops)
for _name, _op in COMPARISONS.items():
    RULES[_name] = _comparison(_op)
for _name, _op in LOGICAL.items():
    RULES[_name] = _logical(_op)
for _name, _pair in BITWISE.items():
    RULES[_name] = _bitwise(*_pair)


@RULES.writes("not_equal")
def _not_equal(s: Site, x: str, y: str) -> str:
    return s.add("Not", s.add("Equal", *_promoted(s, x, y, _common(s))))


@RULES.writes("logical_not")
def _logical_not(s: Site, x: str) -> str:
    return s.add("Not", s.cast(x, s.specs[0].dtype, BOOL))


@RULES.writes("bitwise_invert")
def _bitwise_invert(s: Site, x: str) -> str:
    return s.add("Not" if s.out.dtype == BOOL else "BitwiseNot", x)


@RULES.writes("bitwise_left_shift", "bitwise_right_shift")
def _shift(s: Site, x: str, y: str) -> str:
    """ONNX shifts unsigned integers only: a negative number is shifted as its complement."""
    dtype = s.out.dtype
    x, y = _promoted(s, x, y, INT64 if kind_of(dtype) == "i" else UINT64)
    if kind_of(dtype) == "u":
        left = s.node.op == "bitwise_left_shift"
        return s.cast(s.add("BitShift", x, y, direction="LEFT" if left else "RIGHT"), UINT64, dtype)
    places = s.cast(y, INT64, UINT64)
    if s.node.op == "bitwise_left_shift":
        return s.cast(s.add("BitShift", s.cast(x, INT64, UINT64), places, direction="LEFT"), UINT64, dtype)
    below = s.add("Less", x, s.const(0, INT64))
    plain = s.cast(s.add("Where", below, s.add("BitwiseNot", x), x), INT64, UINT64)
    shifted = s.cast(s.add("BitShift", plain, places, direction="RIGHT"), UINT64, INT64)
    return s.cast(s.add("Where", below, s.add("BitwiseNot", shifted), shifted), INT64, dtype)


def _modulo(s: Site, x: str, y: str) -> str:
    """x - y * floor(x / y)."""
    if kind_of(s.out.dtype) != "f":
        return s.add("Mod", x, y)
    zero = s.const(0, s.out.dtype)
    rest = s.add("Mod", x, y, fmod=1)
    unlike = s.add("Xor", s.add("Less", rest, zero), s.add("Less", y, zero))
    move = s.add("And", s.add("Not", s.add("Equal", rest, zero)), unlike)
    return s.add("Where", move, s.add("Add", rest, y), rest)


@RULES.writes("remainder")
def _remainder(s: Site, x: str, y: str) -> str:
    return _modulo(s, *_promoted(s, x, y))


@RULES.writes("floor_divide")
def _floor_divide(s: Site, x: str, y: str) -> str:
    x, y = _promoted(s, x, y)
    found = s.add("Div", s.add("Sub", x, _modulo(s, x, y)), y)
    if kind_of(s.out.dtype) != "f":
        return found
    by_zero = s.add("Equal", y, s.const(0, s.out.dtype))
    wide = s.out.dtype if s.out.dtype.itemsize > 2 else FLOAT  # a half has no Round in older operator sets
    whole = s.cast(s.add("Round", s.cast(found, s.out.dtype, wide)), wide, s.out.dtype)
    return s.add("Where", by_zero, s.add("Div", x, y), whole)


@RULES.writes("atan2")
def _atan2(s: Site, y: str, x: str) -> str:
    """By quadrants of (x, y); the sign of zeros is not looked at."""
    y, x = _promoted(s, y, x)
    zero, pi = s.const(0, s.out.dtype), s.const(math.pi, s.out.dtype)
    half = s.const(math.pi / 2, s.out.dtype)
    below = s.add("Less", y, zero)
    turn = s.add("Where", below, s.add("Neg", pi), pi)
    angle = s.add("Atan", s.add("Div", y, x))
    turned = s.add("Where", s.add("Less", x, zero), s.add("Add", angle, turn), angle)
    upright = s.add("Where", below, s.add("Neg", half), s.add("Where", s.add("Equal", y, zero), zero, half))
    return s.add("Where", s.add("Equal", x, zero), upright, turned)


@RULES.writes("hypot")
def _hypot(s: Site, x: str, y: str) -> str:
    x, y = _promoted(s, x, y)
    x, y = s.add("Abs", x), s.add("Abs", y)
    large, small = s.add("Max", x, y), s.add("Min", x, y)
    ratio = s.add("Div", small, large)
    root = s.add("Sqrt", s.add("Add", s.add("Mul", ratio, ratio), s.const(1, s.out.dtype)))
    edge = s.add("Or", s.add("Equal", large, s.const(0, s.out.dtype)), s.add("IsInf", large))
    return s.add("Where", edge, large, s.add("Mul", large, root))


@RULES.writes("logaddexp")
def _logaddexp(s: Site, x: str, y: str) -> str:
    x, y = _promoted(s, x, y)
    apart = s.add("Exp", s.add("Neg", s.add("Abs", s.add("Sub", x, y))))
    # Two equal infinities have no difference.
    twice = s.add("Add", x, s.const(math.log(2), s.out.dtype))
    return s.add("Where", s.add("Equal", x, y), twice, s.add("Add", s.add("Max", x, y), log1p(s, apart)))


# --- choice, casts, sums of many -------------------------------------------------------------------------------------


@RULES.writes("where")
def _where(s: Site, condition: str, x: str, y: str) -> str:
    held, dtype = s.cast(condition, s.specs[0].dtype, BOOL), s.out.dtype
    # Kernels are there for these and floating numbers.
    wide = dtype if kind_of(dtype) == "f" or dtype.name in ("int8", "int32", "int64", "uint8", "uint32") else INT64
    chosen = [s.cast(s.cast(v, spec.dtype, dtype), dtype, wide) for v, spec in zip((x, y), s.specs[1:], strict=True)]
    return s.cast(s.add("Where", held, *chosen), wide, dtype)


@RULES.writes("clip")
def _clip(s: Site, x: str) -> str:
    for op, bound in (("Max", s.attrs["min"]), ("Min", s.attrs["max"])):
        if bound is not None:
            x = s.widely(op, x, s.const(bound, s.out.dtype), dtype=s.out.dtype, keep=BINARY["maximum"][2])
    return x


@RULES.writes("astype")
def _astype(s: Site, x: str) -> str:
    return s.cast(x, s.specs[0].dtype, s.out.dtype)


@RULES.writes("add_n")
def _add_n(s: Site, *values: str) -> str:
    total = values[0]
    for value in values[1:]:
        total = s.add("Add", total, value)
    return total


@RULES.writes("weighted_sum")
def _weighted_sum(s: Site, *inputs: str) -> str:
    """A value whose weight is 0 may be NaN: it is not looked at."""
    count, dtype = len(inputs) // 2, s.out.dtype
    total = ""
    for value, weight, spec in zip(inputs[:count], inputs[count:], s.specs[count:], strict=True):
        factor = s.cast(weight, spec.dtype, dtype)
        zero = s.const(0, dtype)
        part = s.add("Where", s.add("Equal", factor, zero), zero, s.add("Mul", value, factor))
        total = s.add("Add", total, part) if total else part
    return total
