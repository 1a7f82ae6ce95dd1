"""numpy: Fourier transforms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nbflow.backends.base import Implementation, Table

TABLE = Table()
A = np.ndarray[Any, Any]
Ints = tuple[int, ...]


def _transform(function: Callable[..., A]) -> Implementation:
    def implementation(x: A, *, s: Ints | None, axes: Ints | None, norm: str) -> A:
        if s is not None and axes is None:  # numpy asks for both
            axes = tuple(range(-len(s), 0))
        return function(x, s=s, axes=axes, norm=norm)

    return implementation


TABLE["fftn"] = _transform(np.fft.fftn)
TABLE["ifftn"] = _transform(np.fft.ifftn)
TABLE["rfftn"] = _transform(np.fft.rfftn)
TABLE["irfftn"] = _transform(np.fft.irfftn)


@TABLE.implements("fftshift")
def _fftshift(x: A, *, axes: int | Ints | None) -> A:
    return np.fft.fftshift(x, axes)


@TABLE.implements("ifftshift")
def _ifftshift(x: A, *, axes: int | Ints | None) -> A:
    return np.fft.ifftshift(x, axes)
