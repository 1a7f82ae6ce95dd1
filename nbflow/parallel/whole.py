"""Steps that are made whole or not at all, whoever is lost meanwhile; and how many were made.

A step that ends because a worker was lost may have updated some variables and not others. Here nothing is updated
before all that the updates are computed from is there, which nothing but the devices of the variables can then hold up.
Two counts beside the first variable say what became of a step that nobody heard the end of: those that began to update,
and those that ended it. That costs what sending gradients while others are computed saves.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from nbflow.device import DeviceSpec
from nbflow.graph import Graph, Node, Tensor, ancestors, topological
from nbflow.parallel.coordinating import NO_BOUND
from nbflow.parallel.replicate import Replication
from nbflow.rewrite import new_like

# More elements than a loop has steps in flight (`loop.AHEAD`): a replica may have taken one for each of them.
KEEP = 8
_BEGUN, _ENDED = 0, 1
# Ops that take a variable's handle, and leave it as it is.
_HARMLESS = ("read_variable", "gradient_join", "sparse_join", "accumulator", "accumulator_apply", "accumulator_take")


def counter_name(step: str) -> str:
    """The counter of the steps of `step`."""
    return f"{step}/made"


def make_whole(replication: Replication, joined: Iterable[Tensor], copies: Collection[str] = ()) -> None:
    """Changes what `replication` made, in which the updates are computed from `joined`, and the step is there.

    `copies`: names of variables that hold what others hold too; a step has ended without them.
    """
    made, step = replication.made, replication.nodes[replication.step.name]
    given = list({t.node.name: t.node for t in joined}.values())
    before = {n.name for n in ancestors(given)}
    writers = [n for n in made.nodes.values() if _writes(n) and n.name not in before]
    name = counter_name(replication.step.name)
    handle = made.add("coordinator", (), {"replicas": 2}, name=name).outputs[0]
    begun = made.add("coordinator_tick", (handle,), {"worker": _BEGUN}, name=f"{name}/begun", control_inputs=given)
    for writer in writers:
        writer.control_inputs = tuple(dict.fromkeys([*writer.control_inputs, begun]))
    own = [n for n in writers if all(t.node.name not in copies for t in n.inputs)]
    ended = made.add("coordinator_tick", (handle,), {"worker": _ENDED}, name=f"{name}/ended", control_inputs=own)
    for node in (handle.node, begun, ended):
        node.colocate = (replication.home,)
    step.control_inputs = (*step.control_inputs, ended)
    ordered = topological(made.nodes.values())
    made.nodes.clear()
    made.nodes.update({n.name: n for n in ordered})


def keep_data(graph: Graph) -> None:
    """The iterators of `graph`, which changes, can be put back by as many elements as steps may be in flight."""
    for node in graph.nodes.values():
        if node.op == "iterator_next":
            node.attrs["keep"] = KEEP


def counts(graph: Graph, step: str, device: DeviceSpec) -> tuple[Graph, list[Tensor]]:
    """A graph beside `graph` that reads the counter of `step` on `device`: how many steps began to update, and how many
    ended it."""
    beside, handle = _counter(graph, step, device)
    found = []
    for worker in (_BEGUN, _ENDED):
        attrs = {"worker": worker, "staleness": NO_BOUND}
        found.append(beside.add("coordinator_pace", (handle,), attrs).outputs[0])
    return beside, found


def forget(graph: Graph, step: str, device: DeviceSpec) -> tuple[Graph, Node]:
    """A graph beside `graph` that sets the counter of `step` on `device` to nothing."""
    beside, handle = _counter(graph, step, device)
    return beside, beside.add("coordinator_open", (handle,), {})


def _counter(graph: Graph, step: str, device: DeviceSpec) -> tuple[Graph, Tensor]:
    beside = new_like(graph)
    node = beside.add("coordinator", (), {"replicas": 2}, name=counter_name(step))
    node.device = device
    return beside, node.outputs[0]


def _writes(node: Node) -> bool:
    return node.op not in _HARMLESS and any(t.node.op == "variable" for t in node.inputs)
