"""What holds the memory of a device, in words: for the error of a step that found none left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nbflow.plan import Plan
from nbflow.state import Cell, StateStore

# How many of the largest are named.
NAMED = 5


def held(plan: Plan, slots: Sequence[Any], buffers: Sequence[Any], state: StateStore) -> str:
    """The largest arrays that a step of `plan` and the session's variables hold, each with its op and cell.

    `slots`: empty when the step has not begun.
    """
    found: dict[int, tuple[int, str]] = {}
    whose = {ins.buffer: ins for ins in plan.instructions if ins.buffer >= 0}
    for number, buffer in enumerate(buffers):
        ins = whose.get(number)
        found[id(buffer)] = (_bytes_of(buffer), f"a buffer of {ins.node} ({ins.where})" if ins else "a buffer")
    for key in state.keys():
        cell = state.get_or_make(key, Cell)
        if isinstance(cell, Cell) and cell.value is not None:
            found[id(cell.value)] = (_bytes_of(cell.value), f"variable {key.rsplit(':', 1)[0]}")
    for ins in plan.instructions if slots else ():
        for slot in ins.outputs:
            value = slots[slot]
            if value is not None and id(value) not in found:
                found[id(value)] = (_bytes_of(value), f"{ins.op} {ins.node} ({ins.where})")
    largest = sorted(found.values(), reverse=True)
    total = sum(size for size, _ in largest)
    if not total:
        return "the step held nothing yet"
    named = ", ".join(f"{size / 2**20:,.1f} MB by {who}" for size, who in largest[:NAMED] if size)
    return f"{total / 2**20:,.1f} MB were held, the most {named}"


def _bytes_of(value: Any) -> int:
    return int(getattr(value, "nbytes", 0))
