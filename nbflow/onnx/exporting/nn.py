"""Ops of neural networks as ONNX nodes. Images go as NCHW and filters as (out, in, height, width), as ONNX has them."""

from __future__ import annotations

from typing import Any

import numpy as np

from nbflow.onnx.exporting.indexing import indices
from nbflow.onnx.exporting.writer import INT64, Rules, Site
from nbflow.ops.windows import pads, to_nhwc
from nbflow.spec import Dim, kind_of

RULES = Rules()


# --- activations, softmax, cross entropy -----------------------------------------------------------------------------


@RULES.writes("relu")
def _relu(s: Site, x: str) -> str:
    return s.add("Relu", x) if kind_of(s.out.dtype) == "f" else s.add("Max", x, s.const(0, s.out.dtype))


@RULES.writes("relu_grad")
def _relu_grad(s: Site, dy: str, y: str) -> str:
    positive = s.add("Greater", y, s.const(0, s.specs[1].dtype))
    return s.add("Where", positive, dy, s.const(0, s.out.dtype))


@RULES.writes("sigmoid")
def _sigmoid(s: Site, x: str) -> str:
    return s.add("Sigmoid", x)


@RULES.writes("softplus")
def _softplus(s: Site, x: str) -> str:
    # max(x, 0) + log(1 + exp(-|x|)): runtimes differ in how their Softplus overflows.
    zero, one = s.const(0, s.out.dtype), s.const(1, s.out.dtype)
    rest = s.add("Log", s.add("Add", s.add("Exp", s.add("Neg", s.add("Abs", x))), one))
    return s.add("Add", s.add("Max", x, zero), rest)


@RULES.writes("softmax")
def _softmax(s: Site, x: str) -> str:
    return s.add("Softmax", x, axis=s.attrs["axis"])


@RULES.writes("log_softmax")
def _log_softmax(s: Site, x: str) -> str:
    return s.add("LogSoftmax", x, axis=s.attrs["axis"])


@RULES.writes("sparse_softmax_cross_entropy")
def _cross_entropy(s: Site, logits: str, labels: str) -> str:
    last = s.ints(-1)
    ids = s.add("Unsqueeze", indices(s, labels, 1), last)
    chosen = s.add("GatherElements", s.add("LogSoftmax", logits, axis=-1), ids, axis=-1)
    return s.add("Neg", s.add("Squeeze", chosen, last))


@RULES.writes("sparse_softmax_cross_entropy_grad")
def _cross_entropy_grad(s: Site, dy: str, logits: str, labels: str) -> str:
    last, dtype = s.ints(-1), s.out.dtype
    ids = s.add("Unsqueeze", s.cast(labels, s.specs[2].dtype, INT64), last)
    right = s.cast(s.add("Equal", ids, s.range(s.size(logits, -1, s.specs[1]))), np.dtype(np.bool_), dtype)
    off = s.add("Sub", s.add("Softmax", logits, axis=-1), right)
    return s.add("Mul", off, s.add("Unsqueeze", dy, last))


# --- convolution and pooling -----------------------------------------------------------------------------------------


def _nchw(s: Site, x: str) -> str:
    return x if s.attrs["data_format"] == "NCHW" else s.transpose(x, (0, 3, 1, 2))


def _laid_out(s: Site, y: str) -> str:
    return y if s.attrs["data_format"] == "NCHW" else s.transpose(y, (0, 2, 3, 1))


def _spatial(s: Site, shape: Any) -> tuple[Dim, Dim]:
    """Height and width."""
    _, height, width, _ = to_nhwc(shape, s.attrs["data_format"])
    return height, width


def _padding(s: Site, size: tuple[Dim, Dim], kernel: tuple[Dim, Dim]) -> dict[str, Any]:
    """ONNX's attributes for the attribute `padding`: numbers where they are known."""
    padding, strides, dilation = s.attrs["padding"], s.attrs["strides"], s.attrs["dilation"]
    if padding == "SAME" and None in (*size, *kernel):
        if dilation != (1, 1):
            s.fail("SAME padding with a dilation needs a known height and width")
        return {"auto_pad": "SAME_UPPER"}
    # Other paddings do not ask for sizes.
    both = [pads(padding, a, size[a] or 1, kernel[a] or 1, strides[a], dilation[a]) for a in (0, 1)]
    return {"pads": [both[0][0], both[1][0], both[0][1], both[1][1]]}


def _geometry(s: Site) -> dict[str, Any]:
    return {"strides": list(s.attrs["strides"]), "dilations": list(s.attrs["dilation"])}


@RULES.writes("conv2d")
def _conv2d(s: Site, x: str, w: str) -> str:
    kernel = (s.specs[1].shape or (None, None))[:2]
    images = _nchw(s, s.cast(x, s.specs[0].dtype, s.out.dtype))
    filters = s.transpose(s.cast(w, s.specs[1].dtype, s.out.dtype), (3, 2, 0, 1))
    padding = _padding(s, _spatial(s, s.specs[0].shape), (kernel[0], kernel[1]))
    return _laid_out(s, s.add("Conv", images, filters, group=s.attrs["groups"], **padding, **_geometry(s)))


@RULES.writes("conv2d_input_grad")
def _conv2d_input_grad(s: Site, dy: str, w: str, vector: str = "") -> str:
    """A transposed convolution. Rows that no window of the convolution reached come out as zeros at the end."""
    kernel, (height, width) = (s.specs[1].shape or (None, None))[:2], _spatial(s, s.out.shape)
    if height is None or width is None or kernel[0] is None or kernel[1] is None:
        s.fail("a transposed convolution needs the height and width of its filters and of its result")
    padding, strides, dilation = s.attrs["padding"], s.attrs["strides"], s.attrs["dilation"]
    before, after, left = [], [], []
    for a, (size, rows) in enumerate(((height, kernel[0]), (width, kernel[1]))):
        first, last = pads(padding, a, size, rows, strides[a], dilation[a])
        room = size + first + last - ((rows - 1) * dilation[a] + 1)
        before.append(first)
        after.append(last)
        left.append(room % strides[a])
    filters = s.transpose(s.cast(w, s.specs[1].dtype, s.out.dtype), (3, 2, 0, 1))
    made = s.add(
        "ConvTranspose",
        _nchw(s, s.cast(dy, s.specs[0].dtype, s.out.dtype)),
        filters,
        group=s.attrs["groups"],
        pads=[*before, *after],
        output_padding=left,
        **_geometry(s),
    )
    return _laid_out(s, made)


def _pooled(s: Site, op: str, x: str, **more: Any) -> str:
    window = s.attrs["window"]
    padding = _padding(s, _spatial(s, s.specs[0].shape), window)
    geometry = _geometry(s)
    if s.attrs["dilation"] == (1, 1):
        del geometry["dilations"]
    return _laid_out(s, s.add(op, _nchw(s, x), kernel_shape=list(window), **padding, **geometry, **more))


@RULES.writes("max_pool2d")
def _max_pool2d(s: Site, x: str) -> str:
    return _pooled(s, "MaxPool", x)


@RULES.writes("avg_pool2d")
def _avg_pool2d(s: Site, x: str) -> str:
    return _pooled(s, "AveragePool", x, count_include_pad=0)
