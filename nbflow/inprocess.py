"""Workers inside this process: the default cluster, and any number of tasks for tests and simulation."""

from __future__ import annotations

import itertools
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence

from nbflow.backends import cupy
from nbflow.backends.base import Backend
from nbflow.backends.null import NullBackend
from nbflow.backends.numpy import NumpyBackend
from nbflow.device import LOCAL, DeviceSpec
from nbflow.errors import Rejected, WorkerLost
from nbflow.executor import Executor
from nbflow.hardware import this_cpu
from nbflow.machines import parse_machine
from nbflow.runs import RunRecord, merge
from nbflow.transport import DeviceInfo, HostArray, Leaving, Links, Moved, Transport, WorkerInfo

_numbers = itertools.count()


class _Exchange:
    """The data plane within a process: tensors go from executor to executor, copied once. Nothing is ever under way,
    so there is nothing to hold back and nothing to free."""

    def __init__(self) -> None:
        self.executors: dict[str, Executor] = {}

    def send(
        self, task: str, step_id: str, key: str, value: HostArray, *, more: bool = False, error: float = 0.0
    ) -> None:
        executor = self.executors.get(task)
        if executor is None:
            raise WorkerLost(f"{task} is not there any more", worker=task)
        start = time.monotonic()
        copied = value.copy()
        executor.deliver(step_id, key, copied, Moved(value.nbytes, start, time.monotonic(), "memory", error))

    def flush(self) -> None: ...
    def waiting(self, step_id: str, is_waiting: bool) -> None: ...
    def abort(self, step_id: str, error: BaseException) -> None: ...
    def end(self, step_id: str) -> None: ...


class InProcessCluster:
    """`workers` tasks of job worker and `ps` tasks of job ps, each with one CPU device, all in this process.

    Without arguments: the single local task that `nf.run` uses when no cluster is set; it has the machine's GPUs too,
    where cupy can use them. `null`: the devices compute
    nothing and take the time of this machine (`nbflow.machines`).
    """

    def __init__(self, workers: int = 0, ps: int = 0, *, null: str | None = None) -> None:
        kind = "cpu" if null is None else "null"
        tasks = [DeviceSpec("worker", i, kind, 0) for i in range(workers)]
        tasks += [DeviceSpec("ps", i, kind, 0) for i in range(ps)]
        cpu = this_cpu()
        what = str(cpu) if null is None else f"computes nothing, as {null or 'in no time'}"
        flops = 0.0 if null is None else parse_machine(null).flops
        tasks = tasks or [LOCAL.merge(DeviceSpec(type=kind, index=0))]
        shared = ("this process", cpu.cores, cpu.threads) if null is None else ("", 0, 0)
        found = [DeviceInfo(d, what, 0, flops, *shared) for d in tasks]
        gpus = cupy.gpus() if tasks == [LOCAL] else ()
        found += [
            DeviceInfo(LOCAL.merge(DeviceSpec(type="gpu", index=g.index)), g.name, g.memory_bytes, g.flops)
            for g in gpus
        ]
        self._devices = tuple(found)
        self._null = null
        self._sessions: dict[str, dict[str, Executor]] = {}
        self._lock = threading.Lock()
        self.id = f"in-process-{next(_numbers)}"

    def devices(self) -> Sequence[DeviceInfo]:
        return self._devices

    def links(self, *, measure: bool = True) -> Links:
        """None: a tensor is copied where it lies."""
        return {}

    def connect(self, session: str) -> Mapping[str, Transport]:
        with self._lock:
            found = self._sessions.get(session)
            if found is None:
                found = self._sessions[session] = self._open(session)
            return dict(found)

    def join(self, session: str) -> Mapping[str, Transport]:
        with self._lock:
            if session not in self._sessions:
                raise Rejected(f"session {session} is not open here")
            return dict(self._sessions[session])

    def runs(self) -> list[RunRecord]:
        with self._lock:
            sessions = [(session, dict(executors)) for session, executors in self._sessions.items()]
        return merge(e for session, found in sessions for t, x in found.items() for e in x.runs.entries(session, t))

    def ended(self, task: str) -> str:
        return "" if any(d.spec.task_name == task for d in self._devices) else "there is no such task"

    def before_leaving(self, hook: Leaving) -> Callable[[], None]:
        """Nobody is ever sent away."""
        return lambda: None

    def _open(self, session: str) -> dict[str, Executor]:
        exchange = _Exchange()
        for task in dict.fromkeys(d.spec.task_name for d in self._devices):
            own = tuple(d for d in self._devices if d.spec.task_name == task)
            spec = own[0].spec
            incarnation = uuid.uuid4().hex
            info = WorkerInfo(
                spec.job or "", spec.task or 0, "in process", incarnation, os.getpid(), own, allow_python=True
            )
            null: dict[str, Backend] = {} if self._null is None else {"null": NullBackend(self._null)}
            backends: dict[str, Backend] = {"cpu": NumpyBackend(), **null}
            for device in own:
                if device.spec.type == "gpu":
                    backends[f"gpu:{device.spec.index}"] = cupy.CupyBackend(device.spec.index or 0)
            executor = Executor(info, backends, session, exchange, peers=exchange.executors.__getitem__)
            exchange.executors[info.task_name] = executor
        return exchange.executors

    def close(self) -> None:
        """Closes all sessions."""
        with self._lock:
            sessions, self._sessions = self._sessions, {}
        for executors in sessions.values():
            for executor in executors.values():
                executor.close()
