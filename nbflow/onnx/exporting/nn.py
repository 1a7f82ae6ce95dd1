"""Activations, softmax and cross entropy as ONNX nodes."""

from __future__ import annotations

import numpy as np

from nbflow.onnx.exporting.indexing import indices
from nbflow.onnx.exporting.writer import INT64, Rules, Site
from nbflow.spec import kind_of

RULES = Rules()


# --- activations, softmax, cross entropy -----------------------------------------------------------------------------


@RULES.writes("relu")
def _relu(s: Site, x: str) -> str:
    if kind_of(s.out.dtype) == "f":
        return s.add("Relu", x)
    return s.widely("Max", x, s.const(0, s.out.dtype), dtype=s.out.dtype, keep="int32 int64")


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
