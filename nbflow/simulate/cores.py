"""Cores that everything on a host shares: jobs beside each other, all equally fast."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

# (when, what to call, with what)
Push = Callable[..., None]


class Cores:
    """Runs jobs of so many seconds of one core on `count` cores. Up to `count` jobs run at full speed; more have
    `count` / n of it each, as an operating system deals out its cores. None: as many cores as jobs.

    All jobs have done equally much since they were there together. So there is one clock of what a job has done by now,
    and a job ends when that clock shows what it showed at its start and the job's own seconds.
    """

    __slots__ = ("_at", "_count", "_done", "_jobs", "_push", "_started", "_version")

    def __init__(self, count: float | None, push: Push) -> None:
        self._count = count
        self._push = push
        self._jobs: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._done = self._at = 0.0
        self._started = self._version = 0

    def start(self, now: float, seconds: float, handle: Callable[..., None], *given: Any) -> None:
        """Calls `handle(when, *given)` when the job is done."""
        if self._count is None or not seconds:
            self._push(now + seconds, handle, *given)
            return
        self._advance(now)
        self._started += 1
        heapq.heappush(self._jobs, (self._done + seconds, self._started, handle, given))
        self._wait(now)

    def _rate(self) -> float:
        return min(1.0, (self._count or 1.0) / max(1, len(self._jobs)))

    def _advance(self, now: float) -> None:
        self._done += (now - self._at) * self._rate()
        self._at = now

    def _wait(self, now: float) -> None:
        """For the next end, unless another job starts before it."""
        self._version += 1
        if self._jobs:
            self._push(now + max(0.0, self._jobs[0][0] - self._done) / self._rate(), self._end, self._version)

    def _end(self, now: float, version: int) -> None:
        if version != self._version:
            return
        self._advance(now)
        end, _, handle, given = heapq.heappop(self._jobs)
        self._done = end
        self._wait(now)
        handle(now, *given)
