"""The graph that the passes work on: a copy of the user's, edited in one forward walk a pass.

A rule sees each node after its inputs have been replaced by what stands for them now, and may replace it by other
tensors, turn it into another op, or leave it. When the walk is over, what nothing needs any more is gone. So a pass
costs a constant for each op and edge, and every node that survives keeps its name, its cell and its line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nbflow import op as ops
from nbflow.body import is_stateful, specialise_bodies
from nbflow.device import DeviceSpec
from nbflow.errors import NbflowError
from nbflow.graph import Graph, Node, NodeMap, Tensor
from nbflow.op import Cost
from nbflow.optimize.loops import merge_twins
from nbflow.optimize.places import Places
from nbflow.rewrite import TensorMap, copy_nodes, new_like
from nbflow.spec import TensorSpec

# What comes in; a run that does not need it does not ask for it.
_SOURCES = ("placeholder",)

Leaf = Tensor | Node
Rule = Callable[[Node], None]


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that a pass did: `what` completes the sentence that starts with the node's name."""

    node: str
    op: str
    what: str
    where: str


@dataclass(slots=True)
class Log:
    """What one pass did. `gone` and `made` are the nodes that a run has no more, and those it has instead; of a node
    that became another op its older form is gone and the newer one made."""

    changes: list[Change] = field(default_factory=list)
    gone: list[Form] = field(default_factory=list)
    made: list[Form] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Form:
    """A node as it was: what its cost is computed from, when somebody asks."""

    node: Node
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    op: str
    attrs: Mapping[str, Any]

    @staticmethod
    def of(node: Node) -> Form:
        specs = tuple(t.spec for t in node.inputs), tuple(t.spec for t in node.outputs)
        return Form(node, *specs, node.op, node.attrs)

    def cost(self) -> Cost:
        try:
            return ops.get(self.op).cost(self.inputs, self.outputs, self.attrs)
        except NbflowError:
            return Cost(0.0, 0.0)


class Draft:
    """A copy of `graph` in the making. `wanted`: what is fetched; these values, and nodes fetched as such, stay.

    `fate` says of each node that is gone what became of it. `stands_for` finds what stands for a tensor of `graph`.
    """

    def __init__(self, graph: Graph, wanted: Sequence[Leaf]) -> None:
        self.graph = new_like(graph)
        self.fate: dict[str, str] = {}
        self.log = Log()
        self._tensors: TensorMap = {}
        self._nodes: dict[str, Node] = {}
        self._moved: dict[Tensor, Tensor] = {}
        self._followed: dict[Node, Node] = {}  # a node that is gone -> what runs in its place
        copy_nodes(graph.nodes.values(), self.graph, self._tensors, self._nodes)
        self._settle_bodies()
        self._refined: set[Node] = set()
        self._order: dict[str, Node] = self.graph.nodes
        self._changed = False  # in this walk: until then nothing of it need be settled
        self._wanted = [self.node_for(x) if isinstance(x, Node) else self.stands_for(x) for x in wanted]
        self._held = {x.name for x in self._wanted if isinstance(x, Node)}
        self.places = Places(self.graph.nodes.values())
        # What no fetch needs when the passes begin is there for a reason that they do not know.
        reached = self._reached([x if isinstance(x, Node) else x.node for x in self._wanted])
        self._also = [n for n in self.graph.nodes.values() if n not in reached and n.op not in _SOURCES]

    def _settle_bodies(self) -> None:
        """What every run needs, whatever the passes: bodies with the shapes that come in, and each loop once."""
        specialise_bodies(self.graph)
        for (name, index), tensor in merge_twins(self.graph).items():
            self._moved[self._tensors[(name, index)]] = tensor
            self._followed[self._nodes[name]] = tensor.node
            self.fate[name] = f"runs as {tensor.node.name}, which gives what its gradient needs too"

    # --- asking --------------------------------------------------------------------------------------------------

    def _copy_of(self, tensor: Tensor) -> Tensor:
        return self._tensors[(tensor.node.name, tensor.index)]

    def now(self, tensor: Tensor) -> Tensor:
        """What stands for a tensor of the draft."""
        found = tensor
        while found in self._moved:
            found = self._moved[found]
        while tensor in self._moved:  # so that the next look is short
            self._moved[tensor], tensor = found, self._moved[tensor]
        return found

    def stands_for(self, tensor: Tensor) -> Tensor:
        """What stands for a tensor of the graph that the draft was made from."""
        return self.now(self._copy_of(tensor))

    def node_for(self, node: Node) -> Node:
        """What runs in place of a node of the graph that the draft was made from."""
        return self._follow(self._nodes[node.name])

    def _follow(self, node: Node) -> Node:
        while node in self._followed:
            node = self._followed[node]
        return node

    @property
    def fetched(self) -> list[Tensor]:
        """The tensors that are fetched, as they are now."""
        return [self.now(x) for x in self._wanted if isinstance(x, Tensor)]

    def is_held(self, node: Node) -> bool:
        """True when `node` is fetched as an op, whatever its values."""
        return node.name in self._held

    def may_go(self, node: Node) -> bool:
        """True when nothing but the values of its outputs ties anybody to `node`."""
        return not (node.control_inputs or self.is_held(node) or is_stateful(node))

    def may_stand(self, tensor: Tensor, node: Node) -> bool:
        """True when `tensor`, where it is, can take the place of what `node` computes."""
        return self.may_go(node) and self.places.of(node) <= self.places.of(tensor.node)

    # --- changing ------------------------------------------------------------------------------------------------

    def walk(self, rule: Rule) -> None:
        """One pass: `rule` for each node, inputs first; then nodes that nothing needs go."""
        self._order = {}
        self._refined = set()
        self._changed = False
        for node in self.graph.nodes.values():
            if self._changed:
                self._settle(node)
            rule(node)
            self._order.setdefault(node.name, node)
        if self._changed:
            self._sweep()

    def replace(self, node: Node, by: Sequence[Tensor], what: str) -> None:
        """From here on `by` are the outputs of `node`, which is gone unless somebody holds it. Callers ask `may_go`
        or `may_stand` first."""
        for old, new in zip(node.outputs, by, strict=True):
            self._moved[old] = new
        self._followed[node] = by[0].node
        self._note(node, what)

    def become(self, node: Node, op: str, inputs: Sequence[Tensor], attrs: Mapping[str, Any], what: str) -> bool:
        """Makes `node` another op with the same name and outputs. False, and nothing changes, when that op would not
        take such inputs."""
        definition = ops.get(op)
        try:
            specs = definition.infer([t.spec for t in inputs], attrs)
        except NbflowError:
            return False
        self.log.gone.append(Form.of(node))
        self._note(node, what)
        node.op, node.inputs, node.attrs = op, tuple(inputs), dict(attrs)
        self._respec(node, specs)
        self.log.made.append(Form.of(node))
        return True

    def make(self, like: Node, op: str, inputs: Sequence[Tensor], attrs: Mapping[str, Any], suffix: str) -> Tensor:
        """A new node with one output, before the one that the rule sees; of the same cell, line and device as
        `like`, under its name and `suffix`."""
        specs = ops.get(op).infer([t.spec for t in inputs], attrs)
        name, number = f"{like.name}/{suffix}", 0
        while self.graph.nodes.get(name) is not None or self._order.get(name) is not None:
            number += 1
            name = f"{like.name}/{suffix}.{number}"
        made = Node(
            self.graph,
            name,
            op,
            tuple(inputs),
            (),
            dict(attrs),
            specs,
            device=like.device,
            colocate=like.colocate,
            owner=like.owner,
            line=like.line,
            auto_named=True,
        )
        self._changed = True
        self.places.add(made)
        self._order[name] = made
        self.log.made.append(Form.of(made))
        return made.outputs[0]

    def wrap(
        self,
        node: Node,
        inputs: Sequence[Tensor],
        attrs: Mapping[str, Any],
        then: tuple[str, Mapping[str, Any], str],
        what: str,
    ) -> None:
        """`node` with other inputs and attributes, and after it an op that gives what `node` gave: `then` is its name,
        attributes and suffix. Callers ask `may_go` first."""
        (old,) = node.outputs
        specs = node.definition.infer([t.spec for t in inputs], attrs)
        self.log.gone.append(Form.of(node))
        self._note(node, what)
        node.inputs, node.attrs = tuple(inputs), dict(attrs)
        node.outputs = (Tensor(node, 0, specs[0]),)
        self.log.made.append(Form.of(node))
        self._order[node.name] = node
        op, more, suffix = then
        self._moved[old] = self.make(node, op, node.outputs, more, suffix)

    def take(self, inner: Draft, name: str) -> None:
        """Takes over what was done in a body of the node `name`, as done to `name/…`."""
        self.log.gone += inner.log.gone
        self.log.made += inner.log.made
        self.log.changes += [replace(c, node=f"{name}/{c.node}") for c in inner.log.changes]
        self.fate.update({f"{name}/{node}": what for node, what in inner.fate.items()})

    def _note(self, node: Node, what: str) -> None:
        self._changed = True
        self.log.changes.append(Change(node.name, node.op, what, node.where))
        self.fate[node.name] = what

    def _settle(self, node: Node) -> None:
        """Gives a node what stands for its inputs, and a better shape where they have one."""
        refined = False
        moved = False
        for tensor in node.inputs:
            now = self.now(tensor) if tensor in self._moved else tensor
            moved = moved or now is not tensor
            refined = refined or now.node in self._refined or (now is not tensor and now.spec != tensor.spec)
        if moved:
            node.inputs = tuple(self.now(t) for t in node.inputs)
        if node.control_inputs and self._followed:
            node.control_inputs = tuple(dict.fromkeys(self._follow(c) for c in node.control_inputs))
        if refined:
            try:
                specs = node.definition.infer([t.spec for t in node.inputs], node.attrs)
            except NbflowError as error:
                raise type(error)(f"{node.op} {node.name!r}: {error.message}", where=node.where) from None
            self._respec(node, specs)

    def _respec(self, node: Node, specs: Sequence[TensorSpec]) -> None:
        for tensor, spec in zip(node.outputs, specs, strict=True):
            if tensor.spec != spec:
                tensor.spec = spec
                self._refined.add(node)

    def _reached(self, roots: Iterable[Node]) -> set[Node]:
        found = set(roots)
        todo = list(found)
        while todo:
            node = todo.pop()
            for before in (*(t.node for t in node.inputs), *node.control_inputs):
                if before not in found:
                    found.add(before)
                    todo.append(before)
        return found

    def _sweep(self) -> None:
        roots = [x if isinstance(x, Node) else self.now(x).node for x in self._wanted]
        reached = self._reached([*roots, *self._also])
        nodes = NodeMap()
        gone: dict[str, Node] = {}
        for name, node in self._order.items():
            if node in reached:
                nodes[name] = node
            else:
                gone[name] = node
                self.log.gone.append(Form.of(node))
                self.fate.setdefault(name, "nothing needs it any more")
        if gone:
            for node in self._order.values():  # also those that are gone: others may be beside them in turn
                if node.colocate:
                    self._colocate(node, gone)
        self.graph.nodes = nodes

    def _colocate(self, node: Node, gone: Mapping[str, Node]) -> None:
        """Who ran beside an op that is gone runs beside what stands for it, or else where that op was asked to."""
        names: dict[str, None] = {}
        for name in node.colocate:
            lost = gone.get(name)
            stands = None if lost is None else self._follow(lost)
            if lost is None:
                names[name] = None
            elif stands is not lost and stands is not node:
                names[stands.name] = None  # type: ignore[union-attr]  # lost is a node, so this is one
            else:
                names.update(dict.fromkeys(n for n in lost.colocate if n != node.name))
                if node.device == DeviceSpec():
                    node.device = lost.device
        node.colocate = tuple(names)
