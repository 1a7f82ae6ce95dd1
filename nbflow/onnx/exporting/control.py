"""Branches and loops as ONNX's If and Loop.

A body sees the names around it, so what it captured is not passed on. Rows of scanned inputs are picked in the body by
the number of the iteration.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nbflow.body import ARGUMENT, Body
from nbflow.onnx.exporting.writer import FIRST, INT64, LAST, Inner, Rules, Site, needed
from nbflow.spec import TensorSpec

RULES = Rules()
BOOL = TensorSpec((), np.dtype(np.bool_))
COUNT = TensorSpec((), INT64)


def _specialised(s: Site) -> dict[str, Any]:
    """The attributes with bodies whose specs are those of this node's inputs, in every iteration."""
    specialise = s.node.definition.specialise
    return dict(s.attrs) if specialise is None else dict(specialise(s.specs, s.attrs))


def _written(s: Site, body: Body, arguments: Sequence[str]) -> list[str]:
    """Writes a body's nodes and gives the names of its outputs. `arguments` are names, '' for those it must not use."""
    names = {(t.node.name, t.index): name for t, name in zip(body.arguments, arguments, strict=True)}
    nodes = [n for n in needed(body.outputs) if n.op != ARGUMENT]
    for node in nodes:
        if any(names.get((t.node.name, t.index)) == "" for t in node.inputs):
            s.fail("its condition looks at a row, which the last test has not")
    s.writer.translate(nodes, names)
    return [names[t.node.name, t.index] for t in body.outputs]


def _given(s: Site, names: Sequence[str]) -> list[str]:
    """Outputs of an inner graph: values of their own, whatever they are names of."""
    return [s.add("Identity", name) for name in names]


@RULES.writes("cond")
def _cond(s: Site, condition: str, *arguments: str) -> list[str]:
    attrs, branches = _specialised(s), {}
    for branch, key in (("then_branch", "then"), ("else_branch", "otherwise")):
        with s.writer.inner() as nodes:
            made = _given(s, _written(s, attrs[key], arguments))
        # What is known of both, since that is what the result is.
        outputs = [(name, t.spec) for name, t in zip(made, s.node.outputs, strict=True)]
        branches[branch] = Inner([], outputs, nodes)
    return s.add_many("If", condition, outputs=len(s.node.outputs), **branches)


@RULES.writes("loop")
def _loop(s: Site, *inputs: str) -> list[str]:
    attrs = _specialised(s)
    if any(attrs.get("padded", ())):
        s.fail("it stacks rows of different shapes, which a Loop does not")
    limit, rest = (inputs[0], inputs[1:]) if attrs["limited"] else ("", inputs)
    carried, scanned = attrs["carried"], attrs["scanned"]
    start, rows, captured = rest[:carried], rest[carried : carried + scanned], rest[carried + scanned :]
    times = _times(s, limit, rows)
    test: Body | None = attrs["condition"]
    going = "" if test is None else _written(s, test, [*start, *[""] * scanned, *captured])[0]
    inner = _body(s, attrs, rows, captured, times)
    stacked = len(s.node.outputs) - carried - 1
    made = s.add_many("Loop", times, going, *start, s.const(0, INT64), outputs=carried + 1 + stacked, body=inner)
    if not attrs["reverse"]:
        return made
    turned = [s.add("Slice", name, s.ints(LAST), s.ints(FIRST), s.ints(0), s.ints(-1)) for name in made[carried + 1 :]]
    return [*made[: carried + 1], *turned]


def _times(s: Site, limit: str, rows: Sequence[str]) -> str:
    """How often the loop runs at most; '' when only its condition ends it."""
    if not rows:
        return limit
    number = int(s.attrs["limited"]) + s.attrs["carried"]
    length = s.scalar(s.size(rows[0], 0, s.specs[number]))
    return s.add("Min", length, limit) if limit else length


def _body(s: Site, attrs: dict[str, Any], rows: Sequence[str], captured: Sequence[str], times: str) -> Inner:
    """(iteration, condition, carried…, count) → (condition, carried…, count, stacked…)."""
    body: Body = attrs["body"]
    test: Body | None = attrs["condition"]
    count = attrs["carried"]
    specs = [t.spec for t in body.arguments[:count]]
    number, going, *values, counted = (
        s.writer.unique(f"{s.node.name}/{name}")
        for name in ("iteration", "condition", *(f"carried_{n}" for n in range(count)), "count")
    )
    with s.writer.inner() as nodes:
        one = s.const(1, INT64)
        place = s.add("Sub", s.add("Sub", times, one), number) if attrs["reverse"] and rows else number
        picked = [s.add("Gather", row, place, axis=0) for row in rows]
        found = _written(s, body, [*values, *picked, *captured])
        holds = going if test is None else _written(s, test, [*found[:count], *[""] * len(rows), *captured])[0]
        given = _given(s, [holds, *found[:count], s.add("Add", counted, one), *found[count:]])
    kinds = [BOOL, *specs, COUNT, *[t.spec for t in body.outputs[count:]]]
    ends = list(zip(given, kinds, strict=True))
    return Inner([(number, COUNT), (going, BOOL), *zip(values, specs, strict=True), (counted, COUNT)], ends, nodes)
