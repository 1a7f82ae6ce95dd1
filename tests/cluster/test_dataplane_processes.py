"""The data plane between real processes: killed ones leave nothing, and gigabytes go through."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import psutil
import pytest

import nbflow as nf
import nbflow_workers as nw
from nbflow.errors import WorkerLost
from nbflow.session import Session
from nbflow.testing.transport import check_transport
from nbflow_workers.dataplane import shm
from nbflow_workers.dataplane.base import SessionKey
from nbflow_workers.dataplane.plane import PeerDataPlane
from nbflow_workers.launchers.local import LocalLauncher

pytestmark = pytest.mark.cluster
A, B = "/job:worker/task:0", "/job:worker/task:1"
WAYS: dict[str, tuple[str, ...]] = {
    "shared memory": (),
    "tcp": ("--no-shm",),
    "encrypted": ("--no-shm", "--encrypt"),
    "small window": ("--in-flight-mb", "1"),
}
WAIT_S = 20.0
GIANT_BYTES = 3 * 2**30 + 12


@contextmanager
def workers(flags: tuple[str, ...]) -> Iterator[Any]:
    with nw.local(workers=2, launcher=LocalLauncher(flags=flags)) as made:
        yield made


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def named_segments() -> set[str]:
    return {n for n in os.listdir(shm.FOLDER) if n.startswith("nbflow-")}


def mapped(pid: int) -> int:
    """How many segments a process has mapped."""
    return sum("memfd:nbflow" in line for line in Path(f"/proc/{pid}/maps").read_text().splitlines())


def moves(nbytes: int, seed: float) -> tuple[nf.Graph, Any]:
    """A graph in which a variable goes from A to B; the fetch is its first and last element."""
    graph = nf.Graph()
    with graph.as_default():
        with nf.device(A):
            x = nf.Variable(nf.full((nbytes // 4,), seed), name="x").read()
        with nf.device(B):
            return graph, nf.stack([x[0], x[-1]])


def run_often(session: Session, fetch: Any) -> None:
    """A step may be through before the death of a worker is noticed."""
    for _ in range(50):
        session.run(fetch, deadline_s=5)


@pytest.mark.parametrize("way", WAYS)
def test_the_conformance_suite_over_each_way(way: str) -> None:
    check_transport(lambda: workers(WAYS[way]))


@pytest.mark.parametrize("victim", [A, B], ids=["sender", "receiver"])
@pytest.mark.parametrize("way", ["shared memory", "tcp"])
def test_a_killed_worker_leaves_nothing(way: str, victim: str) -> None:
    before = named_segments()
    with workers(WAYS[way]) as cluster:
        pids = {f"/job:{w.job}/task:{w.task}": w.pid for w in cluster.workers()}
        graph, fetch = moves(4_000_000, 3.0)
        session = Session(cluster, graph)
        for _ in range(3):
            np.testing.assert_array_equal(session.run(fetch), [3.0, 3.0])
        other = pids[B if victim == A else A]
        assert (mapped(other) > 0) == (way == "shared memory")
        os.kill(pids[victim], signal.SIGKILL)
        with pytest.raises(WorkerLost):
            run_often(session, fetch)
        if victim == A:
            until(lambda: mapped(other) == 0, "the receiver keeps the memory of a dead sender")
        session.close()
        until(lambda: mapped(other) == 0, "segments are kept after their session")
    assert named_segments() == before


class Inbox:
    def __init__(self) -> None:
        self.queue: SimpleQueue[Any] = SimpleQueue()

    def deliver(self, step_id: str, key: str, value: Any, moved: Any = None) -> None:
        self.queue.put(value)

    def fail(self, step_id: str, error: Exception) -> None:
        self.queue.put(error)


@pytest.mark.parametrize("use_shm", [True, False], ids=["shared memory", "tcp"])
def test_three_gigabytes_go_through(use_shm: bool) -> None:
    if psutil.virtual_memory().available < 3 * GIANT_BYTES:
        pytest.skip(f"needs {3 * GIANT_BYTES / 2**30:.0f} GiB of free memory")
    planes = PeerDataPlane(use_shm=use_shm), PeerDataPlane(use_shm=use_shm)
    try:
        inbox, peers = Inbox(), {A: planes[0].endpoint, B: planes[1].endpoint}
        key = SessionKey("s", b"x" * 32)
        outbox = planes[0].open(key, Inbox(), peers)
        planes[1].open(key, inbox, peers)
        value = np.zeros(GIANT_BYTES // 4, np.int32)  # pages that nobody wrote to take no memory
        marks = [0, 1, 2**29 - 1, 2**29, 2**29 + 1, value.size - 1]
        value[marks] = range(1, len(marks) + 1)
        sending = outbox.send(B, "s", "k", value)
        got = inbox.queue.get(timeout=100)
        assert sending is None or sending.wait(WAIT_S)
        assert got.nbytes == GIANT_BYTES
        np.testing.assert_array_equal(got[marks], value[marks])
        assert int(np.count_nonzero(got[: 2**20])) == 2
        del got
        outbox.end("s")
        assert planes[1].held() == 0
        # What follows goes through as if nothing had been.
        outbox.send(B, "t", "k", value[:100])
        np.testing.assert_array_equal(inbox.queue.get(timeout=WAIT_S), value[:100])
    finally:
        for plane in planes:
            plane.close()
