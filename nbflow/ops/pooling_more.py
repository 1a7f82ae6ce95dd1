"""Pooling of whole examples, and the way back from maxima."""

from __future__ import annotations

from collections.abc import Sequence

from nbflow import op
from nbflow.errors import GraphError, ShapeError
from nbflow.graph import Node, Tensor
from nbflow.op import Attrs
from nbflow.ops._build import ArrayLike, build, convert, require_kind
from nbflow.ops.conv import IntsLike, PaddingLike, ranked
from nbflow.ops.elementwise import abs, pow
from nbflow.ops.nn import op_scope
from nbflow.ops.reduction import max, mean, sum
from nbflow.ops.shape import shape_argument, shape_infer, shape_of
from nbflow.ops.windows import (
    channels_of,
    check_padding,
    is_channels_first,
    laid_out,
    layout_of,
    many,
    places_of,
)
from nbflow.spec import TensorSpec, format_shape, merge_shapes

Grads = Sequence[Tensor | None]

# --- whole examples --------------------------------------------------------------------------------------------------


def global_avg_pool(
    x: ArrayLike, data_format: str = "NHWC", keepdims: bool = False, *, name: str | None = None
) -> Tensor:
    """The mean of each channel over all places of an example: (n, …, c) → (n, c); from "NC…" the same."""
    tensor = convert(x)
    return mean(tensor, axis=_places(tensor, data_format), keepdims=keepdims, name=name)


def global_max_pool(
    x: ArrayLike, data_format: str = "NHWC", keepdims: bool = False, *, name: str | None = None
) -> Tensor:
    """The maximum of each channel over all places of an example; see global_avg_pool."""
    tensor = convert(x)
    return max(tensor, axis=_places(tensor, data_format), keepdims=keepdims, name=name)


def global_lp_pool(
    x: ArrayLike, p: float = 2.0, data_format: str = "NHWC", keepdims: bool = False, *, name: str | None = None
) -> Tensor:
    """(Σ |x|ᵖ)^(1/p) of each channel over all places of an example; see global_avg_pool and lp_pool."""
    if not p > 0:
        raise GraphError(f"the p of global_lp_pool is positive, not {p}")
    tensor = convert(x)
    with op_scope(name, "global_lp_pool", tensor):
        total = sum(pow(abs(tensor), float(p)), axis=_places(tensor, data_format), keepdims=keepdims)
        return pow(total, 1.0 / p)


def _places(x: Tensor, data_format: str) -> list[int]:
    rank = x.spec.rank
    if rank is None or rank < 3 or rank != len(data_format):
        raise ShapeError(
            f"global pooling of {data_format} takes {len(data_format)} dimensions, not {format_shape(x.shape)}"
        )
    return list(range(2, rank)) if data_format.startswith("NC") else list(range(1, rank - 1))


# --- the way back ----------------------------------------------------------------------------------------------------


def _unpool_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    x, indices = inputs[:2]
    require_kind(indices, "iu", "the indices of maxima are integers")
    merge_shapes(x.shape, indices.shape)
    shape = ranked(shape_infer(inputs[2:], attrs), attrs)
    layout = attrs["data_format"]
    if x.shape is not None:
        merge_shapes((x.shape[0], channels_of(x.shape, layout)), ((shape or ())[0], channels_of(shape, layout)))
    return [TensorSpec(shape, x.dtype)]


def _unpool_gradient(node: Node, grads: Grads) -> Grads:
    (dy,) = grads
    assert dy is not None  # the only output
    picked = build("max_unpool_grad", (dy, node.inputs[1]), {"data_format": node.attrs["data_format"]})
    return [picked, *[None for _ in node.inputs[1:]]]


def _unpool_grad_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    return [TensorSpec(ranked(inputs[1].shape, attrs), inputs[0].dtype)]


def _unpool_grad_gradient(node: Node, grads: Grads) -> Grads:
    (v,) = grads
    assert v is not None  # the only output
    dy, indices = node.inputs
    vector = () if dy.spec.is_static else (shape_of(dy),)
    return [build("max_unpool", (v, indices, *vector), {**node.attrs, "shape": dy.shape}), None]


op.define(
    "max_unpool",
    infer=_unpool_infer,
    gradient=_unpool_gradient,
    doc="(x, indices[, shape]) → zeros of a shape with each x at its index among the places of its example and "
    "channel; of repeated indices the last x stays. attrs: data_format, shape.",
)
op.define(
    "max_unpool_grad",
    infer=_unpool_grad_infer,
    gradient=_unpool_grad_gradient,
    doc="(dy, indices) → dy at each index among the places of its example and channel. attrs: data_format.",
)


def max_unpool(
    x: ArrayLike,
    indices: ArrayLike,
    window: IntsLike,
    strides: IntsLike | None = None,
    padding: PaddingLike = "VALID",
    data_format: str | None = None,
    output_size: Sequence[int] | None = None,
    *,
    name: str | None = None,
) -> Tensor:
    """The maxima of max_pool_with_argmax put back where they were, zeros elsewhere. Zeiler, Fergus, arXiv 1311.2901.

    - `output_size`: the places of the result; left out, the smallest that max_pool makes into those of x.

    Raises ShapeError when x and indices have different shapes, and where the size must be known and is not.
    """
    tensor = convert(x)
    layout, n = layout_of(data_format, (tensor.spec.rank,), "max_unpool")
    size = many(window, n, "window")
    steps = size if strides is None else many(strides, n, "strides")
    places: Sequence[int | Tensor]
    with op_scope(name, "max_unpool", tensor):
        found = shape_of(tensor)
        first = 2 if is_channels_first(layout) else 1
        if output_size is not None:
            places = many(output_size, n, "output_size")
        else:
            sides = check_padding(padding, n)
            if isinstance(sides, str) and sides != "VALID":
                raise GraphError(f"max_unpool with padding {sides!r} needs an output_size")
            cut = [0] * n if isinstance(sides, str) else [before + after for before, after in sides]
            places = [
                ((found[first + axis] if place is None else place) - 1) * steps[axis] + size[axis] - cut[axis]
                for axis, place in enumerate(places_of(tensor.shape, layout))
            ]
        known = (None, None) if tensor.shape is None else (tensor.shape[0], channels_of(tensor.shape, layout))
        batch = found[0] if known[0] is None else known[0]
        channels = found[1 if is_channels_first(layout) else n + 1] if known[1] is None else known[1]
        shape, vector = shape_argument(laid_out(batch, places, channels, layout))
        return build("max_unpool", (tensor, convert(indices), *vector), {"data_format": layout, "shape": shape})
