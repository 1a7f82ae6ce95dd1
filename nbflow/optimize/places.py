"""Which places the user, or the state an op works on, ties an op to: what may stand for what, wherever it is placed."""

from __future__ import annotations

from collections.abc import Iterable

from nbflow.device import DeviceSpec
from nbflow.graph import Node

# Requested devices, and variables: everything the op must be beside. Empty: it may run anywhere.
Ties = frozenset[str]

_ANYWHERE = DeviceSpec()
_FREE: Ties = frozenset()


class Places:
    """The ties of each of `nodes`, which come in an order in which ops follow those that they are colocated with."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self._ties: dict[str, Ties] = {}
        for node in nodes:
            self.add(node)

    def add(self, node: Node) -> None:
        """Takes note of one more node."""
        found = {str(node.device)} if node.device != _ANYWHERE else set()
        for name in node.colocate:
            found |= self._ties.get(name, _FREE)
        for tensor in node.inputs:
            if tensor.spec.resource:
                found |= self._ties.get(tensor.node.name, _FREE)
        if any(t.spec.resource for t in node.outputs):
            found.add(f"&{node.name}")
        if found:
            self._ties[node.name] = frozenset(found)

    def of(self, node: Node) -> Ties:
        """What `node` is tied to."""
        return self._ties.get(node.name, _FREE)
