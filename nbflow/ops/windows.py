"""The geometry of sliding windows, for convolution and pooling: padding, output sizes, layouts. Pure functions.

Windows slide over one, two or three dimensions, the places; the others are the examples and the channels. Padding
"SAME" and "VALID" are TensorFlow's: SAME gives ceil(size / stride) outputs and puts the odd one of the added places
behind, SAME_LOWER (of ONNX) before; explicit padding is a pair (before, after) for each dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nbflow.errors import GraphError, ShapeError
from nbflow.spec import Dim, Shape, format_shape

Ints = tuple[int, ...]
Pair = tuple[int, int]
Padding = str | tuple[Pair, ...]

# By the number of dimensions that windows slide over: channels last, channels first.
LAYOUTS = {1: ("NWC", "NCW"), 2: ("NHWC", "NCHW"), 3: ("NDHWC", "NCDHW")}
_SAME = ("SAME", "SAME_LOWER")


# --- arguments -------------------------------------------------------------------------------------------------------


def many(value: int | Sequence[int], n: int, what: str) -> Ints:
    """`n` ints from an int or `n` ints. Raises GraphError unless all are positive."""
    found = (int(value),) * n if isinstance(value, (int, np.integer)) else tuple(int(v) for v in value)
    if len(found) != n or min(found) < 1:
        raise GraphError(f"{what} is a positive integer, or {n} of them, not {value!r}")
    return found


def check_padding(padding: Any, n: int) -> Padding:
    """The attribute form of `padding` of `n` dimensions. Raises GraphError that lists what is understood.

    With one dimension the pair (before, after) may stand for itself.
    """
    if isinstance(padding, str):
        if padding.upper() in (*_SAME, "VALID"):
            return padding.upper()
    else:
        sides = [padding] if n == 1 and np.ndim(padding) == 1 else list(padding)
        pairs = [tuple(int(v) for v in side) for side in sides]
        if len(pairs) == n and all(len(side) == 2 and min(side) >= 0 for side in pairs):
            return tuple((side[0], side[1]) for side in pairs)
    raise GraphError(
        f"padding is 'SAME', 'SAME_LOWER', 'VALID' or a pair (before, after) for each of {n} dimensions, "
        f"not {padding!r}"
    )


def check_layout(data_format: str, n: int) -> str:
    """`data_format`, which is that of `n` dimensions. Raises GraphError for anything else."""
    if data_format not in LAYOUTS[n]:
        last, first = LAYOUTS[n]
        raise GraphError(f"data_format is {last!r} or {first!r} with {n} dimensions to slide over, not {data_format!r}")
    return data_format


def layout_of(data_format: str | None, ranks: Sequence[int | None], what: str) -> tuple[str, int]:
    """(layout, number of places' dimensions): from the layout's name, else channels last of the first known rank.

    Raises GraphError when neither is known or there is no such layout.
    """
    if data_format is not None:
        n = len(data_format) - 2
        if n not in LAYOUTS:
            names = ", ".join(name for pair in LAYOUTS.values() for name in pair)
            raise GraphError(f"data_format is one of {names}, not {data_format!r}")
        return check_layout(data_format, n), n
    rank = next((r for r in ranks if r is not None), None)
    if rank is None or rank - 2 not in LAYOUTS:
        given = "an unknown number of" if rank is None else str(rank)
        raise GraphError(
            f"{what} takes 3, 4 or 5 dimensions, not {given}; data_format= says how many and in what order"
        )
    return LAYOUTS[rank - 2][0], rank - 2


def is_channels_first(data_format: str) -> bool:
    return data_format[1] == "C"


# --- sizes -----------------------------------------------------------------------------------------------------------


def pads(padding: Padding, axis: int, size: int, kernel: int, stride: int, dilation: int) -> Pair:
    """Places added before and after dimension `axis`, which has `size` of them; a negative number takes away."""
    if padding == "VALID":
        return (0, 0)
    if isinstance(padding, tuple):
        return padding[axis]
    outputs = -(-size // stride)
    total = max((outputs - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    small, large = total // 2, total - total // 2
    return (large, small) if padding == "SAME_LOWER" else (small, large)


def output_size(
    padding: Padding, axis: int, size: Dim, kernel: Dim, stride: int, dilation: int, ceil: bool = False
) -> Dim:
    """Windows that fit along a dimension; None when unknown. Raises ShapeError when none fits.

    With `ceil` a last window that reaches beyond the end counts, if it starts at a place or in the padding before.
    """
    if isinstance(padding, str) and padding in _SAME:
        return None if size is None else -(-size // stride)
    if size is None or kernel is None:
        return None
    before, after = pads(padding, axis, size, kernel, stride, dilation)
    room = size + before + after - ((kernel - 1) * dilation + 1)
    if room < 0:
        raise ShapeError(
            f"a window of {kernel} (dilation {dilation}) does not fit into {size} places padded by {before} and "
            f"{after}; use a smaller window, or padding='SAME'"
        )
    if not ceil:
        return room // stride + 1
    count = -(-room // stride) + 1
    return count - 1 if (count - 1) * stride >= size + before else count


# --- shapes ----------------------------------------------------------------------------------------------------------


def places_of(shape: Shape, data_format: str) -> tuple[Dim, ...]:
    """The dimensions that windows slide over. Raises ShapeError for another number of dimensions than the layout's."""
    n = len(data_format) - 2
    if shape is None:
        return (None,) * n
    if len(shape) != n + 2:
        words = {3: "three", 4: "four", 5: "five"}
        raise ShapeError(f"{data_format} has {words[n + 2]} dimensions, got {format_shape(shape)}")
    return shape[2:] if is_channels_first(data_format) else shape[1:-1]


def channels_of(shape: Shape, data_format: str) -> Dim:
    """The number of channels."""
    places_of(shape, data_format)
    return None if shape is None else shape[1 if is_channels_first(data_format) else -1]


def laid_out(batch: Any, places: Sequence[Any], channels: Any, data_format: str) -> tuple[Any, ...]:
    """(n, *places, channels), or with the channels first."""
    return (batch, channels, *places) if is_channels_first(data_format) else (batch, *places, channels)


def window_output(x: Shape, kernel: Sequence[Dim], channels: Dim, attrs: Mapping[str, Any]) -> Shape:
    """The shape of the result, for attrs strides, padding, dilation, data_format and perhaps ceil.

    A batch without places (a height of 0) is refused: no window fits.
    """
    layout = attrs["data_format"]
    sizes = [
        output_size(attrs["padding"], axis, size, kernel[axis], stride, dilation, attrs.get("ceil", False))
        for axis, (size, stride, dilation) in enumerate(
            zip(places_of(x, layout), attrs["strides"], attrs["dilation"], strict=True)
        )
    ]
    return laid_out(None if x is None else x[0], sizes, channels, layout)
