"""numpy: slices, paddings and ranges whose bounds come as tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from nbflow.backends.base import Table

TABLE = Table()
A = np.ndarray[Any, Any]


def _key(rank: int, starts: A, stops: A, steps: A, axes: tuple[int, ...]) -> tuple[slice, ...]:
    key = [slice(None)] * rank
    for axis, *bounds in zip(axes, starts.tolist(), stops.tolist(), steps.tolist(), strict=True):
        key[axis] = slice(*bounds)
    return tuple(key)


@TABLE.implements("slice_dynamic")
def _slice(x: A, starts: A, stops: A, steps: A, *, axes: tuple[int, ...]) -> A:
    return np.array(x[_key(x.ndim, starts, stops, steps, axes)])


@TABLE.implements("slice_dynamic_grad")
def _slice_grad(values: A, shape: A, starts: A, stops: A, steps: A, *, axes: tuple[int, ...], rank: int | None) -> A:
    out = np.zeros(tuple(shape.tolist()), values.dtype)
    out[_key(out.ndim, starts, stops, steps, axes)] = values
    return out


def _parts(widths: A, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[slice, ...], tuple[slice, ...]]:
    """The padded shape; where the tensor's part lies in it; and which part of the tensor that is."""
    rank = len(shape)
    before, after = widths[:rank].tolist(), widths[rank:].tolist()
    padded = tuple(d + b + a for d, b, a in zip(shape, before, after, strict=True))
    if any(d < 0 for d in padded):
        raise ValueError(f"a padding of {before} before and {after} after cuts more than {shape} has")
    inside = tuple(slice(max(b, 0), d - max(a, 0)) for d, b, a in zip(padded, before, after, strict=True))
    kept = tuple(slice(max(-b, 0), d - max(-a, 0)) for d, b, a in zip(shape, before, after, strict=True))
    return padded, inside, kept


@TABLE.implements("pad_dynamic")
def _pad(x: A, widths: A, value: A) -> A:
    padded, inside, kept = _parts(widths, x.shape)
    out = np.full(padded, value, x.dtype)
    out[inside] = x[kept]
    return out


@TABLE.implements("pad_crop")
def _crop(values: A, widths: A, shape: A) -> A:
    _, inside, kept = _parts(widths, tuple(shape.tolist()))
    out = np.zeros(tuple(shape.tolist()), values.dtype)
    out[kept] = values[inside]
    return out


@TABLE.implements("pad_places")
def _places(length: A, widths: A, *, mode: str) -> A:
    before, after = (int(w) for w in widths)
    grown = np.pad(np.arange(int(length), dtype=np.int64), (max(before, 0), max(after, 0)), mode=mode)  # type: ignore[call-overload]
    return np.array(grown[max(-before, 0) : grown.size - max(-after, 0)])


@TABLE.implements("range_dynamic")
def _range(start: A, stop: A, step: A) -> A:
    # The number of elements first: numpy's arange may round it up by one for floats of low precision.
    count = max(int(np.ceil((float(stop) - float(start)) / float(step))), 0)
    found: A = (start + np.arange(count).astype(start.dtype) * step).astype(start.dtype)
    return found


@TABLE.implements("broadcast_dims")
def _broadcast(*shapes: A) -> A:
    return np.array(np.broadcast_shapes(*(tuple(s.tolist()) for s in shapes)), np.int64)
