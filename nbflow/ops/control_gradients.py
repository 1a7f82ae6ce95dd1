"""Gradients of loops and branches, as loops and branches.

The body is differentiated by the ordinary sweep, on a copy. What the backward pass needs of the forward one is made an
output of a *twin* of the forward node: the same node with more outputs (for a loop, stacked over its iterations). The
twin draws the same random numbers (`origin`), and takes the place of the original when both would run
(`optimize/loops.py`). What only depends on captured values is computed again instead of being stacked. A backward loop
goes over the stacked values in reverse, carrying the gradients of the carried values and the sums of those of the
captured ones: the accumulators of Yu et al., "Dynamic Control Flow in Large-Scale Machine Learning" (EuroSys 2018),
section 5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nbflow.body import ARGUMENT, Body, is_stateful, rebuild
from nbflow.device import DeviceSpec
from nbflow.graph import Graph, Node, Tensor, ancestors, get_graph
from nbflow.op import Attrs
from nbflow.ops.creation import zeros_like
from nbflow.ops.elementwise import add
from nbflow.ops.loops import build_loop, cond
from nbflow.ops.ragged import crop_to
from nbflow.ops.shape import reshape_like
from nbflow.rewrite import TensorMap, copy_nodes, new_like
from nbflow.spec import TensorSpec, kind_of

Grads = Sequence["Tensor | None"]
# Filled by `nbflow.autodiff`, which stands above the ops: `gradients`.
SWEEP: dict[str, Callable[..., Any]] = {}


def _differentiable(tensor: Tensor) -> bool:
    return kind_of(tensor.dtype) in "fc" and not tensor.spec.resource


@dataclass(frozen=True, slots=True)
class _Swept:
    """A differentiated copy of a body. `seeds`: output number -> what flows in there. `found`: argument number -> its
    gradient, for those that have one. `forward`: names of the nodes that were there before."""

    graph: Graph
    body: Body
    seeds: dict[int, Tensor]
    found: dict[int, Tensor]
    forward: frozenset[str]

    @property
    def used(self) -> list[Tensor]:
        """What the gradients read of the forward computation, each tensor once, seeds left out."""
        seeds = {id(t) for t in self.seeds.values()}
        made = ancestors([t.node for t in self.found.values()], stop=set(self.forward))
        found: dict[tuple[str, int], Tensor] = {}
        read = [t for n in made if n.name not in self.forward for t in n.inputs] + list(self.found.values())
        for tensor in read:
            if tensor.node.name in self.forward and id(tensor) not in seeds:
                found[(tensor.node.name, tensor.index)] = tensor
        return list(found.values())


def _sweep(body: Body, outputs: Sequence[int]) -> _Swept:
    """Differentiates `body` from its `outputs` (numbers) to all its arguments."""
    work = rebuild(body)
    graph = work.graph
    forward = frozenset(graph.nodes.keys())
    seeds: dict[int, Tensor] = {}
    for number in outputs:
        spec = work.outputs[number].spec
        # Its index is never asked for: in the backward body an argument of its own takes its place.
        attrs = {"shape": spec.shape, "dtype": spec.dtype, "resource": False, "index": -1}
        seeds[number] = graph.add(ARGUMENT, (), attrs, name=f"gradients/seed_{number}").outputs[0]
    sources = [t for t in work.arguments if _differentiable(t)]
    with graph.as_default():
        grads = SWEEP["gradients"]([work.outputs[n] for n in seeds], sources, list(seeds.values())) if seeds else []
    found = {int(x.node.attrs["index"]): g for x, g in zip(sources, grads, strict=False) if g is not None}
    return _Swept(graph, work, seeds, found, _with_twins(graph, forward))


def _with_twins(graph: Graph, forward: frozenset[str]) -> frozenset[str]:
    """`forward` and the twins that the sweep made of loops in there: they belong to the forward computation too."""
    found = set(forward)
    for node in graph.nodes.values():
        if node.attrs.get("extends") and all(t.node.name in found for t in node.inputs):
            found.add(node.name)
    return frozenset(found)


def _varying(nodes: Sequence[Node], own: int) -> set[str]:
    """The names of `nodes` (topologically sorted) that differ between iterations: made of arguments before number
    `own`, of state or of draws."""
    found: set[str] = set()
    for node in nodes:
        if node.op == ARGUMENT:
            differs = node.attrs["index"] < own
        else:
            before = (*(t.node for t in node.inputs), *node.control_inputs)
            differs = is_stateful(node) or any(n.name in found for n in before)
        if differs:
            found.add(node.name)
    return found


def _transplant(swept: _Swept, into: Graph, known: TensorMap, wanted: Sequence[Tensor]) -> list[Tensor]:
    """Copies what computes `wanted` into a body that is being traced, where `known` says what stands for what is
    there already."""
    there = {name for name, _ in known}
    nodes = [n for n in ancestors([t.node for t in wanted], stop=there) if n.name not in there]
    copy_nodes(nodes, into, known, {}, change=lambda old, new: _settle(swept.graph, new))
    return [known[(t.node.name, t.index)] for t in wanted]


def _settle(graph: Graph, node: Node) -> None:
    """What was beside an op that stayed in the forward body asks for that op's device."""
    for name in node.colocate:
        other = graph.nodes.get(name)
        if other is not None and node.device == DeviceSpec():
            node.device = other.device
    node.colocate = ()


# --- loop ------------------------------------------------------------------------------------------------------------


def loop_gradient(node: Node, grads: Grads) -> Grads:
    attrs = node.attrs
    first = 1 if attrs["limited"] else 0
    carried, scanned = attrs["carried"], attrs["scanned"]
    flowing = [i for i in range(carried) if _differentiable(node.outputs[i])]
    places = _places(attrs)
    rows = [i for i, n in places.items() if grads[n] is not None and _differentiable(node.outputs[n])]
    swept = _sweep(attrs["body"], [*flowing, *rows])
    kept, again, captures, over = _sorted_out(swept, carried, scanned)
    twin = _with_rows(node, swept, kept)
    stacked = [_rows_of(twin, i) for i in list(_places(twin.attrs))[len(places) :]] if kept else []
    captured = [i for i in swept.found if i >= carried + scanned]
    scanned_found = [i for i in swept.found if carried <= i < carried + scanned]
    outside = node.inputs[first:]

    start: list[Tensor] = []
    for i in flowing:
        given = grads[i]
        start.append(zeros_like(twin.outputs[i]) if given is None else given)
    start += [zeros_like(outside[i]) for i in captured]
    incoming = [(grads[places[i]], *_rows_of(node, i)[1:]) for i in rows]
    goes_over = [t for group in (*stacked, *((outside[i],) for i in over), *incoming) for t in group if t is not None]

    def step(before: list[Tensor], row: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        known: TensorMap = {}
        graph = before[0].graph if before else row[0].graph
        for number, tensor in zip(flowing, before, strict=False):
            known[_key(swept.seeds[number])] = tensor
        sources = [*kept, *(swept.body.arguments[i] for i in over), *(swept.seeds[i] for i in rows)]
        sized = [len(group) > 1 for group in (*stacked, *((t,) for t in over), *incoming)]
        given = iter(row)
        for tensor, has_sizes in zip(sources, sized, strict=True):
            inside = next(given)
            known[_key(tensor)] = crop_to(inside, next(given), shape=tensor.shape) if has_sizes else inside
        for i in captures:
            known[_key(swept.body.arguments[i])] = graph.capture(outside[i]) if graph.capture else outside[i]
        _transplant(swept, graph, known, [t for n in again for t in n.outputs])
        found = dict(zip(swept.found, _transplant(swept, graph, known, list(swept.found.values())), strict=True))
        after = [found[i] if i in found else zeros_like(before[n]) for n, i in enumerate(flowing)]
        after += [add(before[len(flowing) + n], found[i]) for n, i in enumerate(captured)]
        return after, [found[i] for i in scanned_found]

    if not start and not goes_over:
        return [None] * len(node.inputs)
    backward = build_loop(
        "loop",
        start,
        goes_over,
        step,
        None,
        [None] * len(start),
        twin.outputs[carried],
        reverse=not attrs["reverse"],
        static=False,
    )
    result: list[Tensor | None] = [None] * len(node.inputs)
    for n, i in enumerate(flowing):
        result[first + i] = backward.outputs[n]
    for n, i in enumerate(captured):
        result[first + i] = backward.outputs[len(flowing) + n]
    for n, i in enumerate(scanned_found):
        # Of no steps the rows have 0 for the dimensions that nobody knew: the shape is that of what was gone over.
        rows_found, over_shape = backward.outputs[len(start) + 1 + n], outside[i].shape
        known = over_shape is not None and None not in over_shape[1:]
        result[first + i] = rows_found if known else reshape_like(rows_found, outside[i])
    return result


def _key(tensor: Tensor) -> tuple[str, int]:
    return tensor.node.name, tensor.index


def _sorted_out(swept: _Swept, carried: int, scanned: int) -> tuple[list[Tensor], list[Node], list[int], list[int]]:
    """How the backward body gets what it reads: stacked by the twin, computed again, captured, or gone over again."""
    kept: list[Tensor] = []
    again: list[Node] = []
    captures: set[int] = set()
    over: list[int] = []
    own = carried + scanned
    used = swept.used
    varying = _varying(ancestors([t.node for t in used]), own)
    for tensor in used:
        node = tensor.node
        index = node.attrs["index"] if node.op == ARGUMENT else -1
        if index >= own:
            captures.add(index)
        elif carried <= index:
            over.append(index)
        elif node.name not in varying:
            again.append(node)
        else:
            kept.append(tensor)
    captures.update(int(n.attrs["index"]) for n in ancestors(again) if n.op == ARGUMENT)
    return kept, again, sorted(captures), over


def _with_rows(node: Node, swept: _Swept, kept: Sequence[Tensor]) -> Node:
    """The twin of a loop that also stacks `kept`."""
    if not kept:
        return node
    # What may differ in shape from one iteration to the next is padded; a dimension that nobody knows may.
    padded = tuple(bool(t.shape) and not t.spec.is_static for t in kept)
    return _twin(node, {"body": _forward(swept, kept), "padded": (*node.attrs["padded"], *padded)})


def _places(attrs: Attrs) -> dict[int, int]:
    """Number of a body's stacked output -> number of the node's output."""
    found: dict[int, int] = {}
    place = attrs["carried"] + 1
    for number, padded in enumerate(attrs["padded"], start=attrs["carried"]):
        found[number] = place
        place += 1 + padded
    return found


def _rows_of(node: Node, number: int) -> tuple[Tensor, ...]:
    """The stacked output of the body's output `number`, and the sizes of its rows if they may differ."""
    place = _places(node.attrs)[number]
    padded = node.attrs["padded"][number - node.attrs["carried"]]
    return node.outputs[place : place + 1 + padded]


def _forward(swept: _Swept, more: Sequence[Tensor | TensorSpec]) -> Body:
    """The body as it was, with the twins that the sweep made, and with more outputs; for a spec an empty array."""
    graph = new_like(swept.graph)
    known: TensorMap = {}
    copy_nodes([n for n in swept.graph.nodes if n.name in swept.forward], graph, known, {})
    outputs = [known[_key(t)] for t in swept.body.outputs]
    for wanted in more:
        outputs.append(known[_key(wanted)] if isinstance(wanted, Tensor) else _nothing(graph, wanted))
    return Body(graph, tuple(known[_key(t)] for t in swept.body.arguments), tuple(outputs))


def _twin(node: Node, changed: Attrs) -> Node:
    attrs = {**node.attrs, **changed, "origin": node.attrs["origin"] or node.name, "extends": node.name}
    return node.graph.add(node.op, node.inputs, attrs, control_inputs=node.control_inputs, device=node.device)


# --- cond ------------------------------------------------------------------------------------------------------------


def cond_gradient(node: Node, grads: Grads) -> Grads:
    numbers = [i for i, g in enumerate(grads) if g is not None and _differentiable(node.outputs[i])]
    swept = {key: _sweep(node.attrs[key], numbers) for key in ("then", "otherwise")}
    kept = {key: [t for t in s.used if t.node.op not in (ARGUMENT, "constant")] for key, s in swept.items()}
    twin = _with_outputs(node, swept, kept)
    operands = node.inputs[1:]
    found = sorted({i for s in swept.values() for i in s.found})
    if not found:
        return [None] * len(node.inputs)
    given = [g for i in numbers if (g := grads[i]) is not None]
    first = {"then": len(node.outputs), "otherwise": len(node.outputs) + len(kept["then"])}

    def branch(key: str) -> list[Tensor]:
        graph = get_graph()
        assert graph.capture is not None  # a branch is traced
        inside, s = graph.capture, swept[key]
        known: TensorMap = {_key(s.seeds[i]): inside(g) for i, g in zip(numbers, given, strict=True)}
        for number, tensor in enumerate(kept[key]):
            argument = inside(twin.outputs[first[key] + number])
            # The other branch's stand-in for it left its shape open.
            argument.node.attrs["shape"] = tensor.shape
            argument.spec = tensor.spec
            known[_key(tensor)] = argument
        for tensor in s.used:
            if tensor.node.op == ARGUMENT:
                known[_key(tensor)] = inside(operands[tensor.node.attrs["index"]])
        made = dict(zip(s.found, _transplant(s, graph, known, list(s.found.values())), strict=True))
        return [made[i] if i in made else zeros_like(inside(operands[i])) for i in found]

    outputs = cond(node.inputs[0], lambda: branch("then"), lambda: branch("otherwise"))
    result: list[Tensor | None] = [None] * len(node.inputs)
    for i, tensor in zip(found, outputs, strict=True):
        result[1 + i] = tensor
    return result


def _with_outputs(node: Node, swept: Mapping[str, _Swept], kept: Mapping[str, Sequence[Tensor]]) -> Node:
    """The twin of a branch that also gives what each body `kept`; the body that does not run gives empty arrays."""
    if not any(kept.values()):
        return node
    changed = {}
    for key, of_key in swept.items():
        more = [t if other == key else t.spec for other, tensors in kept.items() for t in tensors]
        changed[key] = _forward(of_key, more)
    return _twin(node, changed)


def _nothing(graph: Graph, spec: TensorSpec) -> Tensor:
    value = np.zeros((0,) * len(spec.shape or ()), spec.dtype)
    return graph.add("constant", (), {"value": value}, name=None).outputs[0]
