"""The state machine of one step: nothing runs before what it comes after, everything runs once, slots free in time."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from nbflow.plan import Fetch, Instruction, Plan
from nbflow.step import StepMachine, Wiring


def plan_of(edges: list[tuple[int, ...]]) -> Plan:
    """Instruction i reads the slots of the instructions in edges[i] and writes slot i."""
    instructions = tuple(
        Instruction(f"n{i}", "add", b, (i,), {}, after=tuple(sorted(set(b)))) for i, b in enumerate(edges)
    )
    return Plan("/job:local/task:0/cpu:0", instructions, len(edges), fetches=(Fetch("last", len(edges) - 1, False),))


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    size = draw(st.integers(1, 12))
    edges = [tuple(draw(st.lists(st.integers(0, i - 1), max_size=3))) if i else () for i in range(size)]
    return plan_of(edges)


@given(plans(), st.integers(0, 1000))
def test_any_order_of_completions_is_legal_and_complete(plan: Plan, seed: int) -> None:
    machine = StepMachine(Wiring.of(plan))
    shuffle = random.Random(seed)
    running: list[int] = []
    done: set[int] = set()
    freed: list[int] = []
    while not machine.is_done:
        while (index := machine.take()) is not None:
            assert set(plan.instructions[index].after) <= done
            running.append(index)
        assert running, "the machine is stuck"
        finished = running.pop(shuffle.randrange(len(running)))
        done.add(finished)
        freed += machine.complete(finished)
    assert done == set(range(len(plan.instructions)))
    assert len(freed) == len(set(freed))
    read = {s for i in plan.instructions for s in i.inputs}
    assert set(freed) == read - {plan.fetches[0].slot}


def test_without_waiting_the_written_order_is_kept() -> None:
    plan = plan_of([(), (0,), (), (1, 2), (0,)])
    machine = StepMachine(Wiring.of(plan))
    order = []
    while (index := machine.take()) is not None:
        order.append(index)
        machine.complete(index)
    assert order == [0, 1, 2, 3, 4]
    assert machine.is_done
