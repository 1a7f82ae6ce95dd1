"""Convolutions with learnt filters and a bias for each."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from nbflow import nn
from nbflow.errors import ShapeError
from nbflow.graph import Tensor
from nbflow.layers.common import (
    Activation,
    Initializer,
    activated,
    count,
    floating,
    layer_scope,
    weight_variable,
    zeros_variable,
)
from nbflow.ops import reshape
from nbflow.ops._build import ArrayLike
from nbflow.ops.conv import IntsLike, PaddingLike
from nbflow.ops.windows import channels_of, check_layout, is_channels_first, many
from nbflow.spec import format_shape


def conv1d(
    x: ArrayLike,
    filters: int,
    kernel_size: IntsLike,
    strides: IntsLike = 1,
    padding: PaddingLike = "SAME",
    activation: Activation | None = None,
    use_bias: bool = True,
    data_format: str = "NWC",
    dilation: IntsLike = 1,
    groups: int = 1,
    initializer: Initializer | None = None,
    *,
    name: str | None = None,
) -> Tensor:
    """Convolution of sequences with `filters` filters, plus a bias for each. See nf.nn.conv1d for the other arguments.

    Raises ShapeError when the number of channels is not known.
    """

    def made(tensor: Tensor, w: Tensor) -> Tensor:
        return nn.conv(tensor, w, strides, padding, data_format, dilation, groups)

    return _forward(1, x, filters, kernel_size, activation, use_bias, data_format, groups, initializer, name, made)


def conv2d(
    x: ArrayLike,
    filters: int,
    kernel_size: IntsLike,
    strides: IntsLike = 1,
    padding: PaddingLike = "SAME",
    activation: Activation | None = None,
    use_bias: bool = True,
    data_format: str = "NHWC",
    dilation: IntsLike = 1,
    groups: int = 1,
    initializer: Initializer | None = None,
    *,
    name: str | None = None,
) -> Tensor:
    """Convolution of images with `filters` filters, plus a bias for each. See nf.nn.conv2d for the other arguments.

    Raises ShapeError when the number of channels is not known.
    """

    def made(tensor: Tensor, w: Tensor) -> Tensor:
        return nn.conv(tensor, w, strides, padding, data_format, dilation, groups)

    return _forward(2, x, filters, kernel_size, activation, use_bias, data_format, groups, initializer, name, made)


def conv3d(
    x: ArrayLike,
    filters: int,
    kernel_size: IntsLike,
    strides: IntsLike = 1,
    padding: PaddingLike = "SAME",
    activation: Activation | None = None,
    use_bias: bool = True,
    data_format: str = "NDHWC",
    dilation: IntsLike = 1,
    groups: int = 1,
    initializer: Initializer | None = None,
    *,
    name: str | None = None,
) -> Tensor:
    """Convolution of volumes with `filters` filters, plus a bias for each. See nf.nn.conv3d for the other arguments.

    Raises ShapeError when the number of channels is not known.
    """

    def made(tensor: Tensor, w: Tensor) -> Tensor:
        return nn.conv(tensor, w, strides, padding, data_format, dilation, groups)

    return _forward(3, x, filters, kernel_size, activation, use_bias, data_format, groups, initializer, name, made)


def depthwise_conv2d(
    x: ArrayLike,
    kernel_size: IntsLike,
    multiplier: int = 1,
    strides: IntsLike = 1,
    padding: PaddingLike = "SAME",
    activation: Activation | None = None,
    use_bias: bool = True,
    data_format: str = "NHWC",
    dilation: IntsLike = 1,
    initializer: Initializer | None = None,
    *,
    name: str | None = None,
) -> Tensor:
    """Convolution of each channel with `multiplier` filters of its own. See nf.nn.depthwise_conv2d."""
    tensor = floating(x, "depthwise_conv2d")
    channels = _channels(tensor, data_format, 2, "depthwise_conv2d")
    filters = channels * count(multiplier, "multiplier")

    def made(image: Tensor, w: Tensor) -> Tensor:
        return nn.conv(image, w, strides, padding, data_format, dilation, channels)

    return _forward(
        2, tensor, filters, kernel_size, activation, use_bias, data_format, channels, initializer, name, made,
        "depthwise_conv2d",
    )  # fmt: skip


def conv_transpose2d(
    x: ArrayLike,
    filters: int,
    kernel_size: IntsLike,
    strides: IntsLike = 1,
    padding: PaddingLike = "SAME",
    activation: Activation | None = None,
    use_bias: bool = True,
    data_format: str = "NHWC",
    dilation: IntsLike = 1,
    output_padding: IntsLike = 0,
    initializer: Initializer | None = None,
    *,
    name: str | None = None,
) -> Tensor:
    """The way back of a convolution, to larger images of `filters` channels. See nf.nn.conv_transpose2d."""
    tensor = floating(x, "conv_transpose2d")
    channels = _channels(tensor, data_format, 2, "conv_transpose2d")
    with layer_scope(tensor, name, "conv_transpose2d"):
        kernel = many(kernel_size, 2, "kernel_size")
        shape = (*kernel, count(filters, "filters"), channels)
        fans = (prod(kernel) * channels, prod(kernel) * filters)
        w = weight_variable("weights", shape, tensor.dtype, *fans, initializer)
        y = nn.conv_transpose(tensor, w, strides, padding, data_format, dilation, output_padding=output_padding)
        return _finished(y, filters, 2, activation, use_bias, data_format)


def _channels(x: Tensor, data_format: str, n: int, layer: str) -> int:
    found = channels_of(x.shape, check_layout(data_format, n))
    if found is None:
        raise ShapeError(
            f"{layer} needs the number of channels of {x.name}, {format_shape(x.shape)}", where=x.node.where
        )
    return found


def _forward(
    n: int,
    x: ArrayLike,
    filters: int,
    kernel_size: IntsLike,
    activation: Activation | None,
    use_bias: bool,
    data_format: str,
    groups: int,
    initializer: Initializer | None,
    name: str | None,
    made: Callable[[Tensor, Tensor], Tensor],
    kind: str | None = None,
) -> Tensor:
    """A convolution over `n` dimensions, `made` of the images and the filters."""
    layer = kind or f"conv{n}d"
    tensor = floating(x, layer)
    with layer_scope(tensor, name, layer):
        channels = _channels(tensor, data_format, n, layer)
        if groups < 1 or channels % groups:
            raise ShapeError(f"{channels} channels do not divide into {groups} groups")
        kernel = many(kernel_size, n, "kernel_size")
        shape = (*kernel, channels // groups, count(filters, "filters"))
        fans = (prod(kernel) * shape[-2], prod(kernel) * filters // groups)
        w = weight_variable("weights", shape, tensor.dtype, *fans, initializer)
        return _finished(made(tensor, w.to_tensor()), filters, n, activation, use_bias, data_format)


def _finished(
    y: Tensor, filters: int, n: int, activation: Activation | None, use_bias: bool, data_format: str
) -> Tensor:
    if use_bias:
        bias = zeros_variable("bias", (filters,), y.dtype)
        y = y + (reshape(bias, (filters, *[1] * n)) if is_channels_first(data_format) else bias)
    return activated(y, activation)
