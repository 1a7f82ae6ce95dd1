"""What a strategy is, to the rest of the pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from nbflow.graph import Graph, Node
from nbflow.op import AttrValue
from nbflow.rewrite import TensorMap


class Strategy(Protocol):
    """How a training step is spread over workers. It travels as an attribute of the step's node."""

    def to_attrs(self) -> tuple[AttrValue, ...]: ...


@dataclass(frozen=True, slots=True)
class Expanded:
    """A graph rewritten by a strategy.

    `tensors` and `nodes` map the names before to what stands for them now. `prefer`: variable name -> the partial
    device the strategy wants it on. `replicas`: the devices that compute, in replica order; empty without a strategy.
    """

    graph: Graph
    tensors: TensorMap
    nodes: Mapping[str, Node]
    prefer: Mapping[str, str] = field(default_factory=dict)
    replicas: tuple[str, ...] = ()


def strategy_of(node: Node) -> tuple[AttrValue, ...]:
    """The strategy attribute of a training step's node; empty for any other node."""
    found = node.attrs.get("strategy", ())
    return found if isinstance(found, tuple) else ()
