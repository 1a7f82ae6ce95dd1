"""Creation, shapes, and moving elements about, as ONNX nodes.

Shapes are constants where they are known, else vectors that the model computes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nbflow.onnx.exporting.writer import INT64, LAST, Rules, Site, Size

RULES = Rules()

# --- creation --------------------------------------------------------------------------------------------------------


@RULES.writes("constant")
def _constant(s: Site) -> str:
    return s.writer.constant(s.attrs["value"], name=s.node.name)


def target(s: Site, vector: str = "") -> str:
    """The shape of an op that has the attribute `shape` and, where that is not complete, a vector."""
    if not vector:
        return s.const(list(s.attrs["shape"]), INT64)
    return s.cast(vector, s.specs[-1].dtype, INT64)


@RULES.writes("full")
def _full(s: Site, vector: str = "") -> str:
    value = np.full(1, s.attrs["value"], s.out.dtype)
    return s.add("ConstantOfShape", target(s, vector), value=value)


@RULES.writes("arange")
def _arange(s: Site, end: str = "") -> str:
    start, stop, step = s.attrs["start"], s.attrs["stop"], s.attrs["step"]
    if not end:
        count = max(0, int(np.ceil((stop - start) / step)))
        return s.const((start + step * np.arange(count)).astype(s.out.dtype))
    until = s.cast(end, s.specs[0].dtype, INT64)
    return s.cast(s.add("Range", s.const(start, INT64), until, s.const(1, INT64)), INT64, s.out.dtype)


@RULES.writes("eye")
def _eye(s: Site) -> str:
    return s.const(np.eye(s.attrs["rows"], s.attrs["columns"], s.attrs["k"], s.out.dtype))


# --- shapes ----------------------------------------------------------------------------------------------------------


@RULES.writes("shape_of")
def _shape_of(s: Site, x: str) -> str:
    return s.shape(x)


@RULES.writes("reshape")
def _reshape(s: Site, x: str, vector: str = "") -> str:
    shape = s.attrs["shape"]
    if vector:
        # Without allowzero, a 0 would mean: as in x. With it, no -1 may stand beside a 0, which nbflow refuses too.
        return s.add("Reshape", x, target(s, vector), allowzero=1)
    return s.reshape(x, [-1 if d is None else d for d in shape])


@RULES.writes("broadcast_to")
def _broadcast_to(s: Site, x: str, vector: str = "") -> str:
    return s.add("Expand", x, target(s, vector))


@RULES.writes("sum_to_shape")
def _sum_to_shape(s: Site, x: str, vector: str = "") -> str:
    if s.out.rank is None:
        s.fail("the rank of its result is unknown")
    extra = s.rank() - s.out.rank
    if extra:
        x = s.add("ReduceSum", x, s.ints(*range(extra)), keepdims=0)
    if not s.out.rank:
        return x
    wanted = target(s, vector)
    # Dimensions that are 1 in the result, whatever they are in x.
    ones = s.add("Equal", wanted, s.ints(1))
    axes = s.add("Squeeze", s.add("NonZero", ones), s.ints(0))
    return s.add("ReduceSum", x, axes, keepdims=1, noop_with_empty_axes=1)


# --- order and places of dimensions ----------------------------------------------------------------------------------


@RULES.writes("permute_dims")
def _permute_dims(s: Site, x: str) -> str:
    return s.transpose(x, s.attrs["axes"])


@RULES.writes("matrix_transpose")
def _matrix_transpose(s: Site, x: str) -> str:
    return swapped(s, x, s.rank())


def swapped(s: Site, x: str, rank: int) -> str:
    """The last two dimensions exchanged."""
    return s.transpose(x, [*range(rank - 2), rank - 1, rank - 2])


def moved(s: Site, x: str, rank: int, sources: list[int], places: list[int]) -> str:
    """Dimensions `sources` at `places`, the others in their order: numpy's moveaxis."""
    order = [a for a in range(rank) if a not in sources]
    for place, source in sorted(zip(places, sources, strict=True)):
        order.insert(place, source)
    return s.transpose(x, order)


@RULES.writes("expand_dims")
def _expand_dims(s: Site, x: str) -> str:
    return s.add("Unsqueeze", x, s.ints(*s.attrs["axis"])) if s.attrs["axis"] else x


@RULES.writes("squeeze")
def _squeeze(s: Site, x: str) -> str:
    return s.add("Squeeze", x, s.ints(*s.attrs["axis"])) if s.attrs["axis"] else x


# --- joining and splitting -------------------------------------------------------------------------------------------


@RULES.writes("concat")
def _concat(s: Site, *values: str) -> str:
    same = [s.cast(v, spec.dtype, s.out.dtype) for v, spec in zip(values, s.specs, strict=True)]
    return s.add("Concat", *same, axis=s.attrs["axis"])


@RULES.writes("stack")
def _stack(s: Site, *values: str) -> str:
    axis = s.ints(s.attrs["axis"])
    parts = [
        s.add("Unsqueeze", s.cast(v, spec.dtype, s.out.dtype), axis) for v, spec in zip(values, s.specs, strict=True)
    ]
    return s.add("Concat", *parts, axis=s.attrs["axis"])


def _split_into(s: Site, x: str, count: int, sizes: str) -> list[str]:
    more = {} if sizes else {"num_outputs": count}
    inputs = (x, sizes) if sizes else (x,)
    return s.add_many("Split", *inputs, outputs=count, axis=s.attrs["axis"], **more)


@RULES.writes("unstack")
def _unstack(s: Site, x: str) -> list[str]:
    axis = s.ints(s.attrs["axis"])
    parts = _split_into(s, x, s.attrs["num"], s.ints(*[1] * s.attrs["num"]))
    return [s.add("Squeeze", part, axis) for part in parts]


@RULES.writes("split")
def _split(s: Site, x: str, vector: str = "") -> list[str]:
    sizes = s.attrs["sizes"]
    if vector:
        return _split_into(s, x, len(sizes), s.cast(vector, s.specs[1].dtype, INT64))
    return _split_into(s, x, len(sizes), "" if None in sizes else s.ints(*sizes))


# --- turning, repeating, padding -------------------------------------------------------------------------------------


@RULES.writes("flip")
def _flip(s: Site, x: str) -> str:
    axis = s.attrs["axis"]
    axes = range(s.rank()) if axis is None else (axis,) if isinstance(axis, int) else axis
    count = len(axes)
    if not count:
        return x
    ends = s.ints(*[np.iinfo(np.int64).min] * count)
    return s.add("Slice", x, s.ints(*[LAST] * count), ends, s.ints(*axes), s.ints(*[-1] * count))


def rolled(s: Site, x: str, axis: int, size: Size, shift: Size) -> str:
    """Element i of dimension `axis` at i + shift, counted modulo its size."""
    if isinstance(size, int) and isinstance(shift, int):
        places = s.const(np.mod(np.arange(size) - shift, max(size, 1)))
    else:
        before = shift if isinstance(shift, str) else s.ints(shift)
        length = size if isinstance(size, str) else s.ints(size)
        places = s.add("Mod", s.add("Sub", s.range(size), before), length)
    return s.add("Gather", x, places, axis=axis)


@RULES.writes("roll")
def _roll(s: Site, x: str) -> str:
    shift, axis = s.attrs["shift"], s.attrs["axis"]
    if axis is None:
        flat = s.reshape(x, [-1])
        turned = rolled(s, flat, 0, s.size(flat, 0) if s.specs[0].size is None else s.specs[0].size, sum(shift))
        return s.add("Reshape", turned, s.shape(x))
    for places, dim in zip(shift, axis, strict=True):
        x = rolled(s, x, dim, s.size(x, dim, s.specs[0]), places)
    return x


@RULES.writes("fftshift", "ifftshift")
def _fftshift(s: Site, x: str) -> str:
    axes = s.attrs["axes"]
    for axis in range(s.rank()) if axes is None else (axes,) if isinstance(axes, int) else axes:
        size = s.size(x, axis, s.specs[0])
        half = s.arithmetic("Div", size, 2)
        x = rolled(s, x, axis, size, half if s.node.op == "fftshift" else s.arithmetic("Sub", 0, half))
    return x


@RULES.writes("tile")
def _tile(s: Site, x: str) -> str:
    reps, rank = list(s.attrs["reps"]), s.rank()
    if len(reps) > rank:
        x = s.add("Unsqueeze", x, s.ints(*range(len(reps) - rank)))
    return s.add("Tile", x, s.ints(*[1] * (rank - len(reps)), *reps))


@RULES.writes("tile_grad")
def _tile_grad(s: Site, x: str) -> str:
    rank = s.rank()
    times = [1] * (rank - len(s.attrs["reps"])) + list(s.attrs["reps"])
    pairs = [(n, s.arithmetic("Div", d, n)) for d, n in zip(s.sizes(x), times, strict=True)]
    split = s.reshape(x, [size for pair in pairs for size in pair])
    summed = s.add("ReduceSum", split, s.ints(*range(0, 2 * rank, 2)), keepdims=0)
    extra = rank - s.attrs["rank"]
    return s.add("Squeeze", summed, s.ints(*range(extra))) if extra else summed


@RULES.writes("repeat")
def _repeat(s: Site, x: str) -> str:
    axis, count = s.axis(), s.attrs["repeats"]
    sizes = s.sizes(x)
    tiled = s.add("Tile", s.add("Unsqueeze", x, s.ints(axis + 1)),
                  s.ints(*[count if a == axis + 1 else 1 for a in range(len(sizes) + 1)]))  # fmt: skip
    return s.reshape(tiled, [*sizes[:axis], s.arithmetic("Mul", sizes[axis], count), *sizes[axis + 1 :]])


@RULES.writes("repeat_grad")
def _repeat_grad(s: Site, x: str) -> str:
    axis, count = s.axis(), s.attrs["repeats"]
    sizes = s.sizes(x)
    split = s.reshape(x, [*sizes[:axis], s.arithmetic("Div", sizes[axis], count), count, *sizes[axis + 1 :]])
    return s.add("ReduceSum", split, s.ints(axis + 1), keepdims=0)


@RULES.writes("pad")
def _pad(s: Site, x: str) -> str:
    widths, dtype = s.attrs["widths"], s.out.dtype
    wide = INT64 if dtype.name in ("int16", "uint16") else dtype  # for which runtimes have no kernel
    ends = s.ints(*[w[0] for w in widths], *[w[1] for w in widths])
    return s.cast(s.add("Pad", s.cast(x, dtype, wide), ends, s.const(s.attrs["value"], wide)), wide, dtype)


@RULES.writes("triu", "tril")
def _triangle(s: Site, x: str) -> str:
    return s.add("Trilu", x, s.const(s.attrs["k"], INT64), upper=int(s.node.op == "triu"))


# --- diagonals -------------------------------------------------------------------------------------------------------


def _diagonal_places(s: Site, rows: Size, columns: Size) -> str:
    """Where the diagonal's elements lie in the rows of a matrix, one after the other."""
    offset = s.attrs["offset"]
    down, right = max(0, -offset), max(0, offset)
    count = s.arithmetic("Min", s.arithmetic("Sub", rows, down), s.arithmetic("Sub", columns, right))
    count = s.arithmetic("Max", count, 0)
    if isinstance(count, int) and isinstance(columns, int):
        return s.const(np.arange(count) * (columns + 1) + down * columns + right)
    start = s.arithmetic("Add", s.arithmetic("Mul", columns, down), right)
    step = s.arithmetic("Add", columns, 1)
    first, stride = (v if isinstance(v, str) else s.ints(v) for v in (start, step))
    return s.add("Add", s.add("Mul", s.range(count), stride), first)


@RULES.writes("diagonal")
def _diagonal(s: Site, x: str) -> str:
    *batch, rows, columns = s.sizes(x)
    flat = s.reshape(x, [*batch, s.arithmetic("Mul", rows, columns)])
    return s.add("Gather", flat, _diagonal_places(s, rows, columns), axis=-1)


@RULES.writes("diagonal_grad")
def _diagonal_grad(s: Site, values: str, vector: str = "") -> str:
    shape = target(s, vector)
    known: list[Any] = list(s.out.shape or [None] * s.rank() + [None])
    *batch, rows, columns = [
        d if d is not None else s.add("Gather", shape, s.ints(a), axis=0) for a, d in enumerate(known)
    ]
    zeros = s.add("ConstantOfShape", s.vector([*batch, s.arithmetic("Mul", rows, columns)]),
                  value=np.zeros(1, s.out.dtype))  # fmt: skip
    places = s.add("Expand", _diagonal_places(s, rows, columns), s.shape(values))
    return s.add("Reshape", s.add("ScatterElements", zeros, places, values, axis=-1), shape, allowzero=1)
