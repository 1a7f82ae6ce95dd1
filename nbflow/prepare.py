"""From fetches to programs: the pipeline, one line a stage. Values in, values out; `session` keeps what it gives."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from nbflow import parallel
from nbflow.backends.available import supports
from nbflow.backends.host import evaluate
from nbflow.body import bodies_of
from nbflow.compile import bundles_by_task, check_plan, compile_part
from nbflow.cost import CostModel
from nbflow.device import DeviceSpec
from nbflow.errors import PlacementError
from nbflow.graph import Graph, Node, Tensor, ancestors
from nbflow.ops.waiting import WAITING
from nbflow.optimize import Optimized, Pruned, Report, optimize, prune
from nbflow.optimize.schedule import Peaks, schedule, written_peaks
from nbflow.partition import check_partition, partition
from nbflow.placement import HOLDERS, Placed, place
from nbflow.placement_bodies import place_bodies
from nbflow.placement_room import SPREADS, TooFull, too_full
from nbflow.plan import Bundle, new_bundle_id
from nbflow.spec import TensorSpec
from nbflow.structure import Leaf
from nbflow.transport import DeviceInfo
from nbflow.verify import check_graph

# `check_graph`, `check_partition` and `check_plan` run on everything that is prepared. They cost far less than
# preparing does, and a wrong plan costs more than both.


@dataclass(frozen=True, slots=True)
class Setting:
    """What a run is prepared for. `homes`: state key -> where that state lives already. `passes`: see `optimize`.
    `cost`: see `place`. `splits`: state key of a variable that lies in pieces -> the rows of each."""

    infos: Sequence[DeviceInfo]
    homes: Mapping[str, DeviceSpec]
    passes: tuple[str, ...]
    cost: Callable[[], CostModel] | None = None
    splits: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def devices(self) -> list[DeviceSpec]:
        return [i.spec for i in self.infos]


@dataclass(frozen=True, slots=True)
class FetchSource:
    """Where a fetched value comes back: from task `task`, under `name`."""

    task: str
    name: str


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Prepared:
    """A run ready to start: registered bundles, and where feeds go and fetches come from.

    `keep` holds the user's nodes, so that the identities in the cache's key stay theirs. The workers keep the bundles
    for as long as somebody keeps this. `waits`: it may wait for another step, so it runs beside the others.
    """

    bundles: Mapping[str, Bundle]
    sources: tuple[FetchSource | None, ...]
    feed_tasks: Mapping[str, str]
    graph: Graph
    placement: Mapping[str, Placed]
    state: Mapping[str, DeviceSpec]  # variables that must be initialised first: state key -> home
    prefer: Mapping[str, str]
    keep: tuple[Leaf, ...]
    replicas: tuple[str, ...]
    waits: bool
    splits: Mapping[str, tuple[int, ...]]  # variables in pieces: state key of the whole -> rows of each piece

    @property
    def bundle_ids(self) -> dict[str, str]:
        return {task: bundle.id for task, bundle in self.bundles.items()}


def prepare(
    graph: Graph,
    leaves: Sequence[Leaf],
    feeds: Mapping[Tensor, TensorSpec],
    setting: Setting,
    *,
    session: str,
    role: parallel.Role = parallel.ALL,
) -> Prepared:
    """A run of `leaves` of `graph`, placed, cut and compiled. `role`: only this part of a strategy.

    Raises GraphError and its kinds: what is stale, not fed, of a wrong shape, or cannot be placed.
    """
    pruned, splits = _in_pieces(prune(graph, leaves, feeds), leaves, setting)
    expanded = parallel.expand(pruned.graph, _mapped(pruned, leaves), setting.devices, role)
    optimized = optimize(expanded.graph, _expanded(expanded, pruned, leaves), setting.passes, evaluate)
    ready = optimized.graph
    check_graph(ready)
    arranged = _arrange(optimized, setting, expanded.prefer)
    placement = arranged.placed
    fetched = [None if isinstance(x, Node) else x for x in optimized.wanted]
    values = frozenset((t.node.name, t.index) for t in fetched if t is not None)
    parts = partition(ready, placement, values)
    check_partition(parts, ready, placement)
    plans = []
    for part in parts:
        here = {
            t.name: (t.node.name, t.index)
            for t in fetched
            if t is not None and placement[t.node.name].device == part.device
        }
        plan = compile_part(part, ready, here, tight=arranged.tight)
        check_plan(plan)
        plans.append((part.device.task_name, plan))
    bundles = {}
    for task, of_task in bundles_by_task(plans).items():
        unique = uuid.uuid4().hex
        bundles[task] = Bundle(new_bundle_id(session, task, unique), task, tuple(of_task))
    return Prepared(
        bundles,
        tuple(None if t is None else FetchSource(placement[t.node.name].device.task_name, t.name) for t in fetched),
        {n.name: placement[n.name].device.task_name for n in ready.nodes.values() if n.op == "placeholder"},
        ready,
        placement,
        _needed_state(ready, placement, expanded.own),
        expanded.prefer,
        tuple(leaves),
        expanded.replicas,
        _waits(ready),
        splits,
    )


def preview(graph: Graph, leaves: Sequence[Leaf], setting: Setting) -> tuple[Graph, dict[str, Placed]]:
    """The ops that `leaves` need, rewritten by their strategy, with where each goes; of one that a pass removes, what
    became of it. Placeholders need no values."""
    expanded, optimized = _without_feeds(graph, leaves, setting)
    placed = _arrange(optimized, setting, expanded.prefer).placed
    mine = {n.name: _placed(n, optimized, placed) for n in expanded.graph.nodes.values()}
    return expanded.graph, {**placed, **mine}


def optimization(graph: Graph, leaves: Sequence[Leaf], setting: Setting) -> Report:
    """What the passes do to a run of `leaves`. Placeholders need no values."""
    expanded, optimized = _without_feeds(graph, leaves, setting)
    return optimized.report(_arrange(optimized, setting, expanded.prefer).peaks)


def peaks(graph: Graph, leaves: Sequence[Leaf], setting: Setting) -> Peaks:
    """The most bytes in use at once on each device during a run of `leaves`: as written, and as it will run."""
    expanded, optimized = _without_feeds(graph, leaves, setting)
    return _arrange(optimized, setting, expanded.prefer).peaks


def _without_feeds(graph: Graph, leaves: Sequence[Leaf], setting: Setting) -> tuple[parallel.Expanded, Optimized]:
    nodes = ancestors([x if isinstance(x, Node) else x.node for x in leaves])
    feeds = {n.outputs[0]: n.outputs[0].spec for n in nodes if n.op == "placeholder"}
    pruned, _ = _in_pieces(prune(graph, leaves, feeds), leaves, setting)
    expanded = parallel.expand(pruned.graph, _mapped(pruned, leaves), setting.devices)
    return expanded, optimize(expanded.graph, _expanded(expanded, pruned, leaves), setting.passes, evaluate)


@dataclass(frozen=True, slots=True)
class _Arranged:
    """Where each op goes, and what that takes. `tight`: memory is short, so buffers are given on to whoever is next."""

    placed: dict[str, Placed]
    peaks: Peaks
    tight: bool


def _arrange(optimized: Optimized, setting: Setting, prefer: Mapping[str, str]) -> _Arranged:
    """Where each op goes; and puts the ops, whose graph is changed, in the order in which they will run.

    What does not fit shares its buffers more tightly before it is spread over more devices."""
    graph = optimized.graph
    keys = {n.name: state_key(graph, n.name) for n in graph.nodes.values() if n.op in HOLDERS}
    homes = {name: setting.homes[key] for name, key in keys.items() if key in setting.homes}
    full: TooFull | None = None
    for spread in SPREADS:
        try:
            placed = place(
                graph, setting.infos, homes=homes, prefer=prefer, supports=supports, cost=setting.cost, spread=spread
            )
        except PlacementError as error:
            if full is None:
                raise
            raise full.error() from error  # what is certain to be too much says more than what was tried instead
        place_bodies(graph, placed, setting.devices, supports)
        for tight in (False, True):
            peaks, found = _ordered(optimized, placed, setting, tight)
            if found is None:
                return _Arranged(placed, peaks, tight)
        full = full or found
    assert full is not None  # or one of them was returned
    raise full.error()


def _ordered(
    optimized: Optimized, placed: Mapping[str, Placed], setting: Setting, tight: bool
) -> tuple[Peaks, TooFull | None]:
    """Orders the ops; what they take, and where that is certain to be too much."""
    graph = optimized.graph
    fetched = [x for x in optimized.wanted if not isinstance(x, Node)]
    devices = {name: placed[name].device for name in graph.nodes.keys()}
    if "schedule" in setting.passes:
        peaks = shown = schedule(graph, devices, fetched, tight=tight)
    else:
        shown = {}
        limited = any(i.memory_bytes for i in setting.infos)
        peaks = written_peaks(graph, devices, fetched, tight=tight) if limited else {}
    return shown, too_full(graph, placed, setting.infos, peaks, fetched, tight=tight)


def _in_pieces(
    pruned: Pruned, leaves: Sequence[Leaf], setting: Setting
) -> tuple[Pruned, Mapping[str, tuple[int, ...]]]:
    """`pruned` with the variables in pieces that are so, or that a strategy wants so; and these, by state key."""
    graph, mapped = pruned.graph, _mapped(pruned, leaves)
    names = [n.name for n in graph.nodes.values() if n.op == "variable"]
    known = {name: setting.splits[key] for name in names if (key := state_key(graph, name)) in setting.splits}
    splits = parallel.companions(graph, {**parallel.wanted_splits(graph, mapped, setting.devices), **known})
    if not splits:
        return pruned, {}
    made = parallel.shard(graph, splits, mapped)
    tensors = {
        (x.node.name, x.index): made.tensors[(m.node.name, m.index)]
        for x, m in zip(leaves, mapped, strict=True)
        if not isinstance(x, Node) and not isinstance(m, Node)
    }
    nodes = {
        x.name: made.nodes[m.name]
        for x, m in zip(leaves, mapped, strict=True)
        if isinstance(x, Node) and isinstance(m, Node)
    }
    return Pruned(made.graph, tensors, nodes), {state_key(graph, name): sizes for name, sizes in splits.items()}


def _mapped(pruned: Pruned, leaves: Sequence[Leaf]) -> list[Leaf]:
    """What stands for the user's `leaves` in the pruned graph."""
    return [pruned.nodes[x.name] if isinstance(x, Node) else pruned.tensors[(x.node.name, x.index)] for x in leaves]


def _expanded(expanded: parallel.Expanded, pruned: Pruned, leaves: Sequence[Leaf]) -> list[Leaf]:
    """What stands for the user's `leaves` in the graph that a strategy made."""
    return [
        expanded.nodes[x.name] if isinstance(x, Node) else expanded.tensors[(x.node.name, x.index)]
        for x in _mapped(pruned, leaves)
    ]


def _placed(node: Node, optimized: Optimized, placed: Mapping[str, Placed]) -> Placed:
    """Where `node` goes, or what stands for it; on no device, when nothing does."""
    fate = optimized.fate.get(node.name, "")
    found = placed.get(optimized.node_for(node).name)
    if found is None:
        return Placed(DeviceSpec(), fate, str(node.device))
    if node.name in optimized.graph.nodes.keys():
        return Placed(found.device, f"{fate}; {found.why}" if fate else found.why, found.asked)
    return Placed(found.device, fate, str(node.device))


def _waits(graph: Graph) -> bool:
    """Whether something in `graph`, or in a body of it, may wait for another step."""
    return any(n.op in WAITING or any(_waits(b.graph) for b in bodies_of(n).values()) for n in graph.nodes.values())


def state_key(graph: Graph, name: str, node: str | None = None) -> str:
    """The key of the state called `name`; `node` is whose generation counts, where that is another's."""
    return f"{name}:{graph.generations.get(node or name, 0)}"


def _needed_state(graph: Graph, placement: Mapping[str, Placed], own: frozenset[str]) -> dict[str, DeviceSpec]:
    """State keys of the variables that something other than their initialiser uses, and that are not the step's own."""
    used = {
        t.node.name for n in graph.nodes.values() if n.op != "initialize" for t in n.inputs if t.node.op == "variable"
    }
    return {state_key(graph, name): placement[name].device for name in graph.nodes.keys() if name in used - own}
