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
from nbflow.graph import Node, as_node
from nbflow.train.attach import about_run
from nbflow.train.display import Display, open_display
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
    resume: bool = True,
    name: str = "",
) -> Run:
    """Runs `step` (from `optimizer.minimize`) `steps` times, on the workers.

    Every `every` steps, and at the last, `metrics` (name -> scalar tensor) are computed in the same step and sent
    back. `background=True` returns at once; otherwise the call waits, and an interrupt cancels the run on all workers.
    `stop_on_nan`: a metric that is NaN or infinite ends the run. `show`: live curves in a notebook, a progress bar
    elsewhere. Under asynchronous DataParallel `steps` counts the updates of all replicas together.

    `checkpoint`: a folder for checkpoints, of every `checkpoint_every` steps and of the last; the last five of them
    stay. With `resume` a run goes on from the last one that is there, and makes the steps that are left of `steps`:
    after synchronous training with the losses that it would have had without the break, bit for bit. Saving is done by
    this process between two steps, while the workers wait.

    `name`: what `cluster.runs()` and `nf.train.attach` call the run, on this cluster or from another process; its id,
    when empty.

    Raises GraphError for a step that updates nothing or a metric that is not a scalar, and the run's own error.
    """
    if steps < 1 or every < 1:
        raise GraphError(f"steps and every are at least 1, not {steps} and {every}")
    session = current_session()
    wanted = metric_tensors(metrics or {})
    run_id = uuid.uuid4().hex[:12]
    keeper, done = None, []
    if checkpoint is not None:
        keeper = Keeper(checkpoint, checkpoint_every, session, [as_node(step), *wanted.values()])
        done = keeper.begin(resume)
    members = plan_loops(session, as_node(step), wanted, run_id, steps, every, stop_on_nan, done)
    text = about_run(name or run_id, steps, list(wanted), members, str(checkpoint or "")).text()
    members = [replace(m, loop=replace(m.loop, about=text)) for m in members]
    if keeper is not None:
        keeper.prepare()
    made = Run(run_id, session, members, list(wanted), keeper)
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
