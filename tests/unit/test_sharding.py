"""Variables in pieces: the same numbers as in one piece, only rows travel, and nobody but the tasks can tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nbflow as nf
from nbflow import errors
from nbflow.graph import Graph
from nbflow.inprocess import InProcessCluster

ROWS, WIDTH = 41, 6


def model(strategy: Any, optimizer: Any, clip: Any = None) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    ids = np.concatenate([rng.integers(-ROWS, ROWS, (60, 3)), np.full((4, 3), 7)])
    data = nf.data.from_arrays({"id": ids, "y": rng.normal(size=64).astype("float32")}).repeat().batch(16).next()
    table = nf.Variable(rng.normal(size=(ROWS, WIDTH)).astype("float32"), name="table")
    dense = nf.Variable(rng.normal(size=(3 * WIDTH, 8)).astype("float32"), name="dense")
    rows = nf.nn.embedding_lookup(table, data["id"])
    hidden = nf.nn.relu(nf.reshape(rows, (-1, 3 * WIDTH)) @ dense)
    loss = nf.mean((nf.sum(hidden, axis=1) - data["y"]) ** 2)
    return optimizer.minimize(loss, strategy=strategy, clip=clip), table, dense


def trained(workers: int, ps: int, optimizer: Any, clip: Any = None, steps: int = 8, **more: Any) -> list[Any]:
    cluster = InProcessCluster(workers, ps)
    with Graph().as_default(), nf.Session(cluster) as session:
        step, table, dense = model(nf.train.DataParallel(**more), optimizer, clip)
        for _ in range(steps):
            session.run(step)
        pieces = [n for n in session.last.placement if n.startswith("table/rows_")]  # type: ignore[union-attr]
        assert bool(pieces) == ("split_bytes" in more)
        found = session.run([table, dense])
    cluster.close()
    return list(found)


OPTIMIZERS = {
    "sgd": lambda: nf.optim.SGD(0.01),
    "momentum": lambda: nf.optim.SGD(0.01, momentum=0.9),
    "adam": lambda: nf.optim.Adam(0.01),
    "adamw": lambda: nf.optim.AdamW(0.01),
    "adagrad": lambda: nf.optim.Adagrad(0.01),
    "rmsprop": lambda: nf.optim.RMSProp(0.01, momentum=0.5),
    "lion": lambda: nf.optim.Lion(0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("clip", [None, nf.optim.Clip(global_norm=0.5), nf.optim.Clip(value=0.01)])
def test_pieces_make_the_same_steps(name: str, clip: Any) -> None:
    whole = trained(2, 3, OPTIMIZERS[name](), clip)
    split = trained(2, 3, OPTIMIZERS[name](), clip, split_bytes=64)
    for a, b in zip(split, whole, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("more", [{"compress": "bfloat16"}, {"backup": 0}])
def test_pieces_go_with_compression(more: dict[str, Any]) -> None:
    cluster = InProcessCluster(2, 2)
    found = []
    for limit in (1 << 30, 64):
        with Graph().as_default(), nf.Session(cluster) as session:
            step, table, _ = model(nf.train.DataParallel(split_bytes=limit, **more), nf.optim.Adam(0.01))
            for _ in range(5):
                session.run(step)
            found.append(session.run(table))
    np.testing.assert_array_equal(*found)
    cluster.close()


@pytest.mark.parametrize("more", [{"backup": 1}, {"sync": False}, {"sync": False, "staleness": 1}])
def test_replicas_that_drive_their_own_steps(more: dict[str, Any]) -> None:
    cluster = InProcessCluster(3, 2)
    nf.set_cluster(cluster)
    with Graph().as_default():
        step, table, _ = model(nf.train.DataParallel(split_bytes=64, **more), nf.optim.Adagrad(0.01))
        before = nf.run(table)
        run = nf.train.run(step, steps=12, show=False)
        assert run.status == "done"
        after = nf.run(table)
        assert np.isfinite(after).all()
        assert (after != before).any()
    nf.set_cluster(None)
    cluster.close()


def test_a_value_moves_and_is_read_assigned_and_saved_whole(tmp_path: Path) -> None:
    cluster = InProcessCluster(2, 2)
    nf.set_cluster(cluster)
    with Graph().as_default():
        step, table, _ = model(nf.train.DataParallel(split_bytes=64), nf.optim.Adam(0.0))
        value = np.arange(ROWS * WIDTH, dtype="float32").reshape(ROWS, WIDTH)
        nf.run(table.assign(value))
        nf.run(step)
        np.testing.assert_array_equal(nf.run(table), value)
        np.testing.assert_array_equal(nf.run(table.assign_add(value)), 2 * value)
        nf.run(table.scatter_update([0, -1], np.zeros((2, WIDTH), "float32")))
        value = 2 * value
        value[[0, -1]] = 0
        np.testing.assert_array_equal(nf.run(table.read()), value)
        nf.train.save(tmp_path)
    nf.set_cluster(None)
    cluster.close()
    for workers, ps in ((0, 0), (2, 3)):
        cluster = InProcessCluster(workers, ps)
        nf.set_cluster(cluster)
        with Graph().as_default():
            step, table, _ = model(nf.train.DataParallel(split_bytes=64), nf.optim.Adam(0.0))
            nf.run(step)
            nf.train.restore(tmp_path)
            np.testing.assert_array_equal(nf.run(table), value)
        nf.set_cluster(None)
        cluster.close()


def test_the_table_does_not_travel() -> None:
    def moved(rows: int) -> int:
        cluster = InProcessCluster(2, 2)
        with Graph().as_default(), nf.Session(cluster) as session:
            data = nf.data.from_arrays({"id": np.arange(16) * (rows // 16)}).repeat().batch(16).next()["id"]
            table = nf.Variable(np.ones((rows, 8), "float32"), name="table")
            loss = nf.mean(nf.sum(nf.take(table, data, axis=0) ** 2, axis=1))
            step = nf.optim.Adagrad(0.1).minimize(loss, strategy=nf.train.DataParallel(split_bytes=512))
            _, trace = session.run(step, trace=True)
            assert (session.run(table) != 1).any(axis=1).sum() == 16
        cluster.close()
        return sum(t.nbytes for t in trace.transfers)

    assert moved(1000) == moved(100_000) < 4096


def test_rows_that_are_not_there() -> None:
    cluster = InProcessCluster(1, 2)
    with Graph().as_default(), nf.Session(cluster) as session:
        step, table, _ = model(nf.train.DataParallel(split_bytes=64), nf.optim.SGD(0.01))
        session.run(step)
        for bad in (ROWS, -ROWS - 1):
            with pytest.raises(errors.OpError, match="out of"):
                session.run(nf.take(table, np.array([1, bad]), axis=0))
        assert session.run(nf.take(table, np.zeros(0, "int64"), axis=0)).shape == (0, WIDTH)
    cluster.close()


@pytest.mark.parametrize("bytes_", [0, -1, 1.5])
def test_no_limit_that_is_none(bytes_: Any) -> None:
    with pytest.raises(errors.GraphError, match="split_bytes"):
        nf.train.DataParallel(split_bytes=bytes_)


def test_what_needs_norms_of_all_rows_stays_whole() -> None:
    cluster = InProcessCluster(1, 2)
    with Graph().as_default(), nf.Session(cluster) as session:
        step, _, _ = model(nf.train.DataParallel(split_bytes=64), nf.optim.Lamb(0.01))
        session.run(step)
        assert not [n for n in session.last.placement if "/rows_" in n]  # type: ignore[union-attr]
    cluster.close()
