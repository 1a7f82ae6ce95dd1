"""Recurrent ops and layers against loops over time, their gradients, and training on one worker and on two."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nbflow as nf
from nbflow.errors import ShapeError
from nbflow.graph import Graph
from nbflow.inprocess import InProcessCluster
from nbflow.testing import Evaluator, check_gradients

A = np.ndarray[Any, Any]
RNG = np.random.default_rng(5)
N, TIME, FEATURES, UNITS = 2, 4, 3, 2


def sigma(x: A) -> A:
    return 1 / (1 + np.exp(-x))


def plain_rnn(x: A, w: A, u: A, b: A, h: A) -> tuple[A, list[A]]:
    outputs = []
    for t in range(x.shape[1]):
        h = np.tanh(x[:, t] @ w + h @ u + b)
        outputs.append(h)
    return np.stack(outputs, 1), [h]


def plain_lstm(x: A, w: A, u: A, b: A, h: A, c: A) -> tuple[A, list[A]]:
    outputs = []
    for t in range(x.shape[1]):
        i, f, g, o = np.split(x[:, t] @ w + h @ u + b, 4, -1)
        c = sigma(f) * c + sigma(i) * np.tanh(g)
        h = sigma(o) * np.tanh(c)
        outputs.append(h)
    return np.stack(outputs, 1), [h, c]


def plain_gru(x: A, w: A, u: A, b: A, d: A, h: A) -> tuple[A, list[A]]:
    outputs = []
    for t in range(x.shape[1]):
        (r, z, a), (s, k, e) = np.split(x[:, t] @ w + b, 3, -1), np.split(h @ u + d, 3, -1)
        z = sigma(z + k)
        h = z * h + (1 - z) * np.tanh(a + sigma(r + s) * e)
        outputs.append(h)
    return np.stack(outputs, 1), [h]


def drawn(gates: int) -> tuple[A, A, A, A]:
    shapes = ((N, TIME, FEATURES), (FEATURES, gates * UNITS), (UNITS, gates * UNITS), (gates * UNITS,))
    x, w, u, b = (RNG.normal(size=s) for s in shapes)
    return x, w, u, b


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("given", [False, True], ids=["from zero", "from a state"])
def test_against_loops(reverse: bool, given: bool) -> None:
    h, c = (RNG.normal(size=(N, UNITS)) if given else np.zeros((N, UNITS)) for _ in "hc")
    turn = slice(None, None, -1 if reverse else 1)
    with Graph().as_default():
        fed = nf.placeholder("float64", (None, TIME, FEATURES), name="fed")
        state = h if given else None

        x, w, u, b = drawn(1)
        found = Evaluator().run(nf.nn.rnn(fed, w, u, b, state, reverse), {fed: x})
        expected, last = plain_rnn(x[:, turn], w, u, b, h)
        np.testing.assert_allclose(found[0], expected[:, turn], rtol=1e-10)
        np.testing.assert_allclose(found[1], last[0], rtol=1e-10)

        x, w, u, b = drawn(4)
        outputs, states = nf.nn.lstm(fed, w, u, b, (h, c) if given else None, reverse)
        found = Evaluator().run([outputs, *states], {fed: x})
        expected, last = plain_lstm(x[:, turn], w, u, b, h, c)
        for one, other in zip(found, (expected[:, turn], *last), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-10)

        x, w, u, b = drawn(3)
        d = RNG.normal(size=b.shape)
        found = Evaluator().run(nf.nn.gru(fed, w, u, b, d, state, reverse), {fed: x})
        expected, last = plain_gru(x[:, turn], w, u, b, d, h)
        np.testing.assert_allclose(found[0], expected[:, turn], rtol=1e-10)
        np.testing.assert_allclose(found[1], last[0], rtol=1e-10)


def test_gradients() -> None:
    x, w, u, b = drawn(4)
    check_gradients(lambda *a: nf.nn.lstm(*a)[0], x[:1, :2], w, u, b)
    x, w, u, b = drawn(3)
    check_gradients(lambda *a: nf.nn.gru(*a)[0], x[:1, :2], w, u, b)


@pytest.mark.parametrize("layer", [nf.layers.lstm, nf.layers.gru])
def test_layers_learn_alike_on_one_and_two_workers(layer: Any) -> None:
    """Whether a sequence starts with a positive number: the last step must remember the first."""
    x = RNG.normal(size=(64, 5, 1)).astype(np.float32)
    y = (x[:, 0, 0] > 0).astype(np.int64)

    def losses(workers: int) -> A:
        cluster = InProcessCluster(workers, 1)
        try:
            with Graph().as_default():
                nf.set_cluster(cluster)
                batch = nf.data.from_arrays({"x": x, "y": y}).repeat().batch(32).next()
                last = layer(batch["x"], 6, return_sequences=False, name="memory")
                loss = nf.mean(nf.nn.softmax_cross_entropy(nf.layers.dense(last, 2, name="out"), batch["y"]))
                step = nf.optim.Adam(0.05).minimize(loss, strategy=nf.train.DataParallel())
                return nf.train.run(step, steps=40, metrics={"loss": loss}, every=1, show=False).history["loss"]
        finally:
            nf.set_cluster(None)
            cluster.close()

    alone = losses(1)
    assert alone[-1] < 0.5 * alone[0]
    np.testing.assert_allclose(losses(2)[:12], alone[:12], rtol=1e-3)


def test_names_shapes_and_what_is_refused() -> None:
    with Graph().as_default() as graph:
        x = nf.placeholder("float32", (None, 4, 3), name="x")
        assert nf.layers.lstm(x, 5, name="a").shape == (None, 4, 5)
        assert nf.layers.gru(x, 5, return_sequences=False, name="b").shape == (None, 5)
        assert [v.name for v in nf.trainable_variables(graph)] == [
            "a/bias", "a/recurrent", "a/weights", "b/bias", "b/recurrent", "b/recurrent_bias", "b/weights",
        ]  # fmt: skip
        bias = Evaluator().run(nf.Variable.from_node(graph.node("a/bias")))
        np.testing.assert_array_equal(bias, np.repeat([0, 1, 0, 0], 5))
        with pytest.raises(ShapeError, match="known number of steps"):
            nf.layers.lstm(nf.placeholder("float32", (None, None, 3), name="open"), 5, name="c")
        with pytest.raises(ShapeError, match=r"\(units, 4 · units\)"):
            nf.nn.lstm(x, np.zeros((3, 8), "f4"), np.zeros((2, 6), "f4"))
