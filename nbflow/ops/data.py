"""The ops behind `dataset.next()`: a node that holds an iterator, and what is done with it.

The dataset travels with `iterator_next`, as `nbflow/data/describe.py` describes it; the holder is a name under which
workers keep where it stands.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nbflow import op
from nbflow.errors import DTypeError
from nbflow.op import Attrs
from nbflow.spec import TensorSpec

FLOAT64 = np.dtype(np.float64)
INT64 = np.dtype(np.int64)
UINT8 = np.dtype(np.uint8)


def _holder_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    return [TensorSpec((), INT64, resource=True)]


def _holder(inputs: Sequence[TensorSpec]) -> None:
    if not inputs or not inputs[0].resource:
        raise DTypeError(f"the first input is the holder of an iterator, not {inputs[0] if inputs else 'nothing'}")


def _next_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    _holder(inputs)
    parts = [TensorSpec(s, d) for s, d in zip(attrs["shapes"], attrs["dtypes"], strict=True)]
    return [*parts, TensorSpec((), FLOAT64)]


def _state_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    _holder(inputs)
    return [TensorSpec((None,), UINT8)]


def _restore_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    _holder(inputs)
    if inputs[1].dtype != UINT8 or inputs[1].rank not in (1, None):
        raise DTypeError(f"the state of an iterator is uint8 (bytes,), not {inputs[1]}")
    return []


def _position_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    _holder(inputs)
    return [TensorSpec((), INT64)]


def _cost(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], attrs: Attrs) -> op.Cost:
    return op.Cost(0.0, 2 * op.nbytes_of(outputs))


op.define(
    "iterator",
    infer=_holder_infer,
    gradient=None,
    cost=op.free_cost,
    stateful=True,
    doc="Holds a dataset's iterator. attrs: shared (the name of the holder whose place it shares, as replicas do; "
    "empty for its own).",
)
op.define(
    "iterator_next",
    infer=_next_infer,
    gradient=None,
    cost=_cost,
    stateful=True,
    doc="holder → the next element of a dataset: an array for each component, then `share`, the float64 part of the "
    "global batch that these rows are. attrs: tree (the dataset), dtypes, shapes, fingerprint (digest of the tree), "
    "deal (index, count: every count-th element), shard (index, count: the part of each of those), keep "
    "(how many of the last elements its state has; 0). Raises EndOfData.",
)
op.define(
    "iterator_state",
    infer=_state_infer,
    gradient=None,
    cost=_cost,
    stateful=True,
    doc="holder → where its iterator stands, uint8 bytes.",
)
op.define(
    "iterator_restore",
    infer=_restore_infer,
    gradient=None,
    cost=op.free_cost,
    stateful=True,
    doc="(holder, state from iterator_state): the iterator continues there, or begins there if it does not run yet.",
)
op.define(
    "iterator_position",
    infer=_position_infer,
    gradient=None,
    cost=op.free_cost,
    stateful=True,
    doc="holder → how many elements its iterator has handed out, int64 ().",
)
