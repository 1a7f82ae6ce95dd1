"""numpy: products of matrices."""

from __future__ import annotations

from typing import Any

import numpy as np

from nbflow.backends.base import Table

TABLE = Table()
A = np.ndarray[Any, Any]


@TABLE.implements("matmul")
def _matmul(x: A, y: A, *, transpose_a: bool, transpose_b: bool, out: A | None = None) -> A:
    # Transposed views go to BLAS as they are; nothing is copied.
    if transpose_a:
        x = x.swapaxes(-1, -2)
    if transpose_b:
        y = y.swapaxes(-1, -2)
    made: A = np.matmul(x, y, out=out)
    return made
