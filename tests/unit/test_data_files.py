"""Datasets from files, and side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import nbflow as nf
from nbflow.errors import DataError
from nbflow.graph import Graph
from nbflow.testing import Evaluator


def test_shards_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    x, y = np.arange(12.0).reshape(6, 2), np.arange(6)
    for n in (1, 0, 2):
        np.savez(tmp_path / f"shard-{n}.npz", x=x[2 * n : 2 * n + 2], y=y[2 * n : 2 * n + 2])
    dataset = nf.data.from_files(str(tmp_path / "shard-*.npz")).batch(4)
    with Graph().as_default():
        batch = dataset.next()
        runner = Evaluator()
        first, second = (runner.run([batch["x"], batch["y"]]) for _ in range(2))
    np.testing.assert_array_equal(np.concatenate([first[0], second[0]]), x)
    np.testing.assert_array_equal(np.concatenate([first[1], second[1]]), y)


def test_one_npy_file_is_mapped(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(10.0))
    (array,) = nf.data.from_files([str(tmp_path / "a.npy")]).tree[2]
    owner = array
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    assert isinstance(owner, np.memmap)
    np.testing.assert_array_equal(array, np.arange(10.0))


def test_files_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file matches"):
        nf.data.from_files(str(tmp_path / "*.npz"))
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    np.savez(tmp_path / "b.npz", x=np.zeros((3, 2)))
    with pytest.raises(DataError, match="must be alike"):
        nf.data.from_files(str(tmp_path / "*.npz"))
    (tmp_path / "c.npz").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="cannot be read"):
        nf.data.from_files([str(tmp_path / "c.npz")])
    with pytest.raises(DataError, match=r"no \.npz"):
        nf.data.from_files([str(tmp_path / "d.csv")])


def test_zip() -> None:
    one = nf.data.from_arrays(np.arange(4))
    two = nf.data.from_arrays({"a": np.arange(4) * 2, "b": np.arange(4) * 3})
    with Graph().as_default():
        batch = nf.data.zip(left=one, right=two).batch(4).next()
        found = Evaluator().run(batch)
    assert {k: v.tolist() for k, v in found.items()} == {
        "left": [0, 1, 2, 3],
        "right/a": [0, 2, 4, 6],
        "right/b": [0, 3, 6, 9],
    }
    with pytest.raises(DataError, match="number of rows"):
        nf.data.zip(left=one, right=nf.data.from_arrays(np.arange(3)))
