"""Pooling on numpy arrays: a loop over the places of the window, each a slice of the whole array."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np

from nbflow.backends.base import Table
from nbflow.backends.numpy.sliding import Array, Slices, Windows, lowest, wide
from nbflow.errors import OpError
from nbflow.ops.windows import Ints, Padding, is_channels_first

TABLE = Table()


def _windows(
    shape: Any, window: Ints, strides: Ints, padding: Padding, data_format: str, dilation: Ints, ceil: bool
) -> Windows:
    first = 2 if is_channels_first(data_format) else 1
    size = [int(d) for d in shape[first : first + len(window)]]
    return Windows.of(size, window, strides, padding, dilation, ceil, first)


@TABLE.implements("max_pool")
def max_pool(x: Array, *, out: Array | None = None, **attrs: Any) -> Array:
    windows = _windows(x.shape, **attrs)
    padded = windows.pad(x, lowest(x.dtype) if windows.is_padded else 0)
    y = np.empty(windows.shape(x, windows.count), x.dtype) if out is None else out
    for number, (_, at) in enumerate(windows.taps()):
        if number == 0:
            np.copyto(y, padded[at])
        else:
            np.maximum(y, padded[at], out=y)
    return y


@TABLE.implements("max_pool_argmax")
def max_pool_argmax(x: Array, **attrs: Any) -> Array:
    windows = _windows(x.shape, **attrs)
    places = np.arange(prod(windows.size), dtype=np.int64).reshape(windows.size)
    behind = (1,) * (x.ndim - windows.first - len(windows.size))
    numbers = Windows.pad(windows, places.reshape((1,) * windows.first + windows.size + behind), -1)
    padded = windows.pad(x, lowest(x.dtype) if windows.is_padded else 0)
    best = np.empty(windows.shape(x, windows.count), x.dtype)
    made = np.full(best.shape, -1, np.int64)
    for _, at in windows.taps():
        value, number = padded[at], numbers[at]
        # A place of the padding is never the maximum; NaN is above everything, as in np.maximum.
        better = (number >= 0) & ((made < 0) | ~(value <= best) & ~np.isnan(best))
        np.copyto(best, value, where=better)
        np.copyto(made, number, where=better)
    return made


def _winners(padded: Array, y: Array, windows: Windows) -> Iterator[tuple[Slices, Array]]:
    """For each place in the window, where it holds the window's maximum; the first place wins a tie."""
    free = np.ones(y.shape, bool)
    for _, at in windows.taps():
        won = (padded[at] == y) & free
        free &= ~won
        yield at, won


@TABLE.implements("max_pool_grad")
def max_pool_grad(dy: Array, x: Array, y: Array, **attrs: Any) -> Array:
    """Each output's gradient goes to the place that was the maximum."""
    windows = _windows(x.shape, **attrs)
    padded = windows.pad(x, lowest(x.dtype) if windows.is_padded else 0)
    made = np.zeros(padded.shape, dy.dtype)
    for at, won in _winners(padded, y, windows):
        made[at] += dy * won
    return np.ascontiguousarray(made[windows.inner])


@TABLE.implements("max_pool_pick")
def max_pool_pick(v: Array, x: Array, y: Array, **attrs: Any) -> Array:
    """Of `v`, shaped like x, the places that are the maxima of x: the transpose of max_pool_grad."""
    windows = _windows(x.shape, **attrs)
    padded = windows.pad(x, lowest(x.dtype) if windows.is_padded else 0)
    values = windows.pad(v)
    made = np.zeros(y.shape, v.dtype)
    for at, won in _winners(padded, y, windows):
        made += values[at] * won
    return made


def _divisor(windows: Windows, x: Array, padding: Padding, count: str, dtype: np.dtype[Any]) -> Array:
    """What each window's sum is divided by, as it broadcasts against `x`."""
    if count == "one":
        return np.ones((), dtype)
    made = windows.coverage(count == "padded", dtype)
    return made.reshape(made.shape + (1,) * (x.ndim - windows.first - made.ndim))


@TABLE.implements("avg_pool")
def avg_pool(x: Array, *, count: str, out: Array | None = None, **attrs: Any) -> Array:
    windows = _windows(x.shape, **attrs)
    dtype = wide(x.dtype)
    padded = windows.pad(x)
    shape = windows.shape(x, windows.count)
    y = out if out is not None and dtype == x.dtype else np.empty(shape, dtype)
    y[...] = 0
    for _, at in windows.taps():
        y += padded[at]
    if count != "one":
        y /= _divisor(windows, x, attrs["padding"], count, dtype)
    if out is None:
        return y.astype(x.dtype, copy=False)
    if out is not y:
        np.copyto(out, y, casting="same_kind")
    return out


@TABLE.implements("avg_pool_grad")
def avg_pool_grad(dy: Array, vector: Array | None = None, *, count: str, shape: Any, **attrs: Any) -> Array:
    """Each output's gradient, in equal parts, to the places it averaged."""
    sizes = tuple(int(d) for d in (shape if vector is None else vector))
    windows = _windows(sizes, **attrs)
    dtype = wide(dy.dtype)
    part = dy / _divisor(windows, dy, attrs["padding"], count, dtype)
    made = np.zeros(windows.shape(dy, windows.padded), dtype)
    for _, at in windows.taps():
        made[at] += part
    return np.ascontiguousarray(made[windows.inner], dy.dtype)


# --- the way back ----------------------------------------------------------------------------------------------------


def _flat(x: Array, data_format: str) -> Array:
    """(n, channels, places) or (n, places, channels): places as one dimension."""
    if is_channels_first(data_format):
        return x.reshape(*x.shape[:2], -1)
    return x.reshape(x.shape[0], -1, x.shape[-1])


def _checked(indices: Array, places: int) -> Array:
    if indices.size and not (indices.min() >= 0 and indices.max() < places):
        raise OpError(
            f"max_unpool: indices lie between {indices.min()} and {indices.max()}, but an example has the places 0 to "
            f"{places - 1}; give a larger output_size"
        )
    return indices


@TABLE.implements("max_unpool")
def max_unpool(x: Array, indices: Array, vector: Array | None = None, *, data_format: str, shape: Any) -> Array:
    made = np.zeros(tuple(int(d) for d in (shape if vector is None else vector)), x.dtype)
    axis = 2 if is_channels_first(data_format) else 1
    flat = _flat(made, data_format)
    np.put_along_axis(flat, _checked(_flat(indices, data_format), flat.shape[axis]), _flat(x, data_format), axis)
    return made


@TABLE.implements("max_unpool_grad")
def max_unpool_grad(dy: Array, indices: Array, *, data_format: str) -> Array:
    axis = 2 if is_channels_first(data_format) else 1
    flat = _flat(dy, data_format)
    picked = np.take_along_axis(flat, _checked(_flat(indices, data_format), flat.shape[axis]), axis)
    return picked.reshape(indices.shape)
