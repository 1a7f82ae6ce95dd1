"""The op behind `dataset.next()`. The pipeline that it runs is described in `nbflow/data/pipeline.py`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nbflow import op
from nbflow.op import Attrs
from nbflow.spec import TensorSpec

FLOAT64 = np.dtype(np.float64)


def _infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    # The first dimension stays unknown: the last batch may be short, and each replica gets its part of it.
    parts = [TensorSpec((None, *a.shape[1:]), a.dtype) for a in attrs["arrays"]]
    return [*parts, TensorSpec((), FLOAT64)]


def _cost(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], attrs: Attrs) -> op.Cost:
    return op.Cost(0.0, 2 * op.nbytes_of(outputs))


op.define(
    "iterator_next",
    infer=_infer,
    gradient=None,
    cost=_cost,
    stateful=True,
    doc="The next batch of a dataset: an array for each component, then `share`, the float64 part of the global batch "
    "that these rows are. attrs: arrays, names, stages, fingerprint (digest of the arrays), deal (index, "
    "count: every count-th batch), shard (index, count: the part of each of those). Raises EndOfData.",
)
