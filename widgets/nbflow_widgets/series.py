"""Metric events → points per (metric, replica), thinned where there are more than anybody can see. Pure."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

# (metric, replica); the replica is empty for the mean over replicas.
Key = tuple[str, str]


@dataclass(slots=True)
class Points:
    """One curve. `steps` float64, `values` float32, in the order they came."""

    steps: array[float] = field(default_factory=lambda: array("d"))
    values: array[float] = field(default_factory=lambda: array("f"))

    def extend(self, steps: Iterable[float], values: Iterable[float]) -> None:
        """Appends points. Values beyond float32's range become infinite."""
        new_steps, new_values = array("d", steps), array("f", values)
        if len(new_steps) != len(new_values):
            raise ValueError(f"{len(new_steps)} steps came with {len(new_values)} values; give one value a step")
        self.steps.extend(new_steps)
        self.values.extend(new_values)

    def __len__(self) -> int:
        return len(self.steps)

    def since(self, index: int) -> Points:
        """The points from `index` on."""
        return Points(self.steps[index:], self.values[index:])

    def thinned(self, limit: int) -> Points:
        """At most `limit` points that keep the extremes of each stretch."""
        if len(self) <= limit:
            return self
        kept = min_max(self.values, limit)
        return Points(array("d", (self.steps[i] for i in kept)), array("f", (self.values[i] for i in kept)))


def min_max(values: Sequence[float], limit: int) -> list[int]:
    """Indices of at most `limit` values: the first, the last, and the least and greatest of each stretch, in order.

    Not a number counts as least: it is news and must not vanish.
    """
    n = len(values)
    if n <= limit:
        return list(range(n))
    buckets = max(1, (limit - 2) // 2)
    kept = [0]
    for bucket in range(buckets):
        stretch = range(1 + bucket * (n - 2) // buckets, 1 + (bucket + 1) * (n - 2) // buckets)
        if not stretch:
            continue
        low = min(stretch, key=lambda i: -math.inf if math.isnan(values[i]) else values[i])
        high = max(stretch, key=lambda i: -math.inf if math.isnan(values[i]) else values[i])
        kept.extend(sorted({low, high}))
    kept.append(n - 1)
    return kept


@dataclass(slots=True)
class Progress:
    """How far a run is and how fast it goes, from (step, time) pairs. Times in seconds on one clock."""

    step: int = 0
    steps: int = 0
    rate: float = 0.0
    _since: tuple[int, float] | None = None

    # The rate follows a change of pace within about this many seconds.
    memory_s = 5.0
    # Shorter stretches say more about the clock than about the run.
    least_s = 0.5

    def update(self, step: int, wall_s: float) -> None:
        """A step was reached. Going back, as after a resume, starts the measurement anew."""
        if self._since is None or step < self.step:
            self._since = (step, wall_s)
            self.step = step
            return
        self.step = step
        elapsed = wall_s - self._since[1]
        if elapsed < self.least_s:
            return
        now = (step - self._since[0]) / elapsed
        keep = math.exp(-elapsed / self.memory_s) if self.rate else 0.0
        self.rate = keep * self.rate + (1 - keep) * now
        self._since = (step, wall_s)

    @property
    def eta_s(self) -> float:
        """Seconds left; -1 when unknown."""
        if self.rate <= 0 or self.steps <= 0:
            return -1.0
        return max(0, self.steps - self.step) / self.rate
