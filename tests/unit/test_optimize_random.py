"""Every pass leaves every bit: random graphs and training steps with and without it, on one device and on several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nbflow as nf
from nbflow.graph import Graph
from nbflow.inprocess import InProcessCluster
from nbflow.optimize import EXACT, schedule
from nbflow.session import Session
from nbflow.testing.random_graphs import random_program

CLUSTER = InProcessCluster(2, 1)
DEVICES = [str(i.spec) for i in CLUSTER.devices()]
CHOICES = [(name,) for name in EXACT] + [EXACT]
IDS = [*EXACT, "all"]

Steps = list[list[bytes]]


@pytest.fixture(autouse=True)
def schedules_small_graphs_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "WORTH_BYTES", 0)
    monkeypatch.setattr(schedule, "WORTH_PART", 0.0)


def bits(values: Sequence[np.ndarray[Any, Any]]) -> list[bytes]:
    return [f"{v.dtype}{v.shape}".encode() + np.asarray(v).tobytes() for v in values]


def results(seed: int, passes: Sequence[str], cluster: Any = None) -> Steps:
    graph = Graph()
    program = random_program(seed, [] if cluster is None else DEVICES, graph, redundant=True)
    # Zeros of both signs and what is not finite: where inexact algebra shows.
    for value in program.feeds.values():
        value.flat[0] = (-0.0, 0.0, np.nan, -np.inf)[seed % 4]
    with Session(cluster, graph, deadline_s=30, passes=passes) as session:
        return [bits(session.run(list(program.fetches), program.feeds)) for _ in range(program.steps)]


@pytest.mark.parametrize("passes", CHOICES, ids=IDS)
@given(st.integers(0, 1_000_000))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_random_graph_gives_the_same_bits(passes: tuple[str, ...], seed: int) -> None:
    assert results(seed, passes) == results(seed, ())


@given(st.integers(0, 1_000_000))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_random_graph_on_random_devices_gives_the_same_bits(seed: int) -> None:
    assert results(seed, EXACT, CLUSTER) == results(seed, ())


@given(st.integers(0, 1_000_000))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_order_that_the_scheduler_may_choose_gives_the_same_bits(seed: int) -> None:
    """Its edges say all that must come before: also an order that no scheduler would choose is right."""
    expected = results(seed, ())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule._Model, "greedy", lambda model: shuffled(model, seed))
        patch.setattr(schedule, "_is_better", lambda after, before: True)
        assert results(seed, ("schedule",)) == expected
        assert results(seed, ("schedule",), CLUSTER) == expected


def shuffled(model: Any, seed: int) -> list[int]:
    """A random order in which each op comes after `model.before`."""
    rng, order, left = np.random.default_rng(seed), [], dict(enumerate(model.before))
    while left:
        ready = [i for i, before in left.items() if left.keys().isdisjoint(before)]
        order.append(ready[rng.integers(len(ready))])
        del left[order[-1]]
    return order


# --- training steps --------------------------------------------------------------------------------------------------


def perceptron(x: Any) -> Any:
    h = nf.layers.dense(nf.reshape(x, (-1, 48)), 16, activation=nf.nn.gelu, name="a")
    h = nf.nn.dropout(nf.layers.batch_norm(h, training=True, name="n"), 0.3)
    return nf.layers.dense(h, 3, name="b")


def convolutions(layout: str) -> Callable[[Any], Any]:
    def model(x: Any) -> Any:
        image = x if layout == "NHWC" else nf.permute_dims(x, (0, 3, 1, 2))
        axis = -1 if layout == "NHWC" else 1
        h = nf.layers.conv2d(image, 4, 3, activation=nf.nn.relu, data_format=layout, name="a")
        h = nf.layers.batch_norm(h, training=True, axis=axis, name="n")
        h = h + nf.layers.conv2d(h, 4, 3, activation=nf.nn.relu, data_format=layout, name="b")
        h = nf.nn.max_pool2d(h, 2, data_format=layout)
        return nf.layers.dense(nf.reshape(h, (-1, 16)), 3, name="c")

    return model


def attention(x: Any) -> Any:
    tokens = nf.layers.dense(nf.reshape(x, (-1, 4, 12)), 8, name="in")
    h = nf.layers.layer_norm(tokens + nf.layers.multi_head_attention(tokens, heads=2, name="att"), name="n")
    return nf.layers.dense(nf.mean(h, axis=1), 3, name="out")


def recurrent(x: Any) -> Any:
    return nf.layers.dense(nf.layers.gru(nf.reshape(x, (-1, 4, 12)), 6, name="g")[:, -1], 3, name="out")


MODELS: dict[str, Callable[[Any], Any]] = {
    "perceptron": perceptron,
    "NHWC": convolutions("NHWC"),
    "NCHW": convolutions("NCHW"),
    "attention": attention,
    "recurrent": recurrent,
}
OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "perceptron": lambda: nf.optim.Adam(0.01),
    "NHWC": lambda: nf.optim.SGD(0.1, momentum=0.9, nesterov=True),
    "NCHW": lambda: nf.optim.RMSProp(0.01),
    "attention": lambda: nf.optim.AdamW(0.01),
    "recurrent": lambda: nf.optim.Lamb(0.01),
}


def trained(model: str, passes: Sequence[str], cluster: Any = None) -> list[bytes]:
    """The losses of three steps, and the variables after them."""
    rng = np.random.default_rng(0)
    with Graph().as_default() as graph:
        x, y = nf.placeholder("float32", (None, 4, 4, 3), name="x"), nf.placeholder("int64", (None,), name="y")
        loss = nf.mean(nf.nn.softmax_cross_entropy(MODELS[model](x), y))
        step = OPTIMIZERS[model]().minimize(loss)
        variables = sorted((n for n in graph.nodes if n.op == "read_variable"), key=lambda n: n.name)
        with Session(cluster, graph, deadline_s=60, passes=passes) as session:
            found = []
            for _ in range(3):
                feeds = {x: rng.normal(size=(6, 4, 4, 3)).astype(np.float32), y: rng.integers(0, 3, 6)}
                found += bits(session.run([loss, step], feeds)[:1])
            return found + bits(session.run([n.outputs[0] for n in variables]))


@pytest.mark.parametrize("model", MODELS)
def test_training_gives_the_same_bits_with_each_pass(model: str) -> None:
    expected = trained(model, ())
    for passes in CHOICES:
        assert trained(model, passes) == expected, passes
    assert trained(model, EXACT, CLUSTER) == expected


def test_replicas_train_to_the_same_bits() -> None:
    def losses(passes: str) -> list[float]:
        rng = np.random.default_rng(0)
        rows = {"x": rng.normal(size=(24, 6)).astype(np.float32), "y": rng.integers(0, 3, 24)}
        cluster = InProcessCluster(2, 1)
        with Graph().as_default() as graph, Session(cluster, graph, passes=passes) as session:
            data = nf.data.from_arrays(rows).shuffle(24, seed=1).repeat().batch(8).next()
            h = nf.nn.dropout(nf.layers.dense(data["x"], 8, activation=nf.nn.relu, name="h"), 0.2)
            loss = nf.mean(nf.nn.softmax_cross_entropy(nf.layers.dense(h, 3, name="out"), data["y"]))
            step = nf.optim.Adam(0.01).minimize(loss, strategy=nf.train.DataParallel())
            found = [float(session.run([loss, step])[0]) for _ in range(4)]
        cluster.close()
        return found

    assert losses("all") == losses("none")
