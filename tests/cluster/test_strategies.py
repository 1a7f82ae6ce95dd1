"""Every strategy on worker processes, and a worker that is killed while a backup stands in for it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nbflow as nf
import nbflow_workers as nw
from nbflow.graph import Graph
from nbflow.train import DataParallel, LocalSGD, Pipeline
from tests.cluster.test_training import PATIENCE_S, problem
from tests.replica_models import BOUNDS, MODELS, Array, apart, trained

pytestmark = pytest.mark.cluster

TWO = ("/job:worker/task:0", "/job:worker/task:1")
# On four workers and two ps tasks. What is the same as one process but for the order of sums:
EXACT: dict[str, Any] = {
    "ps": DataParallel(),
    "ring": DataParallel(ps=None),
    "tables and weights in pieces": DataParallel(split_bytes=1024),
    "local, averaged each step": LocalSGD(every=1),
    "pipeline": Pipeline(TWO, 4),
    "two pipelines": DataParallel((Pipeline(TWO, 2), Pipeline(("/job:worker/task:2", "/job:worker/task:3"), 2))),
}
# What is not, with the steps that it is given: an asynchronous one reports one in four of them.
NOISY: dict[str, tuple[Any, int]] = {
    "backup": (DataParallel(backup=1), 48),
    "async": (DataParallel(sync=False), 160),
    "stale": (DataParallel(sync=False, staleness=1), 160),
    "stale, in pieces": (DataParallel(sync=False, staleness=1, split_bytes=1024), 160),
    "float16": (DataParallel(compress="float16"), 48),
    "bfloat16": (DataParallel(compress="bfloat16"), 48),
    "local": (LocalSGD(every=4), 48),
}


@pytest.fixture(scope="module")
def many() -> Iterator[Any]:
    with nw.local(workers=4, ps=2) as made:
        yield made


@cache
def alone(model: str) -> tuple[Array, Any]:
    return trained(MODELS[model], None, steps=5, dtype="float64", optimizer=nf.optim.SGD(0.05))


@pytest.mark.parametrize("model", ["mlp", "transformer"])
@pytest.mark.parametrize("row", EXACT)
def test_losses_and_variables_are_those_of_one_process(many: Any, row: str, model: str) -> None:
    """In float64, where a wrong weight or a row too many stands out of the rounding as much as ever."""
    losses, variables = alone(model)
    optimizer = nf.optim.SGD(0.05)
    found, after = trained(MODELS[model], EXACT[row], steps=5, dtype="float64", optimizer=optimizer, cluster=many)
    np.testing.assert_allclose(found, losses, rtol=1e-12)
    assert apart(after, variables) < 1e-12
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("model", ["mlp", "transformer"])
@pytest.mark.parametrize("row", NOISY)
def test_the_loss_falls_below_its_bound(many: Any, row: str, model: str) -> None:
    optimizer, bound = BOUNDS[model]
    strategy, steps = NOISY[row]
    found, _ = trained(MODELS[model], strategy, steps=steps, optimizer=optimizer, cluster=many)
    assert found.max() > bound  # asynchronous replicas report when others have updated already
    assert found[-4:].mean() < bound


@pytest.mark.parametrize("model", ["mlp", "transformer"])
def test_a_model_over_devices_has_the_bits_of_one_process(many: Any, model: str) -> None:
    """Layers with their variables and gradients on two workers, by device scopes; also with the losses reported."""

    def divided(dtype: str) -> Any:
        loss = MODELS[model](dtype, devices=TWO)
        homes = {n.name: str(n.device) for n in loss.graph.nodes.values() if n.op == "variable"}
        assert set(homes.values()) >= set(TWO)
        return loss

    optimizer = nf.optim.SGD(0.1, momentum=0.9)
    losses, variables = trained(MODELS[model], None, steps=4, optimizer=optimizer)
    found, after = trained(divided, None, steps=4, optimizer=optimizer, cluster=many)
    np.testing.assert_array_equal(found, losses)
    assert after.keys() == variables.keys()
    for name, value in variables.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)


# --- tables ----------------------------------------------------------------------------------------------------------


def test_a_step_of_a_large_table_moves_only_the_rows_that_it_touches(many: Any) -> None:
    """Of 200,000 rows of 256 bytes, in two pieces: 32 rows come, their gradients go, and the row numbers travel."""
    rows, width, looked_up = 200_000, 64, 32
    with Graph().as_default(), nf.Session(many) as session:
        ids = np.arange(looked_up) * (rows // looked_up)
        data = nf.data.from_arrays({"id": ids}).repeat().batch(looked_up).next()["id"]
        table = nf.Variable(np.ones((rows, width), "float32"), name="table")
        loss = nf.mean(nf.sum(nf.nn.embedding_lookup(table, data) ** 2, axis=1))
        step = nf.optim.SGD(0.1).minimize(loss, strategy=DataParallel(split_bytes=32 << 20))
        session.run(step)
        placement = session.last.placement  # type: ignore[union-attr]
        homes = {str(placement[f"table/rows_{n}"].device.task_name) for n in range(2)}
        assert homes == {"/job:ps/task:0", "/job:ps/task:1"}
        _, trace = session.run(step, trace=True)
        moved = sum(t.nbytes for t in trace.transfers)
        assert 2 * looked_up * width * 4 <= moved < 20_000
        changed = np.flatnonzero((session.run(table) != 1).any(axis=1))
        np.testing.assert_array_equal(changed, ids)


def test_a_run_with_split_variables_goes_on_from_its_checkpoint_with_another_split(many: Any, tmp_path: Path) -> None:
    """Saved from two ps tasks, taken up on one piece, and the other way round: the losses of one run."""
    optimizer = nf.optim.Adam(0.01)

    def losses(strategy: Any, steps: int, checkpoint: Path | None) -> list[float]:
        with Graph().as_default():
            nf.set_cluster(many)
            loss = MODELS["transformer"]("float64")
            step = optimizer.minimize(loss, strategy=strategy)
            run = nf.train.run(step, steps, {"loss": loss}, every=1, checkpoint=checkpoint, show=False)
            nf.set_cluster(None)
        assert (run.status, run.step) == ("done", steps)
        return list(run.history["loss"])

    split, whole = DataParallel(split_bytes=1024), DataParallel()
    through = losses(split, 9, None)
    parts = [losses(s, n, tmp_path) for s, n in ((split, 3), (whole, 6), (split, 9))]
    assert [len(p) for p in parts] == [3, 3, 3]
    np.testing.assert_allclose([*parts[0], *parts[1], *parts[2]], through, rtol=1e-12)


# --- losses of workers -----------------------------------------------------------------------------------------------


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
