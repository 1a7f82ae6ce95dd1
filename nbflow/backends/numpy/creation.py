"""numpy: constants and filled arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from nbflow.backends.base import Table
from nbflow.backends.numpy.shape import target

TABLE = Table()
A = np.ndarray[Any, Any]


@TABLE.implements("constant")
def _constant(*, value: A) -> A:
    return value


@TABLE.implements("identity", "stop_gradient")
def _identity(x: A) -> A:
    return x


@TABLE.implements("compressed")
def _compressed(x: A, *, dtype: str) -> A:
    return x


@TABLE.implements("group")
def _group(*, strategy: Any = ()) -> tuple[()]:
    return ()


@TABLE.implements("full")
def _full(
    vector: A | None = None,
    *,
    value: float,
    dtype: np.dtype[Any],
    shape: tuple[int, ...] | None,
    out: A | None = None,
) -> A:
    if out is None:
        return np.full(target(shape, vector), value, dtype)
    out.fill(value)
    return out


@TABLE.implements("arange")
def _arange(end: A | None = None, *, start: float, stop: float | None, step: float, dtype: np.dtype[Any]) -> A:
    # numpy's own arange may differ by one element from the shape rule when steps are inexact.
    if end is not None:
        return np.arange(start, int(end), dtype=dtype)
    assert stop is not None  # held by nf.arange
    count = max(0, int(np.ceil((stop - start) / step)))
    return (start + step * np.arange(count)).astype(dtype)


@TABLE.implements("eye")
def _eye(*, rows: int, columns: int, k: int, dtype: np.dtype[Any], out: A | None = None) -> A:
    if out is None:
        return np.eye(rows, columns, k, dtype)
    out.fill(0)
    np.einsum("ii->i", _square_part(out, k))[...] = 1
    return out


def _square_part(matrix: A, k: int) -> A:
    part = matrix[max(0, -k) :, max(0, k) :]
    side = min(part.shape)
    return part[:side, :side]
