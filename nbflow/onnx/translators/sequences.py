"""Sequences and optionals, which are Python tuples and None while a model is imported: their lengths must be known."""

from __future__ import annotations

from typing import Any

import numpy as np

from nbflow import ops
from nbflow.errors import GraphError
from nbflow.onnx.registry import Call, Value, translates

Sequence = tuple[Value, ...]


def _sequence(c: Call, index: int = 0) -> Sequence:
    value = c.inputs[index]
    if not isinstance(value, tuple):
        raise GraphError(f"input {index} of {c.what} is a sequence, and a tensor is given")
    return value


def _position(c: Call, index: int, default: int) -> int:
    return default if c.get(index) is None else int(c.known(index).item())


@translates("SequenceConstruct")
def _construct(c: Call) -> Any:
    return [tuple(c.inputs)]


@translates("SequenceEmpty")
def _empty(c: Call) -> Any:
    return [()]


@translates("SequenceInsert")
def _insert(c: Call) -> Any:
    items = list(_sequence(c))
    items.insert(_position(c, 2, len(items)), c.inputs[1])
    return [tuple(items)]


@translates("SequenceErase")
def _erase(c: Call) -> Any:
    items = list(_sequence(c))
    del items[_position(c, 1, -1)]
    return [tuple(items)]


@translates("SequenceAt")
def _at(c: Call) -> Any:
    items, place = _sequence(c), _position(c, 1, 0)
    if not -len(items) <= place < len(items):
        raise GraphError(f"{c.what} asks for item {place} of {len(items)}")
    return [items[place]]


@translates("SequenceLength")
def _length(c: Call) -> Any:
    return ops.constant(np.int64(len(_sequence(c))))


@translates("ConcatFromSequence")
def _concat(c: Call) -> Any:
    join = ops.stack if c.attr("new_axis", 0) else ops.concat
    return join(_sequence(c), axis=c.attrs["axis"])


@translates("SplitToSequence")
def _split(c: Call) -> Any:
    x, axis = c[0], c.attr("axis", 0)
    length = (x.shape or (None,) * c.rank())[axis]
    if c.get(1) is None:
        if length is None:
            raise c.needs(x, f"dimension {axis}")
        parts = ops.split(x, length, axis=axis)
        return [tuple(parts if c.attr("keepdims", 1) else (ops.squeeze(p, axis) for p in parts))]
    sizes = c.known(1)
    if sizes.ndim == 0:
        if length is None:
            raise c.needs(x, f"dimension {axis}")
        part = int(sizes.item())
        sizes = np.array([min(part, length - start) for start in range(0, length, part)])
    return [tuple(ops.split(x, [int(s) for s in sizes], axis=axis))]


@translates("SequenceMap")
def _map(c: Call) -> Any:
    """The body on each item of the first sequence; other sequences go along, tensors stay."""
    made = []
    for n in range(len(_sequence(c))):
        given = [value[n] if isinstance(value, tuple) else value for value in c.inputs]
        made.append(c.builder.graph(c.attrs["body"], given))
    return list(zip(*made, strict=True)) if made else [()] * c.outputs


@translates("Optional")
def _optional(c: Call) -> Any:
    return [c.inputs[0] if c.inputs else None]


@translates("OptionalHasElement")
def _has_element(c: Call) -> Any:
    return ops.constant(np.bool_(bool(c.inputs) and c.inputs[0] is not None))


@translates("OptionalGetElement")
def _get_element(c: Call) -> Any:
    if c.inputs[0] is None:
        raise GraphError(f"{c.what} asks for the value of an optional that has none")
    return [c.inputs[0]]
