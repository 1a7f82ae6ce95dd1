"""Local SGD: each replica trains variables of its own, which are averaged every so many steps.

Between two averages nothing travels but a few scalars. The user's variables hold the last average: that is what
evaluation and checkpoints see. The slots of the optimizer are averaged as well, so that a run goes on from what they
hold; counters are those of the first replica. Stich, "Local SGD Converges Fast and Communicates Little" (2019).

An average weighs a replica by its share of the rows since the last one. A replica without rows in a step, as in a last
batch that is small, has no gradient in it: it counts as 0, and the variables that it would otherwise change stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nbflow.device import DeviceSpec, parse_device
from nbflow.errors import GraphError
from nbflow.graph import Graph, Node, Tensor, ancestors, get_graph
from nbflow.op import AttrValue
from nbflow.ops import cond, constant, equal, group, not_equal, weighted_sum, where
from nbflow.ops._build import build
from nbflow.ops.state import variable_attrs
from nbflow.parallel.base import ALL, Expanded, Role, RoleKind, keep_only
from nbflow.parallel.coordinating import NO_BOUND, Coordination, nothing
from nbflow.parallel.data_parallel import PS, WORKERS, DataParallel
from nbflow.parallel.joining import join
from nbflow.parallel.replicate import Replication
from nbflow.rewrite import copy_nodes
from nbflow.spec import kind_of

KIND = "local_sgd"
# The roles that say where in a round a step is.
PLACES = ("first", "between", "last", "only")
# What all replicas share.
_SHARED = ("placeholder", "queue")


@dataclass(frozen=True, slots=True)
class LocalSGD:
    """Trains a copy of the variables on each device that matches `workers`; averages them every `every` steps.

    Each replica reads its part of the global batch. The variables themselves live on what matches `ps`, or else on the
    workers. With `every=1` and plain SGD it is synchronous training. Where `nf.train.run` ends in the middle of a
    round, it averages what there is. Raises GraphError unless `every` is at least 1.
    """

    every: int = 8
    workers: str = WORKERS
    ps: str | None = PS

    def __post_init__(self) -> None:
        parse_device(self.workers)
        parse_device(self.ps)
        if isinstance(self.every, bool) or int(self.every) != self.every or self.every < 1:
            raise GraphError(f"every is a number of steps, at least 1, not {self.every!r}")

    def to_attrs(self) -> tuple[AttrValue, ...]:
        return (KIND, self.every, self.workers, self.ps or "")

    @staticmethod
    def from_attrs(attrs: Sequence[AttrValue]) -> LocalSGD:
        return LocalSGD(int(attrs[1]), str(attrs[2]), str(attrs[3]) or None)

    @property
    def separate(self) -> bool:
        return False

    def replica_devices(self, available: Sequence[DeviceSpec]) -> list[DeviceSpec]:
        """One device a replica, as for DataParallel."""
        return DataParallel(self.workers, self.ps).replica_devices(available)

    def expand(
        self,
        graph: Graph,
        step: Node,
        fetches: Sequence[Node | Tensor],
        available: Sequence[DeviceSpec],
        role: Role = ALL,
    ) -> Expanded:
        """`graph` once a replica, between taking the average and making it."""
        like = DataParallel(self.workers, self.ps)
        like.check_there(available)
        prefer = like.prefer(graph, available)
        replicas = self.replica_devices(available)
        if len(replicas) < 2:
            return Expanded.unchanged(graph, prefer)
        made = _Local(Replication(graph, step, fetches, replicas), self.every)
        if role.kind == "open":
            return made.meeting.say(role).expanded(prefer)
        return made.finish(prefer) if role.kind == "leave" else made.build(prefer, role.kind)


class _Local:
    def __init__(self, replication: Replication, every: int) -> None:
        self.replication = replication
        self.every = every
        order = replication.order
        self.shared = [n for n in order if n.op == "variable"]
        self.copies: dict[str, list[Node]] = {n.name: [] for n in self.shared}
        kept = [n for n in order if n.op == "variable" or n.op in _SHARED]
        copy_nodes(kept, replication.made, replication.tensors, replication.nodes)
        self.meeting = Coordination(replication)
        # Each replica's share of the rows, summed since the last average; none without a dataset.
        self.seen: list[Node] = []
        for index in range(len(replication.replicas)):
            self._copy_variables(index)

    def finish(self, prefer: dict[str, str]) -> Expanded:
        """What a run leaves with: the average, where it ends in the middle of a round."""
        replication, made = self.replication, self.replication.made
        with made.as_default(), made.absolute_scope(replication.step.name):
            under_way = not_equal(self._count() % self.every, 0)
            end = cond(under_way, lambda: _none(self._give()), nothing, name="make_average")
        replication.nodes[replication.step.name] = end
        keep_only(made, [end])
        return self._expanded(prefer)

    def build(self, prefer: dict[str, str], kind: RoleKind) -> Expanded:
        replication, made = self.replication, self.replication.made
        name = replication.step.name
        place = None if kind in PLACES else self._count()
        takes, gives = kind in ("first", "only"), kind in ("last", "only")
        with made.as_default(), made.absolute_scope(name):
            begin = self._when(place, takes, self._take, "take_average")
        steps = [end for index in range(len(replication.replicas)) for end in self._replica(index, begin)]
        if place is None:
            with made.as_default(), made.absolute_scope(name):
                steps = [self._together(steps, "made")]
        with made.as_default(), made.absolute_scope(name), made.control_dependencies(steps):
            end = self._when(None if place is None else place + 1, gives, self._give, "make_average")
        tick = self.meeting.add(
            "coordinator_tick", (self.meeting.handle,), {"worker": 0}, name=f"{name}/tick", after=[end]
        )
        shares = replication.weights()
        for fetch in replication.fetches:
            if isinstance(fetch, Tensor) and (fetch.node.name, fetch.index) not in replication.tensors:
                replication.tensors[(fetch.node.name, fetch.index)] = join(
                    replication, fetch, replication.parts(fetch), shares, None
                )
        replication.nodes[name] = tick
        home = replication.nodes[
            self.replication.home
        ]  # steps between two averages do not need it, but are led beside it
        keep_only(made, [tick, home, *(replication.stands_for(f) for f in replication.fetches)])
        return self._expanded(prefer)

    def _when(self, count: Tensor | None, due: bool, act: Callable[[], list[Node]], name: str) -> Node:
        """Does `act` where `count` steps are whole rounds; without a count, if it is `due`."""
        if count is not None:
            end: Node = cond(equal(count % self.every, 0), lambda: _none(act()), nothing, name=name)
            return end
        return self._together(act() if due else (), name)

    def _together(self, nodes: Sequence[Node], name: str) -> Node:
        """An op that is over when `nodes` are: whoever waits for it need not wait for each of them."""
        end = group(*nodes, name=name)
        end.colocate = (self.replication.home,)
        return end

    def _count(self) -> Tensor:
        """How many steps were made."""
        pace = {"worker": 0, "staleness": NO_BOUND}
        name = f"{self.replication.step.name}/count"
        return self.meeting.add("coordinator_pace", (self.meeting.handle,), pace, name=name).outputs[0]

    def _expanded(self, prefer: dict[str, str]) -> Expanded:
        own = frozenset(c.name for copies in (*self.copies.values(), self.seen) for c in copies)
        found = self.replication.expanded(prefer)
        return Expanded(found.graph, found.tensors, found.nodes, prefer, found.replicas, own)

    def _copy_variables(self, index: int) -> None:
        tensors = dict(self.replication.tensors)
        for variable in self.shared:
            tensors.pop((variable.name, 0))

        def place(old: Node, new: Node) -> None:
            new.device, new.colocate = self.replication.replicas[index], ()
            self.copies[old.name].append(new)

        rename = f"replica_{index}/"
        copy_nodes(self.shared, self.replication.made, tensors, {}, rename=lambda n: rename + n, change=place)
        self.replication.of_replica[index] = tensors
        if self.replication.share is not None:
            name = f"{rename}{self.replication.step.name}/seen"
            self.seen.append(
                self.replication.made.add("variable", (), variable_attrs((), np.dtype(np.float64), False), name=name)
            )
            self.seen[-1].device = self.replication.replicas[index]

    def _replica(self, index: int, begin: Node) -> list[Node]:
        """The whole step on variables of its own, which are there after `begin`; the nodes that end it."""
        replication, made = self.replication, self.replication.made
        nodes: dict[str, Node] = dict(replication.nodes)
        tensors = replication.of_replica[index]
        mine = [n for n in replication.order if n.op != "variable" and n.op not in _SHARED]

        def change(old: Node, new: Node) -> None:
            replication.adapt(old, new, index)
            new.attrs.pop("strategy", None)
            if any(t.node.op == "variable" for t in new.inputs):
                new.control_inputs = (*new.control_inputs, begin)

        def copy(some: Sequence[Node]) -> None:
            copy_nodes(some, made, tensors, nodes, rename=lambda n: f"replica_{index}/{n}", change=change)

        if replication.share is None:
            copy(mine)
            return [nodes[replication.step.name]]
        first = ancestors([replication.share.node])
        copy([n for n in mine if n in first])
        share = tensors[(replication.share.node.name, replication.share.index)]
        kept = {t.node.name for n in replication.writers if n.op == "assign" for t in n.inputs[1:]}
        with made.as_default(), made.device(replication.replicas[index]), made.control_dependencies([begin]):
            for node in (n for n in mine if n not in first):
                copy([node])
                for tensor in node.outputs if node.name in replication.copied else ():
                    home, how = replication.homes.get((node.name, tensor.index), ("", "rows"))
                    if how != "rows":  # row numbers of no rows are none, but a mean over none is NaN
                        old = self._read(self.copies[home][index]) if node.name in kept else 0
                        value = tensors[(node.name, tensor.index)]
                        tensors[(node.name, tensor.index)] = where(equal(share, 0), old, value)
            seen = self._add(self.seen[index], share).node
        return [nodes[replication.step.name], seen]

    def _take(self) -> list[Node]:
        """The replicas' variables become the shared ones. The nodes that end it."""
        ends: list[Node] = []
        for variable in self.shared:
            value = self._read(self.replication.nodes[variable.name])
            ends += [self._assign(copy, value) for copy in self.copies[variable.name]]
        for seen in self.seen:
            none = constant(np.float64(0))
            ends.append(_beside(self._assign(seen, none), [none]))
        return ends

    def _give(self) -> list[Node]:
        """The shared variables become the mean of the replicas', each where it lives. The nodes that end it."""
        ends: list[Node] = []
        weights = [self._read(seen) for seen in self.seen]
        counted = list(weights)
        if weights:
            total = weights[0]
            for weight in weights[1:]:
                total = total + weight
                counted.append(total)
            for index, weight in enumerate(weights):
                with get_graph().absolute_scope(f"replica_{index}/{self.replication.step.name}"):
                    weights[index] = weight / total
            counted += weights
        for variable in self.shared:
            copies = self.copies[variable.name]
            if kind_of(variable.outputs[0].spec.dtype) in "fc":
                values = [self._read(c) for c in copies]
                same = [] if weights else [constant(np.float64(1.0 / len(copies)))]
                mean = weighted_sum(values, weights or same * len(copies))
                ends.append(_beside(self._assign(self.replication.nodes[variable.name], mean), [mean, *same]))
            else:
                ends.append(self._assign(self.replication.nodes[variable.name], self._read(copies[0])))
        _beside(ends[0], counted[len(self.seen) :])
        return ends

    def _read(self, variable: Node) -> Tensor:
        return build("read_variable", variable.outputs, {"variable": variable.name})

    def _assign(self, variable: Node, value: Tensor) -> Node:
        attrs = {"variable": variable.name, "shape": variable.outputs[0].spec.shape}
        assigned: Tensor = build("assign", (variable.outputs[0], value), attrs)
        return assigned.node

    def _add(self, variable: Node, value: Tensor) -> Tensor:
        attrs = {"variable": variable.name, "shape": variable.outputs[0].spec.shape}
        return build("assign_add", (variable.outputs[0], value), attrs)


def _beside(node: Node, tensors: Sequence[Tensor]) -> Node:
    """`node`, with what computes `tensors` on its device."""
    for tensor in tensors:
        tensor.node.colocate = (node.name,)
    return node


def _none(_: object) -> None:
    """A branch that gives nothing."""
