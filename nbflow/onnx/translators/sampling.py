"""Operators that read images between their places: GridSample, RoiAlign, DeformConv; and Col2Im, which puts back.

Each point has taps along every dimension, places with weights; a value is the sum over all combinations of taps of
weight times value. Nothing here is an op of its own: it is built of arithmetic and gathering, so all has gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import product
from typing import Any

import numpy as np

from nbflow import ops
from nbflow.errors import GraphError
from nbflow.graph import Tensor
from nbflow.onnx.registry import Call, translates
from nbflow.onnx.translators.elementwise import dims, number
from nbflow.ops._build import INT64

# (place, weight) of one tap; the weight is None for 1.
Tap = tuple[Tensor, Tensor | None]


def _floating(size: Any, like: Tensor) -> Tensor:
    return ops.astype(size, like.dtype) if isinstance(size, Tensor) else number(size, like)


# --- taps along one dimension ----------------------------------------------------------------------------------------


def _cubic(distance: Tensor) -> list[Tensor]:
    """Keys' weights, with -0.75, of the four places around a point at `distance` behind the second."""
    a, x = -0.75, distance
    near = [((a + 2) * t - (a + 3)) * t * t + 1 for t in (x, 1 - x)]
    far = [((a * t - 5 * a) * t + 8 * a) * t - 4 * a for t in (x + 1, 2 - x)]
    return [far[0], near[0], near[1], far[1]]


def _taps(point: Tensor, method: str) -> list[Tap]:
    """The places around `point`, floats that may lie outside, and their weights."""
    if method == "nearest":
        return [(ops.round(point), None)]
    first = ops.floor(point)
    distance = point - first
    if method == "linear":
        return [(first, 1 - distance), (first + 1, distance)]
    return [(first + (n - 1), weight) for n, weight in enumerate(_cubic(distance))]


def _reflected(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """`x` mirrored at `low` and `high` until it is between them."""
    span = high - low
    # A dimension of one place has no span; everything falls on it.
    safe = ops.where(ops.equal(span, number(0, span)), number(1, span), span)
    away = ops.remainder(x - low, safe * 2)
    return ops.where(ops.greater(away, safe), safe * 2 - away, away) + low


def _inside(tap: Tap, size: Any, padding: str, low: Tensor, high: Tensor) -> Tap:
    """A tap as an index within `size`, by the rule for what is outside."""
    place, weight = tap
    last = _floating(size, place) - 1
    if padding == "reflection":
        # Half-way mirrors lie between places; the place is the one that a mirrored index falls into.
        place = ops.trunc(_reflected(place, low, high))
    elif padding == "zeros":
        is_inside = ops.logical_and(ops.greater_equal(place, number(0, place)), ops.less_equal(place, last))
        kept = ops.astype(is_inside, place.dtype)
        weight = kept if weight is None else weight * kept
    index = ops.astype(ops.minimum(ops.maximum(place, number(0, place)), last), INT64)
    return index, weight


def _weighted(flat: Tensor, taps: Sequence[Sequence[Tap]], sizes: Sequence[Any]) -> Iterator[Tensor]:
    """weight · value of each combination of taps: `flat` (n, channels, places), points (n, points)."""
    for combination in product(*taps):
        index: Any = 0
        weight: Tensor | None = None
        for (place, own), size in zip(combination, sizes, strict=True):
            index = index * size + place
            weight = own if weight is None else weight if own is None else weight * own
        picked = ops.take_along_axis(flat, ops.expand_dims(index, axis=1), axis=2)
        yield picked if weight is None else picked * ops.expand_dims(ops.astype(weight, picked.dtype), axis=1)


def sample(x: Tensor, points: Sequence[Tensor], method: str, padding: str, align: bool) -> Tensor:
    """(n, channels, *places) read at points, a tensor (n, points) for each dimension → (n, channels, points)."""
    n, channels, *sizes = dims(x)
    taps = []
    for given, size in zip(points, sizes, strict=True):
        point, length = given, _floating(size, given)
        low, high = (number(0.0, point), length - 1) if align else (number(-0.5, point), length - 0.5)
        if padding == "border":
            point = ops.minimum(ops.maximum(point, number(0, point)), length - 1)
        elif padding == "reflection":
            point = _reflected(point, low, high)
        taps.append([_inside(tap, size, padding, low, high) for tap in _taps(point, method)])
    flat = ops.reshape(x, [n, channels, -1])
    return reduce(ops.add, _weighted(flat, taps, sizes))


_METHODS = {"bilinear": "linear", "linear": "linear", "nearest": "nearest", "bicubic": "cubic", "cubic": "cubic"}


@translates("GridSample")
def _grid_sample(c: Call) -> Any:
    """The grid is (n, *places, dimensions), from -1 to 1, the last dimension first."""
    x, grid = c[0], c[1]
    align = bool(c.attr("align_corners", 0))
    n, channels, *sizes = dims(x)
    wanted = dims(grid)[1:-1]
    points = []
    for axis, size in enumerate(sizes):
        given = ops.reshape(grid[..., len(sizes) - 1 - axis], [n, -1])
        length = _floating(size, given)
        points.append((given + 1) * 0.5 * (length - 1) if align else ((given + 1) * length - 1) * 0.5)
    made = sample(x, points, _METHODS[c.attr("mode", "linear")], c.attr("padding_mode", "zeros"), align)
    return ops.reshape(made, [n, channels, *wanted])


# --- regions of interest ---------------------------------------------------------------------------------------------


@translates("RoiAlign")
def _roi_align(c: Call) -> Any:
    """He et al., "Mask R-CNN" (arXiv 1703.06870), section 3; the numbers of samples a bin must be given."""
    x, rois, batch = c[0], c[1], c[2]
    per_bin = int(c.attr("sampling_ratio", 0))
    if per_bin < 1:
        raise GraphError(f"{c.what} with sampling_ratio 0, as many samples as the region is large, is not done")
    half = c.attr("coordinate_transformation_mode", "half_pixel") == "half_pixel" and c.opset >= 16
    bounds = rois * c.attr("spatial_scale", 1.0) - (0.5 if half else 0.0)
    _, channels, height, width = dims(x)
    bins = (c.attr("output_height", 1), c.attr("output_width", 1))
    lines = []
    for axis, (size, count) in enumerate(((height, bins[0]), (width, bins[1]))):
        first, last = bounds[:, 1 - axis], bounds[:, 3 - axis]
        extent = last - first if half else ops.maximum(last - first, number(1.0, rois))
        steps = (np.arange(count * per_bin) + 0.5) / (count * per_bin)
        lines.append((first[:, None] + extent[:, None] * number(steps, rois)[None, :], size))
    # Every row of samples with every column of them: (regions, samples).
    (y, _), (x_, _) = lines
    count_y, count_x = bins[0] * per_bin, bins[1] * per_bin
    regions = dims(rois)[0]
    shape = [regions, count_y * count_x]
    points = [
        ops.reshape(ops.broadcast_to(y[:, :, None], [regions, count_y, count_x]), shape),
        ops.reshape(ops.broadcast_to(x_[:, None, :], [regions, count_y, count_x]), shape),
    ]
    taps = [_region_taps(p, size) for p, size in zip(points, (height, width), strict=True)]
    flat = ops.take(ops.reshape(x, [dims(x)[0], channels, -1]), batch, axis=0)
    largest = c.attr("mode", "avg") == "max"
    parts = reduce(ops.maximum if largest else ops.add, _weighted(flat, taps, (height, width)))
    split = ops.reshape(parts, [regions, channels, bins[0], per_bin, bins[1], per_bin])
    return ops.max(split, axis=(3, 5)) if largest else ops.mean(split, axis=(3, 5))


def _region_taps(point: Tensor, size: Any) -> list[Tap]:
    """Linear taps; beyond one place outside nothing counts, nearer than that the border does."""
    length = _floating(size, point)
    counts = ops.logical_and(ops.greater_equal(point, number(-1, point)), ops.less_equal(point, length))
    kept = ops.astype(counts, point.dtype)
    inside = ops.minimum(ops.maximum(point, number(0, point)), length - 1)
    first = ops.floor(inside)
    distance = inside - first
    second = ops.minimum(first + 1, length - 1)
    return [(ops.astype(first, INT64), (1 - distance) * kept), (ops.astype(second, INT64), distance * kept)]


# --- convolution whose taps move -------------------------------------------------------------------------------------


@translates("DeformConv")
def _deform_conv(c: Call) -> Any:
    """Zhu et al., "Deformable ConvNets v2" (arXiv 1811.11168): offsets (n, groups · kernel · 2, h, w), and a mask."""
    x, w, offset = c[0], c[1], c[2]
    n, channels = dims(x)[:2]
    outputs, depth, kh, kw = (int(d or 0) for d in w.shape or ())
    groups, parts = c.attr("group", 1), c.attr("offset_group", 1)
    strides, dilations = c.attrs.get("strides") or [1, 1], c.attrs.get("dilations") or [1, 1]
    pads = c.attrs.get("pads") or [0] * 4
    height, width = dims(offset)[2:]
    offsets = ops.reshape(offset, [n, parts, kh * kw, 2, height, width])
    mask = c.get(4)
    places = []
    for axis, (size, kernel) in enumerate(((height, kh), (width, kw))):
        starts = ops.astype(ops.arange(size, dtype=INT64) * strides[axis] - pads[axis], x.dtype)
        spread = np.repeat(np.arange(kernel), kw) if axis == 0 else np.tile(np.arange(kernel), kh)
        moved = number(spread * dilations[axis], x)
        line = starts[:, None] if axis == 0 else starts[None, :]
        places.append(moved[:, None, None] + line)  # (kernel, h or 1, w or 1)
    points = [
        ops.reshape(offsets[:, :, :, axis] + places[axis], [n * parts, -1]) for axis in range(2)
    ]  # (n · parts, kernel · h · w)
    inner = channels // parts
    images = ops.reshape(x, [n * parts, inner, *dims(x)[2:]])
    read = ops.reshape(sample(images, points, "linear", "zeros", True), [n, parts, inner, kh * kw, height, width])
    if mask is not None:
        read = read * ops.reshape(mask, [n, parts, 1, kh * kw, height, width])
    columns = ops.reshape(read, [n, groups, depth * kh * kw, height * width])
    filters = ops.reshape(w, [groups, outputs // groups, depth * kh * kw])
    made = ops.reshape(ops.matmul(filters, columns), [n, outputs, height, width])
    bias = c.get(3)
    return made if bias is None else made + bias[:, None, None]


# --- blocks put back -------------------------------------------------------------------------------------------------


@translates("Col2Im")
def _col2im(c: Call) -> Any:
    """(n, channels · block, positions) → images in which each block is added where it was taken from."""
    x = c[0]
    image, block = [int(v) for v in c.known(1)], [int(v) for v in c.known(2)]
    rank = len(image)
    strides, dilations = c.attrs.get("strides") or [1] * rank, c.attrs.get("dilations") or [1] * rank
    pads = c.attrs.get("pads") or [0] * (2 * rank)
    padded = [d + pads[a] + pads[rank + a] for a, d in enumerate(image)]
    counts = [(p - (b - 1) * d - 1) // s + 1 for p, b, d, s in zip(padded, block, dilations, strides, strict=True)]
    where = np.zeros((1, 1), np.int64)
    for axis in range(rank):
        along = np.arange(block[axis])[:, None] * dilations[axis] + np.arange(counts[axis])[None, :] * strides[axis]
        grid = where[:, None, :, None] * padded[axis] + along[None, :, None, :]
        where = grid.reshape(where.shape[0] * block[axis], -1)
    n = dims(x)[0]
    size = int(np.prod(padded))
    channels = dims(x)[1] // int(np.prod(block))
    values = ops.reshape(x, [n, channels, where.size])
    made = ops.scatter_add(ops.zeros([n, channels, size], dtype=x.dtype), where.reshape(-1), values, axis=2)
    inner = tuple(slice(pads[a], pads[a] + d) for a, d in enumerate(image))
    return ops.reshape(made, [n, channels, *padded])[(slice(None), slice(None), *inner)]
