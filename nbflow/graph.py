"""The graph: named nodes, and the scopes under which cells make them.

A `Graph` maps names to `Node`s. A node's name is its scope and its own name, joined by '/'. A name that the user gave
is never changed: using it twice is an error. A node without a given name takes its op's, numbered within the scope
(`add`, `add.1`). Who made which node, and what happens when a cell runs again, is `owner.py`.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from nbflow import op as ops
from nbflow.device import DeviceSpec, parse_device
from nbflow.digest import graph_digest
from nbflow.errors import GraphError, NameInUseError, NbflowError
from nbflow.node import SCRIPT, Node, NodeMap, Owner, Tensor, ToTensor, ancestors, as_node, topological
from nbflow.op import Attrs
from nbflow.spec import TensorSpec, require_values

__all__ = [
    "SCRIPT",
    "Graph",
    "Node",
    "NodeMap",
    "Owner",
    "Tensor",
    "ToTensor",
    "ancestors",
    "as_node",
    "get_graph",
    "graph_for",
    "topological",
]

# Filled by `nbflow.codec`: how a graph becomes bytes and back.
PROTO: dict[str, Callable[..., Any]] = {}

T = TypeVar("T")
ANYWHERE = DeviceSpec()


class Graph:
    """Named nodes, in the order they were made, and the scopes under which the next ones are made."""

    def __init__(self) -> None:
        self.nodes = NodeMap()
        self.seed = 0
        self.version = 0  # grows when existing nodes change (a cell ran again), not when nodes are added
        self.owner = SCRIPT
        # How often a variable of this name was redefined so that its value could not be kept; part of the key under
        # which workers hold its state, so an old value can never be taken for a new one. Not part of the digest.
        self.generations: dict[str, int] = {}
        # The highest generation dealt so far, where it is not the current one: a cell's failed run gives its own back.
        self._newest: dict[str, int] = {}
        # While a cell runs: what it has made so far, and who wants to know. `owner.py` merges it, or drops it.
        self.pending: dict[str, Node] | None = None
        self.on_add: Callable[[Node], None] | None = None
        # The cells whose ops the running one replaces: itself, and with `takes_over` those whose names it uses.
        self.replacing: set[str] = set()
        self.takes_over = False
        # Cell id -> the nodes of other cells whose op, attributes and edges its own ops were derived from (`read`).
        self.reads: dict[str, dict[str, Node]] = {}
        self.pending_reads: dict[str, Node] = {}
        # The graph in which this is the body of a loop or branch, and what stands here for a tensor of it (body.py).
        self.outer: Graph | None = None
        self.capture: Callable[[Tensor], Tensor] | None = None
        self.awaited: dict[str, Node] = {}  # nodes of the outer graph that nodes here run after
        self._scopes: list[str] = []
        self._devices: list[DeviceSpec] = []
        self._controls: list[tuple[Node, ...]] = []
        self._colocate: list[tuple[str, ...]] = []
        self._next_number: dict[tuple[str, str], int] = {}
        self._lock = threading.RLock()

    # --- names ---------------------------------------------------------------------------------------------------

    def find(self, name: str) -> Node | None:
        """The node called `name` as the running cell sees it: its own new ones first."""
        if self.pending is not None and name in self.pending:
            return self.pending[name]
        node = self.nodes.get(name)
        if node is not None and self.pending is not None and node.owner.id in self.replacing:
            return None  # the running cell is about to replace it
        return node

    def node(self, name: str) -> Node:
        """The node called `name`. Raises GraphError that lists near names."""
        found = self.find(name)
        if found is None:
            near = sorted(n for n in self.nodes.keys() if name.rsplit("/", 1)[-1] in n)[:5]
            hint = f"; near names: {', '.join(near)}" if near else ""
            raise GraphError(f"the graph has no node called {name!r}{hint}")
        return found

    def scoped(self, name: str) -> str:
        """`name` under the current name scope."""
        return "/".join([*self._scopes, name])

    def unique(self, name: str) -> str:
        """`name` under the current scope, numbered (`name.1`) when it, or a scope of that name, exists already."""
        return self._number(self.scoped(name), scopes=True)

    def _number(self, full: str, *, scopes: bool = False) -> str:
        key = (self.owner.id, full)
        number = self._next_number.get(key, 0)
        while True:
            candidate = full if number == 0 else f"{full}.{number}"
            taken = self.find(candidate) is not None or (scopes and self._has_scope(candidate))
            number += 1
            if not taken:
                self._next_number[key] = number
                return candidate

    def _has_scope(self, scope: str) -> bool:
        return any(self.find(n) is not None or self._has_scope(n) for n in self.nodes.under.get(scope, ()))

    def reserve(self, op: str, name: str | None) -> str:
        """The full name that the next node of `op` will have under `add(reserved=...)`. Raises NameInUseError."""
        if name is None:
            return self._number(self.scoped(op))
        full = self.scoped(name)
        self._check_free(full)
        return full

    def restart_numbers(self) -> None:
        """Numbers of unnamed ops start again; called when a cell starts to run."""
        self._next_number.clear()

    def renew(self, name: str) -> None:
        """State kept under `name` starts anew: a generation that was never used."""
        self._newest[name] = max(self._newest.get(name, 0), self.generations.get(name, 0)) + 1
        self.generations[name] = self._newest[name]

    # --- making nodes --------------------------------------------------------------------------------------------

    def add(
        self,
        op: str,
        inputs: Sequence[Tensor] = (),
        attrs: Mapping[str, Any] | None = None,
        *,
        name: str | None = None,
        control_inputs: Iterable[Node] = (),
        colocate: Iterable[str] = (),
        device: str | DeviceSpec | None = None,
        reserved: str | None = None,
    ) -> Node:
        """Adds one node under the current scopes.

        `name` is under the current name scope; None takes the op's name, numbered. `reserved`: the full name, from
        `reserve`; `name` then only says whether the user gave it. Raises ShapeError or DTypeError
        that name the op, its inputs and the place that made them; NameInUseError; GraphError for inputs from another
        graph or from a cell run that failed.
        """
        with self._lock:
            definition = ops.get(op)
            line = _user_line()
            inputs = [self._own(tensor) for tensor in inputs]
            kept = dict(attrs or {})
            if reserved is not None:
                full = reserved
            elif name is None:
                full = self._number(self.scoped(op))
            else:
                full = self.scoped(name)
                self._check_free(full)
            specs = self._infer(definition, full, inputs, kept, line)
            controls = _merged(self._controls, control_inputs)
            if self.capture is not None:
                self.awaited.update((n.name, n) for n in controls if n.graph is not self)
                controls = tuple(n for n in controls if n.graph is self)
            asked = self._devices[-1] if self._devices else ANYWHERE
            if device is not None:
                asked = asked.merge(parse_device(device))
            node = Node(
                self,
                full,
                op,
                tuple(inputs),
                controls,
                kept,
                specs,
                device=asked,
                colocate=_merged(self._colocate, colocate),
                owner=self.owner,
                line=line,
                auto_named=name is None,
            )
            if self.pending is not None:
                self.pending[full] = node
                self.nodes.note(full)
            else:
                self.nodes[full] = node
            if self.on_add is not None:
                self.on_add(node)
            return node

    def _own(self, tensor: Tensor) -> Tensor:
        """`tensor`, or what stands for it in this body. Raises GraphError."""
        if self.capture is not None and tensor.node.graph is not self:
            return self.capture(tensor)
        self.check_member(tensor.node)
        return tensor

    def sees(self, other: Graph) -> bool:
        """Whether ops of this graph may use tensors of `other`: itself, and what it is a body in."""
        graph: Graph | None = self
        while graph is not None and graph is not other:
            graph = graph.outer
        return graph is other

    @property
    def root(self) -> Graph:
        """The graph that cells own: this one, unless it is the body of a loop or branch."""
        return self if self.outer is None else self.outer.root

    def read(self, nodes: Iterable[Node]) -> None:
        """Says that the running cell makes ops by reading `nodes` (their gradients, their copies).

        Consuming a tensor survives a change of what computes it; having read how it is computed does not. So when
        a cell changes one of `nodes`, the cell that read it is stale as a whole.
        """
        sources = self.reads.setdefault(self.owner.id, {}) if self.pending is None else self.pending_reads
        sources.update((n.name, n) for n in nodes if n.owner.id != self.owner.id)

    def _infer(
        self, definition: ops.OpDef, full: str, inputs: Sequence[Tensor], attrs: Attrs, line: int
    ) -> Sequence[TensorSpec]:
        try:
            if not (definition.stateful or definition.specialise):
                require_values(t.spec for t in inputs)
            return definition.infer([t.spec for t in inputs], attrs)
        except NbflowError as error:
            made = "; ".join(f"{t.name} is {t.spec} from {t.node.where}" for t in inputs)
            where = f"{self.owner.label}, line {line}" if line else self.owner.label
            message = f"{definition.name} {full!r}: {error.message}" + (f" [{made}]" if made else "")
            raise type(error)(message, where=where) from None

    def check_member(self, node: Node) -> None:
        """Raises GraphError when `node` is not, or no longer, in this graph."""
        if self.pending is None and self.nodes.get(node.name) is node:
            return
        if node.graph is not self:
            raise GraphError(f"{node.name!r} belongs to another graph", where=node.where)
        here = (self.pending or {}).get(node.name) or self.nodes.get(node.name)
        if here is not node:
            raise GraphError(
                f"{node.name!r} is no longer in the graph: {node.owner.label} ran again, or failed, after making it; "
                f"run {node.owner.label} again",
                where=node.where,
            )
        if self.pending is not None and node.owner.id in self.replacing and node.name not in self.pending:
            raise GraphError(
                f"{node.name!r} was made when {node.owner.label} ran before, and this run replaces it; "
                "make it anew in this cell, or run the cell before it again",
                where=node.where,
            )

    def _check_free(self, full: str) -> None:
        if not full or full.startswith("/") or full.endswith("/") or "//" in full or any(c in full for c in ":;^\n\t"):
            raise GraphError(f"not a name for an op: {full!r}; leave out ':', ';', '^' and empty parts")
        other = self.find(full)
        if other is None:
            return
        if other.owner.id == self.owner.id:
            raise NameInUseError(f"the name {full!r} is used twice in {other.owner.label}", where=other.where)
        if self.takes_over:
            self.replacing.add(other.owner.id)
            return
        raise NameInUseError(
            f"the name {full!r} is defined by {other.owner.label}; choose another name, or change it there and run "
            f"{other.owner.label} again, or take it over with `%%graph --replace` in this cell's first line",
            where=other.where,
        )

    # --- scopes --------------------------------------------------------------------------------------------------

    @contextmanager
    def name_scope(self, name: str) -> Iterator[str]:
        """Names made inside start with `name/`. Yields the full scope. Entering one scope twice is fine."""
        if not name or name.strip("/") != name or any(c in name for c in ":;^\n\t"):
            raise GraphError(f"not a name for a scope: {name!r}")
        self._scopes.append(name)
        try:
            yield "/".join(self._scopes)
        finally:
            self._scopes.pop()

    @contextmanager
    def absolute_scope(self, name: str) -> Iterator[str]:
        """Like `name_scope`, but `name` is counted from the top. Empty for the top itself."""
        saved = self._scopes
        self._scopes = [name] if name else []
        try:
            yield name
        finally:
            self._scopes = saved

    @contextmanager
    def device(self, spec: str | DeviceSpec | None) -> Iterator[None]:
        """Nodes made inside ask for `spec`, merged into the surrounding one; None forgets the surrounding one."""
        outer = self._devices[-1] if self._devices else DeviceSpec()
        self._devices.append(DeviceSpec() if spec is None else outer.merge(parse_device(spec)))
        try:
            yield
        finally:
            self._devices.pop()

    @contextmanager
    def control_dependencies(self, nodes: Sequence[Node | Tensor | ToTensor] | None) -> Iterator[None]:
        """Nodes made inside run after `nodes`. None forgets the surrounding ones."""
        saved = self._controls
        if nodes is None:
            self._controls = []
        else:
            self._controls = [*saved, tuple(as_node(n) for n in nodes)]
        try:
            yield
        finally:
            self._controls = saved

    @contextmanager
    def colocate_with(self, other: Node | Tensor | ToTensor | None) -> Iterator[None]:
        """Nodes made inside run on the device of `other`. None forgets the surrounding ones."""
        saved = self._colocate
        self._colocate = [] if other is None else [*saved, (as_node(other).name,)]
        try:
            yield
        finally:
            self._colocate = saved

    @contextmanager
    def as_default(self) -> Iterator[Graph]:
        """Makes this graph the one that ops go into, in this thread."""
        stack = _stack()
        stack.append(self)
        try:
            yield self
        finally:
            stack.pop()  # blocks end in the reverse order of their beginnings, and one graph may stand here twice

    # --- the whole -----------------------------------------------------------------------------------------------

    def digest(self) -> str:
        """A SHA-256 hex digest of what the graph computes.

        It covers ops, attributes, edges, requested devices, given names and the seed; not the order of making, the
        cells, or the numbers of unnamed ops. So running all cells again, in whatever earlier order they were edited,
        gives the same digest.
        """
        return graph_digest(topological(self.nodes.values()), self.seed)

    def to_proto(self) -> Any:
        """The graph as a protobuf message (`nbflow.wire.v1.GraphDef`). Raises StaleError."""
        return PROTO["encode"](self)

    @classmethod
    def from_proto(cls, message: Any) -> Graph:
        """A graph from `to_proto()` or its bytes. Raises Rejected for a damaged one."""
        made: Graph = PROTO["decode"](message)
        return made

    def __repr__(self) -> str:
        owners = {n.owner.id for n in self.nodes.values()}
        return f"<Graph of {len(self.nodes)} ops from {len(owners)} cells>"


def _merged(groups: Sequence[tuple[T, ...]], more: Iterable[T]) -> tuple[T, ...]:
    """What the surrounding blocks and the call ask for, each once."""
    if not groups and not more:
        return ()
    return tuple(dict.fromkeys([*(item for group in groups for item in group), *more]))


_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep


def _user_line() -> int:
    """The line, in the user's cell or script, that is building a node; 0 when there is none."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(_HERE) and not name.endswith("contextlib.py"):
            return frame.f_lineno
        frame = frame.f_back
    return 0


_local = threading.local()
_default = Graph()


def _stack() -> list[Graph]:
    if not hasattr(_local, "stack"):
        _local.stack = []
    stack: list[Graph] = _local.stack
    return stack


def get_graph() -> Graph:
    """The graph that ops go into: the innermost `as_default()` of this thread, else the process's own."""
    stack = _stack()
    return stack[-1] if stack else _default


def graph_for(values: Sequence[Node | Tensor]) -> Graph:
    """The graph in which an op on `values` is made: the body that is being built, if it sees them; else theirs."""
    current = get_graph()
    if not values:
        return current
    first = values[0].graph
    if current is first or current.outer is None:
        return first
    return current if all(current.sees(v.graph) for v in values) else first
