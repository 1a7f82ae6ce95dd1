"""Which device each node runs on, and why.

Hard constraints first (`placement_groups`): what was asked for, colocation, state with its variable, a backend that has
the op, where a variable already lives, and what fits into a device's memory. Variables go to the ps tasks by bytes.
What is still free goes where the simulated step ends first (`placement_search`), and stays in one place unless
spreading is worth it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from nbflow.cost import CostModel
from nbflow.device import DeviceSpec, parse_device
from nbflow.errors import PlacementError
from nbflow.graph import Graph, Node
from nbflow.op import nbytes_of
from nbflow.placement_groups import HOLDERS, Group, Supports, constrain, groups_of, unique
from nbflow.placement_problem import Drafted, draft, size_text, time_text
from nbflow.placement_search import Assignment, NoRoom, Problem, places, search, simulate, tails_of
from nbflow.transport import DeviceInfo

__all__ = ["HOLDERS", "STATE_JOBS", "Placed", "Placement", "place", "simulated"]

# Jobs that hold variables and compute only what is colocated with them.
STATE_JOBS = ("ps",)
# The part of the step that spreading must save. Estimates are not better than this, and one place is easier to follow.
WORTH = 0.05


@dataclass(frozen=True, slots=True)
class Placed:
    """Where one node went. `asked` may be partial or empty."""

    device: DeviceSpec
    why: str
    asked: str = ""


Placement = Mapping[str, Placed]


def place(
    graph: Graph,
    infos: Sequence[DeviceInfo],
    *,
    homes: Mapping[str, DeviceSpec] | None = None,
    prefer: Mapping[str, str] | None = None,
    supports: Supports = lambda op, device_type: True,
    cost: Callable[[], CostModel] | None = None,
    spread: float = 0.0,
) -> dict[str, Placed]:
    """Places every node of `graph` on one of `infos`.

    `homes`: name of a variable, iterator or queue -> where its state lives already. `prefer`: variable name -> the
    partial device that a strategy wants it on. `supports(op, device type)`. `cost` gives what things take, and is only
    asked when there is something to decide; None: what ops declare and devices report. `spread`: see `placement_room`.

    Raises PlacementError that names both nodes and both cells when constraints contradict each other, lists the
    devices when nothing matches, and says what does not fit into memory.
    """
    devices = [i.spec for i in infos]
    if not devices:
        raise PlacementError("there are no devices; attach workers with %cluster or nf.set_cluster")
    groups = groups_of(graph)
    for group in unique(groups):
        constrain(group, devices, homes or {}, supports)
    placed: dict[str, Placed] = {}
    _place_state(graph, groups, prefer or {}, infos, placed)
    compute = [d for d in devices if d.job not in STATE_JOBS]
    for group in unique(groups):
        if len(group.candidates) > 1 and group.nodes[0].name not in placed:
            # A ps task computes only what is asked of it, or when nothing else is there.
            if len(group.candidates) == len(devices):
                group.candidates = compute or devices
            else:
                group.candidates = [d for d in group.candidates if d.job not in STATE_JOBS] or group.candidates
    if all(len(g.candidates) == 1 for g in unique(groups)) and not any(i.memory_bytes for i in infos):
        for group in unique(groups):
            _settle(group, group.candidates[0], "", placed)
        return placed
    model = CostModel.of(infos) if cost is None else cost()
    try:
        drafted = draft(graph, groups, model, spread)
        if model.measure is not None and _links_matter(drafted.problem):
            drafted = draft(graph, groups, model.measured(), spread)
        _place_rest(drafted, _decide(drafted), placed)
    except NoRoom as error:
        raise drafted.does_not_fit(error.unit) from None
    return placed


def simulated(graph: Graph, placement: Placement, cost: CostModel) -> dict[str, float]:
    """When each node of a placed graph is done, in seconds from the start of the step."""
    groups = {name: Group([node], [placement[name].device]) for name, node in graph.nodes.items()}
    drafted = draft(graph, groups, cost)
    found = simulate(drafted.problem, [c[0] for c in drafted.problem.candidates])
    return {node.name: found.finish_s[n] for n, node in enumerate(drafted.nodes)}


# --- variables -------------------------------------------------------------------------------------------------------


def _place_state(
    graph: Graph,
    groups: Mapping[str, Group],
    prefer: Mapping[str, str],
    infos: Sequence[DeviceInfo],
    placed: dict[str, Placed],
) -> None:
    """Variables to the ps tasks, or where a strategy wants them: largest first, each to the one that holds the fewest
    bytes ("greedy by bytes"). Others are placed with what uses them."""
    held = dict.fromkeys([i.spec for i in infos], 0.0)
    room = {i.spec: float(i.memory_bytes) for i in infos}
    owners: dict[int, tuple[Group, list[Node]]] = {}
    for node in graph.nodes.values():
        if node.op == "variable":
            owners.setdefault(id(groups[node.name]), (groups[node.name], []))[1].append(node)
    sized = [(nbytes_of([v.outputs[0].spec for v in nodes]), group, nodes) for group, nodes in owners.values()]
    # Fixed ones first: they are load that the free ones must see.
    for size, group, nodes in sorted(sized, key=lambda s: (len(s[1].candidates) > 1, -s[0])):
        candidates = _state_candidates(group, nodes[0], prefer)
        if not candidates:
            continue
        roomy = [d for d in candidates if not room[d] or held[d] + size <= room[d]]
        if not roomy:
            raise _full(nodes, size, candidates, held, room)
        best = min(roomy, key=held.__getitem__)
        held[best] += size
        if len(group.candidates) == 1:
            why = group.why or "the only device"
        else:
            job = f"the {best.job} tasks" if best.job in STATE_JOBS else "the tasks that may hold variables"
            why = f"variables are spread over {job} by bytes: {best.task_name} then holds {size_text(held[best])}"
        _settle(group, best, why, placed, nodes[0])


def _state_candidates(group: Group, variable: Node, prefer: Mapping[str, str]) -> list[DeviceSpec]:
    """Where a variable may be if it is to be placed by bytes; empty if it is not."""
    if len(group.candidates) == 1:
        return group.candidates
    if variable.name in prefer:
        wanted = parse_device(prefer[variable.name])
        found = [d for d in group.candidates if wanted.matches(d)]
        if found:
            return found
    return [d for d in group.candidates if d.job in STATE_JOBS]


def _full(
    nodes: Sequence[Node],
    size: float,
    candidates: Sequence[DeviceSpec],
    held: Mapping[DeviceSpec, float],
    room: Mapping[DeviceSpec, float],
) -> PlacementError:
    have = ", ".join(f"{d} has {size_text(room[d])} and holds {size_text(held[d])}" for d in candidates[:8])
    names = ", ".join(repr(n.name) for n in nodes[:3])
    return PlacementError(
        f"variable {names} of {size_text(size)} fits nowhere: {have}; start more tasks to hold variables, give it a "
        "narrower dtype, or split it by rows",
        where=nodes[0].where,
    )


# --- the rest --------------------------------------------------------------------------------------------------------


def _links_matter(problem: Problem) -> bool:
    """Whether a link can change anything: not when everything is where it must be, nor when what a further task adds,
    or the ops that wait for each other, take as long as all in one place. Raises NoRoom."""
    if all(len(c) == 1 for c in problem.candidates):
        return False
    return max(problem.task_s, _chain_s(problem)) < places(problem)[0][0] * (1 - WORTH)


def _place_rest(drafted: Drafted, decision: _Decision, placed: dict[str, Placed]) -> None:
    for unit, group in enumerate(drafted.groups):
        device = drafted.devices[decision.at[unit]]
        if group.nodes[0].name not in placed:
            _settle(group, device, decision.why(unit), placed)


@dataclass(frozen=True, slots=True)
class _Decision:
    """Where each unit goes. `common`: the reason of all that were free, if they have one in common; else `own`."""

    drafted: Drafted
    at: Assignment
    common: str
    own: Mapping[int, str]

    def why(self, unit: int) -> str:
        group = self.drafted.groups[unit]
        if len(group.candidates) == 1:
            return ""
        reader = self.drafted.readers[unit]
        if unit in self.drafted.problem.lazy and reader is not None and self.at[reader[0]] == self.at[unit]:
            return f"is first read by {reader[1].name}"
        text = self.common or self.own[unit]
        return f"{group.why}; {text}" if group.why else text


def _decide(drafted: Drafted) -> _Decision:
    """In one place, unless spreading saves `WORTH` of the step."""
    problem = drafted.problem
    ranked = places(problem)
    best_s, device, start = ranked[0]
    together = simulate(problem, start)
    if all(len(c) == 1 for c in problem.candidates):
        return _Decision(drafted, start, "", {})
    where, length = drafted.names[device], time_text(together.step_s)
    if len(ranked) > 1 and ranked[1][0] - best_s > WORTH * best_s:
        gain, other = time_text(ranked[1][0] - best_s), drafted.names[ranked[1][1]]
        where = f"together: {where} would finish the step {gain} earlier than {other}"
    else:
        where = f"together on {where}"
    hope_s, why = _hope(problem, drafted)
    if hope_s >= best_s * (1 - WORTH):
        return _Decision(drafted, start, f"{where}; the step takes about {length}, {why}", {})
    at = search(problem, start)
    found = simulate(problem, at)
    if found.seconds >= best_s * (1 - WORTH):
        text = f"spreading further would not make it less than {length}"
        if found.seconds < best_s:
            text = f"spreading further would save less than {WORTH:.0%} of {length}"
        return _Decision(drafted, start, f"{where}; {text}", {})
    return _Decision(drafted, at, "", drafted.gains(at, found))


def _hope(problem: Problem, drafted: Drafted) -> tuple[float, str]:
    """The least that any placement could take, and why it cannot be less."""
    chain_s = _chain_s(problem)
    message_s = drafted.message_s + problem.task_s
    if message_s > chain_s:
        return message_s, f"a message to another device {time_text(message_s)}"
    return chain_s, f"the ops that wait for each other {time_text(chain_s)} of it"


def _chain_s(problem: Problem) -> float:
    return max((t + min(run[n] for run in problem.run_s) for n, t in enumerate(tails_of(problem))), default=0.0)


def _settle(group: Group, device: DeviceSpec, why: str, placed: dict[str, Placed], leader: Node | None = None) -> None:
    """Puts a group on a device; its nodes say what they follow."""
    leader = leader or group.leader or next((n for n in group.nodes if n.op in HOLDERS), group.nodes[0])
    why = why or group.why or "the only device"
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
