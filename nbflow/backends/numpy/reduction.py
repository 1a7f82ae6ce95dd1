"""numpy: reductions, by the ufuncs' own `reduce`, which spares numpy's Python wrappers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from nbflow.backends.base import Implementation, Table
from nbflow.spec import is_half, kind_of

TABLE = Table()
_add: Any = np.add  # numpy's stubs reject `out=None` beside `keepdims`
A = np.ndarray[Any, Any]
Axis = int | tuple[int, ...] | None


def _adding(ufunc: Any) -> Implementation:
    def implementation(x: A, *, axis: Axis, keepdims: bool, dtype: np.dtype[Any] | None, out: A | None = None) -> A:
        if dtype is None:
            dtype = _wide(x.dtype)
        if is_half(dtype):
            made: A = ufunc.reduce(x, axis=axis, dtype=np.float32, keepdims=keepdims)
            return _narrowed(made, dtype, out)
        made = ufunc.reduce(x, axis=axis, dtype=dtype, out=out, keepdims=keepdims)
        return made

    return implementation


def _narrowed(made: A, dtype: np.dtype[Any], out: A | None) -> A:
    if out is None:
        return made.astype(dtype)
    np.copyto(out, made, casting="unsafe")  # to numpy, float32 to bfloat16 is not of the same kind
    return out


def _plain(ufunc: Any) -> Implementation:
    def implementation(x: A, *, axis: Axis, keepdims: bool, out: A | None = None) -> A:
        made: A = ufunc.reduce(x, axis=axis, out=out, keepdims=keepdims)
        return made

    return implementation


TABLE["sum"] = _adding(np.add)
TABLE["prod"] = _adding(np.multiply)
TABLE["max"] = _plain(np.maximum)
TABLE["min"] = _plain(np.minimum)
TABLE["any"] = _plain(np.logical_or)
TABLE["all"] = _plain(np.logical_and)


def _axes(x: A, axis: Axis) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(x.ndim))
    return tuple(a % x.ndim for a in ((axis,) if isinstance(axis, int) else axis))


def _size(x: A, axis: Axis) -> int:
    return math.prod(x.shape[a] for a in _axes(x, axis))


@TABLE.implements("mean")
def _mean(x: A, *, axis: Axis, keepdims: bool, out: A | None = None) -> A:
    total = _add.reduce(x, axis=axis, out=out, keepdims=keepdims)
    made: A = np.true_divide(total, x.dtype.type(_size(x, axis)), out=out)
    return made


@TABLE.implements("count")
def _count(x: A, *, axis: Axis, dtype: np.dtype[Any]) -> A:
    return np.asarray(_size(x, axis), dtype)


@TABLE.implements("argmax")
def _argmax(x: A, *, axis: int | None, keepdims: bool, out: A | None = None) -> A:
    made: A = np.argmax(x, axis=axis, out=out, keepdims=keepdims)
    return made


@TABLE.implements("argmin")
def _argmin(x: A, *, axis: int | None, keepdims: bool, out: A | None = None) -> A:
    made: A = np.argmin(x, axis=axis, out=out, keepdims=keepdims)
    return made


def _running(ufunc: np.ufunc, initial: int) -> Implementation:
    def implementation(
        x: A, *, axis: int, include_initial: bool, dtype: np.dtype[Any] | None, out: A | None = None
    ) -> A:
        if dtype is None:
            dtype = _wide(x.dtype)
        if is_half(dtype):
            single = np.dtype(np.float32)
            return _narrowed(implementation(x, axis=axis, include_initial=include_initial, dtype=single), dtype, out)
        if not include_initial:
            made: A = ufunc.accumulate(x, axis=axis, dtype=dtype, out=out)
            return made
        if out is None:
            place = axis % x.ndim
            out = np.empty((*x.shape[:place], x.shape[place] + 1, *x.shape[place + 1 :]), dtype)
        lines = np.moveaxis(out, axis, 0)
        lines[0] = initial
        ufunc.accumulate(np.moveaxis(x, axis, 0), axis=0, dtype=out.dtype, out=lines[1:])
        return out

    return implementation


TABLE["cumulative_sum"] = _running(np.add, 0)
TABLE["cumulative_prod"] = _running(np.multiply, 1)


def _wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if kind_of(dtype) == "b":
        return np.dtype(np.int64)
    return np.dtype(f"{kind_of(dtype)}8") if kind_of(dtype) in "iu" else dtype


# --- products of all other elements ----------------------------------------------------------------------------------


@TABLE.implements("prod_others")
def _prod_others(x: A, *, axis: Axis) -> A:
    rows, back = _rows(x, axis)
    return back(_others(rows))


@TABLE.implements("prod_others_grad")
def _prod_others_grad(x: A, grad: A, *, axis: Axis) -> A:
    # d/dx_j of sum_i g_i * prod_{k != i} x_k  =  sum_{i != j} g_i * prod_{k != i, j} x_k
    rows, back = _rows(x, axis)
    weights, _ = _rows(grad, axis)
    total = np.zeros_like(rows)
    for i in range(rows.shape[-1]):
        without = rows.copy()
        without[..., i] = 1
        part = _others(without) * weights[..., i : i + 1]
        part[..., i] = 0
        total += part
    return back(total)


def _others(rows: A) -> A:
    """Along the last dimension: the product of what is before, times the product of what is after."""
    before, after = np.ones_like(rows), np.ones_like(rows)
    np.multiply.accumulate(rows[..., :-1], axis=-1, out=before[..., 1:])
    np.multiply.accumulate(rows[..., :0:-1], axis=-1, out=after[..., -2::-1])
    return before * after


def _rows(x: A, axis: Axis) -> tuple[A, Callable[[A], A]]:
    """`x` with the dimensions `axis` flattened into the last one, and the way back."""
    axes = _axes(x, axis)
    last = tuple(range(x.ndim - len(axes), x.ndim))
    moved = np.moveaxis(x, axes, last)

    def back(rows: A) -> A:
        return np.moveaxis(rows.reshape(moved.shape), last, axes)

    return moved.reshape(*moved.shape[: x.ndim - len(axes)], _size(x, axis)), back
