"""Clusters that grow and shrink around training: between runs that go on from a checkpoint, and during one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nbflow as nf
import nbflow_workers as nw
from nbflow import errors
from nbflow.graph import Graph
from tests.cluster.test_training import PATIENCE_S, problem, wait_for

pytestmark = pytest.mark.cluster


@pytest.fixture
def cluster() -> Iterator[Any]:
    with Graph().as_default(), nw.local(workers=3, ps=1) as made:
        nf.set_cluster(made)
        yield made
        nf.set_cluster(None)


def test_losses_do_not_show_that_workers_came_and_went_between_runs(cluster: Any, tmp_path: Path) -> None:
    def losses(step: Any, loss: Any, steps: int, folder: Path | None) -> list[float]:
        run = nf.train.run(step, steps, {"loss": loss}, every=1, checkpoint=folder, show=False)
        return list(run.history["loss"])

    nf.set_cluster(None)
    with Graph().as_default():
        step, loss, _ = problem()
        alone = losses(step, loss, 30, None)
    nf.set_cluster(cluster)
    step, loss, _ = problem()
    found = losses(step, loss, 10, tmp_path)
    cluster.scale(2)
    found += losses(step, loss, 20, tmp_path)
    cluster.scale(4)
    found += losses(step, loss, 30, tmp_path)
    assert len(found) == 30  # every step once: the data goes on where it was, on all of the new workers
    np.testing.assert_allclose(found, alone, rtol=1e-5)


def test_a_run_keeps_its_workers_and_ends_when_one_of_them_is_sent_away(cluster: Any) -> None:
    step, loss, (data, x, y) = problem()
    run = nf.train.run(step, steps=10**7, metrics={"loss": loss}, every=10, show=False, background=True)
    wait_for(run, lambda r: len(r.history["loss"]) > 2)
    cluster.scale(4)
    at = run.step
    wait_for(run, lambda r: r.step > at + 20)
    assert run.status == "running"
    cluster.scale(2)
    with pytest.raises(errors.WorkerLost, match="/job:worker/task:2"):
        run.wait(PATIENCE_S)
    # The variables are on the ps: what was learned is still there.
    assert nf.run(loss, {data["x"]: x, data["y"]: y}) < 0.7
