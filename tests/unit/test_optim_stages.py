"""Clipping, accumulation, loss scaling, decay masks and averages; alone and on several workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

import nbflow as nf
from nbflow.errors import DTypeError, GraphError
from nbflow.graph import Graph, Node
from nbflow.inprocess import InProcessCluster
from nbflow.optim import SGD, Adam, Clip, DynamicLossScale, ExponentialMovingAverage, Optimizer
from nbflow.testing import Evaluator

A = np.ndarray[Any, Any]
PARTS = [np.array([3.0, -4.0]), np.array([[0.3], [12.0]])]


@pytest.fixture
def graph() -> Iterator[Graph]:
    with Graph().as_default() as made:
        yield made


def by_global_norm(grads: Sequence[A], limit: float) -> list[A]:
    norm = np.sqrt(sum(float((g**2).sum()) for g in grads))
    return [g * min(1.0, limit / norm) for g in grads]


CLIPS: dict[str, tuple[Clip, Callable[[Sequence[A]], list[A]]]] = {
    "value": (Clip(value=2.0), lambda gs: [np.clip(g, -2, 2) for g in gs]),
    "norm": (Clip(norm=2.0), lambda gs: [g * min(1.0, 2 / np.linalg.norm(g)) for g in gs]),
    "global_norm": (Clip(global_norm=2.0), lambda gs: by_global_norm(gs, 2.0)),
}


@pytest.mark.parametrize("name", CLIPS)
def test_clips_on_lists(graph: Graph, name: str) -> None:
    clip, expect = CLIPS[name]
    for factor in (1.0, 0.01):
        grads = [part * factor for part in PARTS]
        found = Evaluator().run(clip([nf.constant(g) for g in grads]))
        for one, other in zip(found, expect(grads), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12)


def test_none_stays_none_and_float16_does_not_overflow(graph: Graph) -> None:
    big = nf.constant(np.full(100, 1000.0, np.float16))
    clipped = nf.optim.clip_by_global_norm([None, big], 1.0)
    assert clipped[0] is None
    np.testing.assert_allclose(Evaluator().run(clipped[1]), 0.1, rtol=1e-3)
    assert nf.optim.clip_by_value([None, big], -1.0, 0.5)[0] is None
    with pytest.raises(GraphError, match="no gradients"):
        nf.optim.global_norm([None])


@pytest.mark.parametrize("name", CLIPS)
def test_clipped_steps(graph: Graph, name: str) -> None:
    clip, expect = CLIPS[name]
    variables = [nf.Variable(p, name=f"w{n}") for n, p in enumerate(PARTS)]
    loss = nf.sum(nf.square(variables[0])) + nf.sum(nf.square(variables[1])) * 0.5
    step = SGD(0.1, momentum=0.9).minimize(loss, clip=clip)
    runner = Evaluator()
    values, moments = list(PARTS), [np.zeros_like(p) for p in PARTS]
    for _ in range(12):
        runner.run(step)
        grads = expect([2 * values[0], values[1]])
        moments = [0.9 * m + g for m, g in zip(moments, grads, strict=True)]
        values = [v - 0.1 * m for v, m in zip(values, moments, strict=True)]
        for found, value in zip(runner.run(variables), values, strict=True):
            np.testing.assert_allclose(found, value, rtol=1e-12)


def test_accumulated_batches_make_one_step(graph: Graph) -> None:
    """Three parts accumulated give what Adam makes of their mean, clipping and schedule included."""
    w = nf.Variable(np.ones(2), name="w")
    x = nf.placeholder("float64", (2,), name="x")
    rate = nf.optim.schedule.step_decay(0.1, 2, 0.5)
    step = Adam(rate).minimize(nf.sum(w * w * x), accumulate=3, clip=Clip(norm=1.5))
    runner = Evaluator()
    rng = np.random.default_rng(0)
    value, m, v = np.ones(2), np.zeros(2), np.zeros(2)
    for t in range(1, 12):
        parts = rng.normal(size=(3, 2))
        for n, part in enumerate(parts):
            np.testing.assert_allclose(runner.run(w), value, rtol=1e-12, err_msg=f"part {n} of step {t}")
            runner.run(step, {x: part})
        g = (2 * value * parts).mean(0)
        g = g * min(1.0, 1.5 / np.linalg.norm(g))
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        lr = 0.1 * 0.5 ** ((t - 1) // 2)
        value = value - lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        np.testing.assert_allclose(runner.run(w), value, rtol=1e-10)
    assert runner.run(nf.Variable.from_node(graph.node("Adam/iterations"))) == 11


def test_loss_scale_skips_overflow_and_recovers(graph: Graph) -> None:
    w = nf.Variable(np.float32([1.0, 2.0]), name="w")
    x = nf.placeholder("float32", (), name="x")
    scale = DynamicLossScale(initial=1024.0, interval=3, most=4096.0)
    step = SGD(0.1, momentum=0.5).minimize(nf.sum(w) * x, loss_scale=scale)
    kept = nf.Variable.from_node(graph.node("SGD/loss_scale"))
    runner = Evaluator()
    value, moment, expected_scale, good = np.array([1.0, 2.0]), 0.0, 1024.0, 0
    for given in (1.0, 2.0, np.inf, 1.0, 1.0, 1.0, 1.0, np.nan, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0):
        runner.run(step, {x: np.float32(given)})
        if np.isfinite(given):
            moment = 0.5 * moment + given
            value = value - 0.1 * moment
            good += 1
            if good == 3:
                expected_scale, good = min(expected_scale * 2, 4096.0), 0
        else:
            expected_scale, good = expected_scale / 2, 0
        np.testing.assert_allclose(runner.run(w), value, rtol=1e-5, atol=1e-6)
        assert runner.run(kept) == expected_scale
    assert expected_scale == 4096.0


def test_loss_scale_saves_small_float16_gradients(graph: Graph) -> None:
    """1e-4 · 1e-4 is 0 in float16; scaled, its gradient reaches the float32 variable."""

    def after(loss_scale: DynamicLossScale | None) -> float:
        with Graph().as_default():
            w = nf.Variable(np.float32(1.0), name="w")
            half = nf.astype(w.to_tensor(), "float16")
            loss = nf.astype(half * nf.constant(np.float16(1e-4)), "float32") * 1e-4
            step = SGD(1e6).minimize(loss, loss_scale=loss_scale)
            runner = Evaluator()
            runner.run(step)
            return float(runner.run(w))

    assert after(None) == pytest.approx(1.0, abs=1e-3)
    assert after(DynamicLossScale()) == pytest.approx(1.0 - 1e-2, rel=1e-4)


def test_accumulation_of_scaled_gradients_leaves_out_what_overflows(graph: Graph) -> None:
    w = nf.Variable(np.float32([1.0, 2.0]), name="w")
    x = nf.placeholder("float32", (), name="x")
    scale = DynamicLossScale(initial=8.0, interval=2)
    step = SGD(0.1).minimize(nf.sum(w) * x, loss_scale=scale, accumulate=2, clip=Clip(value=10.0))
    kept = nf.Variable.from_node(graph.node("SGD/loss_scale"))
    runner = Evaluator()
    seen = []
    for given in (1.0, np.inf, 3.0, 5.0, np.nan, 7.0, 100.0, 100.0):
        runner.run(step, {x: np.float32(given)})
        seen.append((float(runner.run(w)[0]), float(runner.run(kept))))
    # (1 + 3) / 2, (5 + 7) / 2 and 100, clipped to 10; halved after an overflow, doubled after two runs without.
    wanted = [(1.0, 8), (1.0, 4), (0.8, 4), (0.8, 8), (0.8, 4), (0.2, 4), (0.2, 8), (-0.8, 8)]
    np.testing.assert_allclose(seen, wanted, rtol=1e-5)


def test_two_optimizers_keep_slots_of_their_own(graph: Graph) -> None:
    """Steps of one variable in turn: neither sees the other's momentum, nor its count."""
    w = nf.Variable(np.ones(2), name="w")
    loss = nf.sum(w * w)
    steps = [SGD(0.1, momentum=0.9).minimize(loss), SGD(0.01, momentum=0.5).minimize(loss), Adam(0.1).minimize(loss)]
    names = set(graph.nodes.keys())
    assert {"w/SGD/m", "w/SGD.1/m", "w/Adam/m", "w/Adam/v"} <= names
    runner = Evaluator()
    value, first, second, m, v = np.ones(2), 0.0, 0.0, 0.0, 0.0
    for t in range(1, 5):
        for step in steps:
            runner.run(step)
        first = 0.9 * first + 2 * value
        value = value - 0.1 * first
        second = 0.5 * second + 2 * value
        value = value - 0.01 * second
        m, v = 0.9 * m + 0.1 * 2 * value, 0.999 * v + 0.001 * (2 * value) ** 2
        value = value - 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        np.testing.assert_allclose(runner.run(w), value, rtol=1e-10)


def test_complex_variables_train(graph: Graph) -> None:
    target = np.array([1 + 2j, -3j])
    z = nf.Variable(np.zeros(2, np.complex128), name="z")
    loss = nf.sum(nf.abs(z - target) ** 2.0)
    step = SGD(0.1, momentum=0.5).minimize(loss, clip=Clip(global_norm=1.0))
    runner = Evaluator()
    value, moment = np.zeros(2, np.complex128), np.zeros(2, np.complex128)
    for _ in range(5):
        runner.run(step)
        grad = 2 * (value - target)
        moment = 0.5 * moment + grad / max(1.0, float(np.linalg.norm(grad)))
        value = value - 0.1 * moment
        np.testing.assert_allclose(runner.run(z), value, rtol=1e-12)
    with pytest.raises(DTypeError, match="SGD can"):
        Adam(0.1).minimize(loss)
    with pytest.raises(DTypeError, match="no order"):
        SGD(0.1).minimize(loss, clip=Clip(value=1.0))


def test_decay_masks(graph: Graph) -> None:
    for make in (nf.optim.AdamW, nf.optim.Lion, nf.optim.Lamb, nf.optim.LARS, SGD):
        with Graph().as_default():
            w, b = nf.Variable(np.ones((2, 2)), name="w"), nf.Variable(np.ones(2), name="b")
            optimizer = make(0.1, weight_decay=0.5, decay_mask=lambda v: v.ndim > 1)
            step = optimizer.minimize(nf.sum(w) + nf.sum(b))
            decays = {n.attrs["variable"]: n.attrs["weight_decay"] for n in step.control_inputs if "apply" in n.op}
            assert decays == {"w": 0.5, "b": 0.0}


@pytest.mark.parametrize("warm_up", [False, True])
def test_moving_averages(graph: Graph, warm_up: bool) -> None:
    w = nf.Variable(np.array([1.0, -1.0]), name="w")
    ema = ExponentialMovingAverage(0.9, warm_up=warm_up)
    step = ema.after(SGD(0.1).minimize(nf.sum(nf.square(w))), [w])
    runner = Evaluator()
    value = average = np.array([1.0, -1.0])
    for t in range(12):
        runner.run(step)
        value = value * 0.8
        decay = min(0.9, (1 + t) / (10 + t)) if warm_up else 0.9
        average = decay * average + (1 - decay) * value
        np.testing.assert_allclose(runner.run(ema.average(w)), average, rtol=1e-12)
    assert ema.average(w).name == "w/ema"
    assert list(ema.averages) == ["w"]
    runner.run(ema.swap_in())
    np.testing.assert_allclose(runner.run(w), average, rtol=1e-12)


def test_what_is_refused(graph: Graph) -> None:
    w = nf.Variable(np.ones(2), name="w")
    loss = nf.sum(w)
    for refused in (
        Clip,
        lambda: Clip(value=1.0, norm=1.0),
        lambda: Clip(norm=0.0),
        lambda: SGD().minimize(loss, accumulate=0),
        lambda: SGD().minimize(loss, clip=lambda gs: []),
        lambda: DynamicLossScale(initial=0.5),
        lambda: ExponentialMovingAverage(1.0),
        lambda: ExponentialMovingAverage().average(w),
        lambda: ExponentialMovingAverage().swap_in(),
    ):
        with pytest.raises(GraphError):
            refused()
    count = nf.Variable(np.int64(0), name="count", trainable=False)
    with pytest.raises(DTypeError, match="floating"):
        ExponentialMovingAverage().after(SGD().minimize(loss), [count])


# --- on several workers ----------------------------------------------------------------------------------------------


def _trained(workers: int, ps: int, make: Callable[[Any, Any], Node], steps: int = 12) -> tuple[A, list[A]]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 6)).astype(np.float32)
    y = (x @ rng.normal(size=(6, 4))).argmax(-1)
    cluster = InProcessCluster(workers, ps)
    try:
        with Graph().as_default() as made:
            nf.set_cluster(cluster)
            data = nf.data.from_arrays({"x": x, "y": y}).repeat().batch(20).next()
            h = nf.layers.dense(data["x"], 5, activation=nf.nn.relu, name="hidden")
            logits = nf.layers.dense(h, 4, name="logits")
            loss = nf.mean(nf.nn.softmax_cross_entropy(logits, data["y"]))
            step = make(loss, nf.train.DataParallel())
            run = nf.train.run(step, steps=steps, metrics={"loss": loss}, every=1, show=False)
            assert run.status == "done"
            variables = [nf.Variable.from_node(n) for n in made.nodes.values() if n.op == "variable"]
            return run.history["loss"], nf.run(sorted(variables, key=lambda v: v.name))
    finally:
        nf.set_cluster(None)
        cluster.close()


def _averaged(loss: Any, strategy: Any) -> Node:
    step = SGD(0.3).minimize(loss, strategy=strategy)
    return ExponentialMovingAverage(0.8).after(step, nf.trainable_variables())


def _minimized(optimizer: Optimizer, **options: Any) -> Callable[[Any, Any], Node]:
    return lambda loss, strategy: optimizer.minimize(loss, strategy=strategy, **options)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(_minimized(SGD(0.5), clip=Clip(value=0.01)), id="value"),
        pytest.param(_minimized(SGD(0.5), clip=Clip(norm=0.1)), id="norm"),
        pytest.param(_minimized(SGD(0.5, momentum=0.9), clip=Clip(global_norm=0.1)), id="global norm"),
        pytest.param(_minimized(Adam(0.05), accumulate=3, clip=Clip(global_norm=0.1)), id="accumulate"),
        pytest.param(_minimized(SGD(0.5), loss_scale=DynamicLossScale(interval=4)), id="loss scale"),
        pytest.param(_minimized(nf.optim.Lamb(0.05)), id="lamb"),
        pytest.param(_minimized(nf.optim.Lion(0.01)), id="lion"),
        pytest.param(_minimized(nf.optim.LARS(1.0, trust=0.02)), id="lars"),
        pytest.param(_minimized(nf.optim.RMSProp(0.01, momentum=0.5, centered=True)), id="rmsprop"),
        pytest.param(_minimized(SGD(nf.optim.schedule.warmup(3, nf.optim.schedule.cosine(0.5, 9)))), id="schedule"),
        pytest.param(_averaged, id="averages"),
    ],
)
def test_losses_do_not_depend_on_the_number_of_workers(make: Callable[[Any, Any], Node]) -> None:
    """What is not linear in the gradients stands behind the point where the replicas' are joined."""
    alone, values = _trained(0, 0, make)
    assert len(set(alone.tolist())) > 3
    for workers, ps in ((2, 1), (3, 2)):
        found, others = _trained(workers, ps, make)
        np.testing.assert_allclose(found, alone, rtol=2e-5)
        for one, other in zip(others, values, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
