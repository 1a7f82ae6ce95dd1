"""Convolution and pooling on numpy arrays: blocked im2col and BLAS; a loop over the window where that is less work.

Everything works on NHWC views; NCHW is a transposed view of it. Filters are (height, width, in / groups, out).
K. Chellapilla, S. Puri, P. Simard, "High Performance Convolutional Neural Networks for Document Processing", 2006.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from nbflow.backends.base import Table
from nbflow.errors import OpError
from nbflow.ops.windows import Padding, Pair, output_size, pads
from nbflow.spec import kind_of

TABLE = Table()

Array = np.ndarray[Any, np.dtype[Any]]
Slices = tuple[slice, ...]

# Bytes of one block of unfolded patches: about the second-level cache, so that BLAS reads what im2col just wrote.
_BLOCK_BYTES = 2 << 20


def _nhwc(x: Array, data_format: str) -> Array:
    return x if data_format == "NHWC" else x.transpose(0, 2, 3, 1)


def _result(y: Array, data_format: str, out: Array | None) -> Array:
    """`y` (NHWC) in the wanted layout, in `out` when given."""
    laid_out = y if data_format == "NHWC" else y.transpose(0, 3, 1, 2)
    if out is None:
        return np.ascontiguousarray(laid_out)
    if out is not y:
        np.copyto(out, laid_out)
    return out


def _is_target(out: Array | None, data_format: str) -> bool:
    """True when the NHWC result may be computed straight into `out`."""
    return out is not None and data_format == "NHWC" and out.flags.c_contiguous


@dataclass(frozen=True, slots=True)
class Windows:
    """Where the windows lie on an image of h x w pixels: sizes before and after padding, and their number."""

    size: Pair
    kernel: Pair
    strides: Pair
    dilation: Pair
    pads: tuple[Pair, Pair]
    count: Pair

    @classmethod
    def of(cls, size: Pair, kernel: Pair, strides: Pair, padding: Padding, dilation: Pair) -> Windows:
        both = [
            (
                pads(padding, axis, size[axis], kernel[axis], strides[axis], dilation[axis]),
                output_size(padding, axis, size[axis], kernel[axis], strides[axis], dilation[axis]) or 0,
            )
            for axis in (0, 1)
        ]
        return cls(size, kernel, strides, dilation, (both[0][0], both[1][0]), (both[0][1], both[1][1]))

    @property
    def is_padded(self) -> bool:
        return self.pads != ((0, 0), (0, 0))

    @property
    def padded(self) -> Pair:
        (top, bottom), (left, right) = self.pads
        return (self.size[0] + top + bottom, self.size[1] + left + right)

    def pad(self, x: Array, value: Any = 0) -> Array:
        """`x` with a border of `value`; `x` itself when there is none."""
        if not self.is_padded:
            return x
        n, _, _, c = x.shape
        made = np.full((n, *self.padded, c), value, x.dtype)
        made[self.inner] = x
        return made

    @property
    def inner(self) -> Slices:
        """Where the image lies in the padded one."""
        (top, _), (left, _) = self.pads
        return (slice(None), slice(top, top + self.size[0]), slice(left, left + self.size[1]))

    def taps(self) -> Iterator[tuple[int, int, Slices]]:
        """(i, j, slices) for each place in the window: the slices pick, of the padded image, what all windows have
        there, as (n, count_h, count_w, c)."""
        (sh, sw), (dh, dw), (oh, ow) = self.strides, self.dilation, self.count
        for i in range(self.kernel[0]):
            for j in range(self.kernel[1]):
                rows = slice(i * dh, i * dh + (oh - 1) * sh + 1, sh)
                columns = slice(j * dw, j * dw + (ow - 1) * sw + 1, sw)
                yield i, j, (slice(None), rows, columns)

    def unfold(self, x: Array) -> Array:
        """A view of padded `x` as (n, count_h, count_w, kernel_h, kernel_w, c)."""
        n, _, _, c = x.shape
        s0, s1, s2, s3 = x.strides
        (sh, sw), (dh, dw) = self.strides, self.dilation
        strides = (s0, s1 * sh, s2 * sw, s1 * dh, s2 * dw, s3)
        return np.lib.stride_tricks.as_strided(x, (n, *self.count, *self.kernel, c), strides, writeable=False)


def _batches(n: int, bytes_per_image: int) -> Iterator[slice]:
    step = max(1, _BLOCK_BYTES // max(bytes_per_image, 1))
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def _patch_bytes(windows: Windows, x: Array) -> int:
    (oh, ow), (kh, kw) = windows.count, windows.kernel
    return oh * ow * kh * kw * int(x.shape[3]) * x.dtype.itemsize


def _check_channels(channels: int, w: Array, groups: int) -> None:
    if channels != w.shape[2] * groups or w.shape[3] % groups:
        raise OpError(
            f"conv2d: images of {channels} channels in {groups} groups do not fit filters of shape {w.shape}; filters "
            "are (height, width, channels / groups, outputs), with outputs a multiple of the groups"
        )


def _is_depthwise(w: Array, groups: int) -> bool:
    return groups > 1 and w.shape[2] == 1


@TABLE.implements("conv2d")
def conv2d(
    x: Array,
    w: Array,
    *,
    strides: Pair,
    padding: Padding,
    data_format: str,
    dilation: Pair,
    groups: int,
    out: Array | None = None,
) -> Array:
    image = _nhwc(x, data_format)
    _check_channels(image.shape[3], w, groups)
    kernel: Pair = (w.shape[0], w.shape[1])
    windows = Windows.of((image.shape[1], image.shape[2]), kernel, strides, padding, dilation)
    shape = (image.shape[0], *windows.count, w.shape[3])
    y = out if out is not None and _is_target(out, data_format) else np.empty(shape, np.result_type(x, w))
    padded = windows.pad(image)
    if _is_depthwise(w, groups):
        _depthwise(padded, w, windows, y, groups)
    else:
        _forward(padded, w, windows, y, groups)
    return _result(y, data_format, out)


def _forward(padded: Array, w: Array, windows: Windows, y: Array, groups: int) -> None:
    kh, kw, depth, outputs = w.shape
    wide = outputs // groups
    flat = y.reshape(y.shape[0], windows.count[0] * windows.count[1], outputs)
    for part in _batches(padded.shape[0], _patch_bytes(windows, padded)):
        patches = windows.unfold(padded[part])
        rows = flat[part].reshape(-1, outputs)
        for g in range(groups):
            filters = w[..., g * wide : (g + 1) * wide].reshape(kh * kw * depth, wide)
            columns = patches[..., g * depth : (g + 1) * depth].reshape(-1, kh * kw * depth)
            if groups == 1:
                np.matmul(columns, filters, out=rows)
            else:
                rows[:, g * wide : (g + 1) * wide] = columns @ filters


def _depthwise(padded: Array, w: Array, windows: Windows, y: Array, groups: int) -> None:
    """Each channel has its own filters: a sum over the window moves less memory than patches of one channel."""
    n, _, _, c = padded.shape
    wide = w.shape[3] // groups
    split = y.reshape(n, *windows.count, c, wide)
    filters = w.reshape(*windows.kernel, c, wide)
    split[...] = 0
    for i, j, at in windows.taps():
        split += padded[at][..., None] * filters[i, j]


@TABLE.implements("conv2d_input_grad")
def conv2d_input_grad(
    dy: Array,
    w: Array,
    vector: Array | None = None,
    *,
    shape: Any,
    strides: Pair,
    padding: Padding,
    data_format: str,
    dilation: Pair,
    groups: int,
) -> Array:
    """The gradient of conv2d for images of `shape`, in the layout of `data_format`, or of `vector` when given."""
    grad = _nhwc(dy, data_format)
    n, h, width, c = _nhwc_shape(shape if vector is None else vector, data_format)
    kernel: Pair = (w.shape[0], w.shape[1])
    windows = Windows.of((h, width), kernel, strides, padding, dilation)
    padded = np.zeros((n, *windows.padded, c), np.result_type(dy, w))
    if _is_depthwise(w, groups):
        wide = w.shape[3] // groups
        split = grad.reshape(n, *windows.count, c, wide)
        filters = w.reshape(*kernel, c, wide)
        for i, j, at in windows.taps():
            padded[at] += np.einsum("nhwcm,cm->nhwc", split, filters[i, j])
    else:
        _fold(padded, grad, w, windows, groups)
    return _result(padded[windows.inner], data_format, None)


def _fold(padded: Array, grad: Array, w: Array, windows: Windows, groups: int) -> None:
    kh, kw, depth, outputs = w.shape
    wide = outputs // groups
    for part in _batches(padded.shape[0], _patch_bytes(windows, padded)):
        rows = grad[part].reshape(-1, outputs)
        for g in range(groups):
            filters = w[..., g * wide : (g + 1) * wide].reshape(kh * kw * depth, wide)
            patches = rows[:, g * wide : (g + 1) * wide] @ filters.T
            patches = patches.reshape(-1, *windows.count, kh, kw, depth)
            target = padded[part][..., g * depth : (g + 1) * depth]
            for i, j, at in windows.taps():
                target[at] += patches[:, :, :, i, j]


@TABLE.implements("conv2d_filter_grad")
def conv2d_filter_grad(
    x: Array,
    dy: Array,
    vector: Array | None = None,
    *,
    shape: Any,
    strides: Pair,
    padding: Padding,
    data_format: str,
    dilation: Pair,
    groups: int,
) -> Array:
    """The gradient of conv2d for filters of `shape`, or of `vector` when given."""
    image, grad = _nhwc(x, data_format), _nhwc(dy, data_format)
    kh, kw, depth, outputs = (int(d) for d in (shape if vector is None else vector))
    windows = Windows.of((image.shape[1], image.shape[2]), (kh, kw), strides, padding, dilation)
    padded = windows.pad(image)
    made = np.zeros((kh, kw, depth, outputs), np.result_type(x, dy))
    wide = outputs // groups
    if groups > 1 and depth == 1:
        split = grad.reshape(*grad.shape[:3], groups, wide)
        filters = made.reshape(kh, kw, groups, wide)
        for i, j, at in windows.taps():
            filters[i, j] = np.einsum("nhwc,nhwcm->cm", padded[at], split)
        return made
    for part in _batches(padded.shape[0], _patch_bytes(windows, padded)):
        patches = windows.unfold(padded[part])
        rows = grad[part].reshape(-1, outputs)
        for g in range(groups):
            columns = patches[..., g * depth : (g + 1) * depth].reshape(-1, kh * kw * depth)
            one = columns.T @ rows[:, g * wide : (g + 1) * wide]
            made[..., g * wide : (g + 1) * wide] += one.reshape(kh, kw, depth, wide)
    return made


def _nhwc_shape(shape: Any, data_format: str) -> tuple[int, int, int, int]:
    n, a, b, c = (int(d) for d in shape)
    return (n, a, b, c) if data_format == "NHWC" else (n, b, c, a)


def _lowest(dtype: np.dtype[Any]) -> Any:
    return -np.inf if kind_of(dtype) == "f" else np.iinfo(dtype).min


@TABLE.implements("max_pool2d")
def max_pool2d(
    x: Array,
    *,
    window: Pair,
    strides: Pair,
    padding: Padding,
    data_format: str,
    dilation: Pair,
    out: Array | None = None,
) -> Array:
    image = _nhwc(x, data_format)
    windows = Windows.of((image.shape[1], image.shape[2]), window, strides, padding, dilation)
    padded = windows.pad(image, _lowest(x.dtype) if windows.is_padded else 0)
    shape = (image.shape[0], *windows.count, image.shape[3])
    y = out if out is not None and _is_target(out, data_format) else np.empty(shape, x.dtype)
    for i, j, at in windows.taps():
        if i == j == 0:
            np.copyto(y, padded[at])
        else:
            np.maximum(y, padded[at], out=y)
    return _result(y, data_format, out)


def _winners(padded: Array, y: Array, windows: Windows) -> Iterator[tuple[Slices, Array]]:
    """For each place in the window, where it holds the window's maximum; the first place wins a tie."""
    free = np.ones(y.shape, bool)
    for _, _, at in windows.taps():
        won = (padded[at] == y) & free
        free &= ~won
        yield at, won


@TABLE.implements("max_pool2d_grad")
def max_pool2d_grad(
    dy: Array, x: Array, y: Array, *, window: Pair, strides: Pair, padding: Padding, data_format: str, dilation: Pair
) -> Array:
    """Each output's gradient goes to the pixel that was the maximum."""
    image, grad, top = (_nhwc(a, data_format) for a in (x, dy, y))
    windows = Windows.of((image.shape[1], image.shape[2]), window, strides, padding, dilation)
    padded = windows.pad(image, _lowest(x.dtype) if windows.is_padded else 0)
    made = np.zeros((image.shape[0], *windows.padded, image.shape[3]), dy.dtype)
    for at, won in _winners(padded, top, windows):
        made[at] += grad * won
    return _result(made[windows.inner], data_format, None)


@TABLE.implements("max_pool2d_pick")
def max_pool2d_pick(
    v: Array, x: Array, y: Array, *, window: Pair, strides: Pair, padding: Padding, data_format: str, dilation: Pair
) -> Array:
    """Of `v`, shaped like x, the pixels that are the maxima of x: the transpose of max_pool2d_grad."""
    image, values, top = (_nhwc(a, data_format) for a in (x, v, y))
    windows = Windows.of((image.shape[1], image.shape[2]), window, strides, padding, dilation)
    padded = windows.pad(image, _lowest(x.dtype) if windows.is_padded else 0)
    padded_values = windows.pad(values)
    made = np.zeros(top.shape, v.dtype)
    for at, won in _winners(padded, top, windows):
        made += padded_values[at] * won
    return _result(made, data_format, None)


def _pixels(windows: Windows, dtype: np.dtype[Any]) -> Array:
    """How many real pixels each window covers, as (1, count_h, count_w, 1). A window in the border alone counts 1."""
    ones = windows.pad(np.ones((1, *windows.size, 1), dtype))
    made = np.zeros((1, *windows.count, 1), dtype)
    for _, _, at in windows.taps():
        made += ones[at]
    return np.maximum(made, 1)


@TABLE.implements("avg_pool2d")
def avg_pool2d(
    x: Array,
    *,
    window: Pair,
    strides: Pair,
    padding: Padding,
    data_format: str,
    dilation: Pair,
    out: Array | None = None,
) -> Array:
    image = _nhwc(x, data_format)
    windows = Windows.of((image.shape[1], image.shape[2]), window, strides, padding, dilation)
    padded = windows.pad(image)
    shape = (image.shape[0], *windows.count, image.shape[3])
    y = out if out is not None and _is_target(out, data_format) else np.empty(shape, x.dtype)
    y[...] = 0
    for _, _, at in windows.taps():
        y += padded[at]
    y /= _pixels(windows, x.dtype)
    return _result(y, data_format, out)


@TABLE.implements("avg_pool2d_grad")
def avg_pool2d_grad(
    dy: Array,
    vector: Array | None = None,
    *,
    shape: Any,
    window: Pair,
    strides: Pair,
    padding: Padding,
    data_format: str,
    dilation: Pair,
) -> Array:
    """Each output's gradient, in equal parts, to the pixels it averaged."""
    n, h, w, c = _nhwc_shape(shape if vector is None else vector, data_format)
    windows = Windows.of((h, w), window, strides, padding, dilation)
    part = _nhwc(dy, data_format) / _pixels(windows, dy.dtype)
    made = np.zeros((n, *windows.padded, c), dy.dtype)
    for _, _, at in windows.taps():
        made[at] += part
    return _result(made[windows.inner], data_format, None)
