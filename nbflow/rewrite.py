"""Copying parts of a graph. Every stage after the user's graph works on copies made here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from nbflow.errors import GraphError
from nbflow.graph import Graph, Node, Tensor
from nbflow.op import Attrs, AttrValue
from nbflow.spec import TensorSpec

HostArray = np.ndarray[Any, Any]

# Old (node name, output index) -> tensor in the new graph.
TensorMap = dict[tuple[str, int], Tensor]


def new_like(graph: Graph) -> Graph:
    """An empty graph with the seed and generations of `graph`."""
    made = Graph()
    made.seed = graph.seed
    made.generations = dict(graph.generations)
    return made


def feed_name(tensor: Tensor) -> str:
    """The name of the placeholder that stands for a fed tensor; a feed travels under it."""
    return tensor.node.name if tensor.node.op == "placeholder" else f"{tensor.node.name}/fed.{tensor.index}"


def add_placeholder(into: Graph, tensor: Tensor, spec: TensorSpec) -> Tensor:
    """A placeholder in `into` that stands for `tensor`, with the spec of what is fed."""
    node = tensor.node
    made = Node(
        into,
        feed_name(tensor),
        "placeholder",
        (),
        (),
        {"dtype": spec.dtype, "shape": spec.shape},
        [spec],
        device=node.device,
        colocate=(),
        owner=node.owner,
        line=node.line,
        auto_named=node.auto_named,
    )
    into.nodes[made.name] = made
    return made.outputs[0]


def copy_nodes(
    nodes: Iterable[Node],
    into: Graph,
    tensors: TensorMap,
    controls: dict[str, Node],
    *,
    rename: Callable[[str], str] = lambda name: name,
    change: Callable[[Node, Node], None] | None = None,
    infer: bool = False,
) -> None:
    """Copies `nodes` (inputs first) into `into`, extending `tensors` and `controls` (old name -> new node).

    Inputs are looked up in `tensors`, so what is already there stands for the original. `change(old, new)` may set the
    new node's attrs, device and colocation. `infer`: shapes are inferred again from the new inputs' shapes.
    """
    for node in nodes:
        inputs = tuple(tensors[(t.node.name, t.index)] for t in node.inputs)
        after = tuple(dict.fromkeys(controls[c.name] for c in node.control_inputs if c.name in controls))
        specs = [t.spec for t in node.outputs]
        if infer:
            specs = list(node.definition.infer([t.spec for t in inputs], node.attrs))
        made = Node(
            into,
            rename(node.name),
            node.op,
            inputs,
            after,
            _renamed(node.attrs, rename),
            specs,
            device=node.device,
            colocate=node.colocate,
            owner=node.owner,
            line=node.line,
            auto_named=node.auto_named,
        )
        if change is not None:
            change(node, made)
        into.nodes[made.name] = made
        if node.name in node.graph.generations:
            into.generations[made.name] = node.graph.generations[node.name]
        controls[node.name] = made
        for old, new in zip(node.outputs, made.outputs, strict=True):
            tensors.setdefault((node.name, old.index), new)


def _renamed(attrs: Attrs, rename: Callable[[str], str]) -> dict[str, AttrValue]:
    """`attrs`; whose random streams a node draws from (see `ops/control_gradients.py`) follows that one's new name."""
    made = dict(attrs)
    for key in ("origin", "extends"):
        if made.get(key):
            made[key] = rename(made[key])
    return made


def assignments(graph: Graph, values: Mapping[str, HostArray]) -> tuple[Graph, dict[Tensor, HostArray], list[Node]]:
    """A graph of its own that sets variables of `graph` to `values` (by name): the graph, what to feed, what to run.

    Raises GraphError for a name that is no variable's.
    """
    into = new_like(graph)
    nodes = [graph.node(name) for name in values]
    for node in nodes:
        if node.op != "variable":
            raise GraphError(f"{node.name!r} is an op {node.op!r}, not a variable", where=node.where)
    copied: dict[str, Node] = {}
    copy_nodes(nodes, into, {}, copied)
    feeds: dict[Tensor, HostArray] = {}
    made: list[Node] = []
    for node in nodes:
        handle, spec = copied[node.name].outputs[0], node.outputs[0].spec
        attrs = {"dtype": spec.dtype, "shape": spec.shape}
        value = into.add("placeholder", (), attrs, name=f"{node.name}/restored").outputs[0]
        target = {"variable": node.name, "shape": spec.shape}
        made.append(into.add("assign", (handle, value), target, name=f"{node.name}/restore"))
        feeds[value] = values[node.name]
    return into, feeds, made


def copy_graph(graph: Graph) -> tuple[Graph, TensorMap]:
    """A copy of a whole graph, and where each tensor went."""
    into = new_like(graph)
    tensors: TensorMap = {}
    copy_nodes(graph.nodes.values(), into, tensors, {})
    return into, tensors


def consumers(graph: Graph) -> Mapping[str, list[Node]]:
    """Node name -> nodes that read any of its outputs or run after it."""
    found: dict[str, list[Node]] = {name: [] for name in graph.nodes.keys()}
    for node in graph.nodes.values():
        for name in dict.fromkeys([t.node.name for t in node.inputs] + [c.name for c in node.control_inputs]):
            if name in found:
                found[name].append(node)
    return found
