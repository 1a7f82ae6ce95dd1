"""Rows of `nf.nn`: activations, losses, convolution, pooling, norms, attention; see `case.py`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

import nbflow as nf
from nbflow.graph import Tensor
from nbflow.ops._build import build
from nbflow.testing.cases.case import Case, f, i

A = np.ndarray[Any, Any]

OPS: list[Case] = []


def row(op: str, make: Callable[..., Any], inputs: Any, expect: Callable[..., Any] | None, **more: Any) -> None:
    OPS.append(Case(op, make, tuple(inputs), expect, **more))


# --- activations and softmax -----------------------------------------------------------------------------------------


def _erf(x: A) -> A:
    return np.vectorize(math.erf, otypes=[np.float64])(x)


def _softmax(x: A, axis: int = -1) -> A:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def _sigmoid(x: A) -> A:
    return 1 / (1 + np.exp(-x))


_AWAY = f(3, 4)  # no element near a kink at 0, or the differences would straddle it
_AWAY = np.where(np.abs(_AWAY) < 0.05, 0.3, _AWAY)

row("relu", nf.nn.relu, [_AWAY], lambda x: np.maximum(x, 0), differentiable=2)
row("relu", nf.nn.relu, [f(dtype="float32")], lambda x: np.maximum(x, 0))
row("relu", nf.nn.relu, [i(5)], lambda x: np.maximum(x, 0))
row("relu_grad", lambda g, y: build("relu_grad", (g, y)), [f(3, 4), _AWAY], lambda g, y: g * (y > 0), differentiable=0)
for _shape in ((3, 4), (), (0, 2)):
    row("sigmoid", nf.nn.sigmoid, [f(*_shape)], _sigmoid, differentiable=2)
    row("softplus", nf.nn.softplus, [f(*_shape)], lambda x: np.log1p(np.exp(x)), differentiable=2)
row("sigmoid", nf.nn.sigmoid, [np.array([-1000.0, 1000.0])], lambda x: np.array([0.0, 1.0]))
row("softplus", nf.nn.softplus, [np.array([-1000.0, 1000.0])], lambda x: np.array([0.0, 1000.0]))
row("where", nf.nn.leaky_relu, [_AWAY], lambda x: np.where(x > 0, x, 0.2 * x), differentiable=2)
row("where", nf.nn.elu, [_AWAY], lambda x: np.where(x > 0, x, np.expm1(x)), differentiable=1)
row("erf", nf.nn.gelu, [f(2, 3)], lambda x: x * 0.5 * (1 + _erf(x / np.sqrt(2))), differentiable=2)
row(
    "tanh",
    lambda x: nf.nn.gelu(x, approximate=True),
    [f(2, 3)],
    lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    differentiable=2,
)
row("sigmoid", nf.nn.silu, [f(2, 3)], lambda x: x * _sigmoid(x), differentiable=2)

for _axis in (-1, 0):
    row(
        "softmax",
        lambda x, a=_axis: nf.nn.softmax(x, axis=a),
        [f(3, 4)],
        lambda x, a=_axis: _softmax(x, a),
        differentiable=2,
    )
    row(
        "log_softmax",
        lambda x, a=_axis: nf.nn.log_softmax(x, axis=a),
        [f(3, 4)],
        lambda x, a=_axis: np.log(_softmax(x, a)),
        differentiable=2,
    )
row("softmax", nf.nn.softmax, [np.array([[1e4, 0.0], [-1e4, -1e4]])], lambda x: np.array([[1.0, 0.0], [0.5, 0.5]]))
row("softmax", nf.nn.softmax, [f(0, 3, dtype="float32")], lambda x: x)
row("log_softmax", nf.nn.log_softmax, [np.array([1e4, 0.0])], lambda x: np.array([0.0, -1e4]))

# --- cross entropies -------------------------------------------------------------------------------------------------


def _sparse(logits: A, labels: A) -> A:
    return -np.take_along_axis(np.log(_softmax(logits)), labels[..., None], -1)[..., 0]


def _onehot(labels: A, classes: int) -> A:
    return (labels[..., None] == np.arange(classes)).astype("float64")


_IDS = i(3, low=0, high=4)
row("sparse_softmax_cross_entropy", nf.nn.softmax_cross_entropy, [f(3, 4), _IDS], _sparse, differentiable=2)
row("sparse_softmax_cross_entropy", nf.nn.softmax_cross_entropy, [f(2, 3, 4), i(2, 3, low=0, high=4)], _sparse)
row("sparse_softmax_cross_entropy", nf.nn.softmax_cross_entropy, [f(4), np.array(2)], _sparse, differentiable=2)
row(
    "sparse_softmax_cross_entropy",
    nf.nn.softmax_cross_entropy,
    [np.array([[1e4, 0.0], [0.0, 1e4]], "float32"), np.array([0, 0], "int32")],
    lambda x, y: np.array([0, 1e4], "float32"),
)
row(
    "sparse_softmax_cross_entropy_grad",
    lambda g, x, y: build("sparse_softmax_cross_entropy_grad", (g, x, y)),
    [f(3), f(3, 4), _IDS],
    lambda g, x, y: (_softmax(x) - _onehot(y, 4)) * g[:, None],
    differentiable=2,
)
row(
    "log_softmax",
    nf.nn.softmax_cross_entropy,
    [f(3, 4), f(3, 4, low=0.1, seed=1)],
    lambda x, p: -(p * np.log(_softmax(x))).sum(-1),
    differentiable=2,
)
row(
    "softplus",
    nf.nn.sigmoid_cross_entropy,
    [f(3, 4), f(3, 4, low=0, high=1, seed=1)],
    lambda x, p: -p * np.log(_sigmoid(x)) - (1 - p) * np.log(1 - _sigmoid(x)),
    differentiable=2,
    rtol=1e-12,
)
row("mean", nf.nn.mean_squared_error, [f(3, 2), f(3, 2, seed=1)], lambda x, y: np.mean((x - y) ** 2), differentiable=2)

# --- convolution and pooling -----------------------------------------------------------------------------------------

_IN_LOOPS = "value in test_nn_conv.py"
_CONV = {"strides": (2, 1), "padding": "SAME", "data_format": "NHWC", "dilation": (1, 1), "groups": 1}
_POOL = {
    "window": (2, 2),
    "strides": (2, 1),
    "padding": "VALID",
    "data_format": "NHWC",
    "dilation": (1, 1),
    "ceil": False,
}


def _forward_1x1(x: A, w: A) -> A:
    return np.einsum("nhwc,co->nhwo", x, w[0, 0])


row("conv", nf.nn.conv2d, [f(2, 3, 3, 2), f(1, 1, 2, 3)], _forward_1x1, differentiable=2)
row("conv", lambda x, w: nf.nn.conv2d(x, w, 2), [f(1, 3, 4, 2), f(2, 2, 2, 1)], None, differentiable=2, note=_IN_LOOPS)
row(
    "conv",
    lambda x, w: nf.nn.conv2d(x, w, padding=((0, 1), (1, 0)), data_format="NCHW", dilation=2),
    [f(1, 2, 4, 4), f(2, 2, 2, 2)],
    None,
    differentiable=2,
    note=_IN_LOOPS,
)
row(
    "conv",
    nf.nn.depthwise_conv2d,
    [f(1, 3, 3, 2), f(2, 2, 1, 4)],
    None,
    differentiable=2,
    dynamic=False,
    note=f"{_IN_LOOPS}; the number of channels must be known",
)
row(
    "conv_input_grad",
    lambda g, w: build("conv_input_grad", (g, w), {**_CONV, "shape": (1, 4, 3, 2)}),
    [f(1, 2, 3, 2), f(3, 2, 2, 2)],
    None,
    differentiable=2,
    note=_IN_LOOPS,
)
row(
    "conv_filter_grad",
    lambda x, g: build("conv_filter_grad", (x, g), {**_CONV, "shape": (3, 2, 2, 2)}),
    [f(1, 4, 3, 2), f(1, 2, 3, 2)],
    None,
    differentiable=2,
    note=_IN_LOOPS,
)
for _function, _name in ((nf.nn.max_pool2d, "max_pool"), (nf.nn.avg_pool2d, "avg_pool")):
    row(_name, lambda x, p=_function: p(x, 2), [f(2, 4, 4, 1)], None, differentiable=2, note=_IN_LOOPS)
    row(
        _name,
        lambda x, p=_function: p(x, (3, 2), 1, "SAME", "NCHW"),
        [f(1, 2, 4, 3)],
        None,
        differentiable=2,
        note=_IN_LOOPS,
    )


def _pool_grad(op: str) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda g, x: build(op, (g, x, build("max_pool", (x,), _POOL)), _POOL)


# Linear in its first input; the second only says where the maxima are.
row(
    "max_pool_grad",
    _pool_grad("max_pool_grad"),
    [f(1, 2, 2, 1), f(1, 4, 3, 1)],
    None,
    differentiable=1,
    note=_IN_LOOPS,
)
row(
    "max_pool_pick",
    _pool_grad("max_pool_pick"),
    [f(1, 4, 3, 1), f(1, 4, 3, 1, seed=1)],
    None,
    differentiable=1,
    note=_IN_LOOPS,
)
row(
    "avg_pool_grad",
    lambda g: build("avg_pool_grad", (g,), {**_POOL, "count": "inside", "shape": (1, 4, 3, 1)}),
    [f(1, 2, 2, 1)],
    None,
    differentiable=2,
    note=_IN_LOOPS,
)

# --- normalisation, embeddings, attention ----------------------------------------------------------------------------


def _normal(x: A, axis: Any) -> A:
    return (x - x.mean(axis, keepdims=True)) / np.sqrt(x.var(axis, keepdims=True) + 1e-5)


row("rsqrt", nf.nn.layer_norm, [f(3, 4)], lambda x: _normal(x, -1), differentiable=2)
row(
    "rsqrt",
    nf.nn.layer_norm,
    [f(2, 4), f(4, seed=1), f(4, seed=2)],
    lambda x, a, b: _normal(x, -1) * a + b,
    differentiable=2,
)
row(
    "rsqrt",
    nf.nn.batch_norm,
    [f(4, 3), f(3, seed=1), f(3, seed=2)],
    lambda x, a, b: _normal(x, 0) * a + b,
    differentiable=2,
    unranked=False,
)
row(
    "rsqrt",
    lambda x, a: nf.nn.batch_norm(x, a, axis=1),
    [f(2, 3, 2, 2), f(3, seed=1)],
    lambda x, a: _normal(x, (0, 2, 3)) * a[:, None, None],
    differentiable=1,
    unranked=False,
)
row(
    "rsqrt",
    lambda x, m, v: nf.nn.batch_norm(x, mean=m, variance=v),
    [f(4, 3), f(3, seed=1), f(3, low=0.5, seed=2)],
    lambda x, m, v: (x - m) / np.sqrt(v + 1e-5),
    differentiable=2,
    unranked=False,
)
row("take", nf.nn.embedding_lookup, [f(5, 2), i(2, 3, low=0, high=5)], lambda t, n: t[n], differentiable=2)


def _attention(q: A, k: A, v: A, causal: bool = False) -> A:
    scores = q @ np.swapaxes(k, -1, -2) / np.sqrt(q.shape[-1])
    if causal:
        scores = np.where(np.tri(*scores.shape[-2:], k=scores.shape[-1] - scores.shape[-2]) > 0, scores, -np.inf)
    return _softmax(scores) @ v


_QKV = [f(2, 3, 4), f(2, 5, 4, seed=1), f(2, 5, 2, seed=2)]
row("softmax", nf.nn.attention, _QKV, _attention, differentiable=1, dynamic=False, note="the depth must be known")
row(
    "softmax",
    lambda q, k, v: nf.nn.attention(q, k, v, causal=True),
    _QKV,
    lambda q, k, v: _attention(q, k, v, causal=True),
    differentiable=1,
    dynamic=False,
    note="the depth must be known",
)
