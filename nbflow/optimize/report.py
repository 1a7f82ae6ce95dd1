"""What the passes did to a run, for people: a table of passes, and what became of each op."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from nbflow.optimize.draft import Change, Form, Log

# Changes of one pass that are listed one by one; a network has thousands.
LISTED = 12


@dataclass(frozen=True, slots=True)
class PassReport:
    """What one pass did. `flops` and `nbytes`: estimated, saved in each run; negative where it added some."""

    name: str
    changes: tuple[Change, ...]
    removed: int
    added: int
    flops: float
    nbytes: float
    note: str = ""

    @staticmethod
    def of(name: str, log: Log, note: str = "") -> PassReport:
        """From the log of a pass."""
        gone, made = [f.cost() for f in log.gone], [f.cost() for f in log.made]
        flops = sum(c.flops for c in gone) - sum(c.flops for c in made)
        nbytes = sum(c.nbytes for c in gone) - sum(c.nbytes for c in made)
        changes = tuple(log.changes)
        return PassReport(name, changes, _nodes(log.gone, log.made), _nodes(log.made, log.gone), flops, nbytes, note)


def _nodes(some: Sequence[Form], others: Sequence[Form]) -> int:
    """How many nodes are among `some` and not among `others`: one that became another op counts on neither side."""
    return len({f.node for f in some} - {f.node for f in others})


@dataclass(frozen=True, slots=True)
class Report(Sequence[PassReport]):
    """A row a pass, in the order in which they ran. `before` and `after`: how many ops the run has. `fate`: what became
    of each op that is gone or became another; `str(report)` is a text."""

    passes: tuple[PassReport, ...] = ()
    before: int = 0
    after: int = 0
    fate: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.passes)

    def __getitem__(self, index: int) -> PassReport:  # type: ignore[override]  # no slices: there are a handful
        return self.passes[index]

    def __iter__(self) -> Iterator[PassReport]:
        return iter(self.passes)

    def of(self, name: str) -> PassReport:
        """The row of the pass `name`. Raises KeyError when it did not run."""
        for one in self.passes:
            if one.name == name:
                return one
        raise KeyError(name)

    def rows(self) -> list[tuple[str, str, str, str, str, str]]:
        """(pass, changes, ops removed, ops added, flops saved, bytes saved) as texts."""
        return [
            (
                p.name,
                str(len(p.changes)),
                str(p.removed),
                str(p.added),
                _short(p.flops),
                _short(p.nbytes) + (f"; {p.note}" if p.note else ""),
            )
            for p in self.passes
        ]

    def __str__(self) -> str:
        lines = [f"{self.before} ops before, {self.after} after"]
        table = [COLUMNS, *self.rows()]
        widths = [max(len(row[i]) for row in table) for i in range(len(COLUMNS))]
        lines += ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in table]
        for one in self.passes:
            lines += listing(one)
        return "\n".join(lines)

    __repr__ = __str__


COLUMNS = ("pass", "changes", "removed", "added", "flops saved", "bytes saved")


def listing(one: PassReport) -> list[str]:
    """The changes of one pass, one a line."""
    lines = [f"{one.name}: {c.node} ({c.where}) {c.what}" for c in one.changes[:LISTED]]
    more = len(one.changes) - LISTED
    return [*lines, f"{one.name}: and {more} more"] if more > 0 else lines


def _short(count: float) -> str:
    sign, count = ("-" if count < 0 else ""), abs(count)
    for unit in ("", "k", "M", "G"):
        if count < 1000:
            return f"{sign}{count:.3g}{unit}"
        count /= 1000
    return f"{sign}{count:.3g}T"


def peaks_text(peaks: Mapping[str, tuple[float, float]]) -> str:
    """What a run takes on each device, before and after."""
    parts = [
        f"{device}: {_short(before)}" + (f" → {_short(after)}" if after != before else "")
        for device, (before, after) in peaks.items()
    ]
    return "memory on " + ", ".join(parts)
