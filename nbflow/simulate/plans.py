"""From a training step and machines to the programs that are simulated: real plans of few replicas, and copies."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from nbflow.cost import Times
from nbflow.device import DeviceSpec, parse_device
from nbflow.errors import GraphError
from nbflow.graph import Node, Tensor, ancestors
from nbflow.machines import Machine
from nbflow.optimize import chosen, prune
from nbflow.parallel import Role, Strategy, read_strategy, strategy_of
from nbflow.prepare import Prepared, Setting, prepare
from nbflow.simulate.engine import Control
from nbflow.simulate.model import Messages, Model, Program, model_of
from nbflow.simulate.stragglers import Stragglers
from nbflow.simulate.strategies import Steps, steps_of
from nbflow.simulate.symmetry import REAL, expand
from nbflow.simulate.times import StepTimes
from nbflow.spec import TensorSpec
from nbflow.transport import DeviceInfo

# With more replicas that have plans of their own, making these takes minutes.
MOST_REAL = 64


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


def model_for(
    step: Node, replicas: int, ps: int, cluster: Described, *, real: int = REAL, strategy: Strategy | None = None
) -> tuple[Steps, Model, dict[str, Machine]]:
    """How a step is simulated with `replicas` replicas, its model, and each process' machine. `strategy`: None for its
    own."""
    found = steps_of(strategy or read_strategy(strategy_of(step)), replicas)
    ps = ps if found.ps_job else 0
    few = real if found.alike and ps and replicas > real else replicas
    if few < 3 and replicas > few:
        raise GraphError(f"a pattern is found among 3 replicas or more, not {real}")
    if few > MOST_REAL:
        raise GraphError(
            f"the plans of {replicas} workers would all be made, and take long: replicas without ps tasks, or in "
            f"pipelines, differ; simulate at most {MOST_REAL}"
        )
    machines = cluster.machines(found.workers_job, found.ps_job)
    programs: list[Program] = []
    for phase, role in enumerate(found.roles):
        if found.separate:
            programs += _separate(step, found, replicas, few, ps, cluster)
        else:
            made, times = _programs(step, found, role, few, ps, cluster)
            if replicas > few:
                made = expand(made, replicas, times.join_s)
            programs += [replace(p, phase=phase) for p in made.programs]
    model = Model(tuple(programs), replicas, found.cycle)
    return found, model, {p.task_name: machines[parse_device(p.device).job or ""] for p in programs}


def _separate(step: Node, found: Steps, replicas: int, few: int, ps: int, cluster: Described) -> list[Program]:
    """The programs of each replica's own steps. Of many, each but the first does what the second does."""
    programs: list[Program] = []
    for index in range(min(2, few) if replicas > few else few):
        made, _ = _programs(step, found, Role("replica", index), few, ps, cluster)
        here = [p for p in made.programs if p.replica == index]
        mine = [replace(p, loop=index, replica=p.replica if p.replica == index else -1) for p in made.programs]
        programs += mine
        if index and replicas > few:
            (own,) = here
            job = parse_device(own.device)
            for copy in range(2, replicas):
                device = str(replace(job, task=(job.task or 0) + copy - index))
                for program in mine:
                    at = device if program.device == own.device else program.device
                    number = copy if program.device == own.device else -1
                    programs.append(replace(program, device=at, replica=number, loop=copy))
    return programs


def _programs(
    step: Node, found: Steps, role: Role, replicas: int, ps: int, cluster: Described
) -> tuple[Model, StepTimes]:
    """The model of the real plans of `role`, and what its ops take."""
    prepared = _prepare(step, found, role, replicas, ps)
    rows = None if cluster.rows is None else max(1, cluster.rows // found.parts)
    machines = cluster.machines(found.workers_job, found.ps_job)
    times = StepTimes(prepared.graph, machines, rows=rows, measured=cluster.measured)
    plans = [plan for bundle in prepared.bundles.values() for plan in bundle.plans]
    return model_of(plans, prepared.replicas, times, cluster.messages), times


def _prepare(step: Node, found: Steps, role: Role, replicas: int, ps: int) -> Prepared:
    """The plans of a run on devices that are described: they are null devices, which support every op."""
    nodes = ancestors([step])
    feeds: dict[Tensor, TensorSpec] = {n.outputs[0]: n.outputs[0].spec for n in nodes if n.op == "placeholder"}
    pruned = prune(step.graph, [step], feeds)
    goal = pruned.nodes[step.name]
    goal.attrs["strategy"] = found.strategy.to_attrs()
    infos = [DeviceInfo(DeviceSpec(found.workers_job, i, "null", 0)) for i in range(replicas)]
    infos += [DeviceInfo(DeviceSpec(found.ps_job, i, "null", 0)) for i in range(ps)]
    fed = {pruned.tensors[(t.node.name, t.index)]: spec for t, spec in feeds.items()}
    setting = Setting(infos, {}, chosen())
    prepared = prepare(pruned.graph, [goal], fed, setting, session="simulate", role=role)
    if not prepared.replicas:
        raise GraphError(f"the strategy of {step.name!r} finds no workers among {infos[0].spec}, …", where=step.where)
    return prepared
