"""Where replicas that drive their own steps meet: the coordinator in their graphs, and what is said to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nbflow.graph import Node, Tensor
from nbflow.parallel.base import Role, keep_only
from nbflow.parallel.replicate import Replication

# A bound on the staleness that never holds anybody up: the coordinator only counts.
NO_BOUND = 1 << 62


class Coordination:
    """The coordinator of `replication`, on the device of the first variable that is trained."""

    def __init__(self, replication: Replication) -> None:
        self.replication = replication
        self.home = replication.home
        # Of another number of replicas it is another one.
        name = f"{replication.step.name}/of_{len(replication.replicas)}_replicas"
        self.handle = self.add("coordinator", (), {"replicas": len(replication.replicas)}, name=name).outputs[0]

    def add(
        self,
        op: str,
        inputs: Sequence[Tensor],
        attrs: dict[str, Any] | None = None,
        *,
        name: str,
        after: Sequence[Node] = (),
        home: str = "",
    ) -> Node:
        """A node of the strategy's own, beside the variable `home`."""
        made = self.replication.made
        node = made.add(op, inputs, attrs or {}, name=name, control_inputs=after)
        node.colocate = (home or self.home,)
        return node

    def say(self, role: Role) -> Replication:
        """The graph of what is said to the coordinator before and after a run."""
        attrs = {"worker": role.index} if role.kind == "leave" else {}
        replication = self.replication
        variable = replication.graph.nodes[self.home]
        said = self.add(f"coordinator_{role.kind}", (self.handle,), attrs, name=f"{replication.step.name}/{role.kind}")
        return self.instead(said, [], beside=[variable])

    def instead(self, step: Node, others: Sequence[Node], beside: Sequence[Node] = ()) -> Replication:
        """The replication, with `step` for its step, and without what neither this nor `others` needs."""
        replication = self.replication
        replication.nodes[replication.step.name] = step
        holders = [replication.nodes[n.name] for n in beside]
        keep_only(replication.made, [step, *others, *holders])
        return replication


def first_in(waiting: Node) -> Callable[[Node, Node], None]:
    """What is done to copied nodes so that variables are read after `waiting`."""

    def change(old: Node, new: Node) -> None:
        if new.op == "read_variable":
            new.control_inputs = (*new.control_inputs, waiting)

    return change


def nothing() -> None:
    """A branch that does nothing."""
