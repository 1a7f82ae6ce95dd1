"""What a run consists of: which loops, led by which tasks, with which metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nbflow.device import parse_device
from nbflow.errors import GraphError
from nbflow.graph import Node, Tensor
from nbflow.parallel import DataParallel, LocalSGD, Role, RoleKind, read_strategy, strategy_of
from nbflow.prepare import Prepared
from nbflow.session import Session
from nbflow.structure import Leaf, flatten
from nbflow.train.keeping import Keeper, shared_out
from nbflow.transport import Loop, MetricSource

# The length of a loop that ends when others do.
ENDLESS = 1 << 40


@dataclass(frozen=True, slots=True)
class Member:
    """One loop of a run and the task that leads it.

    `weight`: how many global steps one of its steps counts for. `plans` keeps what it runs registered. `opening` runs
    before each stretch of the run. `counts`: its steps are steps of the run; otherwise it only gives to those, and
    ends when they have. `spare`: how many of those that give to it may be lost.
    """

    loop: Loop
    leader: str
    weight: int
    plans: tuple[Prepared, ...]
    opening: Prepared | None = None
    counts: bool = True
    spare: int = 0

    @property
    def last(self) -> int:
        """The number of its last step."""
        return self.loop.first + self.loop.steps - 1


@dataclass(frozen=True, slots=True)
class Planned:
    """The loops of a run, and who saves it: this process with `keeper`, the worker `saved_by`, or nobody."""

    members: list[Member]
    keeper: Keeper | None = None
    saved_by: str = ""


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
    *,
    elastic: bool = False,
) -> list[Member]:
    """One loop for synchronous training, one a replica for asynchronous; with backups one that counts, the chief's,
    and one a replica beside it. `done`: the steps that loops made before. `elastic`: see `Role`."""
    strategy = read_strategy(strategy_of(step))
    replicas = 1
    if strategy is not None and strategy.separate:
        replicas = max(1, len(strategy.replica_devices([i.spec for i in session.cluster.devices()])))
    common = Loop(run_id, run_id, {}, {}, (), 1, steps, every, stop_on_nan)
    if replicas > 1 and isinstance(strategy, DataParallel) and strategy.backup:
        spare = replicas - strategy.needed(replicas, elastic=elastic)
        return _with_backups(session, step, metrics, common, replicas, spare, done, elastic)
    copied = isinstance(strategy, LocalSGD) or (isinstance(strategy, DataParallel) and strategy.replicated)
    there = 0 if strategy is None else len(strategy.replica_devices([i.spec for i in session.cluster.devices()]))
    if copied and there > 1:
        session.look(session.prepare([step], {}, role=Role("open")))
    paced = replicas > 1 and isinstance(strategy, DataParallel) and strategy.staleness is not None
    members = []
    loops = min(replicas, steps)
    done = shared_out(done, loops, steps)
    for index in range(loops):
        kind: RoleKind = "replica" if replicas > 1 else "chief" if copied else "all"
        role = Role(kind, index, elastic)
        name = f"replica_{index}" if replicas > 1 else ""
        share = max(0, steps // replicas + (index < steps % replicas) - done[index])
        loop = replace(common, id=f"{run_id}-{index}", first=done[index] + 1, steps=share, replica=name)
        member = _member(session, step, metrics, replace(loop, every=max(1, every // replicas)), role, replicas)
        members.append(_paced(session, step, member, index) if paced else member)
    if isinstance(strategy, LocalSGD) and there > 1:  # a round that is not whole at the end is averaged then
        finish = session.prepare([step], {}, role=Role("leave"))
        loop = replace(members[0].loop, finish=finish.bundle_ids)
        members[0] = replace(members[0], loop=loop, plans=(*members[0].plans, finish))
    return members


def _paced(session: Session, step: Node, member: Member, index: int) -> Member:
    """`member`, which tells the others when it has ended."""
    opening = session.prepare([step], {}, role=Role("open"))
    leave = session.prepare([step], {}, role=Role("leave", index))
    loop = replace(member.loop, finish=leave.bundle_ids)
    return replace(member, loop=loop, plans=(*member.plans, leave), opening=opening if index == 0 else None)


def _with_backups(
    session: Session,
    step: Node,
    metrics: Mapping[str, Tensor],
    common: Loop,
    replicas: int,
    spare: int,
    done: Sequence[int],
    elastic: bool,
) -> list[Member]:
    opening = session.prepare([step], {}, role=Role("open", 0, elastic))
    close = session.prepare([step], {}, role=Role("close", 0, elastic))
    (made,) = shared_out(done, 1, common.steps)
    loop = replace(common, id=f"{common.run}-chief", first=made + 1, steps=common.steps - made)
    chief = _member(session, step, metrics, replace(loop, finish=close.bundle_ids), Role("chief", 0, elastic), 1)
    members = [replace(chief, opening=opening, plans=(*chief.plans, close), spare=spare)]
    leaves: list[Leaf] = [step, *metrics.values()]
    for index in range(replicas):
        gives = session.prepare(leaves, {}, role=Role("replica", index, elastic))
        leave = session.prepare([step], {}, role=Role("leave", index, elastic))
        loop = Loop(
            f"{common.run}-{index}",
            common.run,
            gives.bundle_ids,
            gives.bundle_ids,
            (),
            first=1,
            steps=ENDLESS,
            every=ENDLESS,
            replica=f"replica_{index}",
            finish=leave.bundle_ids,
        )
        members.append(Member(loop, _leader(gives, index), 1, (gives, leave), counts=False))
    return members


def _member(session: Session, step: Node, metrics: Mapping[str, Tensor], loop: Loop, role: Role, weight: int) -> Member:
    """The member that makes the steps of `role`, whose reports fetch `metrics`."""
    plain = session.prepare([step], {}, role=role)
    leaves: list[Leaf] = [step, *metrics.values()]
    report = session.last = session.prepare(leaves, {}, role=role) if metrics else plain
    sources = [s for s in report.sources[1:] if s is not None]
    found = tuple(MetricSource(n, s.task, s.name) for n, s in zip(metrics, sources, strict=True))
    loop = replace(loop, step=plain.bundle_ids, report=report.bundle_ids, metrics=found)
    return Member(loop, _leader(plain, role.index), weight, (plain, report))


def _leader(plain: Prepared, index: int) -> str:
    """The task that drives a loop: that of its replica where there is one, for it is the one that must not wait."""
    tasks = [parse_device(d).task_name for d in plain.replicas]
    leader = tasks[min(index, len(tasks) - 1)] if tasks else next(iter(plain.bundles))
    return leader if leader in plain.bundles else next(iter(plain.bundles))
