"""Ops by which replicas that drive their own steps meet: accumulators of gradients, and who has done which step.

An accumulator keeps one value a worker, with the step for which it was computed; one for a step that is over is
dropped. It is what Chen et al., "Revisiting Distributed Synchronous SGD" (2016), build backup workers on, and
TensorFlow's ConditionalAccumulator. Here the values stay apart until they are taken, so that their sum is always in
the order of the workers, whoever came first.

The coordinator knows which step is being made and which replicas have given all that they give to it. So the updates of
all variables use the gradients of the same replicas, and a replica that is lost half-way gives to none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nbflow import op
from nbflow.errors import DTypeError, ShapeError
from nbflow.op import Attrs
from nbflow.spec import TensorSpec, format_shape, kind_of, shape_accepts

INT64 = np.dtype(np.int64)

# Ops that wait for other replicas: they run beside other steps (see `ops/queue.py`).
WAITING = frozenset(("coordinator_wait", "coordinator_begin", "coordinator_pace"))
# How the workers' values become one: their weighted mean; one after the other, each times its share of that mean; or
# one after the other as they are.
HOW = ("mean", "share", "rows")


def _handle(inputs: Sequence[TensorSpec], what: str) -> None:
    if not inputs or not inputs[0].resource:
        raise DTypeError(f"the first input is {what}, not {inputs[0] if inputs else 'nothing'}")


def _scalar(spec: TensorSpec, kind: str, what: str) -> None:
    if kind_of(spec.dtype) not in kind or spec.shape not in ((), None) or spec.resource:
        raise DTypeError(f"{what}, not {spec}")


def _holder_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    return [TensorSpec((), INT64, resource=True)]


def _apply_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    _handle(inputs, "an accumulator")
    _, value, step, weight = inputs
    if value.resource or value.dtype != attrs["dtype"]:
        raise DTypeError(f"the accumulator holds {attrs['dtype']}, not {value}; use nf.astype first")
    if not shape_accepts(attrs["shape"], value.shape):
        raise ShapeError(f"the accumulator holds {format_shape(attrs['shape'])}, not {format_shape(value.shape)}")
    _scalar(step, "iu", "the step of a value is an integer scalar")
    _scalar(weight, "f", "the weight of a value is a floating scalar")
    return []


def _take_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    _handle(inputs, "an accumulator")
    _, step, workers = inputs
    _scalar(step, "iu", "the step to take is an integer scalar")
    if kind_of(workers.dtype) not in "iu" or workers.rank not in (1, None):
        raise DTypeError(f"the workers whose values are taken are a vector of integers, not {workers}")
    return [TensorSpec(attrs["shape"], attrs["dtype"])]


def _coordinator_infer(*outputs: TensorSpec, step: bool = False) -> op.ShapeRule:
    def infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
        _handle(inputs, "a coordinator")
        if step:
            _scalar(inputs[1], "iu", "a step is an integer scalar")
        return outputs

    return infer


def _kept_cost(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], attrs: Attrs) -> op.Cost:
    moved = op.nbytes_of(inputs[1:2]) + op.nbytes_of(outputs)
    return op.Cost(0.0, 2 * moved)


_SPEC = "attrs: dtype, shape"

op.define(
    "accumulator",
    infer=_holder_infer,
    gradient=None,
    cost=op.free_cost,
    stateful=True,
    doc="Holds one value a worker until they are taken together.",
)
op.define(
    "accumulator_apply",
    infer=_apply_infer,
    gradient=None,
    cost=_kept_cost,
    stateful=True,
    doc="(accumulator, value, step, weight): keeps a copy of a worker's value for `step`, instead of its last one; "
    f"drops it when that step was taken already. {_SPEC}, worker.",
)
op.define(
    "accumulator_take",
    infer=_take_infer,
    gradient=None,
    cost=_kept_cost,
    stateful=True,
    doc="(accumulator, step, workers (n,)) → the values of `workers` for `step`, joined in that order; ends the step. "
    f"{_SPEC}, how: 'mean' (by weight), 'share' (concatenated, each times its share of the weights), 'rows' "
    "(concatenated).",
)
op.define(
    "coordinator",
    infer=_holder_infer,
    gradient=None,
    cost=op.free_cost,
    stateful=True,
    doc="Holds which step is made, and who has given to it. attrs: replicas (how many).",
)

_STEP = TensorSpec((), INT64)
for _name, _infer, _doc in (
    (
        "wait",
        _coordinator_infer(_STEP),
        "coordinator → the number of the step to make, as soon as that is another than the one that `worker` reported "
        "last. Raises EndOfData once it is closed. attrs: worker.",
    ),
    (
        "report",
        _coordinator_infer(step=True),
        "(coordinator, step): `worker` has given all it gives to `step`; nothing when that is over. attrs: worker.",
    ),
    (
        "begin",
        _coordinator_infer(_STEP, TensorSpec((None,), INT64)),
        "coordinator → the number of the step, and the first `count` workers that reported it, ascending, as soon as "
        "there are as many. Raises EndOfData when too few are left for that. attrs: count.",
    ),
    ("advance", _coordinator_infer(step=True), "(coordinator, step): `step` is over; the next one begins."),
    (
        "pace",
        _coordinator_infer(_STEP),
        "coordinator → how many steps `worker` has done, as soon as no other is more than `staleness` behind that. "
        "attrs: worker, staleness.",
    ),
    ("tick", _coordinator_infer(), "(coordinator): `worker` has done a step. attrs: worker."),
    ("leave", _coordinator_infer(), "(coordinator): nobody waits for `worker` any more. attrs: worker."),
    ("open", _coordinator_infer(), "(coordinator): all replicas are there, and none has done anything."),
    ("close", _coordinator_infer(), "(coordinator): there are no more steps."),
):
    op.define(f"coordinator_{_name}", infer=_infer, gradient=None, cost=op.free_cost, stateful=True, doc=_doc)


def accumulator_attrs(spec: TensorSpec) -> dict[str, Any]:
    """The attributes that an accumulator's ops share."""
    return {"dtype": spec.dtype, "shape": spec.shape}
