"""The CPU backend. Its table is the union of the families' tables, one module a family as in `nbflow.ops`.

Implementations may return a numpy scalar where the result has no dimensions, as numpy's own functions do. They do not
silence floating point warnings: whoever runs them sets `numpy.errstate` once around a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any

import numpy as np

from nbflow.backends.base import Implementation, Table
from nbflow.backends.numpy import (
    boxes,
    conv,
    creation,
    data,
    dynamic,
    elementwise,
    fourier,
    gathering,
    half,
    indexing,
    joining,
    linalg,
    manipulation,
    matrices,
    narrow,
    ngrams,
    nn,
    numbers,
    patches,
    pooling,
    queues,
    ragged,
    random,
    recompute,
    reduction,
    replicas,
    resizing,
    rows,
    scattering,
    sets,
    shape,
    state,
    updates,
)
from nbflow.errors import GraphError

FAMILIES = (
    shape,
    creation,
    elementwise,
    manipulation,
    joining,
    indexing,
    gathering,
    scattering,
    dynamic,
    narrow,
    ngrams,
    reduction,
    resizing,
    boxes,
    linalg,
    numbers,
    sets,
    matrices,
    fourier,
    nn,
    conv,
    patches,
    pooling,
    random,
    ragged,
    state,
    rows,
    updates,
    recompute,
    data,
    queues,
    replicas,
)


def merge(tables: Sequence[Table]) -> Mapping[str, Implementation]:
    """One read-only table. Raises GraphError when two families implement one op."""
    whole: dict[str, Implementation] = {}
    for table in tables:
        twice = sorted(set(whole) & set(table))
        if twice:
            raise GraphError(f"op {twice[0]!r} has implementations in two families")
        whole.update(table)
    return MappingProxyType(whole)


TABLE: Mapping[str, Implementation] = MappingProxyType(half.with_single(merge([family.TABLE for family in FAMILIES])))


class NumpyBackend:
    """See `nbflow.backends.base.Backend`."""

    @property
    def type(self) -> str:
        return "cpu"

    @property
    def table(self) -> Mapping[str, Implementation]:
        return TABLE

    def asarray(self, value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.asarray(value)

    def to_host(self, value: Any) -> np.ndarray[Any, Any]:
        return np.asarray(value)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        return np.empty(shape, dtype)

    def contiguous(self, value: Any) -> Any:
        # Not ascontiguousarray: it makes an array of one dimension of a scalar.
        return value if not isinstance(value, np.ndarray) or value.flags.c_contiguous else np.array(value, order="C")

    def synchronize(self) -> None:
        """numpy is done when it returns."""

    def scope(self) -> AbstractContextManager[Any]:
        # As on any accelerator, overflow gives inf and 0/0 gives NaN: values to be seen in the result, not warnings.
        return np.errstate(all="ignore")

    def free_unused(self) -> None:
        """numpy keeps none."""
