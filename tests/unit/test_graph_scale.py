"""Work grows with the graph and not with its square: counted in calls, so that no clock decides."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import nbflow as nf
from nbflow.graph import Graph, Owner, Tensor
from nbflow.inprocess import InProcessCluster
from nbflow.owner import begin
from nbflow.session import Session


def calls_during(work: Callable[[], Any]) -> int:
    """Functions and generators that `work` enters or resumes, Python's and C's."""
    count = 0

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


def grows_linearly(make: Callable[[int], Callable[[], Any]], small: int = 30) -> None:
    """`make(n)` prepares a problem of size n and gives the work on it: four times the size is four times the work."""
    make(3)()  # whatever is made once only
    few, many = calls_during(make(small)), calls_during(make(4 * small))
    assert many < 5 * few, f"{few} calls for {small}, {many} for {4 * small}"


def layers(n: int) -> Tensor:
    h = nf.placeholder("float32", (None, 4))
    for _ in range(n):
        h = nf.layers.dense(h, 4)
    return h


def test_unnamed_layers() -> None:
    def make(n: int) -> Callable[[], Any]:
        def work() -> None:
            with Graph().as_default():
                layers(n)

        return work

    grows_linearly(make)


def test_a_cell_of_unnamed_layers_that_runs_again() -> None:
    def make(n: int) -> Callable[[], Any]:
        graph = Graph()

        def cell() -> None:
            with graph.as_default():
                run = begin(graph, Owner("a", "In[1]"))
                layers(n)
                run.commit()

        cell()
        return cell

    grows_linearly(make)


def training(n: int, strategy: Any = None) -> list[Any]:
    batch = nf.data.from_arrays({"x": np.ones((8, 4), np.float32)}).repeat().batch(4).next()
    h = batch["x"]
    for _ in range(n):
        h = nf.layers.dense(h, 4)
    return [nf.mean(nf.square(h)), nf.optim.SGD(0.1).minimize(nf.mean(nf.square(h)), strategy=strategy)]


@pytest.mark.parametrize("workers", [0, 2], ids=["one task", "two replicas"])
def test_preparing_a_training_step(workers: int) -> None:
    """From the graph to registered plans: pruned, replicated, optimized, placed, cut, compiled."""

    def make(n: int) -> Callable[[], Any]:
        with Graph().as_default() as graph:
            leaves = training(n, nf.train.DataParallel())
        session = Session(cluster, graph)
        return lambda: session.prepare(leaves, {})

    cluster = InProcessCluster(workers, min(workers, 1))
    grows_linearly(make, small=12)
    cluster.close()


def test_a_step_is_prepared_once() -> None:
    cluster = InProcessCluster(2, 1)
    with Graph().as_default() as graph, Session(cluster, graph) as session:
        leaves = training(2, nf.train.DataParallel())
        assert session.prepare(leaves, {}) is session.prepare(leaves, {})
    cluster.close()


def test_gradients() -> None:
    def make(n: int) -> Callable[[], Any]:
        def work() -> None:
            with Graph().as_default():
                training(n)

        return work

    grows_linearly(make, small=12)


def test_bytes_and_digest() -> None:
    def make(n: int) -> Callable[[], Any]:
        with Graph().as_default() as graph:
            training(n)

        def work() -> None:
            assert Graph.from_proto(graph.to_proto().SerializeToString()).digest() == graph.digest()

        return work

    grows_linearly(make, small=12)


def test_a_scope_is_free_again_when_its_cell_is_replaced() -> None:
    graph = Graph()
    with graph.as_default():
        run = begin(graph, Owner("a", "In[1]"))
        with graph.name_scope("dense/deep"):
            nf.constant(1.0)
        assert graph.unique("dense") == "dense.1"
        run.commit()
        assert graph.unique("dense") == "dense.1"
        run = begin(graph, Owner("a", "In[1]"))
        assert graph.unique("dense") == "dense"
        run.commit()
        assert graph.unique("dense") == "dense"
