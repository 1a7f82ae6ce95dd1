"""What a number is made of: sign, real and imaginary parts, its neighbours; and what dtypes do with each other.

For what the gradient for a complex number is, see `_complex.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nbflow import op
from nbflow.errors import DTypeError
from nbflow.graph import Node, Tensor
from nbflow.op import Attrs
from nbflow.ops._build import (
    ArrayLike,
    as_tensor,
    binary,
    broadcast_infer,
    build,
    convert,
    promote,
    require_kind,
    same_infer,
    unary,
)
from nbflow.ops.casting import astype
from nbflow.ops.comparison import equal, where
from nbflow.ops.creation import identity, zeros_like
from nbflow.ops.elementwise import atan2
from nbflow.ops.shape import unbroadcast
from nbflow.spec import DTypeLike, FloatInfo, TensorSpec, as_dtype, float_info, kind_of

Grads = Sequence[Tensor | None]

# --- signs and neighbours --------------------------------------------------------------------------------------------


def _copysign_gradient(node: Node, grads: Grads) -> Grads:
    (grad,) = grads
    assert grad is not None  # the only output
    x, y = node.inputs
    kept = equal(signbit(x), signbit(y))
    return [unbroadcast(where(kept, grad, -grad), x, y.shape), None]


op.define(
    "copysign",
    infer=broadcast_infer(np.copysign),
    gradient=_copysign_gradient,
    out=True,
    elementwise=True,
    doc="|x| with the sign of y, that of a zero or NaN included. The gradient for y is none: it is 0 off the jump.",
)
op.define(
    "nextafter",
    infer=broadcast_infer(np.nextafter),
    gradient=None,
    out=True,
    elementwise=True,
    doc="The next floating point number from x towards y. No gradient: it is a step between numbers, not a function.",
)
op.define(
    "signbit",
    infer=broadcast_infer(np.signbit),
    gradient=None,
    out=True,
    elementwise=True,
    doc="Whether the sign is minus, also that of -0.0 and NaN; boolean. No gradient.",
)


def copysign(x: ArrayLike, y: ArrayLike, /, *, name: str | None = None) -> Tensor:
    """`x` with the sign of `y`, that of a zero or NaN included; both broadcast together. No gradient for `y`."""
    return binary("copysign", x, y, name=name)


def nextafter(x: ArrayLike, y: ArrayLike, /, *, name: str | None = None) -> Tensor:
    """The next floating point number from `x` towards `y`. No gradient."""
    return binary("nextafter", x, y, name=name)


def signbit(x: ArrayLike, /, *, name: str | None = None) -> Tensor:
    """Whether the sign of `x` is minus, also that of -0.0 and NaN. Raises DTypeError unless `x` is floating."""
    return unary("signbit", x, name=name)


# --- complex numbers -------------------------------------------------------------------------------------------------


def _part_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    require_kind(inputs[0], "c", "only complex numbers have parts")
    return [TensorSpec(inputs[0].shape, as_dtype(f"f{inputs[0].dtype.itemsize // 2}"))]


def _conj_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    require_kind(inputs[0], "c", "only complex numbers have a conjugate of their own")
    return same_infer(inputs, attrs)


def _define_part(name: str, what: str, unit: complex) -> None:
    def gradient(node: Node, grads: Grads) -> Grads:
        (grad,) = grads
        assert grad is not None  # the only output
        wide = astype(grad, node.inputs[0].dtype)
        return [wide if unit == 1 else wide * unit]

    op.define(
        name,
        infer=_part_infer,
        gradient=gradient,
        cost=op.free_cost,
        alias=True,
        elementwise=True,
        doc=f"The {what} parts of complex numbers; a view.",
    )


def _conj_gradient(node: Node, grads: Grads) -> Grads:
    (grad,) = grads
    assert grad is not None  # the only output
    return [build("conj", (grad,))]


_define_part("real", "real", 1)
_define_part("imag", "imaginary", 1j)
op.define("conj", infer=_conj_infer, gradient=_conj_gradient, out=True, elementwise=True, doc="Complex conjugates.")


def _numeric(x: ArrayLike) -> Tensor:
    tensor = convert(x)
    require_kind(tensor.spec, "iufc", "only numbers have real and imaginary parts")
    return tensor


def real(x: ArrayLike, /, *, name: str | None = None) -> Tensor:
    """The real part, complex64 as float32 and complex128 as float64; of a real tensor, the tensor itself."""
    tensor = _numeric(x)
    return build("real", (tensor,), name=name) if kind_of(tensor.dtype) == "c" else identity(tensor, name=name)


def imag(x: ArrayLike, /, *, name: str | None = None) -> Tensor:
    """The imaginary part, complex64 as float32 and complex128 as float64; of a real tensor, zeros."""
    tensor = _numeric(x)
    return build("imag", (tensor,), name=name) if kind_of(tensor.dtype) == "c" else zeros_like(tensor, name=name)


def angle(x: ArrayLike, /, *, name: str | None = None) -> Tensor:
    """The angle of a complex number in the plane, from -pi to pi; of a real one 0 or pi. The gradient at 0 is 0."""
    tensor = _numeric(x)
    if kind_of(tensor.dtype) in "iu":
        raise DTypeError(f"the angle of {tensor.dtype} is not defined; use nf.astype first")
    return atan2(imag(tensor), real(tensor), name=name)


def conj(x: ArrayLike, /, *, name: str | None = None) -> Tensor:
    """The complex conjugate; of a real tensor, the tensor itself."""
    tensor = _numeric(x)
    return build("conj", (tensor,), name=name) if kind_of(tensor.dtype) == "c" else identity(tensor, name=name)


# --- dtypes ----------------------------------------------------------------------------------------------------------
#
# These answer while the graph is built and make no nodes.

_KINDS = {
    "bool": "b",
    "signed integer": "i",
    "unsigned integer": "u",
    "integral": "iu",
    "real floating": "f",
    "complex floating": "c",
    "numeric": "iufc",
}


def _dtype_of(value: Any) -> np.dtype[Any]:
    tensor = as_tensor(value)
    if tensor is not None:
        return tensor.dtype
    return value.dtype if isinstance(value, (np.ndarray, np.generic)) else as_dtype(value)


def result_type(*arrays_and_dtypes: Any) -> np.dtype[Any]:
    """The dtype that tensors, arrays or dtypes promote to. Raises DTypeError where they do not mix."""
    if not arrays_and_dtypes:
        raise DTypeError("result_type of nothing: pass at least one tensor or dtype")
    return promote(*(_dtype_of(v) for v in arrays_and_dtypes))


def can_cast(from_: Any, to: DTypeLike, /) -> bool:
    """Whether promotion takes the dtype of `from_` (a dtype or a tensor) to `to`."""
    try:
        return promote(_dtype_of(from_), as_dtype(to)) == as_dtype(to)
    except DTypeError:
        return False


def isdtype(dtype: DTypeLike, kind: Any) -> bool:
    """Whether `dtype` is of `kind`: a dtype, a name of the standard ('bool', 'integral', …), or a tuple of such."""
    found = as_dtype(dtype)
    if isinstance(kind, tuple):
        return any(isdtype(found, k) for k in kind)
    if isinstance(kind, str) and kind in _KINDS:
        return kind_of(found) in _KINDS[kind]
    return found == as_dtype(kind)


def finfo(type: Any, /) -> FloatInfo:
    """The limits of a floating dtype, or of a tensor's: bits, eps, max, min, smallest_normal."""
    dtype = _dtype_of(type)
    if kind_of(dtype) not in "fc":
        raise DTypeError(f"finfo is of floating dtypes, not {dtype}; use nf.iinfo")
    return float_info(dtype)


def iinfo(type: Any, /) -> np.iinfo[Any]:
    """The limits of an integer dtype, or of a tensor's: bits, max, min."""
    dtype = _dtype_of(type)
    if kind_of(dtype) not in "iu":
        raise DTypeError(f"iinfo is of integer dtypes, not {dtype}; use nf.finfo")
    return np.iinfo(dtype)
