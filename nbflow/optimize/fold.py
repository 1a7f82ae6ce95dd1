"""Constant folding: what depends on constants only, or on shapes that are known by now, is computed once.

The value is what numpy's implementation of the op gives here, from inputs in the memory order in which a run would
have them: on CPU workers of the same kind that is bit for bit the value of a run. Nothing is folded that raises, that
becomes infinite or NaN (`check_numerics` is to name that op), that asks for another kind of device, that is large
(a constant travels with the plan, `ones` does not), or that would take long.

What is fetched is left to the run: computing it once is what the run is for, and a trace then shows it.

Where shapes were unknown when the graph was made, `shape_of` and shape vectors are known once a run feeds values:
these fold as well, and what is behind them gets buffers that are reused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from nbflow.body import ARGUMENT, bodies_of
from nbflow.graph import Node
from nbflow.optimize.draft import Draft, Form
from nbflow.optimize.values import constant_of
from nbflow.spec import kind_of

Array = np.ndarray[Any, Any]
# (op, inputs, attributes) -> the outputs, None when there is no such implementation or it raises
Evaluate = Callable[[str, Sequence[Array], Mapping[str, Any]], "Sequence[Array] | None"]

# A constant of this size costs less to send with a plan than the op costs in some hundred steps.
LIMIT_BYTES = 1 << 16
# Work that takes some milliseconds here, and at most that.
LIMIT_FLOPS = 1e7
LIMIT_MOVED_BYTES = 1e7

_VALUES = ("constant", "placeholder", ARGUMENT)
# Ops of whose input only the shape matters.
_OF_SHAPE = ("shape_of", "count")
# Ops with an attribute `shape` -> how many inputs they have when that says it all; one more is the shape at run time.
_SHAPED = {
    "reshape": 1,
    "broadcast_to": 1,
    "sum_to_shape": 1,
    "full": 0,
    "getitem_grad": 1,
    "conv_input_grad": 2,
    "conv_filter_grad": 2,
    "avg_pool_grad": 1,
    "diagonal_grad": 1,
}


def fold(draft: Draft, evaluate: Evaluate) -> None:
    """Replaces what can be computed before the run."""

    fetched = {t.node.name for t in draft.fetched}

    def rule(node: Node) -> None:
        if node.op in _VALUES or not node.outputs or node.definition.stateful or bodies_of(node):
            return
        if node.control_inputs or (node.device.type or "cpu") != "cpu":
            return
        if len(node.inputs) - 1 == _SHAPED.get(node.op):
            _settle_shape(draft, node)
        inputs = None if node.name in fetched or draft.is_held(node) else _known_inputs(node)
        if inputs is None or not _is_small(node):
            return
        found = evaluate(node.op, inputs, node.attrs)
        if found is not None:
            _put(draft, node, found)

    draft.walk(rule)


def _settle_shape(draft: Draft, node: Node) -> None:
    vector = constant_of(node.inputs[-1])
    if vector is not None and vector.ndim == 1:
        attrs = {**node.attrs, "shape": tuple(int(d) for d in vector)}
        draft.become(node, node.op, node.inputs[:-1], attrs, f"has the shape {attrs['shape']}, known beforehand")


def _known_inputs(node: Node) -> list[Array] | None:
    if node.op in _OF_SHAPE and node.inputs[0].spec.is_static:
        spec = node.inputs[0].spec
        return [np.broadcast_to(np.zeros((), spec.dtype), tuple(d or 0 for d in spec.shape or ()))]
    values = [constant_of(t) for t in node.inputs]
    known = [v for v in values if v is not None]
    return known if len(known) == len(values) else None


def _is_small(node: Node) -> bool:
    sizes = [t.spec.nbytes for t in node.outputs]
    if node.op in _OF_SHAPE:
        return True
    # A view of a constant is no larger than what is there already, but would be there twice.
    if any(size is not None and size > LIMIT_BYTES for size in sizes):
        return False
    cost = Form.of(node).cost()
    return cost.flops <= LIMIT_FLOPS and cost.nbytes <= LIMIT_MOVED_BYTES


def _put(draft: Draft, node: Node, values: Sequence[Array]) -> None:
    if len(values) != len(node.outputs) or not all(_is_usable(v) for v in values):
        return
    if any(v.dtype != t.dtype for v, t in zip(values, node.outputs, strict=True)):
        return
    kept = [_owned(v) for v in values]
    if len(kept) == 1:
        draft.become(node, "constant", (), {"value": kept[0]}, f"is computed beforehand ({node.op})")
    elif draft.may_go(node):
        made = [draft.make(node, "constant", (), {"value": v}, f"value.{n}") for n, v in enumerate(kept)]
        draft.replace(node, made, f"is computed beforehand ({node.op})")


def _is_usable(value: Array) -> bool:
    if value.nbytes > LIMIT_BYTES:
        return False
    return kind_of(value.dtype) not in "fc" or bool(np.isfinite(value).all())


def _owned(value: Array) -> Array:
    made = np.array(value, order="C", copy=True)
    made.flags.writeable = False
    return made
