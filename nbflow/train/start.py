"""`nf.train.run`: plans the loops of a run, starts them, and shows it."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nbflow.current import current_session
from nbflow.errors import GraphError
from nbflow.graph import Node, Tensor, as_node
from nbflow.train.attach import about_run
from nbflow.train.display import Display, open_display
from nbflow.train.hooks import Writer, evaluation_tensors, with_evaluation, with_saving
from nbflow.train.keeping import Keeper
from nbflow.train.planning import metric_tensors, plan_loops
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

    `name`: what `cluster.runs()` and `nf.train.attach` call the run, on this cluster or from another process; its id,
    when empty.

    Raises GraphError for a step that updates nothing, a metric that is not a scalar or a name used twice, an evaluation
    that would take batches from the training, and the run's own error.
    """
    for what, count in {"steps": steps, "every": every, "eval_every": eval_every, "eval_steps": eval_steps}.items():
        if count < 1:
            raise GraphError(f"{what} is at least 1, not {count}")
    session = current_session()
    wanted = metric_tensors(metrics or {})
    evaluated = evaluation_tensors(evaluate, wanted)
    run_id = uuid.uuid4().hex[:12]
    keeper, done = None, []
    if checkpoint is not None:
        keeper = Keeper(checkpoint, checkpoint_every, session, [as_node(step), *wanted.values()])
        done = keeper.begin(resume)
    members = plan_loops(session, as_node(step), wanted, run_id, steps, every, stop_on_nan, done)
    if evaluated:
        members = with_evaluation(session, members, as_node(step), evaluated, eval_feeds or {}, eval_every, eval_steps)
    saved_by = ""
    if keeper is not None:
        keeper.prepare()
        saving = with_saving(session, members, keeper, checkpoint_by)
        if saving is not None:
            members, keeper, saved_by = saving, None, saving[0].leader
    about = about_run(name or run_id, steps, list(wanted), members, str(checkpoint or ""), list(evaluated), saved_by)
    members = [replace(m, loop=replace(m.loop, about=about.text())) for m in members]
    made = Run(run_id, session, members, list(wanted), keeper, evaluated=list(evaluated), saved_by=saved_by)
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


def _follow(made: Run, display: Display | None) -> None:
    """Watches over a run in the background."""
    made.watch()
    if display is not None:
        display.finish()
