"""The events of simulated steps: devices run ready tasks, links carry tensors, a driver starts and ends steps.

A device does one thing at a time, the ready task that stands first in its program (as `nbflow.step` has it). A tensor
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
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nbflow.errors import GraphError
from nbflow.machines import Machine
from nbflow.simulate.cores import Cores
from nbflow.simulate.model import Model, Program

_OP, _SEND = "op", "send"


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
    """What happened. `ends`: when each step was over, in seconds. `busy_s`: device → seconds of ops; `host_s`: of
    sending and receiving. `out_s`, `in_s`: process → seconds for which its link was used."""

    ends: list[float] = field(default_factory=list)
    busy_s: dict[str, float] = field(default_factory=dict)
    host_s: dict[str, float] = field(default_factory=dict)
    out_s: dict[str, float] = field(default_factory=dict)
    in_s: dict[str, float] = field(default_factory=dict)

    @property
    def step_s(self) -> list[float]:
        """Seconds from the end of one step to the end of the next. The first one, which warms up, does not count
        unless it is the only one."""
        return [b - a for a, b in zip(self.ends, self.ends[1:], strict=False)] or list(self.ends)


class _Code:
    """A program as lists, shared by all devices that do the same."""

    __slots__ = ("followers", "kinds", "left", "optional", "quorums", "ready", "seconds", "waits")

    def __init__(self, program: Program) -> None:
        tasks = program.tasks
        self.kinds = [t.kind for t in tasks]
        self.seconds = [t.seconds for t in tasks]
        self.waits = [len(t.after) + (t.need > 0) + (t.kind == "recv") for t in tasks]
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
            self.optional[index] = self.kinds[index] != _SEND and (index in self.quorums or whole)
        self.left = self.optional.count(False)


class _Link:
    """A process's way out and in."""

    __slots__ = ("in_at", "in_s", "machine", "out_at", "out_s")

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.out_at = self.in_at = self.out_s = self.in_s = 0.0


class _Device:
    """One device, and where it is in its program."""

    __slots__ = (
        *("arrived", "busy", "busy_s", "code", "factor", "host_s", "left", "link", "needs"),
        *("program", "queue", "ready", "running", "step", "targets", "waits"),
    )

    def __init__(self, program: Program, code: _Code, link: _Link) -> None:
        self.program, self.code, self.link = program, code, link
        self.targets: dict[int, tuple[_Device, int]] = {}  # send -> (device, its recv)
        self.arrived: dict[int, list[int]] = {}  # step that has not begun here -> recvs that are there
        self.queue: deque[int] = deque()  # steps whose command is here
        self.step = -1
        self.running = self.busy = False
        self.busy_s = self.host_s = 0.0
        self.factor = 1.0
        self.waits: list[int] = []
        self.ready: list[int] = []
        self.needs: dict[int, int] = {}
        self.left = 0

    def enter(self, step: int, factor: float) -> None:
        self.step, self.factor, self.running = step, factor, True
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
            left = self.needs.get(follower, self.program.tasks[follower].need) - 1
            self.needs[follower] = left
            if left == 0:
                self.lower(follower)
        self.left -= not self.code.optional[index]


class Engine:
    """Runs a model. `machines`: process → the machine whose link it has. `cores`: of the one host that all devices and
    the driver share; None: each device and the driver has its own."""

    def __init__(
        self, model: Model, machines: Mapping[str, Machine], control: Control, cores: float | None = None
    ) -> None:
        self._control = control
        self._links = {name: _Link(machines[name]) for name in dict.fromkeys(p.task_name for p in model.programs)}
        codes: dict[int, _Code] = {}
        self._devices: list[_Device] = []
        for program in model.programs:
            code = codes.get(id(program.tasks)) or codes.setdefault(id(program.tasks), _Code(program))
            self._devices.append(_Device(program, code, self._links[program.task_name]))
        backed = any(code.quorums for code in codes.values())
        self._counted = [d for d in self._devices if not backed or d.program.replica < 0]
        self._connect()
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._pushed = 0
        self._cores = Cores(cores, self._push)
        self._orders: deque[tuple[float, Callable[..., None], tuple[Any, ...]]] = deque()  # what the driver has to do
        self._begun = 0
        self._open: list[int] = []
        self._factors: Sequence[Sequence[float]] = ()
        self._run = Run()

    def _connect(self) -> None:
        recvs = {
            device.program.key(t): (device, number)
            for device in self._devices
            for number, t in enumerate(device.program.tasks)
            if t.kind == "recv"
        }
        for device in self._devices:
            for number, task in enumerate(device.program.tasks):
                if task.kind == _SEND:
                    key = device.program.key(task)
                    if key not in recvs:
                        raise GraphError(f"nobody receives {key}, which {device.program.device} sends")
                    device.targets[number] = recvs[key]

    def run(self, steps: int, factors: Sequence[Sequence[float]] = ()) -> Run:
        """Once an engine. `factors[step][replica]`: how many times longer the ops of a replica take.
        Raises GraphError when the programs wait for each other."""
        self._factors = factors
        self._open = [len(self._counted)] * steps
        while self._begun < min(self._control.ahead, steps):
            self._begin(0.0)
        heap, run = self._heap, self._run
        while heap and len(run.ends) < steps:
            now, _, handle, given = heapq.heappop(heap)
            handle(now, *given)
        if len(run.ends) < steps:
            stuck = next(d for d in self._devices if d.running or d.queue)
            raise GraphError(f"the simulated programs wait for each other; {stuck.program.device} is not done")
        for device in self._devices:
            run.busy_s[device.program.device] = device.busy_s
            run.host_s[device.program.device] = device.host_s
        for name, link in self._links.items():
            run.out_s[name], run.in_s[name] = link.out_s, link.in_s
        return run

    def _push(self, at: float, handle: Callable[..., None], *given: Any) -> None:
        self._pushed += 1
        heapq.heappush(self._heap, (at, self._pushed, handle, given))

    # --- the driver --------------------------------------------------------------------------------------------------

    def _drive(self, now: float, seconds: float, handle: Callable[..., None], *given: Any) -> None:
        """Has the driver do something, after what it has to do already."""
        self._orders.append((seconds, handle, given))
        if len(self._orders) == 1:
            self._cores.start(now, seconds, self._driven)

    def _driven(self, now: float) -> None:
        _, handle, given = self._orders[0]
        handle(now, *given)
        self._orders.popleft()
        if self._orders:
            self._cores.start(now, self._orders[0][0], self._driven)

    def _begin(self, now: float) -> None:
        """Sends the commands of the next step."""
        self._begun += 1
        for number, device in enumerate(self._devices):
            extra = 0.0 if number else self._control.step_s
            self._drive(now, self._control.command_s + extra, self._commanded, device, self._begun - 1)

    def _commanded(self, now: float, device: _Device, step: int) -> None:
        self._push(now + self._control.latency_s, self._command, device, step)

    def _reply(self, now: float, step: int) -> None:
        """A device's word that its part of a step is over reaches the driver."""
        self._drive(now, self._control.reply_s, self._replied, step)

    def _replied(self, now: float, step: int) -> None:
        self._open[step] -= 1
        if self._open[step] == 0:
            self._run.ends.append(now)
            if self._begun < len(self._open):
                self._begin(now)

    # --- devices -----------------------------------------------------------------------------------------------------

    def _command(self, now: float, device: _Device, step: int) -> None:
        device.queue.append(step)
        if not device.running:
            self._enter(now, device)

    def _enter(self, now: float, device: _Device) -> None:
        step, replica = device.queue.popleft(), device.program.replica
        device.enter(step, self._factors[step][replica] if self._factors and replica >= 0 else 1.0)
        if self._control.task_s:
            device.busy = True
            self._cores.start(now, self._control.task_s, self._entered, device)
        else:
            self._work(now, device)

    def _entered(self, now: float, device: _Device) -> None:
        device.busy = False
        self._work(now, device)

    def _work(self, now: float, device: _Device) -> None:
        """Runs ready tasks until one takes time, or none is left."""
        code = device.code
        while device.ready:
            index = heapq.heappop(device.ready)
            seconds = code.seconds[index]
            if code.kinds[index] is _OP:
                seconds *= device.factor
                device.busy_s += seconds
            else:
                device.host_s += seconds
            if seconds:
                device.busy = True
                self._cores.start(now, seconds, self._finish, device, index)
                return
            self._complete(now, device, index)
            if not device.left:
                self._leave_step(now, device)
                return

    def _finish(self, now: float, device: _Device, index: int) -> None:
        device.busy = False
        self._complete(now, device, index)
        if device.left:
            self._work(now, device)
        else:
            self._leave_step(now, device)

    def _complete(self, now: float, device: _Device, index: int) -> None:
        if device.code.kinds[index] is _SEND:
            self._send(now, device, index)
        device.complete(index)

    def _leave_step(self, now: float, device: _Device) -> None:
        device.running = False
        if device in self._counted:
            self._push(now + self._control.latency_s, self._reply, device.step)
        if device.queue:
            self._enter(now, device)

    # --- links -------------------------------------------------------------------------------------------------------

    def _send(self, now: float, device: _Device, index: int) -> None:
        target, recv = device.targets[index]
        source, destination = device.link, target.link
        if source is destination:
            self._push(now, self._arrive, target, recv, device.step)
            return
        nbytes = device.program.tasks[index].nbytes
        seconds = source.machine.move_s(nbytes)
        source.out_at = max(source.out_at, now) + seconds
        source.out_s += seconds
        at = source.out_at + source.machine.latency_s
        inward = destination.machine.move_s(nbytes)
        if inward:
            # Tensors queue up at the receiver in the order in which their first bytes would come.
            self._push(max(now, at - inward), self._come, at, inward, target, recv, device.step)
        else:
            self._push(at, self._arrive, target, recv, device.step)

    def _come(self, now: float, at: float, seconds: float, target: _Device, recv: int, step: int) -> None:
        link = target.link
        link.in_at = max(link.in_at, at - seconds) + seconds
        link.in_s += seconds
        self._push(link.in_at, self._arrive, target, recv, step)

    def _arrive(self, now: float, device: _Device, recv: int, step: int) -> None:
        if step > device.step:
            device.arrived.setdefault(step, []).append(recv)
        elif step == device.step and device.running:
            device.lower(recv)
            if not device.busy:
                self._work(now, device)
        # Else the step is over here, and nobody waited for this.
