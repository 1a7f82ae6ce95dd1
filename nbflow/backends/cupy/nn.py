"""cupy: activations, softmax and its cross entropy. A class id that does not exist makes its loss NaN: looking for one
would wait for the GPU."""

from __future__ import annotations

from typing import Any

import cupy as cp
import numpy as np

from nbflow.backends.base import Table
from nbflow.backends.cupy.elementwise import cast
from nbflow.errors import OpError

TABLE = Table()
A = Any

_SIGMOID = cp.ElementwiseKernel("T x", "T y", "y = (tanh(x * T(0.5)) + T(1)) * T(0.5)", "nbflow_sigmoid")
_RELU_GRAD = cp.ElementwiseKernel("T dy, T y", "T dx", "dx = y > T(0) ? dy : dy * T(0)", "nbflow_relu_grad")
_LOSS = cp.ElementwiseKernel(
    "raw T logs, int64 label, int64 classes",
    "T loss",
    'loss = label >= 0 && label < classes ? -logs[i * classes + label] : T(nan(""))',
    "nbflow_cross_entropy",
)
_LOSS_GRAD = cp.ElementwiseKernel(
    "raw T dy, raw int64 labels, int64 classes",
    "T p",
    "long long row = i / classes; p = (p - (labels[row] == i % classes ? T(1) : T(0))) * dy[row]",
    "nbflow_cross_entropy_grad",
)


@TABLE.implements("relu")
def relu(x: A, *, out: A | None = None) -> A:
    return cp.maximum(x, x.dtype.type(0), out=out)


@TABLE.implements("relu_grad")
def relu_grad(dy: A, y: A, *, out: A | None = None) -> A:
    if dy.dtype != y.dtype:
        return cp.multiply(dy, y > 0, out=out)
    return _RELU_GRAD(dy, y) if out is None else _RELU_GRAD(dy, y, out)


@TABLE.implements("sigmoid")
def sigmoid(x: A, *, out: A | None = None) -> A:
    """(1 + tanh(x / 2)) / 2, which does not overflow."""
    return _SIGMOID(x) if out is None else _SIGMOID(x, out)


@TABLE.implements("softplus")
def softplus(x: A, *, out: A | None = None) -> A:
    return cp.logaddexp(x.dtype.type(0), x, out=out)


@TABLE.implements("softmax")
def softmax(x: A, *, axis: int, out: A | None = None) -> A:
    made = cp.empty_like(x, order="C") if out is None else out
    if not x.size:
        return made
    cp.subtract(x, x.max(axis=axis, keepdims=True), out=made)
    cp.exp(made, out=made)
    cp.divide(made, made.sum(axis=axis, keepdims=True), out=made)
    return made


@TABLE.implements("log_softmax")
def log_softmax(x: A, *, axis: int, out: A | None = None) -> A:
    made = cp.empty_like(x, order="C") if out is None else out
    if not x.size:
        return made
    cp.subtract(x, x.max(axis=axis, keepdims=True), out=made)
    cp.subtract(made, cp.log(cp.exp(made).sum(axis=axis, keepdims=True)), out=made)
    return made


def _check(labels: A, logits: A) -> None:
    if labels.shape != logits.shape[:-1]:
        raise OpError(
            f"softmax_cross_entropy: labels of shape {labels.shape} do not fit logits of shape {logits.shape}; "
            "class ids have the shape of the logits without the last dimension"
        )


@TABLE.implements("sparse_softmax_cross_entropy")
def sparse_softmax_cross_entropy(logits: A, labels: A, *, out: A | None = None) -> A:
    _check(labels, logits)
    made = cp.empty(labels.shape, logits.dtype)
    if labels.size:
        logs = log_softmax(logits, axis=-1)
        _LOSS(logs, labels.astype(np.int64, copy=False), logits.shape[-1], made)
    return made if out is None else cast(made, out.dtype, out)


@TABLE.implements("sparse_softmax_cross_entropy_grad")
def sparse_softmax_cross_entropy_grad(dy: A, logits: A, labels: A, *, out: A | None = None) -> A:
    """(softmax(logits) - onehot(labels)) * dy."""
    _check(labels, logits)
    made = softmax(cp.ascontiguousarray(logits), axis=-1)
    if made.size:
        given = cp.ascontiguousarray(dy.astype(made.dtype, copy=False))
        whole = cp.ascontiguousarray(labels.astype(np.int64, copy=False))
        _LOSS_GRAD(given, whole, logits.shape[-1], made)
    return made if out is None else cast(made, out.dtype, out)
