"""Zeros that take no memory, and how they travel."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from nbflow.errors import NbflowError, Rejected
from nbflow.spec import as_dtype

# Stands in the key of a tensor that travels as its description alone. No name of a node has it.
MARK = "\x1f"
_NOTHING = np.empty(0, np.uint8)


class NullArray(np.ndarray[Any, Any]):
    """Zeros of a shape and dtype, all of them one element: copying is free, and writing does nothing."""

    def copy(self, order: Any = "C") -> NullArray:
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


@lru_cache(maxsize=4096)
def zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NullArray:
    """`shape` zeros; the same object each time."""
    return np.broadcast_to(np.zeros((), dtype), shape).view(NullArray)


def describe(key: str, value: NullArray, at: float) -> tuple[str, np.ndarray[Any, Any]]:
    """(key, value) to send instead of `value`; `at`: when it would be there, on this machine's monotonic clock."""
    shape = "x".join(map(str, value.shape))
    return f"{key}{MARK}{value.dtype.name}{MARK}{shape}{MARK}{at!r}", _NOTHING


def described(key: str) -> tuple[str, NullArray, float]:
    """The key, value and time that `describe` was given. Raises Rejected for a damaged description."""
    try:
        plain, dtype, shape, at = key.split(MARK)
        dims = tuple(int(d) for d in shape.split("x") if d)
        return plain, zeros(dims, as_dtype(dtype)), float(at)
    except (ValueError, NbflowError) as error:
        raise Rejected(f"a tensor with a damaged description came: {error}") from None
