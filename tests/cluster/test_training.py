"""Training on worker processes: the same losses, interrupts, and workers that die in the middle."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import nbflow as nf
import nbflow_workers as nw
from nbflow import errors
from nbflow.graph import Graph

pytestmark = pytest.mark.cluster

# For what should be quick, but must not fail on a slow machine.
PATIENCE_S = 40


@pytest.fixture
def graph() -> Iterator[Graph]:
    with Graph().as_default() as made:
        yield made
        nf.set_cluster(None)


def problem(strategy: Any = None) -> tuple[Any, Any, Any]:
    """(step, loss, accuracy on all data)."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(240, 10)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    data = nf.data.from_arrays({"x": x, "y": y}).shuffle(240, seed=3).repeat().batch(24).next()
    logits = nf.layers.dense(data["x"], 2, name="logits")
    loss = nf.mean(nf.nn.softmax_cross_entropy(logits, data["y"]))
    step = nf.optim.SGD(0.1).minimize(loss, strategy=strategy or nf.train.DataParallel())
    return step, loss, (data, x, y)


def wait_for(run: Any, condition: Any) -> None:
    """Waits until `condition(run)` holds, looking at each event."""
    reached = threading.Event()
    remove = run.listen(lambda event: reached.set() if condition(run) else None)
    try:
        assert condition(run) or reached.wait(PATIENCE_S), run
    finally:
        remove()


def test_losses_are_those_of_one_process(graph: Graph) -> None:
    def losses() -> np.ndarray[Any, Any]:
        with Graph().as_default():
            step, loss, _ = problem()
            return nf.train.run(step, steps=100, metrics={"loss": loss}, every=1, show=False).history["loss"]

    alone = losses()
    for workers in (1, 2, 4):
        with nw.local(workers=workers, ps=1) as cluster:
            nf.set_cluster(cluster)
            np.testing.assert_allclose(losses(), alone, rtol=1e-5)
            nf.set_cluster(None)


def test_asynchronous_replicas_train(graph: Graph) -> None:
    with nw.local(workers=2, ps=1) as cluster:
        nf.set_cluster(cluster)
        step, loss, _ = problem(nf.train.DataParallel(sync=False))
        run = nf.train.run(step, steps=200, metrics={"loss": loss}, every=20, show=False)
        assert run.step == 200
        assert run.history["loss"][-1] < run.history["loss"][0]
        nf.set_cluster(None)


def test_stopping_and_interrupting_leave_everything_usable(graph: Graph) -> None:
    with nw.local(workers=2, ps=1) as cluster:
        nf.set_cluster(cluster)
        step, loss, (data, x, y) = problem()
        run = nf.train.run(step, steps=10**7, metrics={"loss": loss}, every=10, show=False, background=True)
        wait_for(run, lambda r: len(r.history["loss"]) > 2)
        run.stop(PATIENCE_S)
        assert run.status == "stopped"
        assert 20 < run.step < 10**7
        feeds = {data["x"]: x, data["y"]: y}
        assert nf.run(loss, feeds) < 0.7

        # What Ctrl-C does, from a thread, once the loop has begun.
        started = threading.Event()
        me = os.getpid()

        def interrupt() -> None:
            assert started.wait(PATIENCE_S)
            os.kill(me, signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        session = nf.current_session()
        remove = session.events.add(lambda e: started.set() if isinstance(e, nf.events.Metric) else None)
        with pytest.raises(KeyboardInterrupt):
            nf.train.run(step, steps=10**7, metrics={"loss": loss}, every=10, show=False)
        remove()
        thread.join(PATIENCE_S)
        assert nf.run(loss, feeds) < 0.7
        again = nf.train.run(step, steps=20, metrics={"loss": loss}, show=False)
        assert again.status == "done"
        nf.set_cluster(None)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_a_worker_lost_in_training_ends_the_run_with_its_name(graph: Graph, how: signal.Signals) -> None:
    with nw.local(workers=2, ps=1) as cluster:
        nf.set_cluster(cluster)
        step, loss, (data, x, y) = problem()
        run = nf.train.run(step, steps=10**7, metrics={"loss": loss}, every=10, show=False, background=True)
        wait_for(run, lambda r: len(r.history["loss"]) > 2)
        victim = next(w for w in cluster.workers() if (w.job, w.task) == ("worker", 1))
        os.kill(victim.pid, how)
        with pytest.raises(errors.WorkerLost, match="/job:worker/task:1"):
            run.wait(PATIENCE_S)
        assert run.status == "failed"
        if how == signal.SIGSTOP:
            os.kill(victim.pid, signal.SIGKILL)
        # The variables are on the ps: what was learned is still there.
        assert nf.run(loss, {data["x"]: x, data["y"]: y}) < 0.7
        nf.set_cluster(None)


def test_values_lost_with_a_ps_are_said_once_and_then_start_anew(graph: Graph) -> None:
    with nw.local(workers=1, ps=1) as cluster:
        nf.set_cluster(cluster)
        w = nf.Variable([1.0, 2.0], name="w")
        assert nf.run(w.assign_add([1.0, 1.0])).tolist() == [2, 3]
        left = threading.Event()
        remove = cluster.listen(lambda e: left.set() if getattr(e, "state", "") == "lost" else None)
        os.kill(next(r for r in cluster.workers() if r.job == "ps").pid, signal.SIGKILL)
        assert left.wait(PATIENCE_S)
        remove()
        with pytest.raises(errors.WorkerLost, match=r"1 variables \(w\) were lost with /job:ps/task:0"):
            nf.run(w)
        assert nf.run(w).tolist() == [1, 2]
        nf.set_cluster(None)
