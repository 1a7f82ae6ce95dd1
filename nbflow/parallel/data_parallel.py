"""Data parallelism: forward and backward once per worker, variables on the ps tasks, gradients joined by a mean.

Synchronous: one graph over all replicas. Each replica reads its part of the global batch, in order; a gradient is the
mean of the replicas' gradients, weighted by their rows, summed in replica order. So losses do not depend on the number
of workers. Asynchronous: one graph per replica, each with its own batches; updates are applied as they come.

The joining follows Chen et al., "Revisiting Distributed Synchronous SGD" (2016), without backup workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np

from nbflow.device import DeviceSpec, parse_device
from nbflow.errors import GraphError
from nbflow.graph import Graph, Node, Tensor, ancestors, topological
from nbflow.op import AttrValue, nbytes_of
from nbflow.ops import astype, constant, equal, weighted_sum, where
from nbflow.ops.joining import concat
from nbflow.ops.rows import SCATTER_UPDATES
from nbflow.ops.state import GRADIENT_INPUT
from nbflow.parallel.base import Expanded, strategy_of
from nbflow.parallel.everywhere import spread_restores
from nbflow.rewrite import TensorMap, copy_nodes, new_like
from nbflow.spec import kind_of

_KIND = "data_parallel"
# Ops (handle, value) that change a variable, other than the updates of optimizers.
_STATE_WRITERS = ("assign", "assign_add", "assign_sub")
# Ops (handle, row numbers, values) that change rows of one.
_ROW_WRITERS = tuple(f"variable_scatter_{how}" for how in SCATTER_UPDATES)
# Ops that give each replica data of its own.
_READERS = ("iterator_next", "queue_dequeue", "queue_dequeue_many", "queue_dequeue_up_to")


@dataclass(frozen=True, slots=True)
class DataParallel:
    """Replicates a training step over the devices that match `workers`, with variables on those that match `ps`.

    - `workers`, `ps`: partial devices. When nothing matches `ps` (or it is None) variables are spread over the workers;
      when nothing matches `workers` there is one replica, wherever the placer puts it.
    - `sync`: wait for all gradients of a step and apply their mean; otherwise apply each as it comes.
    """

    workers: str = "/job:worker"
    ps: str | None = "/job:ps"
    sync: bool = True
    backup: int = 0
    compress: str | None = None

    def __post_init__(self) -> None:
        parse_device(self.workers)
        parse_device(self.ps)
        if self.backup:
            raise GraphError(f"backup={self.backup}: backup workers are not supported yet; use backup=0")
        if self.compress is not None:
            raise GraphError(f"compress={self.compress!r}: compression is not supported yet; use compress=None")

    def to_attrs(self) -> tuple[AttrValue, ...]:
        return (_KIND, self.workers, self.ps or "", self.sync)

    @staticmethod
    def from_attrs(attrs: Sequence[AttrValue]) -> DataParallel:
        return DataParallel(str(attrs[1]), str(attrs[2]) or None, bool(attrs[3]))

    def replica_devices(self, available: Sequence[DeviceSpec]) -> list[DeviceSpec]:
        """One device a replica: every GPU that matches, or where a task has none its first device."""
        wanted = parse_device(self.workers)
        found: dict[tuple[str | None, int | None], list[DeviceSpec]] = {}
        for device in available:
            if wanted.matches(device):
                found.setdefault((device.job, device.task), []).append(device)
        chosen: list[DeviceSpec] = []
        for of_task in found.values():
            gpus = [d for d in of_task if d.type == "gpu"]
            chosen += gpus or of_task[:1]
        return chosen


def strategy_in(nodes: Sequence[Node | Tensor]) -> tuple[Node, DataParallel] | None:
    """The training step among the fetches that has a strategy, if any. Raises GraphError for two."""
    steps = [n for n in nodes if isinstance(n, Node) and strategy_of(n)]
    if not steps:
        return None
    if len(steps) > 1:
        names = " and ".join(repr(s.name) for s in steps)
        raise GraphError(f"run one training step at a time: {names} have a strategy each")
    return steps[0], DataParallel.from_attrs(strategy_of(steps[0]))


def expand(
    graph: Graph, fetches: Sequence[Node | Tensor], available: Sequence[DeviceSpec], replica: int | None = None
) -> Expanded:
    """Rewrites a pruned graph by the strategy of the step among `fetches` (nodes and tensors of `graph`).

    `replica`: only this one, for asynchronous training. Without a strategy, or with a single worker, nothing changes
    but the variables' preferred devices. A fetched tensor that every replica computes becomes the mean over the
    replicas (rank 0) or their concatenation (rank ≥ 1). What is fed goes whole to every replica; what is computed from
    that and from no dataset or queue is not concatenated: it is as long as with one replica.
    """
    spread_restores(graph, available)
    found = strategy_in(fetches)
    if found is None:
        return _unchanged(graph)
    step, strategy = found
    replicas = strategy.replica_devices(available)
    prefer = _preferred(graph, strategy, available)
    if not replicas:
        return _unchanged(graph, prefer)
    rewrite = _Rewrite(graph, step, fetches, replicas)
    if strategy.sync:
        rewrite.build(range(len(replicas)))
    else:
        rewrite.build([replica or 0])
    names = tuple(str(d) for d in replicas)
    return Expanded(rewrite.made, rewrite.tensors, rewrite.nodes, prefer, names)


def _unchanged(graph: Graph, prefer: dict[str, str] | None = None) -> Expanded:
    tensors = {(n.name, t.index): t for n in graph.nodes.values() for t in n.outputs}
    return Expanded(graph, tensors, graph.nodes, prefer or {})


def _preferred(graph: Graph, strategy: DataParallel, available: Sequence[DeviceSpec]) -> dict[str, str]:
    wanted = strategy.ps
    if not wanted or not any(parse_device(wanted).matches(d) for d in available):
        wanted = strategy.workers
    return {n.name: wanted for n in graph.nodes.values() if n.op == "variable" and not str(n.device)}


def _joints(updates: Sequence[Node]) -> list[Node]:
    """Where gradients are joined: at joins, and at the updates with none before them."""
    joins = {n.name for n in updates if n.op in ("gradient_join", "sparse_join")}
    if not joins:
        return list(updates)
    behind = _reached(ancestors(updates), joins)
    return [n for n in updates if n.name in joins or n.inputs[GRADIENT_INPUT[n.op]].node.name not in behind]


def _reached(order: Sequence[Node], names: set[str]) -> set[str]:
    """`names` and those of the nodes that depend on them, among `order` (inputs first)."""
    found: set[str] = set()
    for node in order:
        before = (*(t.node for t in node.inputs), *node.control_inputs)
        if node.name in names or any(b.name in found for b in before):
            found.add(node.name)
    return found


def _looks_up_rows(node: Node) -> bool:
    """Whether `node` takes rows from a variable that is larger than what it takes."""
    return (
        node.op in ("take", "gather_nd")
        and node.inputs[0].node.op == "read_variable"
        and not str(node.device)
        and nbytes_of([node.outputs[0].spec]) < nbytes_of([node.inputs[0].spec])
    )


class _Rewrite:
    """Builds the replicated graph in `made`."""

    def __init__(
        self, graph: Graph, step: Node, fetches: Sequence[Node | Tensor], replicas: Sequence[DeviceSpec]
    ) -> None:
        self.graph = graph
        self.fetches = fetches
        self.replicas = replicas
        self.made = new_like(graph)
        self.made.owner = step.owner  # what joins the replicas belongs to the cell of the step
        self.tensors: TensorMap = {}  # what stands for the original, outside the replicas
        self.nodes: dict[str, Node] = {}
        self.of_replica: dict[int, TensorMap] = {}
        self.applies = _joints([n for n in ancestors([step]) if n.op in GRADIENT_INPUT])
        if not self.applies:
            raise GraphError(f"{step.name!r} updates no variable", where=step.where)
        self.writers = self._state_writers()
        self.homes = self._homes()
        self.copied = self._replicated()

    def _state_writers(self) -> list[Node]:
        """Updates of state on the way (the moving averages of batch_norm): made once, with the mean over the replicas,
        as with gradients. One whose new value is computed with stays with the replica that does so."""
        read = {t.node.name for n in self.graph.nodes.values() for t in n.inputs}
        return [
            n
            for n in self.graph.nodes.values()
            if n.op in (*_STATE_WRITERS, *_ROW_WRITERS) and n.name not in read and not any(n is f for f in self.fetches)
        ]

    def _replicated(self) -> set[str]:
        """Names of the nodes that each replica has of its own: what gradients are computed from, and what else is
        computed from that without passing through an update."""
        roots = [n.inputs[GRADIENT_INPUT[n.op]].node for n in self.applies]
        alone = {
            n.name for n in self.graph.nodes.values() if n.op in ("variable", "read_variable", "queue", "placeholder")
        }
        alone.update(n.name for n in self.writers)
        found = {n.name for n in ancestors(roots)} - alone
        applied: set[str] = set()
        for node in topological(self.graph.nodes.values()):
            before = [t.node for t in node.inputs] + list(node.control_inputs)
            if node.op in GRADIENT_INPUT or any(b.name in applied for b in before):
                applied.add(node.name)
            elif node.name not in alone and any(t.node.name in found for t in node.inputs):
                found.add(node.name)
        for node in self.writers:
            # Each replica scatters as many row numbers as values.
            if node.op in _ROW_WRITERS and any(t.node.name in found for t in node.inputs[1:]):
                found.update({n.name for n in ancestors([t.node for t in node.inputs[1:]])} - alone - applied)
        # Constants and the like that only the copied nodes read cost nothing to copy, and save a transfer a step.
        users: dict[str, list[str]] = {}
        for node in self.graph.nodes.values():
            for tensor in node.inputs:
                if tensor.node.op == "constant":
                    users.setdefault(tensor.node.name, []).append(node.name)
        found.update(name for name, readers in users.items() if all(reader in found for reader in readers))
        return found

    def build(self, which: Sequence[int]) -> None:
        order = topological(self.graph.nodes.values())
        joined = [n.inputs[GRADIENT_INPUT[n.op]] for n in self.applies]
        joined += [t for n in self.writers for t in n.inputs[1:]]
        gradients = {(t.node.name, t.index) for t in joined}
        behind = _reached(order, self.copied)
        early = [n for n in order if n.name not in behind]
        copy_nodes(early, self.made, self.tensors, self.nodes)
        for index in which:
            tensors = dict(self.tensors)
            mine = [n for n in order if n.name in self.copied]
            copy_nodes(
                mine,
                self.made,
                tensors,
                dict(self.nodes),
                rename=lambda name, index=index: f"replica_{index}/{name}",  # type: ignore[misc]
                change=lambda old, new, index=index: self._adapt(old, new, index, len(which)),  # type: ignore[misc]
            )
            self.of_replica[index] = tensors
        weights = self._weights(which)
        wanted = [t for t in self._crossing(order) if (t.node.name, t.index) in gradients]
        others = [t for t in self._crossing(order) if (t.node.name, t.index) not in gradients]
        for tensor in wanted:
            self.tensors[(tensor.node.name, tensor.index)] = self._join(tensor, which, weights, fetched=False)
        for tensor in others:
            self.tensors[(tensor.node.name, tensor.index)] = self._join(tensor, which, weights, fetched=True)
        rest = [n for n in order if n.name not in self.copied and n.name not in self.nodes]
        copy_nodes(rest, self.made, self.tensors, self.nodes)
        self._restore_controls(rest, which)

    def _restore_controls(self, rest: Sequence[Node], which: Sequence[int]) -> None:
        """What ran after a copied node runs after all of its copies."""
        for node in rest:
            copies = [
                self.made.nodes[f"replica_{i}/{c.name}"]
                for c in node.control_inputs
                if c.name in self.copied
                for i in which
            ]
            new = self.nodes[node.name]
            new.control_inputs = tuple(dict.fromkeys([*new.control_inputs, *copies]))

    def _adapt(self, old: Node, new: Node, index: int, count: int) -> None:
        """A replica's node: on the replica's device unless the user named a job, with its part of the data."""
        new.colocate = ()
        if _looks_up_rows(new):
            # On the variable's device: a few rows travel to the replica, not the whole table.
            new.colocate = (new.inputs[0].node.inputs[0].node.name,)
        elif new.device.job is None:
            new.device = self.replicas[index].merge(DeviceSpec(type=new.device.type, index=new.device.index))
        if new.op == "iterator":
            new.attrs["shared"] = old.name  # one place for all replicas, which saving and restoring know
        elif new.op == "iterator_next":
            total = len(self.replicas)
            new.attrs["shard" if count == total else "deal"] = (index, total)

    def _crossing(self, order: Sequence[Node]) -> list[Tensor]:
        """Tensors of the replicas that somebody outside reads: updates, fetches."""
        found: dict[tuple[str, int], Tensor] = {}
        for node in order:
            if node.name not in self.copied:
                for tensor in node.inputs:
                    if tensor.node.name in self.copied:
                        found[(tensor.node.name, tensor.index)] = tensor
        for fetch in self.fetches:
            if isinstance(fetch, Tensor) and fetch.node.name in self.copied:
                found[(fetch.node.name, fetch.index)] = fetch
        return list(found.values())

    def _weights(self, which: Sequence[int]) -> list[Tensor] | None:
        """Each replica's share of the rows, from its own iterator; None when there is one replica or no dataset."""
        if len(which) == 1:
            return None
        iterators = [n for n in self.graph.nodes.values() if n.op == "iterator_next" and n.name in self.copied]
        if not iterators:
            return None
        first = iterators[0]
        return [self.of_replica[i][(first.name, len(first.outputs) - 1)] for i in which]

    def _homes(self) -> dict[tuple[str, int], tuple[str, str]]:
        """Tensor -> the variable for whose sake it is joined, and how: 'mean' of gradients and new values, 'share' for
        the values of a sparse gradient, which are concatenated as parts of that mean, 'rows' for row numbers and what
        is scattered, concatenated as they are."""
        found: dict[tuple[str, int], tuple[str, str]] = {}
        for node in self.applies:
            how = {"values": "share", "indices": "rows"}.get(node.attrs.get("part", ""), "mean")
            tensor = node.inputs[GRADIENT_INPUT[node.op]]
            home = next(t.node.name for t in node.inputs if t.spec.resource)
            found.setdefault((tensor.node.name, tensor.index), (home, how))
        for node in self.writers:
            how = "rows" if node.op in _ROW_WRITERS else "mean"
            for tensor in node.inputs[1:]:
                found.setdefault((tensor.node.name, tensor.index), (node.inputs[0].node.name, how))
        return found

    def _has_data(self, tensor: Tensor) -> bool:
        """Whether the replicas compute `tensor` from data of their own."""
        return any(n.op in _READERS and n.name in self.copied for n in ancestors([tensor.node]))

    def _join(self, tensor: Tensor, which: Sequence[int], weights: list[Tensor] | None, *, fetched: bool) -> Tensor:
        """The mean over replicas of a gradient or a scalar; the concatenation of anything else."""
        parts = [self.of_replica[i][(tensor.node.name, tensor.index)] for i in which]
        if len(parts) == 1:
            return parts[0]
        home, how = "", "rows" if tensor.spec.rank != 0 else "mean"
        if not fetched:
            home, how = self.homes.get((tensor.node.name, tensor.index), (home, how))
        with self.made.as_default(), self.made.name_scope("joined"), self.made.name_scope(tensor.node.name):
            with self.made.colocate_with(self.nodes[home]) if home else nullcontext():
                if how == "rows":
                    return parts[0] if fetched and not self._has_data(tensor) else concat(parts, axis=0)
                if kind_of(tensor.dtype) not in "fc":
                    raise GraphError(
                        f"{tensor.name} is a {tensor.dtype.name} scalar on each replica, of which there is no mean; "
                        "cast it with nf.astype, or fetch it without the training step",
                        where=tensor.node.where,
                    )
                shares = weights or [constant(np.float64(1.0 / len(parts))) for _ in parts]
                if how == "share":
                    return concat([_share(p, w) for p, w in zip(parts, shares, strict=True)], axis=0)
                return weighted_sum(parts, shares)


def _share(values: Tensor, weight: Tensor) -> Tensor:
    """`weight` · `values`; zeros for a replica without rows, whose values may be NaN."""
    return where(equal(weight, 0), 0, values * astype(weight, values.dtype))
