"""Passes that may change last bits, each with its bound. They are off unless asked for by name, as `layout` is.

- `matmul`: a product of transposed matrices takes the transposition as its attribute, so that nothing is copied before
  BLAS reads it. BLAS may then add the n products of an element in another order: both results are within n · eps ·
  Σ|x||y| of the exact one, eps half a unit in the last place of 1 (Higham, "Accuracy and Stability of Numerical
  Algorithms", 2002, section 3.1).
- `power`: x ** 2, x ** 1 and x ** -1 become products and quotients. These are rounded correctly; numpy's power is
  within 4 units in the last place of that.
"""

from __future__ import annotations

from nbflow.graph import Node
from nbflow.optimize.draft import Draft
from nbflow.optimize.transposes import permutation
from nbflow.optimize.values import filling, is_number
from nbflow.spec import kind_of


def matmul(draft: Draft) -> None:
    """Moves transpositions into the products that read them."""

    def rule(node: Node) -> None:
        if node.op != "matmul":
            return
        inputs, attrs = list(node.inputs), dict(node.attrs)
        for position, key in enumerate(("transpose_a", "transpose_b")):
            axes = permutation(inputs[position].node)
            if axes is not None and axes == (*range(len(axes) - 2), len(axes) - 1, len(axes) - 2):
                inputs[position] = inputs[position].node.inputs[0]
                attrs[key] = not attrs[key]
        if attrs != node.attrs:
            draft.become(node, "matmul", inputs, attrs, "reads its matrices transposed")

    draft.walk(rule)


def power(draft: Draft) -> None:
    """Replaces powers that are products or quotients."""

    def rule(node: Node) -> None:
        if node.op != "pow" or kind_of(node.outputs[0].dtype) != "f":
            return
        x, exponent = node.inputs
        if x.dtype != node.outputs[0].dtype or x.shape != node.outputs[0].shape or not x.spec.is_static:
            return
        number = filling(exponent)
        if is_number(number, 1) and draft.may_stand(x, node):
            draft.replace(node, [x], f"is {x.name}: a power of 1")
        elif is_number(number, 2):
            draft.become(node, "square", (x,), {}, "is a square")
        elif is_number(number, -1):
            draft.become(node, "reciprocal", (x,), {}, "is a reciprocal")

    draft.walk(rule)
