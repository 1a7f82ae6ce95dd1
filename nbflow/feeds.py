"""What a run is fed: tensors and the arrays that take the place of what they would compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nbflow.errors import DTypeError, GraphError, ShapeError
from nbflow.graph import Tensor
from nbflow.spec import can_become, format_shape, kind_of, shape_accepts
from nbflow.transport import HostArray


def feeds_of(feeds: Mapping[Any, Any]) -> dict[Tensor, HostArray]:
    """`feeds` with tensors as keys and arrays as values. Raises GraphError, DTypeError or ShapeError."""
    found = {}
    for key, value in feeds.items():
        tensor = key if isinstance(key, Tensor) else _tensor(key)
        found[tensor] = feed_value(tensor, value)
    return found


def feed_value(tensor: Tensor, value: Any) -> HostArray:
    """`value` as an array of the tensor's dtype. Raises DTypeError or ShapeError when it does not fit."""
    is_array = type(value) is np.ndarray and value.dtype == tensor.dtype and value.flags.c_contiguous
    if is_array and (value.shape == tensor.shape or shape_accepts(tensor.shape, value.shape)):
        found: HostArray = value
        return found  # the usual case, many times a second
    if isinstance(value, Tensor):
        raise GraphError(f"{tensor.name} was fed the tensor {value.name}; feed values, such as numpy arrays")
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ShapeError(f"{tensor.name} was fed what is no array: {error}", where=tensor.node.where) from None
    weak = not hasattr(value, "dtype")
    weakly = weak and (kind_of(array.dtype) != "c" or kind_of(tensor.dtype) == "c")
    if array.dtype != tensor.dtype and not (weakly or can_become(array.dtype, tensor.dtype)):
        raise DTypeError(
            f"{tensor.name} is {tensor.dtype}, but was fed {array.dtype}; cast it with .astype",
            where=tensor.node.where,
        )
    if not shape_accepts(tensor.shape, array.shape):
        raise ShapeError(
            f"{tensor.name} has shape {format_shape(tensor.shape)}, but was fed {format_shape(array.shape)}",
            where=tensor.node.where,
        )
    try:
        with np.errstate(invalid="ignore"):
            found = np.ascontiguousarray(array, dtype=tensor.dtype).reshape(array.shape)
    except (TypeError, ValueError) as error:
        raise DTypeError(f"{tensor.name} cannot be fed {value!r}: {error}", where=tensor.node.where) from None
    # numpy would cut 2.7 down to 2, and make 44 of 300 in eight bits.
    if weak and kind_of(tensor.dtype) in "iu" and not np.array_equal(found, array):
        raise DTypeError(f"{tensor.name} is {tensor.dtype}, which cannot hold {value!r:.80}", where=tensor.node.where)
    return found


def _tensor(key: Any) -> Tensor:
    convert = getattr(key, "to_tensor", None)
    if convert is None or isinstance(key, type):
        raise GraphError(f"cannot feed {key!r}: the keys of feeds are tensors")
    tensor: Tensor = convert()
    return tensor
