"""Convolution over one, two or three dimensions, forward and backward.

Examples are (n, *places, channels), or (n, channels, *places) with a layout such as "NCHW"; filters are
(*kernel, channels / groups, outputs) with either. The gradients of a convolution are convolutions, so the three ops
here are closed under differentiation: y = conv(x, w) is linear in both, dx = input_grad(dy, w),
dw = filter_grad(x, dy), and each gradient of those two is one of the three again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nbflow import op
from nbflow.errors import DTypeError, GraphError, ShapeError
from nbflow.graph import Node, Tensor
from nbflow.op import Attrs, Cost
from nbflow.ops._build import ArrayLike, build, convert, promote
from nbflow.ops.shape import shape_infer, shape_like
from nbflow.ops.windows import channels_of, check_layout, check_padding, layout_of, many, window_output
from nbflow.spec import Dim, Shape, TensorSpec, format_shape, kind_of

Grads = Sequence[Tensor | None]
IntsLike = int | Sequence[int]
PaddingLike = str | Sequence[int] | Sequence[Sequence[int]]


def _only(grads: Grads) -> Tensor:
    (grad,) = grads
    assert grad is not None  # the only output of the op
    return grad


def floating(*specs: TensorSpec) -> np.dtype[Any]:
    """The dtype of the result. Raises DTypeError unless it is floating."""
    found = promote(*(s.dtype for s in specs))
    if kind_of(found) != "f":
        raise DTypeError(f"images and filters are floating, not {found}; use nf.astype first")
    return found


# --- rules -----------------------------------------------------------------------------------------------------------


def _filter_dims(shape: Shape, n: int) -> tuple[Dim, ...]:
    if shape is None:
        return (None,) * (n + 2)
    if len(shape) != n + 2:
        raise ShapeError(
            f"filters of {n} dimensions are ({n} sizes, channels / groups, outputs), got {format_shape(shape)}"
        )
    return shape


def _conv_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    x, w = inputs[0], inputs[1]
    *kernel, depth, outputs = _filter_dims(w.shape, len(attrs["strides"]))
    shape = window_output(x.shape, kernel, outputs, attrs)
    channels, groups = channels_of(x.shape, attrs["data_format"]), attrs["groups"]
    if channels is not None and depth is not None and channels != depth * groups:
        raise ShapeError(
            f"images {format_shape(x.shape)} ({attrs['data_format']}) have {channels} channels, filters "
            f"{format_shape(w.shape)} in {groups} groups take {depth * groups}"
        )
    if outputs is not None and outputs % groups:
        raise ShapeError(f"{outputs} outputs of filters {format_shape(w.shape)} do not divide into {groups} groups")
    return [TensorSpec(shape, floating(x, w))]


def _conv_cost(result: int, filters: int) -> op.CostRule:
    """2 · (elements of the result) · (elements of one output's filter) flops; both found among inputs and outputs."""

    def cost(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], attrs: Attrs) -> Cost:
        specs = {**dict(enumerate(inputs)), -1: outputs[0]}
        last = _filter_dims(specs[filters].shape, len(attrs["strides"]))[-1]
        one = op.size_of(specs[filters]) / max(op.UNKNOWN_DIM if last is None else last, 1)
        return Cost(2 * op.size_of(specs[result]) * one, op.nbytes_of(inputs) + op.nbytes_of(outputs))

    return cost


def _conv_gradient(node: Node, grads: Grads) -> Grads:
    x, w = node.inputs
    dy = _only(grads)
    return [input_grad(dy, w, x, node.attrs), _filter_grad(x, dy, w, node.attrs)]


def input_grad(dy: Tensor, w: Tensor, like: Tensor, attrs: Attrs) -> Tensor:
    """The gradient for the images `like` of conv with `attrs`."""
    shape, vector = shape_like(like)
    return build("conv_input_grad", (dy, w, *vector), {**attrs, "shape": shape})


def _filter_grad(x: Tensor, dy: Tensor, like: Tensor, attrs: Attrs) -> Tensor:
    shape, vector = shape_like(like)
    return build("conv_filter_grad", (x, dy, *vector), {**attrs, "shape": shape})


def _conv(x: Tensor, w: Tensor, attrs: Attrs) -> Tensor:
    return build("conv", (x, w), {k: v for k, v in attrs.items() if k != "shape"})


def ranked(shape: Shape, attrs: Attrs) -> Shape:
    """`shape`, whose number of dimensions the layout tells."""
    return (None,) * len(attrs["data_format"]) if shape is None else shape


def _grad_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    return [TensorSpec(ranked(shape_infer(inputs[2:], attrs), attrs), floating(inputs[0], inputs[1]))]


def _input_grad_gradient(node: Node, grads: Grads) -> Grads:
    dy, w, *vector = node.inputs
    v = _only(grads)
    return [_conv(v, w, node.attrs), _filter_grad(v, dy, w, node.attrs), *[None for _ in vector]]


def _filter_grad_gradient(node: Node, grads: Grads) -> Grads:
    x, dy, *vector = node.inputs
    v = _only(grads)
    return [input_grad(dy, v, x, node.attrs), _conv(x, v, node.attrs), *[None for _ in vector]]


_ATTRS = "attrs: strides, padding, data_format, dilation, groups"

op.define(
    "conv",
    infer=_conv_infer,
    gradient=_conv_gradient,
    cost=_conv_cost(-1, 1),
    out=True,
    doc=f"(images, filters) → the correlation of each window with each filter, over 1, 2 or 3 dimensions. {_ATTRS}.",
)
op.define(
    "conv_input_grad",
    infer=_grad_infer,
    gradient=_input_grad_gradient,
    cost=_conv_cost(0, 1),
    doc=f"(gradient of conv's output, filters[, shape of the images]) → gradient of the images. {_ATTRS}, shape.",
)
op.define(
    "conv_filter_grad",
    infer=_grad_infer,
    gradient=_filter_grad_gradient,
    cost=_conv_cost(1, -1),
    doc=f"(images, gradient of conv's output[, shape of the filters]) → gradient of the filters. {_ATTRS}, shape.",
)


# --- functions -------------------------------------------------------------------------------------------------------


def conv(
    x: ArrayLike,
    w: ArrayLike,
    strides: IntsLike = 1,
    padding: PaddingLike = "SAME",
    data_format: str | None = None,
    dilation: IntsLike = 1,
    groups: int = 1,
    *,
    name: str | None = None,
) -> Tensor:
    """The correlation of images with filters over one, two or three dimensions, the places.

    - x: (n, *places, channels), or as `data_format` says: NWC, NCW, NHWC, NCHW, NDHWC, NCDHW.
    - w: (*kernel, channels / groups, outputs), with any layout of x.
    - `padding`: "SAME" (ceil(size / stride) outputs, the odd place of padding behind), "SAME_LOWER" (before), "VALID"
      (windows inside only) or a pair (before, after) for each dimension.
    - `groups`: each part of the channels has its own filters.

    Raises ShapeError when channels or sizes do not fit, GraphError for arguments that have no meaning.
    """
    image = convert(x)
    filters = convert(w, like=image)
    layout, n = layout_of(data_format, (image.spec.rank, filters.spec.rank), "conv")
    return build("conv", (image, filters), conv_attrs(layout, n, strides, padding, dilation, groups), name=name)


def conv_attrs(
    layout: str, n: int, strides: IntsLike, padding: PaddingLike, dilation: IntsLike, groups: int
) -> dict[str, Any]:
    """The attributes that all ops of this file have. Raises GraphError for what has no meaning."""
    if not isinstance(groups, (int, np.integer)) or groups < 1:
        raise GraphError(f"groups is a positive integer, not {groups!r}")
    return {
        "strides": many(strides, n, "strides"),
        "padding": check_padding(padding, n),
        "data_format": layout,
        "dilation": many(dilation, n, "dilation"),
        "groups": int(groups),
    }


def conv1d(
    x: ArrayLike,
    w: ArrayLike,
    stride: IntsLike = 1,
    padding: PaddingLike = "SAME",
    data_format: str = "NWC",
    dilation: IntsLike = 1,
    groups: int = 1,
    *,
    name: str | None = None,
) -> Tensor:
    """The correlation of sequences with filters: (n, width, channels) and (kw, channels / groups, outputs).

    `padding`: "SAME", "VALID" or (left, right), so (kw - 1, 0) is causal. The rest as in conv.
    """
    return _of(1, x, w, stride, padding, data_format, dilation, groups, name)


def conv2d(
    x: ArrayLike,
    w: ArrayLike,
    strides: IntsLike = 1,
    padding: PaddingLike = "SAME",
    data_format: str = "NHWC",
    dilation: IntsLike = 1,
    groups: int = 1,
    *,
    name: str | None = None,
) -> Tensor:
    """The correlation of images with filters: (n, h, w, channels) and (kh, kw, channels / groups, outputs).

    Explicit padding is ((top, bottom), (left, right)). The rest as in conv.
    """
    return _of(2, x, w, strides, padding, data_format, dilation, groups, name)


def conv3d(
    x: ArrayLike,
    w: ArrayLike,
    strides: IntsLike = 1,
    padding: PaddingLike = "SAME",
    data_format: str = "NDHWC",
    dilation: IntsLike = 1,
    groups: int = 1,
    *,
    name: str | None = None,
) -> Tensor:
    """The correlation of volumes with filters: (n, d, h, w, channels) and (kd, kh, kw, channels / groups, outputs).

    Explicit padding is a pair for depth, height and width each. The rest as in conv.
    """
    return _of(3, x, w, strides, padding, data_format, dilation, groups, name)


def _of(
    n: int,
    x: ArrayLike,
    w: ArrayLike,
    strides: IntsLike,
    padding: PaddingLike,
    data_format: str,
    dilation: IntsLike,
    groups: int,
    name: str | None,
) -> Tensor:
    image = convert(x)
    attrs = conv_attrs(check_layout(data_format, n), n, strides, padding, dilation, groups)
    return build("conv", (image, convert(w, like=image)), attrs, name=name)


def depthwise_conv(
    x: ArrayLike,
    w: ArrayLike,
    strides: IntsLike = 1,
    padding: PaddingLike = "SAME",
    data_format: str | None = None,
    dilation: IntsLike = 1,
    *,
    name: str | None = None,
) -> Tensor:
    """Each channel with its own filters: (n, *places, channels) and (*kernel, 1, channels · multiplier).

    Outputs c · multiplier to (c + 1) · multiplier - 1 come from channel c. It is conv with as many groups as channels,
    so their number must be known. Raises ShapeError when it is not.
    """
    image = convert(x)
    filters = convert(w, like=image)
    layout, _ = layout_of(data_format, (image.spec.rank, filters.spec.rank), "depthwise_conv")
    channels = channels_of(image.shape, layout)
    if channels is None:
        raise ShapeError(
            f"a depthwise convolution needs the number of channels of {image.name}, {format_shape(image.shape)}",
            where=image.node.where,
        )
    return conv(image, filters, strides, padding, layout, dilation, channels, name=name)


def depthwise_conv2d(
    x: ArrayLike,
    w: ArrayLike,
    strides: IntsLike = 1,
    padding: PaddingLike = "SAME",
    data_format: str = "NHWC",
    dilation: IntsLike = 1,
    *,
    name: str | None = None,
) -> Tensor:
    """Each channel with its own filters: (n, h, w, channels) and (kh, kw, 1, channels · multiplier).

    See depthwise_conv.
    """
    return depthwise_conv(x, w, strides, padding, check_layout(data_format, 2), dilation, name=name)
