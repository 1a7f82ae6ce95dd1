"""Activations, losses, normalisation and convolutions made of other ops: values by definition, and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nbflow import nn
from nbflow.errors import GraphError, ShapeError
from nbflow.graph import Graph
from nbflow.ops import placeholder
from nbflow.testing import Evaluator, check_gradients, evaluate
from tests.unit.test_nn_conv import plain_conv

A = np.ndarray[Any, Any]
RNG = np.random.default_rng(11)
# Away from the kinks of all functions below, where differences would straddle them.
X = np.array([[-7.3, -3.7, -1.4, -0.8], [-0.3, 0.2, 0.7, 1.3], [2.6, 3.4, 5.5, 7.1]])
P = np.array([[0.2, 0.3, 0.5], [0.0, 0.4, 0.6]])
Q = np.array([[0.4, 0.4, 0.2], [0.5, 0.3, 0.2]])


def soft(x: A) -> A:
    return np.log1p(np.exp(x))


ACTIVATIONS: dict[str, tuple[Callable[..., Any], Callable[[A], A]]] = {
    "selu": (nn.selu, lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x))),
    "celu": (lambda x: nn.celu(x, 2.0), lambda x: np.maximum(x, 0) + np.minimum(0, 2 * np.expm1(x / 2))),
    "relu6": (nn.relu6, lambda x: np.clip(x, 0, 6)),
    "hard_sigmoid": (nn.hard_sigmoid, lambda x: np.clip(0.2 * x + 0.5, 0, 1)),
    "hard_swish": (nn.hard_swish, lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
    "hard_tanh": (nn.hard_tanh, lambda x: np.clip(x, -1, 1)),
    "mish": (nn.mish, lambda x: x * np.tanh(soft(x))),
    "softsign": (nn.softsign, lambda x: x / (1 + np.abs(x))),
    "log_sigmoid": (nn.log_sigmoid, lambda x: -soft(-x)),
    "thresholded_relu": (lambda x: nn.thresholded_relu(x, 1.0), lambda x: np.where(x > 1, x, 0)),
    "hard shrink": (nn.shrink, lambda x: np.where(np.abs(x) > 0.5, x, 0)),
    "soft shrink": (lambda x: nn.shrink(x, 0.5, 0.5), lambda x: np.sign(x) * np.maximum(np.abs(x) - 0.5, 0)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str) -> None:
    function, formula = ACTIVATIONS[name]
    with Graph().as_default():
        np.testing.assert_allclose(evaluate(function(X)), formula(X), rtol=1e-12, atol=1e-15)
        single = function(X.astype(np.float32))
        assert single.dtype == np.float32
        np.testing.assert_allclose(evaluate(single), formula(X), rtol=2e-6, atol=1e-6)
        assert np.isfinite(evaluate(function(np.array([-1e4, 1e4])))).all()
    check_gradients(function, X)


def test_prelu() -> None:
    slope = np.array([0.1, 0.2, 0.3, 0.4])
    with Graph().as_default():
        np.testing.assert_allclose(evaluate(nn.prelu(X, slope)), np.where(X > 0, X, X * slope))
    check_gradients(nn.prelu, X, slope)


def cosine(a: A, b: A) -> A:
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def huber(a: A, b: A) -> A:
    d = np.abs(a - b)
    return np.where(d <= 0.7, d**2 / 2, 0.7 * (d - 0.35)).mean()


def focal(z: A, y: A) -> A:
    p = 1 / (1 + np.exp(-z))
    of_label = np.where(y == 1, p, 1 - p)
    return -((1 - of_label) ** 2) * np.log(of_label)


OTHER = X[::-1] * 0.3 + 0.11
SIGNS = np.where(RNG.normal(size=X.shape) > 0, 1.0, -1.0)
LOSSES: dict[str, tuple[Callable[..., Any], Callable[[A, A], Any], A, A]] = {
    "mean_absolute_error": (nn.mean_absolute_error, lambda a, b: np.abs(a - b).mean(), X, OTHER),
    "huber": (lambda a, b: nn.huber(a, b, 0.7), huber, X, OTHER),
    "hinge": (nn.hinge, lambda a, b: np.maximum(0, 1 - a * b).mean(), X, SIGNS),
    "kl_divergence": (nn.kl_divergence, lambda p, q: (p * np.log(np.where(p > 0, p, 1) / q)).sum(-1), P, Q),
    "cosine_similarity": (nn.cosine_similarity, cosine, X, OTHER),
    "sigmoid_focal": (nn.sigmoid_focal, focal, X, (SIGNS + 1) / 2),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str) -> None:
    function, formula, a, b = LOSSES[name]
    with Graph().as_default():
        np.testing.assert_allclose(evaluate(function(a, b)), formula(a, b), rtol=1e-9, atol=1e-12)
        with pytest.raises(ShapeError, match="differ"):
            function(a, b[0])
    if name == "kl_divergence":
        # With respect to q: at p = 0 the divergence has a slope of minus infinity in p.
        check_gradients(lambda q: function(P, q), Q)
    else:
        check_gradients(lambda x: function(x, b), a)


def normed(x: A, axes: tuple[int, ...], epsilon: float) -> A:
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + epsilon)


@pytest.mark.parametrize("axis", [-1, 1])
def test_group_and_instance_norm(axis: int) -> None:
    x = RNG.normal(size=(2, 3, 4, 6))
    scale, offset = RNG.normal(size=6), RNG.normal(size=6)
    parts = normed(x.reshape(2, 3, 4, 2, 3), (1, 2, 4), 1e-5).reshape(x.shape) * scale + offset
    each = normed(x, (1, 2), 1e-5) * scale + offset
    turn = (lambda a: a) if axis == -1 else (lambda a: a.transpose(0, 3, 1, 2))
    with Graph().as_default():
        shape = (None, None, None, 6) if axis == -1 else (None, 6, None, 4)
        fed = placeholder("float64", shape, name="fed")
        for given in (turn(x), fed):
            made = [nn.group_norm(given, 2, scale, offset, axis), nn.instance_norm(given, scale, offset, axis)]
            found = Evaluator().run(made, {fed: turn(x)})
            np.testing.assert_allclose(found[0], turn(parts), rtol=1e-10)
            np.testing.assert_allclose(found[1], turn(each), rtol=1e-10)
        with pytest.raises(ShapeError, match="groups"):
            nn.group_norm(turn(x), 4, axis=axis)
    check_gradients(lambda a, s: nn.group_norm(a, 2, s), x[:1, :2, :2], scale)


def test_rms_norm() -> None:
    x, scale = RNG.normal(size=(3, 5)), RNG.normal(size=5)
    with Graph().as_default():
        expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale
        np.testing.assert_allclose(evaluate(nn.rms_norm(x, scale)), expected, rtol=1e-12)
    check_gradients(nn.rms_norm, x, scale)


@pytest.mark.parametrize("padding", ["SAME", "VALID", (2, 0)])
@pytest.mark.parametrize("layout", ["NWC", "NCW"])
def test_conv1d(padding: Any, layout: str) -> None:
    x, w = RNG.normal(size=(2, 7, 4)), RNG.normal(size=(3, 2, 6))
    sides = padding if isinstance(padding, str) else ((0, 0), padding)
    expected = plain_conv(x[:, None], w[None], (1, 2), sides, (1, 1), 2)[:, 0]
    order = (0, 2, 1) if layout == "NCW" else (0, 1, 2)
    with Graph().as_default():
        made = nn.conv1d(x.transpose(order), w, 2, padding, layout, groups=2)
        np.testing.assert_allclose(evaluate(made), expected.transpose(order), rtol=1e-12, atol=1e-12)
        with pytest.raises(GraphError, match="NWC"):
            nn.conv1d(x, w, data_format="NHWC")
        with pytest.raises(ShapeError, match="three dimensions"):
            nn.conv1d(x[0], w)


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((1, 0), (0, 1))])
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_conv_transpose2d_is_the_transpose_of_conv2d(padding: Any, layout: str) -> None:
    """⟨conv(u), x⟩ = ⟨u, transposed(x)⟩ for all u, by the definition of conv2d in loops."""
    x, w = RNG.normal(size=(2, 3, 4, 5)), RNG.normal(size=(3, 2, 3, 5))
    order = (0, 3, 1, 2) if layout == "NCHW" else (0, 1, 2, 3)
    with Graph().as_default():
        fed = placeholder("float64", (None, *x.transpose(order).shape[1:]), name="fed")
        made = nn.conv_transpose2d(fed, w, 2, padding, layout)
        found = Evaluator().run(made, {fed: x.transpose(order)})
        assert made.shape == (None, *found.shape[1:])
        back = found if layout == "NHWC" else found.transpose(0, 2, 3, 1)
        for _ in range(3):
            u = RNG.normal(size=back.shape)
            forward = plain_conv(u, w, (2, 2), padding, (1, 1), 1)
            np.testing.assert_allclose((forward * x).sum(), (u * back).sum(), rtol=1e-10)
        whole = placeholder("float64", None, name="open")  # sizes found at run time
        np.testing.assert_allclose(
            Evaluator().run(nn.conv_transpose2d(whole, w, 2, padding, layout), {whole: x.transpose(order)}), found
        )
        with pytest.raises(ShapeError, match=r"filters .* of known shape"):
            nn.conv_transpose2d(x, placeholder("float64", (None, 2, 3, 5), name="filters"))
    check_gradients(lambda a, b: nn.conv_transpose2d(a, b, 2, "VALID"), x[:1, :2, :2], w)


def test_global_pooling() -> None:
    x = RNG.normal(size=(2, 3, 4, 5))
    with Graph().as_default():
        np.testing.assert_allclose(evaluate(nn.global_avg_pool(x)), x.mean((1, 2)))
        np.testing.assert_allclose(evaluate(nn.global_max_pool(x, "NCHW", keepdims=True)), x.max((2, 3), keepdims=True))
        np.testing.assert_allclose(evaluate(nn.global_max_pool(x[0], "NWC")), x[0].max(1))
        with pytest.raises(ShapeError, match="global pooling"):
            nn.global_avg_pool(x, "NWC")
