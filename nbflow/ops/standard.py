"""What else the array API standard asks of a namespace: dtypes by name, and what the namespace can do.

Source: the standard, version 2024.12, "Data Types" and "Inspection".
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nbflow.errors import DTypeError
from nbflow.graph import Tensor, get_graph
from nbflow.ops._build import DEFAULT_COMPLEX, DEFAULT_FLOAT, DEFAULT_INT, ArrayLike, DeviceLike, convert
from nbflow.ops.creation import identity
from nbflow.ops.numbers import isdtype
from nbflow.spec import BFLOAT16

DType = np.dtype[Any]

bool: DType = np.dtype("bool")
int8: DType = np.dtype("int8")
int16: DType = np.dtype("int16")
int32: DType = np.dtype("int32")
int64: DType = np.dtype("int64")
uint8: DType = np.dtype("uint8")
uint16: DType = np.dtype("uint16")
uint32: DType = np.dtype("uint32")
uint64: DType = np.dtype("uint64")
bfloat16: DType = BFLOAT16
float16: DType = np.dtype("float16")
float32: DType = np.dtype("float32")
float64: DType = np.dtype("float64")
complex64: DType = np.dtype("complex64")
complex128: DType = np.dtype("complex128")

_ALL = (
    *(bool, int8, int16, int32, int64, uint8, uint16, uint32, uint64),
    *(bfloat16, float16, float32, float64, complex64, complex128),
)


class NamespaceInfo:
    """What `nf.__array_namespace_info__()` gives. Devices are strings, as `nf.device` takes them."""

    def capabilities(self) -> dict[str, Any]:
        """Masks as indices and results of unknown shape work; tensors have at most 64 dimensions, as in numpy."""
        return {"boolean indexing": True, "data-dependent shapes": True, "max dimensions": 64}

    def default_device(self) -> str | None:
        """None: placement chooses."""
        return None

    def default_dtypes(self, *, device: DeviceLike = None) -> dict[str, DType]:
        """What Python's numbers become beside no tensor."""
        return {
            "real floating": DEFAULT_FLOAT,
            "complex floating": DEFAULT_COMPLEX,
            "integral": DEFAULT_INT,
            "indexing": DEFAULT_INT,
        }

    def dtypes(self, *, device: DeviceLike = None, kind: Any = None) -> dict[str, DType]:
        """The dtypes by name, those of `kind` (see `nf.isdtype`). bfloat16 and float16 go beyond the standard."""
        return {d.name: d for d in _ALL if kind is None or isdtype(d, kind)}

    def devices(self) -> list[str | None]:
        """Those of this process; a cluster has more."""
        return [None, "/cpu:0"]


def __array_namespace_info__() -> NamespaceInfo:  # noqa: N807  # the standard's name
    """What the namespace can do."""
    return NamespaceInfo()


def to_device(x: ArrayLike, device: DeviceLike, /, *, name: str | None = None) -> Tensor:
    """The value of `x` on `device`: a node that asks for it. Raises DTypeError for what is no number."""
    tensor = convert(x)
    if tensor.spec.resource:
        raise DTypeError("a handle to a variable stays where the variable is; read the variable first")
    with get_graph().device(device):
        return identity(tensor, name=name)
