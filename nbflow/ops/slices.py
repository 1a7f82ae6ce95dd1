"""Sparse gradients: a few slices of a tensor along its first dimension, and where they belong.

The gradient of `nf.take(table, ids, axis=0)` touches only the rows that were looked up. `IndexedSlices` is that
gradient before anybody adds it into zeros; sums of such keep all slices, so the same row may occur several times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nbflow import op
from nbflow.errors import DTypeError, ShapeError
from nbflow.graph import Node, Tensor
from nbflow.op import Attrs
from nbflow.ops._build import INT64, build, build_node, require_kind, static_shape
from nbflow.ops.casting import astype
from nbflow.ops.creation import zeros_like
from nbflow.ops.shape import reshape, shape_of
from nbflow.spec import Dim, Shape, TensorSpec, format_shape, kind_of

Grads = Sequence[Tensor | None]


@dataclass(frozen=True, slots=True, eq=False)
class IndexedSlices:
    """The gradient of `like`: zeros, with `values[i…]` added to the slice number `indices[i…]`.

    - `indices`: integers of any shape s; negative ones count from the end. They may repeat: such slices add up.
    - `values`: s + like.shape[1:], the dtype of `like`.
    - `distinct`: known to be without repeats, sorted, and in vector form.
    """

    values: Tensor
    indices: Tensor
    like: Tensor
    distinct: bool = False

    @property
    def shape(self) -> Shape:
        """The shape of the gradient when made dense."""
        return self.like.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.values.dtype

    def to_dense(self) -> Tensor:
        """The gradient as one tensor, as large as `like`."""
        return self.added_to(zeros_like(self.like))

    def added_to(self, dense: Tensor) -> Tensor:
        """`dense`, shaped as `like`, plus the slices."""
        return build("scatter_add", (dense, self.indices, self.values), {"axis": 0})

    def with_values(self, values: Tensor) -> IndexedSlices:
        """Other values at the same places."""
        return IndexedSlices(values, self.indices, self.like, self.distinct)

    def flat(self) -> IndexedSlices:
        """The same with int64 indices in a vector (n,) and values (n, …). Always new nodes, on the current device."""
        if self.distinct:
            return self
        assert self.like.shape is not None  # rules make slices only of tensors of known rank
        rest = self.like.shape[1:]
        known = static_shape(self.indices.shape)
        count: Dim | Tensor
        if known is not None:
            count = int(np.prod(known, dtype=np.int64))
        elif self.indices.ndim == 1:
            count = shape_of(self.indices)[0]
        else:
            attrs = {"axis": None, "keepdims": False, "dtype": None}
            count = build("prod", (shape_of(self.indices),), attrs)
        dims = [shape_of(self.like)[n + 1] if d is None else d for n, d in enumerate(rest)]
        indices = build("reshape", (self.indices,), {"shape": (-1 if known is None else count,)})
        return IndexedSlices(reshape(self.values, (count, *dims)), astype(indices, INT64), self.like)

    def summed(self) -> IndexedSlices:
        """Each slice once, in the order of their numbers: repeated ones are added up. Needs `like` of known length."""
        if self.distinct:
            return self
        if not self.like.shape or self.like.shape[0] is None:
            raise ShapeError(f"repeated slices are summed for tensors of known length, not {self.like!r}")
        flat = self.flat()
        attrs = {"length": self.like.shape[0]}
        values, indices, _ = build_node("deduplicate", (flat.values, flat.indices), attrs).outputs
        return IndexedSlices(values, indices, self.like, distinct=True)

    def __repr__(self) -> str:
        return f"<IndexedSlices {self.values.spec} at {self.indices.name} of {self.like.name}>"


# What flows backwards.
Gradient = Tensor | IndexedSlices


def dense(gradient: Gradient) -> Tensor:
    """`gradient` as a tensor."""
    return gradient.to_dense() if isinstance(gradient, IndexedSlices) else gradient


def sliced(like: Tensor, indices: Tensor, values: Tensor) -> Gradient:
    """The gradient of slices `indices` along the first dimension of `like`; a tensor if its rank is unknown."""
    found = IndexedSlices(values, indices, like)
    return found if like.shape else found.to_dense()


def joined(parts: Sequence[IndexedSlices]) -> IndexedSlices:
    """The sum of gradients of one tensor: all their slices, one part after the other."""
    if len(parts) == 1:
        return parts[0]
    flat = [p.flat() for p in parts]
    values = build("concat", [p.values for p in flat], {"axis": 0})
    indices = build("concat", [p.indices for p in flat], {"axis": 0})
    return IndexedSlices(values, indices, parts[0].like)


# --- deduplicate -----------------------------------------------------------------------------------------------------


def check_slices(indices: TensorSpec, values: TensorSpec, shape: Shape) -> None:
    """Raises DTypeError or ShapeError unless these are slices (n, …) of a tensor of `shape`, and their numbers (n,)."""
    require_kind(indices, "iu", "the numbers of slices are integers")
    if indices.rank not in (1, None):
        raise ShapeError(f"the numbers of slices are a vector, not {format_shape(indices.shape)}")
    if values.shape is None or shape is None:
        return
    fits = len(values.shape) == len(shape) and all(
        a is None or b is None or a == b for a, b in zip(values.shape[1:], shape[1:], strict=True)
    )
    if fits and indices.shape is not None and None not in (indices.shape[0], values.shape[0]):
        fits = indices.shape[0] == values.shape[0]
    if not fits:
        raise ShapeError(
            f"slices of {format_shape(values.shape)} with {format_shape(indices.shape)} numbers do not fit a tensor of "
            f"{format_shape(shape)}"
        )


def _deduplicate_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    values, indices = inputs
    if values.rank == 0:
        raise ShapeError("a scalar has no slices to sum")
    if kind_of(values.dtype) == "b":
        raise DTypeError("booleans do not add up; use nf.astype first")
    check_slices(indices, values, values.shape)
    count = indices.shape[0] if indices.shape is not None else None
    shape = None if values.shape is None else (None, *values.shape[1:])
    return [TensorSpec(shape, values.dtype), TensorSpec((None,), INT64), TensorSpec((count,), INT64)]


def _deduplicate_gradient(node: Node, grads: Grads) -> Grads:
    grad = grads[0]
    return [None if grad is None else build("take", (grad, node.outputs[2]), {"axis": 0}), None]


op.define(
    "deduplicate",
    infer=_deduplicate_infer,
    gradient=_deduplicate_gradient,
    doc="Slices with the same number added up, in order. inputs: values (n, …), their numbers (n,). outputs: the sums "
    "(m, …), their numbers (m,), ascending and from 0 on, and for each slice the place of its sum (n,). "
    "attrs: length (of the tensor; negative numbers count from its end, others out of range are an error).",
)
