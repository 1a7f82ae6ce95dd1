"""Invariants of a graph, as a table of rules. `check_graph` runs between stages, always in tests and on demand.

On failure it names the rule, prints the node with its neighbours, and says which cell and line made it.
"""

from __future__ import annotations

from collections.abc import Callable

from nbflow.body import ARGUMENT, bodies_of
from nbflow.errors import GraphError, NbflowError
from nbflow.graph import Graph, Node, topological

Rule = Callable[[Graph, Node], str]


def _registered(graph: Graph, node: Node) -> str:
    name = node.definition.name  # raises GraphError for an unknown op
    return "" if name == node.op else f"the op is registered as {name!r}"


def _named(graph: Graph, node: Node) -> str:
    return "" if graph.nodes.get(node.name) is node else "it is not in the graph under its own name"


def _member_inputs(graph: Graph, node: Node) -> str:
    for tensor in node.inputs:
        if graph.nodes.get(tensor.node.name) is not tensor.node and not node.stale:
            return f"input {tensor.name} is not in the graph"
        if tensor.node.outputs[tensor.index] is not tensor:
            return f"input {tensor.name} is not an output of its node"
    for control in node.control_inputs:
        if graph.nodes.get(control.name) is not control and not node.stale:
            return f"control input {control.name} is not in the graph"
    return ""


def _specs(graph: Graph, node: Node) -> str:
    if node.stale or node.op in ("placeholder", ARGUMENT):
        return ""
    try:
        specs = node.definition.infer([t.spec for t in node.inputs], node.attrs)
    except NbflowError as error:
        return f"its shape rule fails: {error.message}"
    if len(specs) != len(node.outputs):
        return f"its shape rule gives {len(specs)} outputs, it has {len(node.outputs)}"
    for tensor, inferred in zip(node.outputs, specs, strict=True):
        if tensor.spec.dtype != inferred.dtype or not inferred.accepts(tensor.spec):
            return f"output {tensor.index} is {tensor.spec}, its shape rule gives {inferred}"
    return ""


def _resources(graph: Graph, node: Node) -> str:
    for tensor in node.inputs:
        if tensor.spec.resource and not node.definition.stateful and node.definition.specialise is None:
            return f"it reads the state handle {tensor.name}, but is not stateful"
    return ""


RULES: dict[str, Rule] = {
    "every op is registered": _registered,
    "a node is in its graph under its own name": _named,
    "inputs are in the same graph": _member_inputs,
    "outputs are what the shape rule gives": _specs,
    "only stateful ops read state handles": _resources,
}


def check_graph(graph: Graph) -> None:
    """Raises GraphError at the first node that breaks a rule, or when there is a cycle."""
    for node in graph.nodes.values():
        for rule, check in RULES.items():
            problem = check(graph, node)
            if problem:
                raise GraphError(f"{rule}: {node.name!r}: {problem}\n{describe(graph, node)}", where=node.where)
        for body in bodies_of(node).values():
            check_graph(body.graph)
    topological(graph.nodes.values())


def describe(graph: Graph, node: Node) -> str:
    """A node and its neighbours, one a line."""
    lines = [f"  {t.name}: {t.spec} = {t.node.op}(…)  [{t.node.where}]" for t in node.inputs]
    outputs = ", ".join(str(t.spec) for t in node.outputs)
    lines.append(f"→ {node.name}: {outputs} = {node.op}({', '.join(t.name for t in node.inputs)})  [{node.where}]")
    for other in graph.nodes.values():
        if any(t.node is node for t in other.inputs) or any(c is node for c in other.control_inputs):
            lines.append(f"  {other.name} = {other.op}(…)  [{other.where}]")
    return "\n".join(lines)
