"""Times of ops that were measured in earlier runs, kept in a small file, for the placer.

What is kept is a factor: measured over declared time, by device kind, op, dtype and size (a power of two of the work).
A `Profile` is what the file said when it was read: what is measured meanwhile goes to the file and changes no placement
of this session. A factor in use changes only when the mean of what is measured has moved away from it by `MOVED`, so
that noise does not move ops from one run to the next.

The file is a hint and never an error: a broken one is set aside, one that cannot be written is left alone.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs

from nbflow.cost import DeviceModel, work_of
from nbflow.node import Node
from nbflow.op import Cost

log = logging.getLogger("nbflow.profile")

VARIABLE = "NBFLOW_PROFILE"
FORMAT = 1
# About 300 KB of JSON. Those not seen for longest go first.
MAX_ENTRIES = 4096
# By what factor a mean must differ from the value in use to replace it.
MOVED = 1.5
# What a size that was not measured may borrow from, in powers of two.
NEAR = 3
# A single measurement beyond this says more about the machine's other work than about the op.
LIMIT = 100.0
# How many measurements a mean remembers.
MEMORY = 32

Key = tuple[str, str, str, int]  # device kind, op, dtype, size


@dataclass(frozen=True, slots=True)
class Entry:
    """`used`: the factor that placements see. `mean` of the factors (geometric) over `count`. `seen`: a Unix time."""

    used: float
    mean: float
    count: int
    seen: float

    def joined(self, factor: float, now: float) -> Entry:
        share = 1 / min(self.count + 1, MEMORY)
        mean = math.exp((1 - share) * math.log(self.mean) + share * math.log(factor))
        stays = 1 / MOVED < mean / self.used < MOVED
        return Entry(self.used if stays else mean, mean, self.count + 1, now)


@dataclass(slots=True)
class Profile:
    """What was measured before. `path` None: nothing is read or kept. Implements `nbflow.cost.Times`."""

    path: Path | None = None
    entries: dict[Key, Entry] = field(default_factory=dict)
    _sizes: dict[tuple[str, str, str], dict[int, float]] = field(default_factory=dict)

    @staticmethod
    def read(path: Path | None) -> Profile:
        """The profile in `path`; empty when there is none, or none that can be read."""
        made = Profile(path, {} if path is None else _read(path))
        for (kind, op, dtype, size), entry in made.entries.items():
            made._sizes.setdefault((kind, op, dtype), {})[size] = entry.used
        return made

    def correct(self, node: Node, work: Cost, kind: str, declared_s: float) -> float:
        """The declared time times what was measured for this op at this size, or at the nearest that is near."""
        sizes = self._sizes.get((kind, node.op, _dtype(node)))
        if not sizes:
            return declared_s
        size = _size(work)
        nearest = min(sizes, key=lambda s: (abs(s - size), s))
        return declared_s * sizes[nearest] if abs(nearest - size) <= NEAR else declared_s

    def note(self, measured: Mapping[Key, float]) -> None:
        """Adds factors to the file. This profile stays as it is."""
        if self.path is None or not measured:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self.path):
                entries = _read(self.path)
                now = time.time()
                for key, factor in measured.items():
                    old = entries.get(key)
                    entries[key] = Entry(factor, factor, 1, now) if old is None else old.joined(factor, now)
                newest = sorted(entries, key=lambda k: entries[k].seen)[-MAX_ENTRIES:]
                _write(self.path, {k: entries[k] for k in newest})
        except OSError as error:
            log.info("the profile %s cannot be written: %s", self.path, error)


def factor_of(node: Node, model: DeviceModel, measured_s: float) -> tuple[Key, float] | None:
    """What is kept of one measured op; None where it says nothing."""
    work = work_of(node)
    factor = measured_s / model.seconds(work)
    if not 1 / LIMIT < factor < LIMIT:
        return None
    return (model.kind, node.op, _dtype(node), _size(work)), factor


def chosen(asked: str | Path | None = None) -> Path | None:
    """The file to use: `asked`, else what NBFLOW_PROFILE says (a path, or `off`), else one in the user's cache."""
    text = str(asked) if asked is not None else os.environ.get(VARIABLE, "")
    if text == "off":
        return None
    return Path(text) if text else platformdirs.user_cache_path("nbflow") / "profile.json"


def _dtype(node: Node) -> str:
    return node.outputs[0].dtype.name if node.outputs else ""


def _size(work: Cost) -> int:
    return round(math.log2(max(work.flops, work.nbytes, 1.0)))


def _read(path: Path) -> dict[Key, Entry]:
    try:
        found = json.loads(path.read_text())
        if found["format"] != FORMAT:
            return {}  # of another version: it is written anew
        return {_key(k): _entry(v) for k, v in found["entries"].items()}
    except FileNotFoundError:
        return {}
    except OSError as error:
        log.info("the profile %s cannot be read: %s", path, error)
        return {}
    except (ValueError, TypeError, KeyError, AttributeError):
        log.warning("the profile %s is broken; it is set aside as %s.broken", path, path.name)
        with contextlib.suppress(OSError):  # another process has done it
            path.replace(path.with_name(path.name + ".broken"))
        return {}


def _key(text: str) -> Key:
    kind, op, dtype, size = text.split("|")
    return kind, op, dtype, int(size)


def _entry(values: list[float]) -> Entry:
    used, mean, count, seen = values
    if not (1 / LIMIT <= used <= LIMIT and 1 / LIMIT <= mean <= LIMIT and count >= 1):
        raise ValueError(f"not an entry: {values}")
    return Entry(float(used), float(mean), int(count), float(seen))


def _write(path: Path, entries: Mapping[Key, Entry]) -> None:
    rows = {"|".join(map(str, k)): [round(e.used, 6), round(e.mean, 6), e.count, e.seen] for k, e in entries.items()}
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w") as file:
            json.dump({"format": FORMAT, "entries": rows}, file)
        os.replace(aside, path)
    except BaseException:
        os.unlink(aside)
        raise


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One writer at a time, where the system has locks; the kernel frees the lock of a process that dies. Without them
    two writers may lose each other's measurements, and never the file."""
    try:
        import fcntl  # not on Windows
    except ImportError:
        yield
        return
    with open(path.with_name(path.name + ".lock"), "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
