"""A loop or branch and its twins become one.

Gradients need values from inside a loop, so they make a *twin*: the same node with more outputs, which draws the same
random numbers (`ops/control_gradients.py`). Where both would run, the twin alone does. Results are bit-equal; without
this pass the forward computation runs twice, and so do updates of state in it.
"""

from __future__ import annotations

from nbflow.body import Body, bodies_of, rebuild
from nbflow.graph import Graph, Node, Tensor, topological
from nbflow.rewrite import TensorMap


def merge_twins(graph: Graph) -> TensorMap:
    """Changes `graph` so that each node with a twin is gone. Gives what stands for the tensors of those that are."""
    for node in graph.nodes.values():
        for key, body in bodies_of(node).items():
            node.attrs = {**node.attrs, key: _merged(body)}
    gone: TensorMap = {}
    for twin in list(graph.nodes.values()):
        parent = graph.nodes.get(twin.attrs.get("extends") or "")
        if parent is not None and _is_twin(twin, parent):
            del graph.nodes[parent.name]
            for old, new in zip(parent.outputs, twin.outputs, strict=False):
                gone[(parent.name, old.index)] = new
            for node in graph.nodes.values():
                node.control_inputs = tuple(twin if c is parent else c for c in node.control_inputs)
    if not gone:
        return gone
    found = {key: _last(tensor, gone) for key, tensor in gone.items()}
    for node in graph.nodes.values():
        node.inputs = tuple(found.get((t.node.name, t.index), t) for t in node.inputs)
    ordered = topological(graph.nodes.values())
    graph.nodes.clear()
    graph.nodes.update({n.name: n for n in ordered})
    return found


def _is_twin(twin: Node, parent: Node) -> bool:
    return (
        twin.op == parent.op
        and twin.device == parent.device
        and len(twin.outputs) >= len(parent.outputs)
        and [(t.node.name, t.index) for t in twin.inputs] == [(t.node.name, t.index) for t in parent.inputs]
    )


def _last(tensor: Tensor, gone: TensorMap) -> Tensor:
    """Through twins of twins."""
    while (tensor.node.name, tensor.index) in gone:
        tensor = gone[(tensor.node.name, tensor.index)]
    return tensor


def _merged(body: Body) -> Body:
    if not any(bodies_of(n) for n in body.graph.nodes.values()):
        return body
    made = rebuild(body)
    found = merge_twins(made.graph)
    return Body(made.graph, made.arguments, tuple(found.get((t.node.name, t.index), t) for t in made.outputs))
