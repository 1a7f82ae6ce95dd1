"""`nf.train.save` and `nf.train.restore`: the values of variables in a folder, with what is needed to go on exactly.

Beside the variables (those of optimizers too) a checkpoint has the number of the next step, from which random ops draw,
and where each iterator is. So training that was restored computes what it would have computed without the break, bit
for bit. Values are fetched and set a shard at a time, as arrays; the folder is written as `nbflow.weights` says.
"""

from __future__ import annotations

import importlib.metadata
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nbflow.current import current_session
from nbflow.errors import CheckpointError
from nbflow.graph import Tensor
from nbflow.session import Session
from nbflow.spec import format_shape
from nbflow.variable import Variable, as_variables, global_variables
from nbflow.weights import SHARD_BYTES, Folder, FolderWriter, Stored, in_shards

FORMAT = "nbflow.checkpoint"
VERSION = 1
# A folder of checkpoints, as a run makes: each in a folder of its own, under the number of its step.
STEP_FOLDER = re.compile(r"step-(\d+)\Z")
# At most so many names are listed in an error.
_LISTED = 8


@dataclass(frozen=True, slots=True)
class Restored:
    """What `restore` did. Names are the graph's, but in `extra`, which are the checkpoint's.

    `step`: the training step at which it was saved (of `nf.train.run`; 0 elsewhere). `same_graph`: whether the graph
    computes just what the one that was saved did.
    """

    path: Path
    step: int
    restored: tuple[str, ...]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    mismatched: tuple[str, ...]
    same_graph: bool
    run: Mapping[str, Any]

    def __repr__(self) -> str:
        parts = [f"{len(self.restored)} variables from {self.path}"]
        for what in ("missing", "extra", "mismatched"):
            names = getattr(self, what)
            if names:
                parts.append(f"{what}: {_listed(names)}")
        return f"<Restored {'; '.join(parts)}>"


def save(
    path: str | Path,
    variables: Iterable[Variable | Tensor] | None = None,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Writes variables (all of the current graph when left out), and returns the folder.

    Variables without a value are initialised first. What was saved in the folder before is replaced in one moment,
    when all is written: a crash leaves the last good one. A shard has up to `shard_bytes`. Raises CheckpointError when
    the folder cannot be written.
    """
    chosen = None if variables is None else as_variables(list(variables))
    return write(Path(path), current_session(), chosen, shard_bytes=shard_bytes)


def write(
    path: Path,
    session: Session,
    variables: Sequence[Variable] | None = None,
    *,
    run: Mapping[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """`save` for a session. `run`: what a training run notes of itself, with its `step`."""
    graph = session.graph
    chosen = {v.name: v for v in (global_variables(graph) if variables is None else variables)}
    sizes = {name: _nbytes(chosen[name]) for name in sorted(chosen)}
    with FolderWriter(path, "variables") as writer:
        for names in in_shards(sizes, shard_bytes):
            values = session.peek([chosen[name].to_tensor() for name in names])
            writer.add(dict(zip(names, values, strict=True)))
        writer.commit(
            {
                "format": FORMAT,
                "version": VERSION,
                "nbflow": importlib.metadata.version("nbflow"),
                "numpy": np.__version__,
                "time_s": time.time(),
                "graph": {"digest": graph.digest(), "seed": graph.seed},
                "session": {"steps": session.steps},
                "run": dict(run or {}),
            }
        )
    return path


def restore(
    path: str | Path,
    variables: Iterable[Variable | Tensor] | None = None,
    *,
    names: Mapping[str, str] | None = None,
    strict: bool = True,
) -> Restored:
    """Sets variables of the current graph to what `save` wrote; their initialisers will not run.

    - `path`: a folder that `save` wrote, or one with the checkpoints of a run, of which the last is taken.
    - `variables`: only these; all of the graph when left out.
    - `names`: a variable's name in the graph -> its name in the checkpoint, where they differ.
    - `strict`: everything must fit. Otherwise what fits is restored, and the result names the rest.

    Nothing is set unless all files have the digests they were written with. Raises CheckpointError for a folder that is
    missing, damaged or written by a newer nbflow, and for variables that are missing, left over (when neither
    `variables` nor `names` is given) or of another shape or dtype: with both.
    """
    chosen = None if variables is None else as_variables(list(variables))
    return read(Path(path), current_session(), chosen, names=names, strict=strict)


def read(
    path: Path,
    session: Session,
    variables: Sequence[Variable] | None = None,
    *,
    names: Mapping[str, str] | None = None,
    strict: bool = True,
) -> Restored:
    """`restore` for a session."""
    found = newest(path)
    if found is None:
        raise CheckpointError(f"{path} holds no checkpoint: it has no manifest.json, and no step-… folder with one")
    folder = open_folder(found)
    graph = session.graph
    wanted = {v.name: v for v in (global_variables(graph) if variables is None else variables)}
    source = {name: (names or {}).get(name, name) for name in wanted}
    _check_names(names, wanted)
    missing = [name for name in wanted if source[name] not in folder.tensors]
    partial = variables is not None or names is not None
    extra = [] if partial else sorted(folder.tensors.keys() - set(source.values()))
    mismatched = [n for n in wanted if source[n] in folder.tensors and not _fits(wanted[n], folder.tensors[source[n]])]
    if strict and (missing or extra or mismatched):
        raise CheckpointError(_difference(found, folder, wanted, source, missing, extra, mismatched))
    taken = [name for name in wanted if name not in missing and name not in mismatched]
    _set(session, folder, {name: source[name] for name in taken})
    if not partial:
        session.steps = int(folder.manifest["session"]["steps"])
    return Restored(
        found,
        int(folder.manifest["run"].get("step", 0)),
        tuple(taken),
        tuple(missing),
        tuple(extra),
        tuple(mismatched),
        folder.manifest["graph"]["digest"] == graph.digest(),
        folder.manifest["run"],
    )


def _set(session: Session, folder: Folder, source: Mapping[str, str]) -> None:
    for file in {folder.tensors[name].file for name in source.values()}:
        folder.verify(file)
    targets: dict[str, list[str]] = {}
    for name, stored in source.items():
        targets.setdefault(stored, []).append(name)
    for part in folder.read(targets):
        session.assign({name: value for stored, value in part.items() for name in targets[stored]})


def open_folder(path: Path) -> Folder:
    """A checkpoint's folder. Raises CheckpointError when it is none, damaged, or newer than this nbflow."""
    folder = Folder(path)
    folder.expect(FORMAT, VERSION)
    try:
        complete = int(folder.manifest["session"]["steps"]) >= 0 and isinstance(folder.manifest["run"], dict)
        complete = complete and isinstance(folder.manifest["graph"]["digest"], str)
    except (KeyError, TypeError, ValueError):
        complete = False
    if not complete:
        raise CheckpointError(f"{path / 'manifest.json'} is damaged: it lacks what every checkpoint has")
    return folder


def newest(path: Path) -> Path | None:
    """`path` when it is a checkpoint, else the one of the highest step among its `step-…` folders; None: there is none.

    A folder without a manifest is one whose writing was cut off: it does not count.
    """
    if (path / "manifest.json").exists():
        return path
    steps = checkpoints(path)
    return steps[max(steps)] if steps else None


def checkpoints(path: Path) -> dict[int, Path]:
    """The checkpoints of a run in `path`: step -> folder."""
    if not path.is_dir():
        return {}
    found = {m[1]: entry for entry in path.iterdir() if (m := STEP_FOLDER.match(entry.name)) is not None}
    return {int(step): entry for step, entry in found.items() if (entry / "manifest.json").exists()}


# --- what differs ----------------------------------------------------------------------------------------------------


def _nbytes(variable: Variable) -> int:
    return variable.handle.spec.nbytes or 0


def _fits(variable: Variable, stored: Stored) -> bool:
    return variable.shape == stored.shape and variable.dtype == stored.dtype


def _check_names(names: Mapping[str, str] | None, wanted: Mapping[str, Variable]) -> None:
    unknown = sorted(set(names or {}) - set(wanted))
    if unknown:
        raise CheckpointError(
            f"names: the graph has no variable {_listed(unknown)} to restore; the keys are names in the graph, "
            "the values names in the checkpoint"
        )


def _difference(
    path: Path,
    folder: Folder,
    wanted: Mapping[str, Variable],
    source: Mapping[str, str],
    missing: Sequence[str],
    extra: Sequence[str],
    mismatched: Sequence[str],
) -> str:
    lines = [f"{path} does not fit the graph:"]
    if mismatched:
        pairs = [_mismatch(wanted[n], source[n], folder.tensors[source[n]]) for n in mismatched[:_LISTED]]
        more = [f"and {len(mismatched) - _LISTED} more"] if len(mismatched) > _LISTED else []
        lines.append(f"  different: {'; '.join([*pairs, *more])}")
    if missing:
        shown = [n if source[n] == n else f"{n} (as {source[n]})" for n in missing]
        lines.append(f"  in the graph, not in the checkpoint: {_listed(shown)}")
    if extra:
        lines.append(f"  in the checkpoint, not in the graph: {_listed(extra)}")
    lines.append("  restore what fits with strict=False, some with variables=[…], renamed ones with names={…}")
    return "\n".join(lines)


def _mismatch(variable: Variable, name: str, stored: Stored) -> str:
    here = f"{variable.dtype.name} {format_shape(variable.shape)}"
    other = "" if name == variable.name else f" as {name}"
    return f"{variable.name} is {here} in the graph, {stored} in the checkpoint{other}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
