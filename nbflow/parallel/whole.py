"""Steps that are made whole or not at all, whoever is lost meanwhile; and how many were made.

A step that ends because a worker was lost may have updated some variables and not others. Here nothing is updated
before all that the updates are computed from is there, which nothing but the devices of the variables can then hold up.
Two counts beside the first variable say what became of a step that nobody heard the end of: those that began to update,
and those that ended it. That costs what sending gradients while others are computed saves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

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


def counter_name(step: str, replica: int = 0) -> str:
    """The counter of the steps of `step`, beside the variables of `replica`, where it has some of its own."""
    return f"replica_{replica}/{step}/made" if replica else f"{step}/made"


def make_whole(replication: Replication, joined: Iterable[Tensor], copies: Sequence[Mapping[str, Node]] = ()) -> None:
    """Changes what `replication` made, in which the updates are computed from `joined`, and the step is there.

    `copies`: for each replica but the first, where all have the variables, name of a variable -> its own one. Each has
    a counter of its own then: one that is left says what its copies are worth.
    """
    made, step = replication.made, replication.nodes[replication.step.name]
    given = list({t.node.name: t.node for t in joined}.values())
    before = {n.name for n in ancestors(given)}
    writers = [n for n in made.nodes.values() if _writes(n) and n.name not in before]
    replica_of = {node.name: index for index, own in enumerate(copies, 1) for node in own.values()}
    after = given
    for index in range(len(copies) + 1):
        mine = [n for n in writers if _replica(n, replica_of) == index]
        home = copies[index - 1][replication.home].name if index else replication.home
        begun, ended = _counted(replication, counter_name(replication.step.name, index), home, after, mine)
        step.control_inputs = (*step.control_inputs, ended)
        after = after if index else [begun]
    ordered = topological(made.nodes.values())
    made.nodes.clear()
    made.nodes.update({n.name: n for n in ordered})


def _counted(
    replication: Replication, name: str, home: str, after: Sequence[Node], writers: Sequence[Node]
) -> tuple[Node, Node]:
    """The ticks before and after `writers`, which run after `after`."""
    made = replication.made
    handle = made.add("coordinator", (), {"replicas": 2}, name=name).outputs[0]
    begun = made.add("coordinator_tick", (handle,), {"worker": _BEGUN}, name=f"{name}/begun", control_inputs=after)
    for writer in writers:
        writer.control_inputs = tuple(dict.fromkeys([*writer.control_inputs, begun]))
    ended = made.add(
        "coordinator_tick", (handle,), {"worker": _ENDED}, name=f"{name}/ended", control_inputs=[begun, *writers]
    )
    for node in (handle.node, begun, ended):
        node.colocate = (home,)
    return begun, ended


def _replica(writer: Node, replica_of: Mapping[str, int]) -> int:
    return next((replica_of[t.node.name] for t in writer.inputs if t.node.name in replica_of), 0)


def keep_data(graph: Graph) -> None:
    """The iterators of `graph`, which changes, can be put back by as many elements as steps may be in flight."""
    for node in graph.nodes.values():
        if node.op == "iterator_next":
            node.attrs["keep"] = KEEP


def counts(graph: Graph, counter: str, device: DeviceSpec) -> tuple[Graph, list[Tensor]]:
    """A graph beside `graph` that reads `counter` on `device`: how many steps began to update, how many ended that."""
    beside = new_like(graph)
    node = beside.add("coordinator", (), {"replicas": 2}, name=counter)
    node.device = device
    found = []
    for worker in (_BEGUN, _ENDED):
        attrs = {"worker": worker, "staleness": NO_BOUND}
        found.append(beside.add("coordinator_pace", node.outputs, attrs).outputs[0])
    return beside, found


def _writes(node: Node) -> bool:
    return node.op not in _HARMLESS and any(t.node.op == "variable" for t in node.inputs)
