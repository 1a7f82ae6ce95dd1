"""Functions of datasets on numpy: small graphs, run node after node.

A dataset calls its function once an element, from several threads: everything is bound beforehand, and a call holds
nothing but its own values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from nbflow.backends.base import Context
from nbflow.data import program as programs
from nbflow.data.apply import Function
from nbflow.errors import DataError, GraphError
from nbflow.graph import Graph, Node, topological
from nbflow.state import StateStore

Array = np.ndarray[Any, np.dtype[Any]]
Key = tuple[str, int]


@dataclass(frozen=True, slots=True)
class _Step:
    """One op of the function."""

    node: str
    call: Callable[..., Any]
    stateful: bool
    inputs: tuple[Key, ...]
    outputs: tuple[Key, ...]


def binder(table: Mapping[str, Callable[..., Any]]) -> Callable[[programs.Program, str, int], Function]:
    """What `nbflow.data.program.BIND` takes, over the implementations of `table`."""

    def bind(program: programs.Program, name: str, seed: int) -> Function:
        data, inputs, outputs = program
        graph = Graph.from_proto(data.tobytes())
        nodes = topological(graph.nodes.values())
        fixed = {(n.name, 0): np.asarray(n.attrs["value"]) for n in nodes if n.op == "constant"}
        steps = [_step(n, table) for n in nodes if n.op not in ("constant", "placeholder")]
        wanted = [_key(o) for o in outputs]
        given = [_key(i) for i in inputs]
        state = StateStore()

        def call(element: Sequence[Array], number: int) -> Sequence[Array]:
            values = {**fixed, **dict(zip(given, element, strict=True))}
            for step in steps:
                arguments: list[Any] = [values[key] for key in step.inputs]
                if step.stateful:
                    # Elements are the steps of a dataset's random ops: any thread draws the same for one.
                    arguments.insert(0, Context(f"{name}/{step.node}:0", seed, number, state, _never))
                with np.errstate(all="ignore"):
                    made = step.call(*arguments)
                results = made if isinstance(made, tuple) else (made,)
                values.update(zip(step.outputs, results, strict=True))
            return [np.array(values[key]) for key in wanted]

        return call

    return bind


def _step(node: Node, table: Mapping[str, Callable[..., Any]]) -> _Step:
    if any(t.spec.resource for t in node.outputs):
        raise DataError(f"{node.op} {node.name!r} keeps state; a dataset's function may not", where=node.where)
    function = table.get(node.op)
    if function is None:
        raise GraphError(f"the backend has no op {node.op!r}, which a dataset's function uses")
    return _Step(
        node.name,
        partial(function, **node.attrs) if node.attrs else function,
        node.definition.stateful,
        tuple((t.node.name, t.index) for t in node.inputs),
        tuple((node.name, t.index) for t in node.outputs),
    )


def _key(tensor: str) -> Key:
    name, _, index = tensor.partition(":")
    return name, int(index or 0)


def _never() -> None:
    """An element's function is not cancelled: it is over in a moment."""
