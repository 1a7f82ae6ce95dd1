"""Pipelines: the losses of one process, stages where they were asked for, one forward and one backward in turn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import nbflow as nf
from nbflow import errors
from nbflow.graph import Graph
from nbflow.inprocess import InProcessCluster
from nbflow.train import Pipeline

STAGES = tuple(f"/job:worker/task:{n}" for n in range(3))


@pytest.fixture
def graph() -> Iterator[Graph]:
    nf.set_cluster(None)
    with Graph().as_default() as made:
        yield made
        nf.set_cluster(None)


def deep(strategy: Any, batch: int = 24) -> tuple[Any, Any]:
    """A network of 6 equal layers."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(96, 16)).astype("float32")
    data = nf.data.from_arrays({"x": x, "y": (x[:, 0] > 0).astype("int64")}).repeat().batch(batch).next()
    h = data["x"]
    for number in range(6):
        h = nf.layers.dense(h, 16, activation=nf.nn.relu, name=f"layer{number}")
    loss = nf.mean(nf.nn.softmax_cross_entropy(h, data["y"]))
    return nf.optim.SGD(0.1, momentum=0.9).minimize(loss, strategy=strategy), loss


def transformer(strategy: Any) -> tuple[Any, Any]:
    """A small transformer that learns to say which of its words came first."""
    rng = np.random.default_rng(1)
    words = rng.integers(0, 12, (64, 6))
    data = nf.data.from_arrays({"x": words, "y": words[:, 0]}).repeat().batch(16).next()
    h = nf.layers.embedding(data["x"], 12, 8, name="words")
    for number in range(2):
        with nf.name_scope(f"block{number}"):
            h = h + nf.layers.multi_head_attention(nf.layers.layer_norm(h, name="n1"), heads=2, name="attend")
            inner = nf.layers.dense(nf.layers.layer_norm(h, name="n2"), 16, activation=nf.nn.gelu, name="up")
            h = h + nf.layers.dense(inner, 8, name="down")
    loss = nf.mean(nf.nn.softmax_cross_entropy(nf.layers.dense(h[:, 0], 12, name="say"), data["y"]))
    return nf.optim.Adam(0.02).minimize(loss, strategy=strategy), loss


def losses(make: Any, strategy: Any, workers: int, ps: int = 0, steps: int = 12, **more: Any) -> Any:
    cluster = InProcessCluster(workers, ps)
    with Graph().as_default():
        nf.set_cluster(cluster)
        step, loss = make(strategy, **more)
        run = nf.train.run(step, steps=steps, metrics={"loss": loss}, every=1, show=False)
        nf.set_cluster(None)
    cluster.close()
    assert (run.status, run.step) == ("done", steps)
    return run.history["loss"]


@pytest.mark.parametrize(("stages", "parts", "batch"), [(2, 4, 24), (3, 2, 24), (3, 5, 24), (2, 3, 7), (1, 2, 24)])
def test_losses_are_those_of_one_process(graph: Graph, stages: int, parts: int, batch: int) -> None:
    alone = losses(deep, None, 1, batch=batch)
    found = losses(deep, Pipeline(STAGES[:stages], parts), stages, batch=batch)
    np.testing.assert_allclose(found, alone, rtol=1e-5)
    assert alone[-1] < alone[0]


@pytest.mark.parametrize(
    "strategy",
    [
        nf.train.DataParallel(),
        nf.train.DataParallel(compress="bfloat16"),
        nf.train.DataParallel(backup=1),
        nf.train.DataParallel(sync=False),
        nf.train.DataParallel(sync=False, staleness=1),
        Pipeline(STAGES, 4),
    ],
    ids=["sync", "compressed", "backup", "async", "stale", "pipeline"],
)
def test_every_strategy_trains_a_transformer(graph: Graph, strategy: Any) -> None:
    found = losses(transformer, strategy, 3, 0 if isinstance(strategy, Pipeline) else 1, steps=36)
    assert found[-4:].mean() < 0.9 * found[:4].mean()


@pytest.mark.parametrize("strategy", [nf.train.DataParallel(), Pipeline(STAGES, 4)], ids=["sync", "pipeline"])
def test_a_transformer_has_the_losses_of_one_process(graph: Graph, strategy: Any) -> None:
    alone = losses(transformer, None, 1, steps=8)
    np.testing.assert_allclose(losses(transformer, strategy, 3, steps=8), alone, rtol=1e-4)


def test_stages_are_balanced_and_variables_live_with_them(graph: Graph) -> None:
    cluster = InProcessCluster(3, 0)
    nf.set_cluster(cluster)
    step, _ = deep(Pipeline(STAGES, 2))
    rows = {r.op: r.actual for r in nf.placement(step)}
    for number in range(6):
        home = f"/job:worker/task:{number // 2}/cpu:0"
        assert rows[f"layer{number}/weights"] == home
        assert {rows[f"replica_{j}/layer{number}/matmul"] for j in range(2)} == {home}
        assert {v for k, v in rows.items() if k.startswith(f"replica_1/gradients/layer{number}/matmul")} == {home}
    nf.set_cluster(None)
    cluster.close()


def test_one_forward_one_backward(graph: Graph) -> None:
    """On each of 3 stages, 4 micro-batches; what a stage holds is bounded by how far it is from the last."""
    cluster = InProcessCluster(3, 0)
    with nf.Session(cluster) as session:
        step, _ = deep(Pipeline(STAGES, 4))
        _, trace = session.run(step, trace=True)
    cluster.close()
    for stage, expected in enumerate(("F0 F1 F2 B0 F3 B1 B2 B3", "F0 F1 B0 F2 B1 F3 B2 B3", "F0 B0 F1 B1 F2 B2 F3 B3")):
        begun: dict[str, float] = {}
        for op in trace.ops:
            parts = op.node.split("/")
            if op.device == f"{STAGES[stage]}/cpu:0" and parts[0].startswith("replica_") and "layer" in op.node:
                turn = f"{'B' if parts[1] == 'gradients' else 'F'}{parts[0][8:]}"
                begun[turn] = min(begun.get(turn, np.inf), op.start_s)
        assert " ".join(sorted(begun, key=begun.__getitem__)) == expected


def test_what_is_no_pipeline_is_an_error(graph: Graph) -> None:
    for options in ({"stages": ()}, {"stages": ("cpu:0",)}, {"microbatches": 0}):
        with pytest.raises(errors.GraphError, match=r"stages|microbatches"):
            Pipeline(**options)
    cluster = InProcessCluster(1, 0)
    with nf.Session(cluster) as session:
        w = nf.Variable([1.0], name="w")
        fed = nf.optim.SGD(0.1).minimize(nf.sum(w * w), strategy=Pipeline(STAGES[:1], 2))
        with pytest.raises(errors.GraphError, match="reads no dataset"):
            session.run(fed)
        step, _ = deep(Pipeline(STAGES, 2))
        with pytest.raises(errors.GraphError, match="no device is"):
            session.run(step)
    cluster.close()
