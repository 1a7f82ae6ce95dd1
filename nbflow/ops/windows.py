"""The geometry of sliding windows, for convolution and pooling: padding, output sizes, layouts. Pure functions.

Padding "SAME" and "VALID" are TensorFlow's: SAME gives ceil(size / stride) outputs and puts the odd one of the added
rows behind; explicit padding is ((top, bottom), (left, right)).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nbflow.errors import GraphError, ShapeError
from nbflow.spec import Dim, Shape, format_shape

Pair = tuple[int, int]
Padding = str | tuple[Pair, Pair]

LAYOUTS = ("NHWC", "NCHW")


def pair(value: int | Sequence[int], what: str) -> Pair:
    """(h, w) from an int or two ints. Raises GraphError unless both are positive."""
    found = (value, value) if isinstance(value, int) else tuple(int(v) for v in value)
    if len(found) != 2 or min(found) < 1:
        raise GraphError(f"{what} is a positive integer, or two of them (height, width), not {value!r}")
    return (found[0], found[1])


def check_padding(padding: str | Sequence[Sequence[int]]) -> Padding:
    """The attribute form of `padding`. Raises GraphError that lists what is understood."""
    if isinstance(padding, str):
        if padding.upper() in ("SAME", "VALID"):
            return padding.upper()
    else:
        sides = tuple(tuple(int(v) for v in side) for side in padding)
        if len(sides) == 2 and all(len(side) == 2 and min(side) >= 0 for side in sides):
            return ((sides[0][0], sides[0][1]), (sides[1][0], sides[1][1]))
    raise GraphError(f"padding is 'SAME', 'VALID' or ((top, bottom), (left, right)), not {padding!r}")


def check_layout(data_format: str) -> str:
    """`NHWC` or `NCHW`. Raises GraphError for anything else."""
    if data_format not in LAYOUTS:
        raise GraphError(f"data_format is 'NHWC' or 'NCHW', not {data_format!r}")
    return data_format


def pads(padding: Padding, axis: int, size: int, kernel: int, stride: int, dilation: int) -> Pair:
    """Rows added before and after an axis of `size` (axis 0: height, 1: width)."""
    if padding == "VALID":
        return (0, 0)
    if isinstance(padding, tuple):
        return padding[axis]
    outputs = -(-size // stride)
    total = max((outputs - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return (total // 2, total - total // 2)


def output_size(padding: Padding, axis: int, size: Dim, kernel: Dim, stride: int, dilation: int) -> Dim:
    """Windows that fit along an axis; None when unknown. Raises ShapeError when none fits."""
    if padding == "SAME":
        return None if size is None else -(-size // stride)
    if size is None or kernel is None:
        return None
    before, after = pads(padding, axis, size, kernel, stride, dilation)
    room = size + before + after - ((kernel - 1) * dilation + 1)
    if room < 0:
        raise ShapeError(
            f"a window of {kernel} (dilation {dilation}) does not fit into {size} rows padded by {before} and {after}; "
            "use a smaller window, or padding='SAME'"
        )
    return room // stride + 1


def to_nhwc(shape: Shape, data_format: str) -> tuple[Dim, Dim, Dim, Dim]:
    """(n, h, w, c) of an image batch's shape. Raises ShapeError unless it has four dimensions."""
    if shape is None:
        return (None, None, None, None)
    if len(shape) != 4:
        raise ShapeError(f"images have four dimensions ({data_format}), got {format_shape(shape)}")
    n, a, b, c = shape
    return (n, a, b, c) if data_format == "NHWC" else (n, b, c, a)


def from_nhwc(shape: tuple[Dim, Dim, Dim, Dim], data_format: str) -> tuple[Dim, Dim, Dim, Dim]:
    """The other way."""
    n, h, w, c = shape
    return (n, h, w, c) if data_format == "NHWC" else (n, c, h, w)


def window_output(
    x: Shape, kernel: tuple[Dim, Dim], channels: Dim, attrs: Any
) -> tuple[tuple[Dim, Dim, Dim, Dim], tuple[Dim, Dim, Dim, Dim]]:
    """(input as NHWC, output in the layout of `attrs`), for attrs strides, padding, dilation and data_format.

    A batch with no pixels (a height or width of 0) is refused: no window fits.
    """
    n, h, w, c = to_nhwc(x, attrs["data_format"])
    (sh, sw), (dh, dw) = attrs["strides"], attrs["dilation"]
    out_h = output_size(attrs["padding"], 0, h, kernel[0], sh, dh)
    out_w = output_size(attrs["padding"], 1, w, kernel[1], sw, dw)
    return (n, h, w, c), from_nhwc((n, out_h, out_w, channels), attrs["data_format"])
