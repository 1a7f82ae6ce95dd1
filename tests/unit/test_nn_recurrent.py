"""Recurrent ops and layers against loops over time, their gradients, and training on one worker and on two."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nbflow as nf
from nbflow.errors import GraphError, ShapeError
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


@pytest.fixture(params=[0, 8], ids=["loop", "unrolled"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of taking the steps."""
    monkeypatch.setattr("nbflow.ops.recurrent._UNROLLED", request.param)


@pytest.mark.usefixtures("either")
def test_gradients() -> None:
    x, w, u, b = drawn(4)
    p = RNG.normal(size=3 * UNITS)
    check_gradients(lambda *a: nf.nn.lstm(*a)[0], x[:1, :2], w, u, b)
    check_gradients(
        lambda x, w, u, p: nf.nn.lstm(x, w, u, lengths=[1], peepholes=p, couple=True)[0], x[:1, :2], w, u, p, order=1
    )
    x, w, u, b = drawn(3)
    check_gradients(lambda *a: nf.nn.gru(*a)[0], x[:1, :2], w, u, b)
    check_gradients(lambda *a: nf.nn.gru(*a, reset_after=False, reverse=True)[0], x[:1, :2], w, u, b, order=1)
    x, w, u, b = drawn(1)
    check_gradients(lambda *a: nf.nn.rnn(*a, lengths=[2, 4])[0], x, w, u, b)


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("reverse", [False, True])
def test_sequences_of_different_lengths(reverse: bool) -> None:
    """Each gives what it would give alone, zeros after its end, and its own last state."""
    lengths = [3, 4]
    with Graph().as_default():
        x, w, u, b = drawn(4)
        y, states = nf.nn.lstm(x, w, u, b, reverse=reverse, lengths=np.array(lengths))
        found = Evaluator().run([y, *states])
        for n, length in enumerate(lengths):
            alone, last = nf.nn.lstm(x[n : n + 1, :length], w, u, b, reverse=reverse)
            expected = Evaluator().run([alone, *last])
            np.testing.assert_allclose(found[0][n, :length], expected[0][0], rtol=1e-10)
            np.testing.assert_array_equal(found[0][n, length:], 0)
            np.testing.assert_allclose(found[1][n], expected[1][0], rtol=1e-10)
            np.testing.assert_allclose(found[2][n], expected[2][0], rtol=1e-10)


def variant(x: A, w: A, u: A, b: A, p: A) -> A:
    """Peepholes, coupled gates, bounds of 0.5 and other activations."""
    h, c = np.zeros((2, N, UNITS))
    outputs = []
    for t in range(x.shape[1]):
        i, _, g, o = np.split(x[:, t] @ w + h @ u + b, 4, -1)
        i = np.tanh(np.clip(i + p[:UNITS] * c, -0.5, 0.5))
        c = (1 - i) * c + i * np.maximum(np.clip(g, -0.5, 0.5), 0)
        h = np.tanh(np.clip(o + p[2 * UNITS :] * c, -0.5, 0.5)) * sigma(c)
        outputs.append(h)
    return np.stack(outputs, 1)


@pytest.mark.usefixtures("either")
def test_variants_of_the_cells() -> None:
    with Graph().as_default():
        x, w, u, b = drawn(4)
        p = RNG.normal(size=3 * UNITS)
        chosen = (nf.tanh, nf.nn.relu, nf.nn.sigmoid)
        made, _ = nf.nn.lstm(x, w, u, b, peepholes=p, activations=chosen, clip=0.5, couple=True)
        np.testing.assert_allclose(Evaluator().run(made), variant(x, w, u, b, p), rtol=1e-10)

        x, w, u, b = drawn(3)
        d = RNG.normal(size=b.shape)
        made, _ = nf.nn.gru(x, w, u, b, d, reset_after=False)
        h = np.zeros((N, UNITS))
        for t in range(TIME):
            (r, z, a), (r_, z_, b_) = np.split(x[:, t] @ w + b, 3, -1), np.split(d, 3)
            reset, z = sigma(r + h @ u[:, :UNITS] + r_), sigma(z + h @ u[:, UNITS : 2 * UNITS] + z_)
            h = z * h + (1 - z) * np.tanh(a + (reset * h) @ u[:, 2 * UNITS :] + b_)
            np.testing.assert_allclose(Evaluator().run(made[:, t]), h, rtol=1e-10)

        x, w, u, b = drawn(1)
        made, _ = nf.nn.rnn(x, w, u, b, activation=nf.nn.relu, clip=1.0)
        h = np.zeros((N, UNITS))
        for t in range(TIME):
            h = np.clip(x[:, t] @ w + h @ u + b, 0, 1)
        np.testing.assert_allclose(Evaluator().run(made[:, -1]), h, rtol=1e-10)


def test_numbers_of_steps_known_only_at_run_time() -> None:
    x, w, u, b = drawn(4)
    with Graph().as_default():
        fed = nf.placeholder("float64", None, name="fed")
        y, (h, _) = nf.nn.lstm(fed, w, u, b)
        assert y.shape == (None, None, UNITS)
        (slope,) = nf.gradients(nf.sum(y), [fed])
        expected, last = plain_lstm(x, w, u, b, np.zeros((N, UNITS)), np.zeros((N, UNITS)))
        found = Evaluator().run([y, h, slope], {fed: x})
        np.testing.assert_allclose(found[0], expected, rtol=1e-10)
        np.testing.assert_allclose(found[1], last[0], rtol=1e-10)
        assert found[2].shape == x.shape
        none = Evaluator().run([y, h, slope], {fed: x[:, :0]})
        assert [v.shape for v in none] == [(N, 0, UNITS), (N, UNITS), (N, 0, FEATURES)]


@pytest.mark.parametrize("layer", [nf.layers.lstm, nf.layers.gru])
def test_layers_learn_alike_on_one_and_two_workers(layer: Any) -> None:
    """Whether a sequence starts with a positive number: the last step must remember the first."""
    x = np.random.default_rng(8).normal(size=(64, 5, 1)).astype(np.float32)
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
        open_ended = nf.placeholder("float32", (None, None, 3), name="open")
        assert nf.layers.lstm(open_ended, 5, name="c").shape == (None, None, 5)
        with pytest.raises(ShapeError, match=r"\(units, 4 · units\)"):
            nf.nn.lstm(x, np.zeros((3, 8), "f4"), np.zeros((2, 6), "f4"))
        with pytest.raises(ShapeError, match=r"weights \(3, 6\) and recurrent weights \(2, 8\)"):
            nf.nn.lstm(x, np.zeros((3, 6), "f4"), np.zeros((2, 8), "f4"))
        with pytest.raises(ShapeError, match=r"lengths \(2, 1\)"):
            nf.nn.rnn(x, np.zeros((3, 2), "f4"), np.zeros((2, 2), "f4"), lengths=[[1], [2]])
        with pytest.raises(GraphError, match="3 activations"):
            nf.nn.lstm(x, np.zeros((3, 8), "f4"), np.zeros((2, 8), "f4"), activations=[nf.tanh])


def test_layers_in_both_directions_and_several() -> None:
    x = RNG.normal(size=(N, TIME, FEATURES)).astype(np.float32)
    lengths = np.array([4, 2])
    with Graph().as_default() as graph:
        y = nf.layers.lstm(x, 2, bidirectional=True, layers=2, lengths=lengths, peepholes=True, name="deep")
        last = nf.layers.gru(x, 2, return_sequences=False, bidirectional=True, name="ends")
        assert y.shape == (N, TIME, 4)
        assert last.shape == (N, 4)
        names = {v.name for v in nf.trainable_variables(graph)}
        assert {
            "deep/layer_0/forward/weights",
            "deep/layer_1/backward/peepholes",
            "ends/backward/recurrent_bias",
        } < names
        found = {v.name: Evaluator().run(v) for v in nf.trainable_variables(graph)}

        def one(given: Any, scope: str, reverse: bool) -> Any:
            parts = (found[f"{scope}/{what}"] for what in ("weights", "recurrent", "bias"))
            return nf.nn.lstm(given, *parts, reverse=reverse, lengths=lengths, peepholes=found[f"{scope}/peepholes"])[0]

        h: Any = x
        for number in range(2):
            ways = [one(h, f"deep/layer_{number}/{w}", w == "backward") for w in ("forward", "backward")]
            h = nf.concat(ways, axis=-1)
        runner = Evaluator()
        np.testing.assert_allclose(*runner.run([y, h]), rtol=1e-5)
        parts = [found[f"ends/forward/{what}"] for what in ("weights", "recurrent", "bias", "recurrent_bias")]
        _, forth = nf.nn.gru(x, *parts)
        np.testing.assert_allclose(runner.run(last)[:, :2], runner.run(forth), rtol=1e-5)
        made = nf.layers.rnn(x, 3, activation=nf.nn.relu, reverse=True, name="plain")
        assert (runner.run(made) >= 0).all()
        with pytest.raises(GraphError, match="not both"):
            nf.layers.rnn(x, 3, reverse=True, bidirectional=True)
