"""What a graph is made of: nodes, each one op, their tensors, and the ways through them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from nbflow import op as ops
from nbflow.device import DeviceSpec
from nbflow.errors import GraphError
from nbflow.operators import Operators
from nbflow.spec import Shape, TensorSpec

if TYPE_CHECKING:
    from nbflow.graph import Graph


@dataclass(frozen=True, slots=True)
class Owner:
    """Who made a node: a notebook cell or a script. `label` is for people (`In[3]`, `train.py`)."""

    id: str
    label: str


SCRIPT = Owner("script", os.path.basename(sys.argv[0]) if sys.argv and sys.argv[0] else "script")


class Node:
    """One op in the graph. Made by `Graph.add`, and changed only when its owner's cell runs again."""

    __slots__ = (
        "attrs",
        "auto_named",
        "colocate",
        "control_inputs",
        "device",
        "graph",
        "inputs",
        "line",
        "name",
        "op",
        "outputs",
        "owner",
        "stale",
    )

    def __init__(
        self,
        graph: Graph,
        name: str,
        op: str,
        inputs: tuple[Tensor, ...],
        control_inputs: tuple[Node, ...],
        attrs: dict[str, Any],
        specs: Sequence[TensorSpec],
        *,
        device: DeviceSpec,
        colocate: tuple[str, ...],
        owner: Owner,
        line: int,
        auto_named: bool,
    ) -> None:
        self.graph = graph
        self.name = name
        self.op = op
        self.inputs = inputs
        self.control_inputs = control_inputs
        self.attrs = attrs
        self.device = device
        self.colocate = colocate
        self.owner = owner
        self.line = line
        self.auto_named = auto_named
        self.stale = ""
        self.outputs = tuple(Tensor(self, i, spec) for i, spec in enumerate(specs))

    @property
    def cell(self) -> str:
        """Who made this node, for people: `In[3]`."""
        return self.owner.label

    @property
    def where(self) -> str:
        """`In[3], line 2`."""
        return f"{self.owner.label}, line {self.line}" if self.line else self.owner.label

    @property
    def definition(self) -> ops.OpDef:
        return ops.get(self.op)

    def __repr__(self) -> str:
        return f"<Node {self.name} = {self.op}({', '.join(t.name for t in self.inputs)})>"


class Tensor(Operators):
    """One output of a node: what will be computed, not a value. Hashes and compares by identity in dicts and sets.

    `==` builds an elementwise comparison, as in numpy; use `is` to ask whether two names mean one tensor.
    """

    __slots__ = ("index", "node", "spec")

    def __init__(self, node: Node, index: int, spec: TensorSpec) -> None:
        self.node = node
        self.index = index
        self.spec = spec

    @property
    def name(self) -> str:
        """The node's name; with `:index` for outputs after the first."""
        return self.node.name if self.index == 0 else f"{self.node.name}:{self.index}"

    @property
    def shape(self) -> Shape:
        return self.spec.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.spec.dtype

    @property
    def ndim(self) -> int | None:
        return self.spec.rank

    @property
    def device(self) -> str:
        """The device asked for, possibly partial or empty. `nf.placement` tells the actual one."""
        return str(self.node.device)

    @property
    def graph(self) -> Graph:
        return self.node.graph

    def __repr__(self) -> str:
        return f"<Tensor {self.name} {self.spec} from {self.node.where}>"

    def __pos__(self) -> Tensor:
        return self

    def __bool__(self) -> bool:
        raise TypeError(
            f"{self.name} is a tensor in a graph and has no truth value yet; "
            "use nf.cond or nf.where, or nf.run(tensor) for its value"
        )

    def __iter__(self) -> Iterator[Tensor]:
        if not self.shape or self.shape[0] is None:
            raise TypeError(f"cannot iterate over {self!r}: its first dimension is unknown")
        return (self[i] for i in range(self.shape[0]))

    def __len__(self) -> int:
        if not self.shape or self.shape[0] is None:
            raise TypeError(f"{self!r} has no known length")
        return self.shape[0]


class ToTensor(Protocol):
    """Something that stands for a tensor, such as a Variable."""

    def to_tensor(self) -> Tensor: ...


class NodeMap(dict[str, Node]):
    """A graph's nodes by name, in the order they were made. Iterating gives the nodes; `keys()` gives the names."""

    def __init__(self) -> None:
        super().__init__()
        # Scope -> the names and scopes that ever stood right under it: whether a scope is taken is asked for every
        # unnamed layer, and looking through all names each time would make building quadratic.
        self.under: dict[str, set[str]] = {}

    def __setitem__(self, name: str, node: Node) -> None:
        self.note(name)
        super().__setitem__(name, node)

    def update(self, other: Mapping[str, Node]) -> None:  # type: ignore[override]  # the one form that is used
        for name in other.keys():
            self.note(name)
        super().update(other)

    def note(self, name: str) -> None:
        """Takes note of the scopes of `name`, which is made under it or is about to be."""
        end = name.rfind("/")
        while end > 0:
            scope = name[:end]
            found = self.under.get(scope)
            if found is not None:
                found.add(name)
                return
            self.under[scope] = {name}
            name, end = scope, scope.rfind("/")

    def __iter__(self) -> Iterator[Node]:  # type: ignore[override]  # what people loop over
        return iter(self.values())

    def __contains__(self, item: object) -> bool:
        return super().__contains__(item.name if isinstance(item, Node) else item)


def as_node(value: Node | Tensor | ToTensor) -> Node:
    """The node behind a node, tensor or variable. Raises GraphError for anything else."""
    if isinstance(value, Node):
        return value
    if isinstance(value, Tensor):
        return value.node
    convert = getattr(value, "to_tensor", None)
    if convert is None:
        raise GraphError(f"not an op or a tensor: {value!r}")
    node: Node = convert().node
    return node


def topological(nodes: Iterable[Node]) -> list[Node]:
    """`nodes` with inputs before consumers, otherwise in the order given (so: stable). Raises GraphError on a cycle."""
    members = {id(n): n for n in nodes}
    state: dict[int, int] = {}  # 1: open, 2: done
    order: list[Node] = []
    for root in members.values():
        stack = [(root, False)]
        while stack:
            node, leaving = stack.pop()
            if leaving:
                state[id(node)] = 2
                order.append(node)
                continue
            seen = state.get(id(node))
            if seen == 2:
                continue
            if seen == 1:
                raise GraphError(f"the graph has a cycle through {node.name!r}", where=node.where)
            state[id(node)] = 1
            stack.append((node, True))
            before = [t.node for t in node.inputs] + list(node.control_inputs)
            for other in reversed(before):
                if id(other) in members and state.get(id(other)) != 2:
                    if state.get(id(other)) == 1:
                        raise GraphError(f"the graph has a cycle through {other.name!r}", where=other.where)
                    stack.append((other, False))
    return order


def ancestors(targets: Iterable[Node], stop: frozenset[str] | set[str] = frozenset()) -> list[Node]:
    """`targets` and all they depend on, topologically sorted; not looking behind nodes named in `stop`."""
    found: dict[str, Node] = {}
    todo = list(targets)
    while todo:
        node = todo.pop()
        if node.name in found:
            continue
        found[node.name] = node
        if node.name not in stop:
            todo.extend(t.node for t in node.inputs)
            todo.extend(node.control_inputs)
    return topological(found[name] for name in sorted(found, key=lambda n: (n not in stop, n)))
