"""Convolution on numpy arrays: blocked im2col and BLAS; a loop over the window where that is less work.

Everything works on views with the channels last; channels first is a transposed view of it. Filters are
(*kernel, in / groups, out).
K. Chellapilla, S. Puri, P. Simard, "High Performance Convolutional Neural Networks for Document Processing", 2006.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from nbflow.backends.base import Table
from nbflow.backends.numpy.sliding import Array, Windows, wide
from nbflow.errors import OpError
from nbflow.ops.windows import Ints, Padding, is_channels_first, laid_out

TABLE = Table()

# Bytes of one block of unfolded patches: about the second-level cache, so that BLAS reads what im2col just wrote.
_BLOCK_BYTES = 2 << 20


def _last(x: Array, data_format: str) -> Array:
    """A view with the channels last."""
    return np.moveaxis(x, 1, -1) if is_channels_first(data_format) else x


def _result(y: Array, data_format: str, dtype: np.dtype[Any], out: Array | None = None) -> Array:
    """`y` (channels last) in the wanted layout and dtype, in `out` when given."""
    laid = np.moveaxis(y, -1, 1) if is_channels_first(data_format) else y
    if out is None:
        return np.ascontiguousarray(laid, dtype)
    if out is not y:
        np.copyto(out, laid, casting="same_kind")
    return out


def _shape_of(shape: Any, data_format: str) -> tuple[int, Ints, int]:
    """(n, places, channels)."""
    n, *rest = (int(d) for d in shape)
    return (n, tuple(rest[1:]), rest[0]) if is_channels_first(data_format) else (n, tuple(rest[:-1]), rest[-1])


def _prepared(dtype: np.dtype[Any], *arrays: Array) -> list[Array]:
    """The arrays in the dtype that sums are made in."""
    return [a.astype(wide(dtype), copy=False) for a in arrays]


def _blocks(windows: Windows, padded: Array, channels: int) -> Iterator[tuple[slice, slice]]:
    """(examples, windows of the first dimension) whose patches fill a block; none when there are no windows."""
    n = padded.shape[0] if prod(windows.count) else 0
    row = prod(windows.count[1:]) * prod(windows.kernel) * channels * padded.dtype.itemsize
    fit = max(1, _BLOCK_BYTES // max(row, 1))
    rows = windows.count[0]
    examples = max(1, fit // max(rows, 1))
    for start in range(0, n, examples):
        part = slice(start, min(start + examples, n))
        if examples > 1 or rows <= fit:
            yield part, slice(0, rows)
        else:
            yield from ((part, slice(first, min(first + fit, rows))) for first in range(0, rows, fit))


def _matrix(x: Array) -> Array:
    """(windows, channels). The windows are counted: -1 does not say how many where there are no channels."""
    return x.reshape(prod(x.shape[:-1]), x.shape[-1])


def _check_channels(channels: int, w: Array, groups: int) -> None:
    if channels != w.shape[-2] * groups or w.shape[-1] % groups:
        raise OpError(
            f"conv: images of {channels} channels in {groups} groups do not fit filters of shape {w.shape}; filters "
            "are (*kernel, channels / groups, outputs), with outputs a multiple of the groups"
        )


def _is_depthwise(w: Array, groups: int) -> bool:
    return groups > 1 and w.shape[-2] == 1


@TABLE.implements("conv")
def conv(
    x: Array,
    w: Array,
    *,
    strides: Ints,
    padding: Padding,
    data_format: str,
    dilation: Ints,
    groups: int,
    out: Array | None = None,
) -> Array:
    dtype = np.result_type(x, w)
    image, filters = _prepared(dtype, _last(x, data_format), w)
    _check_channels(image.shape[-1], w, groups)
    windows = Windows.of(image.shape[1:-1], w.shape[:-2], strides, padding, dilation)
    # Filters are laid out anew there, which pays where there are more windows than numbers in a filter.
    if is_channels_first(data_format) and groups == 1 and image.shape[0] * prod(windows.count) > prod(w.shape[:-1]):
        return _channels_first(x.astype(wide(dtype), copy=False), filters, replace(windows, first=2), dtype, out)
    shape = (image.shape[0], *windows.count, w.shape[-1])
    direct = out is not None and not is_channels_first(data_format) and out.flags.c_contiguous
    y = out if out is not None and direct and out.dtype == image.dtype else np.empty(shape, image.dtype)
    padded = windows.pad(image)
    if _is_depthwise(w, groups):
        _depthwise(padded, filters, windows, y, groups)
    else:
        _forward(padded, filters, windows, y, groups)
    return _result(y, data_format, dtype, out)


def _channels_first(x: Array, w: Array, windows: Windows, dtype: np.dtype[Any], out: Array | None) -> Array:
    """The result as it is laid out, filters · patches, so that nothing but the patches is moved."""
    n, channels = x.shape[:2]
    outputs, size = w.shape[-1], prod(w.shape[:-1])
    y = np.empty((n, outputs, *windows.count), x.dtype)
    if out is not None and out.dtype == x.dtype and out.flags.c_contiguous:
        y = out
    filters = np.moveaxis(w, (-1, -2), (0, 1)).reshape(outputs, size)  # (outputs, channels · kernel)
    padded = windows.pad(x)
    for part, rows in _blocks(windows, padded, channels):
        patches = padded[part] if windows.is_pointwise else windows.unfold_first(padded[part])
        lead = (slice(None),) * (patches.ndim - len(windows.count))
        target = y[part, :, rows]
        columns = patches[(*lead, rows)].reshape(patches.shape[0], size, prod(target.shape[2:]))
        target[...] = np.matmul(filters, columns).reshape(target.shape)
    if out is None:
        return np.asarray(y, dtype)
    if y is not out:
        np.copyto(out, y, casting="same_kind")
    return out


def _forward(padded: Array, w: Array, windows: Windows, y: Array, groups: int) -> None:
    depth, outputs = w.shape[-2:]
    size, some = prod(w.shape[:-1]), outputs // groups
    for part, rows in _blocks(windows, padded, padded.shape[-1]):
        patches = windows.unfold(padded[part])[:, rows]
        target = _matrix(y[part, rows])  # a view: either all rows, or those of one example
        for g in range(groups):
            filters = w[..., g * some : (g + 1) * some].reshape(size, some)
            columns = patches[..., g * depth : (g + 1) * depth].reshape(len(target), size)
            if groups == 1:
                np.matmul(columns, filters, out=target)
            else:
                target[:, g * some : (g + 1) * some] = columns @ filters


def _depthwise(padded: Array, w: Array, windows: Windows, y: Array, groups: int) -> None:
    """Each channel has its own filters: a sum over the window moves less memory than patches of one channel."""
    split = y.reshape(*y.shape[:-1], groups, y.shape[-1] // groups)
    filters = w.reshape(*windows.kernel, groups, w.shape[-1] // groups)
    split[...] = 0
    for at, picked in windows.taps():
        split += padded[picked][..., None] * filters[at]


@TABLE.implements("conv_input_grad")
def conv_input_grad(
    dy: Array,
    w: Array,
    vector: Array | None = None,
    *,
    shape: Any,
    strides: Ints,
    padding: Padding,
    data_format: str,
    dilation: Ints,
    groups: int,
) -> Array:
    """The gradient of conv for images of `shape`, in the layout of `data_format`, or of `vector` when given."""
    dtype = np.result_type(dy, w)
    grad, filters = _prepared(dtype, _last(dy, data_format), w)
    n, places, channels = _shape_of(shape if vector is None else vector, data_format)
    _check_channels(channels, w, groups)
    windows = Windows.of(places, w.shape[:-2], strides, padding, dilation)
    _check_windows(grad, windows, w.shape[-1], data_format)
    padded = np.zeros((n, *windows.padded, channels), grad.dtype)
    if _is_depthwise(w, groups):
        split = grad.reshape(*grad.shape[:-1], groups, grad.shape[-1] // groups)
        each = filters.reshape(*windows.kernel, groups, w.shape[-1] // groups)
        letters = "nxyz"[: split.ndim - 2]
        for at, picked in windows.taps():
            padded[picked] += np.einsum(f"{letters}cm,cm->{letters}c", split, each[at])
    else:
        _fold(padded, grad, filters, windows, groups)
    return _result(padded[windows.inner], data_format, dtype)


def _check_windows(grad: Array, windows: Windows, outputs: int, data_format: str) -> None:
    if grad.shape[1:] != (*windows.count, outputs):
        given, wanted = (laid_out(grad.shape[0], s[:-1], s[-1], data_format)
                         for s in (grad.shape[1:], (*windows.count, outputs)))  # fmt: skip
        raise OpError(f"conv: a gradient of shape {given} is not that of the convolution's result, {wanted}")


def _fold(padded: Array, grad: Array, w: Array, windows: Windows, groups: int) -> None:
    depth, outputs = w.shape[-2:]
    size, some = prod(w.shape[:-1]), outputs // groups
    whole = (slice(None),) * len(windows.kernel)
    step = windows.strides[0]
    for part, rows in _blocks(windows, padded, padded.shape[-1]):
        given = _matrix(grad[part, rows])
        for g in range(groups):
            filters = w[..., g * some : (g + 1) * some].reshape(size, some)
            patches = given[:, g * some : (g + 1) * some] @ filters.T
            patches = patches.reshape(
                part.stop - part.start, rows.stop - rows.start, *windows.count[1:], *windows.kernel, depth
            )
            target = padded[part, ..., g * depth : (g + 1) * depth]
            for at, (examples, first, *others) in windows.taps():
                begin = first.start + rows.start * step
                end = first.start + (rows.stop - 1) * step + 1
                place: tuple[Any, ...] = (slice(None), *whole, *at)
                target[(examples, slice(begin, end, step), *others)] += patches[place]


@TABLE.implements("conv_filter_grad")
def conv_filter_grad(
    x: Array,
    dy: Array,
    vector: Array | None = None,
    *,
    shape: Any,
    strides: Ints,
    padding: Padding,
    data_format: str,
    dilation: Ints,
    groups: int,
) -> Array:
    """The gradient of conv for filters of `shape`, or of `vector` when given."""
    dtype = np.result_type(x, dy)
    image, grad = _prepared(dtype, _last(x, data_format), _last(dy, data_format))
    *kernel, depth, outputs = (int(d) for d in (shape if vector is None else vector))
    windows = Windows.of(image.shape[1:-1], kernel, strides, padding, dilation)
    padded = windows.pad(image)
    made = np.zeros((*kernel, depth, outputs), image.dtype)
    if groups > 1 and depth == 1:
        split = grad.reshape(*grad.shape[:-1], groups, grad.shape[-1] // groups)
        filters = made.reshape(*kernel, groups, outputs // groups)
        letters = "nxyz"[: split.ndim - 2]
        for at, picked in windows.taps():
            filters[at] = np.einsum(f"{letters}c,{letters}cm->cm", padded[picked], split)
        return made.astype(dtype, copy=False)
    size, some = prod(kernel) * depth, outputs // groups
    for part, rows in _blocks(windows, padded, padded.shape[-1]):
        patches = windows.unfold(padded[part])[:, rows]
        given = _matrix(grad[part, rows])
        for g in range(groups):
            columns = patches[..., g * depth : (g + 1) * depth].reshape(len(given), size)
            one = columns.T @ given[:, g * some : (g + 1) * some]
            made[..., g * some : (g + 1) * some] += one.reshape(*kernel, depth, some)
    return made.astype(dtype, copy=False)
