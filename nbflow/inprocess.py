"""Workers inside this process: the default cluster, and any number of tasks for tests and simulation."""

from __future__ import annotations

import itertools
import os
import threading
import uuid
from collections.abc import Mapping, Sequence

from nbflow.backends.base import Backend
from nbflow.backends.numpy import NumpyBackend
from nbflow.device import LOCAL, DeviceSpec
from nbflow.errors import WorkerLost
from nbflow.executor import Executor
from nbflow.transport import DeviceInfo, HostArray, Transport, WorkerInfo

_numbers = itertools.count()


class _Exchange:
    """The data plane within a process: tensors go from executor to executor, copied once."""

    def __init__(self) -> None:
        self.executors: dict[str, Executor] = {}

    def send(self, task: str, step_id: str, key: str, value: HostArray) -> None:
        executor = self.executors.get(task)
        if executor is None:
            raise WorkerLost(f"{task} is not there any more", worker=task)
        executor.deliver(step_id, key, value.copy())


class InProcessCluster:
    """`workers` tasks of job worker and `ps` tasks of job ps, each with one CPU device, all in this process.

    Without arguments: the single local task that `nf.run` uses when no cluster is set.
    """

    def __init__(self, workers: int = 0, ps: int = 0) -> None:
        tasks = [DeviceSpec("worker", i, "cpu", 0) for i in range(workers)]
        tasks += [DeviceSpec("ps", i, "cpu", 0) for i in range(ps)]
        self._devices = tuple(DeviceInfo(d, "CPU of this process") for d in tasks or [LOCAL])
        self._backends: dict[str, Backend] = {"cpu": NumpyBackend()}
        self._sessions: dict[str, dict[str, Executor]] = {}
        self._lock = threading.Lock()
        self.id = f"in-process-{next(_numbers)}"

    def devices(self) -> Sequence[DeviceInfo]:
        return self._devices

    def connect(self, session: str) -> Mapping[str, Transport]:
        with self._lock:
            found = self._sessions.get(session)
            if found is None:
                found = self._sessions[session] = self._open(session)
            return dict(found)

    def _open(self, session: str) -> dict[str, Executor]:
        exchange = _Exchange()
        for device in self._devices:
            spec = device.spec
            incarnation = uuid.uuid4().hex
            info = WorkerInfo(
                spec.job or "", spec.task or 0, "in process", incarnation, os.getpid(), (device,), allow_python=True
            )
            executor = Executor(info, self._backends, session, exchange, peers=exchange.executors.__getitem__)
            exchange.executors[info.task_name] = executor
        return exchange.executors

    def close(self) -> None:
        """Closes all sessions."""
        with self._lock:
            sessions, self._sessions = self._sessions, {}
        for executors in sessions.values():
            for executor in executors.values():
                executor.close()
