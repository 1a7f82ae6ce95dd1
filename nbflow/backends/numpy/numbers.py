"""numpy: the parts of numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from nbflow.backends.base import Table

TABLE = Table()
A = np.ndarray[Any, Any]

TABLE.update({"copysign": np.copysign, "nextafter": np.nextafter, "signbit": np.signbit, "conj": np.conjugate})


@TABLE.implements("real")
def _real(x: A) -> A:
    return x.real


@TABLE.implements("imag")
def _imag(x: A) -> A:
    return x.imag
