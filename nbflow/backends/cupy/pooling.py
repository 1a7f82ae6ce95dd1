"""cupy: pooling, a loop over the places of the window, each a slice of the whole array."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import cupy as cp
import numpy as np

from nbflow.backends.base import Table
from nbflow.backends.cupy.conv import padded_with
from nbflow.backends.cupy.elementwise import cast
from nbflow.backends.cupy.scattering import elements, scattered
from nbflow.backends.numpy.pooling import _flat, _windows
from nbflow.backends.numpy.sliding import Slices, Windows, lowest, wide
from nbflow.ops.windows import is_channels_first

TABLE = Table()
A = Any

# The first place of the window that is the largest; NaN is above everything. A number below 0 is padding.
_BETTER = cp.ElementwiseKernel(
    "T value, int64 number",
    "T best, int64 at",
    "if (number >= 0 && (at < 0 || (!(value <= best) && best == best))) { best = value; at = number; }",
    "nbflow_pool_better",
)
_WIN = cp.ElementwiseKernel(
    "T value, T y", "bool taken, bool won", "won = value == y && !taken; taken = taken || won", "nbflow_pool_win"
)


@TABLE.implements("max_pool")
def max_pool(x: A, *, out: A | None = None, **attrs: Any) -> A:
    windows = _windows(x.shape, **attrs)
    padded = padded_with(windows, x, lowest(x.dtype) if windows.is_padded else 0)
    y = cp.empty(windows.shape(x, windows.count), x.dtype) if out is None else out
    for number, (_, at) in enumerate(windows.taps()):
        if number == 0:
            cp.copyto(y, padded[at])
        else:
            cp.maximum(y, padded[at], out=y)
    return y


@TABLE.implements("max_pool_argmax")
def max_pool_argmax(x: A, **attrs: Any) -> A:
    windows = _windows(x.shape, **attrs)
    places = cp.arange(prod(windows.size), dtype=np.int64).reshape(windows.size)
    behind = (1,) * (x.ndim - windows.first - len(windows.size))
    numbers = padded_with(windows, places.reshape((1,) * windows.first + windows.size + behind), -1)
    padded = padded_with(windows, x, lowest(x.dtype) if windows.is_padded else 0)
    best = cp.zeros(windows.shape(x, windows.count), x.dtype)
    made = cp.full(best.shape, -1, np.int64)
    for _, at in windows.taps():
        _BETTER(padded[at], cp.broadcast_to(numbers[at], best.shape), best, made)
    return made


def _winners(padded: A, y: A, windows: Windows) -> Iterator[tuple[Slices, A]]:
    """For each place in the window, where it holds the window's maximum; the first place wins a tie."""
    taken = cp.zeros(y.shape, bool)
    for _, at in windows.taps():
        won = cp.empty(y.shape, bool)
        _WIN(padded[at], y, taken, won)
        yield at, won


@TABLE.implements("max_pool_grad")
def max_pool_grad(dy: A, x: A, y: A, **attrs: Any) -> A:
    """Each output's gradient goes to the place that was the maximum."""
    windows = _windows(x.shape, **attrs)
    padded = padded_with(windows, x, lowest(x.dtype) if windows.is_padded else 0)
    made = cp.zeros(padded.shape, dy.dtype)
    for at, won in _winners(padded, y, windows):
        made[at] += dy * won
    return cp.ascontiguousarray(made[windows.inner])


@TABLE.implements("max_pool_pick")
def max_pool_pick(v: A, x: A, y: A, **attrs: Any) -> A:
    """Of `v`, shaped like x, the places that are the maxima of x: the transpose of max_pool_grad."""
    windows = _windows(x.shape, **attrs)
    padded = padded_with(windows, x, lowest(x.dtype) if windows.is_padded else 0)
    values = padded_with(windows, v)
    made = cp.zeros(y.shape, v.dtype)
    for at, won in _winners(padded, y, windows):
        made += values[at] * won
    return made


def _divisor(windows: Windows, x: A, count: str, dtype: np.dtype[Any]) -> A:
    if count == "one":
        return cp.ones((), dtype)
    made = windows.coverage(count == "padded", dtype)
    return cp.asarray(made.reshape(made.shape + (1,) * (x.ndim - windows.first - made.ndim)))


@TABLE.implements("avg_pool")
def avg_pool(x: A, *, count: str, out: A | None = None, **attrs: Any) -> A:
    windows = _windows(x.shape, **attrs)
    dtype = wide(x.dtype)
    padded = padded_with(windows, x)
    y = cp.zeros(windows.shape(x, windows.count), dtype)
    for _, at in windows.taps():
        y += padded[at]
    if count != "one":
        y /= _divisor(windows, x, count, dtype)
    return y.astype(x.dtype, copy=False) if out is None else cast(y, x.dtype, out)


@TABLE.implements("avg_pool_grad")
def avg_pool_grad(dy: A, vector: A | None = None, *, count: str, shape: Any, **attrs: Any) -> A:
    """Each output's gradient, in equal parts, to the places it averaged."""
    sizes = tuple(int(d) for d in (shape if vector is None else vector.tolist()))
    windows = _windows(sizes, **attrs)
    dtype = wide(dy.dtype)
    part = dy / _divisor(windows, dy, count, dtype)
    made = cp.zeros(windows.shape(dy, windows.padded), dtype)
    for _, at in windows.taps():
        made[at] += part
    return cp.ascontiguousarray(made[windows.inner].astype(dy.dtype, copy=False))


# --- the way back ----------------------------------------------------------------------------------------------------


@TABLE.implements("max_unpool")
def max_unpool(x: A, indices: A, vector: A | None = None, *, data_format: str, shape: Any) -> A:
    made = cp.zeros(tuple(int(d) for d in (shape if vector is None else vector.tolist())), x.dtype)
    axis = 2 if is_channels_first(data_format) else 1
    flat, at = _flat(made, data_format), _flat(indices, data_format)
    return scattered(flat, elements(at, axis), _flat(x, data_format), "none").reshape(made.shape)


@TABLE.implements("max_unpool_grad")
def max_unpool_grad(dy: A, indices: A, *, data_format: str) -> A:
    axis = 2 if is_channels_first(data_format) else 1
    picked = cp.take_along_axis(_flat(dy, data_format), _flat(indices, data_format), axis)
    return picked.reshape(indices.shape)
