"""Data parallelism: forward and backward once per worker, variables on the ps tasks, gradients joined by a mean.

Synchronous: one graph over all replicas. Each replica reads its part of the global batch, in order; a gradient is the
mean of the replicas' gradients, weighted by their rows, summed in replica order. So losses do not depend on the number
of workers. With `backup`, replicas drive their own steps (`backups`). Asynchronous: one graph per replica, each with
its own batches; updates are applied as they come, or within a bound (`staleness`).

The joining follows Chen et al., "Revisiting Distributed Synchronous SGD" (2016).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nbflow.device import DeviceSpec, parse_device
from nbflow.errors import GraphError
from nbflow.graph import Graph, Node, Tensor
from nbflow.op import AttrValue
from nbflow.parallel import backups, staleness
from nbflow.parallel.allreduce import build_ring
from nbflow.parallel.base import ALL, Expanded, Role
from nbflow.parallel.compress import check_compress
from nbflow.parallel.joining import join_all, join_groups
from nbflow.parallel.pieces import even, splittable
from nbflow.parallel.pipeline import Pipeline, ended, in_stages
from nbflow.parallel.replicate import Replication
from nbflow.parallel.whole import keep_data, make_whole

KIND = "data_parallel"
# Below this a variable's transfer is short beside a step that is worth more than one ps.
SPLIT_BYTES = 64 << 20
# Where replicas and variables are unless the user says so.
WORKERS, PS = "/job:worker", "/job:ps"


@dataclass(frozen=True, slots=True)
class DataParallel:
    """Replicates a training step over the devices that match `workers`, with variables on those that match `ps`.

    - `workers`, `ps`: partial devices. Without a job ps variables are spread over the workers; without a job worker
      there is one replica, wherever the placer puts it. Other devices than these two must be there when the step is
      run. `ps=None`: where `sync`, every worker has all variables, and gradients go around a ring of them
      (`allreduce`). `workers` may also be pipelines, as in `(Pipeline(…), Pipeline(…))`: each is a replica, which does
      its part of every batch in stages; synchronous, without backups or a ring.
    - `sync`: wait for the gradients of a step and apply their mean; otherwise apply each as it comes.
    - `backup`: of the n replicas of synchronous training, the first n - backup to come make a step; what comes later
      is dropped. A slow or lost worker then does not hold up the others. Less than half of the replicas: running the
      step is an error with too few of them, or none.
    - `compress`: "bfloat16" or "float16": gradients travel as that.
    - `split_bytes`: a variable of more bytes than this is split by rows, each piece a state of its own: as few pieces
      as make each no larger, and at most one for each task that may hold variables. Not with ps=None.
    - `staleness`: of asynchronous training: no replica is more than so many steps ahead of the slowest. None: no bound.

    Raises GraphError for what does not go together.
    """

    workers: str | tuple[Pipeline, ...] = WORKERS
    ps: str | None = PS
    sync: bool = True
    backup: int = 0
    compress: str | None = None
    staleness: int | None = None
    split_bytes: int = SPLIT_BYTES

    def __post_init__(self) -> None:
        if isinstance(self.workers, str):
            parse_device(self.workers)
        else:
            object.__setattr__(self, "workers", tuple(self.workers))
            self._check_pipelines()
        parse_device(self.ps)
        check_compress(self.compress)
        if isinstance(self.backup, bool) or int(self.backup) != self.backup or self.backup < 0:
            raise GraphError(f"backup is a number of workers, not {self.backup!r}")
        if self.backup and not self.sync:
            raise GraphError(f"backup={self.backup} is of synchronous training: no replica of another waits")
        if self.compress and self.replicated:
            raise GraphError(
                f"compress={self.compress!r} is of gradients that go to a ps; with ps=None they go around a ring"
            )
        if isinstance(self.split_bytes, bool) or int(self.split_bytes) != self.split_bytes or self.split_bytes <= 0:
            raise GraphError(f"split_bytes is a positive number of bytes, not {self.split_bytes!r}")
        if self.staleness is not None:
            if isinstance(self.staleness, bool) or int(self.staleness) != self.staleness or self.staleness < 0:
                raise GraphError(f"staleness is a number of steps, not {self.staleness!r}")
            if self.sync:
                raise GraphError(f"staleness={self.staleness} is of asynchronous training; use sync=False")

    def _check_pipelines(self) -> None:
        pipelines = self.pipelines
        if not pipelines or not all(isinstance(p, Pipeline) for p in pipelines):
            raise GraphError(
                f"workers is a partial device, such as '/job:worker', or a nf.train.Pipeline for each replica, not "
                f"{self.workers!r}"
            )
        if len({(len(p.stages), p.microbatches) for p in pipelines}) > 1:
            shapes = ", ".join(f"{len(p.stages)} stages and {p.microbatches} micro-batches" for p in pipelines)
            raise GraphError(f"pipelines that are replicas of one model are alike; these have {shapes}")
        if not self.sync or self.backup or self.ps is None:
            raise GraphError(
                "replicas that are pipelines train in step: sync=True, without a backup, with variables on a ps or, "
                "where there is none, on the stages of the first"
            )

    def to_attrs(self) -> tuple[AttrValue, ...]:
        return (
            KIND,
            self.workers if isinstance(self.workers, str) else tuple(p.to_attrs() for p in self.workers),
            self.ps or "",
            self.sync,
            self.backup,
            self.compress or "",
            self.staleness,
            self.split_bytes,
        )

    @staticmethod
    def from_attrs(attrs: Sequence[AttrValue]) -> DataParallel:
        if attrs[0] != KIND:
            raise GraphError(f"the step's strategy is {attrs[0]!r}, not {KIND!r}")
        _, workers, ps, sync, *more = attrs
        usual: list[AttrValue] = [0, "", None, SPLIT_BYTES]  # steps of older graphs say less
        backup, compress, bound, limit = [*more, *usual[len(more) :]]
        used = workers if isinstance(workers, str) else tuple(map(Pipeline.from_attrs, workers))
        return DataParallel(used, str(ps) or None, bool(sync), int(backup), compress or None, bound, int(limit))

    @property
    def pipelines(self) -> tuple[Pipeline, ...]:
        """The replicas that are pipelines; none where each is a device."""
        return () if isinstance(self.workers, str) else self.workers

    @property
    def separate(self) -> bool:
        """Whether each replica drives its own steps."""
        return not self.sync or self.backup > 0

    @property
    def replicated(self) -> bool:
        """Whether every worker has all variables, and gradients go around among them."""
        return self.ps is None and not self.separate

    def replica_devices(self, available: Sequence[DeviceSpec]) -> list[DeviceSpec]:
        """One device a replica: every GPU that matches, or where a task has none its first device. Of pipelines the
        devices of all stages, one pipeline after the other."""
        if not isinstance(self.workers, str):
            return self._stages(self.workers, available)
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

    def _stages(self, pipelines: Sequence[Pipeline], available: Sequence[DeviceSpec]) -> list[DeviceSpec]:
        found: list[DeviceSpec] = []
        for number, pipeline in enumerate(pipelines):
            devices = pipeline.replica_devices(available)
            taken = next((d for d in devices if d in found), None)
            if taken is not None:
                raise GraphError(
                    f"pipelines {found.index(taken) // len(devices)} and {number} both have a stage on {taken}; name "
                    "devices of its own for each"
                )
            found += devices
        return found

    def check_there(self, available: Sequence[DeviceSpec]) -> None:
        """Raises GraphError for devices that the user named and that are not there.

        The usual names match nothing on one machine, or without a ps: what is written with them runs anywhere.
        """
        workers = self.workers if isinstance(self.workers, str) else ""  # stages are looked for one by one
        for name, asked, usual in (("workers", workers, WORKERS), ("ps", self.ps, PS)):
            if asked and asked != usual and not any(parse_device(asked).matches(d) for d in available):
                have = ", ".join(str(d) for d in available)
                raise GraphError(
                    f"no device matches {name}={asked!r} of the training step's strategy; there are {have}: "
                    "name some of these, or start a cluster that has such a device"
                )

    def needed(self, replicas: int, *, elastic: bool = False) -> int:
        """How many of `replicas` make a step. `elastic`: of fewer replicas fewer are backups, less than half of them.

        Raises GraphError when `backup` leaves too few.
        """
        if elastic:
            return replicas - min(self.backup, (replicas - 1) // 2)
        if self.backup and self.backup >= replicas - self.backup:
            raise GraphError(
                f"backup={self.backup} of {replicas} workers leaves {replicas - self.backup} to make a step; "
                "there must be more of those than backups: use a smaller backup, or more workers"
            )
        return replicas - self.backup

    def splits(self, graph: Graph, available: Sequence[DeviceSpec]) -> dict[str, tuple[int, ...]]:
        """The variables of `graph` to be split by rows, with the rows of each piece."""
        if self.replicated:
            return {}
        found: dict[str, tuple[int, ...]] = {}
        for name, wanted in self.prefer(graph, available).items():
            node = graph.nodes[name]
            nbytes, shape = node.outputs[0].spec.nbytes or 0, node.attrs["shape"]
            tasks = len({d.task_name for d in available if parse_device(wanted).matches(d)})
            pieces = min(tasks, -(-nbytes // self.split_bytes), shape[0] if shape else 1)
            if pieces > 1 and not node.colocate and splittable(graph, node):
                found[name] = even(shape[0], pieces)
        return found

    def prefer(self, graph: Graph, available: Sequence[DeviceSpec]) -> dict[str, str]:
        """Where variables should be that nobody asked a device for."""
        wanted = self.ps
        if not wanted or not any(parse_device(wanted).matches(d) for d in available):
            if not isinstance(self.workers, str):
                return {}  # each where its stage is
            wanted = self.workers
        return {n.name: wanted for n in graph.nodes.values() if n.op == "variable" and not str(n.device)}

    def expand(
        self,
        graph: Graph,
        step: Node,
        fetches: Sequence[Node | Tensor],
        available: Sequence[DeviceSpec],
        role: Role = ALL,
    ) -> Expanded:
        """The graph of `role`; see `nbflow.parallel.expand`."""
        self.check_there(available)
        replicas = self.replica_devices(available)
        prefer = self.prefer(graph, available)
        if self.pipelines:
            return self._in_pipelines(graph, step, fetches, replicas, prefer)
        if not replicas:
            if self.backup:
                have = ", ".join(str(d) for d in available)
                raise GraphError(
                    f"backup={self.backup} needs several replicas, and no device matches workers={self.workers!r}; "
                    f"there are {have}: nf.set_cluster(...) first, or leave backup out for a step in one piece",
                    where=step.where,
                )
            return Expanded.unchanged(graph, prefer)
        if self.backup:
            count = self.needed(len(replicas), elastic=role.elastic)
            if role.kind != "all":
                replication = Replication(graph, step, fetches, replicas)
                return backups.build(replication, role, count, self.compress).expanded(prefer)
        elif not self.sync:
            replication = Replication(graph, step, fetches, replicas, dealt=True)
            return staleness.build(replication, role, self.staleness, self.compress).expanded(prefer)
        replication = Replication(graph, step, fetches, replicas)
        if self.replicated and len(replicas) > 1:
            return build_ring(replication, role)
        replication.early()
        for index in range(len(replicas)):
            replication.replica(index)
        join_all(replication, self.compress)
        replication.rest()
        replication.end_on(replicas[0])
        if role.elastic:
            make_whole(replication, [replication.tensors[key] for key in replication.given])
            keep_data(replication.made)
        return replication.expanded(prefer)

    def _in_pipelines(
        self,
        graph: Graph,
        step: Node,
        fetches: Sequence[Node | Tensor],
        devices: Sequence[DeviceSpec],
        prefer: dict[str, str],
    ) -> Expanded:
        count, size = len(self.pipelines), self.pipelines[0].microbatches
        stages = len(devices) // count
        groups = [devices[n * stages : (n + 1) * stages] for n in range(count)]
        replication, beside = in_stages(graph, step, fetches, groups, size)
        join_groups(replication, size, self.compress)
        return ended(replication, prefer or beside, devices)
