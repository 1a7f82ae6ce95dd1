"""Which nodes must share a device, and which devices each of these groups may be on.

Constraints come first and are solved exactly: what was asked for, colocation, state with its variable, where state
lives already, and backends that have the op. Whatever contradicts something else is an error that names both nodes,
where they were made, why they belong together, and what to change.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from nbflow.device import DeviceSpec
from nbflow.errors import PlacementError
from nbflow.graph import Graph, Node

# Ops that hold state, which stays where it was made first: what uses it comes to it.
HOLDERS = ("variable", "iterator", "queue")

Supports = Callable[[str, str], bool]  # (op, device type) -> whether a backend has it


@dataclass(frozen=True, slots=True)
class Bond:
    """Two nodes that must share a device. `why` continues "`other` "."""

    node: Node
    other: Node
    why: str


@dataclass(frozen=True, slots=True)
class Wish:
    """What one node asked of its group: `why` continues "`node` "."""

    node: Node
    why: str
    fix: str
    devices: tuple[DeviceSpec, ...]


@dataclass(slots=True)
class Group:
    """Nodes that must share a device, in the order of the graph. `why` and `leader`: what first left fewer devices, and
    whose wish that was."""

    nodes: list[Node] = field(default_factory=list)
    candidates: list[DeviceSpec] = field(default_factory=list)
    why: str = ""
    leader: Node | None = None
    bonds: list[Bond] = field(default_factory=list)
    wishes: list[Wish] = field(default_factory=list)


def groups_of(graph: Graph) -> dict[str, Group]:
    """Node name -> its group."""
    order = {name: i for i, name in enumerate(graph.nodes.keys())}
    parent = list(range(len(order)))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    bonds: list[Bond] = []
    for node in graph.nodes.values():
        bonds += _bonds(node, graph)
    for bond in bonds:
        # The node made first leads, so that reasons name the variable and not what uses it.
        first, second = sorted((find(order[bond.node.name]), find(order[bond.other.name])))
        parent[second] = first
    by_root: dict[int, Group] = {}
    groups: dict[str, Group] = {}
    for name, node in graph.nodes.items():
        group = groups[name] = by_root.setdefault(find(order[name]), Group())
        group.nodes.append(node)
    for bond in bonds:
        groups[bond.node.name].bonds.append(bond)
    return groups


def _bonds(node: Node, graph: Graph) -> list[Bond]:
    found = []
    # A loop may use state that lives elsewhere: the ops of its body that do so run there.
    for tensor in node.inputs if node.definition.specialise is None else ():
        if tensor.spec.resource:
            found.append(Bond(node, tensor.node, f"uses the {tensor.node.op} {tensor.node.name!r}"))
    for other in node.colocate:
        if other in graph.nodes:
            found.append(Bond(node, graph.nodes[other], f"is colocated with {other!r}"))
    return found


def unique(groups: Mapping[str, Group]) -> list[Group]:
    """Each group once, in the order of the graph."""
    return list({id(g): g for g in groups.values()}.values())


def constrain(group: Group, devices: Sequence[DeviceSpec], homes: Mapping[str, DeviceSpec], supports: Supports) -> None:
    """Leaves the devices that all nodes of `group` may be on. Raises PlacementError when there are none."""
    group.candidates = list(devices)
    for node in sorted(group.nodes, key=lambda n: n.op not in HOLDERS):
        home = homes.get(node.name) if node.op in HOLDERS else None
        if home is not None:
            what = "value" if node.op == "variable" else "state"
            fix = f"run it there, or give {node.name!r} another name: state does not move"
            _narrow(group, Wish(node, f"has its {what} on {home}", fix, (home,)))
        if str(node.device):
            _ask(group, node, devices)
    _keep_supported(group, supports)


def _ask(group: Group, node: Node, devices: Sequence[DeviceSpec]) -> None:
    wanted = node.device
    matching = tuple(d for d in devices if wanted.matches(d))
    if not matching:
        raise PlacementError(
            f"{node.name!r} asks for {wanted}, which is not among the devices: {_listed(devices)}; attach a worker "
            f"that has it, or change the nf.device block{_on_gpus(wanted)}",
            where=node.where,
        )
    # A device block around `w.assign(...)` says where to compute, not where the variable should live.
    on_state = any(t.spec.resource for t in node.inputs)
    if not on_state or any(d in group.candidates for d in matching):
        fix = f"change or remove the nf.device block around {node.name!r}"
        _narrow(group, Wish(node, f"asked for {wanted}", fix, matching))


def _on_gpus(wanted: DeviceSpec) -> str:
    if wanted.type != "gpu":
        return ""
    return "; a GPU is found where nbflow[gpu-cuda12] or nbflow[gpu-cuda13] is installed, whichever fits the driver"


def _narrow(group: Group, wish: Wish) -> None:
    found = [d for d in group.candidates if d in wish.devices]
    if not found:
        # The one that alone rules it out, if there is one: that is the pair to talk about.
        others = [w for w in group.wishes if not set(w.devices) & set(wish.devices)] or group.wishes[-1:]
        other = others[0] if others else Wish(group.nodes[0], "runs elsewhere", "", ())
        raise PlacementError(
            f"{wish.node.name!r} ({wish.node.where}) {wish.why}, but must share a device with {other.node.name!r} "
            f"({other.node.where}), which {other.why}{_because(group, wish.node, other.node)}; "
            f"{wish.fix}{f', or {other.fix}' if other.fix else ''}",
            where=wish.node.where,
        )
    if len(found) < len(group.candidates):
        group.why = group.why or wish.why
        group.leader = group.leader or wish.node
    group.wishes.append(wish)
    group.candidates = found


def _because(group: Group, start: Node, goal: Node) -> str:
    """Why the two belong together: the shortest chain of bonds."""
    ways: dict[str, list[tuple[Node, Bond]]] = {}
    for bond in group.bonds:
        ways.setdefault(bond.node.name, []).append((bond.other, bond))
        ways.setdefault(bond.other.name, []).append((bond.node, bond))
    came: dict[str, tuple[Node, Bond] | None] = {start.name: None}
    todo = deque([start])
    while todo and goal.name not in came:
        node = todo.popleft()
        for other, bond in ways.get(node.name, ()):
            if other.name not in came:
                came[other.name] = (node, bond)
                todo.append(other)
    chain: list[str] = []
    step = came.get(goal.name)
    while step is not None:
        chain.append(f"{step[1].node.name!r} {step[1].why}")
        step = came[step[0].name]
    return f" ({', '.join(reversed(chain))})" if chain else ""


def _keep_supported(group: Group, supports: Supports) -> None:
    known: dict[str, tuple[DeviceSpec, ...]] = {}
    start = tuple(group.candidates)
    for node in group.nodes:
        able = known.get(node.op)
        if able is None:
            able = known[node.op] = tuple(d for d in start if supports(node.op, d.type or "cpu"))
        if not able:
            kinds = ", ".join(sorted({d.type or "cpu" for d in start}))
            reason = f"; {group.leader.name!r} ({group.leader.where}) {group.why}" if group.leader else ""
            raise PlacementError(
                f"no {kinds} device can run op {node.op!r} ({node.name!r}){reason}; leave the device open, or ask for "
                f"one whose backend has the op",
                where=node.where,
            )
        if len(able) < len(start) and any(d not in able for d in group.candidates):
            fix = f"leave {node.name!r} out of the group"
            _narrow(group, Wish(node, f"is a {node.op}, which only runs on {_listed(able)}", fix, able))


def _listed(devices: Sequence[DeviceSpec], most: int = 12) -> str:
    return ", ".join(str(d) for d in devices[:most]) + (f" and {len(devices) - most} more" if devices[most:] else "")
