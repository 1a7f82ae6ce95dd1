"""nf.checkpoint: the same gradients, from values that were computed again and not kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import nbflow as nf
from nbflow.graph import Graph, ancestors
from nbflow.inprocess import InProcessCluster
from nbflow.plan import Plan
from nbflow.testing import Evaluator, check_gradients, evaluate

Layer = Callable[[nf.Tensor], nf.Tensor]
SIZE, LAYERS = 16, 8


@pytest.fixture
def graph() -> Iterator[Graph]:
    nf.set_cluster(None)
    with Graph().as_default() as made:
        yield made


def block(number: int) -> Layer:
    """tanh(x @ w) and what follows: five values of the size of x on the way."""
    w = nf.Variable(np.random.default_rng(number).normal(size=(SIZE, SIZE)) * 0.3, name=f"w{number}")

    def layer(x: nf.Tensor) -> nf.Tensor:
        h = nf.tanh(x @ w)
        return nf.sin(h * h) + nf.exp(-h) * 0.5

    return layer


def chain(wrap: Callable[[Layer], Layer], rows: int = 64) -> tuple[nf.Tensor, nf.Tensor, list[nf.Tensor]]:
    x = nf.placeholder("float64", (rows, SIZE), name="x")
    h = x
    for number in range(LAYERS):
        h = wrap(block(number))(h)
    loss = nf.sum(h)
    variables = nf.trainable_variables()
    found = nf.gradients(loss, [x, *variables])
    assert all(g is not None for g in found)
    return x, loss, [g for g in found if g is not None]


def plan_of(x: nf.Tensor, fetches: list[nf.Tensor]) -> Plan:
    """The program that runs: after all passes over the graph."""
    with nf.Session() as session:
        prepared = session.prepare(fetches, {x: x.spec})
        ((plan,),) = (bundle.plans for bundle in prepared.bundles.values())
        return plan


def peak_bytes(plan: Plan, graph: Graph) -> int:
    """The most bytes of intermediate values alive at once when `plan`, made from `graph`, runs in its order."""
    size: dict[int, int] = {}
    alive = peak = 0
    views: dict[int, int] = {}
    users: dict[int, int] = {}
    for instruction in plan.instructions:
        node = graph.nodes[instruction.node]
        shares = node.definition.alias or any(t.spec.resource for t in node.inputs[:1])
        for slot, tensor in zip(instruction.outputs, node.outputs, strict=True):
            root = views.get(instruction.inputs[0], instruction.inputs[0]) if shares and instruction.inputs else slot
            views[slot] = root
            users[root] = users.get(root, 0) + 1
            if root == slot and not tensor.spec.resource:
                size[slot] = (tensor.spec.size or 0) * tensor.dtype.itemsize
                alive += size[slot]
        peak = max(peak, alive)
        for slot in instruction.frees:
            root = views.get(slot, slot)
            users[root] = users.get(root, 1) - 1
            if users[root] == 0:
                alive -= size.pop(root, 0)
    return peak


def test_the_same_gradients() -> None:
    at = np.random.default_rng(9).normal(size=(64, SIZE))
    values = []
    for wrap in (lambda layer: layer, nf.checkpoint):
        with Graph().as_default():
            x, loss, grads = chain(wrap)
            values.append(nf.run([loss, *grads], {x: at}))
    for one, other in zip(*values, strict=True):
        np.testing.assert_array_equal(one, other)


def test_less_is_alive_at_once() -> None:
    """After the passes of a session, which merge equal ops and change their order, each layer still runs twice."""
    peaks, counts = [], []
    for wrap in (lambda layer: layer, nf.checkpoint):
        with Graph().as_default() as graph:
            x, loss, grads = chain(wrap)
            plan = plan_of(x, [loss, *grads])
            peaks.append(peak_bytes(plan, graph))
            counts.append([i.op for i in plan.instructions].count("tanh"))
    assert counts == [LAYERS, 2 * LAYERS]
    assert peaks[1] < 0.7 * peaks[0], peaks


def test_copies_wait_for_the_gradient_and_are_not_the_originals(graph: Graph) -> None:
    """What a pass that merges equal ops would compare differs from the first input on."""
    _, _, grads = chain(nf.checkpoint)
    order = ancestors([g.node for g in grads])
    barriers = [n for n in order if n.op == "recompute_barrier"]
    assert barriers
    assert all(n.definition.stateful and n.control_inputs for n in barriers)
    seen: dict[Any, str] = {}
    for node in order:  # in topological order, as merging would go
        if not node.definition.stateful and node.op != "constant":
            key = (node.op, str(sorted(node.attrs.items(), key=str)), tuple(t.name for t in node.inputs))
            if node.op in ("tanh", "sin"):
                assert key not in seen, f"{node.name} is {seen[key]} again"
            seen[key] = node.name


def test_dropout_masks_agree(graph: Graph) -> None:
    x = nf.placeholder("float64", (50,), name="x")
    y = nf.checkpoint(lambda x: nf.tanh(nf.nn.dropout(x * 3.0, 0.5)))(x)
    (grad,) = nf.gradients(nf.sum(y), [x])
    assert grad is not None
    ops = [n.op for n in ancestors([y.node, grad.node])]
    assert sum(op.startswith("random_") for op in ops) == 1
    assert ops.count("tanh") == 2
    at = np.linspace(0.1, 1, 50)
    value, slope = nf.run([y, grad], {x: at})
    assert 5 < np.count_nonzero(value) < 45
    np.testing.assert_allclose(slope, np.where(value != 0, 6 * (1 - np.tanh(6 * at) ** 2), 0))


def test_second_order_several_results_and_nesting(graph: Graph) -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(3, 2)), rng.normal(size=(2,))

    def two(x: nf.Tensor, y: nf.Tensor) -> dict[str, Any]:
        inner = nf.checkpoint(nf.sin)(x * y)
        return {"p": inner * x, "q": (nf.exp(y), nf.sum(inner * inner, axis=0))}

    def through(x: nf.Tensor, y: nf.Tensor) -> list[nf.Tensor]:
        made = nf.checkpoint(two)(x, y)
        assert made["p"].node.op == "checkpoint_many"
        return [made["p"], *made["q"]]

    check_gradients(through, a, b)
    check_gradients(lambda x, y: nf.checkpoint(two)(x, y)["p"], a, b)


def test_lookups_stay_sparse(graph: Graph) -> None:
    w = nf.Variable(np.random.default_rng(0).normal(size=(9, 2)), name="w")
    y = nf.checkpoint(lambda ids: nf.sin(nf.take(w, ids, axis=0)))(nf.constant([1, 3, 1]))
    (found,) = nf.gradients(nf.sum(y), [w], sparse=True)
    assert isinstance(found, nf.IndexedSlices)
    assert found.like is w.to_tensor()
    wanted = np.zeros((9, 2))
    np.add.at(wanted, [1, 3, 1], np.cos(evaluate(w))[[1, 3, 1]])
    np.testing.assert_allclose(evaluate(found.to_dense()), wanted)


def test_what_is_not_computed_inside_passes(graph: Graph) -> None:
    x = nf.placeholder("float64", (2,), name="x")
    assert nf.checkpoint(lambda t: t)(x) is x
    outside = x * 2.0
    first, second = nf.checkpoint(lambda t: (outside, nf.floor(t)))(x)
    assert first is outside
    assert nf.gradients(nf.sum(second), [x]) == [None]


def test_names_do_not_depend_on_the_run() -> None:
    def names() -> list[str]:
        with Graph().as_default() as made:
            chain(nf.checkpoint)
            return list(made.nodes.keys())

    assert names() == names()


def test_trains_on_two_workers_as_on_one() -> None:
    def losses(workers: int, wrap: Callable[[Any], Any]) -> Any:
        rng = np.random.default_rng(0)
        data = {"x": rng.normal(size=(32, 4)).astype("f4"), "y": rng.integers(0, 3, 32)}
        cluster = InProcessCluster(workers, 1)
        with Graph().as_default():
            nf.set_cluster(cluster)
            batch = nf.data.from_arrays(data).repeat().batch(8).next()
            h = wrap(lambda x: nf.layers.dense(x, 8, activation=nf.tanh, name="hidden"))(batch["x"])
            logits = nf.layers.dense(h, 3, name="logits")
            loss = nf.mean(nf.nn.softmax_cross_entropy(logits, batch["y"]))
            step = nf.optim.SGD(0.5).minimize(loss, strategy=nf.train.DataParallel())
            run = nf.train.run(step, steps=8, metrics={"loss": loss}, every=1, show=False)
            nf.set_cluster(None)
        cluster.close()
        return run.history["loss"]

    plain = losses(1, lambda fn: fn)
    np.testing.assert_allclose(losses(1, nf.checkpoint), plain, rtol=1e-6)
    np.testing.assert_allclose(losses(2, nf.checkpoint), plain, rtol=1e-5)


def test_a_graph_that_travelled_still_recomputes(graph: Graph) -> None:
    x = nf.placeholder("float64", (3,), name="x")
    nf.checkpoint(lambda t: nf.sin(t * t))(x)
    again = Graph.from_proto(graph.to_proto())
    with again.as_default():
        y = again.node("checkpoint").outputs[0]
        (grad,) = nf.gradients(nf.sum(y), [again.node("x").outputs[0]])
        assert grad is not None
        assert "recompute_barrier" in {n.op for n in ancestors([grad.node])}
        at = np.array([0.1, 1.0, 2.0])
        np.testing.assert_allclose(Evaluator().run(grad, {again.node("x").outputs[0]: at}), 2 * at * np.cos(at**2))


def test_loops_that_draw_random_numbers_are_kept_whole(graph: Graph) -> None:
    """A copy of one would draw others."""

    def dropped(x: nf.Tensor) -> nf.Tensor:
        last, _ = nf.scan(lambda c, row: (nf.nn.dropout(c * row, 0.5), row), nf.ones_like(x[0]), x)
        return nf.tanh(last)

    def plain(x: nf.Tensor) -> nf.Tensor:
        return nf.tanh(nf.scan(lambda c, row: (c * row, row), nf.ones_like(x[0]), x)[0])

    x = nf.placeholder("float64", (2, 40), name="x")
    at = np.random.default_rng(0).uniform(0.5, 1.5, (2, 40))
    for function in (dropped, plain):
        y = nf.checkpoint(function)(x)
        (grad,) = nf.gradients(nf.sum(y), [x])
        assert grad is not None
        value, slope = Evaluator().run([y, grad], {x: at})
        wanted = np.where(value != 0, (1 - value**2) * np.arctanh(value) / at, 0)
        np.testing.assert_allclose(slope, wanted, rtol=1e-9, atol=1e-12)
