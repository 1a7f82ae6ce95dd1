"""What a run needs and no more: the ancestors of the fetches, cut where a tensor is fed, with the fed shapes known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nbflow.errors import GraphError, NbflowError, StaleError
from nbflow.graph import Graph, Node, Tensor, topological
from nbflow.owner import stale_owners
from nbflow.rewrite import TensorMap, add_placeholder, copy_nodes, new_like
from nbflow.spec import TensorSpec


@dataclass(frozen=True, slots=True)
class Pruned:
    """A copy of what a run needs. `tensors` and `nodes` map the user's names to it."""

    graph: Graph
    tensors: TensorMap
    nodes: dict[str, Node]


def prune(graph: Graph, fetches: Sequence[Tensor | Node], feeds: Mapping[Tensor, TensorSpec]) -> Pruned:
    """Copies the ancestors of `fetches`, with a placeholder for each fed tensor; shapes are inferred again.

    Raises StaleError that names the cells to run again, GraphError for a placeholder that is needed and not fed.
    """
    fed = {(t.node.name, t.index): spec for t, spec in feeds.items()}
    needed = _needed(fetches, fed)
    cells = stale_owners(needed)
    if cells:
        first = next(n for n in needed if n.stale)
        again = ", ".join(c.label for c in cells)
        raise StaleError(f"{first.name!r} is stale: {first.stale}; run {again} again", where=first.where)
    missing = [n for n in needed if n.op == "placeholder" and (n.name, 0) not in fed]
    if missing:
        names = ", ".join(f"{n.name!r} ({n.outputs[0].spec}, {n.where})" for n in missing)
        raise GraphError(f"feed a value for {names}")
    into = new_like(graph)
    tensors: TensorMap = {}
    nodes: dict[str, Node] = {}
    for tensor, spec in feeds.items():
        tensors[(tensor.node.name, tensor.index)] = add_placeholder(into, tensor, spec)
    for node in topological(needed):
        if node.op == "placeholder":
            continue
        try:
            copy_nodes([node], into, tensors, nodes, infer=True)
        except NbflowError as error:
            raise type(error)(f"{node.op} {node.name!r} with what was fed: {error.message}", where=node.where) from None
    return Pruned(into, tensors, nodes)


def _needed(fetches: Sequence[Tensor | Node], fed: Mapping[tuple[str, int], TensorSpec]) -> list[Node]:
    found: dict[str, Node] = {}
    todo: list[Node] = []
    twice: Node | None = None
    for fetch in fetches:
        if isinstance(fetch, Node):
            todo.append(fetch)
        elif (fetch.node.name, fetch.index) not in fed:
            todo.append(fetch.node)
    while todo:
        node = todo.pop()
        if node.name in found:
            if found[node.name] is not node:
                twice = twice or node
            continue
        found[node.name] = node
        todo.extend(t.node for t in node.inputs if (t.node.name, t.index) not in fed)
        todo.extend(node.control_inputs)
    # Something stale reaches back to nodes that left the graph; that it is stale is then the better word.
    if twice is not None and not any(n.stale for n in found.values()):
        raise GraphError(
            f"what is fetched needs {twice.name!r} twice: as the running cell made it, and as it was before; "
            "fetch it in another cell, after this one",
            where=twice.where,
        )
    # The order in which they were made, so that the same graph always gives the same plan.
    graphs = {id(f.graph): f.graph for f in fetches}
    order = {name: i for g in graphs.values() for i, name in enumerate([*g.nodes.keys(), *(g.pending or ())])}
    return sorted(found.values(), key=lambda n: order.get(n.name, -1))
