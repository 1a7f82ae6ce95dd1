"""Worker processes of this machine: starting, watching, losing and ending them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import psutil
import pytest

import nbflow_workers
from nbflow.errors import Rejected, WorkerError, WorkerLost
from nbflow.events import Event, Metric, WorkerState
from nbflow.testing.transport import FIRST, SECOND, add_bundle, command, constant_bundle, pair
from nbflow.transport import Loop, MetricSource, Transport
from nbflow_workers import Cluster, pipe
from nbflow_workers.dataplane import shm
from nbflow_workers.launchers.base import Ask, Handle
from nbflow_workers.launchers.local import LocalLauncher
from nbflow_workers.security import TOKEN_VARIABLE

pytestmark = pytest.mark.cluster


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with nbflow_workers.local(workers=2, ps=1) as made:
        yield made


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 10.0) -> None:
    """Polls what only another process can change."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)


def children() -> set[int]:
    return {p.pid for p in psutil.Process().children(recursive=True)}


def descriptors() -> set[str]:
    """What this process has open; pipes and sockets by kind, since their numbers always differ."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{name}").split(":")[0])
    return {f"{kind}*{found.count(kind)}" for kind in found}


def listening() -> set[int]:
    return {c.laddr.port for c in psutil.Process().net_connections("tcp") if c.status == psutil.CONN_LISTEN}


def use_once(made: Cluster, session: str) -> None:
    """A step with tensors beyond 64 KiB, so that every way data can go was used."""
    doors = made.connect(session)
    bundle = add_bundle(FIRST, (256, 256))
    doors[FIRST].register(bundle)
    x = np.ones((256, 256), np.float32)
    result = doors[FIRST].start(command(bundle, {"x": x})).result(30)
    np.testing.assert_array_equal(result.fetches["y"], x + 1)


def test_fifty_starts_and_stops_leak_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Others' workers come and go on this machine: what these leave is looked for where only they write.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    prefixes = [pipe._PREFIX]

    def once(number: int) -> int | None:
        with nbflow_workers.local(workers=1) as made:
            use_once(made, f"session-{number}")
            assert list(tmp_path.glob("nbflow-worker-*"))
            (record,) = made.workers()
            prefixes.append(shm.prefix_of(record.incarnation))
            return record.pid

    once(-1)  # what is made once a process (gRPC's own threads and descriptors) exists from here on
    threads, fds = threading.active_count(), descriptors()
    tasks = len(os.listdir("/proc/self/task"))
    pids = [once(number) for number in range(50)]
    assert not [p for p in pids if p is not None and psutil.pid_exists(p) and p in children()]
    assert threading.active_count() == threads
    wait_for(lambda: len(os.listdir("/proc/self/task")) <= tasks + 2, "gRPC's threads end")
    wait_for(lambda: descriptors() == fds, f"descriptors {descriptors()} are {fds} again")
    assert not [n for n in os.listdir(shm.FOLDER) if n.startswith(tuple(prefixes))]
    assert not list(tmp_path.iterdir())
    assert listening() == set()


def test_records_say_who_the_workers_are(cluster: Cluster) -> None:
    records = cluster.workers()
    assert [r.task_name for r in records] == [FIRST, SECOND, "/job:ps/task:0"]
    assert {r.pid for r in records} <= children()
    assert all(r.state == "ready" and r.versions["nbflow"] and r.incarnation for r in records)
    assert [str(d.spec) for d in cluster.devices()] == [f"{r.task_name}/cpu:0" for r in records]
    assert "2 workers, 1 ps" in repr(cluster)
    wait_for(lambda: all(r.memory_bytes > 0 and r.rtt_ms > 0 for r in cluster.workers()), "a heartbeat")


def test_a_killed_worker_fails_the_step_and_is_named(cluster: Cluster) -> None:
    doors = cluster.connect("killed")
    _, receiver = pair(FIRST, SECOND, 1)
    doors[SECOND].register(receiver)
    pending = doors[SECOND].start(command(receiver, step_id="the-step"))
    events: SimpleQueue[Event] = SimpleQueue()
    cluster.listen(events.put)
    before, victim = cluster.id, cluster.workers()[1]
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    error = pending.exception(5)
    assert isinstance(error, WorkerLost)
    assert SECOND in str(error)
    assert "the-step" in str(error)
    # Whoever saw the error finds a cluster that knows.
    assert cluster.id != before
    event = events.get(timeout=5)
    assert isinstance(event, WorkerState)
    assert (event.worker, event.state) == (SECOND, "lost")
    assert "SIGKILL" in event.detail
    assert cluster.id != before
    assert SECOND not in {d.spec.task_name for d in cluster.devices()}
    # The others go on, in the same session.
    use_once(cluster, "killed")


def test_listeners_hear_that_the_leader_of_a_loop_is_lost(cluster: Cluster) -> None:
    doors, bundle = cluster.connect("leader"), constant_bundle(FIRST)
    doors[FIRST].register(bundle)
    events: SimpleQueue[Event] = SimpleQueue()
    doors[FIRST].listen(events.put)
    tasks = {FIRST: bundle.id}
    metrics = (MetricSource("m", FIRST, "y"),)
    doors[FIRST].start_loop(Loop("l", "run", tasks, tasks, metrics, first=1, steps=10**9, every=10))
    while not isinstance(events.get(timeout=10), Metric):
        continue
    pid = cluster.workers()[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while True:
        event = events.get(timeout=max(0.01, deadline - time.monotonic()))
        if isinstance(event, WorkerState):
            break
    assert (event.worker, event.state) == (FIRST, "lost")


def test_workers_share_the_cores_and_hide_the_token(cluster: Cluster) -> None:
    for record in cluster.workers():
        process = psutil.Process(record.pid)
        share = max(1, (os.cpu_count() or 1) // 3)
        assert process.environ()["OPENBLAS_NUM_THREADS"] == os.environ.get("OPENBLAS_NUM_THREADS", str(share))
        token = process.environ()[TOKEN_VARIABLE]
        assert token not in " ".join(process.cmdline())
        assert token not in cluster.logs(record.task_name) + repr(cluster) + repr(cluster.workers())


def test_a_frozen_worker_is_lost_within_five_seconds(cluster: Cluster) -> None:
    """Pins `grpc.http2.ping_timeout_ms`, which is not in gRPC's public header."""
    doors = cluster.connect("frozen")
    _, receiver = pair(FIRST, SECOND, 1)
    doors[SECOND].register(receiver)
    pending = doors[SECOND].start(command(receiver))
    pid = cluster.workers()[1].pid
    assert pid is not None
    wait_for(lambda: cluster.workers()[1].running_steps == 1, "the step runs")
    os.kill(pid, signal.SIGSTOP)
    try:
        error = pending.exception(7)  # 5 s promised, 2 s for a busy machine
    finally:
        os.kill(pid, signal.SIGCONT)
    assert isinstance(error, WorkerLost)
    assert SECOND in str(error)


def test_a_dead_peer_fails_the_sender(cluster: Cluster) -> None:
    doors = cluster.connect("dead-peer")
    sender, _ = pair(FIRST, SECOND, 1)
    doors[FIRST].register(sender)
    pid = cluster.workers()[1].pid
    assert pid is not None
    process = psutil.Process(pid)
    os.kill(pid, signal.SIGKILL)
    # Until it has ended, what is sent to it counts as sent.
    process.wait(10)
    step = doors[FIRST].start(command(sender, {"x": np.ones(10, np.float32)}))
    error = step.exception(10)
    assert isinstance(error, WorkerLost)
    assert SECOND in str(error)


def test_scale_up_and_down(cluster: Cluster) -> None:
    before = cluster.id
    pids = {r.task_name: r.pid for r in cluster.workers()}
    assert [r.task_name for r in cluster.scale(3)][:3] == [FIRST, SECOND, "/job:worker/task:2"]
    assert cluster.id != before
    use_once(cluster, "after-scaling")
    assert "/job:worker/task:2" in cluster.connect("after-scaling")
    assert [r.task_name for r in cluster.scale(1)] == [FIRST, "/job:ps/task:0"]
    assert cluster.workers()[0].pid == pids[FIRST]
    wait_for(lambda: pids[SECOND] not in children(), "the second worker ends")
    with pytest.raises(Rejected, match="at least one"):
        cluster.scale(0)


def test_closing_twice_and_using_what_is_closed() -> None:
    cluster = nbflow_workers.local(workers=1)
    doors: dict[str, Transport] = cluster.connect("s")
    cluster.close()
    cluster.close()
    assert "closed" in repr(cluster)
    with pytest.raises(Rejected, match="closed"):
        cluster.connect("s")
    error = doors[FIRST].start(command(add_bundle(FIRST, (1,)))).exception(5)
    assert isinstance(error, WorkerLost)


def test_detached_workers_live_and_are_found_again(tmp_path: Path) -> None:
    first = nbflow_workers.local(workers=1, launcher=LocalLauncher(orphan_s=60))
    pid = first.workers()[0].pid
    assert pid is not None
    path = tmp_path / "cluster.json"
    try:
        first.save(path)
        assert path.stat().st_mode & 0o777 == 0o600
        first.detach()
        with nbflow_workers.attach(spec=path) as again:
            assert again.workers()[0].pid == pid
            use_once(again, "again")
        assert psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    finally:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)


def test_a_worker_that_cannot_start_says_why() -> None:
    before = children()

    class Nonsense(LocalLauncher):
        def start(self, asks: Sequence[Ask], *args: Any, **options: Any) -> list[Handle]:
            return super().start([*asks[:1], replace(asks[1], devices="abacus")], *args, **options)

    with pytest.raises(WorkerError, match="no device 'abacus'") as caught:
        nbflow_workers.local(workers=2, launcher=Nonsense())
    assert f"{SECOND} did not start" in str(caught.value)
    assert children() == before


def test_workers_end_with_their_launcher() -> None:
    """kill -9 of the notebook's process leaves no worker behind."""
    code = (
        "import nbflow_workers, sys, time\n"
        "from nbflow_workers.launchers.local import LocalLauncher\n"
        "c = nbflow_workers.local(workers=1, launcher=LocalLauncher(orphan_s=1))\n"
        "print(c.workers()[0].pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    notebook = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert notebook.stdout is not None
        pid = int(notebook.stdout.readline())
        worker = psutil.Process(pid)
        assert worker.is_running()
        notebook.kill()
        notebook.wait(10)
        wait_for(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE, "the orphan ends", 15)
    finally:
        notebook.kill()
        for pipe in (notebook.stdin, notebook.stdout):
            if pipe is not None:
                pipe.close()
        notebook.wait(10)


def test_progress_is_told() -> None:
    lines: list[str] = []
    with nbflow_workers.local(workers=1, progress=lines.append):
        pass
    assert lines[0] == f"starting {FIRST}"
    assert lines[1].startswith(f"{FIRST} is ready (pid ")


def test_who_uses_workers_has_a_say_before_they_are_sent_away(cluster: Cluster) -> None:
    """And hears when they are gone, or that they are not when another hook would not have it."""
    said: list[str] = []

    def before(tasks: Any) -> Any:
        said.append(f"before {' '.join(tasks)}: {len(cluster.devices())}")
        return lambda: said.append(f"after: {len(cluster.devices())}")

    def refuse(tasks: Any) -> Any:
        raise Rejected("not now")

    count = len(cluster.devices())
    workers = sum(w.job == "worker" for w in cluster.workers())
    remove = cluster.before_leaving(before)
    try:
        refused = cluster.before_leaving(refuse)
        with pytest.raises(Rejected, match="not now"):
            cluster.scale(workers - 1)
        refused()
        refused()  # twice is once
        cluster.scale(workers - 1)
        cluster.scale(workers)
    finally:
        remove()
    task = f"/job:worker/task:{workers - 1}"
    assert said == [
        f"before {task}: {count}",
        f"after: {count}",
        f"before {task}: {count}",
        f"after: {count - 1}",
    ]
