"""numpy: searching and sets."""

from __future__ import annotations

from typing import Any

import numpy as np

from nbflow.backends.base import Table
from nbflow.errors import ShapeError

TABLE = Table()
A = np.ndarray[Any, Any]


@TABLE.implements("nonzero")
def _nonzero(x: A, shape: A | None = None) -> A | tuple[A, ...]:
    if shape is not None and x.shape != tuple(shape.tolist()):
        raise ShapeError(f"a mask of {x.shape} does not fit dimensions of {tuple(shape.tolist())}")
    # numpy gives views of one array; each output owns its memory, so that one kept does not keep all.
    found = tuple(np.array(i) for i in np.nonzero(x))
    return found if len(found) > 1 else found[0]


@TABLE.implements("searchsorted")
def _searchsorted(vector: A, values: A, *, side: Any) -> A:
    return np.asarray(np.searchsorted(vector, values, side))


@TABLE.implements("isin")
def _isin(x: A, test: A, *, invert: bool) -> A:
    return np.isin(x, test, invert=invert)


@TABLE.implements("unique")
def _unique(x: A) -> tuple[A, A, A, A]:
    values, indices, inverse, counts = np.unique(
        x, return_index=True, return_inverse=True, return_counts=True, equal_nan=False
    )
    return values, indices, inverse.reshape(x.shape), counts
