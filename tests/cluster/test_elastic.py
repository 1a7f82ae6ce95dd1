"""Runs whose workers come and go: the losses of one process where steps are counted, and an end to every wait."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nbflow as nf
import nbflow_workers as nw
from nbflow.errors import GraphError, WorkerLost
from nbflow.graph import Graph
from nbflow.train import DataParallel, LocalSGD, Pipeline

pytestmark = pytest.mark.cluster

# For what should be quick, but must not fail on a slow machine.
PATIENCE_S = 60
STEPS = 10_000


@pytest.fixture
def graph() -> Iterator[Graph]:
    nf.set_cluster(None)
    with Graph().as_default() as made:
        yield made
        nf.set_cluster(None)


def problem(strategy: Any) -> tuple[Any, Any]:
    """A small network whose losses tell any step that was left out, or made twice, or with other rows."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(240, 10)).astype(np.float32)
    y = rng.integers(0, 2, 240)
    data = nf.data.from_arrays({"x": x, "y": y}).shuffle(240, seed=3).repeat().batch(24).next()
    hidden = nf.layers.dense(data["x"], 16, activation=nf.nn.tanh, name="hidden")
    loss = nf.mean(nf.nn.softmax_cross_entropy(nf.layers.dense(hidden, 2, name="logits"), data["y"]))
    return nf.optim.SGD(0.05, momentum=0.5).minimize(loss, strategy=strategy), loss


@pytest.fixture(scope="module")
def alone() -> np.ndarray[Any, Any]:
    """The losses of one process."""
    nf.set_cluster(None)
    with Graph().as_default():
        step, loss = problem(DataParallel())
        return nf.train.run(step, steps=1500, metrics={"loss": loss}, every=1, show=False).history["loss"]


def start(strategy: Any, **options: Any) -> Any:
    step, loss = problem(strategy)
    options = {"steps": STEPS, "every": 1, **options}
    return nf.train.run(step, metrics={"loss": loss}, show=False, background=True, elastic=True, **options)


def wait_for(run: Any, condition: Callable[[Any], bool]) -> None:
    """Waits until `condition(run)` holds, looking at each event."""
    reached = threading.Event()
    remove = run.listen(lambda event: reached.set() if condition(run) else None)
    try:
        assert condition(run) or reached.wait(PATIENCE_S), (run, run.changes)
        assert run.error is None, run.error
    finally:
        remove()


def go(run: Any, steps: int = 20) -> None:
    """Lets the run make some steps."""
    until = run.step + steps
    wait_for(run, lambda r: r.step >= until)


def changed(run: Any, by: Callable[[], Any]) -> Any:
    """Makes some steps, does `by`, and waits until the run goes on; the change."""
    go(run)
    before = len(run.changes)
    by()
    wait_for(run, lambda r: len(r.changes) > before)
    found = run.changes[before]
    wait_for(run, lambda r: r.step > found.step)
    return found


def send(cluster: Any, task: str, how: signal.Signals) -> None:
    os.kill(next(w.pid for w in cluster.workers() if w.task_name == task), how)


def kill(cluster: Any, task: str) -> Callable[[], None]:
    return lambda: send(cluster, task, signal.SIGKILL)


def end(run: Any) -> None:
    run.stop(PATIENCE_S)
    assert run.status == "stopped", run


def check_losses(run: Any, alone: np.ndarray[Any, Any]) -> None:
    """Each step that was heard of has the loss that it has in one process; few were not heard of."""
    steps = run.history["step"].astype(int)
    kept = steps <= len(alone)
    assert kept.sum() > 0.9 * min(len(alone), run.step)
    np.testing.assert_allclose(run.history["loss"][kept], alone[steps[kept] - 1], rtol=1e-4)


WORKER = [f"/job:worker/task:{n}" for n in range(5)]


@pytest.mark.parametrize(
    ("strategy", "ps"),
    [(DataParallel(), 1), (DataParallel(), 0), (DataParallel(ps=None), 0)],
    ids=["ps", "on the workers", "ring"],
)
def test_workers_join_and_are_sent_away(graph: Graph, alone: Any, strategy: Any, ps: int) -> None:
    """Without a ps the values of who is sent away are carried to others."""
    with nw.local(workers=2, ps=ps) as cluster:
        nf.set_cluster(cluster)
        run = start(strategy)
        more = changed(run, lambda: cluster.scale(3))
        assert (more.replicas, more.joined, more.left) == (3, (WORKER[2],), ())
        fewer = changed(run, lambda: cluster.scale(1))
        assert (fewer.replicas, fewer.joined, fewer.left) == (1, (), (WORKER[1], WORKER[2]))
        again = changed(run, lambda: cluster.scale(2))
        assert (again.replicas, again.joined) == (2, (WORKER[1],))
        assert [c.detail for c in run.changes] == [""] * 3
        end(run)
        check_losses(run, alone)
        # What was learned is there, and nobody waits for a run that is over.
        cluster.scale(1)
        assert np.isfinite(nf.run(nf.Variable.from_node(graph.node("hidden/weights")))).all()
        nf.set_cluster(None)


@pytest.mark.parametrize(
    ("strategy", "ps"),
    [(DataParallel(), 2), (DataParallel(backup=1), 2), (DataParallel(ps=None), 0)],
    ids=["sync", "backup", "ring"],
)
def test_workers_are_killed_with_all_that_they_do(graph: Graph, alone: Any, strategy: Any, ps: int) -> None:
    """The one that leads the loop first; in a ring, where all have the variables, the one whose they are. Of 3 one may
    be a backup, of 2 none."""
    with nw.local(workers=3, ps=ps) as cluster:
        nf.set_cluster(cluster)
        run = start(strategy)
        for number in (0, 2):
            lost = changed(run, kill(cluster, WORKER[number]))
            assert (lost.left, lost.joined) == ((WORKER[number],), ())
        assert lost.replicas == 1
        back = changed(run, lambda: cluster.scale(3))
        assert (back.replicas, back.joined) == (3, (WORKER[0], WORKER[2]))
        end(run)
        if not strategy.backup:
            check_losses(run, alone)
        loss = run.history["loss"]
        assert loss[-20:].mean() < loss[:20].mean()
        nf.set_cluster(None)


def test_a_frozen_worker_is_left_behind_and_comes_back(graph: Graph, alone: Any) -> None:
    """What it still has to say of the past, when it wakes, changes nothing."""
    with nw.local(workers=2, ps=1) as cluster:
        nf.set_cluster(cluster)
        run = start(DataParallel())
        lost = changed(run, lambda: send(cluster, WORKER[0], signal.SIGSTOP))
        assert (lost.left, lost.replicas) == ((WORKER[0],), 1)
        back = changed(run, lambda: send(cluster, WORKER[0], signal.SIGCONT))
        assert (back.joined, back.replicas) == ((WORKER[0],), 2)
        go(run, 200)
        end(run)
        check_losses(run, alone)
        nf.set_cluster(None)


def test_asynchronous_replicas(graph: Graph) -> None:
    """The steps are the run's: as many in the end as were asked for, whoever made them."""
    with nw.local(workers=2, ps=1) as cluster:
        nf.set_cluster(cluster)
        run = start(DataParallel(sync=False, staleness=4), steps=3000, every=20)
        changed(run, lambda: cluster.scale(3))
        lost = changed(run, kill(cluster, WORKER[0]))
        assert (lost.left, lost.replicas) == ((WORKER[0],), 2)
        run.wait(PATIENCE_S)
        assert (run.status, run.step) == ("done", 3000)
        assert (np.diff(run.history["step"]) > 0).all()
        assert run.history["loss"][-5:].mean() < run.history["loss"][:5].mean()
        nf.set_cluster(None)


def test_local_sgd_goes_back_to_the_last_average_when_a_replica_is_lost(graph: Graph) -> None:
    with nw.local(workers=2, ps=1) as cluster:
        nf.set_cluster(cluster)
        run = start(LocalSGD(every=50))
        changed(run, lambda: cluster.scale(3))
        begun = run.changes[-1].step
        lost = changed(run, kill(cluster, WORKER[1]))
        assert (lost.step - begun) % 50 == 0
        assert "after the last average, are made again" in lost.detail or lost.step == begun
        end(run)
        loss = run.history["loss"]
        assert loss[-20:].mean() < loss[:20].mean()
        nf.set_cluster(None)


@pytest.mark.parametrize(
    ("strategy", "ps", "victim", "writer"),
    [
        (DataParallel(), 1, "/job:ps/task:0", "worker"),
        (DataParallel(), 0, WORKER[1], "client"),
    ],
    ids=["ps", "variables on the workers"],
)
def test_values_that_are_lost_come_from_the_last_checkpoint(
    graph: Graph, alone: Any, tmp_path: Path, strategy: Any, ps: int, victim: str, writer: Any
) -> None:
    with nw.local(workers=2, ps=ps) as cluster:
        nf.set_cluster(cluster)
        run = start(strategy, checkpoint=tmp_path, checkpoint_every=15, checkpoint_by=writer)
        lost = changed(run, kill(cluster, victim))
        assert lost.step % 15 == 0
        assert f"on from the checkpoint of step {lost.step}" in lost.detail
        assert f"lost with {victim}" in lost.detail
        go(run)
        assert run.checkpoint(PATIENCE_S).exists()
        end(run)
        check_losses(run, alone)
        nf.set_cluster(None)


def test_values_that_are_lost_without_a_checkpoint_end_the_run(graph: Graph) -> None:
    with nw.local(workers=2) as cluster:
        nf.set_cluster(cluster)
        run = start(DataParallel())
        go(run)
        kill(cluster, WORKER[1])()
        with pytest.raises(WorkerLost, match=rf"variables .* were lost with {WORKER[1]}; a run with checkpoint="):
            run.wait(PATIENCE_S)
        assert run.changes == []
        nf.set_cluster(None)


def test_when_all_are_lost_the_run_waits_for_others(graph: Graph, alone: Any) -> None:
    with nw.local(workers=2, ps=1) as cluster:
        nf.set_cluster(cluster)
        run = start(DataParallel())
        go(run)
        for task in WORKER[:2]:
            kill(cluster, task)()
        wait_for(run, lambda r: r.status == "recovering")
        cluster.scale(2)
        wait_for(run, lambda r: r.status == "running")
        assert run.changes[-1].replicas in (1, 2)
        go(run)
        end(run)
        check_losses(run, alone)
        nf.set_cluster(None)


def test_what_is_asked_of_a_run_holds_after_a_change(graph: Graph) -> None:
    """Pausing, evaluating, stopping; a paused run changes hands too, and stays paused."""
    with nw.local(workers=1, ps=1) as cluster:
        nf.set_cluster(cluster)
        x = nf.constant(np.ones((4, 3), np.float32))
        step, loss = problem(DataParallel())
        run = nf.train.run(
            step,
            steps=STEPS,
            metrics={"loss": loss},
            evaluate={"ones": nf.sum(x)},
            eval_every=10,
            show=False,
            background=True,
            elastic=True,
        )
        go(run)
        run.pause()
        wait_for(run, lambda r: r.status == "paused")
        at = run.step
        cluster.scale(2)
        wait_for(run, lambda r: len(r.changes) == 1)
        wait_for(run, lambda r: r.status == "paused")
        assert run.step - at <= 10  # those that begin before it hears that it is paused
        run.resume()
        go(run)
        evaluated = run.history["step"][np.isfinite(run.history["ones"])]
        assert evaluated[-1] > run.changes[0].step
        end(run)
        nf.set_cluster(None)


def test_another_process_sees_who_takes_part_now(graph: Graph) -> None:
    """What workers tell of the run is that of its present loops."""
    with nw.local(workers=1, ps=1) as cluster:
        nf.set_cluster(cluster)
        run = start(DataParallel(sync=False), name="changing")
        changed(run, lambda: cluster.scale(3))
        record = next(r for r in cluster.runs() if r.name == "changing")
        assert {part.leader for part in record.about.parts} == set(WORKER[:3])
        assert record.about.started_s == pytest.approx(run.started_s, abs=60)
        end(run)
        nf.set_cluster(None)


def test_an_error_of_the_step_is_no_change_of_workers(graph: Graph) -> None:
    with nw.local(workers=2, ps=1) as cluster:
        nf.set_cluster(cluster)
        data = nf.data.from_arrays({"x": np.arange(40, dtype=np.float32)}).repeat().batch(4).next()
        w = nf.Variable(1.0, name="w")
        matrix = nf.reshape(data["x"][:1] - 20.0, (1, 1))
        step = nf.optim.SGD(0.1).minimize(w * nf.sum(nf.linalg.cholesky(matrix)), strategy=DataParallel())
        with pytest.raises(nf.errors.OpError):
            nf.train.run(step, steps=100, show=False, elastic=True)
        nf.set_cluster(None)


@pytest.mark.parametrize("strategy", [None, Pipeline((WORKER[0], WORKER[1]), 2)], ids=["none", "pipeline"])
def test_a_strategy_without_replicas_is_refused(graph: Graph, strategy: Any) -> None:
    with pytest.raises(GraphError, match="elastic=True is for replicas"):
        start(strategy)


def test_there_must_be_a_worker_to_begin_with(graph: Graph) -> None:
    with pytest.raises(GraphError, match="elastic=True needs a worker to begin with"):
        start(DataParallel())
