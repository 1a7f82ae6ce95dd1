"""From a training step and a description of machines to what a step would take."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from nbflow.cost import Times
from nbflow.device import DeviceSpec, parse_device
from nbflow.errors import GraphError
from nbflow.graph import Node, Tensor, ancestors
from nbflow.machines import Machine
from nbflow.optimize import chosen, prune
from nbflow.parallel import DataParallel, strategy_of
from nbflow.parallel.data_parallel import KIND as DATA_PARALLEL
from nbflow.prepare import Prepared, Setting, prepare
from nbflow.simulate.engine import Control, Engine, Run
from nbflow.simulate.model import Messages, Model, fuse, model_of, with_quorum
from nbflow.simulate.stragglers import Stragglers
from nbflow.simulate.symmetry import REAL, expand
from nbflow.simulate.times import StepTimes
from nbflow.spec import TensorSpec
from nbflow.transport import DeviceInfo

# Workers for each ps task, where nobody says otherwise.
WORKERS_PER_PS = 8


@dataclass(frozen=True, slots=True)
class Described:
    """A cluster that need not exist.

    - `machine`, `ps_machine`: of the workers, and of the ps tasks (None: the same); see `nbflow.machines`.
    - `stragglers`: by how much a worker's steps are slower, at random; see `stragglers.Stragglers`.
    - `control`: what a step's commands cost. `messages`: what sending, and taking, a tensor costs its host.
    - `cores`: everything, the driver too, runs on one host with so many cores; None: each device has a machine of its
      own. May be a fraction, where others use the rest.
    - `rows`: rows of data that each worker reads a step, where the graph leaves that open.
    - `measured`: times to use instead of what the ops declare, as for the placer (`nbflow.cost.Times`).
    """

    machine: Machine
    ps_machine: Machine | None = None
    stragglers: Stragglers = field(default_factory=Stragglers)
    control: Control = field(default_factory=lambda: Control(ahead=4))
    messages: Messages = field(default_factory=Messages)
    cores: float | None = None
    rows: int | None = None
    measured: Times | None = None

    def machines(self, workers_job: str, ps_job: str) -> dict[str, Machine]:
        return {workers_job: self.machine, ps_job: self.ps_machine or self.machine}


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a step takes. `step_s`: the median; `low_s`, `high_s`: of the steps' middle 80 %.

    Shares of the time: `compute` of the workers' devices (mean), `ps_compute`, and links, of the busiest ps and of the
    busiest worker, out and in; `messages`, `ps_messages`: of the busiest host, for sending and receiving. `real`: how
    many replicas were in the real plans; more were made by symmetry.
    """

    workers: int
    ps: int
    backups: int
    step_s: float
    low_s: float
    high_s: float
    compute: float
    ps_compute: float
    ps_out: float
    ps_in: float
    worker_out: float
    worker_in: float
    messages: float
    ps_messages: float
    real: int

    @property
    def bound_by(self) -> str:
        """What is busiest. A step pulls, then pushes: the two ways of a link add up."""
        shares = {
            "the workers' compute": self.compute,
            "the ps' compute": self.ps_compute,
            "the ps' links": self.ps_out + self.ps_in,
            "the workers' links": self.worker_out + self.worker_in,
            "the workers' messages": self.messages,
            "the ps' messages": self.ps_messages,
        }
        best = max(shares, key=shares.__getitem__)
        return best if shares[best] >= 0.5 else "waiting: latency, stragglers and order"


def predict(
    step: Node,
    workers: int,
    cluster: Described,
    *,
    ps: int | None = None,
    backups: int = 0,
    steps: int = 20,
    seed: int = 0,
    real: int = REAL,
) -> Prediction:
    """Simulates `steps` steps of training with `workers` + `backups` replicas, of which `workers` are waited for.

    The plans are those that a run would use: the graph is rewritten by the strategy of `step` (DataParallel, if it has
    none), placed, cut and compiled for up to `real` replicas; see `symmetry` for more. Raises GraphError for a step
    that cannot be prepared, PlacementError for devices that it asks for and the description does not have.
    """
    if workers < 1 or backups < 0 or steps < 1 or (ps is not None and ps < 0):
        raise GraphError(f"simulate at least 1 worker and step, no negative ps or backups: {workers=} {steps=}")
    ps = default_ps(workers) if ps is None else ps
    if backups and not ps:
        raise GraphError("backup workers need ps tasks: gradients that come too late are dropped there")
    model, machines = model_for(step, workers + backups, ps, cluster, real=real)
    if backups:
        model = with_quorum(model, workers)
    model = fuse(model)
    run = Engine(model, machines, cluster.control, cluster.cores).run(
        steps + 1, cluster.stragglers.factors(steps + 1, workers + backups, seed)
    )
    return _prediction(run, model, workers, ps, backups, min(workers + backups, real))


def default_ps(workers: int) -> int:
    """How many ps tasks there are, when nobody says."""
    return max(1, math.ceil(workers / WORKERS_PER_PS))


def model_for(
    step: Node, replicas: int, ps: int, cluster: Described, *, real: int = REAL
) -> tuple[Model, dict[str, Machine]]:
    """The model of a step with `replicas` replicas, and each process' machine."""
    few = replicas if replicas <= real or not ps else real
    if few < 3 and replicas > few:
        raise GraphError(f"a pattern is found among 3 replicas or more, not {real}")
    workers_job, ps_job, prepared = _prepare(step, few, ps)
    machines = cluster.machines(workers_job, ps_job)
    times = StepTimes(prepared.graph, machines, rows=cluster.rows, measured=cluster.measured)
    plans = [plan for bundle in prepared.bundles.values() for plan in bundle.plans]
    model = model_of(plans, prepared.replicas, times, cluster.messages)
    if replicas > few:
        model = expand(model, replicas, lambda node, device, *how: times.join_s(node, parse_device(device), *how))
    return model, {p.task_name: machines[parse_device(p.device).job or ""] for p in model.programs}


def _prepare(step: Node, replicas: int, ps: int) -> tuple[str, str, Prepared]:
    """The plans of a run on devices that are described: they are null devices, which support every op."""
    nodes = ancestors([step])
    feeds: dict[Tensor, TensorSpec] = {n.outputs[0]: n.outputs[0].spec for n in nodes if n.op == "placeholder"}
    pruned = prune(step.graph, [step], feeds)
    goal = pruned.nodes[step.name]
    strategy = _synchronous(goal)
    goal.attrs["strategy"] = strategy.to_attrs()
    workers_job = parse_device(strategy.workers if isinstance(strategy.workers, str) else None).job or "worker"
    ps_job = parse_device(strategy.ps).job or "ps"
    infos = [DeviceInfo(DeviceSpec(workers_job, i, "null", 0)) for i in range(replicas)]
    infos += [DeviceInfo(DeviceSpec(ps_job, i, "null", 0)) for i in range(ps)]
    fed = {pruned.tensors[(t.node.name, t.index)]: spec for t, spec in feeds.items()}
    setting = Setting(infos, {}, chosen())
    prepared = prepare(pruned.graph, [goal], fed, setting, session="simulate")
    if not prepared.replicas:
        raise GraphError(f"the strategy of {step.name!r} finds no workers among {infos[0].spec}, …", where=step.where)
    return workers_job, ps_job, prepared


def _synchronous(step: Node) -> DataParallel:
    """The strategy whose plans are simulated. Backups are simulated by a quorum, whatever the plans of a run do."""
    attrs = strategy_of(step)
    if attrs and attrs[0] != DATA_PARALLEL:
        raise GraphError(
            f"{step.name!r} has the strategy {attrs[0]}; simulated are steps with DataParallel", where=step.where
        )
    strategy = DataParallel.from_attrs(attrs) if attrs else DataParallel()
    if strategy.pipelines:
        raise GraphError(f"{step.name!r} is trained by pipelines, which cannot be simulated", where=step.where)
    if not strategy.sync:
        raise GraphError(
            f"{step.name!r} is asynchronous: simulated are steps that replicas make together", where=step.where
        )
    return replace(strategy, backup=0)


def _prediction(run: Run, model: Model, workers: int, ps: int, backups: int, real: int) -> Prediction:
    whole = run.ends[-1] or 1.0
    times = sorted(run.step_s)
    replicas = {p.device: p.task_name for p in model.programs if p.replica >= 0}
    others = {p.device: p.task_name for p in model.programs if p.replica < 0}

    def most(seconds: Mapping[str, float], names: Sequence[str]) -> float:
        return max((seconds[n] for n in names), default=0.0) / whole

    return Prediction(
        workers,
        ps,
        backups,
        statistics.median(times),
        times[math.floor(0.1 * (len(times) - 1))],
        times[math.ceil(0.9 * (len(times) - 1))],
        statistics.mean(run.busy_s[d] for d in replicas) / whole,
        most(run.busy_s, list(others)),
        most(run.out_s, list(others.values())),
        most(run.in_s, list(others.values())),
        most(run.out_s, list(replicas.values())),
        most(run.in_s, list(replicas.values())),
        most(run.host_s, list(replicas)),
        most(run.host_s, list(others)),
        real,
    )
