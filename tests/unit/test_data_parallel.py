"""Data parallelism as a rewrite: the same losses on any number of workers, metrics as means, asynchronous updates."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import nbflow as nf
from nbflow import errors
from nbflow.graph import Graph
from nbflow.inprocess import InProcessCluster

ROWS, CLASSES = 96, 4


def problem() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, 6)).astype(np.float32)
    return x, (x @ rng.normal(size=(6, CLASSES))).argmax(-1).astype(np.int64)


@pytest.fixture
def graph() -> Iterator[Graph]:
    nf.set_cluster(None)
    with Graph().as_default() as made:
        yield made
        nf.set_cluster(None)


def model(strategy: Any, optimizer: Any, batch: int = 24) -> tuple[Any, Any, Any]:
    x, y = problem()
    data = nf.data.from_arrays({"x": x, "y": y}).shuffle(ROWS, seed=1).repeat().batch(batch).next()
    h = nf.layers.dense(data["x"], 8, activation=nf.nn.relu, name="hidden")
    logits = nf.layers.dense(h, CLASSES, name="logits")
    loss = nf.mean(nf.nn.softmax_cross_entropy(logits, data["y"]))
    accuracy = nf.mean(nf.astype(nf.argmax(logits, axis=-1) == data["y"], "float32"))
    return optimizer.minimize(loss, strategy=strategy), loss, accuracy


def losses(workers: int, ps: int, *, sync: bool = True, steps: int = 30, batch: int = 24) -> np.ndarray[Any, Any]:
    cluster = InProcessCluster(workers, ps)
    with Graph().as_default():
        nf.set_cluster(cluster)
        step, loss, accuracy = model(nf.train.DataParallel(sync=sync), nf.optim.SGD(0.1, momentum=0.9), batch)
        run = nf.train.run(step, steps=steps, metrics={"loss": loss, "acc": accuracy}, every=1, show=False)
        nf.set_cluster(None)
    cluster.close()
    assert run.status == "done"
    return run.history["loss"]


@pytest.mark.parametrize("batch", [24, 25, 7], ids=["even parts", "uneven parts", "a batch that does not divide"])
def test_losses_do_not_depend_on_the_number_of_workers(graph: Graph, batch: int) -> None:
    alone = losses(0, 0, batch=batch)
    assert alone[-1] < alone[0]
    for workers, ps in ((1, 1), (2, 1), (4, 2), (3, 0)):
        np.testing.assert_allclose(losses(workers, ps, batch=batch), alone, rtol=1e-5)


def test_moving_averages_take_one_step_a_step(graph: Graph) -> None:
    """batch_norm's averages move by the mean over the replicas, once, however many there are."""

    def averages(workers: int) -> list[np.ndarray[Any, Any]]:
        cluster = InProcessCluster(workers, 1)
        with Graph().as_default() as made:
            nf.set_cluster(cluster)
            x, y = problem()
            data = nf.data.from_arrays({"x": x, "y": y}).repeat().batch(24).next()
            normed = nf.layers.batch_norm(nf.layers.dense(data["x"], 5, name="d"), training=True, name="bn")
            logits = nf.layers.dense(normed, CLASSES, name="logits")
            loss = nf.mean(nf.nn.softmax_cross_entropy(logits, data["y"]))
            # With a rate of 0 the means of the parts are the parts of the mean: only the averages move.
            step = nf.optim.SGD(0.0).minimize(loss, strategy=nf.train.DataParallel())
            nf.train.run(step, steps=7, show=False)
            means = nf.run([made.node("bn/moving_mean/read").outputs[0], made.node("logits/weights/read").outputs[0]])
            nf.set_cluster(None)
        cluster.close()
        return list(means)

    alone = averages(1)
    assert np.abs(alone[0]).max() > 0
    for found, expected in zip(averages(2), alone, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("strategy", [nf.train.DataParallel(), nf.train.DataParallel(ps=None)], ids=["ps", "ring"])
def test_a_replica_without_rows_changes_nothing(graph: Graph, strategy: Any) -> None:
    """Batches of 94 and 2 rows on 4 workers: of the second two replicas have 0 rows, and a mean over 0 rows is NaN."""

    def found(workers: int) -> np.ndarray[Any, Any]:
        cluster = InProcessCluster(workers, 1)
        with Graph().as_default():
            nf.set_cluster(cluster)
            x, y = problem()
            data = nf.data.from_arrays({"x": x, "y": y}).batch(94).repeat().next()
            loss = nf.mean(nf.nn.softmax_cross_entropy(nf.layers.dense(data["x"], CLASSES, name="d"), data["y"]))
            step = nf.optim.SGD(0.1, momentum=0.9).minimize(loss, strategy=strategy)
            run = nf.train.run(step, steps=10, metrics={"loss": loss}, every=1, show=False)
            nf.set_cluster(None)
        cluster.close()
        return run.history["loss"]

    np.testing.assert_allclose(found(4), found(1), rtol=1e-5)


def test_runs_are_repeatable_to_the_bit(graph: Graph) -> None:
    np.testing.assert_array_equal(losses(4, 2), losses(4, 2))


def test_asynchronous_replicas_all_contribute(graph: Graph) -> None:
    cluster = InProcessCluster(2, 1)
    nf.set_cluster(cluster)
    step, loss, _ = model(nf.train.DataParallel(sync=False), nf.optim.SGD(0.1))
    run = nf.train.run(step, steps=61, metrics={"loss": loss}, every=4, show=False)
    assert run.step == 61
    replicas = {e.replica for e in run.events if isinstance(e, nf.events.Metric)}
    assert replicas == {"replica_0", "replica_1"}
    assert run.history["loss"][-1] < run.history["loss"][0]
    cluster.close()


def test_a_step_with_a_fetch_gives_the_mean_and_the_whole_batch(graph: Graph) -> None:
    cluster = InProcessCluster(2, 1)
    nf.set_cluster(cluster)
    x, y = problem()
    data = nf.data.from_arrays({"x": x, "y": y}).batch(24).next()
    logits = nf.layers.dense(data["x"], CLASSES, name="logits")
    per_example = nf.nn.softmax_cross_entropy(logits, data["y"])
    loss = nf.mean(per_example)
    step = nf.optim.SGD(0.1).minimize(loss, strategy=nf.train.DataParallel())
    _, value, each, seen = nf.run([step, loss, per_example, data["x"]])
    np.testing.assert_array_equal(seen, x[:24])
    np.testing.assert_allclose(value, each.mean(), rtol=1e-6)
    with pytest.raises(errors.GraphError, match="of which there is no mean"):
        nf.run([step, nf.sum(data["y"])])
    cluster.close()


def test_replicas_are_on_the_workers_and_variables_on_the_ps(graph: Graph) -> None:
    cluster = InProcessCluster(2, 2)
    nf.set_cluster(cluster)
    step, _, _ = model(nf.train.DataParallel(), nf.optim.Adam(0.01))
    rows = {r.op: r for r in nf.placement(step)}
    for name, row in rows.items():
        if name.startswith("replica_"):
            assert row.actual == f"/job:worker/task:{name[8]}/cpu:0", name
    for row in rows.values():
        if row.type in ("variable", "apply_adam", "weighted_sum"):
            assert row.actual.startswith("/job:ps/"), row
    assert {rows[n].actual for n in ("hidden/weights", "logits/weights")} == {
        "/job:ps/task:0/cpu:0",
        "/job:ps/task:1/cpu:0",
    }
    cluster.close()


def test_evaluation_uses_the_trained_weights(graph: Graph) -> None:
    cluster = InProcessCluster(2, 1)
    nf.set_cluster(cluster)
    x, y = problem()
    data = nf.data.from_arrays({"x": x, "y": y}).repeat().batch(24).next()
    logits = nf.layers.dense(data["x"], CLASSES, name="logits")
    loss = nf.mean(nf.nn.softmax_cross_entropy(logits, data["y"]))
    accuracy = nf.mean(nf.astype(nf.argmax(logits, axis=-1) == data["y"], "float32"))
    before = nf.run(accuracy, {data["x"]: x, data["y"]: y})
    step = nf.optim.Adam(0.05).minimize(loss, strategy=nf.train.DataParallel())
    nf.train.run(step, steps=150, show=False)
    after = nf.run(accuracy, {data["x"]: x, data["y"]: y})
    assert after > max(before, 0.9)
    cluster.close()


def test_data_that_ends_ends_the_run(graph: Graph) -> None:
    cluster = InProcessCluster(2, 1)
    nf.set_cluster(cluster)
    x, y = problem()
    data = nf.data.from_arrays({"x": x, "y": y}).batch(24).next()
    loss = nf.mean(nf.nn.softmax_cross_entropy(nf.layers.dense(data["x"], CLASSES), data["y"]))
    step = nf.optim.SGD(0.1).minimize(loss, strategy=nf.train.DataParallel())
    run = nf.train.run(step, steps=100, metrics={"loss": loss}, every=1, show=False)
    assert run.status == "done"
    assert run.step == 4
    assert "data ended after step 4" in run.detail
    cluster.close()


@pytest.mark.parametrize("stop", [True, False])
def test_a_loss_that_is_not_a_number_is_reported(graph: Graph, stop: bool) -> None:
    x = nf.Variable([1e30], name="x")
    loss = nf.sum(x * x * x)  # overflows at once
    step = nf.optim.SGD(1.0).minimize(loss)
    run = nf.train.run(step, steps=20, metrics={"loss": loss}, every=1, show=False, stop_on_nan=stop)
    assert run.status == ("stopped" if stop else "done")
    assert "loss is" in run.detail
    assert not np.isfinite(run.history["loss"][-1])
    assert (len(run.history["loss"]) < 20) == stop


def test_stop_pause_and_resume(graph: Graph) -> None:
    w = nf.Variable([1.0], name="w")
    step = nf.optim.SGD(1e-6).minimize(nf.sum(w * w))
    run = nf.train.run(step, steps=10_000_000, show=False, background=True)
    assert run.status in ("starting", "running")
    run.pause()
    paused = wait_for(run, "paused")
    assert paused
    done = run.step
    run.resume()
    assert wait_for(run, "running")
    run.stop()
    assert run.status == "stopped"
    assert run.step >= done
    assert nf.run(w)[0] < 1.0  # the session is usable


def wait_for(run: Any, status: str) -> bool:
    reached = threading.Event()
    remove = run.listen(lambda e: reached.set() if getattr(e, "status", "") == status else None)
    try:
        return run.status == status or reached.wait(20)
    finally:
        remove()


def test_what_cannot_be_trained_is_a_clear_error(graph: Graph) -> None:
    w = nf.Variable([1.0], name="w")
    step = nf.optim.SGD(0.1).minimize(nf.sum(w * w))
    with pytest.raises(errors.GraphError, match="not a scalar"):
        nf.train.run(step, steps=1, metrics={"w": w * 1.0}, show=False)
    with pytest.raises(errors.GraphError, match="at least 1"):
        nf.train.run(step, steps=0, show=False)
    with pytest.raises(errors.GraphError, match="backup"):
        nf.train.DataParallel(backup=-1)
    with pytest.raises(errors.PlacementError):
        nf.train.DataParallel(workers="not a device")


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("sync", [True, False])
def test_what_is_fed_goes_whole_to_every_replica(graph: Graph, workers: int, sync: bool) -> None:
    x = nf.placeholder("float32", (None, 2), name="x")
    w = nf.Variable(np.ones(2, "float32"), name="w")
    rows = x @ w
    loss = nf.mean(rows * rows)
    step = nf.optim.SGD(0.1).minimize(loss, strategy=nf.train.DataParallel(sync=sync))
    cluster = InProcessCluster(workers, 1)
    with nf.Session(cluster, graph) as session:
        fed = np.array([[1, 0], [0, 2], [1, 1]], "float32")
        got, each, _ = session.run([loss, rows, step], {x: fed})
        after = session.run(w)
    cluster.close()
    np.testing.assert_allclose(each, [1, 2, 2])  # as many rows as were fed
    np.testing.assert_allclose(got, 3.0)
    np.testing.assert_allclose(after, [1 - 0.1 * 2 / 3 * 3, 1 - 0.1 * 2 / 3 * 6], rtol=1e-6)


@pytest.mark.parametrize("kind", [nf.train.DataParallel, nf.train.LocalSGD])
@pytest.mark.parametrize("name", ["workers", "ps"])
def test_devices_that_a_strategy_names_and_that_are_not_there_are_refused(graph: Graph, kind: Any, name: str) -> None:
    """They used to train on one machine, without a word."""
    cluster = InProcessCluster(2, 1)
    nf.set_cluster(cluster)
    step, loss, _ = model(kind(**{name: "/job:trainer"}), nf.optim.SGD(0.1))
    said = rf"no device matches {name}='/job:trainer'.*there are /job:worker/task:0/cpu:0, .*/job:ps/task:0/cpu:0"
    for run in (lambda: nf.run(step), lambda: nf.train.run(step, 8, show=False), lambda: nf.placement(step)):
        with pytest.raises(errors.GraphError, match=said):
            run()
    assert np.isfinite(nf.run(loss))  # nothing else is in its way
    nf.set_cluster(None)
    cluster.close()


def test_the_usual_names_run_without_a_cluster(graph: Graph) -> None:
    step, loss, _ = model(nf.train.DataParallel(), nf.optim.SGD(0.1))
    before = nf.run(loss)
    nf.train.run(step, 20, show=False)
    assert nf.run(loss) < before
