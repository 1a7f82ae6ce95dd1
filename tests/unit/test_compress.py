"""What travels between workers and ps: compressed gradients and their error, rows of tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import nbflow as nf
from nbflow import errors
from nbflow.graph import Graph
from nbflow.inprocess import InProcessCluster
from tests.unit.test_data_parallel import model


@pytest.fixture
def graph() -> Iterator[Graph]:
    nf.set_cluster(None)
    with Graph().as_default() as made:
        yield made
        nf.set_cluster(None)


def gradient(compress: str | None, sizes: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], int]:
    """The mean gradient that arrives at a variable from two workers, and the bytes that it took to get there."""
    cluster = InProcessCluster(2, 1)
    with Graph().as_default(), nf.Session(cluster) as session:
        rows = np.stack([sizes, sizes * np.float32(1.7)])
        data = nf.data.from_arrays({"x": rows}).batch(2).next()["x"]
        w = nf.Variable(np.zeros(len(sizes), "float32"), name="w")
        strategy = nf.train.DataParallel(compress=compress)
        step = nf.optim.SGD(1.0).minimize(nf.sum(nf.mean(data, axis=0) * w), strategy=strategy)
        _, trace = session.run(step, trace=True)
        value = session.run(w)
    cluster.close()
    return -value, sum(t.nbytes for t in trace.transfers if "/job:ps" in t.destination)


@pytest.mark.parametrize(("compress", "bits"), [("bfloat16", 8), ("float16", 11)])
def test_the_error_of_compressed_gradients(graph: Graph, compress: str, bits: int) -> None:
    """Each number is rounded once on each worker: by half a unit of its last place, 2^-8 or 2^-11 at most."""
    sizes = np.random.default_rng(0).normal(size=10_000).astype("float32")
    exact, whole = gradient(None, sizes)
    close, less = gradient(compress, sizes)
    error = np.abs(close - exact) / np.abs(exact)
    assert 2.0 ** -(bits + 2) < error.max() <= 1.01 * 2.0**-bits
    assert 0.5 * whole <= less < 0.51 * whole


@pytest.mark.parametrize("compress", ["bfloat16", "float16"])
@pytest.mark.parametrize("more", [{}, {"backup": 1}, {"sync": False, "staleness": 1}])
def test_training_with_compressed_gradients(graph: Graph, compress: str, more: dict[str, Any]) -> None:
    cluster = InProcessCluster(3, 1)
    nf.set_cluster(cluster)
    step, loss, _ = model(nf.train.DataParallel(compress=compress, **more), nf.optim.SGD(0.1))
    run = nf.train.run(step, steps=90, metrics={"loss": loss}, every=10, show=False)
    assert run.history["loss"][-1] < run.history["loss"][0]
    nf.set_cluster(None)
    cluster.close()


def test_compressed_losses_do_not_depend_on_the_placement(graph: Graph) -> None:
    """A gradient is rounded whether or not it crosses a device."""

    def losses(ps: int) -> Any:
        cluster = InProcessCluster(2, ps)
        with Graph().as_default():
            nf.set_cluster(cluster)
            step, loss, _ = model(nf.train.DataParallel(compress="bfloat16"), nf.optim.SGD(0.1))
            found = nf.train.run(step, steps=10, metrics={"loss": loss}, every=1, show=False).history["loss"]
            nf.set_cluster(None)
        cluster.close()
        return found

    np.testing.assert_array_equal(losses(0), losses(2))


def test_gradients_travel_as_nothing_else() -> None:
    with pytest.raises(errors.GraphError, match="bfloat16 or float16"):
        nf.train.DataParallel(compress="int8")


def test_only_rows_that_are_looked_up_travel(graph: Graph) -> None:
    """Looking up and updating 16 rows moves the same bytes for a table of 100 rows and of 100,000."""

    def moved(rows: int) -> int:
        cluster = InProcessCluster(2, 1)
        with Graph().as_default(), nf.Session(cluster) as session:
            ids = np.arange(16) * (rows // 16)
            data = nf.data.from_arrays({"id": ids}).repeat().batch(16).next()["id"]
            table = nf.Variable(np.ones((rows, 8), "float32"), name="table")
            loss = nf.mean(nf.sum(nf.take(table, data, axis=0) ** 2, axis=1))
            step = nf.optim.Adagrad(0.1).minimize(loss, strategy=nf.train.DataParallel())
            _, trace = session.run(step, trace=True)
            changed = np.flatnonzero((session.run(table) != 1).any(axis=1))
        cluster.close()
        np.testing.assert_array_equal(changed, ids)
        return sum(t.nbytes for t in trace.transfers)

    assert moved(100) == moved(100_000) < 4096
