"""Reductions, running sums and products of matrices as ONNX nodes."""

from __future__ import annotations

from typing import Any

import numpy as np

from nbflow.onnx.exporting.indexing import product
from nbflow.onnx.exporting.shaping import swapped
from nbflow.onnx.exporting.writer import INT64, Rules, Site
from nbflow.spec import kind_of

RULES = Rules()
BOOL = np.dtype(np.bool_)


def _reduced(s: Site, op: str, x: str) -> str:
    """`op` over the attribute `axis`."""
    axis = s.attrs["axis"]
    keep = int(s.attrs["keepdims"])
    if axis is None:
        return s.add(op, x, keepdims=keep)
    axes = (axis,) if isinstance(axis, int) else axis
    return s.add(op, x, s.ints(*axes), keepdims=keep, noop_with_empty_axes=1)


def _summable(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """A dtype in which runtimes add, and that wraps around as `dtype` does."""
    return INT64 if kind_of(dtype) in "iu" else dtype


def _added(op: str) -> Any:
    def rule(s: Site, x: str) -> str:
        wide = _summable(s.out.dtype)
        return s.cast(_reduced(s, op, s.cast(x, s.specs[0].dtype, wide)), wide, s.out.dtype)

    return rule


RULES["sum"] = _added("ReduceSum")
RULES["prod"] = _added("ReduceProd")


@RULES.writes("mean")
def _mean(s: Site, x: str) -> str:
    return _reduced(s, "ReduceMean", x)


@RULES.writes("max", "min")
def _extreme(s: Site, x: str) -> str:
    dtype = s.out.dtype
    wide = INT64 if kind_of(dtype) == "i" or (kind_of(dtype) in "bu" and dtype.itemsize < 8) else dtype
    op = "ReduceMax" if s.node.op == "max" else "ReduceMin"
    return s.cast(_reduced(s, op, s.cast(x, dtype, wide)), wide, dtype)


@RULES.writes("any", "all")
def _quantified(s: Site, x: str) -> str:
    """How many elements are true, or false: that is defined where there are none, too."""
    held = s.cast(x, s.specs[0].dtype, BOOL)
    if s.node.op == "all":
        held = s.add("Not", held)
    count = _reduced(s, "ReduceSum", s.cast(held, BOOL, INT64))
    return s.add("Equal" if s.node.op == "all" else "Greater", count, s.const(0, INT64))


@RULES.writes("count")
def _count(s: Site, x: str) -> str:
    axis = s.attrs["axis"]
    axes = range(s.rank()) if axis is None else (axis,) if isinstance(axis, int) else axis
    total = product([s.size(x, a, s.specs[0]) for a in axes], s)
    return s.cast(s.scalar(total), INT64, s.out.dtype)


@RULES.writes("argmax", "argmin")
def _argument(s: Site, x: str) -> str:
    op, axis, keep = "ArgMax" if s.node.op == "argmax" else "ArgMin", s.attrs["axis"], int(s.attrs["keepdims"])
    dtype = s.specs[0].dtype
    if kind_of(dtype) in "biu":
        x = s.cast(x, dtype, INT64)
    if axis is not None:
        return s.add(op, x, axis=axis, keepdims=keep)
    found = s.add(op, s.reshape(x, [-1]), axis=0, keepdims=0)
    return s.reshape(found, [1] * s.rank()) if keep else found


def _with_initial(s: Site, x: str, value: int) -> str:
    """`x` with one element `value` put before the attribute `axis`."""
    if not s.attrs["include_initial"]:
        return x
    axis = s.axis()
    sizes = s.sizes(x)
    first = s.add("ConstantOfShape", s.vector([*sizes[:axis], 1, *sizes[axis + 1 :]]),
                  value=np.full(1, value, s.out.dtype))  # fmt: skip
    return s.add("Concat", first, x, axis=axis)


@RULES.writes("cumulative_sum")
def _cumulative_sum(s: Site, x: str) -> str:
    wide = _summable(s.out.dtype)
    found = s.add("CumSum", s.cast(x, s.specs[0].dtype, wide), s.const(s.attrs["axis"], INT64))
    return _with_initial(s, s.cast(found, wide, s.out.dtype), 0)


@RULES.writes("cumulative_prod")
def _cumulative_prod(s: Site, x: str) -> str:
    """Row i holds the first i + 1 elements, then ones; each row is multiplied. Memory for the square of the axis."""
    axis, wide = s.axis(), _summable(s.out.dtype)
    rank, size = s.rank(), s.size(x, axis, s.specs[0])
    places = s.range(size)
    seen = s.add("GreaterOrEqual", s.add("Unsqueeze", places, s.ints(1)), places)
    # (..., 1, size, rest...) against (size, size, 1...): the new dimension is the result's.
    seen = s.add("Unsqueeze", seen, s.ints(*range(2, rank - axis + 1))) if axis < rank - 1 else seen
    rows = s.add("Unsqueeze", s.cast(x, s.specs[0].dtype, wide), s.ints(axis))
    found = s.add("ReduceProd", s.add("Where", seen, rows, s.const(1, wide)), s.ints(axis + 1), keepdims=0)
    return _with_initial(s, s.cast(found, wide, s.out.dtype), 1)


# --- products of matrices --------------------------------------------------------------------------------------------


@RULES.writes("matmul")
def _matmul(s: Site, x: str, y: str) -> str:
    dtype = s.out.dtype
    x, y = s.cast(x, s.specs[0].dtype, dtype), s.cast(y, s.specs[1].dtype, dtype)
    if s.attrs.get("transpose_a"):
        x = swapped(s, x, s.rank(0))
    if s.attrs.get("transpose_b"):
        y = swapped(s, y, s.rank(1))
    return s.widely("MatMul", x, y, dtype=dtype, keep="int32 int64 uint32 uint64")


@RULES.writes("det")
def _det(s: Site, x: str) -> str:
    return s.add("Det", x)
