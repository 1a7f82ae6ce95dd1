"""Measured times: kept, bounded, used by the next session and not by this one, and never an error."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest

import nbflow as nf
from nbflow import executor, profile
from nbflow.cost import CostModel, DeviceModel, work_of
from nbflow.device import parse_device
from nbflow.events import OpTimes
from nbflow.graph import Graph, Node
from nbflow.hardware import this_cpu
from nbflow.inprocess import InProcessCluster
from nbflow.profile import Profile, chosen, factor_of
from nbflow.session import Session
from nbflow.transport import DeviceInfo

CPU = DeviceModel()


def product(n: int = 64) -> Node:
    with Graph().as_default():
        return nf.matmul(nf.zeros((n, n)), nf.zeros((n, n))).node


def noted(path: Path, node: Node, times_slower: float) -> Profile:
    found = factor_of(node, CPU, CPU.seconds(work_of(node)) * times_slower)
    assert found is not None
    Profile(path).note(dict([found]))
    return Profile.read(path)


def test_what_was_measured_corrects_what_is_declared(tmp_path: Path) -> None:
    node = product()
    known = noted(tmp_path / "p.json", node, 3.0)
    declared = CPU.seconds(work_of(node))
    assert known.correct(node, work_of(node), CPU.kind, declared) == pytest.approx(3 * declared)
    assert known.correct(node, work_of(node), "another kind", declared) == declared
    near, far = product(100), product(2000)
    assert known.correct(near, work_of(near), CPU.kind, 1.0) == pytest.approx(3.0)
    assert known.correct(far, work_of(far), CPU.kind, 1.0) == 1.0
    info = DeviceInfo(parse_device("/job:worker/task:0/cpu:0"))
    model = CostModel.of([info], times=known)
    assert model.compute_seconds(node, info.spec) == pytest.approx(3 * declared)


def test_noise_changes_nothing_and_a_lasting_change_does(tmp_path: Path) -> None:
    node, path = product(), tmp_path / "p.json"
    noted(path, node, 2.0)
    for factor in (2.2, 1.9, 2.4, 1.8):
        known = noted(path, node, factor)
    assert known.correct(node, work_of(node), CPU.kind, 1.0) == pytest.approx(2.0)
    for _ in range(20):
        known = noted(path, node, 8.0)
    assert known.correct(node, work_of(node), CPU.kind, 1.0) > 3.0


def test_a_measurement_that_cannot_be_is_not_kept() -> None:
    assert factor_of(product(), CPU, 1e6) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1, "entries": {"a|b": [1]}}', "\x00\xff"])
def test_a_broken_file_is_set_aside(tmp_path: Path, text: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(text)
    assert Profile.read(path).entries == {}
    assert (tmp_path / "p.json.broken").read_text() == text
    assert noted(path, product(), 2.0).entries


def test_a_folder_that_cannot_be_written_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    Profile(tmp_path / "file" / "p.json").note({("cpu", "add", "float32", 3): 1.0})
    assert not Profile.read(tmp_path / "file" / "p.json").entries


def test_the_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "MAX_ENTRIES", 10)
    for n in range(30):
        Profile(tmp_path / "p.json").note({("cpu", "add", "float32", n): 1.0})
    assert sorted(k[3] for k in Profile.read(tmp_path / "p.json").entries) == list(range(20, 30))


def _write_many(path: str, first: int) -> None:
    for n in range(first, first + 20):
        Profile(Path(path)).note({("cpu", "add", "float32", n): 1.0})


def test_processes_do_not_lose_each_others_times(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    spawn = multiprocessing.get_context("fork")
    writers = [spawn.Process(target=_write_many, args=(str(path), 100 * n)) for n in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(30)
    assert len(Profile.read(path).entries) == 40
    assert json.loads(path.read_text())["format"] == profile.FORMAT


def test_where_the_file_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert chosen("off") is None
    assert chosen(tmp_path / "x") == tmp_path / "x"
    monkeypatch.setenv(profile.VARIABLE, str(tmp_path / "y"))
    assert chosen() == tmp_path / "y"
    monkeypatch.setenv(profile.VARIABLE, "")
    found = chosen()
    assert found is not None
    assert found.name == "profile.json"


def test_traced_steps_are_kept_for_the_next_session(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    with Graph().as_default() as graph:
        x = nf.placeholder("float32", (64, 64), name="x")
        y = nf.matmul(x, x, name="y")
        with Session(graph=graph, profile=path) as session:
            before = session.placement([y])
            session.run(y, {x: np.zeros((64, 64), np.float32)}, trace=True)
            after = session.placement([y])
            assert [r.predicted_s for r in after] == [r.predicted_s for r in before]
            assert after[-1].measured_s
        (key,) = Profile.read(path).entries
        assert key[1:3] == ("matmul", "float32")
        with Session(graph=graph, profile=path) as session:
            assert session.placement([y])[-1].predicted_s != before[-1].predicted_s


def ran(path: Path, steps: int, cluster: InProcessCluster | None = None) -> dict[profile.Key, profile.Entry]:
    """What the profile has after ordinary steps of a product."""
    with Graph().as_default() as graph:
        x = nf.placeholder("float32", (64, 64), name="x")
        y = nf.tanh(nf.matmul(x, x))
        with Session(cluster, graph, profile=path) as session:
            for _ in range(steps):
                session.run(y, {x: np.zeros((64, 64), np.float32)})
    return dict(Profile.read(path).entries)


def test_ordinary_steps_are_learned_from_now_and_then(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    assert ran(path, executor.LOOK_FIRST - 1) == {}
    found = ran(path, executor.LOOK_FIRST)
    assert {key[1] for key in found} == {"matmul", "tanh"}
    assert all(str(this_cpu()) in key[0] for key in found)
    # One in a hundred steps is looked at, and a session keeps what it heard once.
    again = ran(path, executor.LOOK_FIRST + executor.LOOK_EVERY)
    assert {e.count for e in again.values()} == {2}


def test_what_is_kept_of_many_steps_is_their_median(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    with Graph().as_default() as graph:
        y = nf.matmul(nf.random.normal((64, 64)), nf.random.normal((64, 64)), name="y")
        with Session(graph=graph, profile=path) as session:
            prepared = session.prepare([y], {})
            (bundle,) = prepared.bundles.values()
            declared_s = session.costs.model(session.cluster).compute_seconds(y.node, session.cluster.devices()[0].spec)
            for times in (2.0, 90.0, 2.0):
                session.events.emit(OpTimes(bundle.id, ("y", "no such op"), (times * declared_s, 1.0)))
            session.events.emit(OpTimes("another bundle", ("y",), (1.0,)))
    (entry,) = Profile.read(path).entries.values()
    assert entry.used == pytest.approx(2.0)


def test_steps_of_worker_tasks_and_of_loops_are_heard_of(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    cluster = InProcessCluster(workers=2, ps=1)
    with Graph().as_default() as graph:
        x = nf.random.normal((32, 64))
        loss = nf.mean(nf.layers.dense(x, 32) ** 2)
        step = nf.optim.SGD(0.1).minimize(loss, strategy=nf.train.DataParallel())
        with Session(cluster, graph, profile=path) as session:
            for _ in range(executor.LOOK_FIRST):
                session.run(step)
    assert {"matmul", "read_variable", "square"} & {key[1] for key in Profile.read(path).entries} >= {"matmul"}
    cluster.close()


def test_nothing_is_heard_where_it_is_switched_off() -> None:
    with Graph().as_default() as graph:
        y = nf.random.normal((4,))
        with Session(graph=graph, profile="off") as session:
            for _ in range(executor.LOOK_FIRST):
                session.run(y)
            assert not session.costs._heard._steps


def test_a_traced_step_is_not_looked_at_besides(tmp_path: Path) -> None:
    heard: list[object] = []
    with Graph().as_default() as graph:
        y = nf.random.normal((4,))
        with Session(graph=graph, profile=tmp_path / "p.json") as session:
            session.events.add(heard.append)
            for _ in range(executor.LOOK_FIRST):
                session.run(y, trace=True)
    assert not heard
