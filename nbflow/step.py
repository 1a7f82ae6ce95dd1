"""One step of one plan as a state machine: completions in, ready instructions and freed slots out. No threads, no I/O.

An instruction is *waiting* until all that it comes `after` is complete, then *ready*, then complete. The ready
instruction that stands earliest in the plan goes first, so that a plan without `recv` runs in its written order.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from nbflow.plan import Plan


@dataclass(frozen=True, slots=True)
class Wiring:
    """What every step of a plan starts from; computed once per plan."""

    waits_for: tuple[int, ...]
    followers: tuple[tuple[int, ...], ...]
    readers: tuple[int, ...]  # per slot: how many instructions read it; fetched slots are never freed
    inputs: tuple[tuple[int, ...], ...]

    @staticmethod
    def of(plan: Plan) -> Wiring:
        followers: list[list[int]] = [[] for _ in plan.instructions]
        readers = [0] * plan.slots
        for index, instruction in enumerate(plan.instructions):
            for before in instruction.after:
                followers[before].append(index)
            for slot in set(instruction.inputs):
                readers[slot] += 1
        for fetch in plan.fetches:
            readers[fetch.slot] += 1
        return Wiring(
            tuple(len(i.after) for i in plan.instructions),
            tuple(tuple(f) for f in followers),
            tuple(readers),
            tuple(tuple(set(i.inputs)) for i in plan.instructions),
        )


class StepMachine:
    """The state of one step."""

    __slots__ = ("_left", "_readers", "_ready", "_waits", "_wiring")

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring
        self._waits = list(wiring.waits_for)
        self._readers = list(wiring.readers)
        self._ready = [i for i, n in enumerate(self._waits) if n == 0]  # ascending, so already a heap
        self._left = len(self._waits)

    @property
    def is_done(self) -> bool:
        return self._left == 0

    def take(self) -> int | None:
        """The next ready instruction, None when all that is left waits for something."""
        return heapq.heappop(self._ready) if self._ready else None

    def complete(self, index: int) -> Sequence[int]:
        """Marks `index` complete; returns the slots that nobody will read any more."""
        self._left -= 1
        waits = self._waits
        for follower in self._wiring.followers[index]:
            waits[follower] -= 1
            if waits[follower] == 0:
                heapq.heappush(self._ready, follower)
        readers = self._readers
        freed = []
        for slot in self._wiring.inputs[index]:
            readers[slot] -= 1
            if readers[slot] == 0:
                freed.append(slot)
        return freed
