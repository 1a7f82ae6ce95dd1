"""Elements put elsewhere: permuting, turning, repeating, padding. None computes; each has a linear gradient.

`reshape` and `broadcast_to` are in `shape.py`; `concat` and `split` in `joining.py`; what picks elements by index in
`indexing.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nbflow import op
from nbflow.errors import ShapeError
from nbflow.graph import Node, Tensor
from nbflow.op import Attrs
from nbflow.ops._build import (
    ArrayLike,
    axis_attr,
    build,
    convert,
    int_tuple,
    known_rank,
    same_infer,
    unary,
)
from nbflow.ops.shape import reshape
from nbflow.spec import Dim, TensorSpec, format_shape, kind_of, normalize_axes, normalize_axis

Grads = Sequence[Tensor | None]


def _only(grads: Grads) -> Tensor:
    (grad,) = grads
    assert grad is not None  # the only output of the op
    return grad


# --- permuting -------------------------------------------------------------------------------------------------------


def _permute_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    axes: tuple[int, ...] = attrs["axes"]
    shape = inputs[0].shape
    if sorted(axes) != list(range(len(axes))) or (shape is not None and len(shape) != len(axes)):
        raise ShapeError(f"axes {axes} are no permutation of the dimensions of {format_shape(shape)}")
    return [TensorSpec((None,) * len(axes) if shape is None else tuple(shape[a] for a in axes), inputs[0].dtype)]


def _permute_gradient(node: Node, grads: Grads) -> Grads:
    axes = node.attrs["axes"]
    return [permute_dims(_only(grads), tuple(axes.index(i) for i in range(len(axes))))]


op.define(
    "permute_dims",
    infer=_permute_infer,
    gradient=_permute_gradient,
    cost=op.free_cost,
    alias=True,
    doc="Dimensions in another order; a view. attrs: axes (counted from the front).",
)


def permute_dims(x: ArrayLike, /, axes: Sequence[int], *, name: str | None = None) -> Tensor:
    """Dimension i of the result is dimension `axes[i]` of `x`."""
    wanted = int_tuple(axes, "axes")
    return unary("permute_dims", x, {"axes": tuple(normalize_axis(a, len(wanted)) for a in wanted)}, name=name)


def _transpose_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    shape = inputs[0].shape
    if shape is None:
        return [TensorSpec(None, inputs[0].dtype)]
    if len(shape) < 2:
        raise ShapeError(f"a matrix has at least two dimensions, not {format_shape(shape)}")
    return [TensorSpec((*shape[:-2], shape[-1], shape[-2]), inputs[0].dtype)]


op.define(
    "matrix_transpose",
    infer=_transpose_infer,
    gradient=lambda node, grads: [matrix_transpose(_only(grads))],
    cost=op.free_cost,
    alias=True,
    doc="The last two dimensions exchanged; a view.",
)


def matrix_transpose(x: ArrayLike, /, *, name: str | None = None) -> Tensor:
    """The last two dimensions exchanged."""
    return unary("matrix_transpose", x, name=name)


def moveaxis(
    x: ArrayLike, source: int | Sequence[int], destination: int | Sequence[int], /, *, name: str | None = None
) -> Tensor:
    """Dimensions `source` moved to places `destination`; the others keep their order."""
    tensor = convert(x)
    rank = known_rank(tensor.spec, "moveaxis")
    sources = [normalize_axis(a, rank) for a in int_tuple(source, "source")]
    places = [normalize_axis(a, rank) for a in int_tuple(destination, "destination")]
    if len(sources) != len(places) or len(set(sources)) != len(sources) or len(set(places)) != len(places):
        raise ShapeError(f"source {source} and destination {destination} do not match")
    order = [a for a in range(rank) if a not in sources]
    for place, axis in sorted(zip(places, sources, strict=True)):
        order.insert(place, axis)
    return permute_dims(tensor, order, name=name)


# --- dimensions of length 1 ------------------------------------------------------------------------------------------


def _expand_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    shape = inputs[0].shape
    if shape is None:
        return [TensorSpec(None, inputs[0].dtype)]
    axes = normalize_axes(attrs["axis"], len(shape) + len(attrs["axis"]))
    rest = iter(shape)
    dims = tuple(1 if i in axes else next(rest) for i in range(len(shape) + len(axes)))
    return [TensorSpec(dims, inputs[0].dtype)]


op.define(
    "expand_dims",
    infer=_expand_infer,
    gradient=lambda node, grads: [build("squeeze", (_only(grads),), {"axis": node.attrs["axis"]})],
    cost=op.free_cost,
    alias=True,
    doc="New dimensions of length 1; a view. attrs: axis (a tuple of places in the result).",
)


def expand_dims(x: ArrayLike, /, axis: int | Sequence[int] = 0, *, name: str | None = None) -> Tensor:
    """New dimensions of length 1 at `axis`, places in the result."""
    return unary("expand_dims", x, {"axis": int_tuple(axis, "axis")}, name=name)


def _squeeze_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    shape = inputs[0].shape
    if shape is None:
        return [TensorSpec(None, inputs[0].dtype)]
    axes = normalize_axes(attrs["axis"], len(shape))
    if any(shape[a] not in (1, None) for a in axes):
        raise ShapeError(f"cannot squeeze axes {attrs['axis']} of {format_shape(shape)}: only dimensions of length 1")
    return [TensorSpec(tuple(d for i, d in enumerate(shape) if i not in axes), inputs[0].dtype)]


op.define(
    "squeeze",
    infer=_squeeze_infer,
    gradient=lambda node, grads: [build("expand_dims", (_only(grads),), {"axis": node.attrs["axis"]})],
    cost=op.free_cost,
    alias=True,
    doc="Dimensions of length 1 removed; a view. attrs: axis (tuple).",
)


def squeeze(x: ArrayLike, /, axis: int | Sequence[int] | None = None, *, name: str | None = None) -> Tensor:
    """`x` without the dimensions `axis`, which have length 1. None: all that are known to have length 1."""
    tensor = convert(x)
    if axis is None:
        known_rank(tensor.spec, "squeeze without axis")
        axis = tuple(i for i, d in enumerate(tensor.shape or ()) if d == 1)
    return build("squeeze", (tensor,), {"axis": int_tuple(axis, "axis")}, name=name)


# --- turning ---------------------------------------------------------------------------------------------------------


def _check_axes(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    if inputs[0].shape is not None:
        normalize_axes(attrs["axis"], len(inputs[0].shape))
    return same_infer(inputs, attrs)


op.define(
    "flip",
    infer=_check_axes,
    gradient=lambda node, grads: [build("flip", (_only(grads),), node.attrs)],
    cost=op.free_cost,
    alias=True,
    doc="Elements in reverse order along dimensions; a view. attrs: axis (None: all).",
)


def flip(x: ArrayLike, /, *, axis: int | Sequence[int] | None = None, name: str | None = None) -> Tensor:
    """Elements in reverse order along `axis`; None: along all dimensions."""
    return unary("flip", x, {"axis": axis_attr(axis)}, name=name)


def _roll_gradient(node: Node, grads: Grads) -> Grads:
    attrs = {"shift": tuple(-s for s in node.attrs["shift"]), "axis": node.attrs["axis"]}
    return [build("roll", (_only(grads),), attrs)]


op.define(
    "roll",
    infer=_check_axes,
    gradient=_roll_gradient,
    doc="Elements moved along dimensions, the last ones coming first. attrs: shift (tuple), axis (tuple, or None: "
    "flattened).",
)


def roll(
    x: ArrayLike,
    /,
    shift: int | Sequence[int],
    *,
    axis: int | Sequence[int] | None = None,
    name: str | None = None,
) -> Tensor:
    """Elements moved by `shift` places along `axis`, re-entering at the other end; None: as if flattened."""
    shifts = int_tuple(shift, "shift")
    axes = None if axis is None else int_tuple(axis, "axis")
    if axes is not None and len(shifts) != len(axes):
        raise ShapeError(f"shift {shift} and axis {axis} differ in length")
    return unary("roll", x, {"shift": shifts, "axis": axes}, name=name)


# --- repeating -------------------------------------------------------------------------------------------------------


def _tile_shape(shape: Sequence[Dim], reps: Sequence[int]) -> tuple[Dim, ...]:
    rank = max(len(shape), len(reps))
    dims = (1,) * (rank - len(shape)) + tuple(shape)
    times = (1,) * (rank - len(reps)) + tuple(reps)
    return tuple(0 if t == 0 else (None if d is None else d * t) for d, t in zip(dims, times, strict=True))


def _tile_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    shape = inputs[0].shape
    if any(r < 0 for r in attrs["reps"]):
        raise ShapeError(f"a number of repetitions is not negative: {attrs['reps']}")
    return [TensorSpec(None if shape is None else _tile_shape(shape, attrs["reps"]), inputs[0].dtype)]


def _tile_gradient(node: Node, grads: Grads) -> Grads:
    x = node.inputs[0]
    rank = known_rank(x.spec, "the gradient of tile")
    return [build("tile_grad", (_only(grads),), {"reps": node.attrs["reps"], "rank": rank})]


def _tile_grad_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    shape, rank, reps = inputs[0].shape, attrs["rank"], attrs["reps"]
    if shape is None:
        return [TensorSpec((None,) * rank, inputs[0].dtype)]
    if len(shape) != max(rank, len(reps)):
        raise ShapeError(f"tile of {rank} dimensions by {tuple(reps)} does not give {format_shape(shape)}")
    times = (1,) * (len(shape) - len(reps)) + tuple(reps)
    dims = [None if d is None or t == 0 else d // t for d, t in zip(shape, times, strict=True)]
    return [TensorSpec(tuple(dims[len(dims) - rank :]), inputs[0].dtype)]


op.define(
    "tile",
    infer=_tile_infer,
    gradient=_tile_gradient,
    doc="The whole tensor repeated along each dimension. attrs: reps.",
)
op.define(
    "tile_grad",
    infer=_tile_grad_infer,
    gradient=lambda node, grads: [build("tile", (_only(grads),), {"reps": node.attrs["reps"]})],
    cost=op.elementwise_cost,
    doc="The transpose of tile: the sum over the repetitions. attrs: reps (all positive), rank (of the result).",
)


def tile(x: ArrayLike, repetitions: int | Sequence[int], /, *, name: str | None = None) -> Tensor:
    """`x` repeated `repetitions[i]` times along dimension i; leading dimensions are added where there are too few."""
    tensor, reps = convert(x), int_tuple(repetitions, "repetitions")
    if 0 in reps and kind_of(tensor.dtype) in "fc":
        tensor = build("stop_gradient", (tensor,))  # nothing of it is in the result
    return build("tile", (tensor,), {"reps": reps}, name=name)


def _repeat_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    shape = inputs[0].shape
    if shape is None:
        return [TensorSpec(None, inputs[0].dtype)]
    axis = normalize_axis(attrs["axis"], len(shape))
    dim = shape[axis]
    grown = None if dim is None else dim * attrs["repeats"]
    return [TensorSpec((*shape[:axis], grown, *shape[axis + 1 :]), inputs[0].dtype)]


def _repeat_grad_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    shape = inputs[0].shape
    if shape is None:
        return [TensorSpec(None, inputs[0].dtype)]
    axis = normalize_axis(attrs["axis"], len(shape))
    dim = shape[axis]
    shrunk = None if dim is None else dim // attrs["repeats"]
    return [TensorSpec((*shape[:axis], shrunk, *shape[axis + 1 :]), inputs[0].dtype)]


op.define(
    "repeat",
    infer=_repeat_infer,
    gradient=lambda node, grads: [build("repeat_grad", (_only(grads),), node.attrs)],
    doc="Each element repeated along a dimension. attrs: repeats (at least 1), axis.",
)
op.define(
    "repeat_grad",
    infer=_repeat_grad_infer,
    gradient=lambda node, grads: [build("repeat", (_only(grads),), node.attrs)],
    doc="The transpose of repeat: the sum over the repetitions. attrs: repeats, axis.",
)


def repeat(x: ArrayLike, repeats: int, /, *, axis: int | None = None, name: str | None = None) -> Tensor:
    """Each element of `x` `repeats` times in a row, along `axis`; None: of the flattened tensor."""
    tensor = convert(x)
    if axis is None:
        tensor, axis = reshape(tensor, (-1,)), 0
    if not isinstance(repeats, int) or repeats < 1:
        raise ShapeError(f"repeats is a positive int, not {repeats!r}")
    return build("repeat", (tensor,), {"repeats": repeats, "axis": int(axis)}, name=name)


# --- padding ---------------------------------------------------------------------------------------------------------


def _pad_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    widths = attrs["widths"]
    if any(w < 0 for pair in widths for w in pair):
        raise ShapeError(f"a padding is not negative: {widths}")
    shape = inputs[0].shape
    if shape is None:
        return [TensorSpec((None,) * len(widths), inputs[0].dtype)]
    if len(shape) != len(widths):
        raise ShapeError(f"pad of {format_shape(shape)} takes {len(shape)} pairs of widths, not {len(widths)}")
    dims = tuple(None if d is None else d + sum(w) for d, w in zip(shape, widths, strict=True))
    return [TensorSpec(dims, inputs[0].dtype)]


def _pad_gradient(node: Node, grads: Grads) -> Grads:
    inner = tuple(slice(before, -after if after else None) for before, after in node.attrs["widths"])
    return [_only(grads)[inner]]


op.define(
    "pad",
    infer=_pad_infer,
    gradient=_pad_gradient,
    out=True,
    doc="A constant around the tensor. attrs: widths ((before, after) for each dimension), value.",
)


def pad(x: ArrayLike, /, pad_width: Sequence[Any], *, constant_values: float = 0, name: str | None = None) -> Tensor:
    """`constant_values` around `x`: `pad_width` is one (before, after) for each dimension, or one for all."""
    tensor = convert(x)
    pairs = [pad_width] if all(isinstance(w, int) for w in pad_width) else list(pad_width)
    widths = [int_tuple(w, "a padding") for w in pairs]
    if len(widths) == 1:
        widths *= known_rank(tensor.spec, "pad with one pair for all dimensions")
    if any(len(w) != 2 for w in widths):
        raise ShapeError(f"each padding is (before, after): {pad_width}")
    return build("pad", (tensor,), {"widths": tuple(widths), "value": constant_values}, name=name)


# --- triangles -------------------------------------------------------------------------------------------------------


def _triangle(name: str, doc: str) -> None:
    def infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
        if inputs[0].shape is not None and len(inputs[0].shape) < 2:
            raise ShapeError(f"a matrix has at least two dimensions, not {format_shape(inputs[0].shape)}")
        return same_infer(inputs, attrs)

    def gradient(node: Node, grads: Grads) -> Grads:
        return [build(name, (_only(grads),), node.attrs)]

    op.define(name, infer=infer, gradient=gradient, doc=doc)


_triangle("triu", "The elements on and above diagonal k, zeros below. attrs: k.")
_triangle("tril", "The elements on and below diagonal k, zeros above. attrs: k.")


def triu(x: ArrayLike, /, *, k: int = 0, name: str | None = None) -> Tensor:
    """The elements of the last two dimensions on and above the `k`-th diagonal, zeros below."""
    return unary("triu", x, {"k": int(k)}, name=name)


def tril(x: ArrayLike, /, *, k: int = 0, name: str | None = None) -> Tensor:
    """The elements of the last two dimensions on and below the `k`-th diagonal, zeros above."""
    return unary("tril", x, {"k": int(k)}, name=name)
