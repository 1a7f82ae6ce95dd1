"""Checkpoints of a run: a folder a step in the run's folder, the oldest removed, and where a run goes on.

Where one loop makes all steps, its leader saves between two of them, on schedule, if it may write there: with the
client or without. Elsewhere the loops on the workers run in stretches. When all have reached the end of one they are
still; the process that started the run fetches the variables and writes them, and the next stretch begins. Either way
what is saved is one moment between two steps, and the number of a step decides what it draws and computes, whether or
not there was a break.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Sequence
from pathlib import Path

from nbflow.errors import CheckpointError, GraphError
from nbflow.events import Saved
from nbflow.graph import Node, Tensor, ancestors
from nbflow.prepare import Prepared
from nbflow.saving import newest, write_step
from nbflow.session import Session
from nbflow.train.checkpoint import Snapshot, read
from nbflow.transport import FolderInfo, Saving, Transport
from nbflow.variable import variables_of


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
        snapshot = self._prepared()
        return write_step(self.folder, step, done, snapshot.fetch(), snapshot.about)

    def _prepared(self) -> Snapshot:
        if self._snapshot is None:
            self.prepare()
        assert self._snapshot is not None  # prepare made it
        return self._snapshot

    def handed_over(self, last: int) -> tuple[Saving, tuple[Prepared, ...]]:
        """What it takes for the loop that makes all steps, up to `last`, to save; and what must be kept for it."""
        snapshot = self._prepared()
        saving = Saving(str(self.folder.absolute()), snapshot.shards, self.every, last, json.dumps(snapshot.about))
        return saving, snapshot.plans

    def look(self, worker: Transport) -> FolderInfo:
        """The folder as `worker` sees it, under the path that it has here.

        Raises Rejected when the worker may not write there, CheckpointError when it cannot.
        """
        mark = self.folder / f".nbflow-{uuid.uuid4().hex}"
        is_new = not self.folder.exists()
        with contextlib.suppress(OSError):  # then it is not here, or not for us: no mark is found
            self.folder.mkdir(parents=True, exist_ok=True)
            mark.touch(exist_ok=False)
        found = None
        try:
            found = worker.look_at_folder(str(self.folder.absolute()), mark.name)
        finally:
            with contextlib.suppress(OSError):
                mark.unlink(missing_ok=True)
                if is_new and (found is None or not found.is_shared):
                    self.folder.rmdir()
        return found

    def stretch_end(self, done: int, last: int, weight: int) -> int:
        """Up to which step a loop that has done `done` of `last` runs next; `weight`: global steps for one of its."""
        length = max(1, self.every // weight)
        return min(last, (done // length + 1) * length)


class Saves:
    """The checkpoints that a run has made, by whom it may be."""

    def __init__(self) -> None:
        self.folders: list[Path] = []
        self._step = -1  # of the last that this process made
        self._told_s = 0.0  # when a worker made the last that it told of

    def make(self, keeper: Keeper, step: int, done: Sequence[int]) -> None:
        """One by this process, unless the last is of the same step."""
        known = bool(self.folders) and self._step == step
        self.folders.append(self.folders[-1] if known else keeper.save(step, done))
        self._step = step

    def hear(self, event: Saved) -> bool:
        """One that a worker made; False when it was heard of before."""
        if event.wall_s <= self._told_s:
            return False
        self._told_s = event.wall_s
        self.folders.append(Path(event.folder))
        return True


def shared_out(done: Sequence[int], loops: int, steps: int) -> list[int]:
    """The steps that each of `loops` has done, from those of as many loops as there were, where `steps` is the total
    of the run. With as many loops as before each goes on where it was."""
    total = min(sum(done), steps)
    if len(done) == loops and sum(done) <= steps:
        return list(done)
    return [total // loops + (index < total % loops) for index in range(loops)]
