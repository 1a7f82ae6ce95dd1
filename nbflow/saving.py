"""Checkpoints as folders: what is written, by whichever process has the values, and which of a run's are kept.

`nf.train.save` writes one from the notebook, a training loop one after every so many steps from the worker that leads
it. Where a worker may write is for whoever starts it to say (`nbflow worker --checkpoints DIR`), not for whoever asks.
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nbflow.errors import CheckpointError, Rejected
from nbflow.weights import MANIFEST, Array, FolderWriter

FORMAT = "nbflow.checkpoint"
VERSION = 1
# A folder of checkpoints, as a run makes: each in a folder of its own, under the number of its step.
STEP_FOLDER = re.compile(r"step-(\d+)\Z")
# Of a run so many checkpoints are kept: enough to go back behind a mistake, few enough to forget about.
KEEP = 5
# For a worker that may write wherever its user can.
ANYWHERE = Path("/")
# The name of a file by which two processes find out whether they see one folder.
_MARK = re.compile(r"\.nbflow-[0-9a-f]{32}\Z")


def write(path: Path, shards: Iterable[Mapping[str, Array]], about: Mapping[str, Any], run: Mapping[str, Any]) -> Path:
    """A checkpoint in `path`, in place of what is there, in one moment at the end.

    `shards`: name -> value, a file each. `about`: what the manifest says of `graph`, `session` and `iterators`. `run`:
    what a run notes of itself. Raises CheckpointError when the folder cannot be written.
    """
    with FolderWriter(path, "variables") as writer:
        for shard in shards:
            writer.add(shard)
        writer.commit(
            {
                **about,
                "format": FORMAT,
                "version": VERSION,
                "nbflow": importlib.metadata.version("nbflow"),
                "numpy": np.__version__,
                "time_s": time.time(),
                "run": dict(run),
            }
        )
    return path


def write_step(
    folder: Path, step: int, done: Sequence[int], shards: Iterable[Mapping[str, Array]], about: Mapping[str, Any]
) -> Path:
    """The checkpoint of step `step` of a run, whose loops made the steps `done`, in a folder of its own within
    `folder`; of the older ones there the last few stay. Raises CheckpointError."""
    made = write(folder / f"step-{step:08d}", shards, about, {"step": step, "done": list(done)})
    try:
        _prune(folder)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: old checkpoints cannot be removed ({error.strerror or error}); {made.name} is whole"
        ) from error
    return made


def _prune(folder: Path) -> None:
    kept = checkpoints(folder)
    for old in sorted(kept)[:-KEEP]:
        # Its manifest first: what is left of it after a crash here is no checkpoint any more.
        (kept[old] / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(kept[old], ignore_errors=True)


def newest(path: Path) -> Path | None:
    """`path` when it is a checkpoint, else the one of the highest step among its `step-…` folders; None: there is none.

    A folder without a manifest is one whose writing was cut off: it does not count.
    """
    if (path / MANIFEST).exists():
        return path
    steps = checkpoints(path)
    return steps[max(steps)] if steps else None


def checkpoints(path: Path) -> dict[int, Path]:
    """The checkpoints of a run in `path`: step -> folder."""
    if not path.is_dir():
        return {}
    found = {m[1]: entry for entry in path.iterdir() if (m := STEP_FOLDER.match(entry.name)) is not None}
    return {int(step): entry for step, entry in found.items() if (entry / MANIFEST).exists()}


# --- on a worker -----------------------------------------------------------------------------------------------------


def allowed(root: Path | None, folder: str) -> Path:
    """`folder`, without links, where that is within `root`. Raises Rejected when it is not, or `root` is None."""
    if root is None:
        raise Rejected(
            "this worker writes no checkpoints: start it with `nbflow worker --checkpoints DIR`, below which it may"
        )
    try:
        path = Path(folder)
        if not path.is_absolute():
            raise Rejected(f"a worker needs the whole path of a folder to write checkpoints to, not {folder!r}")
        found = path.resolve()
        if not found.is_relative_to(root.resolve()):
            raise Rejected(
                f"this worker writes checkpoints below {root} only, and {folder} is not there: give a folder there, or "
                "start the worker with another --checkpoints"
            )
    except (ValueError, OSError, RuntimeError) as error:  # a null byte, a circle of links
        raise Rejected(f"{folder!r} is no folder to write checkpoints to: {error}") from None
    return found


def look(folder: Path, mark: str) -> tuple[bool, str]:
    """Whether `folder`, which is made, has the file `mark` in it; and the name of the newest checkpoint there.

    Raises CheckpointError when nothing can be written there.
    """
    if not _MARK.match(mark):
        raise Rejected(f"{mark[:60]!r} marks no folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        last = newest(folder)
        return (folder / mark).exists(), "" if last is None else last.name
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error.strerror or error}") from error
