"""Where the ops in the bodies of loops and branches run: with their node, unless something else was asked of them.

An op of a body goes where the user's device block says, or where the variable lives whose handle it uses; ops that must
be together go together. Everything else stays at home, on the device of the node: an edge between devices inside a
loop costs a message in every iteration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from nbflow.body import ARGUMENT, Body, bodies_of, leading
from nbflow.device import DeviceSpec
from nbflow.errors import PlacementError
from nbflow.graph import Graph, Node
from nbflow.placement import Placed

# Where the state behind a handle lives, by argument number.
Handles = Mapping[int, DeviceSpec]


def place_bodies(
    graph: Graph,
    placed: dict[str, Placed],
    devices: Sequence[DeviceSpec],
    supports: Callable[[str, str], bool],
) -> None:
    """Adds to `placed`, which has the nodes of `graph`, those in their bodies, as `loop/body/add`.

    Raises PlacementError for a device that is not there, or that lacks an op.
    """
    for node in graph.nodes.values():
        if bodies_of(node):
            lives = {i: placed[t.node.name].device for i, t in enumerate(node.inputs) if t.spec.resource}
            _Placer(placed, devices, supports).place(node, "", lives)


class _Placer:
    def __init__(
        self, placed: dict[str, Placed], devices: Sequence[DeviceSpec], supports: Callable[[str, str], bool]
    ) -> None:
        self._placed = placed
        self._devices = devices
        self._supports = supports

    def place(self, node: Node, prefix: str, lives: Mapping[int, DeviceSpec]) -> None:
        """The bodies of `node`; `lives`: where the state behind its inputs is, by position."""
        home = self._placed[prefix + node.name].device
        first = leading(node)
        handles = {position - first: device for position, device in lives.items()}
        for body in bodies_of(node).values():
            self._body(body, home, f"{prefix}{node.name}/", node, handles)

    def _body(self, body: Body, home: DeviceSpec, prefix: str, owner: Node, handles: Handles) -> None:
        leaders = _groups(body)
        wanted: dict[str, tuple[DeviceSpec, str]] = {}
        for node in body.graph.nodes.values():
            found = self._asked(node, home, handles)
            if found is not None:
                wanted.setdefault(leaders[node.name], found)
        for node in body.graph.nodes.values():
            if node.op == ARGUMENT:
                continue
            device, why = wanted.get(leaders[node.name], (home, f"in the body of {owner.name}"))
            self._check(node, device)
            self._placed[prefix + node.name] = Placed(device, why, str(node.device))
            if bodies_of(node):
                self.place(node, prefix, _lives(node, handles))

    def _asked(self, node: Node, home: DeviceSpec, handles: Handles) -> tuple[DeviceSpec, str] | None:
        if node.op == ARGUMENT:
            return None
        if not bodies_of(node):
            for device in _lives(node, handles).values():
                return device, "where its variable lives"
        if not str(node.device):
            return None
        matching = [d for d in self._devices if node.device.matches(d)]
        if not matching:
            have = ", ".join(str(d) for d in self._devices)
            raise PlacementError(
                f"{node.name!r} asks for {node.device}, which is not among the devices: {have}", where=node.where
            )
        return (home if home in matching else matching[0]), f"asked for {node.device}"

    def _check(self, node: Node, device: DeviceSpec) -> None:
        if not self._supports(node.op, device.type or "cpu"):
            raise PlacementError(f"no {device.type} device can run op {node.op!r}", where=node.where)


def _lives(node: Node, handles: Handles) -> dict[int, DeviceSpec]:
    return {
        position: handles[t.node.attrs["index"]]
        for position, t in enumerate(node.inputs)
        if t.spec.resource and t.node.op == ARGUMENT
    }


def _groups(body: Body) -> dict[str, str]:
    """Name -> the first of those that it is colocated with."""
    leader = {name: name for name in body.graph.nodes.keys()}

    def find(name: str) -> str:
        while leader[name] != name:
            leader[name] = leader[leader[name]]
            name = leader[name]
        return name

    order = {name: number for number, name in enumerate(leader)}
    for node in body.graph.nodes.values():
        for other in node.colocate:
            if other in leader:
                first, second = sorted((find(node.name), find(other)), key=order.__getitem__)
                leader[second] = first
    return {name: find(name) for name in leader}
