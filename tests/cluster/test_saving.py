"""Checkpoints that worker processes write: without their client, killed while they do, on a disk that is full."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nbflow as nf
import nbflow_workers as nw
from nbflow import errors
from nbflow.graph import Graph
from nbflow.saving import checkpoints, newest
from nbflow.weights import Folder
from tests.cluster.test_attach import TOKEN, worker
from tests.cluster.test_training import PATIENCE_S, wait_for

pytestmark = pytest.mark.cluster

MODEL = textwrap.dedent("""
    import numpy as np
    import nbflow as nf

    def model(**options):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(60, 6)).astype(np.float32)
        data = nf.data.from_arrays({"x": x}).shuffle(60, seed=3).repeat().batch(12).next()
        h = nf.nn.dropout(nf.layers.dense(data["x"], 8, activation=nf.tanh, name="h"), 0.2)
        loss = nf.mean(nf.square(nf.layers.dense(h, 1, name="out") - 1.0))
        return nf.optim.Adam(1e-3).minimize(loss, strategy=nf.train.DataParallel(**options)), loss
""")
# Starts a run on the workers of file argv[1] that saves to argv[2] every 20 steps, and waits to be killed.
CLIENT = MODEL + textwrap.dedent("""
    import sys, time
    nf.set_cluster(nf.cluster.attach(spec=sys.argv[1]))
    step, loss = model()
    run = nf.train.run(
        step, 10**7, {"loss": loss}, every=1, show=False, background=True, name="night",
        checkpoint=sys.argv[2], checkpoint_every=20, checkpoint_by="worker",
    )
    while run.step < 30:
        time.sleep(0.01)
    print("running", flush=True)
    sys.stdin.read()
""")


def model(**options: Any) -> tuple[Any, Any]:
    names: dict[str, Any] = {}
    exec(MODEL, names)
    step, loss = names["model"](**options)
    return step, loss


@pytest.fixture
def cluster() -> Iterator[Any]:
    with Graph().as_default(), nw.local(workers=3, ps=1) as made:
        nf.set_cluster(made)
        yield made
        nf.set_cluster(None)


def eventually(condition: Callable[[], Any], pause_s: float = 0.01) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(pause_s)


def losses(steps: int, folder: Path | None, **options: Any) -> Any:
    with Graph().as_default():
        step, loss = model()
        run = nf.train.run(step, steps, {"loss": loss}, every=1, checkpoint=folder, show=False, **options)
        return run.history["loss"]


def test_checkpoints_go_on_without_the_client_and_the_next_one_goes_on_from_them(tmp_path: Path) -> None:
    spec, folder = tmp_path / "cluster.json", tmp_path / "ckpt"
    with nw.local(workers=2, ps=1) as cluster:
        cluster.save(spec)
        command = [sys.executable, "-c", CLIENT, str(spec), str(folder)]
        client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            assert client.stdout is not None
            assert client.stdout.readline() == "running\n"
        finally:
            client.kill()
            client.wait(PATIENCE_S)
            for pipe in (client.stdin, client.stdout):
                if pipe is not None:
                    pipe.close()
        at = max(checkpoints(folder))
        eventually(lambda: max(checkpoints(folder)) >= at + 100)
        with nw.attach(spec=spec) as other:
            (record,) = other.runs()
            assert record.about.saved_by == "/job:worker/task:0"
            run = nf.train.attach(other, "night")
            by_hand = run.checkpoint(PATIENCE_S)
            assert Folder(by_hand).manifest["run"]["step"] >= at + 100
            run.stop(PATIENCE_S)
            assert run.status == "stopped"
            seen = dict(zip(run.history["step"].astype(int), run.history["loss"], strict=True))
        # The newest is of where it was stopped. The losses are those of a run that nobody disturbed.
        last = newest(folder)
        assert last is not None
        assert Folder(last).manifest["run"]["step"] == run.step
        nf.set_cluster(cluster)
        try:
            after = losses(run.step + 30, folder)
            assert len(after) == 30
            whole = losses(run.step + 30, None)
        finally:
            nf.set_cluster(None)
    np.testing.assert_allclose([*(seen[n + 1] for n in range(run.step)), *after], whole, rtol=1e-5)


@pytest.mark.parametrize("options", [{"backup": 1}, {"ps": None}], ids=["backup", "all-reduce"])
def test_under_other_strategies(cluster: Any, options: dict[str, Any], tmp_path: Path) -> None:
    step, loss = model(**options)
    run = nf.train.run(step, 45, {"loss": loss}, checkpoint=tmp_path, checkpoint_every=20, show=False)
    assert run.saved_by.startswith("/job:")
    assert sorted(checkpoints(tmp_path)) == [20, 40, 45]
    with Graph().as_default():
        step, loss = model(**options)
        again = nf.train.run(step, 60, {"loss": loss}, every=5, checkpoint=tmp_path, show=False)
        assert again.history["step"][0] == 50


def test_a_worker_that_is_killed_while_it_writes_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    def half_written() -> bool:
        latest = max(tmp_path.glob("step-*"), key=lambda entry: entry.name)
        return any(latest.glob("*.safetensors")) and not (latest / "manifest.json").exists()

    with Graph().as_default(), nw.local(workers=1) as cluster:
        nf.set_cluster(cluster)
        w = nf.Variable(nf.zeros((5_000_000,)), name="w")
        step = nf.group(w.assign_add(nf.ones((5_000_000,))))
        run = nf.train.run(step, 10**6, checkpoint=tmp_path, checkpoint_every=1, show=False, background=True)
        wait_for(run, lambda r: r.step >= 2)
        pid = cluster.workers()[0].pid
        assert pid is not None

        def caught() -> bool:
            eventually(half_written, 0.0)
            os.kill(pid, signal.SIGSTOP)
            if not half_written():  # it was quicker
                os.kill(pid, signal.SIGCONT)
            return half_written()

        eventually(caught, 0.0)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(errors.WorkerLost):
            run.wait(PATIENCE_S)
        nf.set_cluster(None)
    assert half_written()
    last = newest(tmp_path)
    assert last is not None
    with Graph().as_default():
        w = nf.Variable(nf.zeros((5_000_000,)), name="w")
        restored = nf.train.restore(tmp_path)
        assert restored.path == last
        assert np.all(nf.run(w) == restored.step)


def test_a_disk_that_is_full(cluster: Any, tmp_path: Path) -> None:
    step, loss = model()
    run = nf.train.run(
        step, 10**7, {"loss": loss}, every=10, checkpoint=tmp_path, checkpoint_every=20, show=False, background=True
    )
    wait_for(run, lambda r: r.step > 50)
    leader = next(w for w in cluster.workers() if f"/job:{w.job}/task:{w.task}" == run.saved_by)
    before = resource.prlimit(leader.pid, resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    with pytest.raises(
        errors.CheckpointError, match=r"no checkpoint of step \d+: .*cannot be written.*is the last one"
    ):
        run.wait(PATIENCE_S)
    resource.prlimit(leader.pid, resource.RLIMIT_FSIZE, before)
    kept = checkpoints(tmp_path)
    assert len(kept) == len(list(tmp_path.iterdir()))
    assert max(kept) == run.step - run.step % 20 - 20
    assert nf.run(loss) > 0  # the workers have what was trained
    again = nf.train.run(step, max(kept) + 10, {"loss": loss}, every=1, checkpoint=tmp_path, show=False)
    assert again.history["step"][0] == max(kept) + 1


def test_a_worker_started_by_hand_writes_where_it_was_told_to(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    with worker("--checkpoints", str(mine)) as address, nw.attach([address], token=TOKEN) as cluster:
        nf.set_cluster(cluster)
        for folder in (mine / "run", tmp_path / "elsewhere"):
            with Graph().as_default():
                step, loss = model()
                run = nf.train.run(step, 4, {"loss": loss}, checkpoint=folder, show=False)
                assert run.saved_by == ("/job:worker/task:0" if folder.parent == mine else "")
                assert sorted(checkpoints(folder)) == [4]
        nf.set_cluster(None)


def test_a_worker_that_was_not_told_to_write_is_said_so_before_anything_is_trained(tmp_path: Path) -> None:
    with worker() as address, nw.attach([address], token=TOKEN) as cluster, Graph().as_default():
        nf.set_cluster(cluster)
        step, loss = model()
        with pytest.raises(errors.GraphError, match="nbflow worker --checkpoints DIR"):
            nf.train.run(step, 4, {"loss": loss}, checkpoint=tmp_path / "a", checkpoint_by="worker", show=False)
        assert cluster.runs() == []
        assert not (tmp_path / "a").exists()
        run = nf.train.run(step, 4, {"loss": loss}, every=1, checkpoint=tmp_path / "a", show=False)
        assert list(run.history["step"]) == [1, 2, 3, 4]
        nf.set_cluster(None)
