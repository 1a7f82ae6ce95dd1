"""numpy: shapes as values, reshaping and broadcasting."""

from __future__ import annotations

from typing import Any

import numpy as np

from nbflow.backends.base import Table

TABLE = Table()
A = np.ndarray[Any, Any]


def target(shape: tuple[int, ...] | None, vector: A | None) -> tuple[int, ...]:
    """The shape at run time, from the attribute or, where that is not complete, from the vector."""
    if vector is None:
        assert shape is not None  # held by the shape rules
        return shape
    return tuple(vector.tolist())


@TABLE.implements("shape_of")
def _shape_of(x: A) -> A:
    return np.array(x.shape, np.int64)


@TABLE.implements("reshape")
def _reshape(x: A, vector: A | None = None, *, shape: tuple[int, ...] | None) -> A:
    return x.reshape(target(shape, vector))


@TABLE.implements("broadcast_to")
def _broadcast_to(x: A, vector: A | None = None, *, shape: tuple[int, ...] | None) -> A:
    return np.broadcast_to(x, target(shape, vector))


@TABLE.implements("sum_to_shape")
def _sum_to_shape(x: A, vector: A | None = None, *, shape: tuple[int, ...] | None) -> A:
    wanted = target(shape, vector)
    if x.shape == wanted:
        return x
    extra = x.ndim - len(wanted)
    axes = tuple(range(extra))
    axes += tuple(extra + i for i, d in enumerate(wanted) if d == 1 and x.shape[extra + i] != 1)
    summed = np.add.reduce(x, axis=axes, keepdims=True, dtype=x.dtype)
    return summed.reshape(wanted)
