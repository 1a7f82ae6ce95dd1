"""How elementwise ops are declared: from a ufunc, which gives the dtype rule, and a derivative for each input.

A derivative is `f(g, x, y)`: the gradient for the input from the gradient `g` of the output, the inputs and the output
`y` (for two inputs: `f(g, x, y, z)`). Derivatives are made of ops of this package, so they have derivatives themselves.
They are written as for real numbers; `_complex.holomorphic` makes them right for complex ones. Integer and boolean
tensors carry no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from nbflow import op
from nbflow.graph import Node, Tensor
from nbflow.op import Attrs, Cost, GradientRule
from nbflow.ops._build import (
    ArrayLike,
    Binary,
    Unary,
    binary,
    broadcast_infer,
    build,
    convert,
    convert_all,
    named,
    unary,
)
from nbflow.ops._complex import holomorphic
from nbflow.ops.gated import zero_where_left_out
from nbflow.ops.shape import unbroadcast
from nbflow.spec import TensorSpec, kind_of

Grads = Sequence[Tensor | None]
Derivative1 = Callable[[Tensor, Tensor, Tensor], Tensor]
Derivative2 = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

# A transcendental function costs about this many multiplications on a CPU.
TRANSCENDENTAL = 10.0

# The module that all these functions are public in: what made them is of no interest to who looks one up.
HOME = "nbflow.ops"


def unary_op(
    name: str,
    ufunc: np.ufunc,
    derivative: Derivative1 | None,
    doc: str,
    *,
    flops: float = 1.0,
    integers: bool | None = None,
    rule: GradientRule | None = None,
) -> Unary:
    """`integers`: False for a function onto the reals, which takes integers as float64; None: what numpy does.
    `rule` stands in the place of a `derivative` for a function that is not holomorphic."""

    def gradient(node: Node, grads: Grads) -> Grads:
        (grad,) = grads
        assert grad is not None  # the only output
        assert derivative is not None
        return [zero_where_left_out(grad, derivative(grad, node.inputs[0], node.outputs[0]))]

    op.define(
        name,
        infer=broadcast_infer(ufunc),
        gradient=rule if derivative is None else holomorphic(gradient),
        cost=_cost(flops),
        doc=doc,
        out=True,
        elementwise=True,
    )

    def function(x: ArrayLike, /, *, name: str | None = None) -> Tensor:
        return unary(op_name, x if integers else _floats((x,))[0], name=name)

    op_name = name
    if integers is None:
        integers = _takes_integers(ufunc)
    made: Unary = named(function, name, doc, HOME)
    return made


def binary_op(
    name: str,
    ufunc: np.ufunc,
    derivatives: tuple[Derivative2, Derivative2 | None] | None,
    doc: str,
    *,
    flops: float = 1.0,
) -> Binary:
    def gradient(node: Node, grads: Grads) -> Grads:
        (grad,) = grads
        assert grad is not None  # the only output
        assert derivatives is not None
        x, y = node.inputs
        out: list[Tensor | None] = []
        for mine, other, derivative in ((x, y, derivatives[0]), (y, x, derivatives[1])):
            if derivative is None:
                out.append(None)
            else:
                passed = zero_where_left_out(grad, derivative(grad, x, y, node.outputs[0]))
                out.append(unbroadcast(passed, mine, other.shape))
        return out

    op.define(
        name,
        infer=broadcast_infer(ufunc),
        gradient=None if derivatives is None else holomorphic(gradient),
        cost=_cost(flops),
        doc=doc,
        out=True,
        elementwise=True,
    )

    def function(x: ArrayLike, y: ArrayLike, /, *, name: str | None = None) -> Tensor:
        return binary(op_name, *((x, y) if integers else _floats((x, y))), name=name)

    op_name, integers = name, _takes_integers(ufunc)
    made: Binary = named(function, name, doc, HOME)
    return made


def _takes_integers(ufunc: np.ufunc) -> bool:
    wanted = (np.dtype(np.int64),) * ufunc.nin
    return ufunc.resolve_dtypes((*wanted, None))[: ufunc.nin] == wanted


def _floats(values: Sequence[ArrayLike]) -> Sequence[ArrayLike]:
    """Integers as float64, for functions onto the reals: the dtype in which numpy divides integers.

    Left to itself, numpy would take a dtype that just holds them: float16 for int8.
    """
    return [
        build("astype", (t,), {"dtype": np.dtype(np.float64)}) if kind_of(t.dtype) in "iu" else t
        for t in convert_all(values)
    ]


def _cost(flops: float) -> op.CostRule:
    def cost(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], attrs: Attrs) -> Cost:
        return Cost(flops * sum(op.size_of(o) for o in outputs), op.nbytes_of(inputs) + op.nbytes_of(outputs))

    return cost


def zero(like: Tensor) -> Tensor:
    """0 in the dtype of `like`."""
    return convert(0, like.dtype, like=like)
