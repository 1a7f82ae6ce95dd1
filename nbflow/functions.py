"""The functions of datasets as programs: what `map` and `filter` trace is placed on this process's CPU and compiled.

A dataset calls its function once an element, from several threads: all is bound beforehand, and a call holds nothing
but its own values. Elements are the steps of its random ops.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

from nbflow.backends.numpy import NumpyBackend
from nbflow.compile import check_plan, compile_part
from nbflow.data import program as programs
from nbflow.data.apply import Function
from nbflow.data.blocks import Array
from nbflow.device import LOCAL
from nbflow.errors import DataError, GraphError
from nbflow.graph import Graph, Tensor
from nbflow.optimize import prune
from nbflow.partition import partition
from nbflow.placement import place
from nbflow.placement_bodies import place_bodies
from nbflow.program import Program, StepToken
from nbflow.rendezvous import Rendezvous
from nbflow.state import StateStore
from nbflow.transport import DeviceInfo


def bind(program: programs.Program, name: str, seed: int) -> Function:
    """The function that `program` describes; `name` and `seed` are what its random ops draw with.

    Raises DataError for one that keeps state, Rejected for a damaged one or an op that is not here.
    """
    data, inputs, outputs = program
    graph = Graph.from_proto(data.tobytes())
    for node in graph.nodes.values():
        if any(t.spec.resource for t in node.outputs):
            raise DataError(f"{node.op} {node.name!r} keeps state; a dataset's function may not", where=node.where)
    graph.seed = int.from_bytes(hashlib.sha256(f"{seed}|{name}".encode()).digest()[:7], "little")
    given = [_tensor(graph, n) for n in inputs]
    bound, names = _compiled(graph, given, [_tensor(graph, n) for n in outputs])
    rendezvous, state = Rendezvous(), StateStore()

    def call(element: Sequence[Array], number: int) -> Sequence[Array]:
        feeds = {tensor.name: array for tensor, array in zip(given, element, strict=True)}
        # The reader's step has a deadline, and waits for the thread that calls this; a call itself is over in a moment.
        token = StepToken("", number, math.inf)
        found = bound.run(feeds, token, state, rendezvous, _nowhere, [])
        return [found[n] for n in names]

    return call


def _compiled(graph: Graph, given: Sequence[Tensor], wanted: Sequence[Tensor]) -> tuple[Program, list[str]]:
    """The program, and the names under which it gives `wanted`."""
    pruned = prune(graph, wanted, {t: t.spec for t in given})
    targets = [pruned.tensors[(t.node.name, t.index)] for t in wanted]
    info = DeviceInfo(LOCAL)
    placement = place(pruned.graph, [info])
    place_bodies(pruned.graph, placement, [LOCAL], lambda op, device_type: True)
    (part,) = partition(pruned.graph, placement, frozenset((t.node.name, t.index) for t in targets))
    fetches = {str(n): (t.node.name, t.index) for n, t in enumerate(targets)}
    plan = compile_part(part, pruned.graph, fetches)
    check_plan(plan)
    return Program.bind(plan, {"cpu": NumpyBackend()}, LOCAL.task_name), list(fetches)


def _tensor(graph: Graph, name: str) -> Tensor:
    node, _, index = name.partition(":")
    return graph.node(node).outputs[int(index or 0)]


def _nowhere(step_id: str, key: str, task: str, *value: object) -> None:
    raise GraphError(f"a dataset's function runs on one device, but sends {key} to {task}")


programs.BIND["program"] = bind
