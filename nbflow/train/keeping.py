"""Checkpoints of a run: a folder a step in the run's folder, the oldest removed, and where a run goes on.

The loops on the workers run in stretches. When all have reached the end of one they are still; the process that started
the run fetches the variables and writes them, and the next stretch begins. So what is saved is one moment between two
steps, and the number of a step decides what it draws and computes, whether or not there was a break.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nbflow.errors import CheckpointError, GraphError
from nbflow.graph import Node, Tensor, ancestors
from nbflow.session import Session
from nbflow.train.checkpoint import Snapshot, checkpoints, newest, read
from nbflow.variable import variables_of

# Of a run so many checkpoints are kept: enough to go back behind a mistake, few enough to forget about.
KEEP = 5


class Keeper:
    """Saves the variables and iterators behind `targets` (the step and the metrics of a run) into `folder`.

    `every`: a stretch in steps, over all replicas.
    """

    def __init__(self, folder: str | Path, every: int, session: Session, targets: Sequence[Node | Tensor]) -> None:
        if every < 1:
            raise GraphError(f"checkpoint_every is at least 1, not {every}")
        self.folder = Path(folder)
        self.every = every
        self._session = session
        self._variables = variables_of(*targets)
        nodes = ancestors([t if isinstance(t, Node) else t.node for t in targets])
        self._holders = [n for n in nodes if n.op == "iterator"]
        self._snapshot: Snapshot | None = None

    def begin(self, resume: bool) -> list[int]:
        """Restores the last checkpoint, if there is one; the steps that each loop had done then.

        Raises CheckpointError when it is damaged, does not fit the graph, or was not made by a run, and when there is
        one without `resume`: it would be taken for a later one of the new run.
        """
        last = newest(self.folder)
        if last is None:
            return []
        if not resume:
            raise CheckpointError(
                f"{self.folder} holds the checkpoints of a run ({last.name}); remove them, give another folder, or "
                "resume=True to go on"
            )
        found = read(self.folder, self._session, self._variables, self._holders)
        done = found.run.get("done")
        if not isinstance(done, list) or not done or not all(isinstance(n, int) and n >= 0 for n in done):
            raise CheckpointError(
                f"{found.path} was not made by a run, so it does not say where to go on; use nf.train.restore, and "
                "another folder for the run"
            )
        return done

    def prepare(self) -> None:
        """Gets ready to save: from here on no cell that runs changes what is saved."""
        self._snapshot = Snapshot(self._session, self._variables, self._holders)

    def save(self, step: int, done: Sequence[int]) -> Path:
        """A checkpoint of step `step`, which the loops reached by the steps `done`."""
        if self._snapshot is None:
            self.prepare()
        assert self._snapshot is not None  # prepare made it
        notes: Mapping[str, Any] = {"step": step, "done": list(done)}
        made = self._snapshot.write(self.folder / f"step-{step:08d}", notes)
        kept = checkpoints(self.folder)
        for old in sorted(kept)[:-KEEP]:
            # Its manifest first: what is left of it after a crash here is no checkpoint any more.
            (kept[old] / "manifest.json").unlink(missing_ok=True)
            shutil.rmtree(kept[old], ignore_errors=True)
        return made

    def stretch_end(self, done: int, last: int, weight: int) -> int:
        """Up to which step a loop that has done `done` of `last` runs next; `weight`: global steps for one of its."""
        length = max(1, self.every // weight)
        return min(last, (done // length + 1) * length)


def shared_out(done: Sequence[int], loops: int, steps: int) -> list[int]:
    """The steps that each of `loops` has done, from those of as many loops as there were, where `steps` is the total
    of the run. With as many loops as before each goes on where it was."""
    total = min(sum(done), steps)
    if len(done) == loops and sum(done) <= steps:
        return list(done)
    return [total // loops + (index < total % loops) for index in range(loops)]
