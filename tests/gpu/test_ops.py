"""The whole table of cases on a GPU, against numpy."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from nbflow.backends.base import Context
from nbflow.backends.cupy import CupyBackend
from nbflow.backends.cupy.ops import HOST_ONLY, IMPLEMENTED
from nbflow.backends.numpy import TABLE
from nbflow.state import StateStore
from nbflow.testing.backend import check_backend, check_case
from nbflow.testing.cases import ROWS, Case, ids

# Rows that say what numpy does, and a GPU does otherwise: floats of 8 bits and long doubles live on CPUs only, a vector
# to search that is not sorted gives anything, and vectors of a decomposition have the signs that a library gives them.
NUMPYS = {"bitcast-2", "astype-19", "searchsorted-4", "eigh-1", "eigh-4", "svd-7", "svd-8", "svd-10", "svd-11"}
HERE = [(c, n) for c, n in zip(ROWS, ids(ROWS), strict=True) if c.op in IMPLEMENTED and n not in NUMPYS]


@functools.cache
def backend() -> CupyBackend:
    return CupyBackend()


@pytest.mark.parametrize("case", [c for c, _ in HERE], ids=[n for _, n in HERE])
def test_every_row_keeps_its_promises(case: Case) -> None:
    check_case(backend(), case)


def test_the_methods_keep_theirs() -> None:
    check_backend(backend, ops=["add"], without=HOST_ONLY)


def test_the_table_has_what_is_said_to_be_there() -> None:
    assert set(backend().table) == IMPLEMENTED


@pytest.mark.parametrize("shape", [(3, 3), (2, 4, 3), (5, 7)])
def test_decompositions_give_back_what_was_decomposed(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(size=shape)
    square = x @ np.swapaxes(x, -1, -2)
    with backend().scope():
        svd = backend().table["svd"](backend().asarray(x), full_matrices=False)
        eigh = backend().table["eigh"](backend().asarray(square))
    u, s, vh = map(backend().to_host, svd)
    values, vectors = map(backend().to_host, eigh)
    np.testing.assert_allclose((u * s[..., None, :]) @ vh, x, atol=1e-12)
    np.testing.assert_allclose(s, np.linalg.svd(x, compute_uv=False), rtol=1e-12)
    np.testing.assert_allclose(square @ vectors, vectors * values[..., None, :], atol=1e-12)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(square), atol=1e-12)


@pytest.mark.parametrize("shape", [(0,), (1,), (5,), (7, 9), (1000, 333)])
def test_random_bits_are_those_of_a_cpu(shape: tuple[int, ...]) -> None:
    context = Context("dropout:0", 7, 11, StateStore(), lambda: None, (2,))
    for dtype in map(np.dtype, ("float32", "float64", "float16")):
        attrs = {"shape": shape, "minval": -1.0, "maxval": 2.0, "dtype": dtype}
        with backend().scope():
            there = backend().to_host(backend().table["random_uniform"](context, **attrs))
        np.testing.assert_array_equal(there, TABLE["random_uniform"](context, **attrs))
    attrs = {"shape": shape, "low": -3, "high": 2**40, "dtype": np.dtype("int64")}
    with backend().scope():
        there = backend().to_host(backend().table["random_integers"](context, **attrs))
    np.testing.assert_array_equal(there, TABLE["random_integers"](context, **attrs))


def test_sums_over_repeated_indices_are_the_same_each_time() -> None:
    rng = np.random.default_rng(0)
    rows, updates = rng.normal(size=(50, 33)).astype("float32"), rng.normal(size=(20_000, 33)).astype("float32")
    indices = rng.integers(0, 50, 20_000)
    made = []
    for _ in range(3):
        with backend().scope():
            given = [backend().asarray(a) for a in (rows, indices, updates)]
            made.append(backend().to_host(backend().table["scatter_add"](*given, axis=0)))
    assert made[0].tobytes() == made[1].tobytes() == made[2].tobytes()
    np.testing.assert_allclose(made[0], TABLE["scatter_add"](rows, indices, updates, axis=0), rtol=2e-4, atol=2e-4)
