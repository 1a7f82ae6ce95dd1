"""cupy: reductions. 16-bit floats are summed in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cupy as cp
import numpy as np

from nbflow.backends.base import Implementation, Table
from nbflow.backends.cupy.elementwise import cast
from nbflow.backends.numpy.reduction import _axes, _size, _wide
from nbflow.backends.numpy.shape import target
from nbflow.spec import is_half

TABLE = Table()
A = Any
Axis = int | tuple[int, ...] | None


def _adding(reduce: Any) -> Implementation:
    def implementation(x: A, *, axis: Axis, keepdims: bool, dtype: np.dtype[Any] | None, out: A | None = None) -> A:
        dtype = _wide(x.dtype) if dtype is None else dtype
        if is_half(x.dtype) or is_half(dtype):
            made = reduce(x.astype(np.float32), axis=axis, dtype=np.float32, keepdims=keepdims)
            return cast(made, dtype, out)
        return reduce(x, axis=axis, dtype=dtype, out=out, keepdims=keepdims)

    return implementation


def _plain(reduce: Any) -> Implementation:
    def implementation(x: A, *, axis: Axis, keepdims: bool, out: A | None = None) -> A:
        return reduce(x, axis=axis, out=out, keepdims=keepdims)

    return implementation


TABLE["sum"] = _adding(cp.sum)
TABLE["prod"] = _adding(cp.prod)
TABLE["max"] = _plain(cp.max)
TABLE["any"] = _plain(cp.any)
TABLE["all"] = _plain(cp.all)
TABLE["argmax"] = _plain(cp.argmax)
TABLE["argmin"] = _plain(cp.argmin)


@TABLE.implements("min")
def _min(x: A, *, axis: Axis, keepdims: bool, out: A | None = None) -> A:
    # cupy 14.2 takes the `out` of its min for a dtype.
    made = cp.min(x, axis=axis, keepdims=keepdims)
    return made if out is None else cast(made, x.dtype, out)


@TABLE.implements("mean")
def _mean(x: A, *, axis: Axis, keepdims: bool, out: A | None = None) -> A:
    total = cp.sum(x, axis=axis, dtype=x.dtype, out=out, keepdims=keepdims)
    return cp.true_divide(total, x.dtype.type(_size(x, axis)), out=out)


@TABLE.implements("count")
def _count(x: A, *, axis: Axis, dtype: np.dtype[Any]) -> A:
    return cp.full((), _size(x, axis), dtype)


@TABLE.implements("sum_to_shape")
def _sum_to_shape(x: A, vector: A | None = None, *, shape: tuple[int, ...] | None) -> A:
    wanted = target(shape, vector)
    if x.shape == wanted:
        return x
    extra = x.ndim - len(wanted)
    axes = tuple(range(extra))
    axes += tuple(extra + i for i, d in enumerate(wanted) if d == 1 and x.shape[extra + i] != 1)
    return cp.sum(x, axis=axes, keepdims=True, dtype=x.dtype).reshape(wanted)


@TABLE.implements("tile_grad")
def _tile_grad(x: A, *, reps: tuple[int, ...], rank: int) -> A:
    times = (1,) * (x.ndim - len(reps)) + reps
    interleaved = [n for d, t in zip(x.shape, times, strict=True) for n in (t, d // t)]
    summed = cp.sum(x.reshape(interleaved), axis=tuple(range(0, 2 * x.ndim, 2)), dtype=x.dtype)
    return summed.reshape(summed.shape[summed.ndim - rank :])


@TABLE.implements("repeat_grad")
def _repeat_grad(x: A, *, repeats: int, axis: int) -> A:
    place = axis % x.ndim
    shape = (*x.shape[:place], x.shape[place] // repeats, repeats, *x.shape[place + 1 :])
    return cp.sum(x.reshape(shape), axis=place + 1, dtype=x.dtype)


# --- running ---------------------------------------------------------------------------------------------------------


def _running(accumulate: Any, initial: int) -> Implementation:
    def implementation(
        x: A, *, axis: int, include_initial: bool, dtype: np.dtype[Any] | None, out: A | None = None
    ) -> A:
        dtype = _wide(x.dtype) if dtype is None else dtype
        wide = np.dtype(np.float32) if is_half(dtype) else dtype
        made = accumulate(x.astype(wide, copy=False), axis=axis, dtype=wide)
        if include_initial:
            first = cp.full((*made.shape[: axis % x.ndim], 1, *made.shape[axis % x.ndim + 1 :]), initial, wide)
            made = cp.concatenate((first, made), axis=axis)
        return made.astype(dtype, copy=False) if out is None else cast(made, dtype, out)

    return implementation


TABLE["cumulative_sum"] = _running(cp.cumsum, 0)
TABLE["cumulative_prod"] = _running(cp.cumprod, 1)


@TABLE.implements("prod_others")
def _prod_others(x: A, *, axis: Axis) -> A:
    rows, back = _rows(x, axis)
    return back(_others(rows))


@TABLE.implements("prod_others_grad")
def _prod_others_grad(x: A, grad: A, *, axis: Axis) -> A:
    # The sum that nbflow/backends/numpy/reduction.py has.
    rows, back = _rows(x, axis)
    weights, _ = _rows(grad, axis)
    total = cp.zeros_like(rows)
    for i in range(rows.shape[-1]):
        without = rows.copy()
        without[..., i] = 1
        part = _others(without) * weights[..., i : i + 1]
        part[..., i] = 0
        total += part
    return back(total)


def _others(rows: A) -> A:
    """Along the last dimension: the product of what is before, times the product of what is after."""
    before, after = cp.ones_like(rows), cp.ones_like(rows)
    if rows.shape[-1] > 1:
        before[..., 1:] = cp.cumprod(rows[..., :-1], axis=-1)
        after[..., :-1] = cp.flip(cp.cumprod(cp.flip(rows[..., 1:], -1), axis=-1), -1)
    return before * after


def _rows(x: A, axis: Axis) -> tuple[A, Callable[[A], A]]:
    """`x` with the dimensions `axis` flattened into the last one, and the way back."""
    axes = _axes(x, axis)
    last = tuple(range(x.ndim - len(axes), x.ndim))
    moved = cp.moveaxis(x, axes, last)

    def back(rows: A) -> A:
        return cp.moveaxis(rows.reshape(moved.shape), last, axes)

    return moved.reshape(*moved.shape[: x.ndim - len(axes)], _size(x, axis)), back
