"""Convolution, pooling and interpolation as ONNX nodes.

For windows, channels go first and filters as (out, in, *kernel), as ONNX has them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from nbflow.onnx.exporting.indexing import product
from nbflow.onnx.exporting.shaping import target
from nbflow.onnx.exporting.writer import INT64, LAST, Rules, Site, Size
from nbflow.ops.windows import channels_of, is_channels_first, output_size, pads, places_of
from nbflow.spec import Dim

RULES = Rules()


# --- layouts and padding ---------------------------------------------------------------------------------------------


def _channels_first(s: Site, x: str) -> str:
    layout = s.attrs["data_format"]
    n = len(layout)
    return x if is_channels_first(layout) else s.transpose(x, [0, n - 1, *range(1, n - 1)])


def _laid_out(s: Site, y: str) -> str:
    layout = s.attrs["data_format"]
    n = len(layout)
    return y if is_channels_first(layout) else s.transpose(y, [0, *range(2, n), 1])


def _filters(s: Site, w: str, index: int) -> str:
    """(*kernel, in, out) as (out, in, *kernel), in the dtype of the result."""
    n = len(s.attrs["strides"])
    return s.transpose(s.cast(w, s.specs[index].dtype, s.out.dtype), [n + 1, n, *range(n)])


def _places(s: Site, index: int = 0) -> tuple[Dim, ...]:
    return places_of(s.specs[index].shape, s.attrs["data_format"])


def _sides(s: Site, places: Sequence[Dim], kernel: Sequence[Dim]) -> list[tuple[int, int]] | None:
    """What is added before and after each dimension; None for SAME where that depends on sizes that are unknown."""
    padding = s.attrs["padding"]
    if isinstance(padding, str) and padding != "VALID" and None in (*places, *kernel):
        if set(s.attrs["dilation"]) != {1}:
            s.fail(f"{padding} padding with a dilation needs known sizes")
        return None
    # Other paddings do not ask for sizes.
    return [
        pads(padding, axis, size or 1, kernel[axis] or 1, s.attrs["strides"][axis], s.attrs["dilation"][axis])
        for axis, size in enumerate(places)
    ]


def _padded(s: Site, x: str, kernel: Sequence[Dim]) -> tuple[str, dict[str, Any]]:
    """`x`, channels first, and ONNX's attributes for its padding. Negative padding, which ONNX has not, is cut off."""
    sides = _sides(s, _places(s), kernel)
    if sides is None:
        return x, {"auto_pad": "SAME_LOWER" if s.attrs["padding"] == "SAME_LOWER" else "SAME_UPPER"}
    if any(min(pair) < 0 for pair in sides):
        starts = [max(0, -before) for before, _ in sides]
        ends = [after if after < 0 else LAST for _, after in sides]
        x = s.add("Slice", x, s.ints(*starts), s.ints(*ends), s.ints(*range(2, 2 + len(sides))))
    return x, {"pads": [max(0, before) for before, _ in sides] + [max(0, after) for _, after in sides]}


def _geometry(s: Site) -> dict[str, Any]:
    return {"strides": list(s.attrs["strides"]), "dilations": list(s.attrs["dilation"])}


# --- convolution -----------------------------------------------------------------------------------------------------


def _kernel(s: Site) -> tuple[Dim, ...]:
    n, shape = len(s.attrs["strides"]), s.specs[1].shape
    return (None,) * n if shape is None else shape[:n]


@RULES.writes("conv")
def _conv(s: Site, x: str, w: str) -> str:
    images = _channels_first(s, s.cast(x, s.specs[0].dtype, s.out.dtype))
    images, padding = _padded(s, images, _kernel(s))
    made = s.add("Conv", images, _filters(s, w, 1), group=s.attrs["groups"], **padding, **_geometry(s))
    return _laid_out(s, made)


@RULES.writes("conv_input_grad")
def _conv_input_grad(s: Site, dy: str, w: str, vector: str = "") -> str:
    """A transposed convolution. Places that no window of the convolution reached come out as zeros at the end."""
    kernel = tuple(k for k in _kernel(s) if k is not None)
    if len(kernel) < len(s.attrs["strides"]):
        s.fail("a transposed convolution needs the sizes of its filters")
    places = [d for d in places_of(s.out.shape, s.attrs["data_format"]) if d is not None]
    grad = _channels_first(s, s.cast(dy, s.specs[0].dtype, s.out.dtype))
    filters = _filters(s, w, 1)
    if len(places) < len(kernel):
        return _laid_out(s, _transposed_of_any_size(s, grad, filters, kernel, vector))
    sides = _sides(s, places, kernel)
    assert sides is not None  # all sizes are known
    left = [
        (size + sum(pair) - (width - 1) * dilation - 1) % stride
        for size, width, pair, stride, dilation in zip(
            places, kernel, sides, s.attrs["strides"], s.attrs["dilation"], strict=True
        )
    ]
    made = s.add(
        "ConvTranspose",
        grad,
        filters,
        group=s.attrs["groups"],
        pads=[max(0, before) for before, _ in sides] + [max(0, after) for _, after in sides],
        output_padding=left,
        **_geometry(s),
    )
    # Where the convolution cut places off, which ONNX cannot say, they come back as zeros.
    cut = [(max(0, -before), max(0, -after)) for before, after in sides]
    return _laid_out(s, _surrounded(s, made, cut) if any(map(any, cut)) else made)


def _transposed_of_any_size(s: Site, grad: str, filters: str, kernel: Sequence[int], vector: str) -> str:
    """The whole transposed convolution, with room behind it, of which the part asked for is cut out."""
    attrs, n = s.attrs, len(kernel)
    padding, strides, dilation = attrs["padding"], attrs["strides"], attrs["dilation"]
    if isinstance(padding, tuple) and min(min(pair) for pair in padding) < 0:
        s.fail("negative padding needs the sizes of the places of its result")
    made = s.add("ConvTranspose", grad, filters, group=attrs["groups"], **_geometry(s))
    if max(strides) > 1:
        made = _surrounded(s, made, [(0, stride - 1) for stride in strides])
    shape, first = s.cast(vector, s.specs[-1].dtype, INT64), 2 if is_channels_first(attrs["data_format"]) else 1
    starts, ends = [], []
    for axis in range(n):
        known = (s.out.shape or ())[first + axis]
        size: Size = known if known is not None else s.add("Gather", shape, s.ints(first + axis), axis=0)
        before: Size = 0 if isinstance(padding, str) else padding[axis][0]
        if padding in ("SAME", "SAME_LOWER"):
            steps = s.arithmetic("Mul", s.arithmetic("Sub", s.size(grad, 2 + axis), 1), strides[axis])
            reach = s.arithmetic("Add", steps, (kernel[axis] - 1) * dilation[axis] + 1)
            total = s.arithmetic("Max", s.arithmetic("Sub", reach, size), 0)
            before = s.arithmetic("Div", s.arithmetic("Add", total, int(padding == "SAME_LOWER")), 2)
        starts.append(before)
        ends.append(s.arithmetic("Add", before, size))
    return s.add("Slice", made, s.vector(starts), s.vector(ends), s.ints(*range(2, 2 + n)))


def _surrounded(s: Site, images: str, sides: Sequence[tuple[int, int]]) -> str:
    """Zeros around the places."""
    widths = [(0, 0), (0, 0), *sides]
    ends = s.ints(*[w[0] for w in widths], *[w[1] for w in widths])
    return s.add("Pad", images, ends, s.const(0, s.out.dtype))


# --- pooling ---------------------------------------------------------------------------------------------------------


def _pooling(s: Site, x: str) -> tuple[str, dict[str, Any]]:
    """`x`, channels first, and the attributes that all pooling has."""
    images, padding = _padded(s, _channels_first(s, x), s.attrs["window"])
    attrs: dict[str, Any] = {"kernel_shape": list(s.attrs["window"]), **padding, **_geometry(s)}
    if s.attrs["ceil"]:
        attrs["ceil_mode"] = 1
    if set(s.attrs["dilation"]) == {1}:
        del attrs["dilations"]
    return images, attrs


@RULES.writes("max_pool")
def _max_pool(s: Site, x: str) -> str:
    images, attrs = _pooling(s, x)
    return _laid_out(s, s.add("MaxPool", images, **attrs))


@RULES.writes("max_pool_argmax")
def _max_pool_argmax(s: Site, x: str) -> str:
    """ONNX counts the elements of the whole tensor, nbflow the places of an example and channel."""
    images, attrs = _pooling(s, x)
    _, numbers = s.add_many("MaxPool", images, outputs=2, **attrs)
    total = product([s.size(images, 2 + axis) if d is None else d for axis, d in enumerate(_places(s))], s)
    return _laid_out(s, s.add("Mod", numbers, total if isinstance(total, str) else s.const(total, INT64)))


@RULES.writes("avg_pool")
def _avg_pool(s: Site, x: str) -> str:
    if set(s.attrs["dilation"]) != {1} and s.writer.opset < 19:  # where AveragePool got dilations
        s.fail("ONNX's AveragePool has dilations since opset 19; save with opset=19 or newer")
    if s.attrs["count"] == "one":
        return _laid_out(s, _window_sums(s, _channels_first(s, x)))
    images, attrs = _pooling(s, x)
    return _laid_out(s, s.add("AveragePool", images, count_include_pad=int(s.attrs["count"] == "padded"), **attrs))


def _window_sums(s: Site, images: str) -> str:
    """Sums of windows: means times their size, of images padded beforehand, so that every window is whole."""
    window, places = s.attrs["window"], _places(s)
    geometry: dict[str, Any] = {"kernel_shape": list(window), **_geometry(s)}
    if set(s.attrs["dilation"]) == {1}:
        del geometry["dilations"]
    sides = _sides(s, places, window)
    if sides is None:
        geometry |= {"count_include_pad": 1, **_padded(s, images, window)[1]}
    else:
        if s.attrs["ceil"]:
            sides = [_whole(s, axis, size, pair) for axis, (size, pair) in enumerate(zip(places, sides, strict=True))]
        images = _surrounded(s, images, sides)
    return s.add("Mul", s.add("AveragePool", images, **geometry), s.const(math.prod(window), s.out.dtype))


def _whole(s: Site, axis: int, size: Dim, pair: tuple[int, int]) -> tuple[int, int]:
    """The padding with which the last window that counts ends within it."""
    kernel, stride, dilation = (s.attrs[a][axis] for a in ("window", "strides", "dilation"))
    reach = (kernel - 1) * dilation + 1
    if size is None:
        if pair[1] or stride > reach:
            s.fail("whether a last window starts beyond the end, and does not count, depends on sizes that are unknown")
        return pair[0], stride - 1
    count = output_size(s.attrs["padding"], axis, size, kernel, stride, dilation, True) or 0
    return pair[0], max(pair[1], (count - 1) * stride + reach - size - pair[0])


# --- the way back from maxima ----------------------------------------------------------------------------------------


def _flat(s: Site, x: str, index: int) -> str:
    """The places as one dimension."""
    batch = s.size(x, 0, s.specs[index])
    if is_channels_first(s.attrs["data_format"]):
        return s.reshape(x, [batch, s.size(x, 1, s.specs[index]), -1])
    return s.reshape(x, [batch, -1, s.size(x, -1, s.specs[index])])


def _places_axis(s: Site) -> int:
    return 2 if is_channels_first(s.attrs["data_format"]) else 1


@RULES.writes("max_unpool")
def _max_unpool(s: Site, x: str, ids: str, vector: str = "") -> str:
    shape = target(s, vector)
    zeros = s.add("ConstantOfShape", shape, value=np.zeros(1, s.out.dtype))
    where = s.cast(_flat(s, ids, 1), s.specs[1].dtype, INT64)
    # Examples and channels are those of x.
    made = s.add("ScatterElements", _flat(s, zeros, 0), where, _flat(s, x, 0), axis=_places_axis(s))
    return s.add("Reshape", made, shape, allowzero=1)


@RULES.writes("max_unpool_grad")
def _max_unpool_grad(s: Site, dy: str, ids: str) -> str:
    where = s.cast(_flat(s, ids, 1), s.specs[1].dtype, INT64)
    picked = s.add("GatherElements", _flat(s, dy, 0), where, axis=_places_axis(s))
    return s.add("Reshape", picked, s.shape(ids), allowzero=1)


@RULES.writes("unfold")
def _unfold(s: Site, x: str) -> str:
    """A convolution of each channel with filters that pick one place of the window each."""
    window, dtype = s.attrs["window"], s.out.dtype
    channels, count = channels_of(s.specs[0].shape, s.attrs["data_format"]), math.prod(window)
    if channels is None:
        s.fail("its windows need a known number of channels")
    n = len(window)
    images, padding = _padded(s, _channels_first(s, x), window)
    filters = np.tile(np.eye(count, dtype=dtype).reshape(count, 1, *window), (channels, *[1] * (n + 1)))
    made = s.add("Conv", images, s.const(filters), group=channels, **padding, **_geometry(s))
    counts = [s.size(made, 2 + axis) for axis in range(n)]
    parts = s.reshape(made, [s.size(x, 0, s.specs[0]), channels, count, *counts])
    return s.transpose(parts, [0, *range(3, 3 + n), 2, 1])


# --- interpolation ---------------------------------------------------------------------------------------------------


FLOAT = np.dtype(np.float32)


@RULES.writes("resize")
def _resize(s: Site, x: str, *given: str) -> str:
    axes, vectors, rank = list(s.attrs["axes"]), _vectors(s, given), s.specs[0].rank
    if rank is None:
        return _resampled(s, x, axes, vectors)
    # Not every runtime takes vectors for some dimensions only, or has cubic kernels for others than the last ones.
    others = [axis for axis in range(rank) if axis not in axes]
    sizes = [s.size(x, axis, s.specs[0]) for axis in others]
    if s.attrs["method"] == "cubic":
        whole = _for_all(s, vectors, sizes, [*range(len(axes), rank), *range(len(axes))])
        back = [(*others, *axes).index(axis) for axis in range(rank)]
        return s.transpose(_resampled(s, s.transpose(x, [*others, *axes]), None, whole), back)
    return _resampled(s, x, None, _for_all(s, vectors, sizes, [(*axes, *others).index(a) for a in range(rank)]))


def _for_all(s: Site, vectors: dict[str, str], sizes: list[Size], order: Sequence[int]) -> dict[str, str]:
    """The vectors with the other dimensions, of `sizes`, which stay as they are; both taken in `order`."""
    zeros, ones = (s.const([v] * len(sizes), FLOAT) for v in (0, 1))
    made = {
        "roi": "",
        "scales": vectors["scales"] and _joined(s, vectors["scales"], ones, order),
        "sizes": vectors["sizes"] and _joined(s, vectors["sizes"], s.vector(sizes), order),
    }
    if vectors["roi"]:
        start, end = s.add_many("Split", vectors["roi"], outputs=2, axis=0, num_outputs=2)
        made["roi"] = s.add("Concat", _joined(s, start, zeros, order), _joined(s, end, ones, order), axis=0)
    return made


def _joined(s: Site, resized: str, others: str, order: Sequence[int]) -> str:
    """One vector for all dimensions, of one for those that are resized and one for the others."""
    known = [s.writer.constants.get(name) for name in (resized, others)]
    if known[0] is not None and known[1] is not None:
        return s.const(np.concatenate([k for k in known if k is not None])[list(order)])
    both = s.add("Concat", resized, others, axis=0) if len(order) > len(s.attrs["axes"]) else resized
    return s.add("Gather", both, s.ints(*order), axis=0)


def _vectors(s: Site, given: Sequence[str]) -> dict[str, str]:
    """roi, scales and sizes for the attribute `axes`; '' for those that there are not."""
    attrs, found = s.attrs, {}
    for what, dtype in (("roi", FLOAT), ("scales", FLOAT), ("sizes", INT64)):
        found[what] = "" if attrs[what] is None else s.const(attrs[what], dtype)
        if what in attrs["given"]:
            place = attrs["given"].index(what)
            vector = s.cast(given[place], s.specs[1 + place].dtype, dtype)
            # ONNX's shape rule wants to see how many there are.
            found[what] = s.reshape(vector, [len(attrs["axes"]) * (2 if what == "roi" else 1)])
    if found["scales"] and found["sizes"]:
        s.fail("ONNX's Resize takes sizes or scales, not both")
    return found


def _resampled(s: Site, x: str, axes: list[int] | None, vectors: dict[str, str]) -> str:
    attrs = s.attrs
    more: dict[str, Any] = {} if axes is None else {"axes": axes}
    if attrs["method"] == "nearest":
        more["nearest_mode"] = attrs["rounding"]
    if attrs["method"] == "cubic":
        more["cubic_coeff_a"] = attrs["cubic"]
    for name, value in (
        ("exclude_outside", int(attrs["exclude_outside"])),
        ("antialias", int(attrs["antialias"])),
        ("extrapolation_value", attrs["outside"]),
    ):
        if value:
            more[name] = value
    names = [x, vectors["roi"], vectors["scales"], vectors["sizes"]]
    while not names[-1]:
        names.pop()
    mode, coordinates = attrs["method"], attrs["coordinates"]
    return s.add("Resize", *names, mode=mode, coordinate_transformation_mode=coordinates, **more)
