"""cupy: searching and sets. How many values there are is read by the host, which waits for the GPU."""

from __future__ import annotations

from typing import Any

import cupy as cp
import numpy as np

from nbflow.backends.base import Table
from nbflow.errors import ShapeError

TABLE = Table()
A = Any


@TABLE.implements("nonzero")
def _nonzero(x: A, shape: A | None = None) -> A | tuple[A, ...]:
    if shape is not None and x.shape != tuple(shape.tolist()):
        raise ShapeError(f"a mask of {x.shape} does not fit dimensions of {tuple(shape.tolist())}")
    found = tuple(cp.array(i) for i in cp.nonzero(x))
    return found if len(found) > 1 else found[0]


@TABLE.implements("searchsorted")
def _searchsorted(vector: A, values: A, *, side: Any) -> A:
    return cp.searchsorted(vector, values, side).astype(np.int64, copy=False)


@TABLE.implements("isin")
def _isin(x: A, test: A, *, invert: bool) -> A:
    return cp.isin(x, test, invert=invert)


@TABLE.implements("unique")
def _unique(x: A) -> tuple[A, A, A, A]:
    values, indices, inverse, counts = _found(x, None)
    return values, indices, inverse.reshape(x.shape), counts


@TABLE.implements("unique_slices")
def _unique_slices(x: A, *, axis: int | None, ascending: bool) -> tuple[A, A, A, A]:
    values, indices, inverse, counts = _found(x, axis)
    if not ascending:
        order = cp.argsort(indices, kind="stable")
        place = cp.empty_like(order)
        place[order] = cp.arange(order.size)
        values = cp.take(values, order, 0 if axis is None else axis)
        indices, inverse, counts = indices[order], place[inverse], counts[order]
    return values, indices, inverse, counts


def _found(x: A, axis: int | None) -> tuple[A, A, A, A]:
    """cupy's answer, all numbers as int64 and the inverse flat."""
    values, *numbers = cp.unique(
        x, return_index=True, return_inverse=True, return_counts=True, axis=axis, equal_nan=False
    )
    indices, inverse, counts = (n.astype(np.int64, copy=False) for n in numbers)
    return values, indices, inverse.reshape(-1), counts
