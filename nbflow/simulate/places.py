"""Where simulated tasks run: links, units that do one thing at a time, and places, a loop's part on a unit."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Mapping, Sequence

from nbflow.machines import Machine
from nbflow.simulate.model import Program

OP, SEND, PACE, TICK = "op", "send", "pace", "tick"


class Code:
    """A program as lists, shared by all that do the same."""

    __slots__ = ("followers", "kinds", "left", "needs", "optional", "quorums", "ready", "seconds", "waits")

    def __init__(self, program: Program) -> None:
        tasks = program.tasks
        self.kinds = [t.kind for t in tasks]
        self.seconds = [t.seconds for t in tasks]
        self.needs = [t.need for t in tasks]
        self.waits = [len(t.after) + bool(t.quorum) + (t.kind == "recv") for t in tasks]
        self.followers: list[list[int]] = [[] for _ in tasks]
        self.quorums: dict[int, list[int]] = {}  # task -> those that wait for it or for others instead
        for index, task in enumerate(tasks):
            for before in task.after:
                self.followers[before].append(index)
            for before in task.quorum:
                self.quorums.setdefault(before, []).append(index)
        self.ready = [i for i, n in enumerate(self.waits) if n == 0]
        # Nobody waits for what leads to a quorum only: late replicas may never come to it.
        self.optional = [False] * len(tasks)
        for index in reversed(range(len(tasks))):
            leads = self.followers[index]
            whole = bool(leads) and all(self.optional[n] for n in leads)
            self.optional[index] = self.kinds[index] != SEND and (index in self.quorums or whole)
        self.left = self.optional.count(False)


class Link:
    """A process's way out and in."""

    __slots__ = ("in_at", "in_s", "machine", "out_at", "out_s")

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.in_at = self.out_at = self.in_s = self.out_s = 0.0


class Unit:
    """A device, which does one thing at a time for the places on it: a task of each that has one, in turn."""

    __slots__ = ("busy", "busy_s", "host_s", "link", "name", "turns")

    def __init__(self, name: str, link: Link) -> None:
        self.name, self.link = name, link
        self.busy = False
        self.busy_s = self.host_s = 0.0
        self.turns: deque[Place] = deque()


class Part:
    """What a place does in the steps of one phase."""

    __slots__ = ("code", "program", "targets")

    def __init__(self, program: Program, code: Code) -> None:
        self.program, self.code = program, code
        self.targets: dict[int, tuple[Place, int]] = {}  # send -> (place, its recv)


class Place:
    """The part that a unit has in the steps of a loop, and where it is in it."""

    __slots__ = (
        *("arrived", "code", "entering", "factor", "in_turn", "left", "loop", "needs", "part", "parts"),
        *("queue", "ready", "replica", "running", "step", "unit", "waits"),
    )

    def __init__(self, unit: Unit, loop: int, replica: int) -> None:
        self.unit, self.loop, self.replica = unit, loop, replica
        self.parts: dict[int, Part] = {}  # by phase
        self.arrived: dict[int, list[int]] = {}  # step that has not begun here -> recvs that are there
        self.queue: deque[int] = deque()  # steps whose command is here
        self.step = -1
        self.running = self.entering = self.in_turn = False
        self.factor = 1.0
        self.waits: list[int] = []
        self.ready: list[int] = []
        self.needs: dict[int, int] = {}
        self.left = 0

    def enter(self, step: int, phase: int, factor: float) -> None:
        """Begins a step; its tasks can run when the place has taken the command (`entering`)."""
        self.step, self.factor, self.running, self.entering = step, factor, True, True
        self.part = self.parts[phase]
        self.code = self.part.code
        self.waits, self.ready = self.code.waits.copy(), self.code.ready.copy()
        self.needs, self.left = {}, self.code.left
        for recv in self.arrived.pop(step, ()):
            self.lower(recv)

    def lower(self, index: int) -> None:
        self.waits[index] -= 1
        if self.waits[index] == 0:
            heapq.heappush(self.ready, index)

    def complete(self, index: int) -> None:
        for follower in self.code.followers[index]:
            self.lower(follower)
        for follower in self.code.quorums.get(index, ()):
            left = self.needs.get(follower, self.code.needs[follower]) - 1
            self.needs[follower] = left
            if left == 0:
                self.lower(follower)
        self.left -= not self.code.optional[index]

    @property
    def has_work(self) -> bool:
        return self.running and (self.entering or bool(self.ready))


def places_of(programs: Sequence[Program], machines: Mapping[str, Machine]) -> tuple[list[Place], dict[str, Link]]:
    """A place for each loop and device of `programs`, and the links of their processes."""
    links = {name: Link(machines[name]) for name in dict.fromkeys(p.task_name for p in programs)}
    units: dict[str, Unit] = {}
    found: dict[tuple[int, str], Place] = {}
    codes: dict[int, Code] = {}
    for program in programs:
        if program.device not in units:
            units[program.device] = Unit(program.device, links[program.task_name])
        place = found.get((program.loop, program.device))
        if place is None:
            place = Place(units[program.device], program.loop, program.replica)
            found[program.loop, program.device] = place
        code = codes.get(id(program.tasks)) or codes.setdefault(id(program.tasks), Code(program))
        place.parts[program.phase] = Part(program, code)
    return list(found.values()), links
