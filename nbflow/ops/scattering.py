"""Elements picked and written at places given by index tensors, as ONNX and TensorFlow index; and distinct slices.

`take` and `scatter_add` (`indexing.py`) pick whole slices along one dimension. Here an index stands for each element
(`gather_elements`, `scatter_elements`), or for the first dimensions at once (`gather_nd`, `scatter_nd`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from nbflow import op
from nbflow.errors import DTypeError, GraphError, ShapeError
from nbflow.graph import Node, Tensor
from nbflow.op import Attrs
from nbflow.ops import gathering
from nbflow.ops._build import INT64, ArrayLike, build, build_node, convert, require_kind, same_infer
from nbflow.ops.creation import arange, zeros_like
from nbflow.ops.indexing import scatter_add
from nbflow.ops.manipulation import expand_dims
from nbflow.ops.shape import reshape, reshape_like, shape_of
from nbflow.spec import Dim, TensorSpec, format_shape, normalize_axis, shape_accepts

Grads = Sequence[Tensor | None]

# How an update meets what is there. Several updates of one place: the last one stays ("none"), or all count.
REDUCTIONS = ("none", "add", "mul", "max", "min")


def _only(grads: Grads) -> Tensor:
    (grad,) = grads
    assert grad is not None  # the only output of the op
    return grad


def _check_reduction(attrs: Attrs) -> None:
    if attrs["reduction"] not in REDUCTIONS:
        raise GraphError(f"a reduction is one of {', '.join(REDUCTIONS)}, not {attrs['reduction']!r}")


def _check_updates(x: TensorSpec, updates: TensorSpec) -> None:
    if updates.dtype != x.dtype:
        raise DTypeError(f"updates are {x.dtype} like the tensor, not {updates.dtype}; use nf.astype first")


def _no_gradient(node: Node) -> GraphError:
    return GraphError(
        f"{node.op} with reduction {node.attrs['reduction']!r} has no gradient; 'none' and 'add' have one",
        where=node.where,
    )


# --- an index an element ---------------------------------------------------------------------------------------------


def _check_elements(x: TensorSpec, indices: TensorSpec, attrs: Attrs) -> None:
    require_kind(indices, "iu", "indices are integers")
    if x.shape is None or indices.shape is None:
        return
    if len(x.shape) != len(indices.shape):
        raise ShapeError(f"indices of {format_shape(indices.shape)} need the rank of {format_shape(x.shape)}")
    axis = normalize_axis(attrs["axis"], len(x.shape))
    pairs = enumerate(zip(x.shape, indices.shape, strict=True))
    if any(n != axis and d is not None and i is not None and i > d for n, (d, i) in pairs):
        raise ShapeError(f"indices of {format_shape(indices.shape)} reach beyond {format_shape(x.shape)}")


def _gather_elements_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    x, indices = inputs
    _check_elements(x, indices, attrs)
    return [TensorSpec(indices.shape, x.dtype)]


def _gather_elements_gradient(node: Node, grads: Grads) -> Grads:
    x, indices = node.inputs
    attrs = {**node.attrs, "reduction": "add"}
    return [build("scatter_elements", (zeros_like(x), indices, _only(grads)), attrs), None]


def _scatter_elements_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    x, indices, updates = inputs
    _check_reduction(attrs)
    _check_elements(x, indices, attrs)
    _check_updates(x, updates)
    if not shape_accepts(indices.shape, updates.shape):
        raise ShapeError(f"updates of {format_shape(updates.shape)} for indices of {format_shape(indices.shape)}")
    return same_infer(inputs, attrs)


def _scatter_elements_gradient(node: Node, grads: Grads) -> Grads:
    grad = _only(grads)
    _, indices, updates = node.inputs
    if node.attrs["reduction"] not in ("none", "add"):
        raise _no_gradient(node)
    picked = build("gather_elements", (grad, indices), {"axis": node.attrs["axis"]})
    if node.attrs["reduction"] == "add":
        return [grad, None, picked]
    return [build("scatter_elements", (grad, indices, zeros_like(updates)), node.attrs), None, picked]


op.define(
    "gather_elements",
    infer=_gather_elements_infer,
    gradient=_gather_elements_gradient,
    doc="For each index the element at its own place, but at the index along axis. inputs: x, indices (of x's rank, "
    "nowhere but along axis beyond it). attrs: axis.",
)
op.define(
    "scatter_elements",
    infer=_scatter_elements_infer,
    gradient=_scatter_elements_gradient,
    doc="x with an update at the place of each index. inputs: x, indices, updates. attrs: axis, reduction (none, add, "
    "mul, max, min).",
)


def gather_elements(x: ArrayLike, indices: ArrayLike, /, *, axis: int = 0, name: str | None = None) -> Tensor:
    """`x[i, indices[i, j]]` for `axis` 1, and alike in other ranks. Indices may cover only the first part of `x`."""
    return build("gather_elements", (convert(x), convert(indices)), {"axis": int(axis)}, name=name)


def scatter_elements(
    x: ArrayLike,
    indices: ArrayLike,
    updates: ArrayLike,
    /,
    *,
    axis: int = 0,
    reduction: str = "none",
    name: str | None = None,
) -> Tensor:
    """`x` with `updates` written where `nf.gather_elements(x, indices, axis=axis)` would read.

    `reduction`: "none" overwrites, "add", "mul", "max" and "min" combine. Gradients: for "none" (indices must then
    differ) and "add".
    """
    tensor = convert(x)
    inputs = (tensor, convert(indices), convert(updates, like=tensor))
    return build("scatter_elements", inputs, {"axis": int(axis), "reduction": reduction}, name=name)


# --- an index for the first dimensions -------------------------------------------------------------------------------


def _depth(indices: TensorSpec) -> int:
    """How many dimensions an index stands for: the length of the last dimension of `indices`."""
    depth: Dim = indices.shape[-1] if indices.shape else None
    if depth is None:
        raise ShapeError(f"the last dimension of indices must be known, not {format_shape(indices.shape)}")
    return depth


def _scatter_nd_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    x, indices, updates = inputs
    _check_reduction(attrs)
    _check_updates(x, updates)
    require_kind(indices, "iu", "indices are integers")
    if x.shape is not None and indices.shape is not None:
        depth = _depth(indices)
        if depth > len(x.shape):
            raise ShapeError(f"indices of {depth} numbers are too long for {format_shape(x.shape)}")
        wanted = (*indices.shape[:-1], *x.shape[depth:])
        if not shape_accepts(wanted, updates.shape):
            raise ShapeError(f"updates of {format_shape(updates.shape)} do not fit {format_shape(wanted)}")
    return same_infer(inputs, attrs)


def _scatter_nd_gradient(node: Node, grads: Grads) -> Grads:
    grad = _only(grads)
    _, indices, updates = node.inputs
    if node.attrs["reduction"] not in ("none", "add"):
        raise _no_gradient(node)
    picked = gather_nd(grad, indices)
    if node.attrs["reduction"] == "add":
        return [grad, None, picked]
    return [build("scatter_nd", (grad, indices, zeros_like(updates)), node.attrs), None, picked]


op.define(
    "scatter_nd",
    infer=_scatter_nd_infer,
    gradient=_scatter_nd_gradient,
    doc="x with updates written at indices for its first dimensions. inputs: x, indices (…, how many dimensions), "
    "updates. attrs: reduction (none, add, mul, max, min).",
)


def scatter_nd(
    x: ArrayLike,
    indices: ArrayLike,
    updates: ArrayLike,
    /,
    *,
    reduction: str = "none",
    name: str | None = None,
) -> Tensor:
    """`x` with `x[tuple(indices[i])] = updates[i]` for all i: indices (…, k) stand for the first k dimensions.

    `reduction`: "none" overwrites, "add", "mul", "max" and "min" combine. Gradients: for "none" (indices must then
    differ) and "add".
    """
    tensor = convert(x)
    inputs = (tensor, convert(indices), convert(updates, like=tensor))
    return build("scatter_nd", inputs, {"reduction": reduction}, name=name)


def gather_nd(x: ArrayLike, indices: ArrayLike, /, *, batch_dims: int = 0, name: str | None = None) -> Tensor:
    """`x[tuple(indices[i])]` for all i: indices (…, k) stand for k dimensions of `x` after the first `batch_dims`.

    The first `batch_dims` dimensions of both go together: an index picks from its own part. The length k must be known.
    """
    tensor, places = convert(x), convert(indices)
    parts = [build("getitem", (places,), {"index": ("...", n)}) for n in range(_depth(places.spec))]
    rank = places.spec.rank or 0
    own = shape_of(tensor)
    batches = []
    for n in range(batch_dims):
        length = own[n] if tensor.shape is None or tensor.shape[n] is None else tensor.shape[n]
        batches.append(expand_dims(arange(length, dtype=INT64), axis=tuple(range(1, rank - 1 - n))))
    if not batches and not parts:
        raise ShapeError("indices of no numbers pick nothing")
    return gathering.gather_nd(tensor, [*batches, *parts], 0, name=name)


# --- distinct slices -------------------------------------------------------------------------------------------------


class UniqueSlices(NamedTuple):
    """What `nf.unique_slices` gives."""

    values: Tensor
    indices: Tensor
    inverse: Tensor
    counts: Tensor


def _unique_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    shape, axis = inputs[0].shape, attrs["axis"]
    found = TensorSpec((None,), INT64)
    if axis is None:
        return [TensorSpec((None,), inputs[0].dtype), found, TensorSpec((inputs[0].size,), INT64), found]
    if shape is None:
        return [TensorSpec(None, inputs[0].dtype), found, found, found]
    place = normalize_axis(axis, len(shape))
    values = TensorSpec((*shape[:place], None, *shape[place + 1 :]), inputs[0].dtype)
    return [values, found, TensorSpec((shape[place],), INT64), found]


def _unique_gradient(node: Node, grads: Grads) -> Grads:
    # A slice stands for the first of its like.
    grad, x, axis = grads[0], node.inputs[0], node.attrs["axis"]
    if grad is None:
        return [None]
    if axis is not None:
        return [scatter_add(zeros_like(x), node.outputs[1], grad, axis=axis)]
    return [reshape_like(scatter_add(reshape(zeros_like(x), (-1,)), node.outputs[1], grad), x)]


op.define(
    "unique_slices",
    infer=_unique_infer,
    gradient=_unique_gradient,
    doc="The distinct slices along a dimension: the slices, where each is first, which one each of the input is, and "
    "how often each comes. The gradient of a slice goes to the first of its like. attrs: axis (None: elements), "
    "ascending (else in the order of their first place).",
)


def unique_slices(
    x: ArrayLike, /, *, axis: int | None = None, ascending: bool = True, name: str | None = None
) -> UniqueSlices:
    """The distinct slices of `x` along `axis` (None: the distinct elements), with three int64 vectors.

    `indices`: where in `x` each is first; `inverse`: which of them each slice of `x` is; `counts`: how often each
    comes. In ascending order, or in the order in which they come. How many is known only at run time.
    """
    attrs = {"axis": None if axis is None else int(axis), "ascending": bool(ascending)}
    return UniqueSlices(*build_node("unique_slices", (convert(x),), attrs, name=name).outputs)
