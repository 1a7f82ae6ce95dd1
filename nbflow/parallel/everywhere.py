"""What must happen on every worker, whatever the strategy."""

from __future__ import annotations

from collections.abc import Sequence

from nbflow.device import DeviceSpec
from nbflow.graph import Graph, Node, topological
from nbflow.rewrite import copy_nodes


def spread_restores(graph: Graph, available: Sequence[DeviceSpec]) -> None:
    """Copies each `iterator_restore` of `graph` (a pruned copy, which changes) to every other task, to run before it.

    The place of an iterator is one for all replicas, and a task may come to hold one of them only later.
    """
    first_of: dict[str, DeviceSpec] = {}
    for device in available:
        first_of.setdefault(device.task_name, device)
    if len(first_of) < 2:
        return
    for node in [n for n in graph.nodes.values() if n.op == "iterator_restore"]:
        copies = [_copy(graph, node, number, device) for number, device in enumerate(first_of.values())]
        node.control_inputs = tuple(dict.fromkeys([*node.control_inputs, *copies]))
    ordered = topological(graph.nodes.values())
    graph.nodes.clear()
    graph.nodes.update({n.name: n for n in ordered})


def _copy(graph: Graph, node: Node, number: int, device: DeviceSpec) -> Node:
    """`node` and its holder on `device`; they share the name under which the place is kept."""
    holder, value = node.inputs
    tensors = {(value.node.name, value.index): value}
    nodes = {c.name: c for c in node.control_inputs}

    def change(old: Node, new: Node) -> None:
        new.device, new.colocate = device, ()
        if new.op == "iterator":
            new.attrs["shared"] = old.name

    copy_nodes([holder.node, node], graph, tensors, nodes, rename=lambda n: f"on_task_{number}/{n}", change=change)
    return nodes[node.name]
