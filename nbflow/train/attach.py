"""`nf.train.attach`: the handle of a run that another process started, from what its workers remember of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from nbflow.current import current_session
from nbflow.errors import GraphError
from nbflow.prepare import Prepared
from nbflow.runs import About, Part, RunRecord
from nbflow.train.planning import Member, Planned
from nbflow.train.run import Run
from nbflow.transport import Cluster, HostArray, Loop, Transport


def attach(cluster: Cluster | None = None, run: str | None = None) -> Run:
    """The handle of a run on `cluster` that another process started, or this one before its handle was lost.

    `cluster=None`: what `nf.run` uses. `run`: its name or id, as `cluster.runs()` lists them; None: the one that began
    last. History is there from the first report. `stop`, `pause`, `resume` and `wait` work as they do where it was
    started, and so does `checkpoint` where a worker saves; elsewhere the process that started it does, and no other.

    Raises GraphError when there is no such run, and Rejected when its workers have forgotten it.
    """
    chosen = cluster or current_session().cluster
    record = _find(chosen.runs(), run)
    about = record.about
    members = [_member(record.id, part) for part in about.parts]
    made = Run(
        record.id,
        _Joined(chosen, record.session),
        Planned(members, saved_by=about.saved_by),
        about.metrics,
        evaluated=about.evaluated,
        adopted=True,
    )
    made.started_s = about.started_s
    made.take_up()
    threading.Thread(target=made.watch, name="nbflow-follow", daemon=True).start()
    return made


def about_run(
    name: str,
    steps: int,
    metrics: Sequence[str],
    members: Sequence[Member],
    checkpoint: str,
    evaluated: Sequence[str] = (),
    saved_by: str = "",
    started_s: float | None = None,
) -> About:
    """What `attach` needs to know of a run that started at `started_s`, in seconds since the epoch; None: now."""
    parts = tuple(
        Part(
            m.loop.id,
            m.leader,
            m.loop.first,
            m.loop.steps,
            m.loop.every,
            m.weight,
            m.counts,
            m.spare,
            m.loop.replica,
            tuple(m.loop.step),
        )
        for m in members
    )
    return About(name, steps, tuple(metrics), parts, started_s or time.time(), checkpoint, tuple(evaluated), saved_by)


def _find(records: Sequence[RunRecord], run: str | None) -> RunRecord:
    found = [r for r in records if run is None or run in (r.id, r.name)]
    if not found:
        known = ", ".join(f"{r.name} ({r.id}, {r.status})" for r in records) or "none"
        asked = "no run" if run is None else f"no run {run!r}"
        raise GraphError(f"there is {asked} on this cluster; known: {known}")
    return found[-1]


def _member(run: str, part: Part) -> Member:
    loop = Loop(part.loop, run, dict.fromkeys(part.tasks, ""), {}, (), part.first, part.steps, part.every)
    return Member(replace(loop, replica=part.replica), part.leader, part.weight, (), None, part.counts, part.spare)


class _Joined:
    """The way to the workers of somebody else's session."""

    def __init__(self, cluster: Cluster, session: str) -> None:
        self.cluster = cluster
        self._session = session

    @property
    def transports(self) -> Mapping[str, Transport]:
        return self.cluster.join(self._session)

    def look(self, prepared: Prepared) -> list[HostArray]:
        raise GraphError("a run that another process started is not prepared here")
