"""Small tensors of a step for one peer travel in one message, and none waits for work."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import nbflow as nf
from nbflow.errors import WorkerLost
from nbflow.session import Session
from nbflow_workers.dataplane.base import SessionKey
from nbflow_workers.dataplane.local import LocalLink
from nbflow_workers.dataplane.zmq import ZmqLink
from tests.planes import PlaneCluster

A, B, C = (f"/job:worker/task:{n}" for n in range(3))
LINKS: dict[bool, Any] = {True: LocalLink, False: ZmqLink}


@pytest.fixture(params=[True, False], ids=["shared memory", "tcp"])
def cluster(request: pytest.FixtureRequest) -> Iterator[PlaneCluster]:
    made = PlaneCluster(3, use_shm=request.param)
    yield made
    made.close()


@pytest.fixture
def sent(cluster: PlaneCluster, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, int]]:
    """(from, to, number of tensors) of each message with tensors."""
    found: list[tuple[str, str, int]] = []
    kind = LINKS[bool(cluster.planes[A].endpoint.host_id)]
    post, large = kind.post, kind.large

    def posted(self: Any, message: Any, *patience: float) -> None:
        if message.tensors:
            found.append((message.source, self._task, len(message.tensors)))
        post(self, message, *patience)

    def sent_large(self: Any, message: Any, value: Any) -> Any:
        found.append((message.source, self._task, len(message.tensors)))
        return large(self, message, value)

    monkeypatch.setattr(kind, "post", posted)
    monkeypatch.setattr(kind, "large", sent_large)
    return found


def test_variables_that_a_worker_reads_come_in_one_message(cluster: PlaneCluster, sent: list[Any]) -> None:
    with nf.Graph().as_default() as graph:
        with nf.device(A):
            kept = [nf.Variable(nf.full((n + 1,), float(n)), name=f"v{n}").read() for n in range(20)]
        sums = []
        for task in (B, C):
            with nf.device(task):
                sums.append(nf.add_n([nf.sum(v) for v in kept]))
        with Session(cluster, graph) as session:
            expected = sum(n * (n + 1.0) for n in range(20))
            session.run(sums)
            sent.clear()
            np.testing.assert_array_equal(session.run(sums), [expected, expected])
    assert sorted(sent) == [(A, B, 20), (A, C, 20)]


def test_a_small_tensor_goes_along_with_a_large_one(cluster: PlaneCluster, sent: list[Any]) -> None:
    with nf.Graph().as_default() as graph:
        with nf.device(A):
            small, large = nf.Variable(nf.zeros(3)).read(), nf.Variable(nf.zeros(100_000)).read()
        with nf.device(B):
            total = nf.sum(small) + nf.sum(large)
        with Session(cluster, graph) as session:
            session.run(total)
            sent.clear()
            session.run(total)
    assert sent == [(A, B, 2)]


def test_what_is_computed_before_the_next_tensor_is_not_waited_for(cluster: PlaneCluster, sent: list[Any]) -> None:
    with nf.Graph().as_default() as graph:
        with nf.device(A):
            first = nf.Variable(nf.zeros((3, 3)), name="v").read()
            second = nf.matmul(first, first)
        with nf.device(B):
            total = nf.sum(first) + nf.sum(second)
        with Session(cluster, graph) as session:
            session.run(total)
            sent.clear()
            session.run(total)
    assert sent == [(A, B, 1), (A, B, 1)]


def test_whoever_comes_while_another_sends_goes_with_the_next_message() -> None:
    """Without waiting: the one that holds the link takes what has gathered meanwhile."""
    cluster = PlaneCluster(2)
    try:
        endpoints = {task: plane.endpoint for task, plane in cluster.planes.items()}
        arrived: list[str] = []
        done = threading.Event()

        class Inbox:
            def deliver(self, step_id: str, key: str, value: Any, moved: Any = None) -> None:
                arrived.append(key)
                if len(arrived) == 11:
                    done.set()

            def fail(self, step_id: str, error: Exception) -> None:
                raise error

        key = SessionKey("s", b"x" * 32)
        outbox = cluster.planes[A].open(key, Inbox(), endpoints)
        cluster.planes[B].open(key, Inbox(), endpoints)
        outbox.send(B, "s", "first", np.zeros(1))
        peer = outbox._peers[B]
        with peer.sending:
            threads = [threading.Thread(target=outbox.send, args=(B, "s", str(n), np.zeros(1))) for n in range(10)]
            for thread in threads:
                thread.start()
            while len(peer.held) < 10:
                pass
        for thread in threads:
            thread.join(10)
        assert done.wait(10)
        assert arrived[0] == "first"
        assert sorted(arrived[1:]) == sorted(map(str, range(10)))
    finally:
        cluster.close()


def test_what_travels_with_a_message_that_fails_fails_its_own_step() -> None:
    """And a program that flushes another step's tensor towards a dead peer goes on."""
    cluster = PlaneCluster(2)
    try:
        endpoints = {task: plane.endpoint for task, plane in cluster.planes.items()}
        failed: list[tuple[str, Exception]] = []

        class Inbox:
            def deliver(self, step_id: str, key: str, value: Any, moved: Any = None) -> None:
                raise AssertionError

            def fail(self, step_id: str, error: Exception) -> None:
                failed.append((step_id, error))

        outbox = cluster.planes[A].open(SessionKey("s", b"x" * 32), Inbox(), endpoints)
        cluster.planes[B].close()
        outbox.send(B, "one", "k", np.zeros(1), more=True)
        outbox.send(B, "two", "k", np.zeros(1), more=True)
        outbox.waiting("three", True)
        assert sorted(step for step, _ in failed) == ["one", "two"]
        assert all(isinstance(error, WorkerLost) and B in str(error) for _, error in failed)
        outbox.send(B, "four", "k", np.zeros(1), more=True)
        outbox.end("four")
        assert outbox.in_flight()[B] == 0
    finally:
        cluster.close()
