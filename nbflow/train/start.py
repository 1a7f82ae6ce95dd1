"""`nf.train.run`: plans the loops of a run, starts them, and shows it."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nbflow.current import current_session
from nbflow.errors import GraphError
from nbflow.graph import Node, Tensor, as_node
from nbflow.session import Session
from nbflow.train.attach import about_run
from nbflow.train.display import Display, open_display
from nbflow.train.elastic import Elastic
from nbflow.train.hooks import Writer, evaluation_tensors, with_evaluation, with_saving
from nbflow.train.keeping import Keeper
from nbflow.train.planning import Planned, metric_tensors, plan_loops
from nbflow.train.run import Run


def run(
    step: Node,
    steps: int = 1000,
    metrics: Mapping[str, Any] | None = None,
    every: int = 10,
    *,
    background: bool = False,
    show: bool = True,
    stop_on_nan: bool = False,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 200,
    checkpoint_by: Writer = "auto",
    resume: bool = True,
    name: str = "",
    evaluate: Any = None,
    eval_feeds: Mapping[Tensor, Any] | None = None,
    eval_every: int = 100,
    eval_steps: int = 1,
    elastic: bool = False,
) -> Run:
    """Runs `step` (from `optimizer.minimize`) `steps` times, on the workers.

    Every `every` steps, and at the last, `metrics` (name -> scalar tensor) are computed in the same step and sent
    back. `background=True` returns at once; otherwise the call waits, and an interrupt cancels the run on all workers.
    `stop_on_nan`: a metric that is NaN or infinite ends the run. `show`: live curves in a notebook, a progress bar
    elsewhere. Under asynchronous DataParallel `steps` counts the updates of all replicas together.

    `checkpoint`: a folder for checkpoints, of every `checkpoint_every` steps and of the last; the last five of them
    stay. With `resume` a run goes on from the last one that is there, and makes the steps that are left of `steps`:
    after synchronous training with the losses that it would have had without the break, bit for bit. Saving is done
    between two steps: by the worker that leads the loop, whether this process is there or not, if that worker may write
    to the folder (workers of `nf.cluster.local` may, others below their `--checkpoints DIR`) and the folder is the same
    one for both; else, and with asynchronous replicas, by this process. `checkpoint_by="worker"` is an error where no
    worker can; "client" leaves it to this process.

    `evaluate` (a scalar tensor, or name -> scalar tensor) is computed by a worker after every `eval_every` steps and
    after the last, `eval_steps` times in a row, as `nf.run` would between two steps; the means are in the history under
    their names, "evaluation" for a single tensor. `eval_feeds`: graph tensor -> the tensor or array that stands for it
    then, such as the batches of another dataset; with `.repeat()` and as many `eval_steps` as it has batches each time
    is one whole pass. No other step of the same loop is in flight
    meanwhile, so under synchronous training, with backups too, all values are of one step; under asynchronous training
    the first replica evaluates while the others go on, and the values are of the moment. Where the data of an
    evaluation stand is in no checkpoint.

    `elastic`: workers may join and leave while the run goes on, between two steps; for DataParallel and LocalSGD. After
    synchronous training the losses are those that one process would have had, whoever was lost (docs/replicas.md).
    Values that only a lost worker had come from the last checkpoint; without one the run fails. `Run.changes` says what
    happened. Each update then waits for all gradients of its step.

    `name`: what `cluster.runs()` and `nf.train.attach` call the run, on this cluster or from another process; its id,
    when empty.

    Raises GraphError for a step that updates nothing, a metric that is not a scalar or a name used twice, an evaluation
    that would take batches from the training, `elastic` without replicas, and the run's own error.
    """
    for what, count in {"steps": steps, "every": every, "eval_every": eval_every, "eval_steps": eval_steps}.items():
        if count < 1:
            raise GraphError(f"{what} is at least 1, not {count}")
    wanted = metric_tensors(metrics or {})
    evaluated = evaluation_tensors(evaluate, wanted)
    maker = _Maker(
        current_session(),
        as_node(step),
        wanted,
        steps,
        every,
        stop_on_nan,
        evaluated,
        eval_feeds or {},
        eval_every,
        eval_steps,
        checkpoint_by,
        name,
    )
    done: list[int] = []
    if checkpoint is not None:
        maker.keeper = Keeper(checkpoint, checkpoint_every, maker.session, [as_node(step), *wanted.values()])
        done = maker.keeper.begin(resume)
    membership = None
    if elastic:
        maker.elastic = True
        membership = Elastic(maker.session, as_node(step), list(wanted.values()), maker, maker.keeper)
    planned = maker(done)
    made = Run(maker.run_id, maker.session, planned, list(wanted), evaluated=list(evaluated), elastic=membership)
    display = open_display(made) if show else None
    if background:
        made.begin()
        threading.Thread(target=_follow, args=(made, display), name="nbflow-follow", daemon=True).start()
        return made
    try:
        made.begin()
        made.watch()
    except BaseException as error:
        made.interrupt()
        error.add_note(made.how_it_ended())
        raise
    finally:
        if display is not None:
            display.finish()
    if made.error is not None:
        raise made.error
    return made


@dataclass(slots=True)
class _Maker:
    """What a run was asked for; plans its loops for the workers that are there, each time with other names."""

    session: Session
    step: Node
    metrics: Mapping[str, Tensor]
    steps: int
    every: int
    stop_on_nan: bool
    evaluated: Mapping[str, Tensor]
    eval_feeds: Mapping[Tensor, Any]
    eval_every: int
    eval_steps: int
    writer: Writer
    name: str
    keeper: Keeper | None = None
    elastic: bool = False
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    started_s: float = field(default_factory=time.time)

    def __call__(self, done: Sequence[int]) -> Planned:
        session, step, keeper = self.session, self.step, self.keeper
        members = plan_loops(
            session,
            step,
            self.metrics,
            self.run_id,
            self.steps,
            self.every,
            self.stop_on_nan,
            done,
            elastic=self.elastic,
        )
        if self.evaluated:
            members = with_evaluation(
                session, members, step, self.evaluated, self.eval_feeds, self.eval_every, self.eval_steps
            )
        saved_by = ""
        if keeper is not None:
            keeper.prepare()
            saving = with_saving(session, members, keeper, self.writer)
            if saving is not None:
                members, keeper, saved_by = saving, None, saving[0].leader
        about = about_run(
            self.name or self.run_id,
            self.steps,
            list(self.metrics),
            members,
            "" if self.keeper is None else str(self.keeper.folder),
            list(self.evaluated),
            saved_by,
            self.started_s,
        )
        members = [replace(m, loop=replace(m.loop, about=about.text())) for m in members]
        return Planned(members, keeper, saved_by)


def _follow(made: Run, display: Display | None) -> None:
    """Watches over a run in the background."""
    made.watch()
    if display is not None:
        display.finish()
