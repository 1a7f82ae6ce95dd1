"""Gradients that go around a ring of workers, each of which has all variables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import nbflow as nf
from nbflow.graph import Graph
from nbflow.inprocess import InProcessCluster
from nbflow.parallel import allreduce
from tests.unit.test_data_parallel import model
from tests.unit.test_pipeline import deep, losses, transformer

RING = nf.train.DataParallel(ps=None)


@pytest.fixture
def graph() -> Iterator[Graph]:
    nf.set_cluster(None)
    with Graph().as_default() as made:
        yield made
        nf.set_cluster(None)


@pytest.mark.parametrize("make", [deep, transformer])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_losses_are_those_of_one_process(graph: Graph, make: Any, workers: int) -> None:
    np.testing.assert_allclose(losses(make, RING, workers, steps=8), losses(make, None, 1, steps=8), rtol=1e-5)


def test_what_runs_after_an_update_without_needing_it_is_computed_first(graph: Graph) -> None:
    """The output of batch_norm follows the moving averages by a control edge; the gradient needs the output."""

    def make(strategy: Any) -> Any:
        x = np.random.default_rng(0).normal(size=(96, 10)).astype("float32")
        batch = nf.data.from_arrays({"x": x, "y": (x[:, 0] > 0).astype("int64")}).repeat().batch(24).next()
        h = nf.layers.batch_norm(nf.layers.dense(batch["x"], 8, name="first"), name="norm")
        loss = nf.mean(nf.nn.softmax_cross_entropy(nf.layers.dense(h, 2, name="second"), batch["y"]))
        return nf.optim.Adam(0.05).minimize(loss, strategy=strategy), loss

    ring, plain = losses(make, RING, 3), losses(make, nf.train.DataParallel(), 3)
    np.testing.assert_allclose(ring, plain, rtol=1e-5)


@pytest.mark.parametrize("strategy", [RING, nf.train.DataParallel()], ids=["ring", "ps"])
def test_gradients_travel_while_others_are_computed(
    graph: Graph, monkeypatch: pytest.MonkeyPatch, strategy: Any
) -> None:
    """Of 6 layers, with a bucket for each: the first has gone out before the last gradient is there."""
    monkeypatch.setattr(allreduce, "BUCKET_BYTES", 1000)
    cluster = InProcessCluster(2, int(strategy.ps is not None))
    with nf.Session(cluster, graph) as session:
        step, _ = deep(strategy)
        session.run(step)
        _, trace = session.run(step, trace=True)
    cluster.close()
    last = max(o.start_s for o in trace.ops if "replica_0/gradients/layer0/" in o.node)
    worker = "/job:worker/task:0/cpu:0"
    sent = [t.start_s for t in trace.transfers if t.source == worker and ("ring/" in t.key or "gradients/" in t.key)]
    assert min(sent) < last


def test_all_workers_have_the_same_variables_and_follow_an_assignment(graph: Graph) -> None:
    cluster = InProcessCluster(3, 0)
    step, _, _ = model(RING, nf.optim.Adam(0.01))
    w = nf.Variable.from_node(graph.node("hidden/weights"))
    with nf.Session(cluster, graph) as session:
        for _ in range(3):
            session.run(step)
        session.run(w.assign(np.ones(w.shape, "float32")))
        session.run(step)
        own = session.run(w)
        assert np.abs(own - 1).max() < 0.1
        stores = [t.state for t in session.transports.values()]
        for index in (1, 2):
            copy = stores[index].cell(f"replica_{index}/hidden/weights:{graph.generations.get('hidden/weights', 0)}")
            np.testing.assert_array_equal(copy.value, own)
    cluster.close()
