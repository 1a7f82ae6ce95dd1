"""Convolution and pooling. ONNX has the channels first, and filters (outputs, channels / groups, *kernel)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from nbflow import ops
from nbflow.errors import GraphError
from nbflow.graph import Tensor
from nbflow.onnx.registry import Call, translates
from nbflow.onnx.translators.elementwise import dims, number
from nbflow.onnx.translators.matrices import centred
from nbflow.ops._build import INT64
from nbflow.ops.conv import conv
from nbflow.ops.conv_more import conv_transpose
from nbflow.ops.pooling import avg_pool, lp_pool, max_pool, max_pool_with_argmax
from nbflow.ops.pooling_more import global_avg_pool, global_lp_pool, global_max_pool, max_unpool
from nbflow.ops.windows import LAYOUTS

_AUTO = {"SAME_UPPER": "SAME", "SAME_LOWER": "SAME_LOWER", "VALID": "VALID"}


def layout(c: Call) -> str:
    """The layout's name in nbflow. Raises GraphError for more than three dimensions to slide over."""
    places = c.rank() - 2
    if places not in LAYOUTS:
        raise GraphError(f"{c.what} slides over {places} dimensions; nbflow's windows slide over 1, 2 or 3")
    return LAYOUTS[places][1]


def paddings(c: Call, n: int) -> Any:
    """The padding argument: ONNX has all that comes before, then all that comes after."""
    auto = c.attr("auto_pad", "NOTSET")
    if auto in _AUTO:
        return _AUTO[auto]
    pads = c.attrs.get("pads") or [0] * (2 * n)
    return tuple(zip(pads[:n], pads[n:], strict=True))


def _geometry(c: Call, n: int) -> dict[str, Any]:
    return {
        "strides": c.attrs.get("strides") or 1,
        "padding": paddings(c, n),
        "data_format": layout(c),
        "dilation": c.attrs.get("dilations") or 1,
    }


def per_channel(vector: Tensor, rank: int) -> Tensor:
    """One number a channel, beside images of `rank` dimensions."""
    return ops.expand_dims(vector, axis=tuple(range(1, rank - 1))) if rank > 2 else vector


# --- convolution -----------------------------------------------------------------------------------------------------


def _convolved(c: Call, x: Tensor, w: Tensor) -> Tensor:
    n = c.rank() - 2
    filters = ops.permute_dims(w, (*range(2, n + 2), 1, 0))
    return conv(x, filters, groups=c.attr("group", 1), **_geometry(c, n))


@translates("Conv")
def _conv(c: Call) -> Any:
    made = _convolved(c, c[0], c[1])
    bias = c.get(2)
    return made if bias is None else made + per_channel(bias, c.rank())


@translates("ConvInteger")
def _conv_integer(c: Call) -> Any:
    """Products of 8-bit integers and their sums are exact in float64, whose matrix product is the fast one."""
    x, w = centred(c[0], c.get(2), rows=False), _less_zero(c[1], c.get(3))
    return ops.astype(_convolved(c, ops.astype(x, "float64"), ops.astype(w, "float64")), "int32")


def _less_zero(w: Tensor, zero_point: Tensor | None) -> Tensor:
    """Filters less their zero point, one for all or one an output."""
    wide = ops.astype(w, "int32")
    if zero_point is None:
        return wide
    zero = ops.astype(zero_point, "int32")
    if zero.spec.rank == 1:
        zero = ops.expand_dims(zero, axis=tuple(range(1, w.spec.rank or 1)))
    return wide - zero


@translates("QLinearConv")
def _qlinear_conv(c: Call) -> Any:
    """x, its scale and zero point, w, the same of it, scale and zero point of the result, bias (int32)."""
    x = ops.astype(centred(c[0], c[2], rows=False), "float64")
    w = ops.astype(_less_zero(c[3], c[5]), "float64")
    made = _convolved(c, x, w)
    bias = c.get(8)
    if bias is not None:
        made = made + per_channel(ops.astype(bias, "float64"), c.rank())
    scale = ops.astype(c[1], "float64") * ops.astype(c[4], "float64") / ops.astype(c[6], "float64")
    if scale.spec.rank == 1 and scale.shape != (1,):
        scale = per_channel(scale, c.rank())
    rounded = ops.round(made * scale) + ops.astype(c[7], "float64")
    return ops.saturate_cast(rounded, c[7].dtype)


@translates("ConvTranspose")
def _conv_transpose(c: Call) -> Any:
    n = c.rank() - 2
    filters = ops.permute_dims(c[1], (*range(2, n + 2), 1, 0))
    more = list(c.attrs.get("output_padding") or [0] * n)
    geometry = _geometry(c, n)
    if c.attr("auto_pad", "NOTSET").startswith("SAME") or c.attrs.get("output_shape"):
        geometry["padding"] = _transposed_padding(c, filters, more, n)
    made = conv_transpose(c[0], filters, groups=c.attr("group", 1), output_padding=more, **geometry)
    bias = c.get(2)
    return made if bias is None else made + per_channel(bias, c.rank())


def _transposed_padding(c: Call, filters: Tensor, more: list[int], n: int) -> tuple[tuple[int, int], ...]:
    """What must be cut so that the result has the size asked for: ONNX's formula; `more` grows if need be."""
    places = (c[0].shape or ())[2:]
    strides, dilations = c.attrs.get("strides") or [1] * n, c.attrs.get("dilations") or [1] * n
    if None in places:
        raise c.needs(c[0], "the size")
    wanted = c.attrs.get("output_shape") or [int(p or 0) * s for p, s in zip(places, strides, strict=True)]
    upper = c.attr("auto_pad", "NOTSET") == "SAME_UPPER"
    found = []
    for axis, size in enumerate(wanted[-n:]):
        kernel = (int((filters.shape or ())[axis] or 0) - 1) * dilations[axis] + 1
        total = strides[axis] * (int(places[axis] or 0) - 1) + more[axis] + kernel - size
        if total < 0:  # more is wanted than the windows cover: zeros behind
            more[axis] -= total
            total = 0
        half = total // 2
        found.append((half, total - half) if upper else (total - half, half))
    return tuple(found)


# --- pooling ---------------------------------------------------------------------------------------------------------


def _window(c: Call) -> dict[str, Any]:
    n = c.rank() - 2
    return {**_geometry(c, n), "window": c.attrs["kernel_shape"], "ceil": bool(c.attr("ceil_mode", 0))}


@translates("MaxPool")
def _max_pool(c: Call) -> Any:
    if not c.wants(1):
        return max_pool(c[0], **_window(c))
    made, places = max_pool_with_argmax(c[0], **_window(c))
    rank = c.rank()
    own = dims(c[0])
    if c.attr("storage_order", 0):
        places = _column_major(places, own[2:])
    # ONNX counts through all examples and channels.
    channels = ops.arange(own[1], dtype=INT64)
    examples = ops.arange(own[0], dtype=INT64)
    first = per_channel(channels, rank) + ops.expand_dims(examples, axis=tuple(range(1, rank))) * own[1]
    return made, places + first * _product(own[2:])


def _product(sizes: Sequence[Any]) -> Any:
    total: Any = 1
    for size in sizes:
        total = size * total
    return total


def _column_major(places: Tensor, sizes: Sequence[Any]) -> Tensor:
    """Row-major numbers of places as column-major ones."""
    made: Any = number(0, places)
    rest = places
    coordinates = []
    for size in reversed(sizes):
        coordinates.append(ops.remainder(rest, size))
        rest = ops.floor_divide(rest, size)
    step: Any = 1
    for coordinate, size in zip(reversed(coordinates), sizes, strict=True):
        made = made + coordinate * step
        step = step * size
    return made if isinstance(made, Tensor) else places


@translates("AveragePool")
def _average_pool(c: Call) -> Any:
    return avg_pool(c[0], count="padded" if c.attr("count_include_pad", 0) else "inside", **_window(c))


@translates("LpPool")
def _lp_pool(c: Call) -> Any:
    return lp_pool(c[0], p=float(c.attr("p", 2)), **_window(c))


@translates("GlobalAveragePool")
def _global_average(c: Call) -> Any:
    return global_avg_pool(c[0], layout(c), keepdims=True)


@translates("GlobalMaxPool")
def _global_max(c: Call) -> Any:
    return global_max_pool(c[0], layout(c), keepdims=True)


@translates("GlobalLpPool")
def _global_lp(c: Call) -> Any:
    return global_lp_pool(c[0], float(c.attr("p", 2)), layout(c), keepdims=True)


@translates("MaxUnpool")
def _max_unpool(c: Call) -> Any:
    own = dims(c[0])
    n = c.rank() - 2
    geometry = _geometry(c, n)
    kernel, strides = c.attrs["kernel_shape"], c.attrs.get("strides") or [1] * n
    pads = c.attrs.get("pads") or [0] * (2 * n)
    # The indices count through the tensor that was pooled, whose size the attributes give; output_shape may be larger.
    sizes = [
        (d - 1) * s + k - before - after
        for d, s, k, before, after in zip(own[2:], strides, kernel, pads[:n], pads[n:], strict=True)
    ]
    wanted = None if c.get(2) is None else [int(d) for d in c.known(2)[2:]]
    inside = ops.remainder(c[1], _product(sizes))
    if wanted is not None:
        inside = _renumbered(inside, sizes, wanted)
        return max_unpool(c[0], inside, kernel, strides, data_format=geometry["data_format"], output_size=wanted)
    return max_unpool(c[0], inside, kernel, strides, geometry["padding"], geometry["data_format"])


def _renumbered(places: Tensor, sizes: Sequence[Any], wanted: Sequence[int]) -> Tensor:
    """Row-major numbers among `sizes` as those among `wanted`."""
    if all(isinstance(s, int) for s in sizes) and prod(sizes) == prod(wanted):
        return places
    rest, step, made = places, 1, number(0, places)
    for size, new in zip(reversed(sizes), reversed(wanted), strict=True):
        made = made + ops.remainder(rest, size) * step
        rest = ops.floor_divide(rest, size)
        step *= new
    return made
