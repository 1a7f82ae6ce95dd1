"""How a program calls an implementation: from slots to slots. A run is `program`'s; here it has slots and buffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nbflow import op as ops
from nbflow.plan import Plan

Runner = Callable[[Any], None]


def many(function: Callable[..., Any], inputs: tuple[int, ...], outputs: tuple[int, ...]) -> Runner:
    """Any number of outputs."""

    def call(run: Any) -> None:
        slots = run.slots
        values = function(*[slots[i] for i in inputs])
        for slot, value in zip(outputs, values or (), strict=True):
            slots[slot] = value

    return call


# Small models are mostly these few lines: with one or two inputs spelled out an op costs a third less.


def into(function: Callable[..., Any], inputs: tuple[int, ...], output: int, buffer: int) -> Runner:
    """One output, which goes into a buffer of the run."""
    if len(inputs) == 2:
        a, b = inputs

        def binary(run: Any) -> None:
            slots = run.slots
            slots[output] = function(slots[a], slots[b], out=run.buffers[buffer])

        return binary

    def call(run: Any) -> None:
        slots = run.slots
        slots[output] = function(*[slots[i] for i in inputs], out=run.buffers[buffer])

    return call


def one(function: Callable[..., Any], inputs: tuple[int, ...], output: int, elementwise: bool) -> Runner:
    """One output, in memory of its own."""
    if elementwise and len(inputs) == 2:
        a, b = inputs

        def binary(run: Any) -> None:
            slots = run.slots
            slots[output] = function(slots[a], slots[b])

        return binary

    def call(run: Any) -> None:
        slots = run.slots
        value = function(*[slots[i] for i in inputs])
        # An op with any number of outputs (split into one part) returns a tuple even for one.
        slots[output] = value[0] if type(value) is tuple else value

    return call


def loose_slots(plan: Plan, body: bool) -> frozenset[int]:
    """Slots whose values may not be in C order: views, what elementwise ops make of them, and results of ops that
    return memory as they please."""
    # Arguments of a body are rows of something, or values that never travelled.
    loose: set[int] = {f.slot for f in plan.feeds} if body else set()
    for ins in plan.instructions:
        if ins.op in ("send", "recv", "copy"):
            continue
        definition = ops.get(ins.op)
        if definition.stateful or ins.buffer >= 0:
            continue
        if definition.alias or not definition.out or (definition.elementwise and loose.intersection(ins.inputs)):
            loose.update(ins.outputs)
    return frozenset(loose)
