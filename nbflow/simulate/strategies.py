"""How the steps of each strategy are simulated: which plans, in which order, for how many workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from nbflow.device import parse_device
from nbflow.errors import GraphError
from nbflow.parallel import ALL, DataParallel, LocalSGD, Pipeline, Role, Strategy

_PLAIN: Mapping[str, Strategy] = {
    "sync": DataParallel(),
    "ring": DataParallel(ps=None),
    "async": DataParallel(sync=False),
}


@dataclass(frozen=True, slots=True)
class Steps:
    """What is simulated of a strategy on a number of workers.

    - `strategy`: the one whose plans are made. `words`: what it is called in a report.
    - `workers_job`, `ps_job`: the jobs of its devices; no ps job where it has no use for one.
    - `roles`: of the plans; a step's are those that `cycle` names, over and over.
    - `separate`: each replica makes steps of its own. `alike`: all replicas but the first do the same, so that a few
      real plans stand for many.
    - `batches`: how many batches a step is worth, of those that a worker alone makes. `parts`: a worker's rows are cut
      into so many micro-batches.
    """

    strategy: Strategy
    words: str
    workers_job: str = "worker"
    ps_job: str = ""
    roles: tuple[Role, ...] = (ALL,)
    cycle: tuple[int, ...] = (0,)
    separate: bool = False
    alike: bool = False
    batches: float = 1.0
    parts: int = 1


def parse_strategy(text: str) -> Strategy:
    """A strategy in words: `sync`, `ring`, `async`, `async:S` (at most S steps apart), `local:K` (averaged every K
    steps). Raises GraphError that shows what can be written."""
    name, colon, number = text.partition(":")
    count = int(number) if number.isascii() and number.isdigit() else -1
    if not colon and name in _PLAIN:
        return _PLAIN[name]
    if name == "async" and count >= 0:
        return DataParallel(sync=False, staleness=count)
    if name == "local" and count >= 1:
        return LocalSGD(every=count)
    raise GraphError(
        f"not a strategy: {text!r}; write sync, ring, async, async:2 (at most 2 steps apart) or local:8 (local SGD, "
        "averaged every 8 steps)"
    )


def steps_of(strategy: Strategy | None, workers: int) -> Steps:
    """How steps with `strategy` are simulated on `workers` workers; without one, as with DataParallel. Raises
    GraphError where its pipelines cannot be on as many."""
    strategy = strategy or DataParallel()
    if isinstance(strategy, LocalSGD):
        return _local(strategy, workers)
    if isinstance(strategy, Pipeline):
        made = _pipeline(strategy, workers)
        return Steps(made, _called(made), _job(made.stages[0], "worker"), parts=made.microbatches)
    assert isinstance(strategy, DataParallel)  # there are three
    return _pipelines(strategy, workers) if strategy.pipelines else _data_parallel(strategy, workers)


def _data_parallel(strategy: DataParallel, workers: int) -> Steps:
    assert isinstance(strategy.workers, str)  # no pipelines
    job, ps_job = _job(strategy.workers, "worker"), _job(strategy.ps, "ps")
    if not strategy.sync:
        bound = "" if strategy.staleness is None else f", at most {strategy.staleness} steps apart"
        words = f"asynchronous{bound}; a step's time is the mean of a replica's"
        return Steps(strategy, words, job, ps_job, separate=True, alike=True, batches=workers)
    strategy = replace(strategy, backup=0)  # they are simulated by a quorum, whatever the plans of a run do
    if strategy.replicated:
        return Steps(strategy, "a ring of the workers", job, roles=(Role("between"),), batches=workers)
    return Steps(strategy, "synchronous", job, ps_job, alike=True, batches=workers)


def _local(strategy: LocalSGD, workers: int) -> Steps:
    job, ps_job = _job(strategy.workers, "worker"), _job(strategy.ps, "ps") if strategy.ps else ""
    if workers == 1:  # nothing to average
        return Steps(DataParallel(strategy.workers, strategy.ps), "local SGD", job, ps_job, alike=True)
    every = strategy.every
    between = (Role("between"),) if every > 2 else ()
    roles = (Role("first"), *between, Role("last")) if every > 1 else (Role("only"),)
    cycle = (0, *[1] * (every - 2), len(roles) - 1) if every > 1 else (0,)
    words = f"local SGD, averaged every {every} steps; a step's time is the mean of a round"
    return Steps(strategy, words, job, ps_job, roles, cycle, alike=True, batches=workers)


def _pipelines(strategy: DataParallel, workers: int) -> Steps:
    """As many pipelines as there are workers for; of fewer workers than stages one that is shorter."""
    one = strategy.pipelines[0]
    size = min(len(one.stages), workers)
    if workers % size:
        raise GraphError(
            f"{workers} workers are not whole pipelines of {size} stages; simulate {size}, {2 * size}, {3 * size}, …"
        )
    job = _job(one.stages[0], "worker")
    groups = [_pipeline(one, size, job, first) for first in range(0, workers, size)]
    made = replace(strategy, workers=tuple(groups))
    words = f"pipelines of {size} stages and {one.microbatches} micro-batches"
    return Steps(made, words, job, _job(strategy.ps, "ps"), batches=len(groups), parts=one.microbatches)


def _pipeline(strategy: Pipeline, workers: int, job: str = "", first: int = 0) -> Pipeline:
    """The same with a worker a stage."""
    job = job or _job(strategy.stages[0], "worker")
    return replace(strategy, stages=tuple(f"/job:{job}/task:{first + n}" for n in range(workers)))


def _called(pipeline: Pipeline) -> str:
    return f"a pipeline of a stage a worker and {pipeline.microbatches} micro-batches"


def _job(device: str | None, usual: str) -> str:
    return parse_device(device).job or usual
