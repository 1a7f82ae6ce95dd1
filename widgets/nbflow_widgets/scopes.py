"""Graph JSON → scope tree. Pure; `src/core/scopes.ts` is the same for the browser, and one table of cases tests both.

A scope's id is its path and a slash, so it never meets a node's name. Each edge between two nodes becomes a meta-edge
between the two siblings below their lowest common ancestor. Sibling scopes of one structure become a series
(`replica_0`, `replica_1` → `replica_* ×2`). Items that would tangle a level go to its side strip.
After Wongsuphasawat et al., Visualizing Dataflow Graphs of Deep Learning Models in TensorFlow, 2018.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

# What a graph JSON's node is: see docs/architecture.md.
NodeJson = Mapping[str, Any]

_AUX_NAMES = frozenset({"gradients", "save", "init"})
# More neighbours than this at one level tangle it.
_AUX_DEGREE = 8
# A hub with more than one part in so many of a level's ops is what the level is about: it stays.
_AUX_SHARE = 5
# Members of a series that feed each other read better apart unless they are many.
_CHAIN_SERIES = 4
_NUMBERED = re.compile(r"(.*?)\d+", re.ASCII)
_OUTPUT_INDEX = re.compile(r":\d+\Z", re.ASCII)


@dataclass(eq=False, slots=True)
class Item:
    """An op, a scope or a series of scopes. `node`: its index in the graph, -1 for scopes; `ops`: those inside."""

    id: str
    label: str
    kind: str
    parent: Item | None
    node: int = -1
    ops: int = 0
    stale: int = 0
    depth: int = 0
    children: list[Item] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class Edge:
    """All edges from inside one item to inside another; `crosses`: some tensor goes to another device."""

    source: Item
    target: Item
    tensors: int = 0
    controls: int = 0
    crosses: bool = False


@dataclass(frozen=True, slots=True)
class Level:
    """What stands directly below an item: `edges` join items of `main`, `hidden` ones have an end in `aux`."""

    main: Sequence[Item]
    aux: Sequence[Item]
    edges: Sequence[Edge]
    hidden: Sequence[Edge]


def producer(name: str) -> str:
    """`^a/b` and `a/b:1` are outputs of the node `a/b`."""
    return _OUTPUT_INDEX.sub("", name.removeprefix("^"))


def short_device(device: str) -> str:
    """`/job:worker/task:1/gpu:0` → `worker:1/gpu:0`."""
    return re.sub(r"job:([^/]+)/task:", r"\1:", device.removeprefix("/")).replace("job:", "")


class Tree:
    """The scopes of a graph JSON (`nbflow.graph.v1`)."""

    def __init__(self, graph: Mapping[str, Any]) -> None:
        self.nodes: Sequence[NodeJson] = graph["nodes"]
        self.root = Item("/", "", "scope", None)
        self.items: dict[str, Item] = {"/": self.root}
        self.leaves: list[Item] = []
        self._index = {node["name"]: i for i, node in enumerate(self.nodes)}
        scopes = {name[:at] for name in self._index for at, char in enumerate(name) if char == "/" and at > 0}
        for i, node in enumerate(self.nodes):
            self._add_leaf(node, i, scopes)
        _count(self.root)
        _set_depth(self.root, 0)
        self._edges = self._meta_edges()
        if self._collapse_series():
            _set_depth(self.root, 0)
            self._edges = self._meta_edges()

    def find(self, name: str) -> int:
        """The index of the node that makes an input, or -1 when it is not in this graph."""
        return self._index.get(producer(name), -1)

    def level(self, item: Item) -> Level:
        """What stands directly below `item`, and how it is connected there."""
        edges = list(self._edges.get(item, {}).values())
        near: dict[Item, set[Item]] = {child: set() for child in item.children}
        for edge in edges:
            near[edge.source].add(edge.target)
            near[edge.target].add(edge.source)
        aux = [
            child
            for child in item.children
            if (child.kind != "op" and child.label in _AUX_NAMES)
            or (len(near[child]) > _AUX_DEGREE and child.ops * _AUX_SHARE <= item.ops)
        ]
        if len(item.children) - len(aux) < 2:
            aux = []
        aside = set(aux)
        inner = [edge for edge in edges if edge.source not in aside and edge.target not in aside]
        hidden = [edge for edge in edges if edge.source in aside or edge.target in aside]
        return Level([child for child in item.children if child not in aside], aux, inner, hidden)

    def initial_expansion(self) -> list[str]:
        """The scopes that a reader wants open at first: a lone scope says nothing."""
        opened: list[str] = []
        at = self.root
        while True:
            scopes = [child for child in at.children if child.kind != "op"]
            if len(at.children) > 2 or len(scopes) != 1:
                return opened
            at = scopes[0]
            opened.append(at.id)

    def _add_leaf(self, node: NodeJson, index: int, scopes: AbstractSet[str]) -> None:
        parts = node["name"].split("/")
        # A node named like a scope (`hidden` beside `hidden/weights`) stands inside it, in parentheses.
        own = node["name"] in scopes
        parent, path = self.root, ""
        for part in parts if own else parts[:-1]:
            path += part + "/"
            scope = self.items.get(path)
            if scope is None:
                scope = self.items[path] = Item(path, part, "scope", parent)
                parent.children.append(scope)
            parent = scope
        label = f"({parts[-1]})" if own else parts[-1]
        leaf = Item(node["name"], label, "op", parent, node=index, ops=1, stale=1 if node["stale"] else 0)
        parent.children.append(leaf)
        self.items[node["name"]] = leaf
        self.leaves.append(leaf)

    def _meta_edges(self) -> dict[Item, dict[tuple[Item, Item], Edge]]:
        result: dict[Item, dict[tuple[Item, Item], Edge]] = {}
        for target, node in enumerate(self.nodes):
            for name in node["inputs"]:
                source = self.find(name)
                if source in (-1, target):
                    continue
                a, b = siblings(self.leaves[source], self.leaves[target])
                assert a.parent is not None
                edge = result.setdefault(a.parent, {}).setdefault((a, b), Edge(a, b))
                if name.startswith("^"):
                    edge.controls += 1
                else:
                    edge.tensors += 1
                    device = self.nodes[source]["device"]
                    edge.crosses |= bool(device and node["device"] and device != node["device"])
        return result

    def _collapse_series(self) -> bool:
        signatures: dict[Item, int] = {}
        _sign(self.root, self.nodes, {}, signatures)
        found = False
        for parent in list(self.items.values()):
            if parent.kind != "scope":
                continue
            groups: dict[tuple[str, int], list[Item]] = {}
            for child in parent.children:
                base = _NUMBERED.fullmatch(child.label)
                if child.kind == "scope" and base is not None and base[1]:
                    groups.setdefault((base[1], signatures[child]), []).append(child)
            for (name, _), members in groups.items():
                if len(members) < 2 or len(members) == len(parent.children):
                    continue
                edges = self._edges.get(parent, {})
                feeding = any((a, b) in edges for a in members for b in members)
                if not feeding or len(members) >= _CHAIN_SERIES:
                    self._make_series(parent, name, members)
                    found = True
        return found

    def _make_series(self, parent: Item, base: str, members: list[Item]) -> None:
        prefix = "" if parent is self.root else parent.id
        path = f"{prefix}{base}*/"
        # Two series of one base name differ in structure only; the first member tells them apart.
        if path in self.items:
            path = f"{prefix}{base}*{members[0].label}/"
        series = Item(path, f"{base}* ×{len(members)}", "series", parent)
        series.children = members
        series.ops = sum(member.ops for member in members)
        series.stale = sum(member.stale for member in members)
        for member in members:
            member.parent = series
        inside = set(members)
        parent.children.insert(parent.children.index(members[0]), series)
        parent.children = [child for child in parent.children if child not in inside]
        self.items[path] = series


def _count(item: Item) -> None:
    for child in item.children:
        _count(child)
        item.ops += child.ops
        item.stale += child.stale


def _set_depth(item: Item, depth: int) -> None:
    item.depth = depth
    for child in item.children:
        _set_depth(child, depth + 1)


def _sign(item: Item, nodes: Sequence[NodeJson], known: dict[str, int], result: dict[Item, int]) -> int:
    """One number for each structure: the multiset of names and ops below an item, its own name left out."""
    if item.kind == "op":
        text = nodes[item.node]["op"]
    else:
        text = "\n".join(sorted(f"{child.label}={_sign(child, nodes, known, result)}" for child in item.children))
    result[item] = known.setdefault(f"{item.kind}\n{text}", len(known))
    return result[item]


def siblings(a: Item, b: Item) -> tuple[Item, Item]:
    """The two ancestors-or-selves of two leaves that share a parent."""
    while a.depth > b.depth and a.parent is not None:
        a = a.parent
    while b.depth > a.depth and b.parent is not None:
        b = b.parent
    while a.parent is not b.parent and a.parent is not None and b.parent is not None:
        a, b = a.parent, b.parent
    return a, b


def shares(tree: Tree, item: Item, key: str = "device") -> dict[str, int]:
    """How many ops below `item` stand on which device; unplaced ones under `not placed yet`."""
    counts: dict[str, int] = {}
    stack = [item]
    while stack:
        at = stack.pop()
        if at.kind == "op":
            device = tree.nodes[at.node][key]
            name = short_device(device) if device else "not placed yet"
            counts[name] = counts.get(name, 0) + 1
        stack.extend(at.children)
    return counts
