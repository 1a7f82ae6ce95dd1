"""From a training step and a description of machines to what a step would take."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nbflow.errors import GraphError
from nbflow.graph import Node
from nbflow.parallel import Strategy
from nbflow.simulate.engine import Engine, Run
from nbflow.simulate.model import Model, fuse, with_quorum
from nbflow.simulate.plans import Described, model_for
from nbflow.simulate.strategies import Steps
from nbflow.simulate.symmetry import REAL

# Workers for each ps task, where nobody says otherwise.
WORKERS_PER_PS = 8


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a step takes. `step_s`: the median, where steps differ (asynchronous training, local SGD) the mean; `low_s`,
    `high_s`: of the steps' middle 80 %. `batches`: how many of those a step is worth that one worker alone makes.
    `strategy`: in words.

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
    batches: float = 1.0
    strategy: str = ""

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
    strategy: Strategy | None = None,
) -> Prediction:
    """Simulates `steps` steps of training with `workers` + `backups` replicas, of which `workers` are waited for.

    The plans are those that a run would use: the graph is rewritten by `strategy` (None: that of `step`, or else
    DataParallel), placed, cut and compiled for up to `real` replicas; see `symmetry` for more. Raises GraphError for a
    step that cannot be prepared, PlacementError for devices that it asks for and the description does not have.
    """
    if workers < 1 or backups < 0 or steps < 1 or (ps is not None and ps < 0):
        raise GraphError(f"simulate at least 1 worker and step, no negative ps or backups: {workers=} {steps=}")
    ps = default_ps(workers) if ps is None else ps
    if backups and not ps:
        raise GraphError("backup workers need ps tasks: gradients that come too late are dropped there")
    found, model, machines = model_for(step, workers + backups, ps, cluster, real=real, strategy=strategy)
    if backups:
        if found.separate or found.words != "synchronous":
            raise GraphError(f"backup workers are of synchronous training with ps tasks, not of {found.words}")
        model = with_quorum(model, workers)
    made = _whole(steps, len(model.cycle))
    run = Engine(fuse(model), machines, cluster.control, cluster.cores).run(
        made, cluster.stragglers.factors(made, workers + backups, seed)
    )
    few = workers + backups if not found.alike else min(workers + backups, real)
    return _prediction(run, model, found, workers, ps if found.ps_job else 0, backups, few)


def _whole(steps: int, cycle: int) -> int:
    """At least `steps`, as whole rounds, and a round to warm up."""
    return (math.ceil(steps / cycle) + 1) * cycle


def default_ps(workers: int) -> int:
    """How many ps tasks there are, when nobody says."""
    return max(1, math.ceil(workers / WORKERS_PER_PS))


def _prediction(run: Run, model: Model, found: Steps, workers: int, ps: int, backups: int, real: int) -> Prediction:
    whole = run.whole_s or 1.0
    times = sorted(run.step_s)
    replicas = {p.device: p.task_name for p in model.programs if p.replica >= 0}
    others = {p.device: p.task_name for p in model.programs if p.replica < 0}

    def most(seconds: Mapping[str, float], names: Sequence[str]) -> float:
        return max((seconds[n] for n in names), default=0.0) / whole

    return Prediction(
        workers,
        ps,
        backups,
        run.mean_s if found.separate or len(found.cycle) > 1 else statistics.median(times),
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
        found.batches,
        found.words,
    )
