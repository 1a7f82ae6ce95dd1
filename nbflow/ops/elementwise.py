"""Arithmetic, element by element, with array API broadcasting: dtype rule and derivative of each op in a row.

A derivative is `f(g, x, y)`: the gradient for the input from the gradient `g` of the output, the inputs and the output
`y` (for two inputs: `f(g, x, y, z)`). Derivatives are made of ops of this package, so they have derivatives themselves.
They are written as for real numbers; `_complex.holomorphic` makes them right for complex ones. Integer and boolean
tensors carry no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nbflow import op
from nbflow.errors import DTypeError
from nbflow.graph import Node, Tensor
from nbflow.op import Attrs, Cost, GradientRule
from nbflow.ops._build import (
    ArrayLike,
    Binary,
    DeviceLike,
    Unary,
    as_tensor,
    binary,
    broadcast_infer,
    build,
    convert,
    convert_all,
    convert_promoted,
    is_scalar,
    named,
    placing,
    promote,
    require_kind,
    same_infer,
    unary,
)
from nbflow.ops._complex import conjugate, fitted, holomorphic, is_complex
from nbflow.ops.gated import gated_divide, gated_multiply, zero_where_left_out
from nbflow.ops.shape import merge_specs, unbroadcast
from nbflow.spec import DTypeLike, TensorSpec, as_dtype, broadcast_shapes, kind_of

Grads = Sequence[Tensor | None]
Derivative1 = Callable[[Tensor, Tensor, Tensor], Tensor]
Derivative2 = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

# A transcendental function costs about this many multiplications on a CPU.
_TRANSCENDENTAL = 10.0


def _unary_op(
    name: str,
    ufunc: np.ufunc,
    derivative: Derivative1 | None,
    doc: str,
    *,
    flops: float = 1.0,
    integers: bool | None = None,
    rule: GradientRule | None = None,
) -> Unary:
    """`integers`: False for a function onto the reals, which takes integers as float64; None: what numpy does.
    `rule` stands in the place of a `derivative` for a function that is not holomorphic."""

    def gradient(node: Node, grads: Grads) -> Grads:
        (grad,) = grads
        assert grad is not None  # the only output
        assert derivative is not None
        return [zero_where_left_out(grad, derivative(grad, node.inputs[0], node.outputs[0]))]

    op.define(
        name,
        infer=broadcast_infer(ufunc),
        gradient=rule if derivative is None else holomorphic(gradient),
        cost=_cost(flops),
        doc=doc,
        out=True,
        elementwise=True,
    )

    def function(x: ArrayLike, /, *, name: str | None = None) -> Tensor:
        return unary(op_name, x if integers else _floats((x,))[0], name=name)

    op_name = name
    if integers is None:
        integers = _takes_integers(ufunc)
    made: Unary = named(function, name, doc, __name__)
    return made


def _binary_op(
    name: str,
    ufunc: np.ufunc,
    derivatives: tuple[Derivative2, Derivative2 | None] | None,
    doc: str,
    *,
    flops: float = 1.0,
) -> Binary:
    def gradient(node: Node, grads: Grads) -> Grads:
        (grad,) = grads
        assert grad is not None  # the only output
        assert derivatives is not None
        x, y = node.inputs
        out: list[Tensor | None] = []
        for mine, other, derivative in ((x, y, derivatives[0]), (y, x, derivatives[1])):
            if derivative is None:
                out.append(None)
            else:
                passed = zero_where_left_out(grad, derivative(grad, x, y, node.outputs[0]))
                out.append(unbroadcast(passed, mine, other.shape))
        return out

    op.define(
        name,
        infer=broadcast_infer(ufunc),
        gradient=None if derivatives is None else holomorphic(gradient),
        cost=_cost(flops),
        doc=doc,
        out=True,
        elementwise=True,
    )

    def function(x: ArrayLike, y: ArrayLike, /, *, name: str | None = None) -> Tensor:
        return binary(op_name, *((x, y) if integers else _floats((x, y))), name=name)

    op_name, integers = name, _takes_integers(ufunc)
    made: Binary = named(function, name, doc, __name__)
    return made


def _takes_integers(ufunc: np.ufunc) -> bool:
    wanted = (np.dtype(np.int64),) * ufunc.nin
    return ufunc.resolve_dtypes((*wanted, None))[: ufunc.nin] == wanted


def _floats(values: Sequence[ArrayLike]) -> Sequence[ArrayLike]:
    """Integers as float64, for functions onto the reals: the dtype in which numpy divides integers.

    Left to itself, numpy would take a dtype that just holds them: float16 for int8.
    """
    return [
        build("astype", (t,), {"dtype": np.dtype(np.float64)}) if kind_of(t.dtype) in "iu" else t
        for t in convert_all(values)
    ]


def _cost(flops: float) -> op.CostRule:
    def cost(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], attrs: Attrs) -> Cost:
        return Cost(flops * sum(op.size_of(o) for o in outputs), op.nbytes_of(inputs) + op.nbytes_of(outputs))

    return cost


def _zero(like: Tensor) -> Tensor:
    return convert(0, like.dtype, like=like)


def _not_zero(x: Tensor) -> Tensor:
    """`x`, with 1 for 0: what the numerator does not need where it is 0 as well."""
    return where(equal(x, 0), 1, x)


def _share_of_sum(x: Tensor, total: Tensor) -> Tensor:
    """exp(x) as a part of exp(total); all of it where they are equal, so also where both are infinite."""
    return where(equal(x, total), 1, exp(x - total))


# --- arithmetic ------------------------------------------------------------------------------------------------------

add = _binary_op("add", np.add, (lambda g, x, y, z: g, lambda g, x, y, z: g), "x + y.")
subtract = _binary_op("subtract", np.subtract, (lambda g, x, y, z: g, lambda g, x, y, z: -g), "x - y.")
multiply = _binary_op("multiply", np.multiply, (lambda g, x, y, z: g * y, lambda g, x, y, z: g * x), "x * y.")
divide = _binary_op(
    "divide",
    np.divide,
    (
        lambda g, x, y, z: gated_divide(g, y),
        lambda g, x, y, z: -gated_divide(gated_multiply(g, z), y),
    ),
    "x / y. Integers give float64.",
    flops=4,
)
floor_divide = _binary_op("floor_divide", np.floor_divide, None, "x // y, rounded down. No gradient: it is 0.", flops=8)
remainder = _binary_op(
    "remainder",
    np.remainder,
    (lambda g, x, y, z: g, lambda g, x, y, z: -g * floor_divide(x, y)),
    "x - y * floor(x / y): the sign is that of y.",
    flops=8,
)
negative = _unary_op("negative", np.negative, lambda g, x, y: -g, "-x.")
positive = _unary_op("positive", np.positive, lambda g, x, y: g, "+x.")


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


abs = _unary_op("abs", np.absolute, None, "|x|; the gradient at 0 is 0.", rule=_abs_gradient)
sign: Unary = _unary_op(
    "sign",
    np.sign,
    None,
    "-1, 0 or 1, of a real x without a gradient: it is 0 off the jump. Of a complex x: x / |x|.",
    rule=_sign_gradient,
)
square = _unary_op("square", np.square, lambda g, x, y: g * x * 2, "x * x.")
sqrt = _unary_op("sqrt", np.sqrt, lambda g, x, y: gated_divide(g * 0.5, y), "Square root.", flops=4)
rsqrt = _unary_op(
    "rsqrt", np.sqrt, lambda g, x, y: gated_divide(gated_multiply(g * -0.5, y), x), "1 / sqrt(x).", flops=8
)
reciprocal = _unary_op(
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


_power = _binary_op(
    "pow",
    np.power,
    (_power_base, _power_exponent),
    "x ** y. Integers to a negative integer power are an error at run time.",
    flops=2 * _TRANSCENDENTAL,
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

_T = _TRANSCENDENTAL
exp = _unary_op("exp", np.exp, lambda g, x, y: gated_multiply(g, y), "e ** x.", flops=_T)
expm1 = _unary_op("expm1", np.expm1, lambda g, x, y: gated_multiply(g, y + 1), "e ** x - 1, exact near 0.", flops=_T)
log = _unary_op("log", np.log, lambda g, x, y: gated_divide(g, x), "Natural logarithm.", flops=_T)
log1p = _unary_op("log1p", np.log1p, lambda g, x, y: gated_divide(g, x + 1), "log(1 + x), exact near 0.", flops=_T)
log2 = _unary_op("log2", np.log2, lambda g, x, y: gated_divide(g, x * math.log(2)), "Logarithm to base 2.", flops=_T)
log10 = _unary_op(
    "log10", np.log10, lambda g, x, y: gated_divide(g, x * math.log(10)), "Logarithm to base 10.", flops=_T
)
sin = _unary_op("sin", np.sin, lambda g, x, y: g * cos(x), "Sine; radians.", flops=_T)
cos: Unary = _unary_op("cos", np.cos, lambda g, x, y: -g * sin(x), "Cosine; radians.", flops=_T)
tan = _unary_op("tan", np.tan, lambda g, x, y: g * (y * y + 1), "Tangent; radians.", flops=_T)
sinh = _unary_op("sinh", np.sinh, lambda g, x, y: gated_multiply(g, cosh(x)), "Hyperbolic sine.", flops=_T)
cosh: Unary = _unary_op("cosh", np.cosh, lambda g, x, y: gated_multiply(g, sinh(x)), "Hyperbolic cosine.", flops=_T)
tanh = _unary_op("tanh", np.tanh, lambda g, x, y: g * (1 - y * y), "Hyperbolic tangent.", flops=_T)
asin = _unary_op(
    "asin", np.arcsin, lambda g, x, y: gated_multiply(g, rsqrt(1 - x * x)), "Inverse sine, radians.", flops=_T
)
acos = _unary_op(
    "acos", np.arccos, lambda g, x, y: -gated_multiply(g, rsqrt(1 - x * x)), "Inverse cosine, radians.", flops=_T
)
atan = _unary_op("atan", np.arctan, lambda g, x, y: g / (x * x + 1), "Inverse tangent, radians.", flops=_T)
asinh = _unary_op("asinh", np.arcsinh, lambda g, x, y: g * rsqrt(x * x + 1), "Inverse of sinh.", flops=_T)
acosh = _unary_op(
    "acosh", np.arccosh, lambda g, x, y: gated_multiply(g, rsqrt(x * x - 1)), "Inverse of cosh.", flops=_T
)
atanh = _unary_op("atanh", np.arctanh, lambda g, x, y: gated_divide(g, 1 - x * x), "Inverse of tanh.", flops=_T)
atan2 = _binary_op(
    "atan2",
    np.arctan2,
    (lambda g, x, y, z: g * y / _not_zero(x * x + y * y), lambda g, x, y, z: -g * x / _not_zero(x * x + y * y)),
    "The angle of the point (y, x): inverse tangent of x / y in the right quadrant, radians. The gradient at 0 is 0.",
    flops=2 * _T,
)
hypot = _binary_op(
    "hypot",
    np.hypot,
    (lambda g, x, y, z: g * x / _not_zero(z), lambda g, x, y, z: g * y / _not_zero(z)),
    "sqrt(x*x + y*y); the gradient at 0, 0 is 0.",
    flops=_T,
)
logaddexp = _binary_op(
    "logaddexp",
    np.logaddexp,
    (lambda g, x, y, z: g * _share_of_sum(x, z), lambda g, x, y, z: g * _share_of_sum(y, z)),
    "log(exp(x) + exp(y)) without overflow.",
    flops=2 * _T,
)
# numpy has no error function: the dtype rule is that of cbrt, which also takes real numbers only.
erf = _unary_op(
    "erf",
    np.cbrt,
    lambda g, x, y: g * exp(-x * x) * (2 / math.sqrt(math.pi)),
    "The error function, 2 / sqrt(pi) times the integral of exp(-t*t) from 0 to x.",
    flops=3 * _T,
)

# --- rounding --------------------------------------------------------------------------------------------------------

floor = _unary_op("floor", np.floor, None, "The greatest integer not above x, in x's dtype. No gradient: it is 0.")
ceil = _unary_op("ceil", np.ceil, None, "The least integer not below x, in x's dtype. No gradient: it is 0.")
trunc = _unary_op("trunc", np.trunc, None, "x rounded towards 0, in x's dtype. No gradient: it is 0.")
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


# --- comparison and logic --------------------------------------------------------------------------------------------

equal = _binary_op("equal", np.equal, None, "x == y, boolean. No gradient.")
not_equal = _binary_op("not_equal", np.not_equal, None, "x != y, boolean. No gradient.")
less = _binary_op("less", np.less, None, "x < y, boolean. No gradient.")
less_equal = _binary_op("less_equal", np.less_equal, None, "x <= y, boolean. No gradient.")
greater = _binary_op("greater", np.greater, None, "x > y, boolean. No gradient.")
greater_equal = _binary_op("greater_equal", np.greater_equal, None, "x >= y, boolean. No gradient.")
logical_and = _binary_op("logical_and", np.logical_and, None, "Both are true (not 0). No gradient.")
logical_or = _binary_op("logical_or", np.logical_or, None, "One is true (not 0). No gradient.")
logical_xor = _binary_op("logical_xor", np.logical_xor, None, "Exactly one is true (not 0). No gradient.")
logical_not = _unary_op("logical_not", np.logical_not, None, "It is false (0). No gradient.")
isnan = _unary_op("isnan", np.isnan, None, "It is not a number. No gradient.")
isinf = _unary_op("isinf", np.isinf, None, "It is infinite. No gradient.")
isfinite = _unary_op("isfinite", np.isfinite, None, "It is neither infinite nor NaN. No gradient.")
bitwise_and = _binary_op("bitwise_and", np.bitwise_and, None, "Bits set in both; `and` of booleans. No gradient.")
bitwise_or = _binary_op("bitwise_or", np.bitwise_or, None, "Bits set in one; `or` of booleans. No gradient.")
bitwise_xor = _binary_op("bitwise_xor", np.bitwise_xor, None, "Bits set in exactly one. No gradient.")
bitwise_invert = _unary_op("bitwise_invert", np.bitwise_invert, None, "Bits flipped; `not` of booleans. No gradient.")
bitwise_left_shift = _binary_op("bitwise_left_shift", np.left_shift, None, "x * 2**y of integers. No gradient.")
bitwise_right_shift = _binary_op("bitwise_right_shift", np.right_shift, None, "x // 2**y of integers. No gradient.")

# --- choice ----------------------------------------------------------------------------------------------------------

# At a tie the whole gradient goes to x, so that the two parts always add up to it.
maximum = _binary_op(
    "maximum",
    np.maximum,
    (
        lambda g, x, y, z: where(greater_equal(x, y), g, _zero(g)),
        lambda g, x, y, z: where(greater_equal(x, y), _zero(g), g),
    ),
    "The greater one; NaN if one is NaN.",
)
minimum = _binary_op(
    "minimum",
    np.minimum,
    (
        lambda g, x, y, z: where(less_equal(x, y), g, _zero(g)),
        lambda g, x, y, z: where(less_equal(x, y), _zero(g), g),
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
        fitted(unbroadcast(where(condition, grad, _zero(grad)), x, condition.shape, y.shape), x),
        fitted(unbroadcast(where(condition, _zero(grad), grad), y, condition.shape, x.shape), y),
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
    return [where(both, grad, _zero(grad))]


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


def _astype_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    if kind_of(inputs[0].dtype) == "c" and kind_of(attrs["dtype"]) != "c":
        raise DTypeError(f"casting {inputs[0].dtype} to {attrs['dtype']} would drop the imaginary part")
    return [TensorSpec(inputs[0].shape, attrs["dtype"])]


def _astype_gradient(node: Node, grads: Grads) -> Grads:
    (grad,) = grads
    assert grad is not None  # the only output
    return [fitted(grad, node.inputs[0]) if kind_of(node.inputs[0].dtype) in "fc" else None]


op.define(
    "astype",
    infer=_astype_infer,
    gradient=_astype_gradient,
    out=True,
    elementwise=True,
    doc="x in another dtype; floats to integers truncate. attrs: dtype.",
)


@placing
def astype(
    x: ArrayLike, dtype: DTypeLike, /, *, copy: bool = True, device: DeviceLike = None, name: str | None = None
) -> Tensor:
    """`x` in another dtype; `x` itself when it has it already. Floats become integers by truncation.

    `copy` is the standard's and changes nothing: the value of a tensor never does.
    """
    tensor = convert(x)
    wanted = as_dtype(dtype)
    if tensor.dtype == wanted and name is None:
        return tensor
    return build("astype", (tensor,), {"dtype": wanted}, name=name)


# --- sums of many ----------------------------------------------------------------------------------------------------


def _add_n_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    if not inputs:
        raise DTypeError("add_n of nothing has no dtype; use nf.zeros")
    return [merge_specs(inputs, "the terms of add_n")]


op.define(
    "add_n",
    infer=_add_n_infer,
    gradient=lambda node, grads: [grads[0]] * len(node.inputs),
    cost=lambda inputs, outputs, attrs: Cost(
        len(inputs) * op.size_of(outputs[0]), op.nbytes_of(inputs) + op.nbytes_of(outputs)
    ),
    out=True,
    elementwise=True,
    doc="The sum of tensors of one spec, added in the given order, so that the rounding is always the same.",
)


def add_n(values: Sequence[ArrayLike], /, *, name: str | None = None) -> Tensor:
    """The sum of tensors of one shape and dtype, added from first to last."""
    return build("add_n", convert_all(values), name=name)


def _weighted_sum_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    count = len(inputs) // 2
    if not inputs or len(inputs) % 2:
        raise DTypeError(f"weighted_sum takes as many weights as values, not {len(inputs)} inputs")
    found = merge_specs(inputs[:count], "the terms of weighted_sum")
    require_kind(found, "fc", "weighted_sum adds floating point values")
    for weight in inputs[count:]:
        require_kind(weight, "iuf", "a weight is a real number")
        if weight.shape not in ((), None):
            raise DTypeError(f"a weight is a scalar, not {weight}")
    return [found]


def _weighted_sum_gradient(node: Node, grads: Grads) -> Grads:
    (grad,) = grads
    assert grad is not None  # the only output
    count = len(node.inputs) // 2
    values, weights = node.inputs[:count], node.inputs[count:]
    out: list[Tensor | None] = [grad * astype(w, grad.dtype) for w in weights]
    for value, weight in zip(values, weights, strict=True):
        out.append(fitted((grad * conjugate(value)).sum(), weight) if kind_of(weight.dtype) == "f" else None)
    return out


op.define(
    "weighted_sum",
    infer=_weighted_sum_infer,
    gradient=_weighted_sum_gradient,
    cost=lambda inputs, outputs, attrs: Cost(
        len(inputs) * op.size_of(outputs[0]), op.nbytes_of(inputs) + op.nbytes_of(outputs)
    ),
    out=True,
    doc="w1*x1 + w2*x2 + … in the given order. inputs: the values, then their scalar weights. A value whose weight is "
    "0 is not looked at: the mean over an empty shard may be NaN.",
)


def weighted_sum(values: Sequence[ArrayLike], weights: Sequence[ArrayLike], /, *, name: str | None = None) -> Tensor:
    """The sum of `weights[i] * values[i]`, from first to last, without the values whose weight is 0.

    Values have one floating shape and dtype; weights are real scalars of any dtype.
    """
    return build("weighted_sum", (*convert_all(values), *(convert(w) for w in weights)), name=name)
