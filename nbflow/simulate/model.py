"""What is simulated: one program a device, made from the real plans, with the time of each of its tasks."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from nbflow.device import DeviceSpec, parse_device
from nbflow.parallel.coordinating import NO_BOUND
from nbflow.plan import Instruction, Plan


class Times(Protocol):
    """What ops take, and how large tensors are: what a cost model says."""

    def run_s(self, node: str, device: DeviceSpec) -> float: ...
    def nbytes(self, node: str, output: int) -> float: ...


@dataclass(frozen=True, slots=True)
class Task:
    """One thing a device does.

    `kind`: op, send, recv, pace (waits until its loop has made at most `need` steps more than the slowest) or tick (its
    loop has made a step). `seconds`: how long it keeps the device; of a send or recv, what the host does for it.
    `after`: tasks that come first, by number. `key`: the same for a send and its recv. `quorum`: of these tasks `need`
    are enough (the first gradients of a step with backup workers).
    """

    kind: str
    node: str
    seconds: float
    after: tuple[int, ...]
    key: Hashable = None
    peer: str = ""
    nbytes: float = 0.0
    quorum: tuple[int, ...] = ()
    need: int = 0


@dataclass(frozen=True, slots=True)
class Program:
    """What one device does in a step, in the order in which it prefers to. `replica`: -1 for none. `copy`: it does what
    another one does, whose tasks it shares; its keys are those with this number. `loop`: whose steps these are, where
    replicas make steps of their own. `phase`: of which steps, where they differ (`Model.cycle`)."""

    device: str
    tasks: tuple[Task, ...]
    replica: int = -1
    copy: int | None = None
    loop: int = 0
    phase: int = 0

    def key(self, task: Task) -> Hashable:
        """The key of one of its tasks, among all programs."""
        return task.key if self.copy is None else (task.key, self.copy)

    @property
    def task_name(self) -> str:
        return parse_device(self.device).task_name


@dataclass(frozen=True, slots=True)
class Model:
    """The programs of the steps. `cycle`: the phase of each step, over and over."""

    programs: tuple[Program, ...]
    replicas: int
    cycle: tuple[int, ...] = (0,)


@dataclass(frozen=True, slots=True)
class Messages:
    """What a tensor costs the hosts: seconds to send it, and to take it; and bytes a second that the sender copies
    (0: none, as where a network card does it)."""

    send_s: float = 0.0
    take_s: float = 0.0
    copy_bytes_per_s: float = 0.0

    def seconds(self, kind: str, nbytes: float) -> float:
        """Of a `kind` of task, send or recv."""
        if kind == "recv":
            return self.take_s
        return self.send_s + (nbytes / self.copy_bytes_per_s if self.copy_bytes_per_s else 0.0)


def model_of(plans: Sequence[Plan], replicas: Sequence[str], times: Times, messages: Messages) -> Model:
    """The model of prepared plans."""
    numbers = {device: number for number, device in enumerate(replicas)}
    programs = []
    for plan in plans:
        device = parse_device(plan.device)
        tasks = tuple(_task(i, device, times, messages) for i in plan.instructions)
        programs.append(Program(plan.device, tasks, numbers.get(plan.device, -1)))
    return Model(tuple(programs), len(replicas))


def _task(ins: Instruction, device: DeviceSpec, times: Times, messages: Messages) -> Task:
    if ins.op == "coordinator_pace" and ins.attrs["staleness"] < NO_BOUND:
        bound = int(ins.attrs["staleness"])
        return Task("pace", ins.node, times.run_s(ins.node, device), ins.after, need=bound)
    if ins.op == "coordinator_tick":
        return Task("tick", ins.node, times.run_s(ins.node, device), ins.after)
    if ins.op not in ("send", "recv"):
        return Task("op", ins.node, times.run_s(ins.node, device) if ins.op != "copy" else 0.0, ins.after)
    key = str(ins.attrs["key"])
    index = int(key.rsplit(";", 1)[0].rsplit(":", 1)[1])
    nbytes = times.nbytes(ins.node, index) if index >= 0 else 0.0
    peer = str(ins.attrs["destination" if ins.op == "send" else "source"])
    return Task(ins.op, ins.node, messages.seconds(ins.op, nbytes), ins.after, key, peer, nbytes)


def fuse(model: Model) -> Model:
    """Every program `fused`; those that share their tasks still do."""
    made: dict[int, tuple[Task, ...]] = {}
    programs = []
    for program in model.programs:
        if id(program.tasks) not in made:
            made[id(program.tasks)] = fused(program).tasks
        programs.append(replace(program, tasks=made[id(program.tasks)]))
    return replace(model, programs=tuple(programs))


def with_quorum(model: Model, need: int) -> Model:
    """Whatever waits for something of every replica waits for the first `need` replicas of a step."""
    devices = {p.device: p.replica for p in model.programs if p.replica >= 0}
    changed = [p if p.replica >= 0 else _with_quorum(p, devices, need) for p in model.programs]
    return replace(model, programs=tuple(changed))


def _with_quorum(program: Program, devices: Mapping[str, int], need: int) -> Program:
    owners = _owners(program, devices)
    tasks = []
    for task, owner in zip(program.tasks, owners, strict=True):
        found = [n for n in task.after if owners[n] >= 0]
        if task.kind == "op" and owner < 0 and len(found) > need:
            rest = tuple(n for n in task.after if n not in set(found))
            task = replace(task, after=rest, quorum=tuple(found), need=need)  # noqa: PLW2901
        tasks.append(task)
    return replace(program, tasks=tuple(tasks))


def _owners(program: Program, devices: Mapping[str, int]) -> list[int]:
    """For each task the replica whose tensor it takes, or that of all that it needs; -1 for none."""
    owners: list[int] = []
    for task in program.tasks:
        if task.kind == "recv":
            owners.append(devices.get(task.peer, -1))
        else:
            found = {owners[n] for n in task.after}
            owners.append(found.pop() if task.kind == "op" and len(found) == 1 else -1)
    return owners


def fused(program: Program) -> Program:
    """The same program with ops in a row as one, where that changes nothing but how finely time is looked at: those
    of a replica that wait for the same tensors; elsewhere chains."""
    masks = _masks(program) if program.replica >= 0 else None
    number: list[int] = []  # old task -> new one
    made: list[Task] = []
    last = -1  # the op that the new task at the end of `made` ends with
    for index, task in enumerate(program.tasks):
        after = dict.fromkeys(number[n] for n in task.after)
        same = masks[index] == masks[last] if masks is not None and last >= 0 else last in task.after
        if task.kind == "op" and last >= 0 and same and not task.quorum:
            before = made[-1]
            after.pop(len(made) - 1, None)
            merged = tuple(dict.fromkeys([*before.after, *after]))
            made[-1] = replace(before, seconds=before.seconds + task.seconds, after=merged)
        else:
            made.append(replace(task, after=tuple(after), quorum=tuple(number[n] for n in task.quorum)))
        number.append(len(made) - 1)
        last = index if task.kind == "op" else -1
    return replace(program, tasks=tuple(made))


def _masks(program: Program) -> list[int]:
    """For each task the set of tensors, and of other loops, that it waits for, as bits."""
    masks: list[int] = []
    bit = 1
    for task in program.tasks:
        mask = 0
        for before in task.after:
            mask |= masks[before]
        if task.kind in ("recv", "pace"):
            mask |= bit
            bit <<= 1
        masks.append(mask)
    return masks
