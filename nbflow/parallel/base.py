"""What a strategy is, to the rest of the pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from nbflow.device import DeviceSpec
from nbflow.graph import Graph, Node, Tensor, ancestors, topological
from nbflow.op import AttrValue
from nbflow.rewrite import TensorMap


@dataclass(frozen=True, slots=True)
class Expanded:
    """A graph rewritten by a strategy.

    `tensors` and `nodes` map the names before to what stands for them now. `prefer`: variable name -> the partial
    device the strategy wants it on. `replicas`: the devices that compute, in replica order; empty without a strategy.
    `own`: variables that the graph itself gives a value before it reads them.
    """

    graph: Graph
    tensors: TensorMap
    nodes: Mapping[str, Node]
    prefer: Mapping[str, str] = field(default_factory=dict)
    replicas: tuple[str, ...] = ()
    own: frozenset[str] = frozenset()

    @staticmethod
    def unchanged(graph: Graph, prefer: Mapping[str, str] | None = None) -> Expanded:
        """`graph` as it is."""
        tensors = {(n.name, t.index): t for n in graph.nodes.values() for t in n.outputs}
        return Expanded(graph, tensors, graph.nodes, prefer or {})


def strategy_of(node: Node) -> tuple[AttrValue, ...]:
    """The strategy attribute of a training step's node; empty for any other node."""
    found = node.attrs.get("strategy", ())
    return found if isinstance(found, tuple) else ()


RoleKind = Literal["all", "replica", "chief", "open", "leave", "close", "first", "between", "last", "only"]


@dataclass(frozen=True, slots=True)
class Role:
    """Which part of a strategy a run is prepared for, where replicas drive their own steps.

    `all`: one graph, as for `nf.run`. `replica`: the steps of replica `index`. `chief`: the updates that the replicas'
    gradients make together. `open`, `leave` (replica `index`), `close`: what is said to the coordinator before and
    after. `first`, `between`, `last`, `only`: a step of a run that is under way, by its place in a round of local SGD,
    without asking which it is: what a simulation looks at. Where all steps are alike, all of these are.
    `elastic`: of a run that workers may leave and join: steps are made whole or not at all (`whole`), and what the
    strategy asks of the number of replicas follows from how many there are.
    """

    kind: RoleKind = "all"
    index: int = 0
    elastic: bool = False


ALL = Role()


class Strategy(Protocol):
    """How a training step is spread over workers. It travels as an attribute of the step's node."""

    @property
    def separate(self) -> bool:
        """Whether each replica drives its own steps."""
        ...

    def to_attrs(self) -> tuple[AttrValue, ...]: ...

    def replica_devices(self, available: Sequence[DeviceSpec]) -> list[DeviceSpec]:
        """The device of each replica."""
        ...

    def expand(
        self,
        graph: Graph,
        step: Node,
        fetches: Sequence[Node | Tensor],
        available: Sequence[DeviceSpec],
        role: Role = ALL,
    ) -> Expanded:
        """`graph`, pruned for `fetches` among which `step` is, as the strategy wants it."""
        ...


def keep_only(graph: Graph, wanted: Sequence[Node]) -> None:
    """Removes from `graph` what none of `wanted` needs, and puts the rest in an order from inputs to users."""
    kept = topological(ancestors(wanted))
    graph.nodes.clear()
    graph.nodes.update({n.name: n for n in kept})
