"""A cluster within this process whose tasks have data planes of their own: what is between two executors is real."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import uuid
from collections.abc import Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import Any

from nbflow.backends.numpy import NumpyBackend
from nbflow.device import DeviceSpec
from nbflow.errors import NbflowError
from nbflow.executor import Executor
from nbflow.transport import DeviceInfo, HostArray, Links, Moved, Transport, WorkerInfo
from nbflow_workers.dataplane.base import SessionKey
from nbflow_workers.dataplane.plane import PeerDataPlane

_numbers = itertools.count()


class Inbox:
    """Keeps what arrives, and what failed."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[tuple[str, str, Any]] = SimpleQueue()
        self.failed: SimpleQueue[tuple[str, NbflowError]] = SimpleQueue()

    def deliver(self, step_id: str, key: str, value: Any, moved: Moved | None = None) -> None:
        self.queue.put((step_id, key, value))

    def fail(self, step_id: str, error: NbflowError) -> None:
        self.failed.put((step_id, error))

    def empty(self, within_s: float = 0.3) -> bool:
        """Whether nothing arrives in this time; what does is taken out."""
        try:
            self.queue.get(timeout=within_s)
        except Empty:
            return True
        return False

    def clear(self) -> None:
        with contextlib.suppress(Empty):
            while True:
                self.queue.get_nowait()


class _LateInbox:
    """The inbox of an executor that is not made yet."""

    executor: Executor

    def deliver(self, step_id: str, key: str, value: HostArray, moved: Moved | None = None) -> None:
        self.executor.deliver(step_id, key, value, moved)

    def fail(self, step_id: str, error: Any) -> None:
        self.executor.fail(step_id, error)


class PlaneCluster:
    """Implements `Cluster`: `workers` tasks. `options` go to each PeerDataPlane."""

    def __init__(self, workers: int = 2, **options: Any) -> None:
        self._devices = tuple(DeviceInfo(DeviceSpec("worker", i, "cpu", 0)) for i in range(workers))
        self.planes = {d.spec.task_name: PeerDataPlane(**options) for d in self._devices}
        self._sessions: dict[str, dict[str, Executor]] = {}
        self._lock = threading.Lock()
        self.id = f"planes-{next(_numbers)}"

    def devices(self) -> Sequence[DeviceInfo]:
        return self._devices

    def links(self, *, measure: bool = True) -> Links:
        return {}

    def connect(self, session: str) -> Mapping[str, Transport]:
        with self._lock:
            if session not in self._sessions:
                self._sessions[session] = self._open(session)
            return dict(self._sessions[session])

    def _open(self, session: str) -> dict[str, Executor]:
        key, executors = SessionKey(session, os.urandom(32)), {}
        endpoints = {task: plane.endpoint for task, plane in self.planes.items()}
        for device in self._devices:
            task, inbox = device.spec.task_name, _LateInbox()
            outbox = self.planes[task].open(key, inbox, endpoints)
            info = WorkerInfo("worker", device.spec.task or 0, "in process", uuid.uuid4().hex, os.getpid(), (device,))
            inbox.executor = Executor(info, {"cpu": NumpyBackend()}, session, outbox, peers=executors.__getitem__)
            executors[task] = inbox.executor
        return executors

    def close(self) -> None:
        with self._lock:
            sessions, self._sessions = self._sessions, {}
        for session, executors in sessions.items():
            for executor in executors.values():
                executor.close()
            for plane in self.planes.values():
                plane.close_session(session)
        for plane in self.planes.values():
            plane.close()
