"""numpy: permuting, turning, repeating, padding."""

from __future__ import annotations

from typing import Any

import numpy as np

from nbflow.backends.base import Table

TABLE = Table()
A = np.ndarray[Any, Any]


@TABLE.implements("permute_dims")
def _permute_dims(x: A, *, axes: tuple[int, ...]) -> A:
    return x.transpose(axes)


@TABLE.implements("matrix_transpose")
def _matrix_transpose(x: A) -> A:
    return x.swapaxes(-1, -2)


@TABLE.implements("expand_dims")
def _expand_dims(x: A, *, axis: tuple[int, ...]) -> A:
    return np.expand_dims(x, axis)


@TABLE.implements("squeeze")
def _squeeze(x: A, *, axis: tuple[int, ...]) -> A:
    return np.squeeze(x, axis)


@TABLE.implements("flip")
def _flip(x: A, *, axis: int | tuple[int, ...] | None) -> A:
    return np.flip(x, axis)


@TABLE.implements("roll")
def _roll(x: A, *, shift: tuple[int, ...], axis: tuple[int, ...] | None) -> A:
    return np.roll(x, shift if axis is not None else sum(shift), axis)


@TABLE.implements("tile")
def _tile(x: A, *, reps: tuple[int, ...]) -> A:
    return np.tile(x, reps)


@TABLE.implements("tile_grad")
def _tile_grad(x: A, *, reps: tuple[int, ...], rank: int) -> A:
    times = (1,) * (x.ndim - len(reps)) + reps
    interleaved = [n for d, t in zip(x.shape, times, strict=True) for n in (t, d // t)]
    summed = np.add.reduce(x.reshape(interleaved), axis=tuple(range(0, 2 * x.ndim, 2)), dtype=x.dtype)
    return np.asarray(summed).reshape(summed.shape[summed.ndim - rank :])


@TABLE.implements("repeat")
def _repeat(x: A, *, repeats: int, axis: int) -> A:
    return np.repeat(x, repeats, axis)


@TABLE.implements("repeat_grad")
def _repeat_grad(x: A, *, repeats: int, axis: int) -> A:
    place = axis % x.ndim
    shape = (*x.shape[:place], x.shape[place] // repeats, repeats, *x.shape[place + 1 :])
    return np.asarray(np.add.reduce(x.reshape(shape), axis=place + 1, dtype=x.dtype))


@TABLE.implements("pad")
def _pad(x: A, *, widths: tuple[tuple[int, int], ...], value: float, out: A | None = None) -> A:
    if out is None:
        out = np.empty([d + before + after for d, (before, after) in zip(x.shape, widths, strict=True)], x.dtype)
    out.fill(value)
    out[tuple(slice(before, before + d) for d, (before, _) in zip(x.shape, widths, strict=True))] = x
    return out


@TABLE.implements("triu")
def _triu(x: A, *, k: int) -> A:
    return np.triu(x, k)


@TABLE.implements("tril")
def _tril(x: A, *, k: int) -> A:
    return np.tril(x, k)
