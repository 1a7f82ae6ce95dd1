"""Convolution and pooling of images, forward and backward.

Images are (n, height, width, channels), or (n, channels, height, width) with data_format "NCHW"; filters are
(height, width, channels / groups, outputs) with either. The gradients of a convolution are convolutions, so the three
ops here are closed under differentiation: y = conv(x, w) is linear in both, dx = input_grad(dy, w),
dw = filter_grad(x, dy), and each gradient of those two is one of the three again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nbflow import op
from nbflow.errors import DTypeError, GraphError, ShapeError
from nbflow.graph import Node, Tensor
from nbflow.op import Attrs, Cost
from nbflow.ops._build import ArrayLike, build, convert, promote
from nbflow.ops.shape import shape_infer, shape_like
from nbflow.ops.windows import (
    Padding,
    check_layout,
    check_padding,
    pair,
    to_nhwc,
    window_output,
)
from nbflow.spec import Dim, Shape, TensorSpec, format_shape, kind_of

Grads = Sequence[Tensor | None]
PairLike = int | Sequence[int]
PaddingLike = str | Sequence[Sequence[int]]


# --- conv2d ----------------------------------------------------------------------------------------------------------


def _filter_dims(shape: Shape) -> tuple[Dim, Dim, Dim, Dim]:
    if shape is None:
        return (None, None, None, None)
    if len(shape) != 4:
        raise ShapeError(f"filters are (height, width, channels / groups, outputs), got {format_shape(shape)}")
    return (shape[0], shape[1], shape[2], shape[3])


def _floating(*specs: TensorSpec) -> Any:
    found = promote(*(s.dtype for s in specs))
    if kind_of(found) != "f":
        raise DTypeError(f"images and filters are floating, not {found}; use nf.astype first")
    return found


def _conv_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    x, w = inputs[0], inputs[1]
    kh, kw, depth, outputs = _filter_dims(w.shape)
    (_, _, _, channels), shape = window_output(x.shape, (kh, kw), outputs, attrs)
    groups = attrs["groups"]
    if channels is not None and depth is not None and channels != depth * groups:
        raise ShapeError(
            f"images {format_shape(x.shape)} ({attrs['data_format']}) have {channels} channels, filters "
            f"{format_shape(w.shape)} in {groups} groups take {depth * groups}"
        )
    if outputs is not None and outputs % groups:
        raise ShapeError(f"{outputs} outputs do not divide into {groups} groups")
    return [TensorSpec(shape if x.shape is not None else (None,) * 4, _floating(x, w))]


def _conv_cost(result: int, filters: int) -> op.CostRule:
    """2 · (elements of the result) · (elements of one output's filter) flops; both found among inputs and outputs."""

    def cost(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], attrs: Attrs) -> Cost:
        specs = {**dict(enumerate(inputs)), -1: outputs[0]}
        dims = _filter_dims(specs[filters].shape)
        one = op.size_of(specs[filters]) / max(op.UNKNOWN_DIM if dims[3] is None else dims[3], 1)
        return Cost(2 * op.size_of(specs[result]) * one, op.nbytes_of(inputs) + op.nbytes_of(outputs))

    return cost


def _conv_gradient(node: Node, grads: Grads) -> Grads:
    x, w = node.inputs
    (dy,) = grads
    assert dy is not None  # the only output
    return [_input_grad(dy, w, x, node.attrs), _filter_grad(x, dy, w, node.attrs)]


def _input_grad(dy: Tensor, w: Tensor, like: Tensor, attrs: Attrs) -> Tensor:
    shape, vector = shape_like(like)
    return build("conv2d_input_grad", (dy, w, *vector), {**attrs, "shape": shape})


def _filter_grad(x: Tensor, dy: Tensor, like: Tensor, attrs: Attrs) -> Tensor:
    shape, vector = shape_like(like)
    return build("conv2d_filter_grad", (x, dy, *vector), {**attrs, "shape": shape})


def _conv(x: Tensor, w: Tensor, attrs: Attrs) -> Tensor:
    return build("conv2d", (x, w), {k: v for k, v in attrs.items() if k != "shape"})


def _input_grad_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    shape = shape_infer(inputs[2:], attrs)
    return [TensorSpec(_four(shape), _floating(inputs[0], inputs[1]))]


def _four(shape: Shape) -> Shape:
    return (None,) * 4 if shape is None else shape


def _input_grad_gradient(node: Node, grads: Grads) -> Grads:
    dy, w, *vector = node.inputs
    (v,) = grads
    assert v is not None  # the only output
    return [_conv(v, w, node.attrs), _filter_grad(v, dy, w, node.attrs), *[None for _ in vector]]


def _filter_grad_gradient(node: Node, grads: Grads) -> Grads:
    x, dy, *vector = node.inputs
    (v,) = grads
    assert v is not None  # the only output
    return [_input_grad(dy, v, x, node.attrs), _conv(x, v, node.attrs), *[None for _ in vector]]


_CONV_ATTRS = "attrs: strides, padding, data_format, dilation, groups"

op.define(
    "conv2d",
    infer=_conv_infer,
    gradient=_conv_gradient,
    cost=_conv_cost(-1, 1),
    out=True,
    doc=f"(images, filters) → the correlation of each window with each filter. {_CONV_ATTRS}.",
)
op.define(
    "conv2d_input_grad",
    infer=_input_grad_infer,
    gradient=_input_grad_gradient,
    cost=_conv_cost(0, 1),
    doc=f"(gradient of conv2d's output, filters[, shape of the images]) → gradient of the images. "
    f"{_CONV_ATTRS}, shape.",
)
op.define(
    "conv2d_filter_grad",
    infer=_input_grad_infer,
    gradient=_filter_grad_gradient,
    cost=_conv_cost(1, -1),
    doc=f"(images, gradient of conv2d's output[, shape of the filters]) → gradient of the filters. "
    f"{_CONV_ATTRS}, shape.",
)


def conv2d(
    x: ArrayLike,
    w: ArrayLike,
    strides: PairLike = 1,
    padding: PaddingLike = "SAME",
    data_format: str = "NHWC",
    dilation: PairLike = 1,
    groups: int = 1,
    *,
    name: str | None = None,
) -> Tensor:
    """The correlation of images with filters: (n, h, w, channels) and (kh, kw, channels / groups, outputs).

    `padding` is "SAME" (ceil(size / stride) outputs), "VALID" (windows inside the image only) or
    ((top, bottom), (left, right)). With `groups`, each part of the channels has its own filters. Raises ShapeError when
    channels or sizes do not fit.
    """
    if groups < 1:
        raise GraphError(f"groups is a positive integer, not {groups}")
    image = convert(x)
    attrs = {
        "strides": pair(strides, "strides"),
        "padding": check_padding(padding),
        "data_format": check_layout(data_format),
        "dilation": pair(dilation, "dilation"),
        "groups": int(groups),
    }
    return build("conv2d", (image, convert(w, like=image)), attrs, name=name)


def depthwise_conv2d(
    x: ArrayLike,
    w: ArrayLike,
    strides: PairLike = 1,
    padding: PaddingLike = "SAME",
    data_format: str = "NHWC",
    dilation: PairLike = 1,
    *,
    name: str | None = None,
) -> Tensor:
    """Each channel with its own filters: (n, h, w, channels) and (kh, kw, 1, channels · multiplier).

    Outputs c · multiplier to (c + 1) · multiplier - 1 come from channel c. It is conv2d with as many groups as
    channels, so their number must be known. Raises ShapeError when it is not.
    """
    image = convert(x)
    channels = to_nhwc(image.shape, check_layout(data_format))[3]
    if channels is None:
        raise ShapeError(f"depthwise_conv2d needs the number of channels of {image.name}, {format_shape(image.shape)}")
    return conv2d(image, w, strides, padding, data_format, dilation, channels, name=name)


# --- pooling ---------------------------------------------------------------------------------------------------------


def _pool_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    x = inputs[0]
    if kind_of(x.dtype) not in "iuf":
        raise DTypeError(f"pooling takes real numbers, not {x.dtype}")
    channels = to_nhwc(x.shape, attrs["data_format"])[3]
    _, shape = window_output(x.shape, attrs["window"], channels, attrs)
    return [TensorSpec(shape, x.dtype)]


def _average_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    _floating(inputs[0])
    return _pool_infer(inputs, attrs)


def _pool_cost(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], attrs: Attrs) -> Cost:
    window = attrs["window"][0] * attrs["window"][1]
    small = min(op.size_of(s) for s in (inputs[0], outputs[0]))
    return Cost(window * small, op.nbytes_of(inputs) + op.nbytes_of(outputs))


def _max_gradient(node: Node, grads: Grads) -> Grads:
    (dy,) = grads
    assert dy is not None  # the only output
    return [build("max_pool2d_grad", (dy, node.inputs[0], node.outputs[0]), node.attrs)]


def _max_grad_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    return [TensorSpec(_four(inputs[1].shape), inputs[0].dtype)]


def _max_grad_gradient(node: Node, grads: Grads) -> Grads:
    """Linear in dy; which pixel is the maximum does not change with x, but for ties."""
    (v,) = grads
    assert v is not None  # the only output
    return [build("max_pool2d_pick", (v, *node.inputs[1:]), node.attrs), None, None]


def _max_pick_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    return [TensorSpec(_four(inputs[2].shape), inputs[0].dtype)]


def _max_pick_gradient(node: Node, grads: Grads) -> Grads:
    (dy,) = grads
    assert dy is not None  # the only output
    return [build("max_pool2d_grad", (dy, *node.inputs[1:]), node.attrs), None, None]


def _average_gradient(node: Node, grads: Grads) -> Grads:
    (dy,) = grads
    assert dy is not None  # the only output
    shape, vector = shape_like(node.inputs[0])
    return [build("avg_pool2d_grad", (dy, *vector), {**node.attrs, "shape": shape})]


def _average_grad_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    return [TensorSpec(_four(shape_infer(inputs[1:], attrs)), inputs[0].dtype)]


def _average_grad_gradient(node: Node, grads: Grads) -> Grads:
    (v,) = grads
    assert v is not None  # the only output
    attrs = {k: a for k, a in node.attrs.items() if k != "shape"}
    return [build("avg_pool2d", (v,), attrs), *[None for _ in node.inputs[1:]]]


_POOL_ATTRS = "attrs: window, strides, padding, data_format, dilation"

op.define(
    "max_pool2d",
    infer=_pool_infer,
    gradient=_max_gradient,
    cost=_pool_cost,
    out=True,
    doc=f"The maximum of each window. {_POOL_ATTRS}.",
)
op.define(
    "max_pool2d_grad",
    infer=_max_grad_infer,
    gradient=_max_grad_gradient,
    cost=_pool_cost,
    doc=f"(dy, x, y = max_pool2d(x)) → each dy where its window's first maximum is. {_POOL_ATTRS}.",
)
op.define(
    "max_pool2d_pick",
    infer=_max_pick_infer,
    gradient=_max_pick_gradient,
    cost=_pool_cost,
    doc=f"(v, x, y = max_pool2d(x)) → v where each window's first maximum is: max_pool2d_grad, transposed. "
    f"{_POOL_ATTRS}.",
)
op.define(
    "avg_pool2d",
    infer=_average_infer,
    gradient=_average_gradient,
    cost=_pool_cost,
    out=True,
    doc=f"The mean of each window's pixels, padding not counted. {_POOL_ATTRS}.",
)
op.define(
    "avg_pool2d_grad",
    infer=_average_grad_infer,
    gradient=_average_grad_gradient,
    cost=_pool_cost,
    doc=f"(dy[, shape of the images]) → dy in equal parts to the pixels averaged. {_POOL_ATTRS}, shape.",
)


def _pool_attrs(window: PairLike, strides: PairLike | None, padding: PaddingLike, data_format: str) -> dict[str, Any]:
    size = pair(window, "window")
    checked: Padding = check_padding(padding)
    if isinstance(checked, tuple) and any(max(checked[axis]) >= size[axis] for axis in (0, 1)):
        raise GraphError(f"padding {checked} is as large as the window {size}: some windows would hold no pixel")
    return {
        "window": size,
        "strides": size if strides is None else pair(strides, "strides"),
        "padding": checked,
        "data_format": check_layout(data_format),
        "dilation": (1, 1),
    }


def max_pool2d(
    x: ArrayLike,
    window: PairLike,
    strides: PairLike | None = None,
    padding: PaddingLike = "VALID",
    data_format: str = "NHWC",
    *,
    name: str | None = None,
) -> Tensor:
    """The maximum of each window of the images; `strides` default to the window."""
    return build("max_pool2d", (convert(x),), _pool_attrs(window, strides, padding, data_format), name=name)


def avg_pool2d(
    x: ArrayLike,
    window: PairLike,
    strides: PairLike | None = None,
    padding: PaddingLike = "VALID",
    data_format: str = "NHWC",
    *,
    name: str | None = None,
) -> Tensor:
    """The mean of each window of the images, padding not counted; `strides` default to the window."""
    return build("avg_pool2d", (convert(x),), _pool_attrs(window, strides, padding, data_format), name=name)
