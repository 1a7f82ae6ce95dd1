"""The numpy backend as such: one table, few methods. Its implementations are tested by `test_ops_cases.py`."""

from __future__ import annotations

import numpy as np
import pytest

from nbflow.backends.base import Table
from nbflow.backends.numpy import FAMILIES, NumpyBackend, merge
from nbflow.backends.numpy.indexing import add_rows
from nbflow.errors import GraphError


def test_it_is_a_backend() -> None:
    backend = NumpyBackend()
    assert backend.type == "cpu"
    array = np.arange(3.0)
    assert backend.asarray(array) is array
    assert backend.to_host(array) is array
    made = backend.empty((2, 3), np.dtype("int8"))
    assert (made.shape, made.dtype) == ((2, 3), np.dtype("int8"))
    backend.synchronize()
    assert backend.table["add"] is np.add
    with pytest.raises(TypeError):
        backend.table["add"] = np.subtract  # type: ignore[index]


def test_two_implementations_of_one_op_are_an_error() -> None:
    first, second = Table(add=np.add), Table(add=np.subtract)
    with pytest.raises(GraphError, match="'add' has implementations in two families"):
        merge([first, second])
    with pytest.raises(GraphError, match="two implementations in one table"):
        first.implements("add")(np.subtract)
    assert sum(len(f.TABLE) for f in FAMILIES) == len(NumpyBackend().table)


@pytest.mark.parametrize("width", [(), (3,), (2, 2)])
@pytest.mark.parametrize("count", [0, 1, 50])
def test_add_rows_adds_repeated_indices(width: tuple[int, ...], count: int) -> None:
    random = np.random.default_rng(count)
    indices = random.integers(-7, 7, count)
    updates = random.normal(size=(count, *width))
    rows = random.normal(size=(7, *width))
    wanted = rows.copy()
    for index, update in zip(indices, updates, strict=True):
        wanted[index] += update
    add_rows(rows, indices, updates)
    np.testing.assert_allclose(rows, wanted, rtol=1e-12)


@pytest.mark.parametrize("index", [7, -8])
def test_add_rows_refuses_what_is_out_of_range(index: int) -> None:
    with pytest.raises(IndexError, match="dimension of length 7"):
        add_rows(np.zeros((7, 2)), np.array([0, index]), np.ones((2, 2)))
