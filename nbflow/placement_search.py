"""Which device each unit of a graph goes to, as a problem over numbers: no graphs, no names, nothing of this process.

A *unit* is what must share a device. The step is simulated: every device runs its nodes one after the other in the
order of the graph; a tensor goes once to each destination, and holds the way out of its task, and then the way into the
other, for its bytes over bandwidth, in the first gap that is long enough. It arrives a latency later. What is looked
for is the placement whose simulated step ends first.

1. Everything free on one device, for every device that it may be on.
2. The greedy simulated execution of Abadi et al., "TensorFlow: Large-Scale Machine Learning on Heterogeneous
   Distributed Systems" (2015), section 3.2.1: nodes in order, each where it would finish first.
3. The same, with what follows in view: where finishing plus the least that is left from there comes first (the
   optimistic cost table of Arabnejad and Barbosa, "List Scheduling Algorithm for Heterogeneous Systems by an Optimistic
   Cost Table", 2014).
4. From the best of these, moves of units and of small clusters of them for as long as they help, up to a budget that is
   counted in simulated nodes: the clock of the machine decides nothing, so the same problem gives the same placement.

docs/decisions/0008 says why greed alone is not enough.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

# How many nodes may be simulated in search of something better: about a tenth of a second.
BUDGET = 120_000
# Of two equally long steps, the one that moves less: a second of transfers counts as this much of a second.
TRANSFER_WEIGHT = 1e-4
# A move must gain this part of the step, or rounding would be chased.
GAIN = 1e-9
# Looking ahead costs a table of devices x devices an edge; beyond this many entries greed must do.
LOOK_AHEAD_ENTRIES = 1 << 23
# Nodes of a large problem.
LARGE = 2000
# With no more free units than this, two are moved at once where moving one does not help.
PAIRS = 16
# How many units move together at most.
CLUSTER = 32

Assignment = list[int]  # unit -> device


@dataclass(frozen=True, slots=True)
class Problem:
    """Everything by number.

    - `inputs`: node -> its (producer, bytes), each producer before it.
    - `unit_of`: node -> unit. `candidates`: unit -> devices where it may be.
    - `run_s`: device -> node -> seconds. `latency_s`, `byte_s`: device -> device -> seconds, seconds a byte.
    - `feed_s`: node whose value comes from the client -> device -> seconds until it is there.
    - `lazy`: units that give what is there before the step starts: they go where they are read.
    - `weight`: unit -> bytes that it holds all the time. `room`: device -> bytes.
    - `task_of`: device -> task. `task_s`: what each further task adds to a step.
    """

    inputs: Sequence[Sequence[tuple[int, float]]]
    unit_of: Sequence[int]
    candidates: Sequence[Sequence[int]]
    run_s: Sequence[Sequence[float]]
    latency_s: Sequence[Sequence[float]]
    byte_s: Sequence[Sequence[float]]
    feed_s: dict[int, Sequence[float]] = field(default_factory=dict)
    lazy: frozenset[int] = frozenset()
    weight: Sequence[float] = ()
    room: Sequence[float] = ()
    task_of: Sequence[int] = ()
    task_s: float = 0.0

    @property
    def devices(self) -> int:
        return len(self.run_s)


@dataclass(frozen=True, slots=True)
class Simulated:
    """One step: when each node is done, and what it comes to. `seconds` is what is compared: the step, what its tasks
    add, and a little for what is moved."""

    finish_s: Sequence[float]
    step_s: float
    seconds: float


def simulate(problem: Problem, at: Assignment, stop_s: float = math.inf, tails: Sequence[float] = ()) -> Simulated:
    """The step with unit u on device `at[u]`. Given up once it is certain that it takes `stop_s`, by `tails`: node ->
    the least that comes after it. Then `seconds` is infinite."""
    unit_of, inputs, run_s, feeds = problem.unit_of, problem.inputs, problem.run_s, problem.feed_s
    latency_s, byte_s = problem.latency_s, problem.byte_s
    free_s = [0.0] * problem.devices
    finish_s = [0.0] * len(unit_of)
    where = [at[u] for u in unit_of]
    moved: dict[tuple[int, int, float], float] = {}  # producer, device, bytes -> when it is there
    moving_s = 0.0
    task_of = problem.task_of
    ways: dict[tuple[int, bool], list[tuple[float, float]]] = {}  # task and direction -> when it is in use
    watch = bool(tails)
    for node, device in enumerate(where):
        start_s = free_s[device]
        for producer, nbytes in inputs[node]:
            ready_s = finish_s[producer]
            source = where[producer]
            if source != device:
                arrive_s = moved.get((producer, device, nbytes))
                if arrive_s is None:
                    move_s = nbytes * byte_s[source][device]
                    moving_s += move_s + latency_s[source][device]
                    arrive_s = ready_s + latency_s[source][device] + move_s
                    if move_s and task_of and task_of[source] != task_of[device]:
                        leave_s = _first_gap(ways.setdefault((task_of[source], True), []), ready_s, move_s)
                        come_s = leave_s + latency_s[source][device]
                        arrive_s = _first_gap(ways.setdefault((task_of[device], False), []), come_s, move_s) + move_s
                    moved[producer, device, nbytes] = arrive_s
                ready_s = arrive_s
            start_s = max(start_s, ready_s)
        if node in feeds:
            start_s = max(start_s, feeds[node][device])
        run = run_s[device][node]
        done_s = start_s + run
        finish_s[node] = done_s
        if run:  # what takes no time is no instruction, and holds nobody up
            free_s[device] = done_s
        if watch and done_s + tails[node] >= stop_s:
            return Simulated((), math.inf, math.inf)
    step_s = max(finish_s, default=0.0)
    tasks = len({problem.task_of[d] for d in set(where)}) if problem.task_of else 1
    extra_s = problem.task_s * (tasks - 1) + TRANSFER_WEIGHT * moving_s
    return Simulated(finish_s, step_s, step_s + extra_s)


def _first_gap(used: list[tuple[float, float]], ready_s: float, length_s: float) -> float:
    """When a way is free for `length_s`, from `ready_s` on; it is used then. `used`: (from, until), in order."""
    at = bisect.bisect_left(used, (ready_s, ready_s))
    if at and used[at - 1][1] > ready_s:
        ready_s = used[at - 1][1]
    while at < len(used) and used[at][0] < ready_s + length_s:
        ready_s = max(ready_s, used[at][1])
        at += 1
    used.insert(at, (ready_s, ready_s + length_s))
    return ready_s


def tails_of(problem: Problem) -> list[float]:
    """Node -> the least that must still run after it: the longest way to an end, each node where it is fastest."""
    fastest = np.min(np.asarray(problem.run_s), axis=0).tolist() if problem.devices else []
    tails = [0.0] * len(problem.unit_of)
    for node in range(len(tails) - 1, -1, -1):
        left = tails[node] + fastest[node]
        for producer, _ in problem.inputs[node]:
            tails[producer] = max(tails[producer], left)
    return tails


def places(problem: Problem) -> list[tuple[float, int, Assignment]]:
    """Everything free on one device, or as near to it as can be: (seconds, device, placement), the best first.

    Raises NoRoom."""
    found: dict[tuple[int, ...], tuple[float, int, Assignment]] = {}
    full: NoRoom | None = None
    for device in _worth_trying(problem):
        room = _Room(problem)
        try:
            at = [room.take(u, c, device) for u, c in enumerate(problem.candidates)]
        except NoRoom as error:
            full = error
            continue
        if tuple(at) not in found:
            found[tuple(at)] = (simulate(problem, at).seconds, device, at)
    if not found:
        raise full or NoRoom(0)
    return sorted(found.values())


def _worth_trying(problem: Problem) -> list[int]:
    """All devices; of a large problem those that hold something already, and the first of each kind beside them."""
    if len(problem.unit_of) * problem.devices <= BUDGET // 8:
        return list(range(problem.devices))
    kinds: dict[int, int] = {}
    for device, run_s in enumerate(problem.run_s):
        kinds.setdefault(id(run_s), device)
    return sorted({*kinds.values(), *(c[0] for c in problem.candidates if len(c) == 1)})


def search(problem: Problem, start: Assignment, budget: int = BUDGET) -> Assignment:
    """The best placement found, beginning with `start`."""
    tails = tails_of(problem)
    size = max(len(problem.unit_of), 1)
    starts = [start, *_greedy(problem)]
    scored = sorted((simulate(problem, at).seconds, n) for n, at in enumerate(starts))
    best: _Climb | None = None
    # Small problems can afford to climb from everywhere, large ones from the best only.
    climbs = len(starts) if budget >= 200 * size * size else 1
    for seconds, number in scored[:climbs]:
        climb = _Climb(problem, starts[number], seconds, tails, budget // climbs)
        climb.run()
        if best is None or climb.seconds < best.seconds * (1 - GAIN):
            best = climb
    return start if best is None else best.at


class NoRoom(Exception):  # not an error by itself: the placer says what it means
    """`unit` fits on none of its devices."""

    def __init__(self, unit: int) -> None:
        super().__init__(unit)
        self.unit = unit


class _Room:
    """What is held on each device so far."""

    def __init__(self, problem: Problem) -> None:
        self.weight = problem.weight
        self.left = list(problem.room) if problem.weight else []

    def fits(self, unit: int, device: int) -> bool:
        return not self.left or self.weight[unit] <= self.left[device]

    def fits_all(self, device: int) -> bool:
        return not self.left or self.left[device] >= 0

    def take(self, unit: int, candidates: Sequence[int], wanted: int) -> int:
        """Puts `unit` on `wanted` where that may be, else on the first that has room. Raises NoRoom."""
        order = (wanted, *candidates) if wanted in candidates else candidates
        for device in order:
            if self.fits(unit, device):
                self.put(unit, device)
                return device
        raise NoRoom(unit)

    def put(self, unit: int, device: int, sign: int = 1) -> None:
        if self.left:
            self.left[device] -= sign * self.weight[unit]


# --- greed -----------------------------------------------------------------------------------------------------------


def _greedy(problem: Problem) -> Iterator[Assignment]:
    links = (np.asarray(problem.latency_s), np.asarray(problem.byte_s))
    ahead_s = _look_ahead(problem, *links)
    # Looking ahead is better more often than not: large problems have time for one of the two.
    both = len(problem.unit_of) <= LARGE or ahead_s is None
    for left_s in (None, ahead_s) if both else (ahead_s,):
        try:
            yield _place_in_order(problem, left_s, *links)
        except NoRoom:
            continue  # greed filled a device that something must be on


def _place_in_order(
    problem: Problem, left_s: np.ndarray | None, latency_s: np.ndarray, byte_s: np.ndarray
) -> Assignment:
    """Nodes in order, each unit where its first node would finish first. `left_s`: node x device -> what is left from
    there at least, which is then counted in."""
    run_s = np.asarray(problem.run_s)
    free_s = np.zeros(problem.devices)
    finish_s = [0.0] * len(problem.unit_of)
    room = _Room(problem)
    at = [-1] * len(problem.candidates)
    for unit, devices in enumerate(problem.candidates):
        if len(devices) == 1:
            at[unit] = room.take(unit, devices, devices[0])
    for node, unit in enumerate(problem.unit_of):
        if at[unit] < 0 and unit in problem.lazy:
            continue  # when it is read
        start_s = free_s.copy()
        for producer, nbytes in problem.inputs[node]:
            source = at[problem.unit_of[producer]]
            if source >= 0:
                arrive_s = latency_s[source] + (nbytes * byte_s[source] + finish_s[producer])
                np.maximum(start_s, arrive_s, out=start_s)
        if node in problem.feed_s:
            np.maximum(start_s, problem.feed_s[node], out=start_s)
        done_s = start_s + run_s[:, node]
        if at[unit] < 0:
            wanted = done_s if left_s is None else done_s + left_s[node]
            order = sorted(problem.candidates[unit], key=wanted.tolist().__getitem__)
            at[unit] = room.take(unit, order, order[0])
        device = at[unit]
        finish_s[node] = float(done_s[device])
        if run_s[device, node]:
            free_s[device] = done_s[device]
        for producer, _ in problem.inputs[node]:
            lazy = problem.unit_of[producer]
            if at[lazy] < 0:
                at[lazy] = room.take(lazy, problem.candidates[lazy], device)
    return [room.take(u, problem.candidates[u], problem.candidates[u][0]) if d < 0 else d for u, d in enumerate(at)]


def _look_ahead(problem: Problem, latency_s: np.ndarray, byte_s: np.ndarray) -> np.ndarray | None:
    """Node x device -> the least that is left when the node is done there: each node that follows where it suits it
    best, with what moving costs. None where that would take too long."""
    edges = sum(len(i) for i in problem.inputs)
    if edges * problem.devices**2 > LOOK_AHEAD_ENTRIES:
        return None
    run_s = np.asarray(problem.run_s)
    left_s = np.zeros((len(problem.unit_of), problem.devices))
    allowed = [np.asarray(c) for c in problem.candidates]
    for node in range(len(problem.unit_of) - 1, -1, -1):
        devices = allowed[problem.unit_of[node]]
        from_here = left_s[node, devices] + run_s[devices, node]
        for producer, nbytes in problem.inputs[node]:
            moving = latency_s[:, devices] + nbytes * byte_s[:, devices]
            np.maximum(left_s[producer], (moving + from_here).min(axis=1), out=left_s[producer])
    return left_s


# --- moves -----------------------------------------------------------------------------------------------------------


class _Climb:
    """Takes every move that makes the step shorter, until none does or the budget is spent."""

    def __init__(
        self, problem: Problem, start: Assignment, seconds: float, tails: Sequence[float], budget: int
    ) -> None:
        self.problem = problem
        self.at = list(start)
        self.seconds = seconds
        self.tails = tails
        self.tries = budget // max(len(problem.unit_of), 1)
        self.free = [u for u, c in enumerate(problem.candidates) if len(c) > 1]
        self.before, self.after = _neighbours(problem)
        self.room = _Room(problem)
        for unit, device in enumerate(self.at):
            self.room.put(unit, device)

    def run(self) -> None:
        better = True
        while better and self.tries > 0:
            better = any([self.try_unit(unit) for unit in self.free])  # noqa: C419  # all of them are tried
            if not better and len(self.free) <= PAIRS:
                better = any(self.try_pair(u, v) for u, v in itertools.combinations(self.free, 2))

    def try_unit(self, unit: int) -> bool:
        """Moves `unit`, alone or with some of its neighbours, wherever that helps."""
        better = False
        for cluster in self.clusters(unit) if self.tries > 0 else ():
            for device in self.problem.candidates[unit]:
                better = (device != self.at[unit] and self.move(cluster, [device] * len(cluster))) or better
        return better

    def try_pair(self, u: int, v: int) -> bool:
        ways = itertools.product(self.problem.candidates[u], self.problem.candidates[v])
        return any(self.move((u, v), way) for way in ways if way[0] != self.at[u] and way[1] != self.at[v])

    def move(self, units: Sequence[int], devices: Sequence[int]) -> bool:
        """Makes the move if it may be made, and helps."""
        if self.tries <= 0 or any(d not in self.problem.candidates[u] for u, d in zip(units, devices, strict=True)):
            return False
        old = [self.at[u] for u in units]
        self.put(units, devices)
        if all(self.room.fits_all(d) for d in devices):
            self.tries -= 1
            found = simulate(self.problem, self.at, self.seconds, self.tails)
            if found.seconds < self.seconds * (1 - GAIN):
                self.seconds = found.seconds
                return True
        self.put(units, old)
        return False

    def put(self, units: Sequence[int], devices: Sequence[int]) -> None:
        for unit, device in zip(units, devices, strict=True):
            self.room.put(unit, self.at[unit], -1)
            self.room.put(unit, device)
            self.at[unit] = device

    def clusters(self, unit: int) -> Iterator[list[int]]:
        """What may move together with `unit`: nothing, what it reads, what reads it, both, and all that it leads to or
        comes from. A single op of a chain rarely moves with profit: its tensors would cross twice."""
        here = self.at[unit]

        def moves(other: int) -> bool:
            return self.at[other] == here and len(self.problem.candidates[other]) > 1

        reads = [u for u in self.before[unit] if moves(u)]
        readers = [u for u in self.after[unit] if moves(u)]
        ways = (_reach(unit, self.after, moves), _reach(unit, self.before, moves))
        seen: set[tuple[int, ...]] = set()
        for others in ((), reads, readers, (*reads, *readers), *ways):
            cluster = tuple(dict.fromkeys((unit, *others)))
            if cluster not in seen:
                seen.add(cluster)
                yield list(cluster)


def _neighbours(problem: Problem) -> tuple[list[list[int]], list[list[int]]]:
    """Unit -> the units that it reads from, and that read from it."""
    before: list[dict[int, None]] = [{} for _ in problem.candidates]
    after: list[dict[int, None]] = [{} for _ in problem.candidates]
    for node, unit in enumerate(problem.unit_of):
        for producer, _ in problem.inputs[node]:
            other = problem.unit_of[producer]
            if other != unit:
                before[unit][other] = None
                after[other][unit] = None
    return [list(b) for b in before], [list(a) for a in after]


def _reach(unit: int, ways: Sequence[Sequence[int]], moves: Callable[[int], bool]) -> list[int]:
    """The units that `unit` leads to, as far as they move; the nearest `CLUSTER`."""
    found: dict[int, None] = {}
    todo = [unit]
    while todo and len(found) < CLUSTER:
        for other in ways[todo.pop()]:
            if other not in found and moves(other):
                found[other] = None
                todo.append(other)
    return list(found)
