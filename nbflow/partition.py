"""One part a device: its nodes in a global order, with one Send/Recv pair per (tensor, destination).

Three kinds of edges are kept: data, control (a Send/Recv of nothing when it crosses devices), and *state order*: within
a step a read of a variable comes before its updates unless the graph says that it comes after one, and updates follow
each other in the order in which they were made. Whoever looks at what was read without copying it is done before the
update; where that is impossible the read is copied.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nbflow.device import DeviceSpec
from nbflow.errors import GraphError
from nbflow.graph import Graph, Node, Tensor
from nbflow.placement import Placement

# A control edge that crosses devices travels as output -1 of its node.
CONTROL = -1


@dataclass(eq=False, slots=True)
class Item:
    """One thing a device does. `kind`: node, send or recv.

    `value` is (node name, output index) for send and recv. `after`: items of the same part that come first; a recv
    comes after its send, in another part, by arrival. `copies`: outputs that must not share memory with state.
    """

    kind: str
    node: Node
    device: DeviceSpec
    value: tuple[str, int] = ("", 0)
    key: str = ""
    peer: DeviceSpec = field(default_factory=DeviceSpec)
    after: dict[Item, None] = field(default_factory=dict)
    copies: bool = False


@dataclass(slots=True)
class Part:
    """What one device does, in an order that is consistent over all parts."""

    device: DeviceSpec
    items: list[Item]


def partition(graph: Graph, placement: Placement, fetched: frozenset[tuple[str, int]] = frozenset()) -> list[Part]:
    """Cuts a placed graph. Parts are in the order of their first item. `fetched`: (node name, output index) of the
    values that are looked at when the step is over."""
    builder = _Builder(graph, placement, fetched)
    builder.build()
    builder.order_state()
    parts: dict[DeviceSpec, Part] = {}
    for item in builder.ordered():
        parts.setdefault(item.device, Part(item.device, [])).items.append(item)
    return list(parts.values())


class _Builder:
    def __init__(self, graph: Graph, placement: Placement, fetched: frozenset[tuple[str, int]]) -> None:
        self.fetched = fetched
        self.graph = graph
        self.placement = placement
        self.items: list[Item] = []
        self.of_node: dict[str, Item] = {}
        self.recvs: dict[tuple[str, int, DeviceSpec], Item] = {}
        self.sends: dict[tuple[str, int, DeviceSpec], Item] = {}
        self.followers: dict[Item, dict[Item, None]] = {}

    def build(self) -> None:
        for node in self.graph.nodes.values():
            device = self.placement[node.name].device
            item = Item("node", node, device)
            for tensor in node.inputs:
                self.edge(self.source(tensor.node, tensor.index, device), item)
            for control in node.control_inputs:
                self.edge(self.source(control, CONTROL, device), item)
            self.items.append(item)
            self.of_node[node.name] = item

    def edge(self, before: Item, after: Item) -> None:
        after.after[before] = None
        self.followers.setdefault(before, {})[after] = None

    def source(self, node: Node, index: int, device: DeviceSpec) -> Item:
        """The item on `device` that provides an output of `node`: the node itself, or a recv."""
        producer = self.of_node[node.name]
        if producer.device == device:
            return producer
        found = self.recvs.get((node.name, index, device))
        if found is not None:
            return found
        if index != CONTROL and node.outputs[index].spec.resource:
            raise GraphError(f"the state {node.name!r} cannot move to {device}", where=node.where)
        value = (node.name, index)
        key = f"{producer.device};{node.name}:{index};{device}"
        send = Item("send", node, producer.device, value, key, device)
        self.edge(producer, send)
        recv = Item("recv", node, device, value, key, producer.device)
        # The edge between the two orders them globally; `compile` leaves it out of the receiving part.
        self.edge(send, recv)
        self.items += [send, recv]
        self.recvs[(node.name, index, device)] = recv
        self.sends[(node.name, index, device)] = send
        return recv

    # --- state order ---------------------------------------------------------------------------------------------

    def order_state(self) -> None:
        """First which value a read sees, which must not depend on the placement; then that nothing looks at memory
        that has changed since."""
        touched = []
        for node in self.graph.nodes.values():
            if node.op == "variable":
                users = [u for u in self.followers.get(self.of_node[node.name], {}) if u.kind == "node"]
                reads = [u for u in users if u.node.op == "read_variable"]
                writers = [u for u in users if u.node.op != "read_variable"]
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
            for user in self.followers.get(item, {}):
                if user not in seen:
                    seen.add(user)
                    todo.append(user)
        return False

    # --- order ---------------------------------------------------------------------------------------------------

    def ordered(self) -> list[Item]:
        """All items, each after what it depends on; sends as early, and everything else as written."""
        position = {item: (item.kind != "send", i) for i, item in enumerate(self.items)}
        waits = {item: len(item.after) for item in self.items}
        ready = [(position[i], n, i) for n, i in enumerate(self.items) if not i.after]
        heapq.heapify(ready)
        numbers = {item: n for n, item in enumerate(self.items)}
        order: list[Item] = []
        while ready:
            _, _, item = heapq.heappop(ready)
            order.append(item)
            for user in self.followers.get(item, {}):
                waits[user] -= 1
                if waits[user] == 0:
                    heapq.heappush(ready, (position[user], numbers[user], user))
        if len(order) < len(self.items):
            stuck = next(i for i in self.items if waits[i] > 0)
            raise GraphError(f"the parts wait for each other around {stuck.node.name!r}", where=stuck.node.where)
        return order


def check_partition(parts: Sequence[Part], graph: Graph, placement: Placement) -> None:
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
            _check_item(item, part, before, placement)
            before.add(item)
            if item.kind == "node":
                if item.node.name in seen:
                    raise GraphError(f"one part a node: {item.node.name!r} is in two", where=item.node.where)
                seen[item.node.name] = part.device
            else:
                table = sends if item.kind == "send" else recvs
                if item.key in table:
                    raise GraphError(f"one {item.kind} per tensor and destination: {item.key} has two")
                table[item.key] = item
    missing = set(graph.nodes.keys()) - set(seen)
    if missing:
        raise GraphError(f"every node is in a part: {sorted(missing)[0]!r} is not")
    if set(sends) != set(recvs):
        raise GraphError(f"sends and recvs pair up: {sorted(set(sends) ^ set(recvs))[0]} does not")
    for key, send in sends.items():
        if send.peer != recvs[key].device or recvs[key].peer != send.device:
            raise GraphError(f"a send and its recv name each other's device: {key} does not")


def _check_item(item: Item, part: Part, before: set[Item], placement: Placement) -> None:
    if item.device != part.device or (item.kind == "node" and placement[item.node.name].device != part.device):
        raise GraphError(f"an item runs where it was placed: {item.node.name!r} does not", where=item.node.where)
    for other in item.after:
        if other.device == part.device and other not in before:
            raise GraphError(
                f"an item comes after what it needs: {item.node.name!r} comes before {other.node.name!r}",
                where=item.node.where,
            )
    if item.kind == "node":
        for tensor in item.node.inputs:
            if not any(_provides(other, tensor) for other in item.after):
                raise GraphError(f"inputs are at hand: {tensor.name} is not, for {item.node.name!r}")


def _provides(item: Item, tensor: Tensor) -> bool:
    if item.kind == "node":
        return item.node is tensor.node
    return item.kind == "recv" and item.value == (tensor.node.name, tensor.index)


def moved(parts: Sequence[Part]) -> Mapping[str, int]:
    """How many tensors each (source → destination) pair of devices carries, for people."""
    counts: dict[str, int] = {}
    for part in parts:
        for item in part.items:
            if item.kind == "send":
                pair = f"{item.device} → {item.peer}"
                counts[pair] = counts.get(pair, 0) + 1
    return counts
