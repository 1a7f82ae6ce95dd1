"""Loops and branches as they run: what `program` calls for an instruction with bodies.

A body is a program of its own. Each run of it has a *frame*: the numbers of the iterations around it, outermost first.
Frames keep apart what iterations send each other, and what they draw. Where a body spans devices, the home tells the
remotes before each iteration whether there is one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import numpy as np

from nbflow.backends.base import Backend
from nbflow.device import parse_device
from nbflow.errors import DeadlineExceeded, RunError
from nbflow.plan import Instruction, Plan
from nbflow.rendezvous import Arrival, Rendezvous
from nbflow.spec import format_shape

Frame = tuple[int, ...]
_YES, _NO = np.ones((), np.bool_), np.zeros((), np.bool_)


class Token(Protocol):
    """What of a step's token is used here."""

    step_id: str
    deadline: float

    def check(self) -> None: ...


class Run(Protocol):
    """What of a run of a program is used here."""

    slots: list[Any]
    frame: Frame

    @property
    def token(self) -> Any: ...
    @property
    def rendezvous(self) -> Rendezvous: ...
    @property
    def send(self) -> Callable[..., Any]: ...


class Callee(Protocol):
    """A bound body. `open` once, `call` as often as needed, `close`."""

    plan: Plan

    def open(self, parent: Any) -> Any: ...
    def call(self, run: Any, values: Sequence[Any], frame: Frame) -> list[Any]: ...
    def close(self, run: Any) -> None: ...


def suffix(frame: Frame) -> str:
    """What stands behind the keys of tensors that are sent within a frame."""
    return f"@{'.'.join(map(str, frame))}" if frame else ""


def bind(instruction: Instruction, bodies: Sequence[Callee], backend: Backend) -> Callable[[Any], None]:
    """A runner for a `loop` or `cond` instruction, on its home or on a remote."""
    attrs = instruction.attrs
    if instruction.op == "cond":
        then, otherwise = bodies
        return (_RemoteCond if attrs["home"] else _Cond)(instruction, then, otherwise).run
    test, body = (bodies[0] if attrs["tested"] else None), bodies[-1]
    return (_RemoteLoop(instruction, test, body) if attrs["home"] else _Loop(instruction, test, body, backend)).run


class _Control:
    """What all have in common: inputs by position, and the word from the home to the remotes."""

    def __init__(self, instruction: Instruction) -> None:
        attrs = instruction.attrs
        self.node = instruction.node
        self.slots = tuple(zip(attrs["given"], instruction.inputs, strict=True))
        self.inputs = int(attrs["inputs"])
        self.outputs = instruction.outputs
        self.key = str(attrs["key"])
        self.remotes = tuple((d, parse_device(d).task_name) for d in attrs["remotes"])

    def values(self, run: Run) -> list[Any]:
        """The inputs of the node; None where this device was given none."""
        values: list[Any] = [None] * self.inputs
        for position, slot in self.slots:
            values[position] = run.slots[slot]
        return values

    def tell(self, run: Run, frame: Frame, word: np.ndarray[Any, Any]) -> None:
        for device, task in self.remotes:
            run.send(run.token.step_id, f"{self.key}>{device}{suffix(frame)}", task, word)


class _Remote(_Control):
    def __init__(self, instruction: Instruction, device: str) -> None:
        super().__init__(instruction)
        self.device = device
        self.home = str(instruction.attrs["home"])

    def hear(self, run: Run, frame: Frame) -> bool:
        """What the home says. Raises what cancelled the step, or DeadlineExceeded."""
        queue: SimpleQueue[Arrival] = SimpleQueue()
        run.rendezvous.subscribe(run.token.step_id, (f"{self.key}>{self.device}{suffix(frame)}",), queue)
        run.rendezvous.waiting(run.token.step_id, True)
        try:
            key, value, _ = queue.get(timeout=max(run.token.deadline - time.monotonic(), 0.001))
        except Empty:
            raise DeadlineExceeded(
                f"{self.device} waited for the next iteration of {self.node} on {self.home} until the step's deadline",
                device=self.device,
            ) from None
        finally:
            run.rendezvous.waiting(run.token.step_id, False)
        if key == "":
            raise value
        return bool(value)


# --- branches --------------------------------------------------------------------------------------------------------


class _Cond(_Control):
    def __init__(self, instruction: Instruction, then: Callee, otherwise: Callee) -> None:
        super().__init__(instruction)
        self.branches = {True: (then, _copied(then.plan)), False: (otherwise, _copied(otherwise.plan))}

    def run(self, run: Run) -> None:
        values = self.values(run)
        decision = bool(values[0])
        if self.remotes:
            self.tell(run, run.frame, _YES if decision else _NO)
        branch, copied = self.branches[decision]
        inner = branch.open(run)
        found = branch.call(inner, values[1:], run.frame)
        branch.close(inner)
        for slot, value, copy in zip(self.outputs, found, copied, strict=True):
            run.slots[slot] = value.copy() if copy else value


class _RemoteCond(_Remote):
    def __init__(self, instruction: Instruction, then: Callee, otherwise: Callee) -> None:
        super().__init__(instruction, then.plan.device)
        self.branches = {True: then, False: otherwise}

    def run(self, run: Run) -> None:
        branch = self.branches[self.hear(run, run.frame)]
        inner = branch.open(run)
        branch.call(inner, self.values(run)[1:], run.frame)
        branch.close(inner)


def _copied(plan: Plan) -> tuple[bool, ...]:
    """For each output: whether it may share memory with an input, or with state."""
    flags = {f.name: f.copy for f in plan.fetches}
    return tuple(flags[str(n)] for n in range(len(flags)))


# --- loops -----------------------------------------------------------------------------------------------------------


class _Loop(_Control):
    def __init__(self, instruction: Instruction, test: Callee | None, body: Callee, backend: Backend) -> None:
        super().__init__(instruction)
        attrs = instruction.attrs
        self.test, self.body, self.backend = test, body, backend
        self.carried, self.scanned = int(attrs["carried"]), int(attrs["scanned"])
        self.limited, self.reverse = bool(attrs["limited"]), bool(attrs["reverse"])
        self.rows = tuple(zip(attrs["stacked"], attrs["padded"], strict=True))
        self.copied = _copied(body.plan)

    def run(self, run: Run) -> None:
        values = self.values(run)
        first = 1 if self.limited else 0
        rows = values[first + self.carried : first + self.carried + self.scanned]
        captured = values[first + self.carried + self.scanned :]
        times = self.times(rows, values[0] if self.limited else None)
        last, count, stacks = self.iterate(run, values[first : first + self.carried], rows, captured, times)
        for index, value in enumerate(last):
            run.slots[self.outputs[index]] = value.copy() if count == 0 or self.copied[index] else value
        run.slots[self.outputs[self.carried]] = self.backend.asarray(np.array(count, np.int64))
        given = [value for stack in stacks for value in stack.whole()]
        for slot, value in zip(self.outputs[self.carried + 1 :], given, strict=True):
            run.slots[slot] = value

    def times(self, rows: Sequence[Any], limit: Any) -> int | None:
        """How often the loop runs at most; None when only its condition ends it."""
        lengths = {len(r) for r in rows}
        if len(lengths) > 1:
            shapes = " and ".join(format_shape(tuple(r.shape)) for r in rows)
            raise RunError(f"a loop goes over inputs of one length, these differ: {shapes}")
        if limit is not None:
            lengths.add(max(int(limit), 0))
        return min(lengths) if lengths else None

    def iterate(
        self, run: Run, carried: Sequence[Any], rows: Sequence[Any], captured: Sequence[Any], times: int | None
    ) -> tuple[Sequence[Any], int, Sequence[_Stack]]:
        body, test, token = self.body, self.test, run.token
        inner = body.open(run)
        tester = None if test is None else test.open(run)
        stacks = [
            _Stack(self.backend, spec, padded, times if test is None else None, self.reverse, copy)
            for (spec, padded), copy in zip(self.rows, self.copied[self.carried :], strict=True)
        ]
        count, n = 0, self.carried
        while True:
            frame = (*run.frame, count)
            going = test is None or bool(test.call(tester, (*carried, *captured), frame)[0])
            going = going and (times is None or count < times)
            if self.remotes:
                self.tell(run, frame, _YES if going else _NO)
            if not going:
                break
            token.check()
            if rows:
                row = (times or 0) - 1 - count if self.reverse else count
                found = body.call(inner, (*carried, *[r[row] for r in rows], *captured), frame)
            else:
                found = body.call(inner, (*carried, *captured), frame)
            carried = found[:n]
            for stack, value in zip(stacks, found[n:], strict=True):
                stack.add(value)
            count += 1
        body.close(inner)
        if test is not None:
            test.close(tester)
        return carried, count, stacks


class _Stack:
    """The rows that iterations give, as one array. `times`: how many there will be, None when unknown. `padded`: they
    may differ in shape."""

    __slots__ = ("backend", "copy", "count", "into", "kept", "padded", "reverse", "spec", "times")

    def __init__(self, backend: Backend, spec: Any, padded: bool, times: int | None, reverse: bool, copy: bool) -> None:
        self.backend, self.spec, self.padded, self.reverse, self.copy = backend, spec, padded, reverse, copy
        self.times = None if padded else times
        self.into: Any = None
        self.kept: list[Any] = []
        self.count = 0

    def add(self, value: Any) -> None:
        if self.times is None:
            self.kept.append(value.copy() if self.copy else value)
            return
        if self.into is None:
            self.into = self.backend.empty((self.times, *value.shape), value.dtype)
        if self.into.shape[1:] != value.shape:
            raise _ragged(self.into.shape[1:], value.shape)
        self.into[self.times - 1 - self.count if self.reverse else self.count] = value
        self.count += 1

    def whole(self) -> tuple[Any, ...]:
        """The stacked rows; and their sizes, if they may differ."""
        if self.times is None and self.kept:
            self._fill()
        if self.into is None:
            shape, dtype = self.spec
            self.into = self.backend.empty((0, *shape), dtype)
        if not self.padded:
            return (self.into,)
        sizes = np.array([v.shape for v in self.kept], np.int64).reshape(len(self.kept), self.into.ndim - 1)
        return self.into, self.backend.asarray(sizes[::-1].copy() if self.reverse else sizes)

    def _fill(self) -> None:
        shapes = {v.shape for v in self.kept}
        self.times = len(self.kept)
        if len(shapes) == 1 or not self.padded:
            for value in self.kept:
                self.add(value)
            return
        largest = tuple(max(sizes) for sizes in zip(*shapes, strict=True))
        self.into = self.backend.empty((self.times, *largest), self.kept[0].dtype)
        self.into[...] = 0
        for number, value in enumerate(self.kept):
            row = self.times - 1 - number if self.reverse else number
            self.into[(row, *(slice(n) for n in value.shape))] = value


def _ragged(one: tuple[int, ...], other: tuple[int, ...]) -> RunError:
    return RunError(
        f"iterations of a loop give rows of different shapes, {format_shape(one)} and {format_shape(other)}, which "
        "cannot be stacked; pad them to one shape in the body"
    )


class _RemoteLoop(_Remote):
    def __init__(self, instruction: Instruction, test: Callee | None, body: Callee) -> None:
        super().__init__(instruction, body.plan.device)
        self.test, self.body = test, body
        self.own = int(instruction.attrs["carried"]) + int(instruction.attrs["scanned"])
        self.first = 1 if instruction.attrs["limited"] else 0

    def run(self, run: Run) -> None:
        arguments = self.values(run)[self.first :]
        inner = self.body.open(run)
        tester = None if self.test is None else self.test.open(run)
        count = 0
        while True:
            frame = (*run.frame, count)
            if self.test is not None:
                self.test.call(tester, arguments, frame)
            if not self.hear(run, frame):
                break
            self.body.call(inner, arguments, frame)
            count += 1
        self.body.close(inner)
        if self.test is not None:
            self.test.close(tester)
