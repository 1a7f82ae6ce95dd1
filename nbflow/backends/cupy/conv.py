"""cupy: convolution by im2col and cuBLAS, and im2col itself. cuDNN is not used yet (docs/gpu.md).

Everything works on views with the channels last, as in `nbflow.backends.numpy.conv`. The patches of a block of examples
take at most `_BLOCK_BYTES`.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import cupy as cp
import numpy as np

from nbflow.backends.base import Table
from nbflow.backends.numpy.conv import _check_channels, _check_windows, _is_depthwise, _shape_of
from nbflow.backends.numpy.sliding import Windows, wide
from nbflow.ops.windows import Ints, Padding, is_channels_first

TABLE = Table()
A = Any

_BLOCK_BYTES = 1 << 30


def padded_with(windows: Windows, x: A, value: Any = 0) -> A:
    """`x` with a border of `value`; `x` itself when there is none."""
    if not windows.is_padded:
        return x
    shape = windows.shape(x, windows.padded)
    made = cp.zeros(shape, x.dtype) if value == 0 else cp.full(shape, value, x.dtype)
    made[windows.inner] = x
    return made


def unfolded(windows: Windows, x: A) -> A:
    """A view of padded `x` (n, *places, c) as (n, *count, *kernel, c)."""
    n, *_, c = x.shape
    if not x.size or not prod(windows.count):
        return cp.zeros((n, *windows.count, *windows.kernel, c), x.dtype)
    whole = x[(slice(None), *(slice(o, None) for o in windows.offset))]
    per, *steps, last = whole.strides
    across = [s * step for s, step in zip(steps, windows.strides, strict=True)]
    within = [s * d for s, d in zip(steps, windows.dilation, strict=True)]
    return cp.lib.stride_tricks.as_strided(
        whole, (n, *windows.count, *windows.kernel, c), (per, *across, *within, last)
    )


def _last(x: A, data_format: str) -> A:
    return cp.moveaxis(x, 1, -1) if is_channels_first(data_format) else x


def _product(x: A, matrix: A) -> A:
    """x · matrix along the channels, as one product."""
    rows = x.reshape(prod(x.shape[:-1]), x.shape[-1])
    return (rows @ matrix).reshape(*x.shape[:-1], matrix.shape[-1])


def _result(y: A, data_format: str, dtype: np.dtype[Any], out: A | None = None) -> A:
    laid = cp.moveaxis(y, -1, 1) if is_channels_first(data_format) else y
    if out is None:
        return cp.ascontiguousarray(laid.astype(dtype, copy=False))
    if out is not y:
        cp.copyto(out, laid)
    return out


def _blocks(n: int, windows: Windows, channels: int, itemsize: int) -> Iterator[slice]:
    """Examples whose patches fill a block; none when there are no windows."""
    one = prod(windows.count) * prod(windows.kernel) * channels * itemsize
    fit = max(1, _BLOCK_BYTES // max(one, 1))
    for start in range(0, n if prod(windows.count) else 0, fit):
        yield slice(start, min(start + fit, n))


def _columns(windows: Windows, padded: A, part: slice, group: slice) -> A:
    """(windows, kernel · channels of the group). Copied place by place of the window: cupy's copy of a view of as many
    dimensions as the patches have takes several times as long."""
    images = padded[part][..., group]
    made = cp.empty((len(images), *windows.count, prod(windows.kernel), images.shape[-1]), padded.dtype)
    for number, (_, at) in enumerate(windows.taps()):
        made[..., number, :] = images[at]
    return made.reshape(len(images) * prod(windows.count), prod(windows.kernel) * images.shape[-1])


def _groups(depth: int, outputs: int, groups: int) -> Iterator[tuple[slice, slice]]:
    """The channels that go into each group, and those that come out."""
    some = outputs // groups
    for g in range(groups):
        yield slice(g * depth, (g + 1) * depth), slice(g * some, (g + 1) * some)


@TABLE.implements("conv")
def conv(
    x: A,
    w: A,
    *,
    strides: Ints,
    padding: Padding,
    data_format: str,
    dilation: Ints,
    groups: int,
    out: A | None = None,
) -> A:
    dtype = cp.result_type(x, w)
    image, filters = (a.astype(wide(dtype), copy=False) for a in (_last(x, data_format), w))
    _check_channels(image.shape[-1], w, groups)
    windows = Windows.of(image.shape[1:-1], w.shape[:-2], strides, padding, dilation)
    y = cp.zeros((image.shape[0], *windows.count, w.shape[-1]), image.dtype)
    padded = padded_with(windows, image)
    if _is_depthwise(w, groups):
        split = y.reshape(*y.shape[:-1], groups, w.shape[-1] // groups)
        each = filters.reshape(*windows.kernel, groups, w.shape[-1] // groups)
        for at, picked in windows.taps():
            split += padded[picked][..., None] * each[at]
        return _result(y, data_format, dtype, out)
    for part in _blocks(len(image), windows, image.shape[-1], image.itemsize):
        for channels, outputs in _groups(w.shape[-2], w.shape[-1], groups):
            product = _columns(windows, padded, part, channels) @ filters[..., outputs].reshape(prod(w.shape[:-1]), -1)
            y[part, ..., outputs] = product.reshape(part.stop - part.start, *windows.count, -1)
    return _result(y, data_format, dtype, out)


@TABLE.implements("conv_input_grad")
def conv_input_grad(
    dy: A,
    w: A,
    vector: A | None = None,
    *,
    shape: Any,
    strides: Ints,
    padding: Padding,
    data_format: str,
    dilation: Ints,
    groups: int,
) -> A:
    """The gradient of conv for images of `shape`, or of `vector` when given. Patches are added tap by tap."""
    dtype = cp.result_type(dy, w)
    grad, filters = (a.astype(wide(dtype), copy=False) for a in (_last(dy, data_format), w))
    n, places, channels = _shape_of(shape if vector is None else vector.tolist(), data_format)
    _check_channels(channels, w, groups)
    windows = Windows.of(places, w.shape[:-2], strides, padding, dilation)
    _check_windows(grad, windows, w.shape[-1], data_format)
    if groups == 1 and windows.is_pointwise:
        return _result(_product(grad, filters.reshape(w.shape[-2:]).T), data_format, dtype)
    made = cp.zeros((n, *windows.padded, channels), grad.dtype)
    if _is_depthwise(w, groups):
        split = grad.reshape(*grad.shape[:-1], groups, w.shape[-1] // groups)
        each = filters.reshape(*windows.kernel, groups, w.shape[-1] // groups)
        for at, picked in windows.taps():
            made[picked] += (split * each[at]).sum(axis=-1)
        return _result(made[windows.inner], data_format, dtype)
    depth, whole = w.shape[-2], (slice(None),) * len(windows.kernel)
    for part in _blocks(n, windows, channels, grad.itemsize):
        count = part.stop - part.start
        for inside, outputs in _groups(depth, w.shape[-1], groups):
            given = grad[part, ..., outputs].reshape(count * prod(windows.count), outputs.stop - outputs.start)
            patches = given @ filters[..., outputs].reshape(prod(w.shape[:-1]), outputs.stop - outputs.start).T
            patches = patches.reshape(count, *windows.count, *windows.kernel, depth)
            target = made[part, ..., inside]
            for at, picked in windows.taps():
                target[picked] += patches[(slice(None), *whole, *at)]
    return _result(made[windows.inner], data_format, dtype)


@TABLE.implements("conv_filter_grad")
def conv_filter_grad(
    x: A,
    dy: A,
    vector: A | None = None,
    *,
    shape: Any,
    strides: Ints,
    padding: Padding,
    data_format: str,
    dilation: Ints,
    groups: int,
) -> A:
    """The gradient of conv for filters of `shape`, or of `vector` when given."""
    dtype = cp.result_type(x, dy)
    image, grad = (_last(a, data_format).astype(wide(dtype), copy=False) for a in (x, dy))
    *kernel, depth, outputs = (int(d) for d in (shape if vector is None else vector.tolist()))
    windows = Windows.of(image.shape[1:-1], kernel, strides, padding, dilation)
    padded = padded_with(windows, image)
    made = cp.zeros((*kernel, depth, outputs), image.dtype)
    if groups > 1 and depth == 1:
        split = grad.reshape(*grad.shape[:-1], groups, outputs // groups)
        filters = made.reshape(*kernel, groups, outputs // groups)
        for at, picked in windows.taps():
            filters[at] = (padded[picked][..., None] * split).sum(axis=tuple(range(split.ndim - 2)))
        return made.astype(dtype, copy=False)
    for part in _blocks(len(image), windows, image.shape[-1], image.itemsize):
        for inside, after in _groups(depth, outputs, groups):
            some = after.stop - after.start
            given = grad[part, ..., after].reshape((part.stop - part.start) * prod(windows.count), some)
            one = _columns(windows, padded, part, inside).T @ given
            made[..., after] += one.reshape(*kernel, depth, some)
    return made.astype(dtype, copy=False)


@TABLE.implements("unfold")
def unfold(x: A, *, window: Ints, strides: Ints, padding: Padding, data_format: str, dilation: Ints) -> A:
    image = _last(x, data_format)
    windows = Windows.of(image.shape[1:-1], window, strides, padding, dilation)
    view = unfolded(windows, padded_with(windows, image))
    return cp.array(view, order="C").reshape(image.shape[0], *windows.count, prod(windows.kernel), image.shape[-1])


@TABLE.implements("fold")
def fold(
    patches: A,
    vector: A | None = None,
    *,
    shape: Any,
    window: Ints,
    strides: Ints,
    padding: Padding,
    data_format: str,
    dilation: Ints,
) -> A:
    n, places, channels = _shape_of(shape if vector is None else vector.tolist(), data_format)
    windows = Windows.of(places, window, strides, padding, dilation)
    made = cp.zeros((n, *windows.padded, channels), patches.dtype)
    for number, (_, at) in enumerate(windows.taps()):
        made[at] += patches[..., number, :]
    return _result(made[windows.inner], data_format, patches.dtype)
