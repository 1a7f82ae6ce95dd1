"""Sums of many tensors of one spec, in a fixed order."""

from __future__ import annotations

from collections.abc import Sequence

from nbflow import op
from nbflow.errors import DTypeError
from nbflow.graph import Node, Tensor
from nbflow.op import Attrs, Cost
from nbflow.ops._build import ArrayLike, build, convert, convert_all, require_kind
from nbflow.ops._complex import conjugate, fitted
from nbflow.ops._elementwise import Grads
from nbflow.ops.casting import astype
from nbflow.ops.shape import merge_specs
from nbflow.spec import TensorSpec, kind_of


def _add_n_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    if not inputs:
        raise DTypeError("add_n of nothing has no dtype; use nf.zeros")
    return [merge_specs(inputs, "the terms of add_n")]


op.define(
    "add_n",
    infer=_add_n_infer,
    gradient=lambda node, grads: [grads[0]] * len(node.inputs),
    cost=lambda inputs, outputs, attrs: Cost(
        len(inputs) * op.size_of(outputs[0]), op.nbytes_of(inputs) + op.nbytes_of(outputs)
    ),
    out=True,
    elementwise=True,
    doc="The sum of tensors of one spec, added in the given order, so that the rounding is always the same.",
)


def add_n(values: Sequence[ArrayLike], /, *, name: str | None = None) -> Tensor:
    """The sum of tensors of one shape and dtype, added from first to last."""
    return build("add_n", convert_all(values), name=name)


def _weighted_sum_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    count = len(inputs) // 2
    if not inputs or len(inputs) % 2:
        raise DTypeError(f"weighted_sum takes as many weights as values, not {len(inputs)} inputs")
    found = merge_specs(inputs[:count], "the terms of weighted_sum")
    require_kind(found, "fc", "weighted_sum adds floating point values")
    for weight in inputs[count:]:
        require_kind(weight, "iuf", "a weight is a real number")
        if weight.shape not in ((), None):
            raise DTypeError(f"a weight is a scalar, not {weight}")
    return [found]


def _weighted_sum_gradient(node: Node, grads: Grads) -> Grads:
    (grad,) = grads
    assert grad is not None  # the only output
    count = len(node.inputs) // 2
    values, weights = node.inputs[:count], node.inputs[count:]
    out: list[Tensor | None] = [grad * astype(w, grad.dtype) for w in weights]
    for value, weight in zip(values, weights, strict=True):
        out.append(fitted((grad * conjugate(value)).sum(), weight) if kind_of(weight.dtype) == "f" else None)
    return out


op.define(
    "weighted_sum",
    infer=_weighted_sum_infer,
    gradient=_weighted_sum_gradient,
    cost=lambda inputs, outputs, attrs: Cost(
        len(inputs) * op.size_of(outputs[0]), op.nbytes_of(inputs) + op.nbytes_of(outputs)
    ),
    out=True,
    doc="w1*x1 + w2*x2 + … in the given order. inputs: the values, then their scalar weights. A value whose weight is "
    "0 is not looked at: the mean over an empty shard may be NaN.",
)


def weighted_sum(values: Sequence[ArrayLike], weights: Sequence[ArrayLike], /, *, name: str | None = None) -> Tensor:
    """The sum of `weights[i] * values[i]`, from first to last, without the values whose weight is 0.

    Values have one floating shape and dtype; weights are real scalars of any dtype.
    """
    return build("weighted_sum", (*convert_all(values), *(convert(w) for w in weights)), name=name)
