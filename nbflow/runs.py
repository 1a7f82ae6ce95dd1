"""What a worker remembers of the training runs whose loops it leads, so that their client can go away and come back.

A `RunBook` hears every event of the loops and keeps what a client needs: the values of metrics, the changes of status,
and where each loop is. Everything has a number, so a client reads on from where it was: after a broken connection, a
full queue, or in another process. Memory is bounded, see `Series`. No I/O and no threads of its own.
"""

from __future__ import annotations

import json
import threading
import time
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from nbflow.errors import Rejected
from nbflow.events import Event, Metric, RunState, Saved
from nbflow.saving import KEEP
from nbflow.transport import Loop, RunEntry, RunPage

ENDED = ("done", "stopped", "failed")
# Values that are kept of one series: 32 bytes each. Curves are drawn with far fewer.
POINTS = 50_000
# Changes of status that are kept of one run. Progress within a status is not a change.
CHANGES = 1_000
# Runs that have ended and are kept, a session.
KEPT_ENDED = 32
# Events in one page.
PAGE = 20_000


# --- what a run is, in words that a worker keeps for its client -----------------------------------------------------


@dataclass(frozen=True, slots=True)
class Part:
    """One loop of a run as its client sees it; the fields of `train.planning.Member`.

    A run with checkpoints gives the loops of its later stretches the same id with a number behind a dot.
    """

    loop: str
    leader: str
    first: int
    steps: int
    every: int
    weight: int
    counts: bool
    spare: int
    replica: str
    tasks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class About:
    """A run, for whoever finds it on a worker. `steps` are those of the whole run, `parts` all its loops.

    `checkpoint`: the folder it saves to, if any; `saved_by`: the worker that does, empty for the client.
    `evaluated`: the names of what is evaluated, beside `metrics`.
    """

    name: str
    steps: int
    metrics: tuple[str, ...]
    parts: tuple[Part, ...]
    started_s: float
    checkpoint: str = ""
    evaluated: tuple[str, ...] = ()
    saved_by: str = ""

    def text(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> About:
        """Raises Rejected for what `text` did not write."""
        try:
            found = json.loads(text)
            parts = tuple(Part(**{**part, "tasks": tuple(part["tasks"])}) for part in found.pop("parts"))
            names = {key: tuple(found.get(key, ())) for key in ("metrics", "evaluated")}
            return cls(**{**found, **names, "parts": parts})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise Rejected(f"a run is described in words that this version does not know: {error}") from None


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run on a cluster, as `cluster.runs()` lists it. `since_s`: when it began, in seconds since the epoch.

    `step` of `steps` are done. `workers` lead its loops; `session` is the one it runs in.
    """

    id: str
    name: str
    status: str
    step: int
    steps: int
    since_s: float
    detail: str
    session: str
    workers: tuple[str, ...]
    about: About = field(repr=False)


def merge(entries: Iterable[RunEntry]) -> list[RunRecord]:
    """The runs of a cluster from what each of its workers knows, in the order in which they began."""
    found: dict[str, list[RunEntry]] = {}
    for entry in entries:
        if entry.about:
            found.setdefault(entry.run, []).append(entry)
    made = [_record(run, known) for run, known in found.items()]
    return sorted(made, key=lambda r: (r.since_s, r.id))


def _record(run: str, entries: Sequence[RunEntry]) -> RunRecord:
    about = About.read(entries[0].about)
    newest = latest(s for e in entries for s in e.states)
    counted = [(p, newest.get(p.loop)) for p in about.parts if p.counts]
    step = sum(p.first - 1 if state is None else state.step for p, state in counted)
    states = [state for _, state in counted if state is not None]
    status, detail = summary(states, expected=len(counted))
    workers = tuple(sorted(e.task for e in entries))
    return RunRecord(
        run, about.name, status, step, about.steps, about.started_s, detail, entries[0].session, workers, about
    )


def latest(states: Iterable[RunState]) -> dict[str, RunState]:
    """Part's loop -> the last that was heard of it, whichever its stretch."""
    found: dict[str, RunState] = {}
    for state in sorted(states, key=lambda s: s.wall_s):
        found[state.loop.partition(".")[0]] = state
    return found


def summary(states: Sequence[RunState], *, expected: int) -> tuple[str, str]:
    """The status of a run and its detail, from those of the loops that count; `expected`: how many there are."""
    detail = next((s.detail for s in states if s.detail), "")
    failed = [s for s in states if s.status == "failed"]
    if failed:
        return "failed", failed[0].detail
    going = [s.status for s in states if s.status not in ENDED]
    if going:
        return ("paused" if set(going) == {"paused"} else "running"), detail
    if len(states) < expected:
        return "starting", detail
    return ("stopped" if any(s.status == "stopped" for s in states) else "done"), detail


# --- what a worker keeps --------------------------------------------------------------------------------------------


class Series:
    """The values of one metric of one replica: all of them, up to `limit`.

    When there are more, every second value is forgotten, and from then on only every second (later every fourth, and so
    on) one is kept. The first and the newest are always there.
    """

    def __init__(self, limit: int = POINTS) -> None:
        self._limit = max(2, limit)
        self._stride = 1
        self._count = 0
        self._numbers, self._steps = array("q"), array("q")
        self._values, self._walls = array("d"), array("d")

    def add(self, number: int, step: int, value: float, wall_s: float) -> None:
        """Takes a value; `number` is larger than any before."""
        if self._count and (self._count - 1) % self._stride:
            self._keep(slice(0, -1))  # it was only there for being the newest
        for column, item in zip(self._columns(), (number, step, value, wall_s), strict=True):
            column.append(item)
        self._count += 1
        if len(self._numbers) > self._limit:
            newest = len(self._numbers) - 1
            extra = [column[newest] for column in self._columns()] if newest % 2 else None
            self._stride *= 2
            self._keep(slice(None, None, 2))
            if extra is not None:
                for column, item in zip(self._columns(), extra, strict=True):
                    column.append(item)

    def _columns(self) -> tuple[array[Any], ...]:
        return self._numbers, self._steps, self._values, self._walls

    def _keep(self, which: slice) -> None:
        self._numbers, self._steps = self._numbers[which], self._steps[which]
        self._values, self._walls = self._values[which], self._walls[which]

    def __len__(self) -> int:
        return len(self._numbers)

    def after(self, number: int) -> list[tuple[int, int, float, float]]:
        """(number, step, value, wall_s) of what came later than `number`."""
        at = bisect_right(self._numbers, number)
        columns = (self._numbers[at:], self._steps[at:], self._values[at:], self._walls[at:])
        return list(zip(*columns, strict=True))


class _Record:
    """One run."""

    def __init__(self, run: str, about: str, points: int) -> None:
        self.run = run
        self.about = about
        self.since_s = time.time()
        self.loops: dict[str, tuple[int, RunState | None]] = {}
        self._points = points
        self._number = 0
        self._series: dict[tuple[str, str], Series] = {}
        self._changes: deque[tuple[int, RunState]] = deque(maxlen=CHANGES)
        self._saved: deque[tuple[int, Saved]] = deque(maxlen=KEEP)  # no more of them are still there

    @property
    def ended(self) -> bool:
        return all(state is not None and state.status in ENDED for _, state in self.loops.values())

    def note(self, event: Metric | RunState | Saved) -> None:
        self._number += 1
        if isinstance(event, Saved):
            self._saved.append((self._number, event))
            return
        if isinstance(event, Metric):
            key = (event.name, event.replica)
            series = self._series.get(key)
            if series is None:
                series = self._series[key] = Series(self._points)
            series.add(self._number, event.step, event.value, event.wall_s)
            return
        _, before = self.loops.get(event.loop, (0, None))
        if before is None or (before.status, before.detail) != (event.status, event.detail):
            self._changes.append((self._number, event))
        self.loops[event.loop] = (self._number, event)

    def read(self, after: int) -> RunPage:
        found: dict[int, Event] = {n: s for n, s in self._changes if n > after}
        found.update({n: s for n, s in self.loops.values() if s is not None and n > after})
        found.update({n: s for n, s in self._saved if n > after})
        for (name, replica), series in self._series.items():
            for number, step, value, wall_s in series.after(after):
                found[number] = Metric(self.run, name, step, value, wall_s, replica)
        numbers = sorted(found)
        page = numbers[:PAGE]
        return RunPage(tuple(found[n] for n in page), page[-1] if page else after, len(numbers) > PAGE)


class RunBook:
    """The runs whose loops one worker leads within one session. Safe from any thread."""

    def __init__(self, *, points: int = POINTS, kept_ended: int = KEPT_ENDED) -> None:
        self._points = points
        self._kept_ended = kept_ended
        self._lock = threading.Lock()
        self._records: dict[str, _Record] = {}

    def begin(self, loop: Loop) -> None:
        """A loop starts here. The runs that ended longest ago are forgotten beyond the limit."""
        with self._lock:
            record = self._records.get(loop.run)
            if record is None:
                record = self._records[loop.run] = _Record(loop.run, loop.about, self._points)
            record.about = loop.about or record.about  # a run may change hands
            record.loops.setdefault(loop.id, (0, None))
            ended = [run for run, r in self._records.items() if r.ended]
            for run in ended[: max(0, len(ended) - self._kept_ended)]:
                del self._records[run]

    def note(self, event: Event) -> None:
        """A loop said something."""
        if not isinstance(event, Metric | RunState | Saved):
            return
        with self._lock:
            record = self._records.get(event.run)
            if record is not None:
                record.note(event)

    def entries(self, session: str, task: str) -> tuple[RunEntry, ...]:
        """All runs, for a list."""
        with self._lock:
            return tuple(
                RunEntry(
                    r.run, session, task, r.about, r.since_s, tuple(s for _, s in r.loops.values() if s is not None)
                )
                for r in self._records.values()
            )

    def read(self, run: str, after: int = 0) -> RunPage:
        """What happened in `run` after number `after`. Raises Rejected for a run that is not, or no longer, known."""
        with self._lock:
            record = self._records.get(run)
            if record is None:
                known = ", ".join(self._records) or "none"
                raise Rejected(f"no run {run[:60]!r} is known here; known: {known}")
            return record.read(after)


def listening(book: RunBook, emit: Callable[[Event], None]) -> Callable[[Event], None]:
    """`emit`, with each event written down first: whoever hears of it finds it in the book."""

    def both(event: Event) -> None:
        book.note(event)
        emit(event)

    return both
