"""A worker's life as the cluster sees it: tables and a clock that is handed in, no I/O and no threads.

                 answered        answered, busy  silent 2 s      silent 4.5 s    exited          left
    joining      ready           busy            joining         lost            lost            left
    ready        ready           busy            suspect         lost            lost            left
    busy         ready           busy            suspect         lost            lost            left
    suspect      ready           busy            suspect         lost            lost            left
    lost         ready           busy            lost            lost            lost            left
    left         left            left            left            left            left            left

A worker that answers with another incarnation is a new process: what the old one held is gone, so it is reported lost
first and then joins. A lost one that answers as the same incarnation was only cut off, and is ready again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

State = Literal["joining", "ready", "busy", "suspect", "lost", "left"]
Happening = Literal["answered", "answered busy", "silent", "silent long", "exited", "left"]

SUSPECT_AFTER_S = 2.0
# A lost worker is named within 5 s; the view refreshes twice a second.
LOST_AFTER_S = 4.5
# Starting takes longer than answering.
JOIN_TIMEOUT_S = 60.0

_FROM_ANY: dict[Happening, State] = {
    "answered": "ready",
    "answered busy": "busy",
    "silent": "suspect",
    "silent long": "lost",
    "exited": "lost",
    "left": "left",
}
_HAPPENINGS: tuple[Happening, ...] = ("answered", "answered busy", "silent", "silent long", "exited", "left")
TABLE: dict[State, dict[Happening, State]] = {
    "joining": {**_FROM_ANY, "silent": "joining"},
    "ready": dict(_FROM_ANY),
    "busy": dict(_FROM_ANY),
    "suspect": dict(_FROM_ANY),
    "lost": {**_FROM_ANY, "silent": "lost"},
    "left": dict.fromkeys(_HAPPENINGS, "left"),
}


@dataclass(frozen=True, slots=True)
class Change:
    """A worker went from one state to another."""

    worker: str
    old: State
    new: State
    detail: str = ""


@dataclass(slots=True)
class _Member:
    state: State
    heard_s: float
    incarnation: str


class Membership:
    """The states of all workers. Every method takes the time (`now_s`, any clock that grows) and returns changes."""

    def __init__(self) -> None:
        self._members: dict[str, _Member] = {}

    def join(self, worker: str, incarnation: str, now_s: float) -> list[Change]:
        """Adds a worker that is starting."""
        self._members[worker] = _Member("joining", now_s, incarnation)
        return [Change(worker, "left", "joining")]

    def answered(self, worker: str, incarnation: str, now_s: float, *, busy: bool = False) -> list[Change]:
        """A worker answered a question."""
        member = self._members.get(worker)
        if member is None or member.state == "left":
            return []
        changes: list[Change] = []
        if member.incarnation != incarnation:
            changes += self._step(worker, "exited", "it was started again; what it held is gone")
            member.incarnation = incarnation
            changes += [Change(worker, member.state, "joining")]
            member.state = "joining"
        member.heard_s = now_s
        return changes + self._step(worker, "answered busy" if busy else "answered", "")

    def tick(self, now_s: float) -> list[Change]:
        """Looks at who has been silent for how long."""
        changes: list[Change] = []
        for worker, member in self._members.items():
            silent = now_s - member.heard_s
            limit = JOIN_TIMEOUT_S if member.state == "joining" else LOST_AFTER_S
            if silent >= limit:
                changes += self._step(worker, "silent long", f"last heard {silent:.1f} s ago")
            elif silent >= SUSPECT_AFTER_S:
                changes += self._step(worker, "silent", f"last heard {silent:.1f} s ago")
        return changes

    def excuse(self, seconds: float) -> None:
        """Forgives everybody's silence for so long: it was us who could not listen (a held GIL, a suspended laptop)."""
        for member in self._members.values():
            member.heard_s += seconds

    def exited(self, worker: str, detail: str) -> list[Change]:
        """A worker's process ended."""
        return self._step(worker, "exited", detail)

    def leave(self, worker: str) -> list[Change]:
        """A worker was sent away."""
        changes = self._step(worker, "left", "")
        self._members.pop(worker, None)
        return changes

    def state(self, worker: str) -> State:
        member = self._members.get(worker)
        return "left" if member is None else member.state

    def alive(self, workers: Iterable[str]) -> list[str]:
        """Those of `workers` that steps may use."""
        return [w for w in workers if self.state(w) in ("ready", "busy", "suspect")]

    def _step(self, worker: str, happening: Happening, detail: str) -> list[Change]:
        member = self._members.get(worker)
        if member is None:
            return []
        old, member.state = member.state, TABLE[member.state][happening]
        return [] if member.state == old else [Change(worker, old, member.state, detail)]
