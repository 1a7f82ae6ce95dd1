"""Boxes in images: which of many to keep, and what is inside of each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nbflow import op
from nbflow.errors import GraphError, ShapeError
from nbflow.graph import Node, Tensor
from nbflow.op import Attrs, Cost
from nbflow.ops._build import INT64, ArrayLike, build, convert, require_kind
from nbflow.ops.conv import ranked
from nbflow.ops.manipulation import expand_dims
from nbflow.ops.nn import op_scope
from nbflow.ops.shape import shape_infer, shape_like
from nbflow.ops.windows import channels_of, check_layout, laid_out, many, places_of
from nbflow.spec import TensorSpec, format_shape, shape_accepts

Grads = Sequence[Tensor | None]

# --- non-max suppression ---------------------------------------------------------------------------------------------


def _nms_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    boxes, scores, limit, *thresholds = inputs
    require_kind(boxes, "f", "boxes are floating")
    require_kind(scores, "f", "scores are floating")
    require_kind(limit, "iu", "the number of boxes to keep is an integer")
    for threshold in thresholds:
        require_kind(threshold, "f", "a threshold is floating")
    if any(s.size not in (1, None) for s in (limit, *thresholds)):
        raise ShapeError("the number of boxes to keep and the thresholds are scalars")
    shape = boxes.shape
    if not shape_accepts((None, None, 4), shape) or not shape_accepts(
        (None if shape is None else shape[0], None, None if shape is None else shape[1]), scores.shape
    ):
        raise ShapeError(
            f"boxes are (n, boxes, 4) and scores (n, classes, boxes), not {format_shape(shape)} and "
            f"{format_shape(scores.shape)}"
        )
    return [TensorSpec((None, 3), INT64)]


def _nms_cost(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], attrs: Attrs) -> Cost:
    size = op.size_of(inputs[1])
    return Cost(16 * size * max(1.0, float(np.log2(size + 1))), op.nbytes_of(inputs))


op.define(
    "non_max_suppression",
    infer=_nms_infer,
    gradient=None,
    cost=_nms_cost,
    doc="(boxes (n, boxes, 4), scores (n, classes, boxes), most of a class to keep, threshold of overlap, threshold of "
    "score) → (kept, 3) int64: image, class, box; the best first in each class. attrs: centred (boxes are x, y of the "
    "centre, width, height; else two corners y, x, y, x).",
)


def non_max_suppression(
    boxes: ArrayLike,
    scores: ArrayLike,
    max_output_size: ArrayLike,
    iou_threshold: ArrayLike = 0.5,
    score_threshold: ArrayLike | None = None,
    centred: bool = False,
    *,
    name: str | None = None,
) -> Tensor:
    """The numbers of the boxes with the best scores that do not overlap a better one too much.

    - boxes (m, 4) and scores (m,) → (kept,) int64, best first.
    - boxes (n, m, 4) and scores (n, classes, m) → (kept, 3): image, class and box, each class by itself, as in ONNX.
    - A box is two opposite corners (y, x, y, x), or with `centred` (x, y, width, height) about its centre.
    - `max_output_size`: at most so many, of each class. `iou_threshold`: what is more than this part of the union in
      common with a kept box is left out. `score_threshold`: only boxes above it.

    How many are kept is known when it runs. Not differentiable. Raises ShapeError for other shapes.
    """
    places, marks = convert(boxes), convert(scores)
    if places.spec.rank not in (2, 3) or marks.spec.rank not in (places.spec.rank - 1 + (places.spec.rank == 3), None):
        raise ShapeError(
            f"non_max_suppression takes boxes (m, 4) and scores (m,), or (n, m, 4) and (n, classes, m), not "
            f"{format_shape(places.shape)} and {format_shape(marks.shape)}"
        )
    with op_scope(name, "non_max_suppression", places):
        single = places.spec.rank == 2
        if single:
            places, marks = expand_dims(places, axis=0), expand_dims(marks, axis=(0, 1))
        lowest = -np.inf if score_threshold is None else score_threshold
        limits = [convert(v, like=marks) for v in (iou_threshold, lowest)]
        kept = build(
            "non_max_suppression", (places, marks, convert(max_output_size), *limits), {"centred": bool(centred)}
        )
        return kept[:, 2] if single else kept


# --- what is inside --------------------------------------------------------------------------------------------------


def _require_boxes(x: TensorSpec, boxes: TensorSpec, ids: TensorSpec) -> None:
    require_kind(x, "f", "images are floating")
    require_kind(boxes, "f", "boxes are floating")
    require_kind(ids, "iu", "the images of the boxes are integers")
    number = None if ids.shape is None else ids.shape[:1]
    if not shape_accepts((None if number is None else number[0], 4), boxes.shape) or ids.rank not in (1, None):
        raise ShapeError(
            f"boxes are (m, 4) and the numbers of their images (m,), not {format_shape(boxes.shape)} and "
            f"{format_shape(ids.shape)}"
        )


def _roi_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    x, boxes, ids = inputs
    _require_boxes(x, boxes, ids)
    places_of(x.shape, attrs["data_format"])
    count = boxes.shape[0] if boxes.shape is not None else None
    channels = channels_of(x.shape, attrs["data_format"])
    return [TensorSpec(laid_out(count, attrs["size"], channels, attrs["data_format"]), x.dtype)]


def _roi_gradient(node: Node, grads: Grads) -> Grads:
    (dy,) = grads
    assert dy is not None  # the only output
    if node.attrs["mode"] != "avg":
        raise GraphError("roi_align has a gradient with mode 'avg' only", where=node.where)
    x, boxes, ids = node.inputs
    shape, vector = shape_like(x)
    return [build("roi_align_grad", (dy, boxes, ids, *vector), {**node.attrs, "shape": shape}), None, None]


def _roi_grad_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    dy, boxes, ids = inputs[:3]
    _require_boxes(dy, boxes, ids)
    return [TensorSpec(ranked(shape_infer(inputs[3:], attrs), attrs), dy.dtype)]


def _roi_grad_gradient(node: Node, grads: Grads) -> Grads:
    (v,) = grads
    assert v is not None  # the only output
    _, boxes, ids, *vector = node.inputs
    attrs = {k: a for k, a in node.attrs.items() if k != "shape"}
    return [build("roi_align", (v, boxes, ids), attrs), None, None, *[None for _ in vector]]


def _roi_cost(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], attrs: Attrs) -> Cost:
    return Cost(8 * op.size_of(outputs[0]), op.nbytes_of(inputs) + op.nbytes_of(outputs))


_ROI_ATTRS = "attrs: size, sampling, scale, half_pixel, mode, data_format"
op.define(
    "roi_align",
    infer=_roi_infer,
    gradient=_roi_gradient,
    cost=_roi_cost,
    doc=f"(images, boxes (m, 4), numbers of their images (m,)) → each box in `size` bins. {_ROI_ATTRS}.",
)
op.define(
    "roi_align_grad",
    infer=_roi_grad_infer,
    gradient=_roi_grad_gradient,
    cost=_roi_cost,
    doc=f"(dy, boxes, numbers[, shape of the images]) → the gradient for the images. {_ROI_ATTRS}, shape.",
)


def roi_align(
    images: ArrayLike,
    boxes: ArrayLike,
    box_ids: ArrayLike,
    size: int | Sequence[int],
    sampling: int = 0,
    scale: float = 1.0,
    half_pixel: bool = True,
    mode: str = "avg",
    data_format: str = "NHWC",
    *,
    name: str | None = None,
) -> Tensor:
    """Boxes of feature maps, each in `size` (height, width) bins. He et al., arXiv 1703.06870, section 3.

    - `boxes`: (m, 4): left, top, right, bottom, times `scale` in pixels of the images; `box_ids` (m,): their images.
    - A bin is the mean of `sampling`² bilinear samples; 0: as many as the bin has pixels.
    - `half_pixel`: the middle of the first pixel is 1/2; else 0, and boxes are at least one pixel large.
    - `mode` "max": the maximum over all samples of the four weighted pixels, as ONNX defines it; no gradient.

    Differentiable for the images. Raises ShapeError for other shapes.
    """
    if mode not in ("avg", "max"):
        raise GraphError(f"the mode of roi_align is 'avg' or 'max', not {mode!r}")
    if sampling < 0:
        raise GraphError(f"sampling is a number of samples, or 0, not {sampling}")
    image = convert(images)
    attrs = {
        "size": many(size, 2, "size"),
        "sampling": int(sampling),
        "scale": float(scale),
        "half_pixel": bool(half_pixel),
        "mode": mode,
        "data_format": check_layout(data_format, 2),
    }
    return build("roi_align", (image, convert(boxes), convert(box_ids)), attrs, name=name)
