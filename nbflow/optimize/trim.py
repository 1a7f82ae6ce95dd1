"""Loops and branches without what nobody reads of them.

A gradient rule cannot know which gradients somebody wants, so a backward loop sums those of all captured values, and
stacks those of all rows. This pass takes out outputs that nothing reads, and what only they needed: carried values,
inputs, ops of the bodies. Updates of state stay. What is left computes what it did: results are bit-equal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nbflow.body import ARGUMENT, Body, leading, writes_state
from nbflow.graph import Node, Tensor, ancestors
from nbflow.optimize.draft import Change, Draft, Form
from nbflow.rewrite import TensorMap, copy_nodes, new_like


def trim(draft: Draft) -> None:
    used = {id(t) for t in draft.fetched}
    for node in reversed(list(draft.graph.nodes.values())):
        if node.op in _TRIMS:
            before = Form.of(node)
            count = len(node.outputs)
            if _TRIMS[node.op](node, used):
                draft.log.gone.append(before)
                draft.log.made.append(Form.of(node))
                what = f"gives {len(node.outputs)} values instead of {count}: nothing reads the others"
                draft.log.changes.append(Change(node.name, node.op, what, node.where))
        used.update(id(t) for t in node.inputs)


def _trim_loop(node: Node, used: set[int]) -> bool:
    attrs = node.attrs
    body: Body = attrs["body"]
    condition: Body | None = attrs["condition"]
    n, m = attrs["carried"], attrs["scanned"]
    rows: list[int] = []  # numbers of the body's stacked outputs that are read
    outputs: list[Tensor] = []  # of the node, behind the carried ones
    place = n + 1
    for number, padded in enumerate(attrs["padded"], start=n):
        group = node.outputs[place : place + 1 + padded]
        if any(id(t) in used for t in group):
            rows.append(number)
            outputs += group
        place += 1 + padded
    tested = set() if condition is None else _arguments_of(condition, range(1))
    carried = {i for i in range(n) if id(node.outputs[i]) in used} | {i for i in tested if i < n}
    while True:
        needed = _arguments_of(body, [*sorted(carried), *rows])
        more = {i for i in needed if i < n} | carried
        if more == carried:
            break
        carried = more
    kept = sorted(needed | tested | carried)
    if m and not any(n <= i < n + m for i in kept) and condition is None and not attrs["limited"]:
        kept = sorted({*kept, n})  # whose length says how often
    if len(kept) == len(body.arguments) and len(rows) == len(attrs["padded"]):
        return False
    order = sorted(carried)
    first = leading(node)
    node.attrs = {
        **attrs,
        "body": _cut(body, kept, [*order, *rows]),
        "condition": None if condition is None else _cut(condition, kept, [0]),
        "carried": len(order),
        "scanned": sum(n <= i < n + m for i in kept),
        "padded": tuple(attrs["padded"][i - n] for i in rows),
        "invariants": tuple(attrs["invariants"][i] for i in order),
    }
    node.inputs = (*node.inputs[:first], *(node.inputs[first + i] for i in kept))
    _number(node, [*(node.outputs[i] for i in order), node.outputs[n], *outputs])
    return True


def _trim_cond(node: Node, used: set[int]) -> bool:
    live = [i for i, t in enumerate(node.outputs) if id(t) in used]
    bodies: dict[str, Body] = {key: node.attrs[key] for key in ("then", "otherwise")}
    kept = sorted(set().union(*(_arguments_of(b, live) for b in bodies.values())))
    if len(live) == len(node.outputs) and len(kept) == len(node.inputs) - 1:
        return False
    node.attrs = {**node.attrs, **{key: _cut(b, kept, live) for key, b in bodies.items()}}
    node.inputs = (node.inputs[0], *(node.inputs[1 + i] for i in kept))
    _number(node, [node.outputs[i] for i in live])
    return True


_TRIMS: dict[str, Callable[[Node, set[int]], bool]] = {"loop": _trim_loop, "cond": _trim_cond}


def _number(node: Node, outputs: Sequence[Tensor]) -> None:
    for index, tensor in enumerate(outputs):
        tensor.index = index
    node.outputs = tuple(outputs)


def _needed(body: Body, outputs: Sequence[int] | range) -> list[Node]:
    """What `outputs` (numbers) and updates of state are computed from."""
    writers = [
        n
        for n in body.graph.nodes.values()
        if any(t.spec.resource and writes_state(n, i) for i, t in enumerate(n.inputs))
    ]
    return ancestors([*(body.outputs[i].node for i in outputs), *writers])


def _arguments_of(body: Body, outputs: Sequence[int] | range) -> set[int]:
    return {n.attrs["index"] for n in _needed(body, outputs) if n.op == ARGUMENT}


def _cut(body: Body, arguments: Sequence[int], outputs: Sequence[int]) -> Body:
    """`body` with only these arguments, numbered anew, and outputs."""
    numbers = {old: new for new, old in enumerate(arguments)}
    keep = {*(id(n) for n in _needed(body, outputs)), *(id(body.arguments[i].node) for i in arguments)}
    graph = new_like(body.graph)
    tensors: TensorMap = {}

    def change(old: Node, new: Node) -> None:
        if old.op == ARGUMENT:
            attrs: dict[str, Any] = {**old.attrs, "index": numbers[old.attrs["index"]]}
            new.attrs = attrs

    copy_nodes([n for n in body.graph.nodes.values() if id(n) in keep], graph, tensors, {}, change=change)
    return Body(
        graph,
        tuple(tensors[(body.arguments[i].node.name, 0)] for i in arguments),
        tuple(tensors[(body.outputs[i].node.name, body.outputs[i].index)] for i in outputs),
    )
