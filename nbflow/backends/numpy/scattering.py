"""numpy: elements at places given by index tensors; distinct slices."""

from __future__ import annotations

from typing import Any

import numpy as np

from nbflow.backends.base import Table

TABLE = Table()
A = np.ndarray[Any, Any]

_COMBINE: dict[str, np.ufunc] = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def _write(out: A, key: tuple[A, ...], updates: A, reduction: str) -> None:
    if reduction == "none":
        out[key] = updates
    else:
        _COMBINE[reduction].at(out, key, updates)


def _elements(indices: A, axis: int) -> tuple[A, ...]:
    key: list[A] = list(np.indices(indices.shape, sparse=True))
    key[axis] = indices
    return tuple(key)


@TABLE.implements("gather_elements")
def _gather_elements(x: A, indices: A, *, axis: int) -> A:
    return np.array(x[_elements(indices, axis)])


@TABLE.implements("scatter_elements")
def _scatter_elements(x: A, indices: A, updates: A, *, axis: int, reduction: str) -> A:
    out = x.copy()
    _write(out, _elements(indices, axis), updates, reduction)
    return out


@TABLE.implements("scatter_nd")
def _scatter_nd(x: A, indices: A, updates: A, *, reduction: str) -> A:
    out = x.copy()
    _write(out, tuple(np.moveaxis(indices, -1, 0)), updates, reduction)
    return out


@TABLE.implements("unique_slices")
def _unique(x: A, *, axis: int | None, ascending: bool) -> tuple[A, A, A, A]:
    values, indices, inverse, counts = np.unique(
        x, return_index=True, return_inverse=True, return_counts=True, axis=axis, equal_nan=False
    )
    inverse = inverse.reshape(-1)
    if not ascending:
        order = np.argsort(indices)
        place = np.empty_like(order)
        place[order] = np.arange(order.size)
        values = np.take(values, order, 0 if axis is None else axis)
        indices, inverse, counts = indices[order], place[inverse], counts[order]
    return values, indices.astype(np.int64), inverse.astype(np.int64), counts.astype(np.int64)
