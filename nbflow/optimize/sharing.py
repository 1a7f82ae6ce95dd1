"""Which free memory an op may take: what `nbflow.compile` does, and what counts how much memory that needs.

Whoever takes the memory of a value comes after those who read it. So it must not wait for more than it does anyway, or
what comes from elsewhere would be taken in a fixed order: a ring's chunks, or gradients from several workers, would
wait for each other (docs/decisions/0017). What an op waits for is a set, as the bits of a number.
"""

from __future__ import annotations

from collections.abc import Sequence

# How many free buffers of one kind are looked at.
LOOK_AT = 64


def last_fitting(free: Sequence[int], waits: int) -> int | None:
    """The place of the last free buffer whose readers waited for nothing that is not among `waits`; None for none.
    `free`: what the readers of each free buffer waited for."""
    for number in range(len(free) - 1, max(-1, len(free) - 1 - LOOK_AT), -1):
        if free[number] & ~waits == 0:
            return number
    return None
