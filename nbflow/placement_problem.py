"""From a graph with its constraints to a problem over numbers, and from what was found back to reasons in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nbflow.cost import CLIENT, VALUES, CostModel, DeviceModel, work_of
from nbflow.device import DeviceSpec
from nbflow.errors import PlacementError
from nbflow.graph import Graph, Node, topological
from nbflow.op import nbytes_of
from nbflow.placement_groups import Group, unique
from nbflow.placement_search import Assignment, Problem, Simulated

# What one more process adds to a step: a command and an answer (docs/performance.md).
TASK_S = 2e-4
# With more devices than this, reasons compare with those that matter.
FEW = 4


@dataclass(frozen=True, slots=True)
class Drafted:
    """A problem, and what its numbers stand for. `message_s`: the least that a message between two devices
    takes. `readers`: unit -> the unit and the node that read first what it gives. `names`: devices, in reasons."""

    problem: Problem
    nodes: Sequence[Node]
    groups: Sequence[Group]
    devices: Sequence[DeviceSpec]
    message_s: float
    readers: Sequence[tuple[int, Node] | None]
    names: Sequence[str]

    def gains(self, at: Assignment, found: Simulated) -> dict[int, str]:
        """Why each unit is where it is, in words: how much earlier its first op ends there than on the next best
        device."""
        problem = self.problem
        busy_s = [0.0] * problem.devices
        texts: dict[int, str] = {}
        for node, unit in enumerate(problem.unit_of):
            device = at[unit]
            if unit not in texts:
                choices = problem.candidates[unit]
                texts[unit] = self._gain(node, device, at, found, busy_s) if len(choices) > 1 else ""
            if problem.run_s[device][node]:
                busy_s[device] = found.finish_s[node]
        return texts

    def _gain(self, node: int, mine: int, at: Assignment, found: Simulated, busy_s: Sequence[float]) -> str:
        problem = self.problem
        devices = problem.candidates[problem.unit_of[node]]
        if len(devices) > FEW:  # those that may be the next best: where its inputs are, and the idlest
            near = {at[problem.unit_of[producer]] for producer, _ in problem.inputs[node]}
            idle = sorted(devices, key=busy_s.__getitem__)[:2]
            devices = sorted({mine, *idle, *(d for d in devices if d in near)})
        ends = {d: self._end(node, d, at, found, busy_s[d]) for d in devices}
        best = min((d for d in devices if d != mine), key=ends.__getitem__)
        gain_s = ends[best] - ends[mine]
        if gain_s > 0:
            return f"{self.names[mine]} would finish {time_text(gain_s)} earlier than {self.names[best]}"
        if gain_s == 0:
            return "equally fast anywhere, and next to what it works with"
        return f"{self.names[best]} would finish it {time_text(-gain_s)} earlier, but the whole step later"

    def _end(self, node: int, device: int, at: Assignment, found: Simulated, busy_s: float) -> float:
        problem, start_s = self.problem, busy_s
        for producer, nbytes in problem.inputs[node]:
            source, ready_s = at[problem.unit_of[producer]], found.finish_s[producer]
            if source != device:
                ready_s += problem.latency_s[source][device] + nbytes * problem.byte_s[source][device]
            start_s = max(start_s, ready_s)
        if node in problem.feed_s:
            start_s = max(start_s, problem.feed_s[node][device])
        return start_s + problem.run_s[device][node]

    def does_not_fit(self, unit: int) -> PlacementError:
        """The error for a unit that no device has memory for."""
        group, held = self.groups[unit], self.problem.weight[unit]
        node = max(group.nodes, key=lambda n: nbytes_of([t.spec for t in n.outputs]))
        have = ", ".join(
            f"{self.devices[d]} has {size_text(self.problem.room[d])}" for d in self.problem.candidates[unit][:8]
        )
        total = sum(self.problem.weight)
        return PlacementError(
            f"{node.name!r} holds {size_text(held)} and fits nowhere: {have}, and all that must be held is "
            f"{size_text(total)}; attach more workers, remove nf.device blocks, or make the model smaller",
            where=node.where,
        )


def draft(graph: Graph, groups: Mapping[str, Group], cost: CostModel, spread: float = 0.0) -> Drafted:
    """The problem of a graph whose groups know their candidates. `spread`: the part of all that its ops make that a
    group is taken to hold."""
    nodes = topological(graph.nodes.values())
    number = {node.name: i for i, node in enumerate(nodes)}
    units = unique({n.name: groups[n.name] for n in nodes})
    of_group = {id(g): u for u, g in enumerate(units)}
    devices = list(cost.devices)
    index = {d: i for i, d in enumerate(devices)}
    unit_of = [of_group[id(groups[n.name])] for n in nodes]
    sizes = [nbytes_of([t.spec for t in n.outputs]) for n in nodes]
    inputs = [_inputs(n, number, sizes) for n in nodes]
    room = [cost.devices[d].memory_bytes or float("inf") for d in devices]
    candidates = [[index[d] for d in g.candidates] for g in units]
    weight = _weights(nodes, unit_of, sizes, len(units), min(room), spread)
    between = [[cost.link_between(a, b) for b in devices] for a in devices]
    latency_s = [[0.0 if a == b else k.latency_s for b, k in enumerate(row)] for a, row in enumerate(between)]
    byte_s = [[0.0 if a == b else 1 / k.bytes_per_s for b, k in enumerate(row)] for a, row in enumerate(between)]
    tasks = {name: n for n, name in enumerate(dict.fromkeys(d.task_name for d in devices))}
    problem = Problem(
        inputs,
        unit_of,
        candidates,
        _run_s(nodes, devices, cost),
        latency_s,
        byte_s,
        {
            i: [cost.transfer_seconds(sizes[i], CLIENT, d) for d in devices]
            for i, n in enumerate(nodes)
            if n.op == "placeholder"
        },
        frozenset(u for u, g in enumerate(units) if _is_lazy(g)),
        weight,
        room,
        [tasks[d.task_name] for d in devices],
        TASK_S,
    )
    free = [(a, b) for a in range(len(devices)) for b in range(len(devices)) if a != b]
    message_s = min((latency_s[a][b] for a, b in free), default=0.0)
    return Drafted(
        problem, nodes, units, devices, message_s, _readers(nodes, number, unit_of, len(units)), _names(devices)
    )


def _names(devices: Sequence[DeviceSpec]) -> list[str]:
    """By their task, or by themselves where the task has several."""
    count: dict[str, int] = {}
    for spec in devices:
        count[spec.task_name] = count.get(spec.task_name, 0) + 1
    return [d.task_name if count[d.task_name] == 1 else str(d) for d in devices]


def _inputs(node: Node, number: Mapping[str, int], sizes: Sequence[float]) -> list[tuple[int, float]]:
    found = {(number[t.node.name], t.index): nbytes_of([t.spec]) for t in node.inputs if not t.spec.resource}
    made = [(producer, nbytes) for (producer, _), nbytes in found.items()]
    made += [(number[t.node.name], 0.0) for t in node.inputs if t.spec.resource]
    return made + [(number[c.name], 0.0) for c in node.control_inputs if c.name in number]


def _run_s(nodes: Sequence[Node], devices: Sequence[DeviceSpec], cost: CostModel) -> list[list[float]]:
    """Devices of one kind share one list."""
    works = [work_of(n) for n in nodes]
    known: dict[DeviceModel, list[float]] = {}
    for device in devices:
        model = cost.devices[device]
        if model not in known:
            known[model] = [cost.seconds_on(model, n, w) for n, w in zip(nodes, works, strict=True)]
    return [known[cost.devices[d]] for d in devices]


def _is_lazy(group: Group) -> bool:
    """Whether what it gives first is there before the step starts: constants, feeds and variables."""
    return group.nodes[0].op in VALUES or group.nodes[0].op == "variable"


def _weights(
    nodes: Sequence[Node], unit_of: Sequence[int], sizes: Sequence[float], units: int, room: float, spread: float
) -> list[float]:
    """What each unit holds: variables and constants, and of all else that it makes the part `spread`. Empty when that
    fits anywhere. What is alive only for a while is counted when it is known where all are (`placement_room`)."""
    weight = [0.0] * units
    for node, unit, size in zip(nodes, unit_of, sizes, strict=True):
        weight[unit] += size if node.op in ("variable", "constant") else spread * size
    return weight if sum(weight) > room else []


def _readers(
    nodes: Sequence[Node], number: Mapping[str, int], unit_of: Sequence[int], units: int
) -> list[tuple[int, Node] | None]:
    found: list[tuple[int, Node] | None] = [None] * units
    for i, node in enumerate(nodes):
        for tensor in node.inputs:
            unit = unit_of[number[tensor.node.name]]
            if unit != unit_of[i] and found[unit] is None:
                found[unit] = (unit_of[i], node)
    return found


def time_text(seconds: float) -> str:
    """`2.1 ms`."""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e6:.2g} µs"


def size_text(nbytes: float) -> str:
    """`3.2 MB`."""
    for unit in ("B", "KB", "MB"):
        if nbytes < 1000:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} GB"
