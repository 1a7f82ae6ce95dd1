"""Products and quotients for gradients, in which a zero gradient wins over an infinite derivative.

In `nf.where(x > 0, nf.sqrt(x), 0)` the square root gets gradient 0 where x is 0. Its derivative is infinite there, and
0 · inf is NaN, though nothing depends on that element. Rules with derivatives that can be infinite use these ops, in
which 0 times anything is 0, as in measure theory. They need it on both sides: what is a derivative here is a gradient
in the second derivative.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nbflow import op
from nbflow.graph import Node, Tensor
from nbflow.ops._build import broadcast_infer, build, convert
from nbflow.ops._complex import holomorphic
from nbflow.ops.shape import unbroadcast

Grads = Sequence[Tensor | None]

# Ops that leave zeros where their first input has them.
_PASSES = frozenset(
    {"multiply", "divide", "gated_multiply", "gated_divide", "negative", "identity", "astype", "conj", "real"}
    | {"reshape", "broadcast_to", "expand_dims", "squeeze", "permute_dims", "flip"}
)
# How far to look: an expression of one line is shorter.
_FAR = 16


def gated_multiply(gradient: Tensor, derivative: Tensor) -> Tensor:
    """gradient · derivative, and 0 where one of them is 0, whatever the other."""
    return build("gated_multiply", (gradient, derivative))


def gated_divide(gradient: Tensor, divisor: Tensor) -> Tensor:
    """gradient / divisor, and 0 where the gradient is 0, whatever the divisor."""
    return build("gated_divide", (gradient, divisor))


def leaves_out(gradient: Tensor) -> bool:
    """Whether `gradient` may be 0 in places because a `nf.where` leaves them out of the result.

    There x may be anything, in `nf.where(nf.isnan(x), 0, x * w)` NaN. Products need not look for that elsewhere, which
    would double what they cost: what a slice leaves out counts as any other zero.
    """
    for _ in range(_FAR):
        node = gradient.node
        if node.op == "where":
            return True
        if node.op not in _PASSES:
            return False
        gradient = node.inputs[0]
    return False


def zero_where_left_out(gradient: Tensor, passed: Tensor) -> Tensor:
    """`passed`, what an elementwise op makes of `gradient`, with zeros where that has zeros that mean "left out"."""
    if passed is gradient or passed.node.op in ("gated_multiply", "gated_divide") or not leaves_out(gradient):
        return passed
    if passed.node.op == "multiply" and passed.node.inputs[0] is gradient:
        return gated_multiply(gradient, passed.node.inputs[1])
    zero = build("equal", (gradient, convert(0, like=gradient)))
    return build("where", (zero, convert(0, like=passed), passed))


def _multiply_gradient(node: Node, grads: Grads) -> Grads:
    (grad,) = grads
    assert grad is not None  # the only output
    x, y = node.inputs
    return [unbroadcast(gated_multiply(grad, y), x, y.shape), unbroadcast(gated_multiply(grad, x), y, x.shape)]


def _divide_gradient(node: Node, grads: Grads) -> Grads:
    (grad,) = grads
    assert grad is not None  # the only output
    x, y = node.inputs
    below = -gated_divide(gated_multiply(grad, node.outputs[0]), y)
    return [unbroadcast(gated_divide(grad, y), x, y.shape), unbroadcast(below, y, x.shape)]


op.define(
    "gated_multiply",
    infer=broadcast_infer(np.multiply),
    gradient=holomorphic(_multiply_gradient),
    out=True,
    elementwise=True,
    doc="x * y, but 0 where one of them is 0, also if the other is infinite or NaN: for gradients.",
)
op.define(
    "gated_divide",
    infer=broadcast_infer(np.divide),
    gradient=holomorphic(_divide_gradient),
    out=True,
    elementwise=True,
    doc="x / y, but 0 where x is 0, also if y is 0 or NaN: for gradients.",
)
