"""numpy: picking elements by index, and adding them back."""

from __future__ import annotations

from typing import Any

import numpy as np

from nbflow.backends.base import Table
from nbflow.backends.numpy.shape import target
from nbflow.spec import kind_of

TABLE = Table()
A = np.ndarray[Any, Any]


def _key(index: tuple[Any, ...]) -> tuple[Any, ...]:
    # The ellipsis at the end makes numpy return a view also where every dimension is indexed by an int.
    names = {"newaxis": None, "...": ...}
    items = tuple(slice(*i) if isinstance(i, tuple) else names[i] if isinstance(i, str) else i for i in index)
    return items if "..." in index else (*items, ...)


@TABLE.implements("getitem")
def _getitem(x: A, *, index: tuple[Any, ...]) -> A:
    made: A = x[_key(index)]
    return made


@TABLE.implements("getitem_grad")
def _getitem_grad(
    values: A,
    vector: A | None = None,
    *,
    index: tuple[Any, ...],
    shape: tuple[int, ...] | None,
    out: A | None = None,
) -> A:
    if out is None:
        out = np.zeros(target(shape, vector), values.dtype)
    else:
        out.fill(0)
    out[_key(index)] = values
    return out


@TABLE.implements("take")
def _take(x: A, indices: A, *, axis: int) -> A:
    return np.take(x, indices, axis)


@TABLE.implements("scatter_add")
def _scatter_add(x: A, indices: A, updates: A, *, axis: int) -> A:
    out = x.copy()
    place = axis % x.ndim
    shape = (*x.shape[:place], *indices.shape, *x.shape[place + 1 :])
    if updates.shape != shape:
        updates = np.broadcast_to(updates, shape)
    # One dimension of indices, first: rows of `updates` are added to rows of `rows`.
    rows = np.moveaxis(out, place, 0)
    around = tuple(range(place, place + indices.ndim))
    flat = np.moveaxis(updates, around, tuple(range(indices.ndim))).reshape(indices.size, *rows.shape[1:])
    add_rows(rows, indices.reshape(-1), flat)
    return out


def add_rows(rows: A, indices: A, updates: A) -> None:
    """Adds `updates[i]` to `rows[indices[i]]` in place; repeated indices add up, in order."""
    count = rows.shape[0]
    if not indices.size:
        return
    if indices.min() < -count or indices.max() >= count:
        raise IndexError(f"indices from {indices.min()} to {indices.max()} for a dimension of length {count}")
    # Grouping equal indices and adding whole rows at once is several times as fast as numpy's add.at for wide rows.
    positions = np.where(indices < 0, indices + count, indices) if kind_of(indices.dtype) == "i" else indices
    if rows.ndim == 1:
        np.add.at(rows, positions, updates)
        return
    order = np.argsort(positions, kind="stable")
    ordered = positions[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    rows[ordered[starts]] += np.add.reduceat(updates[order], starts, axis=0)


@TABLE.implements("take_along_axis")
def _take_along_axis(x: A, indices: A, *, axis: int) -> A:
    return np.asarray(x[_along(x, indices, axis)])


@TABLE.implements("scatter_add_along_axis")
def _scatter_add_along_axis(x: A, indices: A, updates: A, *, axis: int) -> A:
    out = x.copy()
    np.add.at(out, _along(x, indices, axis), updates)
    return out


def _along(x: A, indices: A, axis: int) -> tuple[A, ...]:
    """The index arrays of every dimension; dimensions of length 1 broadcast either way."""
    place = axis % x.ndim
    key: list[A] = []
    for i, length in enumerate(x.shape):
        if i == place:
            key.append(indices)
        else:
            key.append(np.arange(length).reshape([-1 if j == i else 1 for j in range(x.ndim)]))
    return tuple(key)


@TABLE.implements("one_hot")
def _one_hot(indices: A, *, depth: int, dtype: np.dtype[Any], out: A | None = None) -> A:
    if out is None:
        out = np.empty((*indices.shape, depth), dtype)
    np.equal(indices[..., None], np.arange(depth), out=out, casting="unsafe")
    return out


@TABLE.implements("sort")
def _sort(x: A, *, axis: int, descending: bool) -> A:
    if not descending:
        return np.sort(x, axis=axis, stable=True)
    # Turned around twice, equal elements (0.0 and -0.0) keep their order.
    return np.flip(np.sort(np.flip(x, axis), axis=axis, stable=True), axis).copy()


@TABLE.implements("argsort")
def _argsort(x: A, *, axis: int, descending: bool) -> A:
    if not descending:
        return np.argsort(x, axis=axis, stable=True)
    # Sorting the reversed array and counting from the end keeps equal elements in their order.
    backwards = np.argsort(np.flip(x, axis), axis=axis, stable=True)
    return np.asarray(x.shape[axis] - 1 - np.flip(backwards, axis))
