"""numpy: bits read as another dtype's."""

from __future__ import annotations

from typing import Any

import numpy as np

from nbflow.backends.base import Table

TABLE = Table()
A = np.ndarray[Any, Any]


@TABLE.implements("bitcast")
def _bitcast(x: A, *, dtype: np.dtype[Any]) -> A:
    return np.array(x, order="C").view(dtype)
