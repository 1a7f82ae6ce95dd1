"""Arithmetic, element by element, with array API broadcasting: dtype rule and derivative of each op in a row.

`_elementwise` says what a derivative is given.
"""

from __future__ import annotations

import math

import numpy as np

from nbflow import op
from nbflow.graph import Node, Tensor
from nbflow.ops._build import ArrayLike, Unary, as_tensor, build, convert, is_scalar, same_infer, unary
from nbflow.ops._complex import is_complex
from nbflow.ops._elementwise import TRANSCENDENTAL, Grads, binary_op, unary_op
from nbflow.ops.casting import astype
from nbflow.ops.comparison import equal, greater, not_equal, where
from nbflow.ops.gated import gated_divide, gated_multiply
from nbflow.spec import kind_of


def _not_zero(x: Tensor) -> Tensor:
    """`x`, with 1 for 0: what the numerator does not need where it is 0 as well."""
    return where(equal(x, 0), 1, x)


def _share_of_sum(x: Tensor, total: Tensor) -> Tensor:
    """exp(x) as a part of exp(total); all of it where they are equal, so also where both are infinite."""
    return where(equal(x, total), 1, exp(x - total))


# --- arithmetic ------------------------------------------------------------------------------------------------------

add = binary_op("add", np.add, (lambda g, x, y, z: g, lambda g, x, y, z: g), "x + y.")
subtract = binary_op("subtract", np.subtract, (lambda g, x, y, z: g, lambda g, x, y, z: -g), "x - y.")
multiply = binary_op("multiply", np.multiply, (lambda g, x, y, z: g * y, lambda g, x, y, z: g * x), "x * y.")
divide = binary_op(
    "divide",
    np.divide,
    (
        lambda g, x, y, z: gated_divide(g, y),
        lambda g, x, y, z: -gated_divide(gated_multiply(g, z), y),
    ),
    "x / y. Integers give float64.",
    flops=4,
)
floor_divide = binary_op("floor_divide", np.floor_divide, None, "x // y, rounded down. No gradient: it is 0.", flops=8)
remainder = binary_op(
    "remainder",
    np.remainder,
    (lambda g, x, y, z: g, lambda g, x, y, z: -g * floor_divide(x, y)),
    "x - y * floor(x / y): the sign is that of y.",
    flops=8,
)
negative = unary_op("negative", np.negative, lambda g, x, y: -g, "-x.")
positive = unary_op("positive", np.positive, lambda g, x, y: g, "+x.")


def _abs_gradient(node: Node, grads: Grads) -> Grads:
    (grad,) = grads
    assert grad is not None  # the only output
    x = node.inputs[0]
    return [astype(grad, x.dtype) * sign(x)]


def _sign_gradient(node: Node, grads: Grads) -> Grads:
    (grad,) = grads
    assert grad is not None  # the only output
    x, y = node.inputs[0], node.outputs[0]
    if not is_complex(x):
        return [None]
    # x / |x| moves only across its direction y: by the part of the gradient that is not along y.
    along = astype(build("real", (build("conj", (y,)) * grad,)), x.dtype)
    size = abs(x)
    safe = where(equal(size, 0), 1, size)
    return [(grad - y * along) * where(equal(y, 0), 0, 1 / astype(safe, x.dtype))]


abs = unary_op("abs", np.absolute, None, "|x|; the gradient at 0 is 0.", rule=_abs_gradient)
sign: Unary = unary_op(
    "sign",
    np.sign,
    None,
    "-1, 0 or 1, of a real x without a gradient: it is 0 off the jump. Of a complex x: x / |x|.",
    rule=_sign_gradient,
)
square = unary_op("square", np.square, lambda g, x, y: g * x * 2, "x * x.")
sqrt = unary_op("sqrt", np.sqrt, lambda g, x, y: gated_divide(g * 0.5, y), "Square root.", flops=4)
rsqrt = unary_op(
    "rsqrt", np.sqrt, lambda g, x, y: gated_divide(gated_multiply(g * -0.5, y), x), "1 / sqrt(x).", flops=8
)
reciprocal = unary_op(
    "reciprocal",
    np.reciprocal,
    lambda g, x, y: -gated_multiply(gated_multiply(g, y), y),
    "1 / x.",
    flops=4,
    integers=False,
)


def _power_base(g: Tensor, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    # y * x**(y-1), which for y = 0 would be 0 * inf where x is 0.
    return gated_multiply(gated_multiply(g, build("pow", (x, where(equal(y, 0), 1, y - 1)))), y)


def _power_exponent(g: Tensor, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    # The derivative for y exists only for x > 0; elsewhere it is taken as 0, as TensorFlow and JAX do.
    if is_complex(z):
        return _complex_power_exponent(g, x, y, z)
    usable = greater(x, 0)
    return gated_multiply(gated_multiply(g, where(usable, log(where(usable, x, 1)), 0)), z)


def _complex_power_exponent(g: Tensor, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    base = astype(x, z.dtype)
    usable = not_equal(base, 0)
    return gated_multiply(gated_multiply(g, where(usable, log(where(usable, base, 1)), 0)), z)


_power = binary_op(
    "pow",
    np.power,
    (_power_base, _power_exponent),
    "x ** y. Integers to a negative integer power are an error at run time.",
    flops=2 * TRANSCENDENTAL,
)


def pow(x: ArrayLike, y: ArrayLike, /, *, name: str | None = None) -> Tensor:
    """x ** y. Integers to a negative integer power are an error at run time."""
    if is_scalar(y) and as_tensor(x) is not None and not isinstance(y, bool):
        # The two powers that people write most have ops that are ten times as fast as numpy's power.
        if y == 2:
            return square(x, name=name)
        if y == 0.5 and kind_of(convert(x).dtype) == "f":
            return sqrt(x, name=name)
    return _power(x, y, name=name)


# --- exponentials and trigonometry -----------------------------------------------------------------------------------

_T = TRANSCENDENTAL
exp = unary_op("exp", np.exp, lambda g, x, y: gated_multiply(g, y), "e ** x.", flops=_T)
expm1 = unary_op("expm1", np.expm1, lambda g, x, y: gated_multiply(g, y + 1), "e ** x - 1, exact near 0.", flops=_T)
log = unary_op("log", np.log, lambda g, x, y: gated_divide(g, x), "Natural logarithm.", flops=_T)
log1p = unary_op("log1p", np.log1p, lambda g, x, y: gated_divide(g, x + 1), "log(1 + x), exact near 0.", flops=_T)
log2 = unary_op("log2", np.log2, lambda g, x, y: gated_divide(g, x * math.log(2)), "Logarithm to base 2.", flops=_T)
log10 = unary_op(
    "log10", np.log10, lambda g, x, y: gated_divide(g, x * math.log(10)), "Logarithm to base 10.", flops=_T
)
sin = unary_op("sin", np.sin, lambda g, x, y: g * cos(x), "Sine; radians.", flops=_T)
cos: Unary = unary_op("cos", np.cos, lambda g, x, y: -g * sin(x), "Cosine; radians.", flops=_T)
tan = unary_op("tan", np.tan, lambda g, x, y: g * (y * y + 1), "Tangent; radians.", flops=_T)
sinh = unary_op("sinh", np.sinh, lambda g, x, y: gated_multiply(g, cosh(x)), "Hyperbolic sine.", flops=_T)
cosh: Unary = unary_op("cosh", np.cosh, lambda g, x, y: gated_multiply(g, sinh(x)), "Hyperbolic cosine.", flops=_T)
tanh = unary_op("tanh", np.tanh, lambda g, x, y: g * (1 - y * y), "Hyperbolic tangent.", flops=_T)
asin = unary_op(
    "asin", np.arcsin, lambda g, x, y: gated_multiply(g, rsqrt(1 - x * x)), "Inverse sine, radians.", flops=_T
)
acos = unary_op(
    "acos", np.arccos, lambda g, x, y: -gated_multiply(g, rsqrt(1 - x * x)), "Inverse cosine, radians.", flops=_T
)
atan = unary_op("atan", np.arctan, lambda g, x, y: g / (x * x + 1), "Inverse tangent, radians.", flops=_T)
asinh = unary_op("asinh", np.arcsinh, lambda g, x, y: g * rsqrt(x * x + 1), "Inverse of sinh.", flops=_T)
acosh = unary_op("acosh", np.arccosh, lambda g, x, y: gated_multiply(g, rsqrt(x * x - 1)), "Inverse of cosh.", flops=_T)
atanh = unary_op("atanh", np.arctanh, lambda g, x, y: gated_divide(g, 1 - x * x), "Inverse of tanh.", flops=_T)
atan2 = binary_op(
    "atan2",
    np.arctan2,
    (lambda g, x, y, z: g * y / _not_zero(x * x + y * y), lambda g, x, y, z: -g * x / _not_zero(x * x + y * y)),
    "The angle of the point (y, x): inverse tangent of x / y in the right quadrant, radians. The gradient at 0 is 0.",
    flops=2 * _T,
)
hypot = binary_op(
    "hypot",
    np.hypot,
    (lambda g, x, y, z: g * x / _not_zero(z), lambda g, x, y, z: g * y / _not_zero(z)),
    "sqrt(x*x + y*y); the gradient at 0, 0 is 0.",
    flops=_T,
)
logaddexp = binary_op(
    "logaddexp",
    np.logaddexp,
    (lambda g, x, y, z: g * _share_of_sum(x, z), lambda g, x, y, z: g * _share_of_sum(y, z)),
    "log(exp(x) + exp(y)) without overflow.",
    flops=2 * _T,
)
# numpy has no error function: the dtype rule is that of cbrt, which also takes real numbers only.
erf = unary_op(
    "erf",
    np.cbrt,
    lambda g, x, y: g * exp(-x * x) * (2 / math.sqrt(math.pi)),
    "The error function, 2 / sqrt(pi) times the integral of exp(-t*t) from 0 to x.",
    flops=3 * _T,
)

# --- rounding --------------------------------------------------------------------------------------------------------

floor = unary_op("floor", np.floor, None, "The greatest integer not above x, in x's dtype. No gradient: it is 0.")
ceil = unary_op("ceil", np.ceil, None, "The least integer not below x, in x's dtype. No gradient: it is 0.")
trunc = unary_op("trunc", np.trunc, None, "x rounded towards 0, in x's dtype. No gradient: it is 0.")
op.define(
    "round",
    infer=same_infer,
    gradient=None,
    out=True,
    elementwise=True,
    doc="The nearest integer, halves to even, in x's dtype. No gradient: it is 0.",
)


def round(x: ArrayLike, /, *, name: str | None = None) -> Tensor:
    """The nearest integer, halves to even, in the dtype of `x`."""
    return unary("round", x, name=name)
