"""All-reduce: every worker has the variables, and gradients go around a ring of workers.

Gradients are put into buckets, in the order in which the backward pass makes them, so that the first travel while the
others are computed. A bucket is cut into as many chunks as there are workers: each chunk is summed on its way around
(reduce-scatter), and its sum goes around once more (all-gather), so a worker sends 2 (n - 1) / n of the bucket, however
many workers there are (Patarasu and Yuan, "Bandwidth Optimal All-reduce Algorithms for Clusters of Workstations",
2009). All of it is ordinary ops. A chunk is summed in one order for all, so the variables stay equal to the bit.

The first replica's variables are the model's own. The others take their values from these before a run begins.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nbflow.graph import Node, Tensor, ancestors
from nbflow.op import nbytes_of, size_of
from nbflow.ops import add, cond, constant, equal, identity, reshape, split
from nbflow.ops._build import build, static_shape
from nbflow.ops.joining import concat
from nbflow.parallel.base import Expanded, Role
from nbflow.parallel.coordinating import NO_BOUND, Coordination, nothing
from nbflow.parallel.joining import join, share_of
from nbflow.parallel.replicate import Key, Replication
from nbflow.parallel.whole import keep_data, make_whole
from nbflow.rewrite import copy_nodes

# Bytes after which a bucket is sent: large enough that a message's own cost is small, small enough that several travel.
BUCKET_BYTES = 1 << 20
_SHARED = ("placeholder", "queue")


def build_ring(replication: Replication, role: Role) -> Expanded:
    """The step of all replicas; that of `nf.run` gives the variables to all of them first."""
    ring = _Ring(replication)
    prefer = {n.name: str(replication.replicas[0]) for n in ring.variables if not str(n.device)}
    if role.kind == "open":
        return ring.meeting.say(role).expanded(prefer)
    return ring.build(prefer, role)


class _Ring:
    def __init__(self, replication: Replication) -> None:
        self.replication = replication
        self.count = len(replication.replicas)
        self.variables = [n for n in replication.order if n.op == "variable"]
        self.copies: list[tuple[Node, Node]] = []  # the model's own variable, and a replica's
        kept = [n for n in replication.order if n.op == "variable" or n.op in _SHARED]
        copy_nodes(kept, replication.made, replication.tensors, replication.nodes)
        self.nodes: list[dict[str, Node]] = []
        self.begin: tuple[Node, ...] = ()
        self.meeting = Coordination(replication)

    def build(self, prefer: dict[str, str], role: Role) -> Expanded:
        replication, made = self.replication, self.replication.made
        name = replication.step.name
        for index in range(self.count):
            self._variables(index)
        if role.kind != "between":
            self._begin(role)
        crossing = replication.crossing()
        behind = {n.name for n in replication.order if n.op == "variable" or n.op in _SHARED}
        rest = self._rest()
        self._join(
            [t for t in crossing if (t.node.name, t.index) in replication.homes],
            [n for n in replication.order if n.name not in behind | rest],
        )
        for index in range(self.count):
            self._copy(index, [n for n in replication.order if n.name in rest])
        steps = [nodes[name] for nodes in self.nodes]
        tick = self.meeting.add(
            "coordinator_tick", (self.meeting.handle,), {"worker": 0}, name=f"{name}/tick", after=steps
        )
        shares = replication.weights()
        for fetch in replication.fetches:
            if isinstance(fetch, Tensor) and (fetch.node.name, fetch.index) not in replication.tensors:
                found = join(replication, fetch, replication.parts(fetch), shares, None)
                replication.tensors[(fetch.node.name, fetch.index)] = found
        replication.nodes[name] = tick
        wanted = {n.name for n in ancestors([tick, *(replication.stands_for(f) for f in replication.fetches)])}
        for unused in [n for n in made.nodes.keys() if n not in wanted]:
            del made.nodes[unused]
        own = frozenset(copy.name for _, copy in self.copies)
        if role.elastic:
            joined = [tensors[key] for tensors in replication.of_replica.values() for key in replication.given]
            copies: list[dict[str, Node]] = [{} for _ in replication.replicas[1:]]
            for number, (variable, copy) in enumerate(self.copies):
                copies[number // len(self.variables)][variable.name] = copy
            make_whole(replication, joined, copies)
            keep_data(made)
        return Expanded(
            made, replication.tensors, replication.nodes, prefer, tuple(map(str, replication.replicas)), own
        )

    def _begin(self, role: Role) -> None:
        """Gives the variables to all, in the first step of a run."""
        made, name = self.replication.made, self.replication.step.name
        pace = {"worker": 0, "staleness": NO_BOUND}
        count = self.meeting.add("coordinator_pace", (self.meeting.handle,), pace, name=f"{name}/count").outputs[0]
        with made.as_default(), made.absolute_scope(name):
            due = constant(True) if role.kind == "all" else equal(count, 0)
            self.begin = (cond(due, self._give, nothing, name="give_variables"),)

    def _variables(self, index: int) -> None:
        tensors = dict(self.replication.tensors)
        if index:
            for variable in self.variables:
                tensors.pop((variable.name, 0))

            def place(old: Node, new: Node) -> None:
                new.device, new.colocate = self.replication.replicas[index], ()
                self.copies.append((self.replication.nodes[old.name], new))

            made = self.replication.made
            copy_nodes(self.variables, made, tensors, {}, rename=lambda n: f"replica_{index}/{n}", change=place)
        self.replication.of_replica[index] = tensors
        self.nodes.append(dict(self.replication.nodes))

    def _rest(self) -> set[str]:
        """Names of what comes after the joins. What gradients are computed from comes before, though it may say that it
        runs after an update, as the output of batch_norm does after that of the moving averages: that is no input."""
        joined = {n.name for n in (*self.replication.applies, *self.replication.writers)}
        found: set[str] = set()
        for node in self.replication.order:
            before = [t.node.name for t in node.inputs] + [c.name for c in node.control_inputs]
            after = node.name not in self.replication.copied and any(b in found for b in before)
            if node.name in joined or after:
                found.add(node.name)
        return found

    def _copy(self, index: int, mine: Sequence[Node]) -> None:
        def change(old: Node, new: Node) -> None:
            self.replication.adapt(old, new, index)
            new.attrs.pop("strategy", None)
            if any(t.node.op == "variable" for t in new.inputs):
                new.control_inputs = (*new.control_inputs, *self.begin)

        made, tensors = self.replication.made, self.replication.of_replica[index]
        copy_nodes(mine, made, tensors, self.nodes[index], rename=lambda n: f"replica_{index}/{n}", change=change)

    def _give(self) -> None:
        for own, copy in self.copies:
            value = build("read_variable", own.outputs, {"variable": own.name})
            attrs = {"variable": copy.name, "shape": copy.outputs[0].spec.shape}
            build("assign", (copy.outputs[0], value), attrs)

    # --- joining -----------------------------------------------------------------------------------------------------

    def _join(self, tensors: Sequence[Tensor], nodes: Sequence[Node]) -> None:
        """Copies `nodes`, forward and backward, and joins each bucket as soon as the last of its tensors is there:
        where nothing else decides, ops run in the order in which they were made."""
        replication = self.replication
        made_at = {n.name: number for number, n in enumerate(nodes)}
        done = 0
        for bucket in self._buckets(sorted(tensors, key=lambda t: made_at[t.node.name])):
            until = max(made_at[t.node.name] for t in bucket) + 1
            for index in range(self.count):
                self._copy(index, nodes[done:until])
            done = max(done, until)
            shares = replication.weights() or [constant_in(replication, 1.0 / self.count)] * self.count
            if self._whole(bucket[0]):
                self._around(bucket, shares)
            else:
                self._everywhere(bucket[0], shares)
        for index in range(self.count):
            self._copy(index, nodes[done:])

    def _buckets(self, tensors: Sequence[Tensor]) -> list[list[Tensor]]:
        found: list[list[Tensor]] = []
        for tensor in tensors:
            last = found[-1] if found else []
            fits = last and last[0].dtype == tensor.dtype and self._whole(tensor) and self._whole(last[0])
            if fits and nbytes_of([t.spec for t in last]) < BUCKET_BYTES:
                last.append(tensor)
            else:
                found.append([tensor])
        return found

    def _whole(self, tensor: Tensor) -> bool:
        """Whether `tensor` is summed, element by element."""
        return self.replication.joining(tensor)[1] == "mean" and static_shape(tensor.shape) is not None

    def _everywhere(self, tensor: Tensor, shares: list[Tensor]) -> None:
        """Rows, and what has no fixed size, go from every replica to every other."""
        parts = self.replication.parts(tensor)
        home = self.replication.homes.pop((tensor.node.name, tensor.index))
        for index in range(self.count):
            with self.replication.made.device(self.replication.replicas[index]):
                self.replication.homes[(tensor.node.name, tensor.index)] = ("", home[1])
                found = join(self.replication, tensor, parts, shares, None)
            self.replication.of_replica[index][(tensor.node.name, tensor.index)] = found

    def _around(self, bucket: Sequence[Tensor], shares: list[Tensor]) -> None:
        made, devices = self.replication.made, self.replication.replicas
        keys: list[Key] = [(t.node.name, t.index) for t in bucket]
        sizes = [int(size_of(t.spec)) for t in bucket]
        cuts = [len(part) for part in np.array_split(np.arange(sum(sizes)), self.count)]
        with made.as_default(), made.name_scope("ring"), made.name_scope(bucket[0].node.name):
            pieces = []
            for index, device in enumerate(devices):
                with made.device(device):
                    flat = [reshape(self.replication.of_replica[index][k], (-1,)) for k in keys]
                    whole = concat(flat, axis=0) if len(flat) > 1 else flat[0]
                    pieces.append(split(share_of(whole, shares[index]), cuts))
            there: list[list[Tensor | None]] = [[None] * self.count for _ in devices]
            for chunk in range(self.count):
                total = pieces[(chunk + 1) % self.count][chunk]
                for hop in range(2, self.count + 1):
                    at = (chunk + hop) % self.count
                    with made.device(devices[at]):
                        total = add(total, pieces[at][chunk])
                there[chunk][chunk] = total
                for hop in range(1, self.count):
                    at = (chunk + hop) % self.count
                    with made.device(devices[at]):
                        total = there[at][chunk] = identity(total)
            for index, device in enumerate(devices):
                with made.device(device):
                    parts = split(concat(there[index], axis=0), sizes)
                    for key, part, tensor in zip(keys, parts, bucket, strict=True):
                        shape = static_shape(tensor.shape)
                        assert shape is not None  # it is summed whole
                        self.replication.of_replica[index][key] = reshape(part, shape)


def constant_in(replication: Replication, value: float) -> Tensor:
    """A float64 scalar of the strategy's own."""
    with replication.made.as_default():
        return constant(np.float64(value))
