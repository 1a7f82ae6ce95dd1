"""What is known of values before a run: constants, and numbers that fill a whole tensor."""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import numpy as np

from nbflow.graph import Tensor
from nbflow.spec import kind_of

# Looking whether a constant is one number everywhere reads it; masks and weights of megabytes are not that.
UNIFORM_ELEMENTS = 4096
# Arrays above this are compared by their SHA-256, so that keys stay small.
DIGEST_BYTES = 256


def constant_of(tensor: Tensor) -> np.ndarray[Any, Any] | None:
    """The value of a constant; None for anything else."""
    return np.asarray(tensor.node.attrs["value"]) if tensor.node.op == "constant" else None


def filling(tensor: Tensor) -> np.generic | None:
    """The number that is everywhere in `tensor`, bit for bit, when this is known; None otherwise."""
    node = tensor.node
    if node.op == "full":
        filled: np.generic = np.full((1,), node.attrs["value"], node.attrs["dtype"])[0]
        return filled
    if node.op == "broadcast_to":
        return filling(node.inputs[0])
    value = constant_of(tensor)
    if value is None or not 0 < value.size <= UNIFORM_ELEMENTS:
        return None
    first = value.reshape(-1)[:1]
    if value.size > 1 and value.tobytes() != first.tobytes() * value.size:
        return None
    found: np.generic = first[0]
    return found


def is_number(value: np.generic | None, number: int, *, negative_zero: bool = False) -> bool:
    """True when `value` is `number`; of the two zeros of floating dtypes only the one that is asked for."""
    if value is None or not bool(value == value.dtype.type(number)):
        return False
    if number == 0 and kind_of(value.dtype) in "fc":
        return bool(np.signbit(np.real(value))) is negative_zero
    return True


def token(value: Any) -> Any:
    """Something hashable that is equal exactly when two attributes mean the same: -0.0 is not 0.0, 1 is not 1.0.

    What is none of the kinds that attributes are made of is like itself only.
    """
    if isinstance(value, np.ndarray):
        data = np.ascontiguousarray(value).tobytes()
        mark = data if len(data) <= DIGEST_BYTES else hashlib.sha256(data).digest()
        return ("array", str(value.dtype), value.shape, mark)
    if isinstance(value, tuple):
        return ("tuple", *(token(v) for v in value))
    if isinstance(value, float):
        return struct.pack("d", value)
    if value is None or isinstance(value, (bool, int, str, np.dtype)):
        return (type(value).__name__, value)
    return id(value)
