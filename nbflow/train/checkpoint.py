"""`nf.train.save` and `nf.train.restore`: the values of variables in a folder, with what is needed to go on exactly.

Beside the variables (those of optimizers too) a checkpoint has the number of the next step, from which random ops draw,
and where each iterator is. So training that was restored computes what it would have computed without the break, bit
for bit. Values are fetched and set a shard at a time, as arrays; the folder is written as `nbflow.weights` says.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbflow.current import current_session
from nbflow.data.state import iterators, restore_state, save_state
from nbflow.errors import CheckpointError
from nbflow.graph import Graph, Node, Tensor
from nbflow.prepare import Prepared
from nbflow.rewrite import copy_nodes, new_like
from nbflow.saving import FORMAT, VERSION, checkpoints, newest, write
from nbflow.session import Session
from nbflow.spec import format_shape
from nbflow.structure import Leaf
from nbflow.transport import MetricSource, SavedShard
from nbflow.variable import Variable, as_variables, global_variables
from nbflow.weights import SHARD_BYTES, Array, Folder, Stored, in_shards

__all__ = ["Restored", "Snapshot", "checkpoints", "newest", "place_iterators", "read", "restore", "save"]

# At most so many names are listed in an error.
_LISTED = 8


@dataclass(frozen=True, slots=True)
class Restored:
    """What `restore` did. Names are the graph's, but in `extra`, which are the checkpoint's.

    `restored`: variables and iterators. `step`: of `nf.train.run` when it was saved, 0 elsewhere. `same_graph`: whether
    the graph computes just what the one that was saved did. `run`: what a run noted of itself.
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
        parts = [f"{len(self.restored)} variables and iterators from {self.path}"]
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
    """Writes variables, or all of the current graph and where its iterators stand, into a folder, which it returns.

    Variables without a value are initialised first. What was saved in the folder before is replaced in one moment,
    when all is written: a crash leaves the last good one. A shard has up to `shard_bytes`. Raises CheckpointError when
    the folder cannot be written.
    """
    session = current_session()
    if variables is None:
        snapshot = Snapshot(session, global_variables(), iterators(), shard_bytes)
    else:
        snapshot = Snapshot(session, as_variables(list(variables)), shard_bytes=shard_bytes)
    return snapshot.write(Path(path))


class Snapshot:
    """What it takes to save variables and the places of iterators, prepared once: then saving does not depend on which
    cells run meanwhile. Variables without a value are initialised. `holders`: of the iterators."""

    def __init__(
        self,
        session: Session,
        variables: Sequence[Variable],
        holders: Sequence[Node] = (),
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        self._session = session
        self._graph = {"digest": session.graph.digest(), "seed": session.graph.seed}
        self._holders = sorted(node.name for node in holders)
        chosen = {v.name: v for v in variables}
        sizes = {name: chosen[name].handle.spec.nbytes or 0 for name in sorted(chosen)}
        self._shards: list[tuple[list[str], Prepared]] = []
        for names in in_shards(sizes, shard_bytes):
            leaves: list[Leaf] = [chosen[name].to_tensor() for name in names]
            self._shards.append((names, session.prepare(leaves, {})))
        if holders:
            beside, copies = _holders_beside(session, holders)
            places = [save_state(copies[name]) for name in self._holders]
            self._shards.append((self._holders, session.beside(beside, places)))

    @property
    def about(self) -> dict[str, Any]:
        """What a manifest says of the graph, the session and the iterators, at this moment."""
        return {"graph": self._graph, "session": {"steps": self._session.steps}, "iterators": self._holders}

    @property
    def shards(self) -> tuple[SavedShard, ...]:
        """The plans that fetch the values, for a loop. They are registered for as long as `plans` are kept."""
        found = []
        for names, prepared in self._shards:
            sources = [s for s in prepared.sources if s is not None]
            values = tuple(MetricSource(n, s.task, s.name) for n, s in zip(names, sources, strict=True))
            found.append(SavedShard(prepared.bundle_ids, values))
        return tuple(found)

    @property
    def plans(self) -> tuple[Prepared, ...]:
        return tuple(prepared for _, prepared in self._shards)

    def fetch(self) -> Iterator[dict[str, Array]]:
        """The values as they are now, a shard at a time."""
        for names, prepared in self._shards:
            yield dict(zip(names, self._session.look(prepared), strict=True))

    def write(self, path: Path) -> Path:
        """Saves the values as they are now."""
        return write(path, self.fetch(), self.about, {})


def restore(
    path: str | Path,
    variables: Iterable[Variable | Tensor] | None = None,
    *,
    names: Mapping[str, str] | None = None,
    strict: bool = True,
) -> Restored:
    """Sets variables and iterators of the current graph to what `save` wrote; initialisers will not run.

    - `path`: a folder that `save` wrote, or one with the checkpoints of a run, of which the last is taken.
    - `variables`: only these; when left out all of the graph, its iterators, and the number of the next step.
    - `names`: a variable's name in the graph -> its name in the checkpoint, where they differ.
    - `strict`: everything must fit. Otherwise what fits is restored, and the result names the rest.

    Nothing is set unless all files have the digests they were written with. Raises CheckpointError for a folder that is
    missing, damaged or written by a newer nbflow, and for variables that are missing, left over (when neither
    `variables` nor `names` is given) or of another shape or dtype: with both.
    """
    session = current_session()
    if variables is not None:
        return read(Path(path), session, as_variables(list(variables)), names=names, strict=strict, partial=True)
    partial = names is not None
    return read(Path(path), session, global_variables(), iterators(), names=names, strict=strict, partial=partial)


def read(
    path: Path,
    session: Session,
    variables: Sequence[Variable],
    holders: Sequence[Node] = (),
    *,
    names: Mapping[str, str] | None = None,
    strict: bool = True,
    partial: bool = False,
) -> Restored:
    """`restore` for a session. `holders`: of the iterators. `partial`: what is left over in the checkpoint is fine, and
    the session's steps stay as they are."""
    found = newest(path)
    if found is None:
        raise CheckpointError(f"{path} holds no checkpoint: it has no manifest.json, and no step-… folder with one")
    folder = open_folder(found)
    fit = _compare(folder, {v.name: v for v in variables}, [n.name for n in holders], names or {})
    if partial:
        fit.extra.clear()
    if strict and (fit.missing or fit.extra or fit.mismatched):
        raise CheckpointError(fit.explain(folder))
    _set(session, folder, fit, holders)
    if not partial:
        session.steps = int(folder.manifest["session"]["steps"])
    return Restored(
        found,
        int(folder.manifest["run"].get("step", 0)),
        (*fit.source, *fit.places),
        tuple(fit.missing),
        tuple(fit.extra),
        tuple(fit.mismatched),
        folder.manifest["graph"]["digest"] == session.graph.digest(),
        folder.manifest["run"],
    )


def _set(session: Session, folder: Folder, fit: _Fit, holders: Sequence[Node]) -> None:
    for file in {folder.tensors[name].file for name in [*fit.source.values(), *fit.places]}:
        folder.verify(file)
    targets: dict[str, list[str]] = {}
    for name, stored in fit.source.items():
        targets.setdefault(stored, []).append(name)
    for part in folder.read(targets):
        session.assign({name: value for stored, value in part.items() for name in targets[stored]})
    for part in folder.read(fit.places):
        place_iterators(session, [n for n in holders if n.name in part], part)


# --- iterators -------------------------------------------------------------------------------------------------------


def place_iterators(session: Session, holders: Sequence[Node], places: Mapping[str, Array]) -> None:
    """Puts iterators where `places` says."""
    beside, copies = _holders_beside(session, holders)
    with beside.as_default():
        moves = [restore_state(copies[node.name], places[node.name]) for node in holders]
    session.look(session.beside(beside, moves))


def _holders_beside(session: Session, holders: Sequence[Node]) -> tuple[Graph, dict[str, Node]]:
    """A graph of its own with the holders, so that the user's does not change."""
    beside = new_like(session.graph)
    copies: dict[str, Node] = {}
    copy_nodes(holders, beside, {}, copies)
    return beside, copies


def open_folder(path: Path) -> Folder:
    """A checkpoint's folder. Raises CheckpointError when it is none, damaged, or newer than this nbflow."""
    folder = Folder(path)
    folder.expect(FORMAT, VERSION)
    try:
        complete = int(folder.manifest["session"]["steps"]) >= 0 and isinstance(folder.manifest["run"], dict)
        complete = complete and isinstance(folder.manifest["graph"]["digest"], str)
        complete = complete and folder.tensors.keys() >= set(folder.manifest["iterators"])
    except (KeyError, TypeError, ValueError):
        complete = False
    if not complete:
        raise CheckpointError(f"{path / 'manifest.json'} is damaged: it lacks what every checkpoint has")
    return folder


# --- what differs ----------------------------------------------------------------------------------------------------


def _fits(variable: Variable, stored: Stored) -> bool:
    return variable.shape == stored.shape and variable.dtype == stored.dtype


@dataclass(slots=True)
class _Fit:
    """How a checkpoint fits a graph.

    `source`: variable -> its name in the checkpoint, for those that fit. `places`: the iterators that both have.
    `different`: a sentence for each mismatched one. `called`: the names that the user mapped.
    """

    source: dict[str, str]
    places: list[str]
    missing: list[str]
    extra: list[str]
    mismatched: list[str]
    different: list[str]
    called: Mapping[str, str]

    def explain(self, folder: Folder) -> str:
        lines = [f"{folder.path} does not fit the graph:"]
        if self.different:
            more = [f"and {len(self.different) - _LISTED} more"] if len(self.different) > _LISTED else []
            lines.append(f"  different: {'; '.join([*self.different[:_LISTED], *more])}")
        if self.missing:
            shown = [f"{n} (as {self.called[n]})" if n in self.called else n for n in self.missing]
            lines.append(f"  in the graph, not in the checkpoint: {_listed(shown)}")
        if self.extra:
            lines.append(f"  in the checkpoint, not in the graph: {_listed(self.extra)}")
        lines.append("  restore what fits with strict=False, some with variables=[…], renamed ones with names={…}")
        return "\n".join(lines)


def _compare(folder: Folder, wanted: Mapping[str, Variable], holders: Sequence[str], names: Mapping[str, str]) -> _Fit:
    unknown = sorted(set(names) - set(wanted))
    if unknown:
        raise CheckpointError(
            f"names: the graph has no variable {_listed(unknown)} to restore; the keys are names in the graph, "
            "the values names in the checkpoint"
        )
    places = set(folder.manifest["iterators"])
    stored = {name: entry for name, entry in folder.tensors.items() if name not in places}
    source = {name: names.get(name, name) for name in wanted}
    known = {name: key for name, key in source.items() if key in stored}
    wrong = [name for name, key in known.items() if not _fits(wanted[name], stored[key])]
    return _Fit(
        {name: key for name, key in known.items() if name not in wrong},
        [name for name in holders if name in places],
        [name for name in wanted if name not in known] + [name for name in holders if name not in places],
        sorted([*(stored.keys() - set(source.values())), *(places - set(holders))]),
        wrong,
        [_mismatch(wanted[name], source[name], stored[source[name]]) for name in wrong],
        names,
    )


def _mismatch(variable: Variable, name: str, stored: Stored) -> str:
    here = f"{variable.dtype.name} {format_shape(variable.shape)}"
    other = "" if name == variable.name else f" as {name}"
    return f"{variable.name} is {here} in the graph, {stored} in the checkpoint{other}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
