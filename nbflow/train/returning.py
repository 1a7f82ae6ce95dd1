"""Workers of a run that this process cannot reach: they may only be cut off, or frozen, and then the run goes on.

The loops are on the workers. A client that lost its way to them has missed what they said meanwhile, and no more: when
the way is there again it reads that from the workers' books, as `nf.train.attach` does. Whether a worker is gone is for
the cluster to know; one that is gone, or that has forgotten the run, fails it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from nbflow.errors import NbflowError, Rejected, WorkerLost
from nbflow.transport import Transport

# For so long a run waits for its workers.
RETURN_S = 60.0
# How often it looks whether they are there.
LOOK_S = 0.2


class Ended(Protocol):
    """What is asked of a cluster."""

    def ended(self, task: str) -> str: ...


class Way(Protocol):
    """How a run reaches its workers."""

    @property
    def transports(self) -> Mapping[str, Transport]: ...
    @property
    def cluster(self) -> Ended: ...


class Absent:
    """The workers that cannot be reached, and the wait for them. Safe from any thread."""

    def __init__(self, run: str, way: Way) -> None:
        self._run = run
        self._way = way
        self._lock = threading.Lock()
        self._missed: dict[str, WorkerLost] = {}
        self._count = 0
        self.found_gone = False  # a worker that is waited for no longer is not merely out of reach

    def miss(self, worker: str, error: WorkerLost) -> bool:
        """`worker` cannot be reached because of `error`; whether nobody waits for it, or another, yet."""
        with self._lock:
            is_first = not self._missed
            self._missed.setdefault(worker, error)
            self._count += 1
            return is_first

    def wait(self, take_up: Callable[[], None], over: threading.Event) -> NbflowError | None:
        """Waits until all can be reached and `take_up` has read what they said; why it did not come to that.

        None, too, when `over` is set meanwhile.
        """
        deadline = time.monotonic() + RETURN_S
        while not over.is_set():
            with self._lock:
                missed, count = dict(self._missed), self._count
            for worker, error in missed.items():
                ended = self._way.cluster.ended(worker)
                if ended:
                    self.found_gone = True
                    return error if ended in error.message else WorkerLost(f"{error.message}: {ended}", worker=worker)
            try:
                if self._reach(missed, take_up) and self._is_whole(count):
                    return None
            except Rejected as error:
                self.found_gone = True
                names = ", ".join(missed)
                return WorkerLost(f"{names} came back, and has forgotten the run: {error.message}", worker=names)
            if time.monotonic() > deadline:
                return self._give_up(missed)
            over.wait(LOOK_S)
        return None

    def _reach(self, missed: Mapping[str, WorkerLost], take_up: Callable[[], None]) -> bool:
        try:
            if not missed.keys() <= self._way.transports.keys():
                return False
            take_up()
        except WorkerLost:
            return False
        return True

    def _is_whole(self, count: int) -> bool:
        """Whether nobody was missed since `count`; then nobody is any more."""
        with self._lock:
            if self._count != count:
                return False
            self._missed.clear()
            return True

    def _give_up(self, missed: Mapping[str, WorkerLost]) -> WorkerLost:
        worker, error = next(iter(missed.items()))
        return WorkerLost(
            f"{', '.join(missed)} could not be reached for {RETURN_S:g} s ({error.message}). What runs there goes on: "
            f"nf.train.attach(cluster, {self._run!r}) takes it up, from here or elsewhere, once it can be reached",
            worker=worker,
        )
