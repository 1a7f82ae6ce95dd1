"""Where an iterator stands, as bytes: JSON, then the arrays it refers to.

    8 bytes  length of the JSON, little-endian
    JSON     arrays are {"array": [dtype, shape, offset]}, columns of dtype object {"objects": [arrays]}
    bytes    the arrays in C order, little-endian, at their offsets

Reading trusts nothing: whatever does not hold together raises DataError.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from nbflow.data.blocks import OBJECT, Array, objects
from nbflow.errors import DataError, DTypeError
from nbflow.spec import as_dtype

_HEADER_BYTES = 8


def pack(state: dict[str, Any]) -> Array:
    """`state` (JSON values and arrays) as a uint8 array."""
    parts: list[bytes] = []
    offset = 0

    def plain(value: Any) -> Any:
        nonlocal offset
        if isinstance(value, np.ndarray):
            if value.dtype == OBJECT:
                return {"objects": [plain(np.asarray(v)) for v in value]}
            data = value.astype(value.dtype.newbyteorder("<"), copy=False).tobytes()
            parts.append(data)
            start, offset = offset, offset + len(data)
            return {"array": [value.dtype.name, list(value.shape), start]}
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return value

    text = json.dumps(plain(state), separators=(",", ":")).encode()
    whole = b"".join([len(text).to_bytes(_HEADER_BYTES, "little"), text, *parts])
    return np.frombuffer(whole, np.uint8)


def unpack(data: Array) -> dict[str, Any]:
    """What `pack` was given. Raises DataError for damaged bytes."""
    raw = np.ascontiguousarray(data, np.uint8).tobytes()
    size = int.from_bytes(raw[:_HEADER_BYTES], "little")
    body = memoryview(raw)[_HEADER_BYTES + size :]

    def array(name: str, shape: list[int], start: int) -> Array:
        dtype = as_dtype(name)
        count = math.prod(shape)
        if any(d < 0 for d in shape) or start < 0 or start + count * dtype.itemsize > len(body):
            raise ValueError("an array reaches beyond the end")
        flat = np.frombuffer(body, dtype.newbyteorder("<"), count, start)
        return flat.astype(dtype).reshape(shape)  # a copy: windows change in place

    def rich(value: Any) -> Any:
        if isinstance(value, list):
            return [rich(item) for item in value]
        if not isinstance(value, dict):
            return value
        if value.keys() == {"array"}:
            return array(*value["array"])
        if value.keys() == {"objects"}:
            return objects([rich(item) for item in value["objects"]])
        return {key: rich(item) for key, item in value.items()}

    try:
        if len(raw) < _HEADER_BYTES + size:
            raise ValueError("it is cut short")
        state = rich(json.loads(raw[_HEADER_BYTES : _HEADER_BYTES + size]))
        if not isinstance(state, dict):
            raise ValueError("it is no table")
    except (ValueError, TypeError, KeyError, RecursionError, DTypeError) as error:
        raise DataError(f"these bytes are not the state of an iterator: {error}") from None
    return state
