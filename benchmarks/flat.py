"""The rule by which `soak.py` says that something does not grow. It imports nothing of this folder, so tests can."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

# What is allowed: of memory a share and MB, of what is counted this many.
MEMORY_SHARE, MEMORY_MB, COUNT = 0.02, 4.0, 1.0


def growth(values: Sequence[float]) -> float:
    """How much higher the median of the last quarter is than that of the second; the first is warm-up.

    Raises ValueError for less than four values.
    """
    if len(values) < 4:
        raise ValueError(f"{len(values)} samples are too few to say whether something grows; train for longer")
    quarter = len(values) // 4
    return statistics.median(values[-quarter:]) - statistics.median(values[quarter : 2 * quarter])


def is_flat(values: Sequence[float], *, memory: bool) -> bool:
    """Whether `values`, in MB when they are of memory, grow by no more than is allowed."""
    allowed = MEMORY_MB + MEMORY_SHARE * statistics.median(values) if memory else COUNT
    return growth(values) <= allowed
