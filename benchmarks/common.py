"""What the benchmarks share: named threads, windows taken in turn, ratios with their spread, versions, results.

Import this before numpy or torch: libraries read how many threads they may use when they are loaded.

A window is as many steps of one side as take about `WINDOW_S`. Sides take turns, one window each, so that whatever
else the machine does falls on all of them. What is reported is the ratio of two windows of the same round, and the
median, smallest and largest of these ratios over the rounds.

On a shared machine that is not enough: threads that wait for each other lose a hundredfold when somebody else has a
core, and some sides have more of those than others. So a round in which other processes used more than `QUIET` of the
machine does not count, whatever it would say and for whom; another one is run, up to `PATIENCE` times the rounds
wanted. How many were left out is told. When too few quiet ones are found all count, and the row says BUSY.
"""

from __future__ import annotations

import os

# Two, the cores of the machine that the published figures come from; BENCH_THREADS overrides it.
USUAL_THREADS = 2
THREADS = int(os.environ.get("BENCH_THREADS", USUAL_THREADS))
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
for _name in THREAD_VARIABLES:
    os.environ.setdefault(_name, str(THREADS))

import argparse  # noqa: E402  # after the threads are named
import importlib.metadata  # noqa: E402
import json  # noqa: E402
import platform  # noqa: E402
import statistics  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Mapping, Sequence  # noqa: E402
from dataclasses import asdict, dataclass, field  # noqa: E402
from datetime import UTC, datetime  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import psutil  # noqa: E402

RESULTS = Path(__file__).parent / "results"
WINDOW_S = 0.12
ROUNDS = 25
# How much two losses may differ, relatively, before a comparison of their times means nothing.
TOLERANCE = 1e-4
# The share of the machine that others may use in a round that counts, and how many rounds are tried at most.
QUIET = 0.15
PATIENCE = 4
# Between two windows: BLAS and OpenMP threads of the side before spin for some ten milliseconds after their work.
SETTLE_S = 0.06

# Runs this many steps.
Steps = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, smallest and largest of many figures."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        return Spread(statistics.median(values), min(values), max(values))

    def scaled(self, factor: float) -> Spread:
        return Spread(self.median * factor, self.low * factor, self.high * factor)

    def __str__(self) -> str:
        if self.low == self.high:
            return _short(self.median)
        return f"{_short(self.median)} ({_short(self.low)} to {_short(self.high)})"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


@dataclass(frozen=True, slots=True)
class Measured:
    """One case: seconds a step of each side, window by window.

    `others`: the share of the machine that other processes used in these windows; None where it was not looked at.
    `left_out`: rounds that do not count because others used too much. `busy`: there was no quiet, so all count.
    """

    case: str
    seconds: Mapping[str, Sequence[float]]
    others: float | None = None
    left_out: int = 0
    busy: bool = False

    def per_step(self, side: str) -> Spread:
        return Spread.of(self.seconds[side])

    def times_faster(self, side: str, peer: str) -> Spread:
        """How many times faster `side` is than `peer`: above 1, `side` wins."""
        pairs = zip(self.seconds[side], self.seconds[peer], strict=True)
        return Spread.of([theirs / ours for ours, theirs in pairs])


def measure(
    case: str, sides: Mapping[str, Steps], *, rounds: int = ROUNDS, window_s: float = WINDOW_S, warm_up: int = 3
) -> Measured:
    """Windows of every side in turn. `warm_up`: rounds that are run and thrown away."""
    counts = {name: _steps_in(steps, window_s) for name, steps in sides.items()}
    names = list(sides)
    for _ in range(warm_up):
        for name in names:
            sides[name](counts[name])
    found: list[tuple[float, dict[str, float]]] = []  # the share of others, and seconds a step
    for number in range(rounds * PATIENCE):
        turn = number % len(names)  # nobody is always first
        found.append(_round(sides, counts, names[turn:] + names[:turn]))
        if sum(others <= QUIET for others, _ in found) >= rounds:
            break
    quiet = [one for one in found if one[0] <= QUIET]
    busy = len(quiet) < min(rounds, 5)
    used = found if busy else quiet
    seconds = {name: [of_round[name] for _, of_round in used] for name in names}
    return Measured(case, seconds, statistics.mean(others for others, _ in used), len(found) - len(used), busy)


def others_in(run: Callable[[], object]) -> float:
    """The share of the machine that other processes used while `run` ran: more than nothing by the system's word, which
    is rounded to a hundredth of a second."""
    before, start_s = _machine_and_own_s(), time.perf_counter()
    run()
    wall_s, after = time.perf_counter() - start_s, _machine_and_own_s()
    foreign_s = (after[0] - before[0]) - (after[1] - before[1])
    return max(0.0, foreign_s / (wall_s * (os.cpu_count() or 1)))


def _round(
    sides: Mapping[str, Steps], counts: Mapping[str, int], names: Sequence[str]
) -> tuple[float, dict[str, float]]:
    """One window of each side: the share of the machine that others used meanwhile, and seconds a step."""
    seconds = {}

    def windows() -> None:
        for name in names:
            time.sleep(SETTLE_S)
            window_start_s = time.perf_counter()
            sides[name](counts[name])
            seconds[name] = (time.perf_counter() - window_start_s) / counts[name]

    return others_in(windows), seconds


def _steps_in(steps: Steps, window_s: float) -> int:
    steps(1)
    count = 1
    while True:
        start_s = time.perf_counter()
        steps(count)
        took_s = time.perf_counter() - start_s
        if took_s > window_s * 0.4:
            return max(1, round(count * window_s / took_s))
        count = max(count + 1, int(count * min(10.0, window_s / max(took_s, 1e-7))))


def _machine_and_own_s() -> tuple[float, float]:
    """CPU seconds that the machine has spent, and that this process and its descendants have."""
    times = psutil.cpu_times()
    busy_s = times.user + times.nice + times.system
    own_s = 0.0
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        try:
            used = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        own_s += used.user + used.system
    return busy_s, own_s


def compare_losses(case: str, losses: Mapping[str, Sequence[float]], tolerance: float = TOLERANCE) -> None:
    """Raises ValueError unless all sides computed the same: otherwise they are not compared."""
    first, *others = losses
    for other in others:
        if len(losses[first]) != len(losses[other]):
            raise ValueError(f"{case}: {first} has {len(losses[first])} losses, {other} has {len(losses[other])}")
        for step, (a, b) in enumerate(zip(losses[first], losses[other], strict=True)):
            if not abs(a - b) <= tolerance * max(abs(a), abs(b), 1e-12):
                raise ValueError(f"{case}: at step {step} the loss of {first} is {a!r}, of {other} {b!r}")


@dataclass(slots=True)
class Report:
    """The answer to one question: a table on the screen, and the same as JSON in `results/`."""

    question: str
    libraries: Sequence[str]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, measured: Measured, base: str, *, unit: str = "µs", per: float = 1.0) -> None:
        """One row a side, each with how many times faster `base` is. `unit`: s, ms, µs, /s (steps a second) or GB/s.
        `per`: how many of what is told, or how many bytes, there are in a step."""
        for name in measured.seconds:
            self.compare(measured, name, base, unit=unit, per=per)

    def compare(self, measured: Measured, side: str, base: str, *, unit: str = "µs", per: float = 1.0) -> None:
        """One row: `side`, and how many times faster `base` is."""
        told = _in_unit(measured.per_step(side), unit, per)
        beside = None if side == base else (base, measured.times_faster(base, side))
        self.row(measured.case, side, told, unit, beside, measured)

    def row(
        self,
        case: str,
        side: str,
        told: Spread,
        unit: str,
        beside: tuple[str, Spread] | None = None,
        measured: Measured | None = None,
    ) -> None:
        """`beside`: another side, and how many times faster it is. `measured`: what the figures come from."""
        row: dict[str, Any] = {"case": case, "side": side, "unit": unit, **asdict(told)}
        if measured is not None:
            row["windows"] = len(measured.seconds[side])
            row["windows_left_out"] = measured.left_out
            row["used_by_others"] = measured.others
            row["busy"] = measured.busy
        if beside is not None:
            row["times_faster"] = {"side": beside[0], **asdict(beside[1])}
        self.rows.append(row)
        text = "" if beside is None else f"{beside[0]} is {beside[1]} times as fast"
        mark = "  BUSY: others used the machine" if measured is not None and measured.busy else ""
        print(f"{case:<36} {side:<26} {str(told) + ' ' + unit:<32} {text}{mark}", flush=True)

    def begin(self) -> None:
        versions = ", ".join(f"{name} {version}" for name, version in self.versions().items())
        print(f"{self.question}\n{THREADS} threads on {os.cpu_count()} cores; {versions}")
        print("median (lowest to highest) of windows taken in turn\n")

    def versions(self) -> dict[str, str]:
        found = {"Python": platform.python_version()}
        for name in ("nbflow", *self.libraries):
            try:
                found[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                found[name] = "not installed"
        return found

    def write(self, name: str, more: Mapping[str, Any] | None = None) -> Path:
        """`more` is written beside the rows. Raises OSError when the folder cannot be written."""
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / (f"{name}.json" if THREADS == USUAL_THREADS else f"{name}-threads-{THREADS}.json")
        whole = {
            "question": self.question,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "system": platform.system()},
            "threads": THREADS,
            "versions": self.versions(),
            "rows": [_rounded(row) for row in self.rows],
            **{key: _rounded(value) for key, value in (more or {}).items()},
        }
        path.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
        print(f"\nwritten to {path.relative_to(RESULTS.parent.parent)}")
        return path


def _in_unit(seconds: Spread, unit: str, per: float) -> Spread:
    if unit in ("/s", "GB/s"):
        scale = per / (1e9 if unit == "GB/s" else 1)
        return Spread(1 / seconds.median, 1 / seconds.high, 1 / seconds.low).scaled(scale)
    return seconds.scaled({"µs": 1e6, "ms": 1e3, "s": 1.0}[unit] / per)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return value


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has: `--quick` for a look, without results written."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds, nothing written: to see that it works")
    return parser


def rounds(options: argparse.Namespace, usual: int = ROUNDS) -> int:
    return 3 if options.quick else usual
