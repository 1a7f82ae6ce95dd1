"""Searching and sets: where values are, which there are. Most results have a length that only the run knows.

Nothing here has a gradient: indices and counts are integers, and the set of values is piecewise constant in its size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nbflow import op
from nbflow.errors import ShapeError
from nbflow.graph import Node, Tensor
from nbflow.op import Attrs, Cost
from nbflow.ops._build import (
    BOOL,
    INT64,
    ArrayLike,
    build,
    build_node,
    convert,
    convert_promoted,
    known_rank,
    promote,
    require_kind,
)
from nbflow.ops.casting import astype
from nbflow.ops.creation import zeros_like
from nbflow.ops.indexing import scatter_add, take
from nbflow.ops.reduction import Axis
from nbflow.ops.reduction import sum as sum_over
from nbflow.ops.shape import reshape, reshape_like
from nbflow.spec import TensorSpec, format_shape


def _sort_cost(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], attrs: Attrs) -> Cost:
    """All inputs sorted together once."""
    size = sum(op.size_of(s) for s in inputs)
    return Cost(size * max(1.0, float(np.log2(size + 1))), op.nbytes_of(inputs) + op.nbytes_of(outputs))


# --- where values are ------------------------------------------------------------------------------------------------


def _nonzero_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    rank = known_rank(inputs[0], "nonzero")
    if rank == 0:
        raise ShapeError("nonzero of a scalar: there are no dimensions to index; use nf.where")
    if len(inputs) > 1:
        require_kind(inputs[1], "iu", "a shape holds integers")
    return [TensorSpec((None,), INT64)] * rank


op.define(
    "nonzero",
    infer=_nonzero_infer,
    gradient=None,
    doc="The indices of the elements that are not 0, in row-major order: an int64 vector for each dimension, of a "
    "length that the run knows. inputs: x, and the shape that it must have, if that is to be checked.",
)


def nonzero(x: ArrayLike, /) -> tuple[Tensor, ...]:
    """The indices of the elements that are not 0: one int64 vector for each dimension, of unknown length."""
    return build_node("nonzero", (convert(x),)).outputs


def count_nonzero(x: ArrayLike, /, *, axis: Axis = None, keepdims: bool = False, name: str | None = None) -> Tensor:
    """How many elements over `axis` are not 0, int64."""
    return sum_over(astype(convert(x), BOOL), axis=axis, keepdims=keepdims, name=name)


def _searchsorted_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    promote(inputs[0].dtype, inputs[1].dtype)
    if inputs[0].rank not in (1, None):
        raise ShapeError(f"searchsorted searches a vector, not {format_shape(inputs[0].shape)}")
    return [TensorSpec(inputs[1].shape, INT64)]


op.define(
    "searchsorted",
    infer=_searchsorted_infer,
    gradient=None,
    cost=_sort_cost,
    doc="For each value the index (int64) in an ascending vector before which it would be put. inputs: the vector, the "
    "values. attrs: side ('left': before equal ones; 'right': after them).",
)


def searchsorted(
    x1: ArrayLike, x2: ArrayLike, /, *, side: str = "left", sorter: ArrayLike | None = None, name: str | None = None
) -> Tensor:
    """Where in the ascending vector `x1` each of `x2` would be put, int64; `side`: 'left' or 'right' of equal ones.

    `sorter`: indices that sort `x1` when it is not sorted (see `nf.argsort`).
    """
    if side not in ("left", "right"):
        raise ShapeError(f"side is 'left' or 'right', not {side!r}")
    vector, values = convert_promoted((x1, x2))
    if sorter is not None:
        vector = take(vector, sorter, axis=0)
    return build("searchsorted", (vector, values), {"side": side}, name=name)


def _isin_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    promote(inputs[0].dtype, inputs[1].dtype)
    return [TensorSpec(inputs[0].shape, BOOL)]


op.define(
    "isin",
    infer=_isin_infer,
    gradient=None,
    cost=_sort_cost,
    doc="Whether each element of the first input is in the second one. attrs: invert (whether it is not).",
)


def isin(x: ArrayLike, test_elements: ArrayLike, /, *, invert: bool = False, name: str | None = None) -> Tensor:
    """Whether each element of `x` is one of `test_elements`; `invert`: whether it is not. NaN is in nothing."""
    return build("isin", convert_promoted((x, test_elements)), {"invert": bool(invert)}, name=name)


# --- which values there are ------------------------------------------------------------------------------------------


Grads = Sequence[Tensor | None]


class UniqueAll(NamedTuple):
    """What `nf.unique_all` gives."""

    values: Tensor
    indices: Tensor
    inverse_indices: Tensor
    counts: Tensor


class UniqueCounts(NamedTuple):
    """What `nf.unique_counts` gives."""

    values: Tensor
    counts: Tensor


class UniqueInverse(NamedTuple):
    """What `nf.unique_inverse` gives."""

    values: Tensor
    inverse_indices: Tensor


def _unique_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    shape, dtype = inputs[0].shape, inputs[0].dtype
    some = TensorSpec((None,), INT64)
    return [TensorSpec((None,), dtype), some, TensorSpec(shape, INT64), some]


def _unique_gradient(node: Node, grads: Grads) -> Grads:
    # A value stands for the first element that has it.
    grad, x = grads[0], node.inputs[0]
    if grad is None:
        return [None]
    flat = reshape(zeros_like(x), (-1,))
    return [reshape_like(scatter_add(flat, node.outputs[1], grad), x)]


op.define(
    "unique",
    infer=_unique_infer,
    gradient=_unique_gradient,
    cost=_sort_cost,
    doc="The distinct values, ascending; the index of the first of each in the flattened input; for each element the "
    "index of its value; how often each occurs. Each NaN is a value of its own. The gradient of a value goes to the "
    "first element that has it.",
)


def _unique(x: ArrayLike, name: str | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    values, indices, inverse, counts = build_node("unique", (convert(x),), name=name).outputs
    return values, indices, inverse, counts


def unique_all(x: ArrayLike, /) -> UniqueAll:
    """(values, indices, inverse_indices, counts): the distinct values of `x`, ascending, of unknown number.

    `indices`: where in the flattened `x` each comes first; `inverse_indices`: in the shape of `x`, which of them each
    element is; `counts`: how often each occurs. All int64. Each NaN is a value of its own.
    """
    return UniqueAll(*_unique(x))


def unique_counts(x: ArrayLike, /) -> UniqueCounts:
    """(values, counts): the distinct values of `x`, ascending, and how often each occurs (int64)."""
    values, _, _, counts = _unique(x)
    return UniqueCounts(values, counts)


def unique_inverse(x: ArrayLike, /) -> UniqueInverse:
    """(values, inverse_indices): the distinct values of `x`, ascending, and for each element which of them it is."""
    values, _, inverse, _ = _unique(x)
    return UniqueInverse(values, inverse)


def unique_values(x: ArrayLike, /, *, name: str | None = None) -> Tensor:
    """The distinct values of `x`, ascending, of unknown number. Each NaN is a value of its own. No gradient."""
    return _unique(x, name)[0]
