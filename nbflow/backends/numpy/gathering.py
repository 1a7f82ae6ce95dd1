"""numpy: picking by several indices at once."""

from __future__ import annotations

from typing import Any

import numpy as np

from nbflow.backends.base import Table

TABLE = Table()
A = np.ndarray[Any, Any]


def _key(x: A, indices: tuple[A, ...], axis: int) -> tuple[Any, ...]:
    return (*[slice(None)] * (axis % x.ndim), *indices)


@TABLE.implements("gather_nd")
def _gather_nd(x: A, *indices: A, axis: int) -> A:
    # np.array: scalars index to a view or a number, and an output shares no memory with an input.
    return np.array(x[_key(x, indices, axis)])


@TABLE.implements("scatter_nd_add")
def _scatter_nd_add(x: A, updates: A, *indices: A, axis: int) -> A:
    out = x.copy()
    np.add.at(out, _key(x, indices, axis), updates)
    return out
