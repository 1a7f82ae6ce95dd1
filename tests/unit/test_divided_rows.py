"""However a batch's rows fall to the replicas, their joined gradient is that of one process."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import nbflow as nf
from nbflow.inprocess import InProcessCluster

Array = np.ndarray[Any, Any]

STRATEGIES: dict[str, Callable[[int], object]] = {
    "ps": lambda replicas: nf.train.DataParallel(),
    "ring": lambda replicas: nf.train.DataParallel(ps=None),
    "averages of every step": lambda replicas: nf.train.LocalSGD(every=1),
    "micro-batches": lambda replicas: nf.train.Pipeline(("/job:worker/task:0", "/job:worker/task:1"), replicas),
}


def trained(
    cluster: InProcessCluster | None, strategy: object, rows: int, batch: int, steps: int
) -> tuple[list[float], Array, Array]:
    """The losses of `steps` steps, and what the weights and bias are then. The last batch has fewer rows."""
    rng = np.random.default_rng(rows)
    x, y = rng.normal(size=(rows, 3)), rng.normal(size=(rows, 2))
    with nf.Graph().as_default():
        nf.set_cluster(cluster)
        try:
            data = nf.data.from_arrays({"x": x, "y": y}).batch(batch).repeat().next()
            hidden = nf.layers.dense(data["x"], 4, activation=nf.nn.tanh)
            loss = nf.mean((nf.layers.dense(hidden, 2) - data["y"]) ** 2)
            step = nf.optim.SGD(0.5).minimize(loss, strategy=strategy)
            run = nf.train.run(step, steps=steps, metrics={"loss": loss}, every=1, show=False)
            weights, bias = nf.run([nf.trainable_variables()[0], nf.trainable_variables()[1]])
            return [float(v) for v in run.history["loss"]], weights, bias
        finally:
            nf.set_cluster(None)


@pytest.mark.parametrize("name", STRATEGIES)
@settings(max_examples=6, deadline=None)
@given(replicas=st.integers(2, 5), more=st.integers(0, 18), part=st.floats(0, 1))
@example(replicas=5, more=1, part=0.0)  # a last batch of one row: four replicas have none
@example(replicas=3, more=1, part=0.0)
def test_rows_that_do_not_divide_are_weighed(name: str, replicas: int, more: int, part: float) -> None:
    rows = replicas + more
    batch = replicas + math.floor(part * more)
    workers = 2 if name == "micro-batches" else replicas
    steps = math.ceil(rows / batch) + 2
    cluster = InProcessCluster(workers=workers, ps=1)
    found = trained(cluster, STRATEGIES[name](replicas), rows, batch, steps)
    alone = trained(None, None, rows, batch, steps)
    for ours, theirs in zip(found, alone, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
