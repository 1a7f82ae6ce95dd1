"""The ops behind `nf.queue`: a node that holds a queue, and what is put in and taken out.

A queue stays on the device of its holder; its ops are colocated with it. Those in `WAITING` wait for each other, so a
session runs steps that have them beside its others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nbflow import op
from nbflow.errors import DTypeError, ShapeError
from nbflow.op import Attrs
from nbflow.spec import Shape, TensorSpec, format_shape, shape_accepts

BOOL = np.dtype(np.bool_)
INT64 = np.dtype(np.int64)

WAITING = frozenset(
    ("queue_enqueue", "queue_enqueue_many", "queue_dequeue", "queue_dequeue_many", "queue_dequeue_up_to")
)


def _holder_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    return [TensorSpec((), INT64, resource=True)]


def _holder(inputs: Sequence[TensorSpec]) -> None:
    if not inputs or not inputs[0].resource:
        raise DTypeError(f"the first input is a queue, not {inputs[0] if inputs else 'nothing'}")


def _specs(attrs: Attrs, *rows: int | None) -> list[TensorSpec]:
    """The specs of the components of an element, or of `rows` of them."""
    shapes: Sequence[Shape] = attrs["shapes"]
    return [TensorSpec((*rows, *(s or ())), d) for s, d in zip(shapes, attrs["dtypes"], strict=True)]


def _enqueue_infer(*rows: None) -> op.ShapeRule:
    def infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
        _holder(inputs)
        wanted = _specs(attrs, *rows)
        if len(inputs) - 1 != len(wanted):
            raise DTypeError(f"an element of the queue has {len(wanted)} components, not {len(inputs) - 1}")
        for number, (want, got) in enumerate(zip(wanted, inputs[1:], strict=True)):
            if want.dtype != got.dtype or got.resource:
                raise DTypeError(f"component {number} of the queue is {want.dtype}, not {got}; use nf.astype first")
            if not shape_accepts(want.shape, got.shape):
                raise ShapeError(
                    f"component {number} of the queue is {format_shape(want.shape)}, not {format_shape(got.shape)}"
                )
        return []

    return infer


def _dequeue_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    _holder(inputs)
    return _specs(attrs)


def _many_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    _holder(inputs)
    return _specs(attrs, attrs["n"])


def _up_to_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    _holder(inputs)
    return _specs(attrs, None)


def _scalar_infer(dtype: np.dtype[Any]) -> op.ShapeRule:
    def infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
        _holder(inputs)
        return [TensorSpec((), dtype)]

    return infer


def _nothing_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    _holder(inputs)
    return []


def _cost(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], attrs: Attrs) -> op.Cost:
    return op.Cost(0.0, 2 * (op.nbytes_of(inputs) + op.nbytes_of(outputs)))


op.define(
    "queue",
    infer=_holder_infer,
    gradient=None,
    cost=op.free_cost,
    stateful=True,
    doc="Holds a queue. attrs: capacity, dtypes and shapes of an element's components, shuffle, min_after_dequeue, "
    "seed (empty: from the graph's seed and the name), padding.",
)
for _name, _infer, _doc in (
    ("enqueue", _enqueue_infer(), "(queue, *components): puts an element in, and waits while the queue is full."),
    (
        "enqueue_many",
        _enqueue_infer(None),
        "(queue, *components with a first axis of elements): puts them in one by one, as there is room.",
    ),
    ("dequeue", _dequeue_infer, "queue → an element's components, as soon as there is one."),
    (
        "dequeue_many",
        _many_infer,
        "queue → `n` elements, along a first axis, as soon as there are as many. attrs: n, and for padding `padding`.",
    ),
    (
        "dequeue_up_to",
        _up_to_infer,
        "As queue_dequeue_many; a closed queue gives what is left. attrs: n, padding.",
    ),
    ("size", _scalar_infer(INT64), "queue → how many elements it holds, int64 ()."),
    ("is_closed", _scalar_infer(BOOL), "queue → whether it was closed, bool ()."),
    (
        "close",
        _nothing_infer,
        "(queue): nothing more goes in; what is in comes out. attrs: cancel_pending_enqueues.",
    ),
):
    op.define(f"queue_{_name}", infer=_infer, gradient=None, cost=_cost, stateful=True, doc=_doc)
