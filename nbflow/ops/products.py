"""What the gradients of `nf.prod` are made of: products of all elements but one, exact where elements are 0."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nbflow import op
from nbflow.graph import Node, Tensor
from nbflow.op import Cost
from nbflow.ops._build import build, known_rank
from nbflow.ops._complex import holomorphic
from nbflow.ops.comparison import not_equal, where
from nbflow.ops.creation import ones_like
from nbflow.ops.manipulation import expand_dims, moveaxis, squeeze, tril, triu
from nbflow.ops.reduction import sum as sum_over
from nbflow.ops.shape import reshape, reshape_like, shape_of
from nbflow.spec import TensorSpec, normalize_axes

Grads = Sequence[Tensor | None]


def _only(grads: Grads) -> Tensor:
    (grad,) = grads
    assert grad is not None  # the only output of the op
    return grad


def _gradient(node: Node, grads: Grads) -> Grads:
    return [build("prod_others_grad", (node.inputs[0], _only(grads)), node.attrs)]


def _grad_gradient(node: Node, grads: Grads) -> Grads:
    # With x as a vector, the output is r[k] = sum over i != k of g[i] * p[i, k], where p[i, k] is the product of x[j]
    # for all j but i and k: the products of others of a table whose row i is x with a 1 at place i. So its derivatives
    # come from the same two ops, one dimension up, whatever the order. Memory is that of the square of the dimension.
    axis = node.attrs["axis"]
    x, back = _flattened(node.inputs[0], axis)
    g, _ = _flattened(node.inputs[1], axis)
    change, _ = _flattened(_only(grads), axis)
    square = ones_like(expand_dims(x, -2) * expand_dims(x, -1))
    own = not_equal(tril(square) * triu(square), 0)
    table = where(own, 1, expand_dims(x, -2))
    others = build("prod_others", (table,), {"axis": -1})
    for_g = sum_over(where(own, 0, others * expand_dims(change, -2)), axis=-1)
    pairs = where(own, 0, expand_dims(g, -1) * expand_dims(change, -2))
    inner = build("prod_others_grad", (table, pairs), {"axis": -1})
    return [back(sum_over(where(own, 0, inner), axis=-2)), back(for_g)]


def _flattened(x: Tensor, axis: int | tuple[int, ...] | None) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """`x` with the dimensions `axis` joined to a last one, and the way back."""
    if axis is None:
        return reshape(x, (-1,)), lambda y: reshape_like(y, x)
    rank = known_rank(x.spec, "the third derivative of prod over a dimension")
    axes = normalize_axes(axis, rank)
    if not axes:
        return expand_dims(x, -1), lambda y: squeeze(y, -1)
    ends = tuple(range(rank - len(axes), rank))
    turned = moveaxis(x, axes, ends)
    if len(axes) == 1:
        return turned, lambda y: moveaxis(y, ends, axes)
    assert turned.shape is not None  # its rank is known
    dims = [shape_of(turned)[n] if d is None else d for n, d in enumerate(turned.shape)]
    joined = dims[ends[0]]
    for n in ends[1:]:
        joined = joined * dims[n]
    return reshape(turned, [*dims[: ends[0]], joined]), lambda y: moveaxis(reshape_like(y, turned), ends, axes)


op.define(
    "prod_others",
    infer=lambda inputs, attrs: [TensorSpec(inputs[0].shape, inputs[0].dtype)],
    gradient=holomorphic(_gradient),
    doc="For each element the product of all others along axis, exact where elements are 0. attrs: axis.",
)
op.define(
    "prod_others_grad",
    infer=lambda inputs, attrs: [TensorSpec(inputs[0].shape, inputs[0].dtype)],
    gradient=holomorphic(_grad_gradient),
    cost=lambda inputs, outputs, attrs: Cost(op.size_of(inputs[0]) * op.UNKNOWN_DIM, 3 * op.nbytes_of(outputs)),
    doc="The gradient of prod_others. inputs: x, the gradient. attrs: axis.",
)
