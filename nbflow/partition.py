"""One part a device: its nodes in a global order, with one Send/Recv pair per (tensor, destination).

Three kinds of edges are kept: data, control (a Send/Recv of nothing when it crosses devices), and *state order*: within
a step a read of a variable comes before its updates unless the graph says that it comes after one, and updates follow
each other in the order in which they were made. Whoever looks at what was read without copying it is done before the
update; where that is impossible the read is copied.

The body of a loop or branch is cut like a graph. The device of the loop is its *home*: it holds the carried values and
decides whether there is another iteration; other devices that have ops of the body run their parts of it as often as
the home tells them (Abadi et al., "TensorFlow", OSDI 2016, section 3.4, with a home instead of replicated control
nodes). Captured values are given to each device once, when the loop starts.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nbflow.body import ARGUMENT, Body, bodies_of, leading, writes_state
from nbflow.device import DeviceSpec
from nbflow.errors import GraphError
from nbflow.graph import Graph, Node
from nbflow.placement import Placement

# A control edge that crosses devices travels as output -1 of its node.
CONTROL = -1


@dataclass(eq=False, slots=True)
class Item:
    """One thing a device does. `kind`: node, send, recv, or remote (a part of the bodies of another device's node).

    `value` is (node name, output index) for send and recv. `after`: items of the same part that come first; a recv
    comes after its send, in another part, by arrival. `copies`: outputs that must not share memory with state.
    `bodies`: attribute -> this device's part of that body. `given`: which inputs of the node it takes, by position.
    `remotes`: for a home, the devices that run parts beside it. `compress`: for send and recv, the dtype on the way
    (bfloat16 or float16) where it is not the tensor's own.
    """

    kind: str
    node: Node
    device: DeviceSpec
    value: tuple[str, int] = ("", 0)
    key: str = ""
    peer: DeviceSpec = field(default_factory=DeviceSpec)
    after: dict[Item, None] = field(default_factory=dict)
    copies: bool = False
    bodies: Mapping[str, Part] = field(default_factory=dict)
    given: tuple[int, ...] = ()
    remotes: tuple[DeviceSpec, ...] = ()
    compress: str = ""


@dataclass(slots=True)
class Part:
    """What one device does, in an order that is consistent over all parts. `body`: what it is a part of, if not of a
    graph."""

    device: DeviceSpec
    items: list[Item]
    body: Body | None = None

    @property
    def arguments(self) -> set[int]:
        """The numbers of the arguments of the body that this part uses."""
        return {i.node.attrs["index"] for i in self.items if i.node.op == ARGUMENT and i.kind == "node"}


def partition(graph: Graph, placement: Placement, fetched: frozenset[tuple[str, int]] = frozenset()) -> list[Part]:
    """Cuts a placed graph. Parts are in the order of their first item. `fetched`: (node name, output index) of the
    values that are looked at when the step is over."""
    return list(_Builder(graph, placement, fetched).parts().values())


@dataclass(frozen=True, slots=True)
class _Inside:
    """Where a body is cut: the name of its node, the device of that, and how many of the arguments live only there."""

    body: Body
    prefix: str
    home: DeviceSpec
    own: int


class _Builder:
    def __init__(
        self,
        graph: Graph,
        placement: Placement,
        fetched: frozenset[tuple[str, int]],
        inside: _Inside | None = None,
    ) -> None:
        self.fetched = fetched
        self.graph = graph
        self.placement = placement
        self.inside = inside
        self.prefix = "" if inside is None else inside.prefix
        # A home and its remotes, for each of them: they run at the same time.
        self.together: dict[Item, list[Item]] = {}
        self.handles: list[Item] = []  # items that give a state handle
        self.arguments: dict[tuple[str, DeviceSpec], Item] = {}
        self.items: list[Item] = []
        self.of_node: dict[str, Item] = {}
        self.recvs: dict[tuple[str, int, DeviceSpec], Item] = {}
        self.sends: dict[tuple[str, int, DeviceSpec], Item] = {}
        self.followers: dict[Item, dict[Item, None]] = {}

    def parts(self) -> dict[DeviceSpec, Part]:
        self.build()
        if self.inside is not None:
            for tensor in self.inside.body.outputs:
                self.source(tensor.node, tensor.index, self.inside.home)
        self.order_state()
        found: dict[DeviceSpec, Part] = {}
        body = None if self.inside is None else self.inside.body
        for item in self.ordered():
            found.setdefault(item.device, Part(item.device, [], body)).items.append(item)
        return found

    def build(self) -> None:
        for node in self.graph.nodes.values():
            if node.op == ARGUMENT:
                continue  # there when it is used
            item = Item("node", node, self.placement[self.prefix + node.name].device)
            if bodies_of(node):
                self.add_bodies(item)
            else:
                item.given = tuple(range(len(node.inputs)))
            self.connect(item)
            if any(t.spec.resource for t in node.outputs):
                self.handles.append(item)

    def connect(self, item: Item) -> None:
        for position in item.given:
            tensor = item.node.inputs[position]
            self.edge(self.source(tensor.node, tensor.index, item.device), item)
        if item.kind == "node":
            for control in item.node.control_inputs:
                self.edge(self.source(control, CONTROL, item.device), item)
            self.of_node[item.node.name] = item
        self.items.append(item)

    def add_bodies(self, home: Item) -> None:
        """Cuts the bodies of a node, and adds an item on each other device that has a part of them."""
        node, first = home.node, leading(home.node)
        prefix = f"{self.prefix}{node.name}/"
        own = node.attrs["carried"] + node.attrs["scanned"] if node.op == "loop" else 0
        cut: dict[str, dict[DeviceSpec, Part]] = {}
        for key, body in bodies_of(node).items():
            fetched = frozenset((t.node.name, t.index) for t in body.outputs)
            cut[key] = _Builder(body.graph, self.placement, fetched, _Inside(body, prefix, home.device, own)).parts()
        devices = dict.fromkeys(d for parts in cut.values() for d in parts if d != home.device)
        home.bodies = {key: parts[home.device] for key, parts in cut.items() if home.device in parts}
        home.remotes = tuple(devices)
        used = {i for part in home.bodies.values() for i in part.arguments}
        home.given = (*range(first + own), *(first + i for i in sorted(used) if i >= own))
        group = [home]
        for device in devices:
            bodies = {key: parts[device] for key, parts in cut.items() if device in parts}
            given = tuple(first + i for i in sorted({i for p in bodies.values() for i in p.arguments}))
            remote = Item("remote", node, device, peer=home.device, bodies=bodies, given=given)
            self.connect(remote)
            group.append(remote)
        if devices:
            self.together.update((item, group) for item in group)

    def edge(self, before: Item, after: Item) -> None:
        after.after[before] = None
        self.followers.setdefault(before, {})[after] = None

    def source(self, node: Node, index: int, device: DeviceSpec) -> Item:
        """The item on `device` that provides an output of `node`: the node itself, or a recv."""
        producer = self.argument(node, device) if node.op == ARGUMENT else self.of_node[node.name]
        if producer.device == device:
            return producer
        found = self.recvs.get((node.name, index, device))
        if found is not None:
            return found
        if index != CONTROL and node.outputs[index].spec.resource:
            raise GraphError(f"the state {node.name!r} cannot move to {device}", where=node.where)
        value = (node.name, index)
        key = f"{producer.device};{self.prefix}{node.name}:{index};{device}"
        compress = str(node.attrs["dtype"]) if node.op == "compressed" and index != CONTROL else ""
        send = Item("send", node, producer.device, value, key, device, compress=compress)
        self.edge(producer, send)
        recv = Item("recv", node, device, value, key, producer.device, compress=compress)
        # The edge between the two orders them globally; `compile` leaves it out of the receiving part.
        self.edge(send, recv)
        self.items += [send, recv]
        self.recvs[(node.name, index, device)] = recv
        self.sends[(node.name, index, device)] = send
        return recv

    def argument(self, node: Node, device: DeviceSpec) -> Item:
        """The item that gives an argument of the body: at home, or for captured ones on any device."""
        assert self.inside is not None  # arguments are found in bodies
        if node.attrs["index"] < self.inside.own:
            device = self.inside.home
        found = self.arguments.get((node.name, device))
        if found is None:
            found = self.arguments[node.name, device] = Item("node", node, device)
            self.items.append(found)
            if node.outputs[0].spec.resource:
                self.handles.append(found)
        return found

    # --- state order ---------------------------------------------------------------------------------------------

    def order_state(self) -> None:
        """First which value a read sees, which must not depend on the placement; then that nothing looks at memory
        that has changed since."""
        touched = []
        for handle in self.handles:
            users = [u for u in self.followers.get(handle, {}) if u.kind in ("node", "remote")]
            writers = [u for u in users if _writes(u, handle.node)]
            reads = [u for u in users if u not in writers]
            if writers:
                touched.append((reads, writers))
        for reads, writers in touched:
            self.order_writers(writers)
            for read in reads:
                for writer in writers:
                    if not self.reaches(writer, read):
                        self.edge(read, writer)
        for reads, writers in touched:
            for read in reads:
                if read.node.op == "read_variable":
                    self.protect(read, writers)

    def order_writers(self, writers: Sequence[Item]) -> None:
        """Updates of one variable that the graph leaves unordered happen in the order in which they were made."""
        for first, second in itertools.pairwise(writers):
            if not self.reaches(second, first):
                self.edge(first, second)

    def protect(self, read: Item, writers: Sequence[Item]) -> None:
        """Whoever looks at the memory of a read does so before it changes; else the read is copied."""
        for writer in writers:
            if self.reaches(writer, read):
                continue
            if self.is_fetched(read):
                read.copies = True
            for reader in self.alias_readers(read):
                if reader is writer:
                    # A loop looks at what it was given as long as it runs.
                    read.copies = read.copies or bool(reader.bodies)
                    continue
                if self.is_fetched(reader) or self.reaches(writer, reader):
                    read.copies = True
                else:
                    self.edge(reader, writer)

    def is_fetched(self, item: Item) -> bool:
        node = item.node
        alias = node.op == "read_variable" or node.definition.alias
        return item.kind == "node" and alias and any((node.name, t.index) in self.fetched for t in node.outputs)

    def alias_readers(self, item: Item) -> list[Item]:
        """Items of the same device that may look at the memory of `item`'s output."""
        found: dict[Item, None] = {}
        todo = [item]
        while todo:
            for user in self.followers.get(todo.pop(), {}):
                if user.device != item.device or user in found or user.kind == "recv":
                    continue
                found[user] = None
                if user.kind == "node" and user.node.definition.alias:
                    todo.append(user)
        return list(found)

    def reaches(self, start: Item, goal: Item) -> bool:
        seen = {start}
        todo = [start]
        while todo:
            item = todo.pop()
            if item is goal:
                return True
            for user in [*self.followers.get(item, {}), *self.together.get(item, ())]:
                if user not in seen:
                    seen.add(user)
                    todo.append(user)
        return False

    def gather_remotes(self) -> None:
        """A home waits for what its remotes wait for, so that all of them can begin when it does: no device is inside
        a loop while another one still needs something of it from before."""
        for group in {id(g): g for g in self.together.values()}.values():
            for remote in group[1:]:
                for before in list(remote.after):
                    self.edge(before, group[0])

    # --- order ---------------------------------------------------------------------------------------------------

    def ordered(self) -> list[Item]:
        """All items, each after what it depends on; sends as early, and everything else as written."""
        self.gather_remotes()
        position = {item: (item.kind != "send", i) for i, item in enumerate(self.items)}
        waits = {item: len(item.after) for item in self.items}
        ready = [(position[i], n, i) for n, i in enumerate(self.items) if not i.after and i.kind != "remote"]
        heapq.heapify(ready)
        numbers = {item: n for n, item in enumerate(self.items)}
        order: list[Item] = []
        while ready:
            _, _, first = heapq.heappop(ready)
            for item in self.together.get(first, (first,)):
                order.append(item)
                for user in self.followers.get(item, {}):
                    waits[user] -= 1
                    if waits[user] == 0 and user.kind != "remote":
                        heapq.heappush(ready, (position[user], numbers[user], user))
        if len(order) < len(self.items):
            stuck = next(i for i in self.items if waits[i] > 0)
            raise GraphError(f"the parts wait for each other around {stuck.node.name!r}", where=stuck.node.where)
        return order


def _writes(item: Item, handle: Node) -> bool:
    positions = [i for i in item.given if item.node.inputs[i].node is handle]
    return any(writes_state(item.node, i) for i in positions)


def check_partition(parts: Sequence[Part], graph: Graph, placement: Placement, prefix: str = "") -> None:
    """Raises GraphError unless the parts are a correct cut of `graph`.

    Rules: every node is in exactly the part of its device; each (tensor, destination) has one Send and one Recv with
    one key, on the right devices; whatever an item needs stands before it in its own part; no state handle travels.
    """
    seen: dict[str, DeviceSpec] = {}
    sends: dict[str, Item] = {}
    recvs: dict[str, Item] = {}
    for part in parts:
        before: set[Item] = set()
        for item in part.items:
            _check_item(item, part, before, placement, prefix)
            before.add(item)
            if item.kind == "node" and item.node.op != ARGUMENT:
                if item.node.name in seen:
                    raise GraphError(f"one part a node: {item.node.name!r} is in two", where=item.node.where)
                seen[item.node.name] = part.device
            elif item.kind in ("send", "recv"):
                table = sends if item.kind == "send" else recvs
                if item.key in table:
                    raise GraphError(f"one {item.kind} per tensor and destination: {item.key} has two")
                table[item.key] = item
    _check_bodies(parts, placement, prefix)
    missing = {n.name for n in graph.nodes.values() if n.op != ARGUMENT} - set(seen)
    if missing:
        raise GraphError(f"every node is in a part: {sorted(missing)[0]!r} is not")
    if set(sends) != set(recvs):
        raise GraphError(f"sends and recvs pair up: {sorted(set(sends) ^ set(recvs))[0]} does not")
    for key, send in sends.items():
        if send.peer != recvs[key].device or recvs[key].peer != send.device:
            raise GraphError(f"a send and its recv name each other's device: {key} does not")
        if send.compress != recvs[key].compress:
            raise GraphError(f"a send and its recv agree on what travels: {key} does not")


def _check_bodies(parts: Sequence[Part], placement: Placement, prefix: str) -> None:
    found: dict[tuple[str, str], list[Part]] = {}
    nodes: dict[str, Node] = {}
    for item in (i for part in parts for i in part.items if i.bodies):
        nodes[item.node.name] = item.node
        for key, inner in item.bodies.items():
            found.setdefault((item.node.name, key), []).append(inner)
    for (name, key), inner_parts in found.items():
        body: Body = nodes[name].attrs[key]
        check_partition(inner_parts, body.graph, placement, f"{prefix}{name}/")


def _check_item(item: Item, part: Part, before: set[Item], placement: Placement, prefix: str) -> None:
    placed = item.kind == "node" and item.node.op != ARGUMENT
    if item.device != part.device or (placed and placement[prefix + item.node.name].device != part.device):
        raise GraphError(f"an item runs where it was placed: {item.node.name!r} does not", where=item.node.where)
    for other in item.after:
        if other.device == part.device and other not in before:
            raise GraphError(
                f"an item comes after what it needs: {item.node.name!r} comes before {other.node.name!r}",
                where=item.node.where,
            )
    if item.kind in ("node", "remote"):
        made = {id(other.node) for other in item.after if other.kind == "node"}
        received = {other.value for other in item.after if other.kind == "recv"}
        for tensor in (item.node.inputs[i] for i in item.given):
            if id(tensor.node) not in made and (tensor.node.name, tensor.index) not in received:
                raise GraphError(f"inputs are at hand: {tensor.name} is not, for {item.node.name!r}")


def moved(parts: Sequence[Part]) -> Mapping[str, int]:
    """How many tensors each (source → destination) pair of devices carries, for people."""
    counts: dict[str, int] = {}
    for part in parts:
        for item in part.items:
            if item.kind == "send":
                pair = f"{item.device} → {item.peer}"
                counts[pair] = counts.get(pair, 0) + 1
    return counts
