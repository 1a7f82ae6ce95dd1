"""cupy: resizing, one dimension after the other. The host says which places make each of the result, and keeps that."""

from __future__ import annotations

from typing import Any

import cupy as cp
import numpy as np

from nbflow.backends.base import Table
from nbflow.backends.numpy.resizing import _ahead, _plans, _split
from nbflow.backends.numpy.sliding import wide

TABLE = Table()
A = Any


def _on_host(given: tuple[str, ...], inputs: tuple[A, ...]) -> dict[str, Any]:
    return {name: cp.asnumpy(value) for name, value in zip(given, inputs, strict=False)}


def _along(matrix: A, x: A, axis: int) -> A:
    """matrix · x along a dimension."""
    return cp.moveaxis(cp.matmul(matrix, cp.moveaxis(x, axis, -2)), -2, axis) if axis != x.ndim - 1 else x @ matrix.T


def _emptied(made: A, plans: list[Any], value: float) -> A:
    """`made` with `value` in the places that lie beyond the input."""
    for axis, _, found in plans:
        if found.beyond.any():
            beyond = cp.asarray(_ahead(found.beyond, axis, made.ndim))
            made = cp.where(beyond, made.dtype.type(value), made)
    return made


@TABLE.implements("resize")
def resize(x: A, *inputs: A, given: tuple[str, ...], **attrs: Any) -> A:
    made = x
    plans = _plans(x.shape, _on_host(given, inputs), attrs, _split(attrs))
    for axis, along, found in plans:
        if attrs["method"] == "nearest":
            made = cp.take(made, cp.asarray(found.index[:, 0]), axis=axis)
            continue
        made = made.astype(wide(x.dtype), copy=False)
        made = _along(cp.asarray(found.matrix(along.size, made.dtype)), made, axis)
    return cp.array(_emptied(made, plans, attrs["outside"]), x.dtype, order="C")


@TABLE.implements("resize_grad")
def resize_grad(dy: A, *inputs: A, given: tuple[str, ...], shape: Any, **attrs: Any) -> A:
    """The transpose: each place of the result hands its gradient to those it was made from."""
    vector = cp.asnumpy(inputs[len(given)]) if len(inputs) > len(given) else shape
    sizes = tuple(int(d) for d in vector)
    plans = _plans(sizes, _on_host(given, inputs), attrs, _split(attrs))
    made = _emptied(dy.astype(wide(dy.dtype), copy=False), plans, 0.0)
    for axis, along, found in plans:
        made = _along(cp.asarray(np.ascontiguousarray(found.matrix(along.size, made.dtype).T)), made, axis)
    return cp.array(made, dy.dtype, order="C")
