"""Where the iterators of a graph stand: saved and restored as tensors.

    kept = nf.run(nf.data.save_state(batch["x"]))          # a uint8 array, small
    nf.run(nf.data.restore_state(batch["x"], kept))        # here, or in another session later: the next batch follows

Under synchronous data parallelism all replicas stand at one place, and saving it on any number of workers and
restoring it on any other is exact. Asynchronous replicas each have a place; what is saved is that of the first.
"""

from __future__ import annotations

from typing import Any

from nbflow.errors import DataError
from nbflow.graph import Graph, Node, Tensor, ancestors, as_node, get_graph
from nbflow.ops._build import build, build_node, convert


def iterator_of(target: Tensor | Node) -> Node:
    """The node that holds the iterator behind `target`: a tensor of a batch, the node that gave it, or the holder.

    Raises DataError when there is none, or more than one.
    """
    node = as_node(target)
    found = [node] if node.op == "iterator" else []
    if not found:
        near = node.inputs[0].node if node.op == "iterator_next" else None
        found = [near] if near is not None else [n for n in ancestors([node]) if n.op == "iterator"]
    if len(found) != 1:
        names = ", ".join(n.name for n in found) or "none"
        raise DataError(f"{node.name!r} comes from {len(found)} iterators ({names}), not one; give a tensor of a batch")
    return found[0]


def iterators(graph: Graph | None = None) -> list[Node]:
    """The nodes that hold iterators, of `graph` or the current one, as the running cell sees it, by name."""
    graph = graph or get_graph()
    names = sorted({*graph.nodes.keys(), *(graph.pending or ())})
    return [n for n in map(graph.find, names) if n is not None and n.op == "iterator"]


def save_state(target: Tensor | Node) -> Tensor:
    """Where the iterator of `target` stands, uint8 (bytes,). One that has not run yet stands at its beginning.

    Raises DataError when `target` comes from no iterator, or several.
    """
    handle = iterator_of(target)
    return build("iterator_state", handle.outputs)


def restore_state(target: Tensor | Node, value: Any) -> Node:
    """An op that puts the iterator of `target` where `value`, from `save_state`, says, on every worker.

    Running it raises DataError for damaged bytes; the next batch does for the state of another dataset.
    """
    handle = iterator_of(target)
    return build_node("iterator_restore", (*handle.outputs, convert(value, "uint8")))


def position(target: Tensor | Node) -> Tensor:
    """How many elements the iterator of `target` has handed out, int64 ()."""
    return build("iterator_position", iterator_of(target).outputs)
