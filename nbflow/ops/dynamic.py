"""Ops whose attributes come as tensors: slices, paddings and ranges that are known only at run time.

Where the bounds are known, indexing (`x[2:5]`), `nf.pad` and `nf.arange` know the shape of the result, and these do
not: use them then. Ranks are known here, dimensions are not.
"""

from __future__ import annotations

from collections.abc import Sequence

from nbflow import op
from nbflow.errors import DTypeError, ShapeError
from nbflow.graph import Node, Tensor
from nbflow.op import Attrs
from nbflow.ops._build import INT64, ArrayLike, build, convert, int_tuple, require_kind, require_scalar
from nbflow.ops.creation import ones_like
from nbflow.ops.reduction import cumulative_sum
from nbflow.ops.shape import shape_of
from nbflow.spec import TensorSpec, format_shape, kind_of, normalize_axis

Grads = Sequence[Tensor | None]


def _only(grads: Grads) -> Tensor:
    (grad,) = grads
    assert grad is not None  # the only output of the op
    return grad


def _require_vectors(specs: Sequence[TensorSpec], what: str, length: int | None = None) -> None:
    for spec in specs:
        require_kind(spec, "iu", f"{what} are integers")
        if spec.rank not in (1, None):
            raise ShapeError(f"{what} are a vector, not {format_shape(spec.shape)}")
        if length is not None and spec.shape is not None and spec.shape[0] not in (length, None):
            raise ShapeError(f"{what} are {length} integers, not {spec.shape[0]}")


# --- slices ----------------------------------------------------------------------------------------------------------


def _slice_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    x, *bounds = inputs
    axes: tuple[int, ...] = attrs["axes"]
    _require_vectors(bounds, "the bounds of a slice", len(axes))
    if x.shape is None:
        return [TensorSpec(None, x.dtype)]
    cut = {normalize_axis(a, len(x.shape)) for a in axes}
    if len(cut) != len(axes):
        raise ShapeError(f"axes {axes} name one dimension twice")
    return [TensorSpec(tuple(None if n in cut else d for n, d in enumerate(x.shape)), x.dtype)]


def _slice_gradient(node: Node, grads: Grads) -> Grads:
    x, *bounds = node.inputs
    back = build("slice_dynamic_grad", (_only(grads), shape_of(x), *bounds), {**node.attrs, "rank": x.spec.rank})
    return [back, None, None, None]


def _slice_grad_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    rank = attrs["rank"]
    return [TensorSpec(None if rank is None else (None,) * rank, inputs[0].dtype)]


op.define(
    "slice_dynamic",
    infer=_slice_infer,
    gradient=_slice_gradient,
    doc="A slice whose bounds are known at run time. inputs: x, starts, stops, steps (integer vectors, one number for "
    "each of axes; counted and clamped as in Python). attrs: axes.",
)
op.define(
    "slice_dynamic_grad",
    infer=_slice_grad_infer,
    gradient=lambda node, grads: [
        build("slice_dynamic", (_only(grads), *node.inputs[2:]), {"axes": node.attrs["axes"]}),
        *[None] * (len(node.inputs) - 1),
    ],
    doc="The transpose of slice_dynamic: values where it would take them from, zeros elsewhere. inputs: values, shape, "
    "starts, stops, steps. attrs: axes, rank (None: unknown).",
)


def slice_dynamic(
    x: ArrayLike,
    starts: ArrayLike,
    stops: ArrayLike,
    steps: ArrayLike | None = None,
    *,
    axes: Sequence[int],
    name: str | None = None,
) -> Tensor:
    """`x[starts[0]:stops[0]:steps[0], …]` over the dimensions `axes`, with bounds known only at run time.

    `starts`, `stops`, `steps`: integer vectors, a number for each of `axes`; steps are 1 when left out. Negative
    numbers count from the end, numbers beyond it are cut, as Python does. The gradient for `x` is zero outside.
    """
    first, last = convert(starts), convert(stops)
    wanted = int_tuple(axes, "axes")
    by = convert([1] * len(wanted) if steps is None else steps)
    return build("slice_dynamic", (convert(x), first, last, by), {"axes": wanted}, name=name)


# --- paddings --------------------------------------------------------------------------------------------------------

MODES = ("reflect", "edge", "wrap")


def _pad_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    x, widths, value = inputs
    rank = x.rank
    _require_vectors([widths], "the widths of a padding", None if rank is None else 2 * rank)
    require_scalar(value, "what is padded with")
    if value.dtype != x.dtype:
        raise DTypeError(f"{x.dtype} is padded with {x.dtype}, not {value.dtype}; use nf.astype first")
    return [TensorSpec(None if rank is None else (None,) * rank, x.dtype)]


def _pad_gradient(node: Node, grads: Grads) -> Grads:
    x, widths, value = node.inputs
    grad = _only(grads)
    rank = x.spec.rank
    if rank is None:
        raise ShapeError("the gradient of pad_dynamic needs a tensor of known rank")
    # The value's own gradient is what lies outside: all of it less the inside.
    inside = build("pad_crop", (grad, widths, shape_of(x)))
    outside = grad.sum() - inside.sum() if kind_of(value.dtype) == "f" else None
    return [inside, None, outside]


def _crop_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    rank = inputs[0].rank
    return [TensorSpec(None if rank is None else (None,) * rank, inputs[0].dtype)]


def _crop_gradient(node: Node, grads: Grads) -> Grads:
    zero = convert(0, node.inputs[0].dtype, like=node.inputs[0])
    return [build("pad_dynamic", (_only(grads), node.inputs[1], zero)), None, None]


op.define(
    "pad_dynamic",
    infer=_pad_infer,
    gradient=_pad_gradient,
    doc="A value around the tensor; a negative width cuts off. inputs: x, widths (integer vector: what comes before "
    "each dimension, then what comes after each), value (scalar).",
)
op.define(
    "pad_crop",
    infer=_crop_infer,
    gradient=_crop_gradient,
    doc="The transpose of pad_dynamic: what it was padded around; zeros where it had cut. inputs: values, widths, the "
    "shape of the result.",
)


def pad_dynamic(x: ArrayLike, widths: ArrayLike, value: ArrayLike = 0, *, name: str | None = None) -> Tensor:
    """`value` around `x`, with widths known only at run time; a negative width cuts off.

    `widths`: an integer vector: how much comes before each dimension, then how much after each.
    """
    tensor = convert(x)
    return build("pad_dynamic", (tensor, convert(widths), convert(value, like=tensor)), name=name)


def _places_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    length, widths = inputs
    require_kind(length, "iu", "a length is an integer")
    require_scalar(length, "a length")
    _require_vectors([widths], "the widths of a padding", 2)
    if attrs["mode"] not in MODES:
        raise ShapeError(f"a mode of padding is one of {', '.join(MODES)}, not {attrs['mode']!r}")
    return [TensorSpec((None,), INT64)]


op.define(
    "pad_places",
    infer=_places_infer,
    gradient=None,
    doc="Where the elements of a padded dimension come from: an int64 vector, for nf.take. inputs: length (integer "
    "scalar), widths (before, after). attrs: mode (reflect, edge, wrap).",
)


def pad_places(length: ArrayLike, widths: ArrayLike, mode: str, *, name: str | None = None) -> Tensor:
    """Indices that pad a dimension of `length` by `widths` (before, after): `nf.take(x, pad_places(…), axis=…)`.

    `mode`: "reflect" (without repeating the border), "edge" or "wrap", as in `numpy.pad`; negative widths cut off.
    """
    return build("pad_places", (convert(length), convert(widths)), {"mode": mode}, name=name)


# --- ranges and shapes -----------------------------------------------------------------------------------------------


def _range_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    require_kind(inputs[0], "iuf", "bounds of a range are real numbers")
    for spec in inputs:
        require_kind(spec, kind_of(inputs[0].dtype) if spec.dtype == inputs[0].dtype else "", "bounds have one dtype")
        require_scalar(spec, "a bound of a range")
    return [TensorSpec((None,), inputs[0].dtype)]


def _range_gradient(node: Node, grads: Grads) -> Grads:
    # Element i is start + i · step. Where it stops decides how many there are, not what they are.
    (grad,) = grads
    assert grad is not None  # the only output
    if kind_of(grad.dtype) != "f":
        return [None, None, None]
    places = cumulative_sum(ones_like(grad), axis=0) - 1
    return [grad.sum(), None, (grad * places).sum()]


op.define(
    "range_dynamic",
    infer=_range_infer,
    gradient=_range_gradient,
    doc="start, start + step, … up to, not including, stop, which has no gradient. inputs: start, stop, step (scalars "
    "of one dtype).",
)


def range_dynamic(start: ArrayLike, stop: ArrayLike, step: ArrayLike, *, name: str | None = None) -> Tensor:
    """`start`, `start + step`, … up to, not including, `stop`: scalar tensors of one dtype."""
    first = convert(start)
    return build("range_dynamic", (first, convert(stop, like=first), convert(step, like=first)), name=name)


def _broadcast_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    _require_vectors(inputs, "shapes")
    lengths = [None if s.shape is None else s.shape[0] for s in inputs]
    known = [n for n in lengths if n is not None]
    return [TensorSpec((max(known) if len(known) == len(lengths) else None,), INT64)]


op.define(
    "broadcast_dims",
    infer=_broadcast_infer,
    gradient=None,
    doc="The shape that tensors of the given shapes broadcast to. inputs: integer vectors.",
)


def broadcast_dims(*shapes: ArrayLike, name: str | None = None) -> Tensor:
    """The shape, an int64 vector, that tensors of `shapes` (integer vectors) broadcast to together."""
    return build("broadcast_dims", [convert(s) for s in shapes], name=name)
