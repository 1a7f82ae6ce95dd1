"""The GPU backend's logic, over a stand-in for cupy (tests/cupy_stand_in.py). On a GPU: `pytest tests/gpu`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nbflow.backends.cupy import CupyBackend
from nbflow.backends.cupy.ops import HOST_ONLY, IMPLEMENTED
from nbflow.testing.backend import check_backend, check_case
from nbflow.testing.cases import ROWS, Case, ids
from tests import cupy_stand_in

pytestmark = pytest.mark.skipif(cupy_stand_in.COMPILER is None, reason="the stand-in needs a C++ compiler")
# Floats of 8 bits and long doubles live on CPUs only.
ON_CPU = {"bitcast-2", "astype-19"}
HERE = [(c, n) for c, n in zip(ROWS, ids(ROWS), strict=True) if c.op in IMPLEMENTED and n not in ON_CPU]


@pytest.fixture(scope="module")
def backend() -> Iterator[CupyBackend]:
    with cupy_stand_in.installed():
        yield CupyBackend()


def test_the_table_has_what_is_said_to_be_there(backend: CupyBackend) -> None:
    assert set(backend.table) == IMPLEMENTED


@pytest.mark.parametrize("case", [c for c, _ in HERE], ids=[n for _, n in HERE])
def test_every_row_keeps_its_promises(backend: CupyBackend, case: Case) -> None:
    check_case(backend, case)


def test_the_methods_keep_theirs(backend: CupyBackend) -> None:
    check_backend(lambda: backend, ops=["add"], without=HOST_ONLY)
