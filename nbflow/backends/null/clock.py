"""Time that passes without work: a device that is busy until, links that are busy until, deliveries that are due.

Nothing here spins. Times are seconds on the monotonic clock, which processes of one machine share.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable

from nbflow.machines import Machine


class Clock:
    """A device that runs what it is asked in order, beside the thread that asks. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free_at = 0.0

    def spend(self, seconds: float, *, start: float | None = None) -> float:
        """Asks for `seconds` of work, to begin not before `start` (None: now); returns when it will be done."""
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic() if start is None else start) + seconds
            return self._free_at

    def wait(self) -> None:
        """Returns when all that was asked is done."""
        while (left := self._free_at - time.monotonic()) > 0:
            time.sleep(left)


class Link:
    """One task's way to the others: out and in at once, one tensor after the other in each direction."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._out, self._in = Clock(), Clock()
        self._delayed = _Delayed()

    def leave(self, nbytes: int) -> float:
        """A tensor goes; when the last of it has left, and travelled."""
        return self._out.spend(self._machine.move_s(nbytes)) + self._machine.latency_s

    def arrive(self, nbytes: int, at: float, deliver: Callable[[], None]) -> None:
        """A tensor comes whose last byte would be here at `at`: calls `deliver` when it is.

        Both ends work at once: a way in that is free when the first byte comes is done when the last one does.
        """
        seconds = self._machine.move_s(nbytes)

        def begin() -> None:
            self._delayed.at(self._in.spend(seconds, start=at - seconds), deliver)

        # Tensors queue up here in the order in which they come in, not in that of the messages about them.
        self._delayed.at(at - seconds, begin if seconds else deliver)


class _Delayed:
    """Calls functions when they are due, from a thread that is there while something is."""

    def __init__(self) -> None:
        self._wake = threading.Condition()
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._running = False

    def at(self, due: float, call: Callable[[], None]) -> None:
        if due <= time.monotonic():
            call()
            return
        with self._wake:
            heapq.heappush(self._heap, (due, next(self._numbers), call))
            if self._running:
                self._wake.notify()
                return
            self._running = True
        threading.Thread(target=self._run, name="nbflow-null-link", daemon=True).start()

    def _run(self) -> None:
        while True:
            with self._wake:
                if not self._heap:
                    self._running = False
                    return
                left = self._heap[0][0] - time.monotonic()
                if left > 0:
                    self._wake.wait(left)
                    continue
                call = heapq.heappop(self._heap)[2]
            call()
