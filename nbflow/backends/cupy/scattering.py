"""cupy: writing at places that may repeat, the same from run to run: no atomic additions.

The places are sorted by a stable sort. Whoever finds the first of equal places goes through all of them, in the order
in which they came, and writes once. A place out of range is left out: looking for one would wait for the GPU.
"""

from __future__ import annotations

from typing import Any

import cupy as cp
import numpy as np

from nbflow.backends.base import Table
from nbflow.spec import is_half

TABLE = Table()
A = Any

# What a new value does to the one so far; `write` says whether what was there before takes part.
_COMBINE = {
    "none": ("v", False),
    "add": ("total + v", True),
    "mul": ("total * v", True),
    "max": ("v > total || v != v ? v : total", True),
    "min": ("v < total || v != v ? v : total", True),
}

_WALK = """
    long long k = i / columns, c = i % columns;
    long long place = ordered[k];
    if (place >= 0 && place < length && (k == 0 || ordered[k - 1] != place)) {
        W total = (W)updates[order[k] * columns + c];
        for (long long j = k + 1; j < count && ordered[j] == place; ++j) {
            W v = (W)updates[order[j] * columns + c];
            total = COMBINED;
        }
        BEFORE
        rows[place * columns + c] = (T)total;
    }
"""
_OLD = "W v = total; total = (W)rows[place * columns + c]; total = COMBINED;"


def _kernel(how: str) -> Any:
    combined, keeps = _COMBINE[how]
    body = _WALK.replace("BEFORE", _OLD if keeps else "").replace("COMBINED", combined)
    return cp.ElementwiseKernel(
        "raw W wide, raw T updates, raw int64 ordered, raw int64 order, int64 columns, int64 count, int64 length",
        "raw T rows",
        body,
        f"nbflow_scatter_{how}",
    )


_KERNELS = {how: _kernel(how) for how in _COMBINE}


def scatter(rows: A, positions: A, updates: A, how: str = "add") -> None:
    """In place: `rows[positions[i]]` is combined with `updates[i]`, in the order of i. `rows` is (length, *rest), in C
    order; `positions` (n,), from 0 on; `updates` (n, *rest). 16-bit floats are summed in float32."""
    count, length = int(positions.size), int(rows.shape[0])
    if not updates.size:
        return
    columns = int(updates.size // count)
    order = cp.argsort(positions, kind="stable").astype(np.int64, copy=False)
    ordered = positions[order].astype(np.int64, copy=False)
    wide = np.dtype(np.float32) if is_half(rows.dtype) else rows.dtype
    given = cp.ascontiguousarray(updates.astype(rows.dtype, copy=False))
    _KERNELS[how](cp.empty(1, wide), given, ordered, order, columns, count, length, rows, size=count * columns)


def counted(indices: A, length: int) -> A:
    """`indices` from 0 on, as int64; those that count from the end turned around."""
    whole = indices.astype(np.int64, copy=False)
    return cp.where(whole < 0, whole + length, whole)


def places(key: tuple[A, ...], shape: tuple[int, ...]) -> A:
    """Indices of the first dimensions of an array of `shape`, broadcast, as one flat position each; -1 out of range."""
    total: A = np.int64(0)
    inside: A = True
    for index, length in zip(key, shape[: len(key)], strict=True):
        one = counted(index, length)
        inside = inside & (one >= 0) & (one < length)
        total = total * np.int64(length) + one
    return cp.where(inside, total, np.int64(-1))


def scattered(x: A, key: tuple[A, ...], updates: A, how: str) -> A:
    """A copy of `x` with `updates` at `key`, which indexes the first dimensions."""
    out = cp.array(x, order="C")
    at = places(key, out.shape)
    rest = out.shape[len(key) :]
    length = 1
    for d in out.shape[: len(key)]:
        length *= d
    given = cp.broadcast_to(updates, (*at.shape, *rest)).reshape(at.size, *rest)
    scatter(out.reshape(length, *rest), at.reshape(-1), given, how)
    return out


@TABLE.implements("scatter_add")
def _scatter_add(x: A, indices: A, updates: A, *, axis: int) -> A:
    place = axis % x.ndim
    shape = (*x.shape[:place], *indices.shape, *x.shape[place + 1 :])
    around = tuple(range(place, place + indices.ndim))
    first = cp.moveaxis(cp.broadcast_to(updates, shape), around, tuple(range(indices.ndim)))
    made = scattered(cp.moveaxis(x, place, 0), (indices,), first, "add")
    return cp.ascontiguousarray(cp.moveaxis(made, 0, place))


@TABLE.implements("scatter_add_along_axis")
def _scatter_add_along_axis(x: A, indices: A, updates: A, *, axis: int) -> A:
    return scattered(x, along(x, indices, axis), updates, "add")


def along(x: A, indices: A, axis: int) -> tuple[A, ...]:
    """The index arrays of every dimension; dimensions of length 1 broadcast either way."""
    place = axis % x.ndim
    return tuple(
        indices if i == place else cp.arange(n).reshape([-1 if j == i else 1 for j in range(x.ndim)])
        for i, n in enumerate(x.shape)
    )


@TABLE.implements("scatter_nd_add")
def _scatter_nd_add(x: A, updates: A, *indices: A, axis: int) -> A:
    place = axis % x.ndim
    picked = tuple(range(place, place + len(indices)))
    broadcast = cp.broadcast_arrays(*indices)
    around = tuple(range(place, place + broadcast[0].ndim))
    shape = (*x.shape[:place], *broadcast[0].shape, *x.shape[place + len(indices) :])
    first = cp.moveaxis(cp.broadcast_to(updates, shape), around, tuple(range(broadcast[0].ndim)))
    front = tuple(range(len(indices)))
    made = scattered(cp.moveaxis(x, picked, front), tuple(broadcast), first, "add")
    return cp.ascontiguousarray(cp.moveaxis(made, front, picked))


@TABLE.implements("scatter_elements")
def _scatter_elements(x: A, indices: A, updates: A, *, axis: int, reduction: str) -> A:
    return scattered(x, elements(indices, axis), updates, reduction)


@TABLE.implements("scatter_nd")
def _scatter_nd(x: A, indices: A, updates: A, *, reduction: str) -> A:
    return scattered(x, tuple(cp.moveaxis(indices, -1, 0)), updates, reduction)


def elements(indices: A, axis: int) -> tuple[A, ...]:
    """Index arrays that pick one element for each of `indices`, along `axis`."""
    key = [
        cp.arange(n).reshape([-1 if j == i else 1 for j in range(indices.ndim)]) for i, n in enumerate(indices.shape)
    ]
    key[axis] = indices
    return tuple(key)
