"""Optimizers against numpy over several steps; names, placement, scratch, and what is refused."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import nbflow as nf
from nbflow.errors import DTypeError, GraphError, ShapeError
from nbflow.graph import Graph, Tensor
from nbflow.ops.state import GRADIENT_INPUT
from nbflow.optim import LARS, SGD, Adagrad, Adam, AdamW, Lamb, Lion, Optimizer, RMSProp
from nbflow.session import Session
from nbflow.testing import Evaluator

A = np.ndarray[Any, Any]
START = np.array([[1.0, -2.0], [3.0, 0.5]])
TARGET = np.array([[0.0, 1.0], [1.0, 1.0]])
# Steepness differs by direction, so that the adaptive methods have something to adapt to.
SLOPE = np.array([[1.0, 3.0], [0.2, 1.0]])


@pytest.fixture
def graph() -> Iterator[Graph]:
    with Graph().as_default() as made:
        yield made


def bowl(name: str = "w") -> tuple[nf.Variable, Tensor]:
    w = nf.Variable(START, name=name)
    return w, nf.sum(nf.square(w - TARGET) * SLOPE)


def slope(w: A) -> A:
    return 2 * SLOPE * (w - TARGET)


def sgd(w: A, t: int, s: dict[str, A]) -> A:
    return w - 0.1 * slope(w)


def decayed(w: A, t: int, s: dict[str, A]) -> A:
    return w - 0.1 * (slope(w) + 0.2 * w)


def momentum(w: A, t: int, s: dict[str, A]) -> A:
    s["m"] = 0.9 * s.get("m", 0) + slope(w)
    return w - 0.1 * s["m"]


def nesterov(w: A, t: int, s: dict[str, A]) -> A:
    g = slope(w)
    s["m"] = 0.9 * s.get("m", 0) + g
    return w - 0.1 * (0.9 * s["m"] + g)


def adam(w: A, t: int, s: dict[str, A], decay: float = 0.0) -> A:
    g = slope(w)
    s["m"] = 0.8 * s.get("m", 0) + 0.2 * g
    s["v"] = 0.95 * s.get("v", 0) + 0.05 * g**2
    return w - 0.1 * decay * w - 0.1 * (s["m"] / (1 - 0.8**t)) / (np.sqrt(s["v"] / (1 - 0.95**t)) + 1e-8)


def adamw(w: A, t: int, s: dict[str, A]) -> A:
    return adam(w, t, s, 0.3)


def rmsprop(w: A, t: int, s: dict[str, A]) -> A:
    g = slope(w)
    s["v"] = 0.9 * s.get("v", 0) + 0.1 * g**2
    return w - 0.1 * g / (np.sqrt(s["v"]) + 1e-7)


def adagrad(w: A, t: int, s: dict[str, A]) -> A:
    g = slope(w)
    s["sum"] = s.get("sum", 0.1) + g**2
    return w - 0.1 * g / (np.sqrt(s["sum"]) + 1e-7)


def rmsprop_momentum(w: A, t: int, s: dict[str, A]) -> A:
    g = slope(w)
    s["v"] = 0.9 * s.get("v", 0) + 0.1 * g**2
    s["m"] = 0.5 * s.get("m", 0) + 0.1 * g / (np.sqrt(s["v"]) + 1e-7)
    return w - s["m"]


def rmsprop_centered(w: A, t: int, s: dict[str, A]) -> A:
    g = slope(w)
    s["v"] = 0.9 * s.get("v", 0) + 0.1 * g**2
    s["mean"] = 0.9 * s.get("mean", 0) + 0.1 * g
    s["m"] = 0.5 * s.get("m", 0) + 0.1 * g / np.sqrt(s["v"] - s["mean"] ** 2 + 1e-3)
    return w - s["m"]


def lion(w: A, t: int, s: dict[str, A]) -> A:
    g, m = slope(w), s.get("m", np.zeros_like(w))
    s["m"] = 0.95 * m + 0.05 * g
    return w - 0.03 * (np.sign(0.8 * m + 0.2 * g) + 0.1 * w)


def lamb(w: A, t: int, s: dict[str, A]) -> A:
    g = slope(w)
    s["m"] = 0.8 * s.get("m", 0) + 0.2 * g
    s["v"] = 0.95 * s.get("v", 0) + 0.05 * g**2
    u = (s["m"] / (1 - 0.8**t)) / (np.sqrt(s["v"] / (1 - 0.95**t)) + 1e-6) + 0.3 * w
    return w - 0.05 * np.linalg.norm(w) / np.linalg.norm(u) * u


def lars(w: A, t: int, s: dict[str, A]) -> A:
    g = slope(w)
    size = np.linalg.norm(w)
    ratio = 0.02 * size / (np.linalg.norm(g) + 0.1 * size + 1e-9)
    s["m"] = 0.9 * s.get("m", 0) + 0.5 * ratio * (g + 0.1 * w)
    return w - s["m"]


RULES: list[tuple[Optimizer, Callable[[A, int, dict[str, A]], A]]] = [
    (SGD(0.1), sgd),
    (SGD(0.1, weight_decay=0.2), decayed),
    (SGD(0.1, momentum=0.9), momentum),
    (SGD(0.1, momentum=0.9, nesterov=True), nesterov),
    (Adam(0.1, 0.8, 0.95), adam),
    (AdamW(0.1, 0.8, 0.95, weight_decay=0.3), adamw),
    (RMSProp(0.1), rmsprop),
    (Adagrad(0.1), adagrad),
    (RMSProp(0.1, momentum=0.5), rmsprop_momentum),
    (RMSProp(0.1, epsilon=1e-3, momentum=0.5, centered=True), rmsprop_centered),
    (Lion(0.03, 0.8, 0.95, weight_decay=0.1), lion),
    (Lamb(0.05, 0.8, 0.95, weight_decay=0.3), lamb),
    (LARS(0.5, 0.9, trust=0.02, weight_decay=0.1), lars),
]


@pytest.mark.parametrize(("optimizer", "rule"), RULES, ids=[r.__name__ for _, r in RULES])
def test_ten_steps(graph: Graph, optimizer: Optimizer, rule: Any) -> None:
    w, loss = bowl()
    step = optimizer.minimize(loss)
    runner = Evaluator()
    expected, slots = START, {}
    for t in range(1, 11):
        runner.run(step)
        expected = rule(expected, t, slots)
        np.testing.assert_allclose(runner.run(w), expected, rtol=1e-12)


@pytest.mark.parametrize(("optimizer", "rule"), RULES, ids=[r.__name__ for _, r in RULES])
def test_arrays_longer_than_a_chunk(graph: Graph, optimizer: Optimizer, rule: Any) -> None:
    """Each chunk gets what a small array would get."""
    tiles = np.tile(START, (9000, 1)).astype(np.float32)
    w = nf.Variable(tiles, name="w")
    loss = nf.sum(nf.square(w - np.tile(TARGET, (9000, 1)).astype("f4")) * np.tile(SLOPE, (9000, 1)).astype("f4"))
    step = optimizer.minimize(loss)
    runner = Evaluator()
    expected, slots = START, {}
    for t in range(1, 4):
        runner.run(step)
        expected = rule(expected, t, slots)
    np.testing.assert_allclose(runner.run(w).reshape(9000, 2, 2), np.broadcast_to(expected, (9000, 2, 2)), rtol=2e-5)


def test_names(graph: Graph) -> None:
    _, loss = bowl("layer/w")
    step = Adam(0.1).minimize(loss)
    assert step.name == "Adam/step"
    assert step.op == "group"
    assert step.attrs["strategy"] == ()
    names = set(graph.nodes.keys())
    assert {
        "layer/w/Adam/m",
        "layer/w/Adam/v",
        "Adam/iterations",
        "Adam/count",
        "Adam/update/layer/w/apply_adam",
    } <= names
    apply = graph.node("Adam/update/layer/w/apply_adam")
    assert apply.colocate == ("layer/w",)
    assert graph.node("layer/w/Adam/m").colocate == ("layer/w",)
    assert not nf.Variable.from_node(graph.node("layer/w/Adam/m")).trainable
    assert Adam(0.1).minimize(loss).name == "Adam.1/step"
    assert SGD(0.1).minimize(loss, name="mine").name == "mine/step"
    assert [v.name for v in nf.trainable_variables()] == ["layer/w"]


@pytest.mark.parametrize("optimizer", [o for o, _ in RULES], ids=[r.__name__ for _, r in RULES])
def test_the_gradient_is_where_gradient_input_says(graph: Graph, optimizer: Optimizer) -> None:
    w, loss = bowl()
    (grad,) = nf.gradients(loss, [w])
    (apply,) = [n for n in optimizer.minimize(loss).control_inputs if n.op in GRADIENT_INPUT]
    tensor = apply.inputs[GRADIENT_INPUT[apply.op]]
    assert GRADIENT_INPUT[apply.op] == len(apply.inputs) - 1
    assert grad is not None
    one, other = Evaluator().run([tensor, grad])
    np.testing.assert_array_equal(one, other)


def test_device_scopes_around_minimize_do_not_move_updates(graph: Graph) -> None:
    with nf.device("/job:ps"):
        _, loss = bowl()
    with nf.device("/job:worker"):
        step = Adam(0.1).minimize(loss)
    assert all(str(n.device) != "/job:worker" for n in step.control_inputs if n.op == "apply_adam")
    assert str(graph.node("w/Adam/m").device) == ""


def test_strategy_travels_as_an_attribute(graph: Graph) -> None:
    _, loss = bowl()
    strategy = nf.train.DataParallel(sync=False)
    assert SGD(0.1).minimize(loss, strategy=strategy).attrs["strategy"] == strategy.to_attrs()


def test_the_step_count_and_schedules(graph: Graph) -> None:
    w, loss = bowl()
    step = SGD(lambda count: nf.where(count < 2, 0.1, 0.0)).minimize(loss)
    session = Session(graph=graph)
    found = []
    for _ in range(4):
        session.run(step)
        found.append(session.run(w))
    session.close()
    np.testing.assert_allclose(found[1], sgd(sgd(START, 1, {}), 2, {}), rtol=1e-7)
    np.testing.assert_array_equal(found[1], found[3])


def test_the_learning_rate_may_be_a_variable(graph: Graph) -> None:
    rate = nf.Variable(0.1, name="rate", trainable=False)
    w, loss = bowl()
    step = SGD(rate).minimize(loss)
    runner = Evaluator()
    runner.run(step)
    first = runner.run(w)
    np.testing.assert_allclose(first, sgd(START, 1, {}), rtol=1e-6)
    runner.run(rate.assign(0.0))
    runner.run(step)
    np.testing.assert_array_equal(runner.run(w), first)


def test_only_the_given_variables_move(graph: Graph) -> None:
    a, b = nf.Variable(1.0, name="a"), nf.Variable(1.0, name="b")
    frozen = nf.Variable(1.0, name="c", trainable=False)
    loss = a * b * frozen
    runner = Evaluator()
    runner.run(SGD(0.5).minimize(loss, variables=[b]))
    assert [float(v) for v in runner.run([a, b, frozen])] == [1.0, 0.5, 1.0]
    runner.run(SGD(0.5).minimize(loss))
    assert float(runner.run(frozen)) == 1.0
    assert float(runner.run(a)) != 1.0


def test_variables_without_a_gradient_stay(graph: Graph) -> None:
    used, cut = nf.Variable(1.0, name="used"), nf.Variable(1.0, name="cut")
    step = SGD(0.1).minimize(used * nf.stop_gradient(cut))
    assert sorted(n.attrs["variable"] for n in step.control_inputs) == ["used"]


def test_what_is_refused(graph: Graph) -> None:
    w, loss = bowl()
    x = nf.placeholder("float32", (3,), name="x")
    with pytest.raises(ShapeError, match=r"is a scalar, not \(2, 2\).*nf\.mean"):
        SGD(0.1).minimize(w - TARGET)
    with pytest.raises(DTypeError, match="floating"):
        SGD(0.1).minimize(nf.sum(nf.argmax(w, axis=0)))
    with pytest.raises(GraphError, match="no trainable variable"):
        SGD(0.1).minimize(nf.sum(x))
    with pytest.raises(GraphError, match="no gradient for any of w"):
        SGD(0.1).minimize(nf.sum(nf.stop_gradient(w.to_tensor())))
    with pytest.raises(GraphError, match="empty list"):
        SGD(0.1).minimize(loss, variables=[])
    with pytest.raises(ShapeError, match="learning rate"):
        SGD(nf.constant([0.1, 0.2])).minimize(loss)
    for make in (
        lambda: SGD(-1.0),
        lambda: SGD(0.1, momentum=1.0),
        lambda: SGD(0.1, nesterov=True),
        lambda: Adam(beta1=2),
    ):
        with pytest.raises(GraphError):
            make()


@pytest.mark.parametrize("optimizer", [o for o, _ in RULES], ids=[r.__name__ for _, r in RULES])
def test_updates_allocate_nothing_large(graph: Graph, optimizer: Optimizer) -> None:
    """In steady state an update needs only the scratch that its thread keeps."""
    n = 1 << 20
    w = nf.Variable(np.zeros(n, np.float32), name="w")
    g = nf.placeholder("float32", (n,), name="g")
    step = optimizer.minimize(nf.sum(w * g))
    (apply,) = [c for c in step.control_inputs if c.op in GRADIENT_INPUT]
    runner = Evaluator()
    grad = np.ones(n, np.float32)
    feeds = {apply.inputs[-1]: grad}
    runner.run(apply, feeds)
    kept = runner.state.cell("w:0").value
    tracemalloc.start()
    runner.run(apply, feeds)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert runner.state.cell("w:0").value is kept
    assert peak < n  # a quarter of one float32 array of n
    assert not np.shares_memory(kept, grad)
