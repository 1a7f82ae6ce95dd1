"""What is known of values before anything runs: constants, shapes of known shape, and what is computed from these.

Models compute shapes with the same operators as everything else (Shape, Gather, Concat, Reshape). What such a chain
gives is found here at import, so that most graphs have static shapes; the nodes that nobody fetches never run.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nbflow.backends.numpy import TABLE
from nbflow.graph import Node, Tensor

A = np.ndarray[Any, Any]

# Values that decide shapes are small; what is larger is data, and computing it here would cost time and memory.
LARGEST = 1 << 16


class Statics:
    """Values of tensors that depend on no input, variable or random number, each computed once."""

    def __init__(self) -> None:
        # The node is kept, so that its id stays its own.
        self._known: dict[int, tuple[Node, tuple[A, ...] | None]] = {}

    def give(self, tensor: Tensor, value: A) -> None:
        """Says that the value of `tensor`, the only output of its node, is to be taken as `value`."""
        self._known[id(tensor.node)] = (tensor.node, (value,))

    def value(self, tensor: Tensor) -> A | None:
        """The value of `tensor`, None when it is known only at run time."""
        todo = [tensor.node]
        while todo:
            node = todo[-1]
            if id(node) in self._known:
                todo.pop()
                continue
            waiting = [] if self._is_leaf(node) else [t.node for t in node.inputs if id(t.node) not in self._known]
            if waiting:
                todo.append(waiting[0])
                continue
            self._known[id(node)] = (node, self._compute(node))
            todo.pop()
        found = self._known[id(tensor.node)][1]
        return None if found is None else found[tensor.index]

    @staticmethod
    def _is_leaf(node: Node) -> bool:
        return node.op in ("constant", "shape_of", "placeholder", "read_variable") or node.definition.stateful

    def _compute(self, node: Node) -> tuple[A, ...] | None:
        if node.op == "constant":
            return (node.attrs["value"],)
        if node.op == "shape_of":
            shape = node.inputs[0].shape
            return None if shape is None or None in shape else (np.array(shape, np.int64),)
        if self._is_leaf(node) or node.op not in TABLE or any((t.spec.size or 0) > LARGEST for t in node.outputs):
            return None
        inputs: list[A] = []
        for tensor in node.inputs:
            known = self._known[id(tensor.node)][1]
            if known is None:
                return None
            inputs.append(known[tensor.index])
        with np.errstate(all="ignore"):
            made = TABLE[node.op](*inputs, **node.attrs)
        outputs = made if isinstance(made, (tuple, list)) else (made,)
        return tuple(np.asarray(value) for value in outputs)
