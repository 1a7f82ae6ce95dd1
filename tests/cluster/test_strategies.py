"""Strategies on worker processes, and a worker that is killed while a backup stands in for it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import nbflow as nf
import nbflow_workers as nw
from nbflow.graph import Graph
from tests.cluster.test_training import PATIENCE_S, problem

pytestmark = pytest.mark.cluster


@pytest.fixture
def cluster() -> Iterator[Any]:
    with Graph().as_default(), nw.local(workers=3, ps=1) as made:
        nf.set_cluster(made)
        yield made
        nf.set_cluster(None)


def test_a_killed_worker_is_gone_on_without(cluster: Any) -> None:
    step, loss, _ = problem(nf.train.DataParallel(backup=1))
    run = nf.train.run(step, steps=10**7, metrics={"loss": loss}, every=10, show=False, background=True)
    first, killed, later = threading.Event(), threading.Event(), threading.Event()

    def listen(event: Any) -> None:
        if isinstance(event, nf.events.Metric):
            first.set()
            if killed.is_set():
                later.set()
        elif "without /job:worker/task:2" in event.detail:
            killed.set()

    run.listen(listen)
    assert first.wait(PATIENCE_S)
    (worker,) = [w for w in cluster.workers() if (w.job, w.task) == ("worker", 2)]
    os.kill(worker.pid, signal.SIGKILL)
    assert killed.wait(PATIENCE_S)
    assert later.wait(PATIENCE_S)
    run.stop(PATIENCE_S)
    assert run.status == "stopped"


def test_every_other_strategy_trains(cluster: Any) -> None:
    _, loss, _ = problem()
    two = ("/job:worker/task:0", "/job:worker/task:1")
    for strategy in (
        nf.train.DataParallel(ps=None),
        nf.train.DataParallel(sync=False, staleness=2),
        nf.train.DataParallel(compress="float16"),
        nf.train.LocalSGD(every=5),
        nf.train.Pipeline(two, 2),
    ):
        step = nf.optim.SGD(0.1).minimize(loss, strategy=strategy)
        run = nf.train.run(step, steps=30, metrics={"loss": loss}, every=10, show=False)
        assert (run.status, run.step) == ("done", 30)
        assert run.history["loss"][-1] < 0.6  # from about 0.8, with the first; the others go on from there
