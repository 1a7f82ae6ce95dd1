"""Gradients where a formula would divide 0 by 0 though the mathematics has a value: none is NaN."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import nbflow as nf
from nbflow.graph import Graph
from nbflow.testing import evaluate

INF, NAN = np.inf, np.nan
A = np.ndarray[Any, Any]


@pytest.fixture
def graph() -> Iterator[Graph]:
    with Graph().as_default() as made:
        yield made


def slopes(function: Callable[..., Any], *arrays: Any) -> list[A]:
    """The gradients of the sum of `function`, for each array."""
    values = [np.asarray(a, np.float64) for a in arrays]
    with Graph().as_default(), np.errstate(all="ignore"):
        inputs = [nf.placeholder("float64", v.shape) for v in values]
        found = nf.gradients(nf.sum(function(*inputs)), inputs)
        zeros = [nf.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]
        made: list[A] = evaluate(zeros, dict(zip(inputs, values, strict=True)))
        return made


# name: function, inputs, gradients
EDGES: dict[str, tuple[Callable[..., Any], list[Any], list[Any]]] = {
    # Kinks: 0 is among the subgradients.
    "abs at 0": (nf.abs, [[0.0, -2.0, 3.0]], [[0, -1, 1]]),
    "norm at 0": (nf.linalg.vector_norm, [[0.0, 0.0]], [[0, 0]]),
    "norm 3 at 0": (lambda x: nf.linalg.vector_norm(x, ord=3), [[0.0, 0.0]], [[0, 0]]),
    "norm 1 at 0": (lambda x: nf.linalg.vector_norm(x, ord=1), [[0.0, 2.0]], [[0, 1]]),
    "a zero row among others": (lambda x: nf.linalg.vector_norm(x, axis=1), [[[0, 0], [3, 4]]], [[[0, 0], [0.6, 0.8]]]),
    "matrix norm at 0": (nf.linalg.matrix_norm, [np.zeros((2, 2))], [np.zeros((2, 2))]),
    "hypot at 0": (nf.hypot, [[0.0, 3.0], [0.0, 4.0]], [[0, 0.6], [0, 0.8]]),
    "atan2 at 0": (nf.atan2, [[0.0, 0.0], [0.0, 1.0]], [[0, 1], [0, 0]]),
    "std of equal numbers": (nf.std, [[2.0, 2.0]], [[0, 0]]),
    "std of one": (lambda x: nf.std(x, axis=1), [[[2.0]]], [[[0]]]),
    "relu at 0": (nf.nn.relu, [[0.0, 1.0]], [[0, 1]]),
    "maximum at a tie": (nf.maximum, [[1.0], [1.0]], [[1], [0]]),
    "max at a tie": (nf.max, [[2.0, 2.0, 1.0]], [[0.5, 0.5, 0]]),
    "the first of equal values": (nf.unique_values, [[2.0, 1.0, 2.0]], [[1, 1, 0]]),
    "the first of equal rows": (lambda x: nf.unique_slices(x, axis=0)[0], [[[2.0], [2.0]]], [[[1], [0]]]),
    # What a choice leaves out.
    "x log x of what is positive": (lambda x: nf.where(x > 0, x * nf.log(x), 0.0), [[0.0, -1.0, 1.0]], [[0, 0, 1]]),
    "missing labels": (
        lambda x, y: nf.mean(nf.where(nf.isnan(y), 0.0, nf.square(x - y))),
        [[1.0, 2.0], [NAN, 0.0]],
        [[0, 2], [0, -2]],
    ),
    "missing features": (lambda x, w: nf.where(nf.isnan(x), 0.0, x * w), [[NAN, 2.0], [3.0]], [[0, 3], [2]]),
    "a sine left out": (lambda x: nf.where(nf.isfinite(x), -nf.sin(x) * x, 0.0), [[INF, 0.0]], [[0, 0]]),
    # Powers.
    "0 ** 2": (lambda x: x**2.0, [[0.0]], [[0]]),
    "0 ** 1": (lambda x: nf.pow(x, nf.ones_like(x)), [[0.0]], [[1]]),
    "0 ** 0": (nf.pow, [[0.0], [0.0]], [[0], [0]]),
    "0 ** y": (nf.pow, [[0.0, 0.0], [2.5, 1.0]], [[0, 1], [0, 0]]),
    "negative ** y": (lambda x: nf.pow(x, nf.full_like(x, 3.0)), [[-2.0]], [[12]]),
    "prod with a zero": (nf.prod, [[0.0, 2.0, 3.0]], [[6, 0, 0]]),
    "prod with two zeros": (nf.prod, [[0.0, 0.0, 3.0]], [[0, 0, 0]]),
    "cumulative_prod with a zero": (nf.cumulative_prod, [[0.0, 2.0, 3.0]], [[9, 0, 0]]),
    # What a mask leaves out has no influence, however steep it is.
    "masked sqrt": (lambda x: nf.where(x > 0, nf.sqrt(x), 0), [[0.0, 4.0]], [[0, 0.25]]),
    "masked rsqrt": (lambda x: nf.where(x > 0, nf.rsqrt(x), 0), [[0.0, 4.0]], [[0, -1 / 16]]),
    "masked log": (lambda x: nf.where(x > 0, nf.log(x), 0), [[0.0, 4.0]], [[0, 0.25]]),
    "masked log1p": (lambda x: nf.where(x > -1, nf.log1p(x), 0), [[-1.0, 3.0]], [[0, 0.25]]),
    "masked quotient": (lambda x, y: nf.where(y != 0, x / y, 0), [[1.0, 1.0], [0.0, 2.0]], [[0, 0.5], [0, -0.25]]),
    "masked 0 / 0": (lambda x, y: nf.where(y != 0, x / y, 0), [[0.0], [0.0]], [[0], [0]]),
    "masked reciprocal": (lambda x: nf.where(x != 0, nf.reciprocal(x), 0), [[0.0, 2.0]], [[0, -0.25]]),
    "masked power": (lambda x: nf.where(x > 0, x**-1.5, 0), [[0.0, 1.0]], [[0, -1.5]]),
    "masked exponent": (lambda y: nf.where(y > 0, nf.pow(0.0, y), 0), [[-1.0, 1.0]], [[0, 0]]),
    "masked overflow": (lambda x: nf.where(x > 0, x, nf.exp(x) - 1), [[1e4, 0.0]], [[1, 1]]),
    "elu": (nf.nn.elu, [[1e4, -1e4]], [[1, 0]]),
    "masked asin": (lambda x: nf.where(x < 1, nf.asin(x), 0), [[1.0, 0.0]], [[0, 1]]),
    "masked atanh": (lambda x: nf.where(x < 1, nf.atanh(x), 0), [[1.0, 0.0]], [[0, 1]]),
    "masked NaN": (lambda x: nf.where(nf.isnan(x), 0, x * 2.0), [[NAN, 1.0]], [[0, 2]]),
    "masked NaN of log": (lambda x: nf.where(x > 0, nf.log(x), x), [[-1.0, 2.0]], [[1, 0.5]]),
    # Minus infinity stands for "not there".
    "logsumexp with -inf": (nf.logsumexp, [[-INF, 0.0, 0.0]], [[0, 0.5, 0.5]]),
    "logsumexp of -inf only": (nf.logsumexp, [[-INF, -INF]], [[0, 0]]),
    "logaddexp with -inf": (nf.logaddexp, [[-INF, 1.0], [2.0, -INF]], [[0, 1], [1, 0]]),
    "softmax with -inf": (lambda x: nf.nn.softmax(x)[:2], [[-INF, 0.0, 0.0]], [[0, 0.25, -0.25]]),
    "log_softmax with -inf": (lambda x: nf.nn.log_softmax(x)[1:2], [[-INF, 0.0, 0.0]], [[0, 0.5, -0.5]]),
    "cross entropy with -inf": (
        lambda x: nf.nn.softmax_cross_entropy(x[None], [1]),
        [[-INF, 0.0, 0.0]],
        [[0, -0.5, 0.5]],
    ),
    "softplus of large": (nf.nn.softplus, [[-1e4, 1e4]], [[0, 1]]),
    "sigmoid of large": (nf.nn.sigmoid, [[-1e4, 1e4]], [[0, 0]]),
    "tanh of large": (nf.tanh, [[-1e4, 1e4]], [[0, 0]]),
}


@pytest.mark.parametrize("name", EDGES)
def test_edges(name: str) -> None:
    function, arrays, wanted = EDGES[name]
    for found, right in zip(slopes(function, *arrays), wanted, strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [n for n in EDGES if n.startswith("masked")])
def test_second_derivatives_of_masked_ones_are_numbers(name: str) -> None:
    function, arrays, _ = EDGES[name]

    def slope(*inputs: Any) -> Any:
        found = nf.gradients(nf.sum(function(*inputs)), inputs)
        return nf.add_n([nf.sum(g) for g in found if g is not None])

    assert all(np.isfinite(g).all() for g in slopes(slope, *arrays))


def test_attention_that_sees_nothing_of_the_future(graph: Graph) -> None:
    q, k, v = (np.random.default_rng(n).normal(size=(1, 3, 2)) for n in range(3))
    for found in slopes(lambda q, k, v: nf.nn.attention(q, k, v, causal=True), q, k, v):
        assert np.isfinite(found).all()


def test_infinite_where_it_is_infinite() -> None:
    """What has no value is not hidden either."""
    with np.errstate(all="ignore"):
        assert slopes(nf.sqrt, [0.0])[0] == [INF]
        assert slopes(nf.log, [0.0])[0] == [INF]
        assert slopes(lambda x: x**0.5 * 1.0, [0.0])[0] == [INF]
