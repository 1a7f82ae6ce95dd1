"""What gradient rules need for complex numbers, and for operands of different precision.

The gradient for a complex z = a + ib is (gradient for a) + i (gradient for b), so that `Re(conj(gradient) · dz)` is the
change of the (real) end result. A holomorphic f therefore passes g on as g · conj(f'). Its rule is written as for real
numbers, g · f', and `holomorphic` conjugates what goes in and what comes out: conj(conj(g) · f') = g · conj(f').
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nbflow.graph import Node, Tensor
from nbflow.ops._build import build
from nbflow.spec import kind_of

Grads = Sequence[Tensor | None]
Rule = Callable[[Node, Grads], Grads]


def is_complex(x: Tensor) -> bool:
    """Whether `x` holds complex numbers."""
    return kind_of(x.dtype) == "c"


def conjugate(x: Tensor) -> Tensor:
    """The complex conjugate; a real tensor itself, without a node."""
    return build("conj", (x,)) if is_complex(x) else x


def fitted(grad: Tensor, x: Tensor) -> Tensor:
    """`grad` in the dtype of `x`, which was promoted on the way: the real part for a real `x`."""
    if is_complex(grad) and not is_complex(x):
        grad = build("real", (grad,))
    return grad if grad.dtype == x.dtype else build("astype", (grad,), {"dtype": x.dtype})


def holomorphic(rule: Rule) -> Rule:
    """The gradient rule of an op that is complex differentiable, from the rule for real numbers. Gradients are brought
    to the dtypes of the inputs, so the rule need not."""

    def complex_rule(node: Node, grads: Grads) -> Grads:
        turned = any(is_complex(t) for t in (*node.inputs, *node.outputs))
        if turned:
            grads = [None if g is None else conjugate(g) for g in grads]
        found = rule(node, grads)
        out: list[Tensor | None] = []
        for tensor, grad in zip(node.inputs, found, strict=True):
            out.append(None if grad is None else fitted(conjugate(grad) if turned else grad, tensor))
        return out

    return complex_rule


def linear(rule: Rule) -> Rule:
    """As `holomorphic`, for linear ops with real coefficients: only the dtypes are brought to those of the inputs."""

    def fitted_rule(node: Node, grads: Grads) -> Grads:
        found = rule(node, grads)
        return [None if g is None else fitted(g, t) for t, g in zip(node.inputs, found, strict=True)]

    return fitted_rule
