"""Strategies within strategies: replicas that are pipelines."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import nbflow as nf
from nbflow.errors import GraphError
from nbflow.graph import Graph
from nbflow.inprocess import InProcessCluster
from nbflow.parallel import read_strategy
from nbflow.train import DataParallel, LocalSGD, Pipeline
from tests.unit.test_pipeline import deep, losses, transformer

TASKS = [f"/job:worker/task:{n}" for n in range(6)]


def grid(groups: int, stages: int, parts: int = 2, **more: Any) -> DataParallel:
    """`groups` pipelines of `stages` devices each."""
    devices = [TASKS[n * stages : (n + 1) * stages] for n in range(groups)]
    return DataParallel(tuple(Pipeline(tuple(d), parts) for d in devices), **more)


@pytest.fixture
def graph() -> Iterator[Graph]:
    nf.set_cluster(None)
    with Graph().as_default() as made:
        yield made
        nf.set_cluster(None)


@pytest.mark.parametrize("make", [deep, transformer])
@pytest.mark.parametrize(("groups", "stages", "ps"), [(2, 2, 1), (2, 3, 2), (3, 2, 0), (1, 2, 1)])
def test_losses_are_those_of_one_process(graph: Graph, make: Any, groups: int, stages: int, ps: int) -> None:
    found = losses(make, grid(groups, stages), groups * stages, ps)
    np.testing.assert_allclose(found, losses(make, None, 1), rtol=1e-5)
    assert found[-1] < found[0]


@pytest.mark.parametrize("batch", [7, 13, 24])
def test_batches_that_do_not_divide(graph: Graph, batch: int) -> None:
    """Every row counts once, whichever group and micro-batch it is in."""
    found = losses(deep, grid(2, 2, 3), 4, 1, batch=batch)
    np.testing.assert_allclose(found, losses(deep, None, 1, batch=batch), rtol=1e-5)


def test_gradients_of_a_group_travel_as_one(graph: Graph) -> None:
    """From the stages of each group to the ps one tensor a variable, not one a micro-batch; of the width asked for."""
    cluster = InProcessCluster(4, 1)
    for compress in (None, "bfloat16"):
        with Graph().as_default() as made, nf.Session(cluster, made) as session:
            step, _ = deep(grid(2, 2, 4, compress=compress))
            session.run(step)
            _, trace = session.run(step, trace=True)
            variables = [n for n in made.nodes.values() if n.op == "variable" and n.name.endswith("weights")]
        sent = [t for t in trace.transfers if "/job:ps" in t.destination and t.nbytes >= 16 * 16 * 2]
        assert len(sent) == 2 * len(variables)
        assert {t.nbytes for t in sent} == {16 * 16 * (4 if compress is None else 2)}
    cluster.close()


def test_each_stage_runs_one_forward_one_backward_in_turn(graph: Graph) -> None:
    """In each group by itself: no stage of one waits for the other group before the update."""
    cluster = InProcessCluster(4, 1)
    with nf.Session(cluster, graph) as session:
        step, _ = deep(grid(2, 2, 4))
        session.run(step)
        _, trace = session.run(step, trace=True)
    cluster.close()
    for group, task in itertools.product(range(2), range(2)):
        mine = [o for o in trace.ops if o.device.startswith(TASKS[2 * group + task])]
        copies = {int(o.node.split("/")[0].removeprefix("replica_")) for o in mine if o.node.startswith("replica_")}
        assert copies == set(range(4 * group, 4 * group + 4))


def test_attributes_come_back(graph: Graph) -> None:
    strategy = grid(2, 3, 5, compress="float16")
    assert read_strategy(strategy.to_attrs()) == strategy
    assert DataParallel([Pipeline()]) == DataParallel((Pipeline(),))  # type: ignore[arg-type]


BAD = {
    "another strategy": (lambda: DataParallel((LocalSGD(),)), r"a nf.train.Pipeline for each replica"),  # type: ignore[arg-type]
    "none": (lambda: DataParallel(()), "a nf.train.Pipeline for each replica"),
    "unequal stages": (
        lambda: DataParallel((Pipeline(TASKS[:2]), Pipeline(TASKS[2:5]))),  # type: ignore[arg-type]
        "are alike; these have 2 stages and 4 micro-batches, 3 stages and 4",
    ),
    "unequal parts": (
        lambda: DataParallel((Pipeline(TASKS[:2], 2), Pipeline(TASKS[2:4], 3))),  # type: ignore[arg-type]
        "are alike",
    ),
    "asynchronous": (lambda: grid(2, 2, sync=False), "train in step"),
    "a backup": (lambda: grid(3, 2, backup=1), "train in step"),
    "a ring": (lambda: grid(2, 2, ps=None), "train in step"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_compose_is_refused(case: str) -> None:
    make, message = BAD[case]
    with pytest.raises(GraphError, match=message):
        make()


def test_devices_that_are_missing_or_named_twice_are_refused_before_anything_runs(graph: Graph) -> None:
    cluster = InProcessCluster(3, 1)
    with nf.Session(cluster, graph) as session:
        twice = DataParallel((Pipeline(tuple(TASKS[:2]), 2), Pipeline(tuple(TASKS[1:3]), 2)))
        for strategy, message in (
            (twice, r"pipelines 0 and 1 both have a stage on /job:worker/task:1/cpu:0"),
            (grid(2, 2), r"no device is /job:worker/task:3, a stage of the pipeline"),
            (grid(1, 3, 40), "has 24 rows in a batch at most .* for 40 micro-batches"),
        ):
            with Graph().as_default() as made, nf.Session(cluster, made) as own:
                step, _ = deep(strategy)
                with pytest.raises(GraphError, match=message):
                    own.run(step)
        assert session.initialised == ()
    cluster.close()


@pytest.mark.parametrize("strategy", [Pipeline(tuple(TASKS[:2]), 2), grid(2, 2)], ids=["pipeline", "of pipelines"])
def test_evaluation_on_the_way(graph: Graph, strategy: Any) -> None:
    """With whole batches of other data, between two steps; as in one process."""

    def train(wanted: Any, workers: int, ps: int) -> Any:
        cluster = InProcessCluster(workers, ps)
        with Graph().as_default():
            nf.set_cluster(cluster)
            step, loss = deep(wanted)
            x = np.random.default_rng(5).normal(size=(31, 16)).astype("float32")
            test = nf.data.from_arrays({"x": x, "y": (x[:, 0] > 0).astype("int64")}).repeat().batch(31).next()
            h = test["x"]
            for number in range(6):
                w = nf.Variable.from_node(nf.get_graph().node(f"layer{number}/weights"))
                b = nf.Variable.from_node(nf.get_graph().node(f"layer{number}/bias"))
                h = nf.nn.relu(h @ w + b)
            tested = nf.mean(nf.nn.softmax_cross_entropy(h, test["y"]))
            run = nf.train.run(step, 8, {"loss": loss}, every=1, evaluate={"tested": tested}, eval_every=2, show=False)
            nf.set_cluster(None)
        cluster.close()
        return run.history["tested"]

    found, alone = train(strategy, 4, 1), train(None, 1, 0)
    assert np.isfinite(alone).sum() == 4
    np.testing.assert_allclose(found, alone, rtol=1e-5)
