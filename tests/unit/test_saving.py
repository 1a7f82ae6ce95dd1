"""Checkpoints that the leader of a loop writes: where it may, when it does, and what is said when it cannot."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nbflow as nf
from nbflow import errors, saving
from nbflow.backends.numpy import NumpyBackend
from nbflow.events import RunState, Saved
from nbflow.executor import Executor
from nbflow.graph import Graph
from nbflow.inprocess import InProcessCluster
from nbflow.runs import RunBook
from nbflow.saving import allowed, checkpoints, look, newest, write_step
from nbflow.transport import Loop, SavedShard, Saving, WorkerInfo
from nbflow.weights import Folder

MARK = ".nbflow-" + "0" * 32


@pytest.fixture(autouse=True)
def graph() -> Iterator[Graph]:
    with Graph().as_default() as made:
        yield made
    nf.set_cluster(None)


def train(steps: int, folder: Path, **options: Any) -> Any:
    w = nf.Variable(np.zeros(3, np.float32), name="w")
    loss = nf.sum((w - 1.0) ** 2)
    strategy = nf.train.DataParallel(sync=options.pop("sync", True))
    step = nf.optim.SGD(0.1).minimize(loss, strategy=strategy)
    options = {"metrics": {"loss": loss}, "every": 1, "show": False, **options}
    return nf.train.run(step, steps, checkpoint=folder, **options)


# --- where a worker may write ----------------------------------------------------------------------------------------


def test_below_its_folder_and_nowhere_else(tmp_path: Path) -> None:
    root, other = tmp_path / "root", tmp_path / "other"
    root.mkdir()
    other.mkdir()
    (root / "inner").symlink_to(root / "real")
    (root / "way_out").symlink_to(other)
    (root / "circle").symlink_to(root / "circle")
    assert allowed(root, str(root / "a" / "b")) == root / "a" / "b"
    assert allowed(root, str(root)) == root
    assert allowed(root, str(root / "inner" / "x")) == root / "real" / "x"
    assert allowed(saving.ANYWHERE, str(other)) == other
    for folder, why in {
        str(other): "below .*root only",
        str(root / ".." / "other"): "below .*root only",
        str(root / "way_out" / "x"): "below .*root only",
        f"{root}-beside": "below .*root only",
        "relative": "the whole path",
        "": "the whole path",
        "/a\0b": "no folder to write",
    }.items():
        with pytest.raises(errors.Rejected, match=why):
            allowed(root, folder)
    with pytest.raises(errors.Rejected, match="nbflow worker --checkpoints DIR"):
        allowed(None, str(root))


def test_a_folder_is_looked_at(tmp_path: Path) -> None:
    assert look(tmp_path / "new" / "one", MARK) == (False, "")
    (tmp_path / MARK).touch()
    assert look(tmp_path, MARK) == (True, "")
    write_step(tmp_path, 7, [7], [{"w": np.zeros(2)}], {})
    assert look(tmp_path, MARK) == (True, "step-00000007")
    assert [entry.name for entry in (tmp_path / "new" / "one").iterdir()] == []
    with pytest.raises(errors.Rejected, match="marks no folder"):
        look(tmp_path, "../secret")
    with pytest.raises(errors.CheckpointError, match="cannot be written"):
        look(tmp_path / MARK / "below a file", MARK)


def test_what_could_not_be_written_leaves_nothing(tmp_path: Path) -> None:
    def shards() -> Iterator[dict[str, Any]]:
        yield {"w": np.zeros(2)}
        raise errors.WorkerLost("gone")

    with pytest.raises(errors.WorkerLost):
        write_step(tmp_path, 3, [3], shards(), {})
    assert list(tmp_path.iterdir()) == []
    assert newest(tmp_path) is None


def executor(root: Path | None) -> Executor:
    class Nobody:
        def flush(self) -> None: ...
        def waiting(self, step_id: str, is_waiting: bool) -> None: ...
        def abort(self, step_id: str, error: BaseException) -> None: ...
        def end(self, step_id: str) -> None: ...
        def send(self, *_: Any, **__: Any) -> None: ...

    info = WorkerInfo("worker", 0, "", "i", None, ())
    return Executor(info, {"cpu": NumpyBackend()}, "s", Nobody(), checkpoints=root)


def test_a_loop_that_saves_elsewhere_does_not_start(tmp_path: Path) -> None:
    task = "/job:worker/task:0"
    shards = (SavedShard({task: "b"}, ()),)
    for root in (None, tmp_path / "mine"):
        worker = executor(root)
        plan = Saving(str(tmp_path / "theirs"), shards, 1, 1, "{}")
        with pytest.raises(errors.Rejected) as caught:
            worker.start_loop(Loop("l", "r", {task: "b"}, {task: "b"}, (), 1, 1, 1, saving=plan))
        assert caught.value.worker == task
        assert not worker.looping
        worker.close()
    assert not (tmp_path / "theirs").exists()


# --- who writes ------------------------------------------------------------------------------------------------------


def written(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of the threads that write checkpoints from now on."""
    threads: set[str] = set()
    write = saving.write

    def noted(*args: Any) -> Path:
        threads.add(threading.current_thread().name)
        return write(*args)

    monkeypatch.setattr(saving, "write", noted)
    return threads


@pytest.mark.parametrize("by", ["auto", "worker", "client"])
def test_the_same_is_written_by_the_worker_and_by_the_client(
    by: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = written(monkeypatch)
    cluster = InProcessCluster(2, 1)
    nf.set_cluster(cluster)
    run = train(7, tmp_path, checkpoint_every=3, checkpoint_by=by)
    assert run.saved_by == ("" if by == "client" else "/job:worker/task:0")
    assert all(name.startswith("nbflow-loop-") for name in threads) == (by != "client")
    assert sorted(checkpoints(tmp_path)) == [3, 6, 7]
    folder = Folder(checkpoints(tmp_path)[6])
    (values,) = folder.read()
    np.testing.assert_allclose(values["w"], 1.0 - 0.8**6, rtol=1e-6)
    assert folder.manifest["run"] == {"step": 6, "done": [6]}
    assert folder.manifest["graph"]["digest"] == nf.get_graph().digest()
    assert run.checkpoint() == tmp_path / "step-00000007"
    told = [(e.step, Path(e.folder).name) for e in run.events if isinstance(e, Saved)]
    assert told == ([] if by == "client" else [(n, f"step-{n:08d}") for n in (3, 6, 7)])
    nf.set_cluster(None)
    cluster.close()


def test_replicas_of_their_own_are_saved_by_the_client(tmp_path: Path) -> None:
    cluster = InProcessCluster(2, 1)
    nf.set_cluster(cluster)
    assert train(6, tmp_path / "a", sync=False, checkpoint_every=2).saved_by == ""
    assert max(checkpoints(tmp_path / "a")) == 6
    with Graph().as_default(), pytest.raises(errors.GraphError, match="make steps of their own"):
        train(6, tmp_path / "b", sync=False, checkpoint_by="worker")
    assert not (tmp_path / "b").exists()
    nf.set_cluster(None)
    cluster.close()


def test_another_writer_than_there_is(tmp_path: Path) -> None:
    with pytest.raises(errors.GraphError, match=r'"auto", "worker" or "client", not .nobody.'):
        train(3, tmp_path, checkpoint_by="nobody")


def test_a_worker_that_may_not_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Executor, "_folder", lambda self, folder: allowed(None, folder))
    with pytest.raises(errors.GraphError, match="nbflow worker --checkpoints DIR"):
        train(3, tmp_path / "ckpt", checkpoint_by="worker")
    assert not (tmp_path / "ckpt").exists()
    with Graph().as_default():
        assert train(3, tmp_path / "ckpt").saved_by == ""
    assert sorted(checkpoints(tmp_path / "ckpt")) == [3]


def test_a_worker_that_sees_another_folder_under_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = tmp_path / "there"
    monkeypatch.setattr(Executor, "_folder", lambda self, folder: there)
    here = tmp_path / "here"
    assert train(3, here).saved_by == ""
    assert (sorted(checkpoints(here)), checkpoints(there)) == ([3], {})
    with Graph().as_default(), pytest.raises(errors.GraphError, match="another folder for"):
        train(5, here, checkpoint_by="worker")  # ours goes on at step 3, theirs would begin anew
    with Graph().as_default():
        assert train(4, tmp_path / "none yet", checkpoint_by="worker").saved_by
    assert not (tmp_path / "none yet").exists()
    assert sorted(checkpoints(there)) == [4]
    with Graph().as_default(), pytest.raises(errors.GraphError, match="step-00000004 is the last checkpoint"):
        train(5, tmp_path / "none yet", checkpoint_by="worker")


# --- while it runs ---------------------------------------------------------------------------------------------------


def test_evaluation_and_checkpoints_at_one_step(tmp_path: Path) -> None:
    w = nf.Variable(np.float32(0.0), name="w")
    step = nf.optim.SGD(0.1).minimize((w - 1.0) ** 2)
    run = nf.train.run(
        step, 6, evaluate={"w": nf.identity(w)}, eval_every=2, checkpoint=tmp_path, checkpoint_every=2, show=False
    )
    for number, value in zip(run.history["step"], run.history["w"], strict=True):
        (values,) = Folder(checkpoints(tmp_path)[int(number)]).read()
        assert values["w"] == np.float32(value)
    assert sorted(checkpoints(tmp_path)) == [2, 4, 6]


def test_an_evaluation_that_is_no_number_ends_the_run_before_it_is_kept(tmp_path: Path) -> None:
    w = nf.Variable(np.float32(0.0), name="w")
    step = nf.optim.SGD(0.1).minimize((w - 1.0) ** 2)
    options: dict[str, Any] = {"checkpoint": tmp_path, "checkpoint_every": 2, "show": False}
    run = nf.train.run(step, 6, evaluate={"log": nf.log(w * 0.0)}, eval_every=4, stop_on_nan=True, **options)
    assert (run.status, run.step) == ("stopped", 4)
    assert sorted(checkpoints(tmp_path)) == [2]


def test_a_disk_that_is_full_is_told_with_what_is_left(tmp_path: Path) -> None:
    (tmp_path / "step-00000004").write_text("in the way")
    with pytest.raises(errors.CheckpointError) as caught:
        train(6, tmp_path, checkpoint_every=2)
    assert "no checkpoint of step 4" in str(caught.value)
    assert "step-00000002 is the last one" in str(caught.value)
    assert float(nf.run(nf.sum(nf.get_graph().node("w/read").outputs[0]))) > 0  # what was trained is there


def test_a_worker_remembers_what_was_saved() -> None:
    book = RunBook()
    book.begin(Loop("l", "r", {"t": "b"}, {"t": "b"}, (), 1, 100, 1, about="{}"))
    for n in range(20):
        book.note(Saved("r", n, f"/c/step-{n:08d}", float(n), "l"))
    book.note(RunState("r", "done", 20, 20, 30.0, loop="l"))
    page = book.read("r")
    assert [e.step for e in page.events if isinstance(e, Saved)] == list(range(15, 20))


def test_a_manifest_that_claims_to_be_something_else(tmp_path: Path) -> None:
    made = write_step(tmp_path, 1, [1], [{"w": np.zeros(2)}], {"format": "x", "tensors": {}, "run": 3})
    manifest = json.loads((made / "manifest.json").read_text())
    assert (manifest["format"], manifest["run"]) == (saving.FORMAT, {"step": 1, "done": [1]})
    assert list(manifest["tensors"]) == ["w"]
