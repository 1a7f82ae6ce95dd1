"""Rows of different shapes in one array: padded with zeros, beside their sizes. Loops keep what gradients need so."""

from __future__ import annotations

from collections.abc import Sequence

from nbflow import op
from nbflow.errors import DTypeError, ShapeError
from nbflow.graph import Node, Tensor
from nbflow.op import Attrs
from nbflow.ops._build import ArrayLike, build, convert
from nbflow.ops.shape import shape_of
from nbflow.spec import Shape, TensorSpec, kind_of, merge_shapes


def _sized_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    x, sizes = inputs
    if kind_of(sizes.dtype) not in "iu":
        raise DTypeError(f"sizes are integers, not {sizes}")
    if x.shape is not None and sizes.shape not in ((len(x.shape),), (None,), None):
        raise ShapeError(f"{x} has {len(x.shape)} dimensions, so as many sizes, not {sizes}")
    rank: Shape = None if x.shape is None else (None,) * len(x.shape)
    return [TensorSpec(merge_shapes(rank, attrs["shape"]), x.dtype)]


def _crop_gradient(node: Node, grads: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    (grad,) = grads
    x = node.inputs[0]
    return [None if grad is None else pad_to(grad, shape_of(x), shape=x.shape), None]


def _pad_gradient(node: Node, grads: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    (grad,) = grads
    x = node.inputs[0]
    return [None if grad is None else crop_to(grad, shape_of(x), shape=x.shape), None]


op.define(
    "crop_to",
    infer=_sized_infer,
    gradient=_crop_gradient,
    cost=op.free_cost,
    alias=True,
    doc="(x, sizes) → the first `sizes` elements along each dimension. attrs: shape (what is known of the result's).",
)
op.define(
    "pad_to",
    infer=_sized_infer,
    gradient=_pad_gradient,
    doc="(x, sizes) → x, with zeros behind it up to `sizes` along each dimension. attrs: shape (what is known of the "
    "result's).",
)


def crop_to(x: ArrayLike, sizes: ArrayLike, *, shape: Shape = None, name: str | None = None) -> Tensor:
    """The corner of `x` that has `sizes`, an integer for each dimension. `shape`: what is known of the result's."""
    return build("crop_to", (convert(x), convert(sizes)), {"shape": shape}, name=name)


def pad_to(x: ArrayLike, sizes: ArrayLike, *, shape: Shape = None, name: str | None = None) -> Tensor:
    """Zeros of `sizes`, an integer for each dimension, with `x` in the corner. `shape`: what is known of it."""
    return build("pad_to", (convert(x), convert(sizes)), {"shape": shape}, name=name)
