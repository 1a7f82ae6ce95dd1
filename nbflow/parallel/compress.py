"""Gradients that travel with fewer bits: cast where they were made, and back where they are joined.

The sum is made in the gradient's own dtype, so each replica's gradient is rounded once, however many there are: a
relative error of at most 2^-8 (bfloat16, 8 bits of precision) or 2^-11 (float16) of each number, where float16 also
loses what is below 6e-8 or above 65504. It is rounded whether or not it crosses devices: results do not depend on the
placement.
"""

from __future__ import annotations

import numpy as np

from nbflow.errors import GraphError
from nbflow.graph import Node, Tensor
from nbflow.ops import astype
from nbflow.spec import as_dtype, kind_of

WIRE = ("bfloat16", "float16")


def check_compress(compress: str | None) -> None:
    """Raises GraphError for what gradients cannot travel as."""
    if compress is not None and compress not in WIRE:
        raise GraphError(f"compress={compress!r}: gradients travel as {' or '.join(WIRE)}, or as they are (None)")


def packed(value: Tensor, compress: str) -> Tensor:
    """`value` as it travels, on its own device; as it is where that is no narrower, and for integers."""
    if kind_of(value.dtype) != "f" or value.dtype.itemsize <= as_dtype(compress).itemsize:
        return value
    with value.graph.colocate_with(value):
        return astype(value, compress)


def unpacked(value: Tensor, dtype: np.dtype[np.generic], home: Node) -> Tensor:
    """What travelled, as `dtype`, on the device of `home`."""
    if value.dtype == dtype:
        return value
    with value.graph.colocate_with(home):
        return astype(value, dtype)
