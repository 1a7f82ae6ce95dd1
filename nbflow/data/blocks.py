"""Blocks: runs of elements as arrays, one a component, whose first axis counts the elements.

A component whose elements differ in shape is a one-dimensional array of dtype object that holds their arrays; every
function here takes and gives both kinds. A batch is one element: a block of one, whose arrays have one more axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nbflow.errors import DataError
from nbflow.spec import TensorSpec, format_shape

Array = np.ndarray[Any, np.dtype[Any]]
Columns = tuple[Array, ...]

OBJECT = np.dtype(object)


class Table:
    """Arrays of equally many rows that are read by row number: what an array source hands on instead of rows."""

    __slots__ = ("arrays",)

    def __init__(self, arrays: Columns) -> None:
        self.arrays = arrays

    def gather(self, block: Columns) -> Columns:
        """The rows whose numbers are in the only column of `block`, however they are nested."""
        (index,) = block
        if index.dtype == OBJECT:
            return tuple(objects([np.take(a, i, axis=0) for i in index]) for a in self.arrays)
        return tuple(np.take(a, index, axis=0) for a in self.arrays)


def length(block: Columns) -> int:
    """How many elements."""
    return len(block[0])


def cut(block: Columns, start: int, stop: int) -> Columns:
    """Elements `start` … `stop - 1`, not copied."""
    return tuple(c[start:stop] for c in block)


def pick(block: Columns, index: Array) -> Columns:
    """A copy of the elements at `index`."""
    return tuple(np.take(c, index, axis=0) for c in block)


def element(block: Columns, number: int) -> Columns:
    """The arrays of one element, not copied."""
    return tuple(np.asarray(c[number]) for c in block)


def single(arrays: Sequence[Array]) -> Columns:
    """A block of one element."""
    return tuple(np.asarray(a)[None] for a in arrays)


def objects(values: Sequence[Array]) -> Array:
    """A column of elements of any shapes."""
    made = np.empty(len(values), OBJECT)
    for number, value in enumerate(values):
        made[number] = value
    return made


def _alike(columns: Sequence[Array]) -> bool:
    first = columns[0]
    return first.dtype != OBJECT and all(c.dtype == first.dtype and c.shape[1:] == first.shape[1:] for c in columns)


def join(blocks: Sequence[Columns]) -> Columns:
    """The elements of all blocks, one after the other; always a copy."""
    made = []
    for columns in zip(*blocks, strict=True):
        if _alike(columns):
            made.append(np.concatenate(columns))
        else:
            made.append(objects([np.asarray(value) for column in columns for value in column]))
    return tuple(made)


def put(block: Columns, index: Array, new: Columns) -> Columns:
    """`block` with the elements at `index` replaced, in place where the shapes allow it; of repeats the last stays."""
    made = []
    for column, values in zip(block, new, strict=True):
        target = column
        if not _alike((column, values)):
            target = column if column.dtype == OBJECT else objects(list(column))
            values = objects([np.asarray(v) for v in values])  # noqa: PLW2901  # as the target needs them
        target[index] = values
        made.append(target)
    return tuple(made)


def stack(block: Columns, names: Sequence[str]) -> Columns:
    """One element that is the batch of all elements of `block`. Raises DataError when their shapes differ."""
    made = []
    for name, column in zip(names, block, strict=True):
        if column.dtype == OBJECT:
            shapes = sorted({value.shape for value in column})
            if len(shapes) > 1:
                raise DataError(
                    f"elements of {name!r} differ in shape ({', '.join(format_shape(s) for s in shapes[:3])}); "
                    "use .padded_batch(n), or make them alike before .batch(n)"
                )
            column = np.stack(list(column))  # noqa: PLW2901
        made.append(column[None])
    return tuple(made)


def pad_stack(block: Columns, specs: Sequence[TensorSpec], values: Sequence[Any], names: Sequence[str]) -> Columns:
    """As `stack`, with elements padded at their ends to the largest of the batch, or to the known dims of `specs`.

    Raises DataError for an element that is larger than its spec says.
    """
    made = []
    for column, spec, value, name in zip(block, specs, values, names, strict=True):
        elements = [np.asarray(e) for e in column]
        largest = np.max([e.shape for e in elements], axis=0).astype(int).tolist() if spec.shape else []
        shape = tuple(big if want is None else want for want, big in zip(spec.shape or (), largest, strict=True))
        if any(big > have for big, have in zip(largest, shape, strict=True)):
            raise DataError(f"an element of {name!r} is larger ({tuple(largest)}) than what it is padded to ({shape})")
        whole = np.full((len(elements), *shape), value, spec.dtype)
        for number, one in enumerate(elements):
            corner = tuple(slice(0, d) for d in one.shape)
            whole[number, ...][corner] = one
        made.append(whole[None])
    return tuple(made)


def unstack(block: Columns, names: Sequence[str]) -> Columns:
    """The rows of the only element of `block` as elements. Raises DataError when it has none."""
    rows = element(block, 0)
    if any(r.ndim == 0 or len(r) != len(rows[0]) for r in rows):
        shapes = ", ".join(f"{n}: {format_shape(r.shape)}" for n, r in zip(names, rows, strict=True))
        raise DataError(f"unbatch needs components with equally many rows, got {shapes}")
    return rows


def part_of(rows: int, shard: tuple[int, int]) -> slice:
    """The `shard[0]`-th of `shard[1]` consecutive parts, by numpy.array_split's rule: the first ones are longer."""
    index, count = shard
    size, longer = divmod(rows, count)
    start = index * size + min(index, longer)
    return slice(start, start + size + (1 if index < longer else 0))
