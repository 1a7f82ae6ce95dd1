"""Boxes in images as ONNX nodes."""

from __future__ import annotations

import numpy as np

from nbflow.onnx.exporting.writer import INT64, Rules, Site
from nbflow.ops.windows import is_channels_first

RULES = Rules()
FLOAT = np.dtype(np.float32)


@RULES.writes("non_max_suppression")
def _non_max_suppression(s: Site, *inputs: str) -> str:
    boxes, scores, most, overlap, least = (
        s.cast(name, spec.dtype, INT64 if place == 2 else FLOAT)  # the third is a count
        for place, (name, spec) in enumerate(zip(inputs, s.specs, strict=True))
    )
    bounds = [s.reshape(v, [1]) for v in (most, overlap, least)]
    return s.add("NonMaxSuppression", boxes, scores, *bounds, center_point_box=int(s.attrs["centred"]))


@RULES.writes("roi_align")
def _roi_align(s: Site, images: str, boxes: str, ids: str) -> str:
    last = not is_channels_first(s.attrs["data_format"])
    height, width = s.attrs["size"]
    made = s.add(
        "RoiAlign",
        s.transpose(images, [0, 3, 1, 2]) if last else images,
        s.cast(boxes, s.specs[1].dtype, s.out.dtype),
        s.cast(ids, s.specs[2].dtype, INT64),
        mode=s.attrs["mode"],
        output_height=height,
        output_width=width,
        sampling_ratio=s.attrs["sampling"],
        spatial_scale=float(s.attrs["scale"]),
        coordinate_transformation_mode="half_pixel" if s.attrs["half_pixel"] else "output_half_pixel",
    )
    return s.transpose(made, [0, 2, 3, 1]) if last else made
