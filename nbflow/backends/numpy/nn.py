"""Neural-network ops on numpy arrays: activations, softmax and its cross entropy."""

from __future__ import annotations

from typing import Any

import numpy as np

from nbflow.backends.base import Table
from nbflow.errors import OpError

TABLE = Table()

Array = np.ndarray[Any, np.dtype[Any]]


@TABLE.implements("relu")
def relu(x: Array, *, out: Array | None = None) -> Array:
    made: Array = np.maximum(x, x.dtype.type(0), out=out)
    return made


@TABLE.implements("relu_grad")
def relu_grad(dy: Array, y: Array, *, out: Array | None = None) -> Array:
    made: Array = np.multiply(dy, y > 0, out=out)
    return made


@TABLE.implements("sigmoid")
def sigmoid(x: Array, *, out: Array | None = None) -> Array:
    """(1 + tanh(x / 2)) / 2, which does not overflow."""
    half = x.dtype.type(0.5)
    made = np.empty_like(x) if out is None else out
    np.multiply(x, half, out=made)
    np.tanh(made, out=made)
    np.add(made, x.dtype.type(1), out=made)
    np.multiply(made, half, out=made)
    return made


@TABLE.implements("softplus")
def softplus(x: Array, *, out: Array | None = None) -> Array:
    """log(1 + exp(x)) = logaddexp(0, x), which does not overflow."""
    made: Array = np.logaddexp(x.dtype.type(0), x, out=out)
    return made


@TABLE.implements("softmax")
def softmax(x: Array, *, axis: int, out: Array | None = None) -> Array:
    made: Array = np.subtract(x, _top(x, axis), out=out)
    np.exp(made, out=made)
    made /= made.sum(axis=axis, keepdims=True)
    return made


@TABLE.implements("log_softmax")
def log_softmax(x: Array, *, axis: int, out: Array | None = None) -> Array:
    made: Array = np.subtract(x, _top(x, axis), out=out)
    made -= np.log(np.exp(made).sum(axis=axis, keepdims=True))
    return made


def _top(x: Array, axis: int) -> Array:
    """The maximum along `axis`, also when there are no classes."""
    top: Array = np.max(x, axis=axis, keepdims=True, initial=-np.inf)
    return top


def _check_labels(labels: Array, logits: Array) -> None:
    classes = logits.shape[-1]
    if labels.shape != logits.shape[:-1]:
        raise OpError(
            f"softmax_cross_entropy: labels of shape {labels.shape} do not fit logits of shape {logits.shape}; "
            "class ids have the shape of the logits without the last dimension"
        )
    if labels.size and not (labels.min() >= 0 and labels.max() < classes):
        raise OpError(
            f"softmax_cross_entropy: class ids lie between {labels.min()} and {labels.max()}, but logits of shape "
            f"{logits.shape} have the classes 0 to {classes - 1}"
        )


@TABLE.implements("sparse_softmax_cross_entropy")
def sparse_softmax_cross_entropy(logits: Array, labels: Array, *, out: Array | None = None) -> Array:
    _check_labels(labels, logits)
    logs = log_softmax(logits, axis=-1)
    chosen = np.take_along_axis(logs, labels[..., None].astype(np.intp, copy=False), axis=-1)[..., 0]
    made: Array = np.negative(chosen, out=out)
    return made


@TABLE.implements("sparse_softmax_cross_entropy_grad")
def sparse_softmax_cross_entropy_grad(dy: Array, logits: Array, labels: Array, *, out: Array | None = None) -> Array:
    """(softmax(logits) - onehot(labels)) * dy."""
    _check_labels(labels, logits)
    made: Array = softmax(logits, axis=-1, out=out)
    at = labels[..., None].astype(np.intp, copy=False)
    np.put_along_axis(made, at, np.take_along_axis(made, at, axis=-1) - made.dtype.type(1), axis=-1)
    np.multiply(made, dy[..., None], out=made)
    return made
