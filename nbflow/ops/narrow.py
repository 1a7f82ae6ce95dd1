"""Casting to formats of 8 bits and fewer, and reading the bits of one dtype as another's.

The floating formats are those of Micikevicius et al., "FP8 Formats for Deep Learning" (arXiv 2209.05433), and of the
OCP Microscaling specification, version 1.0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from nbflow import op
from nbflow.errors import DTypeError
from nbflow.graph import Tensor
from nbflow.op import Attrs
from nbflow.ops._build import ArrayLike, build, convert
from nbflow.ops.casting import astype
from nbflow.ops.comparison import clip
from nbflow.spec import NARROW, DTypeLike, TensorSpec, as_dtype, kind_of


def _bitcast_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    (x,), dtype = inputs, attrs["dtype"]
    if x.dtype.itemsize != dtype.itemsize:
        raise DTypeError(f"{x.dtype} has {x.dtype.itemsize} bytes an element, {dtype} {dtype.itemsize}: no bitcast")
    return [TensorSpec(x.shape, dtype)]


op.define(
    "bitcast",
    infer=_bitcast_infer,
    gradient=None,
    doc="The same bits read as another dtype of the same size. attrs: dtype. No gradient.",
)


def bitcast(x: ArrayLike, dtype: DTypeLike, /, *, name: str | None = None) -> Tensor:
    """The bits of `x` read as `dtype`, which has as many of them. Raises DTypeError when it has not."""
    return build("bitcast", (convert(x),), {"dtype": as_dtype(dtype)}, name=name)


def saturate_cast(x: ArrayLike, dtype: DTypeLike, /, *, name: str | None = None) -> Tensor:
    """`x` in another dtype, with what lies beyond its range cut to the ends of it; NaN stays where there is one.

    `astype` instead wraps integers around, and makes infinities or NaN of floats.
    """
    tensor, wanted = convert(x), as_dtype(dtype)
    if kind_of(tensor.dtype) in "bV" or kind_of(wanted) == "b":
        return astype(tensor, wanted, name=name)
    floating = kind_of(tensor.dtype) == "f"
    (low, high), (least, most) = _range(wanted), _range(tensor.dtype)
    # Within what the tensor's own dtype can hold: a bound beyond that is none.
    low, high = max(low, least), min(high, most)
    if not floating:
        return astype(clip(tensor, math.ceil(low), math.floor(high)), wanted, name=name)
    top = np.array(high).astype(tensor.dtype)
    if float(top) > high:
        # The greatest integer lies between two floats, and the one above it is out of range.
        top = np.nextafter(top, np.zeros_like(top))
    return astype(clip(tensor, float(low), float(top)), wanted, name=name)


def _range(dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """The least and the greatest value of `dtype`: ints of an integer dtype."""
    if kind_of(dtype) == "f" or "float" in NARROW.get(dtype, ""):
        return float(_FINFO(dtype).min), float(_FINFO(dtype).max)
    return int(_IINFO(dtype).min), int(_IINFO(dtype).max)


# As values without types: ml_dtypes gives them none.
_FINFO: Any = ml_dtypes.finfo
_IINFO: Any = ml_dtypes.iinfo
