"""Colours of images: channels last, numbers from 0 (dark) to 1 (bright). All are made of other ops."""

from __future__ import annotations

import math

import numpy as np

from nbflow.errors import ShapeError
from nbflow.graph import Tensor
from nbflow.ops._build import ArrayLike, convert, require_kind
from nbflow.ops.comparison import clip, equal, greater, maximum, where
from nbflow.ops.elementwise import abs, pow, remainder, sqrt, square
from nbflow.ops.joining import concat, stack
from nbflow.ops.linalg import matmul
from nbflow.ops.nn import op_scope
from nbflow.ops.reduction import max, mean, min
from nbflow.spec import format_shape

# Luma of ITU-R BT.601, section 2.5.1.
_LUMA = (0.299, 0.587, 0.114)


def _colours(images: ArrayLike, channels: int = 3) -> Tensor:
    tensor = convert(images)
    require_kind(tensor.spec, "f", "colours are floating numbers from 0 to 1")
    if tensor.shape is not None and (not tensor.shape or tensor.shape[-1] not in (None, channels)):
        raise ShapeError(
            f"colours are {channels} channels in the last dimension, not {format_shape(tensor.shape)}",
            where=tensor.node.where,
        )
    return tensor


def rgb_to_grayscale(images: ArrayLike, *, name: str | None = None) -> Tensor:
    """(…, 3) → (…, 1): 0.299 red + 0.587 green + 0.114 blue (ITU-R BT.601)."""
    tensor = _colours(images)
    with op_scope(name, "rgb_to_grayscale", tensor):
        return matmul(tensor, convert(np.array(_LUMA).reshape(3, 1).astype(tensor.dtype)))


def grayscale_to_rgb(images: ArrayLike, *, name: str | None = None) -> Tensor:
    """(…, 1) → (…, 3): three times the same."""
    tensor = _colours(images, 1)
    with op_scope(name, "grayscale_to_rgb", tensor):
        return concat([tensor, tensor, tensor], axis=-1)


def rgb_to_hsv(images: ArrayLike, *, name: str | None = None) -> Tensor:
    """Red, green, blue → hue, saturation, value, all from 0 to 1. Smith, SIGGRAPH 1978."""
    tensor = _colours(images)
    with op_scope(name, "rgb_to_hsv", tensor):
        red, green, blue = tensor[..., 0], tensor[..., 1], tensor[..., 2]
        value = max(tensor, axis=-1)
        chroma = value - min(tensor, axis=-1)
        coloured = greater(chroma, 0)
        # Grey has no hue: 0. The divisors are 1 there, so that neither value nor slope is NaN.
        divisor = where(coloured, chroma, 1.0)
        from_green = (blue - red) / divisor + 2.0
        from_blue = (red - green) / divisor + 4.0
        sixths = where(
            equal(value, red),
            remainder((green - blue) / divisor, 6.0),
            where(equal(value, green), from_green, from_blue),
        )
        hue = where(coloured, sixths / 6.0, 0.0)
        saturation = where(coloured, chroma / where(coloured, value, 1.0), 0.0)
        return stack([hue, saturation, value], axis=-1)


def hsv_to_rgb(images: ArrayLike, *, name: str | None = None) -> Tensor:
    """The way back from rgb_to_hsv."""
    tensor = _colours(images)
    with op_scope(name, "hsv_to_rgb", tensor):
        hue, saturation, value = tensor[..., 0], tensor[..., 1], tensor[..., 2]
        channels = []
        for offset in (0.0, 4.0, 2.0):  # where in the circle of six red, green and blue have their maximum
            place = remainder(hue * 6.0 + offset, 6.0)
            strength = clip(abs(place - 3.0) - 1.0, 0.0, 1.0)
            channels.append(value * (1.0 - saturation * (1.0 - strength)))
        return stack(channels, axis=-1)


def adjust_brightness(images: ArrayLike, delta: ArrayLike, *, name: str | None = None) -> Tensor:
    """images + delta; nothing is clipped."""
    tensor = convert(images)
    with op_scope(name, "adjust_brightness", tensor):
        return tensor + convert(delta, like=tensor)


def adjust_contrast(images: ArrayLike, factor: ArrayLike, *, name: str | None = None) -> Tensor:
    """(x - mean) · factor + mean, the mean over height and width of each channel of each image (…, h, w, c)."""
    tensor = convert(images)
    require_kind(tensor.spec, "f", "colours are floating numbers from 0 to 1")
    with op_scope(name, "adjust_contrast", tensor):
        middle = mean(tensor, axis=(-3, -2), keepdims=True)
        return (tensor - middle) * convert(factor, like=tensor) + middle


def adjust_gamma(images: ArrayLike, gamma: ArrayLike, gain: float = 1.0, *, name: str | None = None) -> Tensor:
    """gain · images^gamma; images are not negative."""
    tensor = convert(images)
    with op_scope(name, "adjust_gamma", tensor):
        return pow(tensor, convert(gamma, like=tensor)) * gain


def adjust_saturation(images: ArrayLike, factor: ArrayLike, *, name: str | None = None) -> Tensor:
    """The saturation times `factor`, at most 1; 0 makes grey."""
    tensor = _colours(images)
    with op_scope(name, "adjust_saturation", tensor):
        hsv = rgb_to_hsv(tensor)
        saturation = clip(hsv[..., 1:2] * convert(factor, like=tensor), 0.0, 1.0)
        return hsv_to_rgb(concat([hsv[..., :1], saturation, hsv[..., 2:]], axis=-1))


def adjust_hue(images: ArrayLike, delta: ArrayLike, *, name: str | None = None) -> Tensor:
    """The hue turned by `delta`, of which 1 is the whole circle."""
    tensor = _colours(images)
    with op_scope(name, "adjust_hue", tensor):
        hsv = rgb_to_hsv(tensor)
        hue = remainder(hsv[..., :1] + convert(delta, like=tensor), 1.0)
        return hsv_to_rgb(concat([hue, hsv[..., 1:]], axis=-1))


def per_image_standardization(images: ArrayLike, *, name: str | None = None) -> Tensor:
    """(x - mean) / max(deviation, 1 / √pixels) for each image (…, h, w, c), over all its numbers.

    The bound keeps a plain image from being divided by 0. Raises ShapeError where the sizes are not known.
    """
    tensor = convert(images)
    require_kind(tensor.spec, "f", "standardisation takes floating numbers")
    if tensor.shape is None or len(tensor.shape) < 3 or None in tensor.shape[-3:] or 0 in tensor.shape[-3:]:
        raise ShapeError(
            f"per_image_standardization needs (…, height, width, channels), not {format_shape(tensor.shape)}",
            where=tensor.node.where,
        )
    count = math.prod(d for d in tensor.shape[-3:] if d is not None)
    with op_scope(name, "per_image_standardization", tensor):
        centred = tensor - mean(tensor, axis=(-3, -2, -1), keepdims=True)
        # A variance below the bound takes no part in the slope, so a deviation of 0 makes no infinite one.
        spread = maximum(mean(square(centred), axis=(-3, -2, -1), keepdims=True), 1.0 / count)
        return centred / sqrt(spread)
