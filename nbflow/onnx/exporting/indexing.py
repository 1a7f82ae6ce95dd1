"""Picking elements by index, putting them back, sorting and sets, as ONNX nodes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from nbflow.onnx.exporting.shaping import moved, target
from nbflow.onnx.exporting.writer import FIRST, INT64, LAST, Rules, Site, Size
from nbflow.spec import kind_of

RULES = Rules()
BOOL = np.dtype(np.bool_)


def indices(s: Site, name: str, at: int) -> str:
    """Index tensor `at` in a dtype that ONNX takes."""
    dtype = s.specs[at].dtype
    return name if dtype in (np.dtype(np.int32), INT64) else s.cast(name, dtype, INT64)


# --- basic indexing --------------------------------------------------------------------------------------------------


def _picked(s: Site, x: str) -> str:
    """`x[index]`. What stands behind the ellipsis is counted from the end, so that the rank need not be known."""
    index = list(s.attrs["index"])
    place = index.index("...") if "..." in index else len(index)
    front, back = index[:place], index[place + 1 :]
    slices: list[tuple[int, int, int, int]] = []  # start, stop, axis, step
    squeezed: list[int] = []
    for items, axis, step in ((front, 0, 1), (back[::-1], -1, -1)):
        for item in items:
            if item == "newaxis":
                continue
            if isinstance(item, tuple):
                start, stop, stride = item
                stride = 1 if stride is None else stride
                begin = (0 if stride > 0 else LAST) if start is None else start
                end = (LAST if stride > 0 else FIRST) if stop is None else stop
                if (start, stop, stride) != (None, None, 1):
                    slices.append((begin, end, axis, stride))
            else:
                slices.append((item, item + 1 if item != -1 else LAST, axis, 1))
                squeezed.append(axis)
            axis += step  # noqa: PLW2901  # counts from either end
    if slices:
        x = s.add("Slice", x, *[s.ints(*column) for column in zip(*slices, strict=True)])
    if squeezed:
        x = s.add("Squeeze", x, s.ints(*squeezed))
    new = [n for n, item in enumerate(_kept(front)) if item == "newaxis"]
    new += [-1 - n for n, item in enumerate(_kept(back[::-1])) if item == "newaxis"]
    return s.add("Unsqueeze", x, s.ints(*new)) if new else x


def _kept(items: list[Any]) -> list[Any]:
    """The items that leave a dimension in the result."""
    return [item for item in items if not isinstance(item, int)]


@RULES.writes("getitem")
def _getitem(s: Site, x: str) -> str:
    return _picked(s, x)


@RULES.writes("getitem_grad")
def _getitem_grad(s: Site, values: str, vector: str = "") -> str:
    """Elements are numbered, the numbers are indexed, and tell where the values go."""
    shape = target(s, vector)
    static = s.out.size
    count: Size = static if static is not None else s.add("ReduceProd", shape, keepdims=1)
    numbers = s.add("Reshape", s.range(count), shape, allowzero=1)
    places = s.reshape(_picked(s, numbers), [-1])
    zeros = s.add("ConstantOfShape", s.vector([count]), value=np.zeros(1, s.out.dtype))
    flat = s.add("ScatterElements", zeros, places, s.reshape(values, [-1]), axis=0)
    return s.add("Reshape", flat, shape, allowzero=1)


# --- by index tensors ------------------------------------------------------------------------------------------------


@RULES.writes("take")
def _take(s: Site, x: str, ids: str) -> str:
    return s.add("Gather", x, indices(s, ids, 1), axis=s.attrs["axis"])


@RULES.writes("scatter_add")
def _scatter_add(s: Site, x: str, ids: str, updates: str) -> str:
    axis, rank, picked = s.axis(), s.rank(), s.rank(1)
    sizes, found = s.sizes(x), s.sizes(ids, 1)
    whole = s.add("Expand", updates, s.vector([*sizes[:axis], *found, *sizes[axis + 1 :]]))
    rows = moved(s, whole, rank - 1 + picked, list(range(axis, axis + picked)), list(range(picked)))
    places = s.add("Unsqueeze", s.cast(ids, s.specs[1].dtype, INT64), s.ints(-1))
    made = s.add("ScatterND", moved(s, x, rank, [axis], [0]), places, rows, reduction="add")
    return moved(s, made, rank, [0], [axis])


def _broadcast(s: Site, x: str, like: str, axis: int, rank: int) -> str:
    """`x` repeated to the dimensions of `like`, except `axis`."""
    mask = s.const([a == axis for a in range(rank)])
    return s.add("Expand", x, s.add("Where", mask, s.ints(1), s.shape(like)))


def _along(s: Site, ids: str, x: str) -> tuple[str, int, int]:
    """(index tensor, axis, rank) of an op along an axis; dimensions of length 1 broadcast."""
    rank, axis = s.rank(), s.axis()
    return _broadcast(s, indices(s, ids, 1), x, axis, rank), axis, rank


@RULES.writes("take_along_axis")
def _take_along_axis(s: Site, x: str, ids: str) -> str:
    places, axis, rank = _along(s, ids, x)
    return s.add("GatherElements", _broadcast(s, x, ids, axis, rank), places, axis=axis)


@RULES.writes("scatter_add_along_axis")
def _scatter_add_along_axis(s: Site, x: str, ids: str, updates: str) -> str:
    places, axis, _ = _along(s, ids, x)
    whole = s.add("Expand", updates, s.shape(places))
    return s.add("ScatterElements", x, places, whole, axis=axis, reduction="add")


def _points(s: Site, names: tuple[str, ...], first: int) -> tuple[str, int]:
    """Index tensors side by side along a new last dimension, and the rank of each."""
    specs = s.specs[first:]
    rank = max(s.rank(first + n) for n in range(len(specs)))
    whole = [s.cast(name, spec.dtype, INT64) for name, spec in zip(names, specs, strict=True)]
    if len({spec.shape for spec in specs}) > 1 or not all(spec.is_static for spec in specs):
        # Their shapes broadcast together: the shape of their sum.
        total = whole[0]
        for name in whole[1:]:
            total = s.add("Add", total, name)
        shape = s.shape(total)
        whole = [s.add("Expand", name, shape) for name in whole]
    last = s.ints(-1)
    return s.add("Concat", *[s.add("Unsqueeze", name, last) for name in whole], axis=-1), rank


@RULES.writes("gather_nd")
def _gather_nd(s: Site, x: str, *ids: str) -> str:
    axis, rank, count = s.axis(), s.rank(), len(ids)
    points, picked = _points(s, ids, 1)
    front = moved(s, x, rank, list(range(axis, axis + count)), list(range(count)))
    made = s.add("GatherND", front, points)
    total = picked + rank - count
    return moved(s, made, total, list(range(picked)), list(range(axis, axis + picked)))


@RULES.writes("scatter_nd_add")
def _scatter_nd_add(s: Site, x: str, updates: str, *ids: str) -> str:
    axis, rank, count = s.axis(), s.rank(), len(ids)
    points, picked = _points(s, ids, 2)
    sizes = s.sizes(x)
    shape = s.shape(s.add("Squeeze", s.add("Slice", points, s.ints(0), s.ints(1), s.ints(-1)), s.ints(-1)))
    parts = [s.vector(part) if part else "" for part in (sizes[:axis], sizes[axis + count :])]
    wanted = s.add("Concat", *[p for p in (parts[0], shape, parts[1]) if p], axis=0)
    whole = s.add("Expand", updates, wanted)
    total = picked + rank - count
    rows = moved(s, whole, total, list(range(axis, axis + picked)), list(range(picked)))
    front = moved(s, x, rank, list(range(axis, axis + count)), list(range(count)))
    made = s.add("ScatterND", front, points, rows, reduction="add")
    return moved(s, made, rank, list(range(count)), list(range(axis, axis + count)))


@RULES.writes("one_hot")
def _one_hot(s: Site, ids: str) -> str:
    # ONNX's OneHot counts negative indices from the end; here they are out of range.
    classes = s.const(np.arange(s.attrs["depth"]))
    found = s.add("Equal", s.add("Unsqueeze", s.cast(ids, s.specs[0].dtype, INT64), s.ints(-1)), classes)
    return s.cast(found, BOOL, s.out.dtype)


# --- sorting ---------------------------------------------------------------------------------------------------------


def sortable(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """A dtype that holds all of `dtype` and that runtimes sort."""
    if kind_of(dtype) == "f":
        return np.dtype(np.float32) if dtype.itemsize < 4 else dtype
    return INT64 if dtype.itemsize < 8 or kind_of(dtype) == "i" else dtype


def _sorted(s: Site, x: str) -> list[str]:
    """Values and places. Of equal elements TopK takes the first one first, in either direction."""
    dtype = s.specs[0].dtype
    axis = s.attrs["axis"]
    size = s.size(x, axis, s.specs[0])
    count = size if isinstance(size, str) else s.ints(size)
    wide = s.cast(x, dtype, sortable(dtype))
    return s.add_many("TopK", wide, count, outputs=2, axis=axis, largest=int(s.attrs["descending"]))


@RULES.writes("sort")
def _sort(s: Site, x: str) -> str:
    return s.cast(_sorted(s, x)[0], sortable(s.out.dtype), s.out.dtype)


@RULES.writes("argsort")
def _argsort(s: Site, x: str) -> str:
    return _sorted(s, x)[1]


# --- searching and sets ----------------------------------------------------------------------------------------------


@RULES.writes("nonzero")
def _nonzero(s: Site, x: str, *shape: str) -> list[str]:
    """The shape that is only there to be checked is not."""
    count = len(s.node.outputs)
    found = s.add("NonZero", s.cast(x, s.specs[0].dtype, BOOL))
    if count == 1:
        return [s.add("Squeeze", found, s.ints(0))]
    parts = s.add_many("Split", found, outputs=count, axis=0, num_outputs=count)
    return [s.add("Squeeze", part, s.ints(0)) for part in parts]


@RULES.writes("searchsorted")
def _searchsorted(s: Site, vector: str, values: str) -> str:
    """How many elements are before each value: every one is compared."""
    op = "Less" if s.attrs["side"] == "left" else "LessOrEqual"
    dtype = np.result_type(s.specs[0].dtype, s.specs[1].dtype)
    x, y = s.cast(vector, s.specs[0].dtype, dtype), s.cast(values, s.specs[1].dtype, dtype)
    before = s.add(op, x, s.add("Unsqueeze", y, s.ints(-1)))
    return s.add("ReduceSum", s.cast(before, BOOL, INT64), s.ints(-1), keepdims=0)


@RULES.writes("isin")
def _isin(s: Site, x: str, test: str) -> str:
    dtype = np.result_type(s.specs[0].dtype, s.specs[1].dtype)
    x, y = s.cast(x, s.specs[0].dtype, dtype), s.cast(test, s.specs[1].dtype, dtype)
    equal = s.add("Equal", s.add("Unsqueeze", x, s.ints(-1)), s.reshape(y, [-1]))
    count = s.add("ReduceSum", s.cast(equal, BOOL, INT64), s.ints(-1), keepdims=0)
    return s.add("Equal" if s.attrs["invert"] else "Greater", count, s.const(0, INT64))


@RULES.writes("unique")
def _unique(s: Site, x: str) -> list[str]:
    dtype = s.specs[0].dtype
    wide = s.cast(x, dtype, sortable(dtype))
    values, first, inverse, counts = s.add_many("Unique", s.reshape(wide, [-1]), outputs=4, sorted=1)
    back = s.add("Reshape", inverse, s.shape(x), allowzero=1)
    return [s.cast(values, sortable(dtype), dtype), first, back, counts]


def product(sizes: list[Size], s: Site) -> Size:
    """All dimensions multiplied."""
    if all(isinstance(d, int) for d in sizes):
        return math.prod(d for d in sizes if isinstance(d, int))
    return s.add("ReduceProd", s.vector(sizes), keepdims=1)
