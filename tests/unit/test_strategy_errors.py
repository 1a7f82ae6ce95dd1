"""What a strategy cannot do is said before anything runs, and the session goes on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import nbflow as nf
from nbflow import errors
from nbflow.graph import Graph
from nbflow.inprocess import InProcessCluster
from nbflow.train import DataParallel, LocalSGD, Pipeline

TASKS = tuple(f"/job:worker/task:{n}" for n in range(4))


@pytest.fixture
def graph() -> Iterator[Graph]:
    nf.set_cluster(None)
    with Graph().as_default() as made:
        yield made
        nf.set_cluster(None)


def loss_of(dataset: Any, layers: int = 4) -> Any:
    h = dataset.next()["x"]
    for number in range(layers):
        h = nf.layers.dense(h, 3, name=f"layer{number}")
    return nf.mean(h * h)


def rows(count: int = 24) -> Any:
    return nf.data.from_arrays({"x": np.ones((count, 3), "float32")})


def refused(strategy: Any, dataset: Any, said: str, workers: int = 4, ps: int = 1, layers: int = 4) -> None:
    """By whatever would run or place the step; then the same model trains without the strategy."""
    cluster = InProcessCluster(workers, ps)
    nf.set_cluster(cluster)
    loss = loss_of(dataset, layers)
    step = nf.optim.SGD(0.1).minimize(loss, strategy=strategy)
    for run in (lambda: nf.run(step), lambda: nf.train.run(step, 8, show=False), lambda: nf.placement(step)):
        with pytest.raises(errors.GraphError, match=said):
            run()
    before = nf.run(loss)
    nf.train.run(nf.optim.SGD(0.001).minimize(loss), 1, show=False)
    assert nf.run(loss) < before
    nf.set_cluster(None)
    cluster.close()


@pytest.mark.parametrize(
    "strategy",
    [DataParallel(), DataParallel(ps=None), DataParallel(backup=1), LocalSGD(), LocalSGD(every=1)],
    ids=["ps", "ring", "backup", "local", "local each step"],
)
@pytest.mark.parametrize(
    "dataset",
    [
        lambda: rows().repeat().batch(3),
        lambda: rows(3).batch(100).repeat(),
        lambda: rows().batch(3).shuffle(4, seed=0).repeat().prefetch(2),
        lambda: rows().repeat().batch(3).map(lambda b: {"x": b["x"] * 2.0}),
    ],
    ids=["batch", "few rows in all", "stages after it", "map"],
)
def test_more_replicas_than_rows(graph: Graph, strategy: Any, dataset: Any) -> None:
    said = r"has 3 rows in a batch at most \(.*\) for 4 replicas: 1 of them would never have any; make it .batch\(4\)"
    refused(strategy, dataset(), said)


@pytest.mark.parametrize("strategy", [DataParallel(sync=False), DataParallel(sync=False, staleness=2)], ids=str)
def test_more_replicas_than_batches(graph: Graph, strategy: Any) -> None:
    refused(strategy, rows().batch(8), r"has 3 elements in all \(.batch\(8, False\)\) for 4 replicas.*\.repeat\(\)")


def test_more_micro_batches_than_rows(graph: Graph) -> None:
    said = r"has 6 rows in a batch at most .* for 7 micro-batches: 1 of them would never have any"
    refused(Pipeline(TASKS[:2], 7), rows().repeat().batch(6), said)


def test_as_many_rows_as_replicas_are_enough(graph: Graph) -> None:
    cluster = InProcessCluster(4, 1)
    nf.set_cluster(cluster)
    loss = loss_of(rows().repeat().batch(4))
    for strategy in (DataParallel(), DataParallel(sync=False), Pipeline(TASKS[:2], 4)):
        run = nf.train.run(nf.optim.SGD(0.01).minimize(loss, strategy=strategy), 8, show=False)
        assert (run.status, run.step) == ("done", 8)
    nf.set_cluster(None)
    cluster.close()


@pytest.mark.parametrize(("workers", "backup"), [(1, 1), (2, 2), (2, 1), (4, 2)])
def test_too_few_replicas_are_left_by_backups(graph: Graph, workers: int, backup: int) -> None:
    said = rf"backup={backup} of {workers} workers leaves {workers - backup} to make a step; .*use a smaller backup"
    refused(DataParallel(backup=backup), rows().repeat().batch(8), said, workers)


@pytest.mark.parametrize("workers", [None, "/job:worker"])
def test_backups_without_workers(graph: Graph, workers: str | None) -> None:
    """On a ps alone, and in this process alone; the same model trains there without backups."""
    said = r"backup=1 needs several replicas, and no device matches workers='/job:worker'; there are .*leave backup out"
    if workers:
        refused(DataParallel(backup=1), rows().repeat().batch(8), said, workers=0)
        return
    loss = loss_of(rows().repeat().batch(8))
    step = nf.optim.SGD(0.1).minimize(loss, strategy=DataParallel(backup=1))
    for run in (lambda: nf.run(step), lambda: nf.train.run(step, 8, show=False), lambda: nf.placement(step)):
        with pytest.raises(errors.GraphError, match=said):
            run()
    assert nf.train.run(nf.optim.SGD(0.1).minimize(loss, strategy=DataParallel()), 2, show=False).status == "done"


@pytest.mark.parametrize("strategy", ["sync", DataParallel, 2], ids=str)
def test_what_is_no_strategy(graph: Graph, strategy: Any) -> None:
    with pytest.raises(errors.GraphError, match=r"is no strategy; use an object such as nf.train.DataParallel\(\)"):
        nf.optim.SGD(0.1).minimize(loss_of(rows().batch(8)), strategy=strategy)


def test_a_stage_that_computes_nothing(graph: Graph) -> None:
    said = r"stage \d of the pipeline, /job:worker/task:\d/cpu:0, would have nothing to compute: .*use fewer stages"
    refused(Pipeline(TASKS, 2), rows().repeat().batch(8), said, layers=1)


@pytest.mark.parametrize("stages", [(TASKS[0], f"{TASKS[0]}/cpu:0"), ("/job:worker", "/job:worker")])
def test_two_stages_on_one_device(graph: Graph, stages: tuple[str, str]) -> None:
    said = "stages 0 and 1 of the pipeline are both /job:worker/task:0/cpu:0; name a device of its own for each"
    refused(Pipeline(stages, 2), rows().repeat().batch(8), said)


def test_a_stage_that_is_not_there(graph: Graph) -> None:
    said = r"no device is /job:worker/task:3, a stage of the pipeline; there are /job:worker/task:0/cpu:0, "
    refused(Pipeline((TASKS[0], TASKS[3]), 2), rows().repeat().batch(8), said, workers=2)


@pytest.mark.parametrize("number", [0, -1, 1.5, True])
def test_numbers_that_are_none(number: Any) -> None:
    with pytest.raises(errors.GraphError, match=f"microbatches is at least 1, not {number!r}"):
        Pipeline(TASKS[:2], number)
    with pytest.raises(errors.GraphError, match=f"at least 1, not {number!r}"):
        LocalSGD(every=number)
