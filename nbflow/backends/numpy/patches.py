"""im2col and col2im on numpy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from nbflow.backends.base import Table
from nbflow.backends.numpy.sliding import Array, Windows
from nbflow.ops.windows import Ints, Padding, is_channels_first

TABLE = Table()


@TABLE.implements("unfold")
def unfold(x: Array, *, window: Ints, strides: Ints, padding: Padding, data_format: str, dilation: Ints) -> Array:
    image = np.moveaxis(x, 1, -1) if is_channels_first(data_format) else x
    windows = Windows.of(image.shape[1:-1], window, strides, padding, dilation)
    view = windows.unfold(windows.pad(image))
    # A copy in any case: a reshaped view of one window a place would share memory with the input.
    return np.array(view).reshape(image.shape[0], *windows.count, -1, image.shape[-1])


@TABLE.implements("fold")
def fold(
    patches: Array,
    vector: Array | None = None,
    *,
    shape: Any,
    window: Ints,
    strides: Ints,
    padding: Padding,
    data_format: str,
    dilation: Ints,
) -> Array:
    n, *sizes = (int(d) for d in (shape if vector is None else vector))
    first = is_channels_first(data_format)
    places, channels = (sizes[1:], sizes[0]) if first else (sizes[:-1], sizes[-1])
    windows = Windows.of(places, window, strides, padding, dilation)
    made = np.zeros((n, *windows.padded, channels), patches.dtype)
    for number, (_, at) in enumerate(windows.taps()):
        made[at] += patches[..., number, :]
    inner = made[windows.inner]
    return np.ascontiguousarray(np.moveaxis(inner, -1, 1) if first else inner)
