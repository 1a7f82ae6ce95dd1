"""numpy: joining and splitting."""

from __future__ import annotations

from typing import Any

import numpy as np

from nbflow.backends.base import Table
from nbflow.errors import ShapeError

TABLE = Table()
A = np.ndarray[Any, Any]


@TABLE.implements("concat")
def _concat(*values: A, axis: int, out: A | None = None) -> A:
    return np.concatenate(values, axis, out)


@TABLE.implements("stack")
def _stack(*values: A, axis: int, out: A | None = None) -> A:
    return np.stack(values, axis, out)


@TABLE.implements("unstack")
def _unstack(x: A, *, num: int, axis: int) -> tuple[A, ...]:
    if x.shape[axis] != num:
        raise ShapeError(f"dimension {axis} of {x.shape} does not have length {num}")
    return tuple(np.moveaxis(x, axis, 0)[i, ...] for i in range(num))


@TABLE.implements("split")
def _split(x: A, vector: A | None = None, *, sizes: tuple[int | None, ...], axis: int) -> tuple[A, ...]:
    length = x.shape[axis]
    if vector is not None:
        found = vector.tolist()
    elif None in sizes:
        if length % len(sizes):
            raise ShapeError(f"dimension {axis} of {x.shape} does not split into {len(sizes)} equal parts")
        found = [length // len(sizes)] * len(sizes)
    else:
        found = list(sizes)
    if sum(found) != length:
        raise ShapeError(f"parts of {found} do not add up to dimension {axis} of {x.shape}")
    return tuple(np.split(x, np.cumsum(found[:-1]), axis))
