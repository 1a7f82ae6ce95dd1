"""A small tensor that waits for another one to travel with: it is sent before the program that made it ends."""

from __future__ import annotations

from typing import Any

import numpy as np

from nbflow.backends.numpy import NumpyBackend
from nbflow.events import Event
from nbflow.plan import Constant, Instruction, Plan
from nbflow.program import Program, StepToken
from nbflow.rendezvous import Rendezvous
from nbflow.spec import as_dtype
from nbflow.state import StateStore

HERE, THERE = "/job:worker/task:0/cpu:0", "/job:worker/task:1/cpu:0"


class Held:
    """An outbox that notes what was held back, and what of that went."""

    def __init__(self) -> None:
        self.held: list[str] = []
        self.gone: list[str] = []

    def flush(self) -> None:
        self.gone += self.held
        self.held.clear()

    def waiting(self, step_id: str, is_waiting: bool) -> None:
        assert not is_waiting, "nothing comes any more"

    def abort(self, step_id: str, error: BaseException) -> None:
        raise error

    def end(self, step_id: str) -> None:
        assert not self.held


def test_what_is_held_back_goes_though_the_next_tensor_is_there_at_once() -> None:
    """The second of two sends has gone, the first is held back, and what the program waits for arrives meanwhile."""

    def moves(op: str, key: str, slot: int, after: tuple[int, ...] = ()) -> Instruction:
        attrs = {"key": key, "destination": THERE} if op == "send" else {"key": key, "source": THERE}
        ends = ((slot,), ()) if op == "send" else ((), (slot,))
        return Instruction(key, op, *ends, {**attrs, "dtype": as_dtype("float32")}, after)

    plan = Plan(
        HERE,
        (moves("recv", "a", 0), moves("send", "b", 0, (0,)), moves("send", "c", 1), moves("recv", "d", 2)),
        slots=3,
        constants=(Constant(1, np.float32([1.0])),),
    )
    outbox = Held()
    rendezvous = Rendezvous(outbox)
    arrives = {"c": "a", "b": "d"}  # what comes when this is sent

    def send(step_id: str, key: str, task: str, value: Any, more: bool, error: float) -> None:
        outbox.held.append(key)
        if not more:
            outbox.flush()
        rendezvous.deliver(step_id, arrives[key], np.float32([2.0]))

    events: list[Event] = []
    program = Program(plan, NumpyBackend(), "/job:worker/task:0")
    program.run({}, StepToken("step", 0, deadline=1e18), StateStore(), rendezvous, send, events)
    assert outbox.gone == ["c", "b"]
    rendezvous.end("step")
