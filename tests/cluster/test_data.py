"""Datasets and queues where the workers are processes: what moves, what continues, what waits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nbflow as nf
import nbflow_workers as nw
from nbflow.errors import Cancelled, DataError, DeadlineExceeded, EndOfData
from nbflow.graph import Graph
from nbflow_workers import client

pytestmark = pytest.mark.cluster

# For what should be quick, but must not fail on a slow machine.
PATIENCE_S = 40


@pytest.fixture
def graph() -> Iterator[Graph]:
    with Graph().as_default() as made:
        yield made
        nf.set_cluster(None)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of each constant that is sent to a worker."""
    sizes: list[int] = []
    real = client._blob_chunks

    def counting(digest: str, value: np.ndarray[Any, Any]) -> Any:
        sizes.append(value.nbytes)
        return real(digest, value)

    monkeypatch.setattr(client, "_blob_chunks", counting)
    return sizes


def problem(x: Any, seed: int = 3, strategy: Any = None) -> tuple[Any, Any, Any]:
    batch = nf.data.from_arrays({"x": x}).shuffle(50, seed=seed).repeat().batch(20).prefetch(2).next(name="train")
    loss = nf.mean(nf.layers.dense(batch["x"], 1, name="d") ** 2)
    step = nf.optim.SGD(0.1).minimize(loss, strategy=strategy or nf.train.DataParallel())
    return step, loss, batch


def beside(function: Any) -> Future[Any]:
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except Exception as error:  # noqa: BLE001  # the test looks at it
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def test_arrays_move_to_each_worker_once(graph: Graph, sent: list[int]) -> None:
    """By content: however many plans, cells and graphs use them."""
    x = np.random.default_rng(0).normal(size=(500, 100)).astype(np.float32)
    with nw.local(workers=2, ps=1) as cluster:
        nf.set_cluster(cluster)
        step, loss, batch = problem(x)
        nf.train.run(step, steps=4, metrics={"loss": loss}, every=2, show=False)
        assert sent == [x.nbytes, x.nbytes]  # one for each replica, none for the ps
        nf.run([loss, batch["x"]])
        nf.run(nf.data.save_state(batch["x"]))
        with Graph().as_default():  # as a cell that runs again: an equal array, another shuffle
            step, loss, _ = problem(x.copy(), seed=4)
            nf.train.run(step, steps=2, metrics={"loss": loss}, show=False)
        assert len(sent) == 2
        with Graph().as_default():
            step, _, _ = problem(x + 1)
            nf.train.run(step, steps=1, show=False)
        assert len(sent) == 4
        nf.set_cluster(None)


def test_training_goes_on_in_other_processes_with_the_batches_that_were_next(graph: Graph) -> None:
    x = np.arange(400, dtype=np.float32).reshape(100, 4)

    def seen(workers: int, kept: Any, steps: int) -> tuple[list[Any], Any]:
        with Graph().as_default(), nw.local(workers=workers, ps=1) as cluster:
            nf.set_cluster(cluster)
            step, _, batch = problem(x)
            if kept is not None:
                nf.run(nf.data.restore_state(batch["x"], kept))
            found = [nf.run([step, batch["x"]])[1].tolist() for _ in range(steps)]
            place = nf.run(nf.data.save_state(batch["x"]))
            nf.set_cluster(None)
        return found, place

    straight, _ = seen(1, None, 8)
    begun, kept = seen(2, None, 3)
    assert begun + seen(3, kept, 5)[0] == straight


def test_workers_read_files_themselves(graph: Graph, tmp_path: Path, sent: list[int]) -> None:
    x = np.arange(3000.0).reshape(1000, 3)
    for n in range(4):
        np.savez(tmp_path / f"shard-{n}.npz", x=x[250 * n : 250 * (n + 1)])
    with nw.local(workers=1) as cluster:
        nf.set_cluster(cluster)
        batch = nf.data.from_files(str(tmp_path / "*.npz")).batch(500).map(lambda b: {"x": b["x"] * 2.0}).next()
        np.testing.assert_array_equal(nf.run(batch["x"]), 2 * x[:500])
        noisy = nf.data.from_files(str(tmp_path / "*.npz")).map(
            lambda e: {"x": e["x"] + nf.random.uniform((), dtype="float64")}, parallel=2
        )
        there = nf.run(noisy.batch(100).next(name="noisy")["x"])
        nf.set_cluster(None)
    assert sent == []
    with Graph().as_default():  # what is drawn depends on names and seeds, not on where
        np.testing.assert_array_equal(there, nf.run(noisy.batch(100).next(name="noisy")["x"]))
    assert (there[:, 0] - x[:100, 0]).std() > 0.1


def test_a_generator_reaches_workers_through_a_queue(graph: Graph) -> None:
    def give() -> Iterator[dict[str, Any]]:
        for n in range(30):
            yield {"x": np.full(4, n, np.float32), "y": n}

    dataset = nf.data.from_generator(give, {"x": ("float32", (4,)), "y": ("int64", ())}).batch(3)
    with nw.local(workers=1) as cluster:
        nf.set_cluster(cluster)
        with pytest.raises(DataError, match=r"cannot run on this worker; .* nf\.feed"):
            nf.run(dataset.next()["y"])
        q = nf.queue(2, dataset.element_spec, name="q")
        got = q.dequeue()
        feeding = nf.feed(q, dataset)
        seen = [nf.run(got)["y"].tolist() for _ in range(10)]
        with pytest.raises(EndOfData, match="queue 'q' is closed"):
            nf.run(got)
        feeding.wait(PATIENCE_S)
        assert [y for batch in seen for y in batch] == list(range(30))
        assert feeding.count == 10
        nf.set_cluster(None)


def test_steps_of_two_threads_wait_for_each_other_across_processes(graph: Graph) -> None:
    with nw.local(workers=2) as cluster:
        nf.set_cluster(cluster)
        with nf.device("/job:worker/task:0"):
            q = nf.queue(2, ("float32", (3,)), name="q")
        value = nf.placeholder("float32", (3,))
        with nf.device("/job:worker/task:1"):
            put = q.enqueue(value * 2.0)
            taken = q.dequeue() + 1.0
        session = nf.current_session()
        consumer = beside(lambda: [float(session.run(taken)[0]) for _ in range(20)])
        for n in range(20):
            session.run(put, {value: np.full(3, n, np.float32)})
        assert consumer.result(PATIENCE_S) == [2 * n + 1.0 for n in range(20)]
        with pytest.raises(DeadlineExceeded):
            session.run(taken, deadline_s=0.2)
        session.run(q.close())
        with pytest.raises(DataError, match="queue 'q' is closed"):
            session.run(put, {value: np.zeros(3, np.float32)})
        nf.set_cluster(None)


def test_a_waiting_step_is_cancelled_and_the_queue_lives_on(graph: Graph) -> None:
    with nw.local(workers=1) as cluster:
        nf.set_cluster(cluster)
        session = nf.current_session()
        q = nf.queue(1, ("int64", ()))
        prepared = session.prepare([q.dequeue()], {})
        pending = nf.session.Driver(session.transports, "by hand").start(prepared.bundle_ids, 0)
        acknowledged = pending.cancel("enough")
        assert [a.error for a in acknowledged] == [""]
        with pytest.raises(Cancelled, match="enough"):
            pending.wait()
        nf.run(q.enqueue(5))
        assert int(nf.run(q.dequeue())) == 5
        nf.set_cluster(None)
