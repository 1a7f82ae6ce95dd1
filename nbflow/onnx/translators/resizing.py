"""Resize and Upsample."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from nbflow import ops
from nbflow.onnx.registry import Call, translates
from nbflow.ops.resizing import resample
from nbflow.spec import kind_of, normalize_axis


@translates("Resize", since=11)
def _resize(c: Call) -> Any:
    x, rank = c[0], c.rank()
    axes = [normalize_axis(a, rank) for a in c.attrs.get("axes") or range(rank)]
    coordinates = c.attr("coordinate_transformation_mode", "half_pixel")
    scales, sizes = _given(c, 2), _given(c, 3)
    if sizes is not None and c.attr("keep_aspect_ratio_policy", "stretch") != "stretch":
        sizes = _kept_ratio(c, axes)
    roi = _given(c, 1) if coordinates == "tf_crop_and_resize" else None
    if isinstance(roi, np.ndarray):
        roi = roi.tolist()
    # Dimensions that stay as they are need no interpolation, except that a crop has its own bounds for each.
    if isinstance(scales, np.ndarray) and sizes is None and roi is None:
        kept = [n for n, s in enumerate(scales) if s != 1]
        axes, scales = [axes[n] for n in kept], scales[kept]
        if not axes:
            return ops.identity(x)
    integers = kind_of(x.dtype) in "iu" and c.attr("mode", "nearest") != "nearest"
    made = resample(
        ops.astype(x, "float32") if integers else x,
        axes,
        sizes,
        None if sizes is not None else scales,
        roi,
        method=c.attr("mode", "nearest"),
        coordinates=coordinates,
        rounding=c.attr("nearest_mode", "round_prefer_floor"),
        cubic=c.attr("cubic_coeff_a", -0.75),
        exclude_outside=bool(c.attr("exclude_outside", 0)),
        antialias=bool(c.attr("antialias", 0)),
        outside=c.attr("extrapolation_value", 0.0),
    )
    return ops.astype(made, x.dtype) if integers else made


def _given(c: Call, index: int) -> Any:
    """Input `index`: an array where it is known, else the tensor; None when it is left out or empty."""
    tensor = c.get(index)
    if tensor is None or tensor.shape == (0,):
        return None
    known = c.static(index)
    return tensor if known is None else known


def _kept_ratio(c: Call, axes: list[int]) -> Any:
    wanted, shape = c.known(3), c[0].shape or ()
    if any(shape[a] is None for a in axes):
        raise c.needs(c[0], "the size")
    ratios = [int(size) / int(shape[a] or 1) for size, a in zip(wanted, axes, strict=True)]
    scale = min(ratios) if c.attrs["keep_aspect_ratio_policy"] == "not_larger" else max(ratios)
    return np.array([math.floor(scale * int(shape[a] or 0) + 0.5) for a in axes], np.int64)


@translates("Upsample", "Resize")
def _upsample(c: Call) -> Any:
    """Before opset 11: place i of the result lies at i / scale, and the place below it is the nearest."""
    scales: Any = np.array(c.attrs["scales"], np.float32) if "scales" in c.attrs else _given(c, 1)
    if "width_scale" in c.attrs:  # opset 1
        scales = np.array([1, 1, c.attrs["height_scale"], c.attrs["width_scale"]], np.float32)
    axes = list(range(c.rank()))
    if isinstance(scales, np.ndarray):
        kept = [n for n, s in enumerate(scales) if s != 1]
        axes, scales = [axes[n] for n in kept], scales[kept]
        if not axes:
            return ops.identity(c[0])
    method = c.attr("mode", "nearest").replace("bilinear", "linear")
    return resample(c[0], axes, None, scales, method=method, coordinates="asymmetric", rounding="floor")
