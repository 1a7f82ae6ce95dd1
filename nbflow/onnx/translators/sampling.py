"""Operators that read images between their places, or in pieces: GridSample, RoiAlign, DeformConv, Col2Im, boxes."""

from __future__ import annotations

from typing import Any

import numpy as np

from nbflow import ops
from nbflow.graph import Tensor
from nbflow.onnx.registry import Call, translates
from nbflow.onnx.translators.elementwise import dims, number
from nbflow.onnx.translators.windows import layout
from nbflow.ops._build import INT64
from nbflow.ops.boxes import non_max_suppression, roi_align
from nbflow.ops.patches import fold
from nbflow.ops.sampling import grid_sample

# The names of methods before opset 20, and since.
_METHODS = {"linear": "bilinear", "cubic": "bicubic"}


@translates("GridSample")
def _grid_sample(c: Call) -> Any:
    method = c.attr("mode", "linear")
    outside, align = c.attr("padding_mode", "zeros"), bool(c.attr("align_corners", 0))
    return grid_sample(c[0], c[1], _METHODS.get(method, method), outside, align, layout(c))


@translates("RoiAlign")
def _roi_align(c: Call) -> Any:
    # Before opset 16 there was no choice, and the middle of the first pixel was 0.
    half_pixel = c.opset >= 16 and c.attr("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    return roi_align(
        c[0],
        c[1],
        c[2],
        (c.attr("output_height", 1), c.attr("output_width", 1)),
        int(c.attr("sampling_ratio", 0)),
        c.attr("spatial_scale", 1.0),
        half_pixel,
        c.attr("mode", "avg"),
        "NCHW",
    )


@translates("NonMaxSuppression")
def _non_max_suppression(c: Call) -> Any:
    most: Any = 0 if c.get(2) is None else ops.reshape(c[2], ())
    overlap: Any = 0.0 if c.get(3) is None else ops.reshape(c[3], ())
    score: Any = None if c.get(4) is None else ops.reshape(c[4], ())
    return non_max_suppression(c[0], c[1], most, overlap, score, centred=bool(c.attr("center_point_box", 0)))


# --- convolution whose taps move -------------------------------------------------------------------------------------


@translates("DeformConv")
def _deform_conv(c: Call) -> Any:
    """Zhu et al., "Deformable ConvNets v2" (arXiv 1811.11168): offsets (n, groups · kernel · 2, h, w), and a mask."""
    x, w, offset = c[0], c[1], c[2]
    n, channels, *sizes = dims(x)
    outputs, depth, kh, kw = (int(d or 0) for d in w.shape or ())
    groups, parts = c.attr("group", 1), c.attr("offset_group", 1)
    height, width = dims(offset)[2:]
    offsets = ops.reshape(offset, [n, parts, kh * kw, 2, height, width])
    places = [offsets[:, :, :, axis] + taps for axis, taps in enumerate(_taps(c, x, (kh, kw), (height, width)))]
    # A grid goes from -1 at the middle of the first pixel to 1 at that of the last one, and has x before y.
    grid = ops.stack(
        [_normalised(place, size) for place, size in reversed(list(zip(places, sizes, strict=True)))], axis=-1
    )
    inner = channels // parts
    images = ops.reshape(x, [n * parts, inner, *sizes])
    grid = ops.reshape(grid, [n * parts, kh * kw * height, width, 2])
    read = grid_sample(images, grid, "bilinear", "zeros", True, "NCHW")
    read = ops.reshape(read, [n, parts, inner, kh * kw, height, width])
    mask = c.get(4)
    if mask is not None:
        read = read * ops.reshape(mask, [n, parts, 1, kh * kw, height, width])
    windows = ops.reshape(read, [n, groups, depth * kh * kw, height * width])
    filters = ops.reshape(w, [groups, outputs // groups, depth * kh * kw])
    made = ops.reshape(ops.matmul(filters, windows), [n, outputs, height, width])
    bias = c.get(3)
    return made if bias is None else made + bias[:, None, None]


def _taps(c: Call, x: Tensor, kernel: tuple[int, int], size: tuple[Any, Any]) -> list[Tensor]:
    """Where the taps are before they move, along each dimension: (kernel, h, 1) and (kernel, 1, w)."""
    strides, dilations = c.attrs.get("strides") or [1, 1], c.attrs.get("dilations") or [1, 1]
    pads = c.attrs.get("pads") or [0] * 4
    kh, kw = kernel
    found = []
    for axis, spread in enumerate((np.repeat(np.arange(kh), kw), np.tile(np.arange(kw), kh))):
        starts = ops.astype(ops.arange(size[axis], dtype=INT64) * strides[axis] - pads[axis], x.dtype)
        line = starts[:, None] if axis == 0 else starts[None, :]
        found.append(number(spread * dilations[axis], x)[:, None, None] + line)
    return found


def _normalised(place: Tensor, size: Any) -> Tensor:
    """Places of a dimension, in pixels, as a grid has them."""
    span = ops.astype(ops.maximum(size - 1, 1), place.dtype) if isinstance(size, Tensor) else max(size - 1, 1)
    return place * 2.0 / span - 1.0


# --- blocks put back -------------------------------------------------------------------------------------------------


@translates("Col2Im")
def _col2im(c: Call) -> Any:
    """(n, channels · block, positions) → images in which each block is added where it was taken from."""
    image, block = [int(v) for v in c.known(1)], [int(v) for v in c.known(2)]
    rank = len(image)
    pads = c.attrs.get("pads") or [0] * (2 * rank)
    return fold(
        c[0],
        image,
        block,
        c.attrs.get("strides") or 1,
        tuple(zip(pads[:rank], pads[rank:], strict=True)),
        {1: "NCW", 2: "NCHW", 3: "NCDHW"}[rank],
        c.attrs.get("dilations") or 1,
    )
