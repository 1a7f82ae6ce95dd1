"""Windows taken out of images, and put back: im2col and col2im, each the other's transpose."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from nbflow import op
from nbflow.errors import ShapeError
from nbflow.graph import Node, Tensor
from nbflow.op import Attrs, Cost
from nbflow.ops._build import ArrayLike, build, convert
from nbflow.ops.conv import IntsLike, PaddingLike, ranked
from nbflow.ops.manipulation import permute_dims
from nbflow.ops.nn import op_scope
from nbflow.ops.shape import reshape, shape_argument, shape_infer, shape_like, shape_of
from nbflow.ops.windows import (
    channels_of,
    check_padding,
    is_channels_first,
    laid_out,
    layout_of,
    many,
    places_of,
    window_output,
)
from nbflow.spec import Dim, TensorSpec, format_shape, shape_accepts

Grads = Sequence[Tensor | None]


def _only(grads: Grads) -> Tensor:
    (grad,) = grads
    assert grad is not None  # the only output of the op
    return grad


def _unfold_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    x = inputs[0]
    layout, window = attrs["data_format"], attrs["window"]
    channels = channels_of(x.shape, layout)
    counts = places_of(window_output(x.shape, window, channels, attrs), layout)
    return [TensorSpec((None if x.shape is None else x.shape[0], *counts, prod(window), channels), x.dtype)]


def _unfold_gradient(node: Node, grads: Grads) -> Grads:
    shape, vector = shape_like(node.inputs[0])
    return [build("fold", (_only(grads), *vector), {**node.attrs, "shape": shape})]


def _fold_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    shape = ranked(shape_infer(inputs[1:], attrs), attrs)
    (wanted,) = _unfold_infer([TensorSpec(shape, inputs[0].dtype)], attrs)
    given = inputs[0].shape
    if not shape_accepts(wanted.shape, given):
        raise ShapeError(f"windows {format_shape(given)} are not those of {format_shape(shape)}, {wanted}")
    return [TensorSpec(shape, inputs[0].dtype)]


def _fold_gradient(node: Node, grads: Grads) -> Grads:
    attrs = {k: a for k, a in node.attrs.items() if k != "shape"}
    return [build("unfold", (_only(grads),), attrs), *[None for _ in node.inputs[1:]]]


def _cost(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], attrs: Attrs) -> Cost:
    return Cost(op.size_of(inputs[0]), op.nbytes_of(inputs) + op.nbytes_of(outputs))


_ATTRS = "attrs: window, strides, padding, data_format, dilation"
op.define(
    "unfold",
    infer=_unfold_infer,
    gradient=_unfold_gradient,
    cost=_cost,
    doc=f"The windows of images as (n, *counts, places of the window, channels), with any layout. {_ATTRS}.",
)
op.define(
    "fold",
    infer=_fold_infer,
    gradient=_fold_gradient,
    cost=_cost,
    doc=f"(windows[, shape of the images]) → images in which what windows have in common adds up. {_ATTRS}, shape.",
)


def unfold(
    x: ArrayLike,
    window: IntsLike,
    strides: IntsLike = 1,
    padding: PaddingLike = "VALID",
    data_format: str | None = None,
    dilation: IntsLike = 1,
    *,
    name: str | None = None,
) -> Tensor:
    """The windows of images, one after the other: (n, *places, c) → (n, *counts, places of the window · c).

    With the channels first (n, c · places of the window, all counts), as im2col of ONNX's Col2Im has it. The arguments
    are those of max_pool.
    """
    tensor = convert(x)
    layout, n = layout_of(data_format, (tensor.spec.rank,), "unfold")
    attrs = _attrs(layout, n, window, strides, padding, dilation)
    with op_scope(name, "unfold", tensor):
        made = build("unfold", (tensor,), attrs)
        sizes = _sizes(made)
        if not is_channels_first(layout):
            return reshape(made, (*sizes[:-2], sizes[-1] * sizes[-2]))
        turned = permute_dims(made, (0, n + 2, n + 1, *range(1, n + 1)))
        return reshape(turned, (sizes[0], sizes[-1] * sizes[-2], -1))


def fold(
    patches: ArrayLike,
    output_size: Sequence[int],
    window: IntsLike,
    strides: IntsLike = 1,
    padding: PaddingLike = "VALID",
    data_format: str | None = None,
    dilation: IntsLike = 1,
    *,
    name: str | None = None,
) -> Tensor:
    """The transpose of unfold (col2im): images of `output_size` places, in which overlapping windows add up.

    `patches` are what unfold gives for such images; without a data_format the channels are last. Raises ShapeError
    when they are not.
    """
    tensor = convert(patches)
    n = len(output_size)
    layout, _ = layout_of(data_format, (n + 2,), "fold")
    attrs = _attrs(layout, n, window, strides, padding, dilation)
    places = prod(attrs["window"])
    first = is_channels_first(layout)
    rank = 3 if first else n + 2
    if tensor.spec.rank not in (rank, None):
        raise ShapeError(f"fold takes what unfold gives, {rank} dimensions, not {format_shape(tensor.shape)}")
    with op_scope(name, "fold", tensor):
        found = shape_of(tensor)
        known: Sequence[Dim] = tensor.shape or (None,) * rank
        batch = found[0] if known[0] is None else known[0]
        deep: int | Tensor | None = known[1 if first else -1]
        deep = found[1 if first else rank - 1] if deep is None else deep
        if isinstance(deep, int) and deep % places:
            raise ShapeError(f"{deep} numbers a window do not divide by its {places} places")
        channels = deep // places
        whole = window_output((None, *output_size, None), attrs["window"], None, {**attrs, "data_format": _last(n)})
        counts = places_of(whole, _last(n))
        wanted = (None, None, prod(d or 0 for d in counts)) if first else (None, *counts, None)
        if not shape_accepts(wanted, tensor.shape):
            raise ShapeError(
                f"windows {format_shape(tensor.shape)} are not those of images of {tuple(output_size)} places, which "
                f"unfold makes {format_shape(wanted)}"
            )
        if first:
            split = reshape(tensor, (batch, channels, places, *counts))
            windows = permute_dims(split, (0, *range(3, n + 3), 2, 1))
        else:
            windows = reshape(tensor, (batch, *counts, places, channels))
        shape, vector = shape_argument(laid_out(batch, [int(s) for s in output_size], channels, layout))
        return build("fold", (windows, *vector), {**attrs, "shape": shape})


def _last(n: int) -> str:
    return {1: "NWC", 2: "NHWC", 3: "NDHWC"}[n]


def _attrs(
    layout: str, n: int, window: IntsLike, strides: IntsLike, padding: PaddingLike, dilation: IntsLike
) -> dict[str, Any]:
    return {
        "window": many(window, n, "window"),
        "strides": many(strides, n, "strides"),
        "padding": check_padding(padding, n),
        "data_format": layout,
        "dilation": many(dilation, n, "dilation"),
    }


def _sizes(x: Tensor) -> list[int | Tensor]:
    """All dimensions, those not known found when the op runs; the rank is known."""
    if x.spec.is_static:
        return [d for d in x.shape or () if d is not None]
    found = shape_of(x)
    return [found[n] if d is None else d for n, d in enumerate(x.shape or ())]
