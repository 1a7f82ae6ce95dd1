"""`nf.checkpoint`: what a function computed on the way is not kept for the backward pass, but computed again.

Griewank and Walther, "Algorithm 799: revolve", ACM TOMS 26 (2000); Chen et al., "Training deep nets with sublinear
memory cost", arXiv 1604.06174.

A function's results go through one op `checkpoint`. Its inputs are the results and the boundary: the tensors from
which the results can be computed again. Its gradient rule copies the ops between boundary and results, and takes the
gradients through the copies. Two things keep the copies from being merged with the originals, or run early:

- They read the boundary through `recompute_barrier` ops, which have control inputs from the gradients that arrive; so
  they can start only when the backward pass has come so far.
- A barrier is declared `stateful`: no pass may fold, merge or remove it. What reads a barrier differs in its inputs
  from what reads the tensor before it, so no pass that merges equal ops can take copy and original for one.

Ops with state and random ops are on the boundary: they run once and their results are kept, so that backward sees the
dropout mask that forward used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from itertools import islice
from typing import Any, TypeVar

from nbflow import op
from nbflow.autodiff import Key, gradients_within
from nbflow.body import is_stateful
from nbflow.graph import Graph, Node, Tensor, get_graph
from nbflow.op import Attrs
from nbflow.ops._build import as_tensor, build
from nbflow.ops.slices import Gradient
from nbflow.spec import TensorSpec, require_values
from nbflow.structure import flatten

F = TypeVar("F", bound=Callable[..., Any])
Grads = Sequence[Tensor | None]


def checkpoint(fn: F) -> F:
    """`fn`, whose intermediate values are freed after the forward pass and computed again for the backward pass.

    `fn` takes and gives tensors, in any nesting; it may use variables and layers. Kept are its arguments, what else it
    reads from outside, and its results: a chain of n layers in √n checkpoints needs the memory of about 2√n of them
    for one more forward pass of time. Gradients are the same to the bit, also of ops with state, which run once.

        for layer in layers:
            h = nf.checkpoint(layer)(h)
    """

    @wraps(fn)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        given = [t for t in map(as_tensor, (*args, *kwargs.values())) if t is not None]
        graph = given[0].graph if given else get_graph()
        nodes = graph.nodes if graph.pending is None else graph.pending
        before = len(nodes)
        result = fn(*args, **kwargs)
        leaves, rebuild = flatten(result)
        inside = {id(n) for n in islice(nodes.values(), before, None)}
        results = list(dict.fromkeys(t for t in leaves if isinstance(t, Tensor) and _again(t.node, inside)))
        if not results:
            return result
        boundary = _boundary(results, inside)
        name = "checkpoint" if len(results) == 1 else "checkpoint_many"
        kept = graph.add(name, [*results, *boundary], {"outputs": len(results)})
        instead = dict(zip(results, kept.outputs, strict=True))
        return rebuild([instead.get(leaf, leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves])

    return wrapped  # type: ignore[return-value]  # it takes and gives what fn does


def _again(node: Node, inside: set[int]) -> bool:
    """Whether `node` is one that can be computed again: made inside, without state, from something."""
    return id(node) in inside and not is_stateful(node) and bool(node.inputs)


def _boundary(results: Sequence[Tensor], inside: set[int]) -> list[Tensor]:
    """What the ops inside that lead to `results` read from elsewhere."""
    found: dict[Tensor, None] = {}
    seen: set[int] = set()
    todo = [t.node for t in results]
    while todo:
        node = todo.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        for tensor in node.inputs:
            if _again(tensor.node, inside):
                todo.append(tensor.node)
            else:
                found[tensor] = None
    return list(found)


# --- the ops ---------------------------------------------------------------------------------------------------------


def _infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    return [TensorSpec(s.shape, s.dtype) for s in inputs[: attrs["outputs"]]]


def _barrier_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    require_values(inputs)
    return [TensorSpec(inputs[0].shape, inputs[0].dtype)]


def _gradient(node: Node, grads: Grads) -> Sequence[Gradient | None]:
    count = node.attrs["outputs"]
    results, boundary = node.inputs[:count], node.inputs[count:]
    graph = node.graph
    arrived = [(t, g) for t, g in zip(results, grads, strict=True) if g is not None]
    with graph.name_scope("recompute"):
        after = [g.node for _, g in arrived]
        with graph.control_dependencies(after):
            barriers = [build("recompute_barrier", (t,)) for t in boundary]
        stands = {_key(t): b for t, b in zip(boundary, barriers, strict=True)}
        _copy(graph, _between(results, set(stands)), stands)
    found = gradients_within([stands[_key(t)] for t, _ in arrived], barriers, [g for _, g in arrived])
    return [*[None] * count, *found]


def _key(tensor: Tensor) -> Key:
    return tensor.node.name, tensor.index


def _between(results: Sequence[Tensor], boundary: set[Key]) -> list[Node]:
    """The ops from `boundary` to `results`, inputs first."""
    order: dict[str, Node] = {}
    todo = [(t.node, False) for t in reversed(results)]
    while todo:
        node, ready = todo.pop()
        if node.name in order:
            continue
        if ready:
            order[node.name] = node
            continue
        todo.append((node, True))
        todo += [(t.node, False) for t in reversed(node.inputs) if _key(t) not in boundary]
    return list(order.values())


def _copy(graph: Graph, nodes: Sequence[Node], stands: dict[Key, Tensor]) -> None:
    """Copies of `nodes`, each on the device of its original; `stands` gets what stands for their outputs."""
    graph.read(nodes)
    for node in nodes:
        inputs = [stands[_key(t)] for t in node.inputs]
        with graph.colocate_with(None), graph.colocate_with(node):
            made = graph.add(node.op, inputs, node.attrs, control_inputs=node.control_inputs)
        for old, new in zip(node.outputs, made.outputs, strict=True):
            stands.setdefault(_key(old), new)


_DOC = (
    "inputs: results of a function, then the tensors they can be computed from again → the results. Backward computes "
    "the function again. attrs: outputs (how many results)."
)
op.define("checkpoint", infer=_infer, gradient=_gradient, cost=op.free_cost, alias=True, doc=f"One result; {_DOC}")
op.define("checkpoint_many", infer=_infer, gradient=_gradient, doc=f"Several results, copied; {_DOC}")
op.define(
    "recompute_barrier",
    infer=_barrier_infer,
    gradient=lambda node, grads: [grads[0]],
    cost=op.free_cost,
    stateful=True,
    alias=True,
    doc="x, not before the ops it has control inputs from. Never merged with x: what computes with it computes again. "
    "Its state is the moment at which it runs.",
)
