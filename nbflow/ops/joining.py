"""Tensors joined into one, and one cut into parts: concat, stack, unstack, split. Each is the gradient of another."""

from __future__ import annotations

from collections.abc import Sequence

from nbflow import op
from nbflow.errors import ShapeError
from nbflow.graph import Node, Tensor
from nbflow.op import Attrs
from nbflow.ops._build import (
    ArrayLike,
    build,
    build_node,
    convert,
    convert_promoted,
    int_tuple,
    known_rank,
    promote,
    static_shape,
)
from nbflow.ops.casting import astype
from nbflow.ops.creation import zeros_like
from nbflow.ops.shape import reshape, shape_of
from nbflow.spec import Dim, TensorSpec, format_shape, merge_shapes, normalize_axis

Grads = Sequence[Tensor | None]


def _only(grads: Grads) -> Tensor:
    (grad,) = grads
    assert grad is not None  # the only output of the op
    return grad


# --- joining ---------------------------------------------------------------------------------------------------------


def _concat_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    if not inputs:
        raise ShapeError("concat of nothing has no shape")
    dtype = promote(*(s.dtype for s in inputs))
    known = next((s.shape for s in inputs if s.shape is not None), None)
    if known is None:
        return [TensorSpec(None, dtype)]
    axis = normalize_axis(attrs["axis"], len(known))
    length: Dim = 0
    rest = (*known[:axis], None, *known[axis + 1 :])
    for spec in inputs:
        if spec.shape is None:
            length = None
            continue
        if len(spec.shape) != len(known):
            raise ShapeError(f"cannot join {format_shape(known)} and {format_shape(spec.shape)}: ranks differ")
        dim = spec.shape[axis]
        length = None if length is None or dim is None else length + dim
        merged = merge_shapes(rest, (*spec.shape[:axis], None, *spec.shape[axis + 1 :]))
        assert merged is not None  # neither is
        rest = merged
    return [TensorSpec((*rest[:axis], length, *rest[axis + 1 :]), dtype)]


def _concat_gradient(node: Node, grads: Grads) -> Grads:
    grad, axis = _only(grads), node.attrs["axis"]
    sizes = [None if t.shape is None else t.shape[axis] for t in node.inputs]
    extra: tuple[Tensor, ...] = ()
    if any(s is None for s in sizes):
        extra = (build("stack", [shape_of(t)[axis] for t in node.inputs], {"axis": 0}),)
    parts = build_node("split", (grad, *extra), {"sizes": tuple(sizes), "axis": axis}).outputs
    return [astype(p, t.dtype) for p, t in zip(parts, node.inputs, strict=True)]


op.define(
    "concat",
    infer=_concat_infer,
    gradient=_concat_gradient,
    out=True,
    doc="Tensors one after the other along a dimension. attrs: axis.",
)


def concat(values: Sequence[ArrayLike], /, *, axis: int | None = 0, name: str | None = None) -> Tensor:
    """Tensors joined along `axis`, which they have; None: each flattened first."""
    tensors = convert_promoted(values)
    if axis is None:
        tensors, axis = [reshape(t, (-1,)) for t in tensors], 0
    return build("concat", tensors, {"axis": int(axis)}, name=name)


def _stack_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    if not inputs:
        raise ShapeError("stack of nothing has no shape")
    dtype = promote(*(s.dtype for s in inputs))
    shape = inputs[0].shape
    for spec in inputs[1:]:
        shape = merge_shapes(shape, spec.shape)
    if shape is None:
        return [TensorSpec(None, dtype)]
    axis = normalize_axis(attrs["axis"], len(shape) + 1)
    return [TensorSpec((*shape[:axis], len(inputs), *shape[axis:]), dtype)]


def _stack_gradient(node: Node, grads: Grads) -> Grads:
    attrs = {"num": len(node.inputs), "axis": node.attrs["axis"]}
    parts = build_node("unstack", (_only(grads),), attrs).outputs
    return [astype(p, t.dtype) for p, t in zip(parts, node.inputs, strict=True)]


op.define(
    "stack",
    infer=_stack_infer,
    gradient=_stack_gradient,
    out=True,
    doc="Tensors of one shape side by side along a new dimension. attrs: axis.",
)


def stack(values: Sequence[ArrayLike], /, *, axis: int = 0, name: str | None = None) -> Tensor:
    """Tensors of one shape joined along a new dimension at `axis`."""
    return build("stack", convert_promoted(values), {"axis": int(axis)}, name=name)


# --- splitting -------------------------------------------------------------------------------------------------------


def _unstack_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    shape, count = inputs[0].shape, attrs["num"]
    if shape is None:
        return [TensorSpec(None, inputs[0].dtype)] * count
    axis = normalize_axis(attrs["axis"], len(shape))
    if shape[axis] not in (None, count):
        raise ShapeError(f"dimension {axis} of {format_shape(shape)} does not have length {count}")
    return [TensorSpec(shape[:axis] + shape[axis + 1 :], inputs[0].dtype)] * count


def _filled(node: Node, grads: Grads) -> list[Tensor]:
    return [zeros_like(t) if g is None else g for g, t in zip(grads, node.outputs, strict=True)]


op.define(
    "unstack",
    infer=_unstack_infer,
    gradient=lambda node, grads: [build("stack", _filled(node, grads), {"axis": node.attrs["axis"]})],
    cost=op.free_cost,
    alias=True,
    doc="The parts along one dimension, without it; views. attrs: num (how many), axis.",
)


def unstack(x: ArrayLike, /, *, axis: int = 0, num: int | None = None) -> tuple[Tensor, ...]:
    """The parts of `x` along `axis`. `num`: how many, when the shape does not tell."""
    tensor = convert(x)
    if num is None:
        rank = known_rank(tensor.spec, "unstack without num")
        assert tensor.shape is not None  # its rank is known
        num = tensor.shape[normalize_axis(axis, rank)]
        if num is None:
            raise ShapeError(f"the length of dimension {axis} of {tensor!r} is unknown; pass num")
    return build_node("unstack", (tensor,), {"num": int(num), "axis": int(axis)}).outputs


def _split_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    shape, sizes = inputs[0].shape, attrs["sizes"]
    if shape is None:
        return [TensorSpec(None, inputs[0].dtype)] * len(sizes)
    axis = normalize_axis(attrs["axis"], len(shape))
    length = shape[axis]
    if len(inputs) == 1 and None in sizes and length is not None:
        if length % len(sizes):
            raise ShapeError(f"dimension {axis} of {format_shape(shape)} does not split into {len(sizes)} equal parts")
        sizes = (length // len(sizes),) * len(sizes)
    if static_shape(sizes) is not None and length is not None and sum(sizes) != length:
        raise ShapeError(f"parts of {sizes} do not add up to dimension {axis} of {format_shape(shape)}")
    return [TensorSpec((*shape[:axis], s, *shape[axis + 1 :]), inputs[0].dtype) for s in sizes]


op.define(
    "split",
    infer=_split_infer,
    gradient=lambda node, grads: [
        build("concat", _filled(node, grads), {"axis": node.attrs["axis"]}),
        *[None] * (len(node.inputs) - 1),
    ],
    cost=op.free_cost,
    alias=True,
    doc="Consecutive parts along one dimension; views. inputs: x, and the sizes (int vector) where they are known only "
    "at run time. attrs: sizes (all None, and no second input: equal parts), axis.",
)


def split(x: ArrayLike, parts: int | Sequence[int], /, *, axis: int = 0) -> tuple[Tensor, ...]:
    """`x` cut along `axis` into `parts` equal parts, or into parts of the sizes `parts`."""
    sizes = (None,) * parts if isinstance(parts, int) else int_tuple(parts, "parts")
    if not sizes:
        raise ShapeError(f"cannot split into {parts!r} parts")
    return build_node("split", (convert(x),), {"sizes": sizes, "axis": int(axis)}).outputs
