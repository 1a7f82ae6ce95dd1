"""Runs with checkpoints: when they save, what they keep, and that going on gives what no break would have given."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nbflow as nf
from nbflow import errors, saving
from nbflow.graph import Graph
from nbflow.inprocess import InProcessCluster
from nbflow.saving import checkpoints
from nbflow.train.keeping import shared_out
from nbflow.weights import Folder

PATIENCE_S = 60


@pytest.fixture(autouse=True)
def graph() -> Iterator[Graph]:
    with Graph().as_default() as made:
        yield made
    nf.set_cluster(None)


def problem(sync: bool = True) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    data = nf.data.from_arrays({"x": rng.normal(size=(30, 4)).astype(np.float32)}).shuffle(30, seed=1).repeat().batch(6)
    h = nf.nn.dropout(nf.layers.dense(data.next()["x"], 5, name="h"), 0.3)
    loss = nf.mean(nf.square(nf.layers.dense(h, 1, name="out") - 1.0))
    return nf.optim.Adam(0.05).minimize(loss, strategy=nf.train.DataParallel(sync=sync)), loss


def train(steps: int, folder: Path | None = None, **options: Any) -> Any:
    step, loss = problem()
    options = {"metrics": {"loss": loss}, "every": 1, "show": False, **options}
    return nf.train.run(step, steps=steps, checkpoint=folder, **options)


def anew(steps: int, folder: Path | None = None, **options: Any) -> Any:
    with Graph().as_default():
        run = train(steps, folder, **options)
        run.final = {v.name: nf.run(v).tobytes() for v in nf.variable.global_variables()}
        return run


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_goes_on_is_the_run_without_a_break(workers: int, tmp_path: Path) -> None:
    cluster = InProcessCluster(workers, min(workers, 1))
    nf.set_cluster(cluster)
    whole = anew(20)
    first = anew(9, tmp_path, checkpoint_every=4)
    assert sorted(checkpoints(tmp_path)) == [4, 8, 9]
    second = anew(20, tmp_path, checkpoint_every=4)
    assert second.status == "done"
    assert second.step == 20
    assert list(second.history["step"]) == list(range(10, 21))
    np.testing.assert_array_equal([*first.history["loss"], *second.history["loss"]], whole.history["loss"])
    assert second.final == whole.final
    nf.set_cluster(None)
    cluster.close()


def test_stretches_do_not_show_in_the_history(tmp_path: Path) -> None:
    run = train(10, tmp_path, every=5, checkpoint_every=3)
    assert list(run.history["step"]) == [5, 10]
    assert sorted(checkpoints(tmp_path)) == [3, 6, 9, 10]
    assert run.status == "done"


def test_the_oldest_are_removed(tmp_path: Path) -> None:
    train(16, tmp_path, checkpoint_every=2)
    assert sorted(checkpoints(tmp_path)) == [8, 10, 12, 14, 16]
    assert len(list(tmp_path.iterdir())) == saving.KEEP


def test_a_run_that_is_over_makes_no_more_steps(tmp_path: Path) -> None:
    before = anew(4, tmp_path)
    again = anew(4, tmp_path)
    assert (again.status, again.step, len(again.history["step"])) == ("done", 4, 0)
    assert "before" in again.detail
    assert again.final == before.final


def test_without_resume_old_checkpoints_are_in_the_way(tmp_path: Path) -> None:
    anew(2, tmp_path, resume=False)
    with pytest.raises(errors.CheckpointError, match=r"holds the checkpoints of a run \(step-00000002\)"):
        anew(2, tmp_path, resume=False)


def test_a_checkpoint_of_another_model_is_an_error(tmp_path: Path) -> None:
    anew(2, tmp_path)
    w = nf.Variable(1.0, name="w")
    step = nf.optim.SGD(0.1).minimize(nf.square(w))
    with pytest.raises(errors.CheckpointError, match="in the graph, not in the checkpoint: w"):
        nf.train.run(step, steps=3, checkpoint=tmp_path, show=False)


def test_a_folder_that_no_run_made(tmp_path: Path) -> None:
    step, _ = problem()
    nf.train.save(tmp_path)
    with pytest.raises(errors.CheckpointError, match="was not made by a run"):
        nf.train.run(step, steps=3, checkpoint=tmp_path, show=False)


def test_settings(tmp_path: Path) -> None:
    step, _ = problem()
    with pytest.raises(errors.GraphError, match="checkpoint_every is at least 1"):
        nf.train.run(step, steps=3, checkpoint=tmp_path, checkpoint_every=0, show=False)
    run = nf.train.run(step, steps=1, show=False)
    with pytest.raises(errors.GraphError, match="without checkpoint="):
        run.checkpoint()


def reached(run: Any, step: int) -> None:
    there = threading.Event()
    remove = run.listen(lambda event: there.set() if run.step >= step else None)
    try:
        assert run.step >= step or there.wait(PATIENCE_S), run
    finally:
        remove()


def test_saving_by_hand_and_stopping(tmp_path: Path) -> None:
    run = train(10**6, tmp_path, background=True, checkpoint_every=10**6)
    reached(run, 3)
    made = run.checkpoint()
    step = Folder(made).manifest["run"]["step"]
    assert made.name == f"step-{step:08d}"
    reached(run, step + 3)
    assert run.status == "running"
    run.stop(PATIENCE_S)
    assert run.status == "stopped"
    assert max(checkpoints(tmp_path)) == run.step
    assert run.checkpoint().name == f"step-{run.step:08d}"


def test_a_paused_run_saves_and_stays_paused(tmp_path: Path) -> None:
    run = train(10**6, tmp_path, background=True, checkpoint_every=10**6)
    reached(run, 2)
    run.pause()
    paused = threading.Event()
    remove = run.listen(lambda event: paused.set() if run.status == "paused" else None)
    assert run.status == "paused" or paused.wait(PATIENCE_S)
    paused.clear()
    step = Folder(run.checkpoint()).manifest["run"]["step"]
    assert paused.wait(PATIENCE_S)
    remove()
    assert run.step == step
    assert Folder(run.checkpoint()).manifest["run"]["step"] == step
    run.resume()
    reached(run, step + 1)
    run.stop(PATIENCE_S)
    assert run.status == "stopped"


def test_what_is_not_a_number_is_not_kept(tmp_path: Path) -> None:
    w = nf.Variable(1.0, name="w")
    loss = nf.log(w)
    step = nf.optim.SGD(100.0).minimize(loss)
    run = nf.train.run(
        step, steps=50, metrics={"loss": loss}, every=1, stop_on_nan=True, checkpoint=tmp_path, show=False
    )
    assert run.status == "stopped"
    assert checkpoints(tmp_path) == {}


def test_the_end_of_the_data_is_saved(tmp_path: Path) -> None:
    data = nf.data.from_arrays({"x": np.ones((10, 2), np.float32)}).batch(2).next()
    loss = nf.mean(nf.square(nf.layers.dense(data["x"], 1)))
    step = nf.optim.SGD(0.1).minimize(loss)
    run = nf.train.run(step, steps=50, checkpoint=tmp_path, checkpoint_every=3, show=False)
    assert run.status == "done"
    assert "the data ended after step 5" in run.detail
    assert sorted(checkpoints(tmp_path)) == [3, 5]


def test_a_disk_that_is_full_fails_the_run(tmp_path: Path) -> None:
    (tmp_path / "step-00000002").write_text("in the way")
    with pytest.raises(errors.CheckpointError, match="cannot be written"):
        train(5, tmp_path, checkpoint_every=2)


def test_asynchronous_replicas_go_on_where_each_was(tmp_path: Path) -> None:
    cluster = InProcessCluster(2, 1)
    nf.set_cluster(cluster)
    step, _ = problem(sync=False)
    run = nf.train.run(step, steps=11, checkpoint=tmp_path, checkpoint_every=4, show=False)
    assert (run.status, run.step) == ("done", 11)
    assert Folder(checkpoints(tmp_path)[11]).manifest["run"]["done"] == [6, 5]
    with Graph().as_default():
        step, _ = problem(sync=False)
        run = nf.train.run(step, steps=20, checkpoint=tmp_path, show=False)
        assert (run.status, run.step) == ("done", 20)
    nf.set_cluster(None)
    cluster.close()


def test_steps_are_shared_out_anew_when_the_loops_are_others() -> None:
    assert shared_out([], 3, 10) == [0, 0, 0]
    assert shared_out([6, 5], 2, 20) == [6, 5]
    assert shared_out([6, 5], 3, 20) == [4, 4, 3]
    assert shared_out([11], 2, 8) == [4, 4]
