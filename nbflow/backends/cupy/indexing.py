"""cupy: picking elements. An index out of range wraps around, as cupy does it: looking for one would make it wait."""

from __future__ import annotations

from typing import Any

import cupy as cp
import numpy as np

from nbflow.backends.base import Table
from nbflow.backends.cupy.scattering import along, elements
from nbflow.backends.numpy.indexing import _key
from nbflow.backends.numpy.shape import target

TABLE = Table()
A = Any


@TABLE.implements("getitem")
def _getitem(x: A, *, index: tuple[Any, ...]) -> A:
    return x[_key(index)]


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
        out = cp.zeros(target(shape, vector), values.dtype)
    else:
        out.fill(0)
    out[_key(index)] = values
    return out


@TABLE.implements("take")
def _take(x: A, indices: A, *, axis: int) -> A:
    return cp.take(x, indices, axis)


@TABLE.implements("take_along_axis")
def _take_along_axis(x: A, indices: A, *, axis: int) -> A:
    return x[along(x, indices, axis)]


@TABLE.implements("gather_nd")
def _gather_nd(x: A, *indices: A, axis: int) -> A:
    return x[(*[slice(None)] * (axis % x.ndim), *indices)]


@TABLE.implements("gather_elements")
def _gather_elements(x: A, indices: A, *, axis: int) -> A:
    return x[elements(indices, axis)]


@TABLE.implements("one_hot")
def _one_hot(indices: A, *, depth: int, dtype: np.dtype[Any], out: A | None = None) -> A:
    made = cp.equal(indices[..., None], cp.arange(depth))
    if out is None:
        return made.astype(dtype, copy=False)
    cp.copyto(out, made, casting="unsafe")
    return out


@TABLE.implements("sort")
def _sort(x: A, *, axis: int, descending: bool) -> A:
    if not descending:
        return cp.sort(x, axis=axis)
    return cp.flip(cp.sort(cp.flip(x, axis), axis=axis), axis).copy()


@TABLE.implements("argsort")
def _argsort(x: A, *, axis: int, descending: bool) -> A:
    if not descending:
        return cp.argsort(x, axis=axis, kind="stable").astype(np.int64, copy=False)
    backwards = cp.argsort(cp.flip(x, axis), axis=axis, kind="stable")
    return (x.shape[axis] - 1 - cp.flip(backwards, axis)).astype(np.int64, copy=False)
