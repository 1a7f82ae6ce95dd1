"""Operators that pick and write elements: gathering, scattering, sorting, sets, one-hot."""

from __future__ import annotations

from typing import Any

import numpy as np

from nbflow import ops
from nbflow.graph import Tensor
from nbflow.onnx.registry import Call, translates
from nbflow.onnx.translators.elementwise import number
from nbflow.ops._build import INT64
from nbflow.spec import normalize_axis


@translates("Gather")
def _gather(c: Call) -> Any:
    return ops.take(c[0], c[1], axis=c.attr("axis", 0))


@translates("GatherElements")
def _gather_elements(c: Call) -> Any:
    return ops.gather_elements(c[0], c[1], axis=c.attr("axis", 0))


@translates("GatherND")
def _gather_nd(c: Call) -> Any:
    return ops.gather_nd(c[0], c[1], batch_dims=c.attr("batch_dims", 0))


@translates("Scatter", "ScatterElements")
def _scatter_elements(c: Call) -> Any:
    return ops.scatter_elements(c[0], c[1], c[2], axis=c.attr("axis", 0), reduction=c.attr("reduction", "none"))


@translates("ScatterND")
def _scatter_nd(c: Call) -> Any:
    return ops.scatter_nd(c[0], c[1], c[2], reduction=c.attr("reduction", "none"))


@translates("TensorScatter")
def _tensor_scatter(c: Call) -> Any:
    """A cache of keys or values, (batch, …, sequence, …), with new ones written from an index on, round if asked."""
    cache, update, axis = c[0], c[1], normalize_axis(c.attrs["axis"], c.rank())
    first = c.get(2)
    length, count = (cache.shape or ())[axis], (update.shape or ())[axis]
    places = ops.arange(count, dtype=INT64)
    if first is None:
        rows = ops.expand_dims(places, axis=tuple(range(1, c.rank() - axis)))
    else:
        rows = ops.expand_dims(ops.astype(first, INT64), axis=tuple(range(1, c.rank())))
        rows = rows + ops.expand_dims(places, axis=tuple(range(1, c.rank() - axis)))
    if c.attr("mode", "linear") == "circular":
        rows = ops.remainder(rows, length)
    indices = ops.broadcast_to(rows, ops.shape_of(update))
    return ops.scatter_elements(cache, indices, update, axis=axis)


@translates("Compress")
def _compress(c: Call) -> Any:
    x, axis = c[0], c.attrs.get("axis")
    if axis is None:
        x, axis = ops.reshape(x, (-1,)), 0
    (kept,) = ops.nonzero(c[1])
    return ops.take(x, kept, axis=axis)


@translates("NonZero")
def _nonzero(c: Call) -> Any:
    return ops.stack(ops.nonzero(c[0]), axis=0)


@translates("Unique")
def _unique(c: Call) -> Any:
    return ops.unique_slices(c[0], axis=c.attrs.get("axis"), ascending=bool(c.attr("sorted", 1)))


@translates("TopK")
def _top_k(c: Call) -> Any:
    x, axis = c[0], c.attr("axis", -1)
    order = ops.argsort(x, axis=axis, descending=bool(c.attr("largest", 1)))
    count = np.array([c.attrs["k"]]) if "k" in c.attrs else c.static(1)
    if count is not None:
        key: list[Any] = [slice(None)] * c.rank()
        key[axis] = slice(0, int(count.item()))
        order = order[tuple(key)]
    else:
        most = ops.reshape(ops.astype(c[1], INT64), (1,))
        order = ops.slice_dynamic(order, number([0], most), most, axes=[axis])
    return ops.take_along_axis(x, order, axis=axis), order


@translates("OneHot")
def _one_hot(c: Call) -> Any:
    indices, values = c[0], c[2]
    known = c.static(1)
    depth: Any = ops.reshape(ops.astype(c[1], INT64), ()) if known is None else int(known.item())
    places = ops.astype(indices, INT64)
    places = ops.where(ops.less(places, 0), places + depth, places)
    rank = c.rank()
    axis = normalize_axis(c.attr("axis", -1), rank + 1)
    column = ops.expand_dims(ops.arange(depth, dtype=INT64), axis=tuple(range(1, rank + 1 - axis)))
    hit = ops.equal(ops.expand_dims(places, axis=axis), column)
    return ops.where(hit, values[1], values[0])


@translates("ReverseSequence")
def _reverse_sequence(c: Call) -> Any:
    """Of each example the first `length` steps backwards."""
    x, lengths = c[0], c[1]
    batch, time = c.attr("batch_axis", 1), c.attr("time_axis", 0)
    steps = (x.shape or ())[time]
    count: Any = ops.shape_of(x)[time] if steps is None else steps
    rank = c.rank()
    step = ops.expand_dims(ops.arange(count, dtype=INT64), axis=_around(time, rank))
    length = ops.expand_dims(ops.astype(lengths, INT64), axis=_around(batch, rank))
    order = ops.where(ops.less(step, length), length - 1 - step, step)
    return ops.take_along_axis(x, order, axis=time)


def _around(axis: int, rank: int) -> tuple[int, ...]:
    """The other dimensions, of length 1, of a vector that stands along `axis`."""
    return tuple(n for n in range(rank) if n != axis)


@translates("ArrayFeatureExtractor", domain="ai.onnx.ml")
def _array_feature(c: Call) -> Any:
    x: Tensor = c[0] if c.rank() > 1 else ops.expand_dims(c[0], axis=0)
    return ops.take(x, ops.reshape(c[1], (-1,)), axis=-1)


@translates("Binarizer", domain="ai.onnx.ml")
def _binarizer(c: Call) -> Any:
    return ops.astype(ops.greater(c[0], number(c.attrs["threshold"], c[0])), c[0].dtype)
