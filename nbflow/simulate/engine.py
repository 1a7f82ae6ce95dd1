"""The events of simulated steps: devices run ready tasks, links carry tensors, a driver starts and ends steps.

A device does one thing at a time, the ready task that stands first in its program (as `nbflow.step` has it). Where
replicas drive steps of their own, each has a loop with a driver, and a device that has a part in several loops does a
task of each in turn. A tensor
holds the sender's way out and the receiver's way in for its bytes over their rates, in the order in which it comes; it
arrives `latency_s` after it left. A step's commands go out one after the other, and its ends come in one after the
other. Where everything runs on one host, all of this shares its cores (`cores`). Nothing here draws a random number:
the factors by which stragglers are slower come from outside.

With a quorum (backup workers) a step is over when the devices that are no replica's are done. A late replica finishes
what it does, its tensors use the links and are dropped, and it begins the next step late: Chen et al., "Revisiting
Distributed Synchronous SGD" (2016).
"""

from __future__ import annotations

import heapq
import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from nbflow.errors import GraphError
from nbflow.machines import Machine
from nbflow.simulate.cores import Cores
from nbflow.simulate.model import Model
from nbflow.simulate.places import OP, PACE, SEND, TICK, Place, Unit, places_of


@dataclass(frozen=True, slots=True)
class Control:
    """What a step's commands cost. `command_s`, `reply_s`: the driver's time for each task of a step. `latency_s`: a
    message's way. `ahead`: steps sent before the one that is waited for; with 1 a step begins when the last ended.
    `task_s`: a task's own time for a step, to take the command and to say that it is over. `step_s`: the driver's for
    each step, however many tasks it has."""

    command_s: float = 0.0
    reply_s: float = 0.0
    latency_s: float = 0.0
    ahead: int = 1
    task_s: float = 0.0
    step_s: float = 0.0


@dataclass(slots=True)
class Run:
    """What happened. `loops`: of each loop, when each of its steps was over, in seconds. `round`: so many steps make a
    round of different ones. `busy_s`: device → seconds of ops; `host_s`: of sending and receiving. `out_s`, `in_s`:
    process → seconds for which its link was used."""

    loops: list[list[float]]
    round: int = 1
    busy_s: dict[str, float] = field(default_factory=dict)
    host_s: dict[str, float] = field(default_factory=dict)
    out_s: dict[str, float] = field(default_factory=dict)
    in_s: dict[str, float] = field(default_factory=dict)

    @property
    def ends(self) -> list[float]:
        """Of the first loop."""
        return self.loops[0]

    @property
    def whole_s(self) -> float:
        """When the last step was over."""
        return max(ends[-1] for ends in self.loops if ends)

    @property
    def step_s(self) -> list[float]:
        """Seconds from the end of one step to the end of the next. The first one of a loop, which warms up, does not
        count unless it is the only one."""
        found = [b - a for ends in self.loops for a, b in pairwise(ends)]
        return found or [end for ends in self.loops for end in ends]

    @property
    def mean_s(self) -> float:
        """The mean time of a step: of rounds, without the first, and of loops by how many steps they make together."""
        rates = []
        for ends in self.loops:
            counted = (len(ends) - 1) // self.round * self.round
            if counted:
                rates.append(counted / (ends[-1] - ends[-1 - counted]))
        if not rates:
            return statistics.mean(self.step_s)
        return len(rates) / sum(rates)


class _Loop:
    """Steps that follow each other, and who drives them."""

    __slots__ = ("begun", "ends", "number", "open", "orders", "places", "ticks")

    def __init__(self, number: int, places: Mapping[int, list[Place]]) -> None:
        self.number, self.places = number, places  # by phase
        self.begun = self.ticks = 0
        self.open: dict[int, int] = {}  # step -> places that it waits for
        self.ends: list[float] = []
        self.orders: deque[tuple[float, Callable[..., None], tuple[Any, ...]]] = deque()  # what the driver has to do


class Engine:
    """Runs a model. `machines`: process → the machine whose link it has. `cores`: of the one host that all devices and
    the drivers share; None: each device and driver has its own."""

    def __init__(
        self, model: Model, machines: Mapping[str, Machine], control: Control, cores: float | None = None
    ) -> None:
        self._control, self._cycle = control, model.cycle
        self._places, self._links = places_of(model.programs, machines)
        backed = any(part.code.quorums for place in self._places for part in place.parts.values())
        self._counted = {p for p in self._places if not backed or p.replica < 0}
        self._loops: list[_Loop] = []
        for number in sorted({p.loop for p in self._places}):
            mine = [p for p in self._places if p.loop == number]
            by_phase = {phase: [p for p in mine if phase in p.parts] for phase in set(self._cycle)}
            self._loops.append(_Loop(len(self._loops), by_phase))
            for place in mine:
                place.loop = len(self._loops) - 1
        self._connect()
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._pushed = 0
        self._cores = Cores(cores, self._push)
        self._held: list[tuple[Place, int]] = []  # tasks that wait until slower loops have made more steps
        self._steps = 0
        self._factors: Sequence[Sequence[float]] = ()

    def _connect(self) -> None:
        parts = [(place, phase, part) for place in self._places for phase, part in place.parts.items()]
        recvs = {
            (place.loop, phase, part.program.key(t)): (place, number)
            for place, phase, part in parts
            for number, t in enumerate(part.program.tasks)
            if t.kind == "recv"
        }
        for place, phase, part in parts:
            for number, task in enumerate(part.program.tasks):
                if task.kind == SEND:
                    key = (place.loop, phase, part.program.key(task))
                    if key not in recvs:
                        raise GraphError(f"nobody receives {key[-1]}, which {place.unit.name} sends")
                    part.targets[number] = recvs[key]

    def run(self, steps: int, factors: Sequence[Sequence[float]] = ()) -> Run:
        """Once an engine, until the first of its loops has made `steps` steps. `factors[step][replica]`: how many times
        longer the ops of a replica take. Raises GraphError when the programs wait for each other."""
        self._factors, self._steps = factors, steps
        for loop in self._loops:
            while loop.begun < min(self._control.ahead, steps):
                self._begin(0.0, loop)
        heap = self._heap
        while heap and all(len(loop.ends) < steps for loop in self._loops):
            now, _, handle, given = heapq.heappop(heap)
            handle(now, *given)
        if all(len(loop.ends) < steps for loop in self._loops):
            stuck = next(p for p in self._places if p.running or p.queue)
            raise GraphError(f"the simulated programs wait for each other; {stuck.unit.name} is not done")
        run = Run([loop.ends for loop in self._loops], len(self._cycle))
        for unit in dict.fromkeys(p.unit for p in self._places):
            run.busy_s[unit.name], run.host_s[unit.name] = unit.busy_s, unit.host_s
        for name, link in self._links.items():
            run.out_s[name], run.in_s[name] = link.out_s, link.in_s
        return run

    def _push(self, at: float, handle: Callable[..., None], *given: Any) -> None:
        self._pushed += 1
        heapq.heappush(self._heap, (at, self._pushed, handle, given))

    def _phase(self, step: int) -> int:
        return self._cycle[step % len(self._cycle)]

    # --- drivers -----------------------------------------------------------------------------------------------------

    def _drive(self, now: float, loop: _Loop, seconds: float, handle: Callable[..., None], *given: Any) -> None:
        """Has the driver of `loop` do something, after what it has to do already."""
        loop.orders.append((seconds, handle, given))
        if len(loop.orders) == 1:
            self._cores.start(now, seconds, self._driven, loop)

    def _driven(self, now: float, loop: _Loop) -> None:
        _, handle, given = loop.orders[0]
        handle(now, *given)
        loop.orders.popleft()
        if loop.orders:
            self._cores.start(now, loop.orders[0][0], self._driven, loop)

    def _begin(self, now: float, loop: _Loop) -> None:
        """Sends the commands of the next step."""
        step, loop.begun = loop.begun, loop.begun + 1
        places = loop.places[self._phase(step)]
        loop.open[step] = sum(p in self._counted for p in places)
        for number, place in enumerate(places):
            extra = 0.0 if number else self._control.step_s
            self._drive(now, loop, self._control.command_s + extra, self._commanded, place, step)

    def _commanded(self, now: float, place: Place, step: int) -> None:
        self._push(now + self._control.latency_s, self._command, place, step)

    def _reply(self, now: float, loop: _Loop, step: int) -> None:
        """A place's word that its part of a step is over reaches the driver."""
        self._drive(now, loop, self._control.reply_s, self._replied, loop, step)

    def _replied(self, now: float, loop: _Loop, step: int) -> None:
        loop.open[step] -= 1
        while loop.open.get(len(loop.ends)) == 0:  # the oldest step is waited for, whatever others are over
            del loop.open[len(loop.ends)]
            loop.ends.append(now)
            if loop.begun < self._steps:
                self._begin(now, loop)

    # --- units -------------------------------------------------------------------------------------------------------

    def _command(self, now: float, place: Place, step: int) -> None:
        place.queue.append(step)
        if not place.running:
            self._enter(place)
            self._work(now, place.unit)

    def _enter(self, place: Place) -> None:
        step, replica = place.queue.popleft(), place.replica
        place.enter(step, self._phase(step), self._factors[step][replica] if self._factors and replica >= 0 else 1.0)
        self._take_turn(place)

    def _take_turn(self, place: Place, *, again: bool = False) -> None:
        """`again`: it goes on, because what it did took no time."""
        if not place.in_turn and place.has_work:
            place.in_turn = True
            (place.unit.turns.appendleft if again else place.unit.turns.append)(place)

    def _work(self, now: float, unit: Unit) -> None:
        """Has a unit that is free do what is ready until something takes time, or nothing is left."""
        while unit.turns and not unit.busy:
            place = unit.turns.popleft()
            place.in_turn = False
            if place.entering:
                place.entering = False
                if self._control.task_s:
                    unit.busy = True
                    self._cores.start(now, self._control.task_s, self._entered, place)
                elif not place.left:
                    self._leave_step(now, place)
                else:
                    self._take_turn(place)
                continue
            self._do(now, place, heapq.heappop(place.ready))

    def _entered(self, now: float, place: Place) -> None:
        place.unit.busy = False
        if place.left:
            self._take_turn(place)
        else:
            self._leave_step(now, place)
        self._work(now, place.unit)

    def _do(self, now: float, place: Place, index: int) -> None:
        """Begins a task; one that takes no time is done at once."""
        code, unit = place.code, place.unit
        kind, seconds = code.kinds[index], code.seconds[index]
        if kind == PACE and self._ahead(place) > code.needs[index]:
            self._held.append((place, index))
            self._take_turn(place, again=True)
            return
        seconds *= place.factor if kind == OP else 1.0
        if seconds:
            unit.busy = True
            self._cores.start(now, seconds, self._finish, place, index, seconds)
        else:
            self._complete(now, place, index, again=True)

    def _finish(self, now: float, place: Place, index: int, seconds: float) -> None:
        unit = place.unit
        unit.busy = False
        if place.code.kinds[index] == OP:
            unit.busy_s += seconds
        else:
            unit.host_s += seconds
        self._complete(now, place, index)
        self._work(now, unit)

    def _complete(self, now: float, place: Place, index: int, *, again: bool = False) -> None:
        kind = place.code.kinds[index]
        if kind == SEND:
            self._send(now, place, index)
        place.complete(index)
        if kind == TICK:
            self._tick(now, self._loops[place.loop])
        if place.left:
            self._take_turn(place, again=again)
        else:
            self._leave_step(now, place)

    def _leave_step(self, now: float, place: Place) -> None:
        place.running = False
        if place in self._counted:
            self._push(now + self._control.latency_s, self._reply, self._loops[place.loop], place.step)
        if place.queue:
            self._enter(place)

    def _ahead(self, place: Place) -> int:
        """How many steps the loop of a place has made more than the slowest."""
        return self._loops[place.loop].ticks - min(loop.ticks for loop in self._loops)

    def _tick(self, now: float, loop: _Loop) -> None:
        loop.ticks += 1
        go = [(p, i) for p, i in self._held if self._ahead(p) <= p.code.needs[i]]
        self._held = [held for held in self._held if held not in go]
        for place, index in go:
            heapq.heappush(place.ready, index)
            self._take_turn(place)
            self._push(now, self._work, place.unit)

    # --- links -------------------------------------------------------------------------------------------------------

    def _send(self, now: float, place: Place, index: int) -> None:
        target, recv = place.part.targets[index]
        source, destination = place.unit.link, target.unit.link
        if source is destination:
            self._push(now, self._arrive, target, recv, place.step)
            return
        nbytes = place.part.program.tasks[index].nbytes
        seconds = source.machine.move_s(nbytes)
        source.out_at = max(source.out_at, now) + seconds
        source.out_s += seconds
        at = source.out_at + source.machine.latency_s
        inward = destination.machine.move_s(nbytes)
        if inward:
            # Tensors queue up at the receiver in the order in which their first bytes would come.
            self._push(max(now, at - inward), self._come, at, inward, target, recv, place.step)
        else:
            self._push(at, self._arrive, target, recv, place.step)

    def _come(self, now: float, at: float, seconds: float, target: Place, recv: int, step: int) -> None:
        link = target.unit.link
        link.in_at = max(link.in_at, at - seconds) + seconds
        link.in_s += seconds
        self._push(link.in_at, self._arrive, target, recv, step)

    def _arrive(self, now: float, place: Place, recv: int, step: int) -> None:
        if step > place.step:
            place.arrived.setdefault(step, []).append(recv)
        elif step == place.step and place.running:
            place.lower(recv)
            self._take_turn(place)
            self._work(now, place.unit)
        # Else the step is over here, and nobody waited for this.
