"""What a run consists of: which loops, led by which tasks, with which metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nbflow.device import parse_device
from nbflow.errors import GraphError
from nbflow.graph import Node, Tensor
from nbflow.parallel import DataParallel, strategy_of
from nbflow.prepare import Prepared
from nbflow.session import Session
from nbflow.structure import Leaf, flatten
from nbflow.train.keeping import shared_out
from nbflow.transport import Loop, MetricSource


@dataclass(frozen=True, slots=True)
class Member:
    """One loop of a run and the task that leads it.

    `weight`: how many global steps one of its steps counts for. `plans` keeps what it runs registered.
    """

    loop: Loop
    leader: str
    weight: int
    plans: tuple[Prepared, ...]

    @property
    def last(self) -> int:
        """The number of its last step."""
        return self.loop.first + self.loop.steps - 1


def metric_tensors(metrics: Mapping[str, Any]) -> dict[str, Tensor]:
    """The metrics as scalar tensors, by name. Raises GraphError for anything else."""
    found: dict[str, Tensor] = {}
    for name, value in metrics.items():
        leaves, _ = flatten(value)
        if len(leaves) != 1 or not isinstance(leaves[0], Tensor):
            raise GraphError(f"metric {name!r} is not a tensor: {value!r}")
        tensor = leaves[0]
        if tensor.spec.rank not in (0, None):
            message = f"metric {name!r} is not a scalar but {tensor.spec}; take its nf.mean"
            raise GraphError(message, where=tensor.node.where)
        found[name] = tensor
    return found


def plan_loops(
    session: Session,
    step: Node,
    metrics: Mapping[str, Tensor],
    run_id: str,
    steps: int,
    every: int,
    stop_on_nan: bool,
    done: Sequence[int],
) -> list[Member]:
    """One loop for synchronous training, one a replica for asynchronous. `done`: the steps that loops made before."""
    strategy = strategy_of(step)
    replicas = 1
    asynchronous = bool(strategy) and not DataParallel.from_attrs(strategy).sync
    if asynchronous:
        available = [i.spec for i in session.cluster.devices()]
        replicas = max(1, len(DataParallel.from_attrs(strategy).replica_devices(available)))
    members = []
    loops = min(replicas, steps)
    done = shared_out(done, loops, steps)
    for index in range(loops):
        chosen = index if asynchronous else None
        plain = session.prepare([step], {}, replica=chosen)
        leaves: list[Leaf] = [step, *metrics.values()]
        report = session.prepare(leaves, {}, replica=chosen) if metrics else plain
        members.append(
            _member(
                plain,
                report,
                list(metrics),
                Loop(
                    id=f"{run_id}-{index}",
                    run=run_id,
                    step=plain.bundle_ids,
                    report=report.bundle_ids,
                    metrics=(),
                    first=done[index] + 1,
                    steps=max(0, steps // replicas + (index < steps % replicas) - done[index]),
                    every=max(1, every // replicas),
                    stop_on_nan=stop_on_nan,
                    replica=f"replica_{index}" if asynchronous and replicas > 1 else "",
                ),
                replicas,
                index,
            )
        )
    session.last = report
    return members


def _member(plain: Prepared, report: Prepared, names: Sequence[str], loop: Loop, replicas: int, index: int) -> Member:
    sources = [s for s in report.sources[1:] if s is not None]
    metrics = tuple(MetricSource(n, s.task, s.name) for n, s in zip(names, sources, strict=True))
    tasks = [parse_device(d).task_name for d in plain.replicas]
    leader = tasks[min(index, len(tasks) - 1)] if tasks else next(iter(plain.bundles))
    if leader not in plain.bundles:
        leader = next(iter(plain.bundles))
    return Member(replace(loop, metrics=metrics), leader, replicas, (plain, report))
