"""Which device each node runs on, and why.

Hard constraints first: what was asked for, colocation, state with its variable, a backend that has the op, and where
a variable already lives. What is still free goes, in topological order, to the device where it would finish first by
the cost model: the simulated execution of Abadi et al., "TensorFlow: Large-Scale Machine Learning on Heterogeneous
Distributed Systems" (2015), section 3.2.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from nbflow.cost import CostModel
from nbflow.device import DeviceSpec, parse_device
from nbflow.errors import PlacementError
from nbflow.graph import Graph, Node, Tensor
from nbflow.op import nbytes_of
from nbflow.transport import DeviceInfo

# Jobs that hold variables and compute only what is colocated with them.
STATE_JOBS = ("ps",)
# Ops that hold state, which stays where it was made first: what uses it comes to it.
HOLDERS = ("variable", "iterator", "queue", "accumulator", "coordinator")
# Ops whose value is known before the step starts.
_VALUES = ("constant", "placeholder")


@dataclass(frozen=True, slots=True)
class Placed:
    """Where one node went. `asked` may be partial or empty."""

    device: DeviceSpec
    why: str
    asked: str = ""


Placement = Mapping[str, Placed]


@dataclass(slots=True)
class _Group:
    """Nodes that must share a device."""

    nodes: list[Node] = field(default_factory=list)
    candidates: list[DeviceSpec] = field(default_factory=list)
    why: str = ""
    leader: Node | None = None  # the first that asked for something, for error messages


def place(
    graph: Graph,
    infos: Sequence[DeviceInfo],
    *,
    homes: Mapping[str, DeviceSpec] | None = None,
    prefer: Mapping[str, str] | None = None,
    supports: Callable[[str, str], bool] = lambda op, device_type: True,
) -> dict[str, Placed]:
    """Places every node of `graph` on one of `infos`.

    `homes`: name of a variable, iterator or queue -> where its state lives already. `prefer`: variable name -> the
    partial device that a strategy wants it on. `supports(op, device type)`. Raises PlacementError that names both nodes
    and both cells when constraints contradict each other, and lists the devices when nothing matches.
    """
    all_devices = [i.spec for i in infos]
    if not all_devices:
        raise PlacementError("there are no devices; attach workers with %cluster or nf.set_cluster")
    cost = CostModel.of(infos)
    groups = _groups(graph)
    for group in _unique(groups):
        _constrain(group, all_devices, homes or {}, supports)
    placed: dict[str, Placed] = {}
    _place_state(graph, groups, prefer or {}, all_devices, placed)
    _place_rest(graph, groups, cost, placed)
    return placed


def _unique(groups: Mapping[str, _Group]) -> list[_Group]:
    return list({id(g): g for g in groups.values()}.values())


def _groups(graph: Graph) -> dict[str, _Group]:
    parent = {name: name for name in graph.nodes.keys()}

    def find(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    def join(a: str, b: str) -> None:
        # The node made first leads, so that reasons name the variable and not what uses it.
        first, second = sorted((find(a), find(b)), key=order.__getitem__)
        parent[second] = first

    order = {name: i for i, name in enumerate(graph.nodes.keys())}
    for node in graph.nodes.values():
        # A loop may use state that lives elsewhere: the ops of its body that do so run there.
        for tensor in node.inputs if node.definition.specialise is None else ():
            if tensor.spec.resource:
                join(tensor.node.name, node.name)
        for other in node.colocate:
            if other in parent:
                join(other, node.name)
    groups: dict[str, _Group] = {}
    for name, node in graph.nodes.items():
        root = groups.setdefault(find(name), _Group())
        root.nodes.append(node)
        groups[name] = root
    return groups


def _constrain(
    group: _Group,
    all_devices: Sequence[DeviceSpec],
    homes: Mapping[str, DeviceSpec],
    supports: Callable[[str, str], bool],
) -> None:
    group.candidates = list(all_devices)
    for node in sorted(group.nodes, key=lambda n: n.op not in HOLDERS):
        home = homes.get(node.name) if node.op in HOLDERS else None
        if home is not None:
            what = "value" if node.op == "variable" else "state"
            _narrow(group, node, lambda d, home=home: d == home, f"its {what} lives on {home}")  # type: ignore[misc]
        if str(node.device):
            wanted = node.device
            if not any(wanted.matches(d) for d in all_devices):
                have = ", ".join(str(d) for d in all_devices)
                raise PlacementError(
                    f"{node.name!r} asks for {wanted}, which is not among the devices: {have}", where=node.where
                )
            # A device block around `w.assign(...)` says where to compute, not where the variable should live.
            on_state = any(t.spec.resource for t in node.inputs)
            if not on_state or any(wanted.matches(d) for d in group.candidates):
                _narrow(group, node, wanted.matches, f"asked for {wanted}")
    for node in group.nodes:
        found = [d for d in group.candidates if supports(node.op, d.type or "cpu")]
        if not found:
            kinds = ", ".join(sorted({d.type or "cpu" for d in group.candidates}))
            raise PlacementError(f"no {kinds} device can run op {node.op!r}", where=node.where)
        group.candidates = found


def _narrow(group: _Group, node: Node, keep: Callable[[DeviceSpec], bool], why: str) -> None:
    found = [d for d in group.candidates if keep(d)]
    if not found:
        other = group.leader or node
        raise PlacementError(
            f"{node.name!r} ({node.where}) {why}, but must share a device with {other.name!r} ({other.where}), "
            f"which {group.why or 'runs elsewhere'}",
            where=node.where,
        )
    if len(found) < len(group.candidates):
        group.why = group.why or why
        group.leader = group.leader or node
    group.candidates = found


def _place_state(
    graph: Graph,
    groups: Mapping[str, _Group],
    prefer: Mapping[str, str],
    all_devices: Sequence[DeviceSpec],
    placed: dict[str, Placed],
) -> None:
    """Variables to the ps tasks, largest first, each to the one that holds the fewest bytes ("greedy by bytes")."""
    load = dict.fromkeys(all_devices, 0.0)
    owners: dict[int, tuple[_Group, list[Node]]] = {}
    for node in graph.nodes.values():
        if node.op == "variable":
            owners.setdefault(id(groups[node.name]), (groups[node.name], []))[1].append(node)
    sized = [(nbytes_of([v.outputs[0].spec for v in nodes]), group, nodes) for group, nodes in owners.values()]
    # Fixed ones first: they are load that the free ones must see.
    for size, group, nodes in sorted(sized, key=lambda s: (len(s[1].candidates) > 1, -s[0])):
        candidates = _state_candidates(group, nodes[0], prefer)
        best = min(candidates, key=load.__getitem__)
        load[best] += size
        if len(group.candidates) == 1:
            why = group.why or "the only device"
        else:
            job = f"the {best.job} tasks" if best.job in STATE_JOBS else "the tasks that may hold variables"
            why = f"variables are spread over {job} by bytes: {best.task_name} then holds {_bytes(load[best])}"
        _assign(group, best, why, nodes[0], placed)


def _state_candidates(group: _Group, variable: Node, prefer: Mapping[str, str]) -> list[DeviceSpec]:
    if variable.name in prefer:
        wanted = parse_device(prefer[variable.name])
        found = [d for d in group.candidates if wanted.matches(d)]
        if found:
            return found
    found = [d for d in group.candidates if d.job in STATE_JOBS]
    return found or group.candidates


def _place_rest(graph: Graph, groups: Mapping[str, _Group], cost: CostModel, placed: dict[str, Placed]) -> None:
    free_at = dict.fromkeys(cost.devices, 0.0)
    ready_at: dict[str, float] = {}
    waiting: dict[str, Node] = {}  # values known beforehand: they go where they are first read
    for node in graph.nodes.values():
        group = groups[node.name]
        if node.name not in placed and node.op in _VALUES and len(group.nodes) == 1 and len(group.candidates) > 1:
            waiting[node.name] = node
            ready_at[node.name] = 0.0
            continue
        if node.name not in placed:
            _choose(node, group, cost, placed, free_at, ready_at)
        device = placed[node.name].device
        for tensor in node.inputs:
            value = waiting.pop(tensor.node.name, None)
            if value is not None:
                _follow(value, groups[value.name], node, device, placed)
        finish = _finish(node, device, cost, placed, free_at, ready_at)
        free_at[device] = ready_at[node.name] = finish
    for value in waiting.values():
        _choose(value, groups[value.name], cost, placed, free_at, ready_at)


def _follow(value: Node, group: _Group, reader: Node, device: DeviceSpec, placed: dict[str, Placed]) -> None:
    if device in group.candidates:
        _assign(group, device, f"is first read by {reader.name}", value, placed)
    else:
        _assign(group, group.candidates[0], group.why or "the first that can hold it", value, placed)


def _finish(
    node: Node,
    device: DeviceSpec,
    cost: CostModel,
    placed: Mapping[str, Placed],
    free_at: Mapping[DeviceSpec, float],
    ready_at: Mapping[str, float],
) -> float:
    start = free_at[device]
    for tensor in node.inputs:
        source = placed.get(tensor.node.name)
        if source is not None:  # a value that waits for its reader will be at hand
            start = max(start, ready_at[tensor.node.name] + _move_s(tensor, source.device, device, cost))
    return start + cost.compute_seconds(node, device)


def _move_s(tensor: Tensor, source: DeviceSpec, destination: DeviceSpec, cost: CostModel) -> float:
    return cost.transfer_seconds(nbytes_of([tensor.spec]), source, destination)


def _choose(
    node: Node,
    group: _Group,
    cost: CostModel,
    placed: dict[str, Placed],
    free_at: Mapping[DeviceSpec, float],
    ready_at: Mapping[str, float],
) -> None:
    candidates = group.candidates
    if len(candidates) == 1:
        _assign(group, candidates[0], group.why or "the only device", group.leader or node, placed)
        return
    # A ps task computes only what is asked of it, or when nothing else is there.
    compute = [d for d in candidates if d.job not in STATE_JOBS] or candidates
    times = {d: _finish(node, d, cost, placed, free_at, ready_at) for d in compute}
    best = min(compute, key=times.__getitem__)
    others = [t for d, t in times.items() if d != best]
    if not others:
        why = group.why or f"{best.task_name} is the only one that computes"
    else:
        gain = (min(others) - times[best]) * 1e3
        why = f"{best.task_name} would finish {gain:.2g} ms earlier" if gain > 0 else "equally fast anywhere: the first"
        why = f"{group.why}; {why}" if group.why else why
    _assign(group, best, why, group.leader or node, placed)


def _assign(group: _Group, device: DeviceSpec, why: str, leader: Node, placed: dict[str, Placed]) -> None:
    for node in group.nodes:
        asked = str(node.device)
        if asked and node.device.matches(device):
            reason = f"asked for {asked}" if len(group.candidates) == 1 else why
        elif node is leader:
            reason = why
        elif leader.op == "variable":
            reason = f"follows Variable {leader.name}"
        else:
            reason = f"follows {leader.name} (colocated)"
        placed[node.name] = Placed(device, reason, asked)


def _bytes(count: float) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
