"""cupy: arithmetic, element by element. Most ops are cupy's ufuncs, which have numpy's names."""

from __future__ import annotations

from typing import Any

import cupy as cp
import numpy as np
from cupyx.scipy import special

from nbflow.backends.base import Implementation, Table
from nbflow.backends.numpy.elementwise import UFUNCS
from nbflow.spec import kind_of

TABLE = Table()
A = Any

_COPIES = frozenset(("floor", "ceil", "trunc"))  # of whole numbers

for _name, _ufunc in UFUNCS.items():
    if _name not in _COPIES:
        TABLE[_name] = getattr(cp, _ufunc.__name__)
TABLE.update({"copysign": cp.copysign, "nextafter": cp.nextafter, "signbit": cp.signbit})


def cast(x: A, dtype: np.dtype[Any], out: A | None) -> A:
    """A copy of `x` in `dtype`, in `out` when given."""
    if out is None:
        return x.astype(dtype)
    cp.copyto(out, x, casting="unsafe")
    return out


def _whole(ufunc: Any) -> Implementation:
    def implementation(x: A, *, out: A | None = None) -> A:
        return ufunc(x, out=out) if kind_of(x.dtype) in "fc" else cast(x, x.dtype, out)

    return implementation


for _name in _COPIES:
    TABLE[_name] = _whole(getattr(cp, _name))
TABLE["round"] = _whole(cp.rint)

# A number times a gate that is 0 is 0, whatever the number is.
_GATED = {
    "gated_multiply": cp.ElementwiseKernel(
        "T x, T y", "T z", "z = x == T(0) || y == T(0) ? T(0) : T(x * y)", "nbflow_gated_multiply"
    ),
    "gated_divide": cp.ElementwiseKernel("T x, T y", "T z", "z = x == T(0) ? T(0) : T(x / y)", "nbflow_gated_divide"),
}


def _define_gated(name: str, kernel: Any) -> None:
    @TABLE.implements(name)
    def gated(x: A, y: A, *, out: A | None = None) -> A:
        dtype = cp.result_type(x, y)
        if kind_of(dtype) not in "fc" and name == "gated_divide":
            dtype = np.dtype(np.float64)
        made = kernel(x.astype(dtype, copy=False), y.astype(dtype, copy=False))
        return made if out is None else cast(made, out.dtype, out)


for _name, _kernel in _GATED.items():
    _define_gated(_name, _kernel)


@TABLE.implements("rsqrt")
def _rsqrt(x: A, *, out: A | None = None) -> A:
    return cp.reciprocal(cp.sqrt(x, out=out), out=out)


@TABLE.implements("where")
def _where(condition: A, x: A, y: A, *, out: A | None = None) -> A:
    if out is None:
        return cp.where(condition, x, y)
    cp.copyto(out, y)
    cp.copyto(out, x, where=condition)
    return out


@TABLE.implements("clip")
def _clip(x: A, *, min: float | None, max: float | None, out: A | None = None) -> A:
    if min is None and max is None:
        return cast(x, x.dtype, out)
    made = x if min is None else cp.maximum(x, x.dtype.type(min), out=out)
    return made if max is None else cp.minimum(made, x.dtype.type(max), out=out)


@TABLE.implements("astype")
def _astype(x: A, *, dtype: np.dtype[Any], out: A | None = None) -> A:
    if kind_of(x.dtype) == "c" and kind_of(dtype) not in "cb":
        x = x.real
    return cast(x, dtype, out)


@TABLE.implements("add_n")
def _add_n(first: A, *rest: A, out: A | None = None) -> A:
    if not rest:
        return cast(first, first.dtype, out)
    out = cp.add(first, rest[0], out=out)
    for value in rest[1:]:
        cp.add(out, value, out=out)
    return out


@TABLE.implements("weighted_sum")
def _weighted_sum(*inputs: A, out: A | None = None) -> A:
    count = len(inputs) // 2
    total = cp.zeros(inputs[0].shape, inputs[0].dtype)
    for value, weight in zip(inputs[:count], inputs[count:], strict=True):
        # A value of weight 0 may be anything, NaN too.
        cp.add(total, cp.where(weight == 0, value.dtype.type(0), value * weight.astype(value.dtype)), out=total)
    return total if out is None else cast(total, out.dtype, out)


@TABLE.implements("erf")
def _erf(x: A, *, out: A | None = None) -> A:
    if kind_of(x.dtype) == "f" and x.dtype.itemsize >= 4:
        return special.erf(x, out=out)
    dtype = np.sqrt(np.zeros((), x.dtype)).dtype  # what numpy makes of whole numbers
    made = special.erf(x.astype(np.float32 if dtype.itemsize < 4 else dtype))
    return made.astype(dtype, copy=False) if out is None else cast(made, dtype, out)


@TABLE.implements("conj")
def _conj(x: A, *, out: A | None = None) -> A:
    return cp.conjugate(x, out=out) if kind_of(x.dtype) == "c" else cast(x, x.dtype, out)


@TABLE.implements("real")
def _real(x: A) -> A:
    return x.real


@TABLE.implements("imag")
def _imag(x: A) -> A:
    return x.imag
