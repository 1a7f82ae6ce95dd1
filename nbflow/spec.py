"""Shapes and dtypes: what is known of a tensor before it exists.

A shape is a tuple of ints and None (an unknown dimension), or None (even the rank is unknown). Broadcasting follows
the array API standard 2024.12 ("Broadcasting"), with unknown dimensions kept unknown where they could be 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from nbflow.errors import DTypeError, ShapeError

Dim = int | None
Shape = tuple[Dim, ...] | None
DTypeLike = Any  # what numpy.dtype() takes

# ml_dtypes registers bfloat16 with numpy under the kind of raw bytes, 'V'.
BFLOAT16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
FLOAT32: np.dtype[Any] = np.dtype(np.float32)
_finfo: Any = ml_dtypes.finfo  # numpy's own but for bfloat16; without types

# Formats of 8 bits and fewer, for weights and their exchange: values are kept, moved and cast in them, and no op
# computes with them. Their kind is 'V', which no rule accepts.
_NARROW_NAMES = (
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn"),
    *("int4", "uint4", "int2", "uint2"),
)
NARROW: dict[np.dtype[Any], str] = {np.dtype(getattr(ml_dtypes, name)): name for name in _NARROW_NAMES}
_KINDS: dict[np.dtype[Any], str] = {BFLOAT16: "f", **dict.fromkeys(NARROW, "V")}

# Object, string and datetime arrays have no meaning on a device, and object arrays would need pickle on the wire.
KINDS = "biufc"


def as_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """The numpy dtype of `dtype`. Raises DTypeError for anything that is not a number or a boolean."""
    try:
        found = np.dtype(dtype)
    except TypeError as error:
        raise DTypeError(f"not a dtype: {dtype!r}") from error
    if found == BFLOAT16 or found in NARROW:
        return found
    if kind_of(found) not in KINDS:
        raise DTypeError(f"dtype {found} is not supported: tensors hold numbers and booleans")
    return found.newbyteorder("=")


def kind_of(dtype: np.dtype[Any]) -> str:
    """numpy's kind of `dtype`, `f` for bfloat16 too: what every rule asks instead of `dtype.kind`."""
    return _KINDS.get(dtype) or dtype.kind


def is_half(dtype: np.dtype[Any]) -> bool:
    """Whether `dtype` is a float of 16 bits, float16 or bfloat16: sums of those are made in float32."""
    return dtype.itemsize == 2 and kind_of(dtype) == "f"


@dataclass(frozen=True, slots=True)
class FloatInfo:
    """The limits of a floating dtype: what the array API's finfo gives. Of a complex dtype, those of its parts."""

    bits: int
    eps: float
    max: float
    min: float
    smallest_normal: float
    dtype: np.dtype[Any]


def float_info(dtype: np.dtype[Any]) -> FloatInfo:
    """The limits of a floating or complex dtype."""
    found = _finfo(dtype)
    return FloatInfo(
        bits=int(found.bits),
        eps=float(found.eps),
        max=float(found.max),
        min=float(found.min),
        smallest_normal=float(found.smallest_normal),
        dtype=np.dtype(found.dtype),
    )


def as_shape(shape: Iterable[Any] | int | None) -> Shape:
    """A shape from a tuple, list, int or None. Raises ShapeError for negative or non-integer dimensions."""
    if shape is None:
        return None
    dims = (shape,) if isinstance(shape, int) else tuple(shape)
    out: list[Dim] = []
    for dim in dims:
        if dim is None:
            out.append(None)
            continue
        try:
            value = int(dim.__index__())
        except AttributeError:
            raise ShapeError(f"a dimension is an integer or None, not {dim!r}") from None
        if value < 0:
            raise ShapeError(f"a dimension cannot be negative: {dims!r}")
        out.append(value)
    return tuple(out)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Shape and dtype of a tensor. `resource` marks a handle to state (a variable), not a value."""

    shape: Shape
    dtype: np.dtype[Any]
    resource: bool = False

    def __str__(self) -> str:
        dims = "?" if self.shape is None else ",".join("?" if d is None else str(d) for d in self.shape)
        return f"{'&' if self.resource else ''}{self.dtype.name}[{dims}]"

    @property
    def rank(self) -> int | None:
        return None if self.shape is None else len(self.shape)

    @property
    def is_static(self) -> bool:
        """True when every dimension is known."""
        return self.shape is not None and all(d is not None for d in self.shape)

    @property
    def size(self) -> int | None:
        """Number of elements, None when unknown."""
        if self.shape is None:
            return None
        total = 1
        for dim in self.shape:
            if dim is None:
                return None
            total *= dim
        return total

    @property
    def nbytes(self) -> int | None:
        """Bytes of the value, None when unknown."""
        size = self.size
        return None if size is None else size * self.dtype.itemsize

    def accepts(self, other: TensorSpec) -> bool:
        """True when a value of spec `other` may stand where this one is expected."""
        return self.dtype == other.dtype and self.resource == other.resource and shape_accepts(self.shape, other.shape)


def spec(dtype: DTypeLike, shape: Iterable[Any] | int | None = ()) -> TensorSpec:
    """A TensorSpec from loose arguments."""
    return TensorSpec(as_shape(shape), as_dtype(dtype))


def spec_of(value: np.ndarray[Any, Any] | np.generic) -> TensorSpec:
    """The spec of a concrete array."""
    return TensorSpec(tuple(value.shape), value.dtype)


def require_values(specs: Iterable[TensorSpec]) -> None:
    """Raises DTypeError when one of them is a handle to state."""
    if any(s.resource for s in specs):
        raise DTypeError("a handle to a variable is not a value; read the variable first")


def shape_accepts(wanted: Shape, got: Shape) -> bool:
    """True when a value of shape `got` fits where `wanted` is declared; unknown dims of either side fit anything."""
    if wanted is None or got is None:
        return True
    return len(wanted) == len(got) and all(w is None or g is None or w == g for w, g in zip(wanted, got, strict=True))


def broadcast_shapes(*shapes: Shape) -> Shape:
    """Array API broadcasting with unknown dims: 1 with d gives d; None with 1 gives None; None with d > 1 gives d.

    Raises ShapeError when two known dimensions differ and neither is 1.
    """
    if any(s is None for s in shapes):
        return None
    known = [s for s in shapes if s is not None]
    rank = max((len(s) for s in known), default=0)
    out: list[Dim] = []
    for axis in range(rank):
        dims = [s[axis - rank + len(s)] for s in known if axis - rank + len(s) >= 0]
        big = {d for d in dims if d is not None and d != 1}
        if len(big) > 1:
            text = " and ".join(format_shape(s) for s in known)
            raise ShapeError(f"shapes {text} do not broadcast together: dimension {axis - rank} is {sorted(big)}")
        if big:
            out.append(big.pop())
        else:
            out.append(None if None in dims else 1)
    return tuple(out)


def merge_shapes(a: Shape, b: Shape) -> Shape:
    """What is known when both hold. Raises ShapeError when they contradict each other."""
    if a is None:
        return b
    if b is None:
        return a
    if not shape_accepts(a, b):
        raise ShapeError(f"shapes {format_shape(a)} and {format_shape(b)} contradict each other")
    return tuple(x if x is not None else y for x, y in zip(a, b, strict=True))


def format_shape(shape: Shape) -> str:
    """`(?, 784)` for people."""
    if shape is None:
        return "(unknown rank)"
    dims = ["?" if d is None else str(d) for d in shape]
    return f"({dims[0]},)" if len(dims) == 1 else f"({', '.join(dims)})"


def normalize_axis(axis: int, rank: int) -> int:
    """`axis` counted from the front. Raises ShapeError when out of range."""
    if not -rank <= axis < rank:
        raise ShapeError(f"axis {axis} is out of range for {rank} dimensions")
    return axis % rank


def normalize_axes(axis: int | Sequence[int] | None, rank: int) -> tuple[int, ...]:
    """All axes for None; sorted, unique, counted from the front. Raises ShapeError for repeated axes."""
    if axis is None:
        return tuple(range(rank))
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    found = tuple(sorted(normalize_axis(int(a), rank) for a in axes))
    if len(set(found)) != len(found):
        raise ShapeError(f"axes {axes} name one dimension twice")
    return found


def result_dtype(*dtypes: np.dtype[Any]) -> np.dtype[Any]:
    """The promoted dtype: the array API's table, numpy beyond it, and bfloat16 beside it as float16 stands there.

    bfloat16 with float16 gives float32, which holds both; with any other floating or complex dtype, that dtype.
    """
    if BFLOAT16 in dtypes:
        others = [d for d in dict.fromkeys(dtypes) if d != BFLOAT16]
        if not others:
            return BFLOAT16
        # What numpy makes of float16 in its place, but for the pair of two 16-bit formats. ml_dtypes registers
        # bfloat16 with some of numpy's dtypes only, and with int8 to give bfloat16.
        found = as_dtype(np.result_type(np.float16, *others))
        return FLOAT32 if found == np.dtype(np.float16) else found
    return as_dtype(np.result_type(*dtypes))


def can_become(dtype: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    """Whether a value may be stored as `wanted` without changing its kind: numpy's 'same_kind', bfloat16 as a float."""
    # Any floating dtype does in its place: only kinds count.
    pair = [FLOAT32 if d == BFLOAT16 else d for d in (dtype, wanted)]
    return bool(np.can_cast(pair[0], pair[1], "same_kind"))
