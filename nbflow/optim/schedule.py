"""`nf.optim.schedule`: learning rates that follow the step count.

A schedule is a function from the step count (an int64 scalar tensor, 0 at the first step) to a float64 scalar tensor.
Optimizers take one as their learning rate, and any function of that form is one. All arithmetic is in float64, so that
counts beyond 2²⁴ stay exact.

    opt = nf.optim.Adam(nf.optim.schedule.warmup(500, nf.optim.schedule.cosine(1e-3, 10_000)))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from nbflow.errors import GraphError
from nbflow.graph import Tensor
from nbflow.ops import astype, cos, floor, greater_equal, less, maximum, minimum, where
from nbflow.ops._build import convert

Schedule = Callable[[Tensor], Tensor]

__all__ = [
    "Schedule",
    "constant",
    "cosine",
    "exponential",
    "one_cycle",
    "piecewise",
    "step_decay",
    "warmup",
]


def constant(value: float) -> Schedule:
    """`value` at every step."""
    rate = _rate(value, "value")
    return lambda count: convert(rate, "float64")


def step_decay(initial: float, every: int, factor: float = 0.1) -> Schedule:
    """initial · factor^⌊t / every⌋."""
    start, length = _rate(initial, "initial"), _steps(every, "every")
    ratio = _rate(factor, "factor")
    return lambda count: ratio ** floor(_time(count) / length) * start


def piecewise(boundaries: Sequence[int], values: Sequence[float]) -> Schedule:
    """values[i] from step boundaries[i - 1] on: values[0] before the first boundary. One more value than boundaries."""
    steps = [_steps(b, "a boundary") for b in boundaries]
    rates = [_rate(v, "a value") for v in values]
    if len(rates) != len(steps) + 1:
        raise GraphError(f"{len(steps)} boundaries need {len(steps) + 1} values, got {len(rates)}")
    if steps != sorted(set(steps)):
        raise GraphError(f"boundaries increase, got {list(boundaries)}")

    def rate(count: Tensor) -> Tensor:
        made = convert(rates[0], "float64")
        for step, value in zip(steps, rates[1:], strict=True):
            made = where(greater_equal(count, step), value, made)
        return made

    return rate


def exponential(initial: float, steps: int, factor: float, floor_rate: float = 0.0) -> Schedule:
    """max(initial · factor^(t / steps), floor_rate): smooth, times `factor` each `steps` steps."""
    start, length = _rate(initial, "initial"), _steps(steps, "steps")
    ratio, least = _rate(factor, "factor"), _rate(floor_rate, "floor_rate")
    return lambda count: maximum(ratio ** (_time(count) / length) * start, least)


def cosine(initial: float, steps: int, final: float = 0.0) -> Schedule:
    """final + (initial - final) · (1 + cos(π · min(t, steps) / steps)) / 2. Loshchilov, Hutter, arXiv 1608.03983."""
    start, end, length = _rate(initial, "initial"), _rate(final, "final"), _steps(steps, "steps")

    def rate(count: Tensor) -> Tensor:
        done = minimum(_time(count), length) / length
        return (cos(done * math.pi) + 1.0) * (0.5 * (start - end)) + end

    return rate


def warmup(steps: int, after: float | Schedule, start: float = 0.0) -> Schedule:
    """From `start` in a line to the first rate of `after` during `steps` steps; then `after`, its count from 0.

    start + (after(0) - start) · t / steps for t < steps, then after(t - steps). `after`: a schedule, or one rate.
    """
    length, low = _steps(steps, "steps"), _rate(start, "start")
    following = after if callable(after) else constant(after)

    def rate(count: Tensor) -> Tensor:
        # One evaluation serves both parts: before the end of the warm-up the count that `after` sees is 0.
        main = astype(following(maximum(count - length, 0)), "float64")
        rising = (main - low) * (_time(count) / length) + low
        return where(less(count, length), rising, main)

    return rate


def one_cycle(
    peak: float, steps: int, rising: float = 0.3, initial_factor: float = 25.0, final_factor: float = 1e4
) -> Schedule:
    """Up and down once in `steps` steps, each half a cosine. Smith and Topin, arXiv 1708.07120.

    From peak / initial_factor to peak during the first `rising` (a fraction) of the steps, then down to
    peak / initial_factor / final_factor, where it stays.
    """
    top, length = _rate(peak, "peak"), _steps(steps, "steps")
    if not 0 < rising < 1 or initial_factor <= 0 or final_factor <= 0:
        raise GraphError(
            f"one_cycle needs 0 < rising < 1 and positive factors, got {rising}, {initial_factor}, {final_factor}"
        )
    low = top / initial_factor
    last = low / final_factor
    turn = rising * length

    def between(begin: float, end: float, done: Tensor) -> Tensor:
        return (cos(done * math.pi) + 1.0) * (0.5 * (begin - end)) + end

    def rate(count: Tensor) -> Tensor:
        time = minimum(_time(count), length)
        up = between(low, top, minimum(time, turn) / turn)
        down = between(top, last, maximum(time - turn, 0.0) / (length - turn))
        return where(less(time, turn), up, down)

    return rate


def _time(count: Tensor) -> Tensor:
    return astype(count, "float64")


def _rate(value: float, what: str) -> float:
    if not 0 <= float(value) < math.inf:
        raise GraphError(f"{what} is a finite number of at least 0, not {value!r}")
    return float(value)


def _steps(value: int, what: str) -> int:
    if isinstance(value, bool) or int(value) != value or value < 1:
        raise GraphError(f"{what} is a positive number of steps, not {value!r}")
    return int(value)
