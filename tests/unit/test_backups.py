"""Backup workers and bounded staleness. What a worker should be late with is held back, so nothing depends on speed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

import nbflow as nf
from nbflow import errors
from nbflow.events import WorkerState
from nbflow.executor import Executor
from nbflow.graph import Graph
from nbflow.inprocess import InProcessCluster
from nbflow.parallel import Role
from nbflow.prepare import Prepared
from nbflow.session import Session
from nbflow.transport import Loop, StepCommand, StepResult, Transport
from tests.unit.test_data_parallel import model


@pytest.fixture
def graph() -> Iterator[Graph]:
    nf.set_cluster(None)
    with Graph().as_default() as made:
        yield made
        nf.set_cluster(None)


class Held:
    """A worker that runs nothing until it is released, but takes what it is sent."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self.reached = threading.Event()  # something was sent to it
        self.waiting: list[tuple[StepCommand, Future[StepResult]]] = []
        self.held = True
        self.loops: list[Loop] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor, name)

    def deliver(self, *arrival: Any) -> None:
        self._executor.deliver(*arrival)
        self.reached.set()

    def start(self, command: StepCommand) -> Future[StepResult]:
        if not self.held:
            return self._executor.start(command)
        future: Future[StepResult] = Future()
        self.waiting.append((command, future))
        return future

    def start_loop(self, loop: Loop, *, timeout_s: float = 30.0) -> None:
        if not self.held:
            self._executor.start_loop(loop)
        self.loops.append(loop)

    def release(self) -> None:
        self.held = False
        for command, future in self.waiting:
            self._executor.start(command).add_done_callback(lambda f, future=future: future.set_result(f.result()))


class HeldCluster(InProcessCluster):
    """Workers of which one is held back."""

    def __init__(self, workers: int, ps: int, late: int) -> None:
        super().__init__(workers, ps)
        self._late = f"/job:worker/task:{late}"
        self.worker: Held | None = None

    def connect(self, session: str) -> Mapping[str, Transport]:
        known = session in self._sessions
        executors = super().connect(session)
        if not known:
            self.worker = Held(self._sessions[session][self._late])
            self._sessions[session][self._late] = self.worker  # type: ignore[assignment]
        return {**executors, self._late: self.worker}  # type: ignore[dict-item]


class Replicas:
    """The parts of a step with backups, run one by one: `give(i)` is a step of replica i, `update()` one of the chief.

    Worker i has gradient .1 + .2 i for v0, .9 + .2 i for v1, and the first for row 1 of a table; the rate is 2.
    """

    def __init__(self, cluster: InProcessCluster, workers: int, backup: int, **options: Any) -> None:
        rows = np.arange(workers, dtype=np.float32)
        data = nf.data.from_arrays({"worker": rows}).repeat().batch(workers).next()["worker"]
        self.v0 = nf.Variable(np.float32(0.0), name="v0")
        self.v1 = nf.Variable(np.float32(1.0), name="v1")
        self.table = nf.Variable(np.array([[3.0], [4.0]], "float32"), name="table")
        small = (0.1 + 0.2 * data) * nf.astype(self.v0 < 1e6, "float32")  # so that a worker needs a variable's value
        looked_up = nf.sum(nf.take(self.table, np.array([1]), axis=0))
        self.loss = nf.mean(small * self.v0 + (0.8 + small) * self.v1 + small * looked_up)
        strategy = nf.train.DataParallel(backup=backup, **options)
        self.step = nf.optim.SGD(2.0).minimize(self.loss, strategy=strategy)
        self.session = Session(cluster)

    def part(self, kind: Any, index: int = 0) -> Prepared:
        return self.session.prepare([self.step], {}, role=Role(kind, index))

    def give(self, index: int) -> None:
        self.session.look(self.part("replica", index))

    def update(self) -> None:
        self.session.look(self.part("chief"))

    def check(self, v0: float, v1: float, row: float) -> None:
        found = self.session.run([self.v0, self.v1, self.table])
        for value, expected in zip(found, (v0, v1, [[3.0], [row]]), strict=True):
            np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_published_vector_of_two_workers(graph: Graph) -> None:
    """The numbers of TensorFlow's sync_replicas_optimizer_test.py, test2Workers; below, test3Workers1Backup."""
    with InProcess(2, 2) as cluster:
        one = Replicas(cluster, 2, 0)
        for steps in (1, 2):
            one.session.run(one.step)
            one.check(-0.4 * steps, 1 - 2.0 * steps, 4 - 0.4 * steps)
        one.session.close()


class InProcess:
    """An in-process cluster that is closed."""

    def __init__(self, workers: int, ps: int, late: int | None = None) -> None:
        self.made = InProcessCluster(workers, ps) if late is None else HeldCluster(workers, ps, late)

    def __enter__(self) -> Any:
        return self.made

    def __exit__(self, *exc: object) -> None:
        self.made.close()


def test_published_vector_of_three_workers_with_one_backup(graph: Graph) -> None:
    """Workers 0 and 2 make the first step; what 1 computed for it comes too late and is dropped. Then 1 and 0 make
    the second."""
    with InProcess(3, 2, late=1) as cluster:
        one = Replicas(cluster, 3, 1)
        one.part("replica", 1)
        late = threading.Thread(target=one.give, args=(1,))
        late.start()
        assert cluster.worker.reached.wait(20)  # the variables of the first step are on their way to it
        one.give(2)
        one.give(0)
        one.update()
        one.check(-(0.1 + 0.5), 1 - (0.9 + 1.3), 4 - (0.1 + 0.5))
        cluster.worker.release()
        late.join(20)
        one.check(-(0.1 + 0.5), 1 - (0.9 + 1.3), 4 - (0.1 + 0.5))
        one.give(1)
        one.give(0)
        one.update()
        one.check(-0.6 - (0.1 + 0.3), -1.2 - (0.9 + 1.1), 3.4 - (0.1 + 0.3))
        one.session.close()


def test_the_sum_is_in_the_order_of_the_workers_whoever_came_first(graph: Graph) -> None:
    def after(order: tuple[int, ...]) -> Any:
        with InProcess(3, 1) as cluster, Graph().as_default():
            one = Replicas(cluster, 3, 1)
            for index in order:
                one.give(index)
            one.update()
            found = one.session.run(one.v1)
            one.session.close()
            return found

    assert after((0, 2)) == after((2, 0))
    assert after((0, 2)) != after((1, 2))


def trained(cluster: InProcessCluster, steps: int = 30, **options: Any) -> Any:
    nf.set_cluster(cluster)
    strategy = nf.train.DataParallel(**options)
    step, loss, accuracy = model(strategy, nf.optim.Adam(0.02), 24)
    return nf.train.run(step, steps=steps, metrics={"loss": loss, "acc": accuracy}, every=5, show=False)


def test_training_with_a_backup(graph: Graph) -> None:
    with InProcess(4, 1) as cluster:
        run = trained(cluster, backup=1)
        assert run.status == "done"
        assert run.step == 30
        np.testing.assert_array_equal(run.history["step"], [5, 10, 15, 20, 25, 30])
        assert run.history["loss"][-1] < run.history["loss"][0]
        assert {e.replica for e in run.events if isinstance(e, nf.events.Metric)} == {""}
        nf.set_cluster(None)


def test_a_worker_that_never_answers_does_not_stop_training(graph: Graph) -> None:
    """With worker 2 silent, workers 0 and 1 make every step: the losses repeat to the bit."""

    def losses() -> Any:
        with InProcess(3, 1, late=2) as cluster, Graph().as_default():
            run = trained(cluster, backup=1, steps=20)
            nf.set_cluster(None)
            assert run.status == "done"
            assert cluster.worker.loops
            return run.history["loss"]

    np.testing.assert_array_equal(losses(), losses())


def test_a_lost_worker_is_gone_on_without_but_not_two(graph: Graph) -> None:
    with InProcess(3, 1, late=2) as cluster:
        nf.set_cluster(cluster)
        step, loss, _ = model(nf.train.DataParallel(backup=1), nf.optim.SGD(0.1), 24)
        run = nf.train.run(step, steps=10**7, metrics={"loss": loss}, show=False, background=True)
        first = threading.Event()
        run.listen(lambda e: first.set() if isinstance(e, nf.events.Metric) else None)
        cluster.worker.events.emit(WorkerState("/job:worker/task:2", "lost", "", 0.0, "it was lost"))
        assert run.status == "running"
        assert "without /job:worker/task:2" in [getattr(e, "detail", "") for e in run.events][-1]
        assert first.wait(20)
        transports = nf.current.current_session().transports
        transports["/job:worker/task:1"].events.emit(WorkerState("/job:worker/task:1", "lost", "", 0.0, "it was lost"))
        with pytest.raises(errors.WorkerLost):
            run.wait(20)
        nf.set_cluster(None)


def test_a_run_with_backups_stops_and_goes_on_from_its_checkpoint(graph: Graph, tmp_path: Any) -> None:
    def run(steps: int) -> Any:
        with InProcess(3, 1) as cluster, Graph().as_default():
            nf.set_cluster(cluster)
            step, loss, _ = model(nf.train.DataParallel(backup=1), nf.optim.SGD(0.1), 24)
            found = nf.train.run(
                step, steps=steps, metrics={"loss": loss}, every=2, checkpoint=tmp_path, checkpoint_every=4, show=False
            )
            nf.set_cluster(None)
            return found

    assert run(10).step == 10
    again = run(16)
    assert again.step == 16
    np.testing.assert_array_equal(again.history["step"], [12, 14, 16])


def test_stop_ends_all_loops(graph: Graph) -> None:
    with InProcess(3, 1) as cluster:
        nf.set_cluster(cluster)
        step, loss, _ = model(nf.train.DataParallel(backup=1), nf.optim.SGD(0.1), 24)
        run = nf.train.run(step, steps=10**7, metrics={"loss": loss}, show=False, background=True)
        first = threading.Event()
        run.listen(lambda e: first.set() if isinstance(e, nf.events.Metric) else None)
        assert first.wait(20)
        run.stop()
        assert run.status == "stopped"
        assert nf.run(loss) > 0
        nf.set_cluster(None)


@pytest.mark.parametrize("action", ["stop", "pause"])
def test_only_the_chief_is_asked_to_stop_and_the_others_end_with_it(graph: Graph, action: str) -> None:
    """With worker 2 silent, a worker that stopped first would leave the chief without its two gradients for ever."""
    with InProcess(3, 1, late=2) as cluster:
        nf.set_cluster(cluster)
        step, loss, _ = model(nf.train.DataParallel(backup=1), nf.optim.SGD(0.1), 24)
        run = nf.train.run(step, steps=10**7, metrics={"loss": loss}, show=False, background=True)
        first = threading.Event()
        run.listen(lambda e: first.set() if isinstance(e, nf.events.Metric) else None)
        assert first.wait(20)
        asked = []
        doors = nf.current.current_session().transports
        for task, door in doors.items():
            told = door.control_loop
            door.control_loop = lambda *a, task=task, told=told, **k: (asked.append((task, a[1])), told(*a, **k))
        if action == "pause":
            paused = threading.Event()
            run.listen(lambda e: paused.set() if getattr(e, "status", "") == "paused" else None)
            run.pause()
            assert paused.wait(20)
            run.resume()
        run.stop()
        assert run.status == "stopped"
        wanted = ["pause", "resume", "stop"] if action == "pause" else ["stop"]
        assert asked == [("/job:ps/task:0", a) for a in wanted]
        deadline = time.monotonic() + 20
        while any(doors[f"/job:worker/task:{n}"]._loops for n in (0, 1)):
            assert time.monotonic() < deadline, "the loops of workers end with the chief's"
            time.sleep(0.02)
        nf.set_cluster(None)


def test_data_that_ends_ends_a_run_with_backups(graph: Graph) -> None:
    with InProcess(3, 1) as cluster:
        nf.set_cluster(cluster)
        rows = np.arange(12, dtype=np.float32)
        data = nf.data.from_arrays({"x": rows}).batch(3).next()["x"]
        w = nf.Variable(np.float32(0.0), name="w")
        step = nf.optim.SGD(0.1).minimize(nf.mean((w - data) ** 2), strategy=nf.train.DataParallel(backup=1))
        run = nf.train.run(step, steps=100, show=False)
        assert run.status == "done"
        assert 4 <= run.step <= 6  # 12 gradients, 2 a step
        assert "2 replicas make a step" in run.detail
        nf.set_cluster(None)


@pytest.mark.parametrize(("workers", "backup"), [(2, 1), (3, 2), (4, 2), (3, 5)])
def test_too_many_backups_are_an_error(graph: Graph, workers: int, backup: int) -> None:
    with InProcess(workers, 1) as cluster:
        with pytest.raises(errors.GraphError, match="more of those than backups"):
            trained(cluster, backup=backup)
        nf.set_cluster(None)


def test_what_does_not_go_together() -> None:
    for options in ({"backup": 1, "sync": False}, {"staleness": 1}, {"staleness": -1, "sync": False}, {"backup": 1.5}):
        with pytest.raises(errors.GraphError, match=r"backup|staleness"):
            nf.train.DataParallel(**options)


# --- bounded staleness -----------------------------------------------------------------------------------------------


def test_nobody_is_further_ahead_than_the_bound(graph: Graph) -> None:
    with InProcess(2, 1) as cluster:
        one = Replicas(cluster, 2, 0, sync=False, staleness=1)
        one.give(0)
        one.give(0)  # worker 1 has done none: 1 step ahead is allowed
        with pytest.raises(errors.DeadlineExceeded):
            one.session._execute(one.part("replica", 0), {}, number=0, deadline_s=0.02)
        one.give(1)
        one.give(0)
        one.session.look(one.part("leave", 1))
        for _ in range(3):
            one.give(0)
        one.session.close()


@pytest.mark.parametrize("bound", [0, 3])
def test_training_with_bounded_staleness(graph: Graph, bound: int) -> None:
    with InProcess(3, 1) as cluster:
        run = trained(cluster, sync=False, staleness=bound, steps=31)
        assert (run.status, run.step) == ("done", 31)
        assert run.history["loss"][-1] < run.history["loss"][0]
        nf.set_cluster(None)


def test_who_is_late_says_goodbye_also_when_something_else_runs_meanwhile(
    graph: Graph, caplog: pytest.LogCaptureFixture
) -> None:
    """The plans of those whom a run does not wait for were freed with the run, by whatever ran next."""
    cluster = InProcessCluster(3, 1)
    nf.set_cluster(cluster)
    rows = np.arange(12, dtype=np.float32)[:, None]
    batch = nf.data.from_arrays({"x": rows}).repeat().batch(6).next()
    w = nf.Variable(np.zeros(1, np.float32), name="w")
    step = nf.optim.SGD(1e-3).minimize(nf.mean((batch["x"] * w - 1) ** 2), strategy=nf.train.DataParallel(backup=1))
    for _ in range(5):
        run = nf.train.run(step, 4, show=False)
        nf.run(w + nf.random.normal(()))
        end = time.monotonic() + 30
        while any(t.name.startswith("nbflow-loop") for t in threading.enumerate()):
            assert time.monotonic() < end
            time.sleep(0.01)
        assert run.status == "done"
    nf.set_cluster(None)
    cluster.close()
    assert not [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
