"""If, Loop and Scan: the bodies are traced into nbflow's `cond` and `loop`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nbflow import ops
from nbflow.errors import GraphError
from nbflow.graph import Tensor
from nbflow.onnx.registry import Call, Value, translates
from nbflow.ops.loops import build_loop, cond


def _tensors(c: Call, values: Sequence[Value]) -> list[Tensor]:
    """The values of a body. Raises GraphError for sequences, which no loop carries."""
    for value in values:
        if not isinstance(value, Tensor):
            raise GraphError(f"the body of {c.what} gives a sequence or an optional; it may give tensors only")
    return list(values)


@translates("If")
def _if(c: Call) -> Any:
    known = c.static(0)
    if known is not None:
        return c.builder.graph(c.attrs["then_branch" if known.item() else "else_branch"], [])
    branches = [c.attrs[name] for name in ("then_branch", "else_branch")]
    if any(o.type.WhichOneof("value") != "tensor_type" for o in branches[0].output):
        return c.builder.graph(branches[0 if c.known(0).item() else 1], [])
    first, second = (lambda b=b: tuple(_tensors(c, c.builder.graph(b, []))) for b in branches)
    return cond(ops.reshape(c[0], ()), first, second)


@translates("Loop")
def _loop(c: Call) -> Any:
    """Inputs: the most iterations, whether to begin, carried values. The body also gets the iteration's number."""
    body = c.attrs["body"]
    if not all(isinstance(value, Tensor) for value in c.inputs[2:]):
        return _unrolled(c)
    first = c.get(1)
    begin = ops.constant(np.True_) if first is None else ops.reshape(first, ())
    start = [ops.constant(np.int64(0)), begin, *[c[n] for n in range(2, len(c))]]
    # The number and the condition keep the shape that the body declares: a scalar, or a vector of one.
    shapes = [_declared(info) for info in body.input[:2]]

    def step(carried: list[Tensor], rows: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        number, going, *values = carried
        given = [number if not shapes[0] else ops.reshape(number, (1,)), going, *values]
        again, *made = _tensors(c, c.builder.graph(body, given))
        return [number + 1, ops.reshape(again, ()), *made[: len(values)]], made[len(values) :]

    limit = None if c.get(0) is None else ops.reshape(c[0], ())
    known = c.static(0)
    if known is not None and known.item() >= np.iinfo(np.int64).max:
        limit = None
    node = build_loop("loop", start, [], step, lambda carried: carried[1], [None] * len(start), limit, static=False)
    count = len(start)
    return [*node.outputs[2:count], *node.outputs[count + 1 :]]


def _unrolled(c: Call) -> list[Value]:
    """A loop that carries sequences, whose lengths must be known: one copy of the body for each iteration."""
    going = ops.constant(np.True_) if c.get(1) is None else c[1]
    count = int(c.known(0).item())
    carried: list[Value] = list(c.inputs[2:])
    stacked: list[list[Tensor]] = []
    for number in range(count):
        holds = c.statics.value(going)
        if holds is None:
            raise c.needs(going, "the condition")
        if not holds.item():
            break
        going, *made = c.builder.graph(c.attrs["body"], [ops.constant(np.int64(number)), going, *carried])
        carried, rows = made[: len(carried)], made[len(carried) :]
        stacked.append(_tensors(c, rows))
    return [*carried, *(ops.stack(rows, axis=0) for rows in zip(*stacked, strict=True))]


def _declared(info: Any) -> tuple[Any, ...]:
    return tuple(info.type.tensor_type.shape.dim)


@translates("Scan", since=9)
def _scan(c: Call) -> Any:
    count = c.attrs["num_scan_inputs"]
    states = [c[n] for n in range(len(c) - count)]
    rows = [c[n] for n in range(len(states), len(c))]
    axes = c.attrs.get("scan_input_axes") or [0] * count
    turned = c.attrs.get("scan_input_directions") or [0] * count
    rows = [ops.moveaxis(r, a, 0) if a else r for r, a in zip(rows, axes, strict=True)]
    rows = [ops.flip(r, axis=0) if t else r for r, t in zip(rows, turned, strict=True)]
    states, stacked = _scanned(c, states, rows)
    axes = c.attrs.get("scan_output_axes") or [0] * len(stacked)
    turned = c.attrs.get("scan_output_directions") or [0] * len(stacked)
    stacked = [ops.flip(y, axis=0) if t else y for y, t in zip(stacked, turned, strict=True)]
    return [*states, *(ops.moveaxis(y, 0, a) if a else y for y, a in zip(stacked, axes, strict=True))]


def _scanned(c: Call, states: Sequence[Tensor], rows: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    body = c.attrs["body"]

    def step(carried: list[Tensor], row: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        made = _tensors(c, c.builder.graph(body, [*carried, *row]))
        return made[: len(states)], made[len(states) :]

    node = build_loop("scan", states, rows, step, None, [None] * len(states), None, static=False)
    return list(node.outputs[: len(states)]), list(node.outputs[len(states) + 1 :])


@translates("Scan", since=8)
def _scan_of_batches(c: Call) -> Any:
    """Opset 8: states and rows have a dimension of examples first, each example with its own number of rows."""
    count = c.attrs["num_scan_inputs"]
    if c.get(0) is not None or any(c.attrs.get("directions") or []):
        raise GraphError(f"{c.what} of opset 8 with sequence lengths or directions is not done in nf.onnx")
    states = [c[n] for n in range(1, len(c) - count)]
    rows = [c[n] for n in range(len(c) - count, len(c))]
    examples = (rows[0].shape or (None,))[0]
    if examples is None:
        raise c.needs(rows[0], "the number of examples")
    made = [_scanned(c, [s[n] for s in states], [r[n] for r in rows]) for n in range(examples)]
    parts = [[*last, *stacked] for last, stacked in made]
    return [ops.stack(values, axis=0) for values in zip(*parts, strict=True)]
