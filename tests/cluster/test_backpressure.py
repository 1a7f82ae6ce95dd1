"""What is under way is bounded, nothing waits for ever because of it, and a cancelled step leaves nothing."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest

from nbflow import codec
from nbflow.errors import Cancelled, WorkerLost
from nbflow.graph import Graph
from nbflow.session import Session
from nbflow.testing.random_flow import random_flow
from nbflow.testing.random_graphs import random_program
from nbflow.testing.transport import check_transport, command, pair, wait
from nbflow_workers.dataplane.base import SessionKey
from nbflow_workers.dataplane.outbox import PeerOutbox
from nbflow_workers.dataplane.plane import PeerDataPlane
from tests.planes import PlaneCluster

A, B, C = (f"/job:worker/task:{n}" for n in range(3))
KEY = SessionKey("s", b"x" * 32)
WAIT_S = 20.0
WAYS: dict[str, dict[str, Any]] = {"shared memory": {}, "tcp": {"use_shm": False}}
SIZE = 256 * 1024


class Inbox:
    def __init__(self) -> None:
        self.queue: SimpleQueue[tuple[str, str, Any]] = SimpleQueue()

    def deliver(self, step_id: str, key: str, value: Any, moved: Any = None) -> None:
        self.queue.put((step_id, key, value))

    def fail(self, step_id: str, error: Exception) -> None:
        self.queue.put((step_id, "", error))


class Three:
    """Three tasks in one session, whose windows have room for two tensors of SIZE bytes."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.planes = [PeerDataPlane(window_bytes=2 * SIZE, **options) for _ in range(3)]
        self.inboxes = [Inbox() for _ in range(3)]
        peers = {task: plane.endpoint for task, plane in zip((A, B, C), self.planes, strict=True)}
        self.outboxes: list[PeerOutbox] = [
            plane.open(KEY, inbox, peers) for plane, inbox in zip(self.planes, self.inboxes, strict=True)
        ]
        self.threads: list[threading.Thread] = []
        self.errors: SimpleQueue[Exception] = SimpleQueue()

    def send(self, source: int, task: str, step: str, key: str, *, last: bool = False) -> threading.Thread:
        """Sends from a thread, as a lane does. `last`: there is nothing left to do then but wait."""

        def run() -> None:
            try:
                sending = self.outboxes[source].send(task, step, key, np.ones(SIZE, np.uint8))
                assert sending is None or sending.wait(WAIT_S)
                if last:
                    self.outboxes[source].waiting(step, True)
            except Exception as error:  # noqa: BLE001  # looked at by the test
                self.errors.put(error)

        thread = threading.Thread(target=run)
        thread.start()
        self.threads.append(thread)
        return thread

    def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < end, "nothing happened"
            time.sleep(0.002)

    def blocked(self, source: int, task: str) -> int:
        return len(self.outboxes[source]._peers[task].blocked)

    def close(self) -> None:
        for plane in self.planes:
            plane.close()
        for thread in self.threads:
            thread.join(WAIT_S)
            assert not thread.is_alive()


@pytest.fixture(params=WAYS)
def three(request: pytest.FixtureRequest) -> Iterator[Three]:
    made = Three(WAYS[request.param])
    yield made
    made.close()


def test_a_sender_waits_until_memory_is_free_over_there(three: Three) -> None:
    for number in range(3):
        three.send(0, B, "s", str(number)).join(0.05 if number == 2 else WAIT_S)
    three.until(lambda: three.blocked(0, B) == 1)
    held = [three.inboxes[1].queue.get(timeout=WAIT_S) for _ in range(2)]
    assert three.inboxes[1].queue.empty()
    assert three.planes[1].held() == 2 * SIZE
    del held[0]
    held.append(three.inboxes[1].queue.get(timeout=WAIT_S))
    assert held[-1][1] == "2"
    assert three.planes[1].held() == 2 * SIZE


def test_views_keep_memory_and_its_credit(three: Three) -> None:
    three.send(0, B, "s", "k")
    view = three.inboxes[1].queue.get(timeout=WAIT_S)[2].reshape(2, -1)[1, 5:]
    gc.collect()
    assert three.planes[1].held() == SIZE
    assert (view == 1).all()
    del view
    assert three.planes[1].held() == 0


def test_a_step_that_waits_gets_what_is_held_back(three: Three) -> None:
    """The receiver needs B while A fills the window."""
    for number in range(2):
        three.send(0, B, "s", f"A{number}").join(WAIT_S)
    kept = [three.inboxes[1].queue.get(timeout=WAIT_S) for _ in range(2)]
    three.send(0, B, "s", "B")
    three.send(0, B, "other step", "C")
    three.until(lambda: three.blocked(0, B) == 2)
    three.outboxes[1].waiting("s", True)
    assert three.inboxes[1].queue.get(timeout=WAIT_S)[1] == "B"
    three.outboxes[1].waiting("s", False)
    assert three.blocked(0, B) == 1, "another step's tensor came through"
    three.outboxes[1].waiting("other step", True)
    assert three.inboxes[1].queue.get(timeout=WAIT_S)[1] == "C"
    assert len(kept) == 2


def test_two_that_fill_each_other_go_on(three: Three) -> None:
    """Both have programs that can only send: neither takes anything, so both windows are full."""
    for number in range(2):
        three.send(0, B, "s", str(number)).join(WAIT_S)
        three.send(1, A, "s", str(number)).join(WAIT_S)
    kept = [i.queue.get(timeout=WAIT_S) for i in three.inboxes[:2] for _ in range(2)]
    three.send(0, B, "s", "more", last=True)
    three.send(1, A, "s", "more", last=True)
    for inbox in three.inboxes[:2]:
        assert inbox.queue.get(timeout=WAIT_S)[1] == "more"
    assert len(kept) == 4


def test_a_ring_that_waits_around_goes_on(three: Three) -> None:
    """C waits for B, B for A, and A cannot send to B before C has room for what A sends it first."""
    for number in range(2):
        three.send(0, C, "s", str(number)).join(WAIT_S)
    kept = [three.inboxes[2].queue.get(timeout=WAIT_S) for _ in range(2)]
    first = three.send(0, C, "s", "2")
    three.until(lambda: three.blocked(0, C) == 1)
    three.outboxes[2].waiting("s", True)
    first.join(WAIT_S)
    three.send(0, B, "s", "k").join(WAIT_S)
    assert three.inboxes[1].queue.get(timeout=WAIT_S)[1] == "k"
    assert len(kept) == 2


@pytest.mark.parametrize("how", ["abort here", "end there", "peer leaves", "close"])
def test_a_send_that_waits_ends_with_its_step(three: Three, how: str) -> None:
    for number in range(2):
        three.send(0, B, "s", str(number)).join(WAIT_S)
    kept = [three.inboxes[1].queue.get(timeout=WAIT_S) for _ in range(2)]
    thread = three.send(0, B, "s", "2")
    three.until(lambda: three.blocked(0, B) == 1)
    expected: type[Exception] | None = WorkerLost
    if how == "abort here":
        three.outboxes[0].abort("s", Cancelled("enough"))
        expected = Cancelled
    elif how == "end there":
        three.outboxes[1].end("s")
        expected = None
    elif how == "peer leaves":
        three.planes[0].open(KEY, three.inboxes[0], {A: three.planes[0].endpoint})
    else:
        three.planes[0].close_session("s")
    thread.join(WAIT_S)
    assert not thread.is_alive()
    if expected is None:
        assert three.errors.empty()
    else:
        assert isinstance(three.errors.get(timeout=WAIT_S), expected)
    assert len(kept) == 2


def test_a_sender_that_waits_notices_that_its_peer_died(three: Three) -> None:
    for number in range(2):
        three.send(0, B, "s", str(number)).join(WAIT_S)
    kept = [three.inboxes[1].queue.get(timeout=WAIT_S) for _ in range(2)]
    thread = three.send(0, B, "s", "2")
    three.until(lambda: three.blocked(0, B) == 1)
    three.planes[1].close()
    thread.join(WAIT_S)
    assert isinstance(three.errors.get(timeout=WAIT_S), WorkerLost)
    assert len(kept) == 2


# --- whole steps ------------------------------------------------------------------------------------------------------


@contextmanager
def planes(workers: int, **options: Any) -> Iterator[PlaneCluster]:
    made = PlaneCluster(workers, **options)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def all_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor takes the way of large ones."""
    monkeypatch.setattr(codec, "INLINE_LIMIT_BYTES", 1)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("window", [1, 2**28], ids=["one at a time", "usual window"])
def test_the_conformance_suite(way: str, window: int) -> None:
    check_transport(lambda: planes(2, window_bytes=window, **WAYS[way]))


def outcomes(seed: int, make: Any, cluster: Any, devices: list[str]) -> list[list[np.ndarray[Any, Any]]]:
    graph = Graph()
    program = make(seed, devices, graph)
    with Session(cluster, graph, deadline_s=30) as session:
        return [session.run(list(program.fetches), program.feeds) for _ in range(program.steps)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make", [random_program, random_flow])
def test_random_graphs_with_room_for_one_tensor(way: str, make: Any, all_large: None) -> None:
    """No graph waits for ever, and not a bit changes, when nearly every tensor has to wait for credit."""
    with planes(3, window_bytes=1, **WAYS[way]) as cluster:
        devices = [str(i.spec) for i in cluster.devices()]
        for seed in range(15):
            for a, b in zip(outcomes(seed, make, None, []), outcomes(seed, make, cluster, devices), strict=True):
                for x, y in zip(a, b, strict=True):
                    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("way", WAYS)
def test_a_thousand_cancelled_steps_leave_nothing(way: str) -> None:
    """Half of them have a tensor there and not taken, half one that waits for credit at the sender."""
    with planes(2, window_bytes=3 * SIZE, **WAYS[way]) as cluster:
        doors = cluster.connect("s")
        sender, receiver = pair(A, B, 1)
        for bundle in (sender, receiver):
            doors[bundle.task].register(bundle)
        x = np.zeros(SIZE // 4, np.float32)
        for number in range(1000):
            step = f"step {number}"
            sent = doors[A].start(command(sender, {"x": x}, step_id=step, lane="a"))
            if number % 2:
                wait(sent)
            for task in (A, B):
                wait(doors[task].cancel(step, "the test says so"))
            if not number % 2:
                assert isinstance(sent.exception(WAIT_S), Cancelled | None)
        end = time.monotonic() + WAIT_S
        while any(p.held() for p in cluster.planes.values()) and time.monotonic() < end:
            time.sleep(0.01)
        assert [p.held() for p in cluster.planes.values()] == [0, 0]
        for door in doors.values():
            assert door.rendezvous.in_flight() == 0  # type: ignore[attr-defined]  # an Executor
        results = [
            doors[b.task].start(command(b, f, step_id="last")) for b, f in ((receiver, {}), (sender, {"x": x + 1}))
        ]
        np.testing.assert_array_equal(wait(results[0]).fetches["y"], x + 2)
