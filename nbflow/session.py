"""`Session.run`: a cache of prepared runs, the state that lives on the workers, and the steps."""

from __future__ import annotations

import contextlib
import itertools
import threading
import uuid
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from nbflow.cost import CostModel
from nbflow.device import DeviceSpec
from nbflow.driver import Acknowledgement, Driver
from nbflow.errors import GraphError, NbflowError, WorkerLost
from nbflow.events import Emitter, Event
from nbflow.explain import PlacementTable, placement_table
from nbflow.feeds import feeds_of
from nbflow.graph import Graph, Node, Tensor, get_graph
from nbflow.held import Held
from nbflow.inprocess import InProcessCluster
from nbflow.measured import Costs, seconds_by_op
from nbflow.optimize import Report, chosen
from nbflow.optimize.settings import Choice, parse
from nbflow.parallel import ALL, Role
from nbflow.placement import Placed
from nbflow.prepare import Prepared, Setting, optimization, prepare, preview, state_key
from nbflow.rewrite import assignments, feed_name
from nbflow.spec import TensorSpec, spec_of
from nbflow.structure import Leaf, flatten
from nbflow.trace import Trace
from nbflow.transport import Cluster, HostArray, Transport

# Prepared runs that are kept; a notebook has few different fetches, a search over shapes has many.
CACHED = 128


@dataclass(slots=True)
class _Cached:
    """A prepared run, and for which `Held.version` its state was found where it asks for it, with values."""

    prepared: Prepared
    version: int = -1


class Session:
    """Runs fetches of one graph on one cluster. Variables live as long as the session does.

    `cluster=None`: this process. `graph=None`: the current graph. `deadline_s`: how long a step may take.
    `passes`: what makes runs cheaper, by name (`nbflow.optimize.settings`); None: what is set for the process.
    `profile`: the file of measured times that placement uses, or `off`; None: see `nbflow.profile`.
    """

    def __init__(
        self,
        cluster: Cluster | None = None,
        graph: Graph | None = None,
        *,
        deadline_s: float = 3600.0,
        passes: Choice = None,
        profile: str | Path | None = None,
    ) -> None:
        self._own_cluster = InProcessCluster() if cluster is None else None
        self.cluster: Cluster = cluster or self._own_cluster or InProcessCluster()
        self.graph = graph or get_graph()
        self.deadline_s = deadline_s
        self._passes = None if passes is None else parse(passes)
        self.costs = Costs(profile)
        self.id = uuid.uuid4().hex
        self.events = Emitter()
        self.events.add(self.costs.hear)
        self.last: Prepared | None = None  # what ran last, for `%placement`
        self.last_trace: Trace | None = None  # of the last step that was traced, for `%timeline`
        self.last_acknowledgements: tuple[Acknowledgement, ...] = ()  # of the last cancelled step
        self._lock = threading.RLock()
        self._cluster_id = ""
        self._missed: WorkerLost | None = None
        self._transports: Mapping[str, Transport] = {}
        self._removers: list[Callable[[], None]] = []
        self._driver = Driver({}, f"run-{self.id[:8]}")
        self._spare: list[Driver] = []  # lanes for steps that may wait for each other, while none of them uses them
        self._lanes = itertools.count()
        self._lives: dict[str, str] = {}  # task -> `Transport.life`
        self._registered: set[tuple[str, str]] = set()
        self._garbage: SimpleQueue[tuple[str, str]] = SimpleQueue()  # (task, bundle) that nobody will run again
        self._cache: OrderedDict[Any, _Cached] = OrderedDict()
        self._held = Held()
        self._carried: dict[str, HostArray] = {}  # values that are with no worker
        self._initialising: list[str] = []
        self._steps = 0
        self._closed = False

    # --- running ---------------------------------------------------------------------------------------------------

    def run(
        self,
        fetches: Any,
        feeds: Mapping[Any, Any] | None = None,
        *,
        trace: bool = False,
        check_numerics: bool = False,
        deadline_s: float | None = None,
    ) -> Any:
        """Computes `fetches` (any nesting of lists, tuples, dicts) and returns the same nesting of numpy arrays.

        `feeds` maps tensors to values; any tensor can be fed. `trace=True`: returns (values, Trace).
        `check_numerics=True`: the step fails at the first op that makes a NaN or infinity, and says from what. Raises
        GraphError before anything runs, RunError and WorkerError from the step. An interrupt cancels the step on all
        workers.
        """
        leaves, rebuild = flatten(fetches)
        values = feeds_of(feeds) if feeds else {}
        if not leaves:
            return (rebuild([]), Trace(())) if trace else rebuild([])
        prepared = self.prepare(leaves, {t: spec_of(v) for t, v in values.items()})
        found, events = self._execute(
            prepared, values, trace=trace, check_numerics=check_numerics, deadline_s=deadline_s
        )
        self.last = prepared
        result = rebuild([None if s is None else found[s.name] for s in prepared.sources])
        if not trace:
            return result
        self.last_trace = Trace(tuple(events))
        self.costs.learn(self.last_trace, prepared.graph, prepared.placement, self.cluster.devices())
        return result, self.last_trace

    def _execute(
        self,
        prepared: Prepared,
        values: Mapping[Tensor, HostArray],
        *,
        trace: bool = False,
        check_numerics: bool = False,
        deadline_s: float | None = None,
        number: int | None = None,
    ) -> tuple[dict[str, HostArray], list[Event]]:
        feeds: dict[str, dict[str, HostArray]] = {}
        for tensor, value in values.items():
            name = feed_name(tensor)
            if name in prepared.feed_tasks:
                feeds.setdefault(prepared.feed_tasks[name], {})[name] = value
        with self._lock:
            if self._closed:
                raise GraphError("the session is closed")
            if number is None:
                number = self._steps
                self._steps += 1
            driver = self._driver if not prepared.waits else self._spare_driver()
            pending = driver.start(
                prepared.bundle_ids,
                number,
                feeds,
                trace=trace,
                check_numerics=check_numerics,
                deadline_s=deadline_s or self.deadline_s,
            )
        try:
            found = pending.wait()
        finally:
            self.last_acknowledgements = pending.acknowledgements
        if prepared.waits:
            with self._lock:
                self._spare.append(driver)  # not after an error: something of the step may still be in its lane
        return found

    def _spare_driver(self) -> Driver:
        """A lane that no step is in: a dequeue must not stand in the way of the enqueue that it waits for."""
        found = self._spare.pop() if self._spare else Driver({}, f"run-{self.id[:8]}-{next(self._lanes)}")
        found.transports = self._transports
        return found

    # --- state ------------------------------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """How many steps were run: the number that the next one gets, from which random ops draw."""
        return self._steps

    @steps.setter
    def steps(self, number: int) -> None:
        with self._lock:
            self._steps = number

    def beside(
        self,
        graph: Graph,
        leaves: Sequence[Leaf],
        feeds: Mapping[Tensor, TensorSpec] | None = None,
        *,
        has_values: bool = False,
    ) -> Prepared:
        """Like `prepare`, for another graph that works on the state of this one: its holders have the names that they
        have here. It is not kept, and does not depend on what the running cell replaces. `has_values`: its variables
        are a strategy's own, and have values where they are."""
        with self._lock:
            self._refresh()
            prepared = prepare(graph, leaves, feeds or {}, self._setting(), session=self.id)
            if has_values:
                self._settle(prepared)
                self._register(prepared)
            else:
                self._initialise(prepared)
            return prepared

    def look(self, prepared: Prepared, values: Mapping[Tensor, HostArray] | None = None) -> list[HostArray]:
        """Runs what was prepared without counting a step: what is drawn later does not depend on having looked."""
        found, _ = self._execute(prepared, values or {}, number=0)
        return [found[s.name] for s in prepared.sources if s is not None]

    def assign(self, values: Mapping[str, HostArray]) -> None:
        """Sets variables, by name; their initialisers will not run. `values` have the variables' shapes and dtypes.

        Raises GraphError for what is no variable. No step is counted.
        """
        with self._lock:
            if self._closed:
                raise GraphError("the session is closed")
            self._refresh()
            graph, feeds, nodes = assignments(self.graph, values)
            prepared = prepare(
                graph, nodes, {t: spec_of(v) for t, v in feeds.items()}, self._setting(), session=self.id
            )
            self._settle(prepared)
            keys = [k for name in values for k in self._held.keys_of(state_key(self.graph, name))]
            self._register(prepared)
            self._execute(prepared, feeds, number=0)
            self._held.has(keys)

    def carry(self, names: Sequence[str]) -> None:
        """Takes the values of variables off the workers that hold them, by name: the next run that needs them puts them
        where it wants them. Those without a value are left out. No step is counted."""
        with self._lock:
            have = [name for name in dict.fromkeys(names) if name in self.initialised and name not in self._carried]
            if not have:
                return
            self._refresh()
            self._carried.update(self._taken(have))

    def give(self, values: Mapping[str, HostArray]) -> None:
        """Values for variables that have none any more, by name, for the next run that needs them."""
        with self._lock:
            self._carried.update(values)

    def homes(self) -> dict[str, DeviceSpec]:
        """Where values live: state key (`prepare.state_key`) -> device."""
        with self._lock:
            self._refresh()
            return {key: home for key, home in self._held.homes.items() if key in self._held.initialised}

    def names_of(self, keys: Iterable[str], *, without_value: bool = False) -> list[str]:
        """The names of the variables with these state keys, sorted. `without_value`: only of those that have none on
        any worker, and are not carried either."""
        with self._lock:
            self._refresh()
            wanted = [k for k in keys if not without_value or k not in self._held.initialised]
            names = {self._held.whole_name(key) for key in wanted}
            return sorted(names - self._carried.keys() if without_value else names)

    def _taken(self, names: Sequence[str]) -> dict[str, HostArray]:
        """The values of `names`, which are nowhere else any more, and have no home."""
        reads = [self.graph.node(f"{name}/read").outputs[0] for name in names]
        plan = prepare(self.graph, reads, {}, self._setting(), session=self.id)
        self._initialise(plan)
        values = dict(zip(names, self.look(plan), strict=True))
        self.drop_state([state_key(self.graph, name) for name in names])
        self._cache.clear()  # what was prepared looks for them where they were
        return values

    # --- preparing -------------------------------------------------------------------------------------------------

    def prepare(self, leaves: Sequence[Leaf], feeds: Mapping[Tensor, TensorSpec], *, role: Role = ALL) -> Prepared:
        """Everything before the first step: placed, cut, compiled, registered, variables initialised. Cached.

        `role`: only this part of a strategy whose replicas drive their own steps.
        """
        with self._lock:
            self._check_leaves([*leaves, *feeds])
            try:
                return self._prepared(leaves, feeds, role)
            except WorkerLost as error:
                # Found missing before a step had begun, and by now the cluster knows: it may do without.
                if error is not self._missed or self.cluster.id == self._cluster_id:
                    raise
            return self._prepared(leaves, feeds, role)

    def _prepared(self, leaves: Sequence[Leaf], feeds: Mapping[Tensor, TensorSpec], role: Role) -> Prepared:
        self._refresh()
        key = self._key(leaves, feeds, role)
        found = self._cache.get(key)
        if found is None:
            made = prepare(self.graph, leaves, feeds, self._setting(), session=self.id, role=role)
            self._adopt(made)
            found = self._cache[key] = _Cached(made)
            while len(self._cache) > CACHED:
                self._cache.popitem(last=False)
        else:
            self._cache.move_to_end(key)
        if found.version != self._held.version:  # it is not cheap: it looks at every op
            self._initialise(found.prepared)
            found.version = self._held.version
        self._sweep()
        return found.prepared

    def _key(self, leaves: Sequence[Leaf], feeds: Mapping[Tensor, TensorSpec], role: Role) -> Any:
        fetched = tuple((id(leaf), -1) if isinstance(leaf, Node) else (id(leaf.node), leaf.index) for leaf in leaves)
        fed = frozenset((id(t.node), t.index, spec) for t, spec in feeds.items())
        return fetched, fed, self.graph.version, self.graph.seed, self._cluster_id, role, self.passes

    def _check_leaves(self, leaves: Sequence[Leaf]) -> None:
        if self._closed:
            raise GraphError("the session is closed")
        for leaf in leaves:
            node = leaf if isinstance(leaf, Node) else leaf.node
            self.graph.check_member(node)

    @property
    def passes(self) -> tuple[str, ...]:
        """The names of the passes that the next run goes through, in their order."""
        return chosen() if self._passes is None else self._passes

    def preview(self, leaves: Sequence[Leaf]) -> tuple[Graph, dict[str, Placed]]:
        """The ops that `leaves` need, rewritten by their strategy, with where each goes; of one that a pass removes,
        what became of it. Nothing is run or kept; placeholders need no values."""
        with self._lock:
            self._check_leaves(leaves)
            return preview(self.graph, leaves, self._setting())

    def placement(self, leaves: Sequence[Leaf] | None = None) -> PlacementTable:
        """Where each op of a run of `leaves` goes, or of what ran last, and why; what that is predicted to take, and
        took when it was last traced. Nothing runs. Raises GraphError when nothing has run."""
        if leaves is None:
            if self.last is None:
                raise GraphError("nothing has run yet; name what to place, as in `%placement loss`")
            graph, placed = self.last.graph, self.last.placement
        else:
            graph, placed = self.preview(leaves)
        return placement_table(graph, placed, *self.figures())

    def figures(self) -> tuple[CostModel, Mapping[str, float]]:
        """What ops are predicted to take, and took, by name, in the step that was traced last."""
        return self.costs.model(self.cluster), {} if self.last_trace is None else seconds_by_op(self.last_trace)

    def optimization(self, leaves: Sequence[Leaf]) -> Report:
        """What the passes do to a run of `leaves`. Nothing is run or kept; placeholders need no values."""
        with self._lock:
            self._check_leaves(leaves)
            return optimization(self.graph, leaves, self._setting())

    def _setting(self) -> Setting:
        infos = self.cluster.devices()
        return Setting(infos, self._held.homes, self.passes, lambda: self.costs.model(self.cluster), self._held.splits)

    def _register(self, prepared: Prepared) -> None:
        for task, bundle in prepared.bundles.items():
            if (task, bundle.id) not in self._registered:
                with self._missing():
                    self._transports[task].register(bundle)
                self._registered.add((task, bundle.id))
                # A finaliser may run in any thread, at any time: it only takes note.
                weakref.finalize(prepared, self._garbage.put, (task, bundle.id)).atexit = False
                self.costs.watch(prepared, self.cluster.devices())
        # Last: what the new plans share with forgotten ones, such as a dataset's arrays, is not sent anew.
        self._sweep()

    @contextlib.contextmanager
    def _missing(self) -> Iterator[None]:
        """Around asking workers for something, other than a step: notes that one was not there."""
        try:
            yield
        except WorkerLost as error:
            self._missed = error
            raise

    def _sweep(self) -> None:
        """Frees the bundles of runs that were forgotten, on their workers."""
        found: dict[str, list[str]] = {}
        while not self._garbage.empty():
            task, bundle = self._garbage.get_nowait()
            if (task, bundle) in self._registered:
                self._registered.discard((task, bundle))
                found.setdefault(task, []).append(bundle)
        for task, bundles in found.items():
            try:
                self._transports[task].unregister(bundles)
            except NbflowError:
                continue  # a worker that cannot be reached has nothing to free

    def _initialise(self, prepared: Prepared) -> None:
        """Runs the initialisers of variables that have no value yet, those they depend on first."""
        self._settle(prepared)
        without = {self._held.whole_name(key) for key in prepared.state if key not in self._held.initialised}
        carried = without & self._carried.keys()
        if carried:
            self.assign({name: self._carried.pop(name) for name in sorted(carried)})
        self._held.mourn(prepared.state)
        missing = [key for key in prepared.state if key not in self._held.initialised]
        if missing:
            self._run_initialisers(missing, prepared)
        self._register(prepared)

    def _settle(self, prepared: Prepared) -> None:
        """Notes where the state of `prepared` lives from now on."""
        if self._held.settle(prepared.graph, prepared.placement):
            self._cache.clear()  # what was prepared asks where it was

    def _adopt(self, prepared: Prepared) -> None:
        """Puts variables that a strategy wants in pieces into pieces: a value moves, and is not made anew."""
        new = {key: sizes for key, sizes in prepared.splits.items() if key not in self._held.splits}
        if not new:
            return
        names = [key.rsplit(":", 1)[0] for key in new if key in self._held.initialised]
        values = self._taken(names) if names else {}
        self.drop_state(list(new))
        self._held.split(new)
        self._cache.clear()  # what was prepared looks for them in one piece
        self._settle(prepared)
        if values:
            self.assign(values)

    def _run_initialisers(self, keys: Sequence[str], prepared: Prepared) -> None:
        circle = [k for k in keys if k in self._initialising]
        if circle:
            raise GraphError(f"the initial value of {circle[0].rsplit(':', 1)[0]!r} depends on itself")
        names = dict.fromkeys(self._held.whole_name(k) for k in keys)
        nodes = [self._initializer(name) for name in names]
        self._initialising += keys
        try:
            plan = prepare(self.graph, nodes, {}, self._setting(), session=self.id)
            self._initialise(plan)
            # Step 0, whenever it is: what a variable starts with must not depend on how many steps ran before.
            self._execute(plan, {}, number=0)
        finally:
            del self._initialising[-len(keys) :]
        self._held.has(keys)

    def _initializer(self, name: str) -> Node:
        found = self.graph.find(f"{name}/initialize")
        if found is None:  # what nf.load gives has values, and no way to make them
            raise GraphError(
                f"variable {name!r} has no initial value: restore it (nf.load, nf.train.restore) or assign it"
            )
        return found

    # --- the cluster -----------------------------------------------------------------------------------------------

    def _refresh(self) -> None:
        """Connects when the cluster has changed; forgets state that was on workers which are gone or started anew, and
        finds that of workers which were only cut off."""
        cluster_id = self.cluster.id  # first: what changes meanwhile is for the next time
        if cluster_id == self._cluster_id:
            return
        for remove in self._removers:
            remove()
        with self._missing():
            self._transports = self.cluster.connect(self.id)
        self._removers = [t.listen(self.events.emit) for t in self._transports.values()]
        self._driver.transports = self._transports
        now = {task: t.life for task, t in self._transports.items()}
        gone = {task for task, life in self._lives.items() if now.get(task) != life}
        self._held.lose(gone, self._lives)
        self._held.find_again(now)
        self._registered = {(task, b) for task, b in self._registered if task not in gone and task in now}
        self._lives = now
        self._cache.clear()
        self._cluster_id = cluster_id

    @property
    def initialised(self) -> tuple[str, ...]:
        """Names of the variables that have a value."""
        with self._lock:
            return self._held.names

    @property
    def transports(self) -> Mapping[str, Transport]:
        """Task name -> transport, of the cluster as it is now."""
        with self._lock:
            self._refresh()
            return self._transports

    def drop_state(self, keys: Sequence[str]) -> None:
        """Frees state that no op can reach any more (see `owner.Change.dropped_state`)."""
        with self._lock:
            keys = self._held.drop(keys)
            transports = list(self._transports.values())
        for transport in transports:
            try:
                transport.drop_state(tuple(keys))
            except NbflowError:
                # A worker that cannot be reached has lost the state, or frees it when the session's lease ends.
                continue

    def close(self) -> None:
        """Frees the session's state on all workers. The cluster lives on."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for remove in self._removers:
                remove()
            transports, self._transports = self._transports, {}
        for transport in transports.values():
            transport.close()
        self.costs.close()
        if self._own_cluster is not None:
            self._own_cluster.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
