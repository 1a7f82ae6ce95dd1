"""By how much a worker's step is slower than it should be: distributions in words, drawn by a seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from nbflow.errors import GraphError

Draw = Callable[[np.random.Generator, int], "np.ndarray[tuple[int], np.dtype[np.float64]]"]


def _lognormal(sigma: float) -> Draw:
    return lambda random, n: np.exp(sigma * random.standard_normal(n))


def _exponential(mean: float) -> Draw:
    return lambda random, n: 1.0 + mean * random.standard_exponential(n)


def _pareto(shape: float) -> Draw:
    return lambda random, n: 1.0 + random.pareto(shape, n)


def _slow(share: float, times: float) -> Draw:
    def draw(random: np.random.Generator, n: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        hit, how = random.random(n) < share, random.standard_exponential(n)
        return np.where(hit, 1.0 + (times - 1.0) * how, 1.0)

    return draw


# Name -> (how many numbers it takes, its distribution).
KINDS: Mapping[str, tuple[int, Callable[..., Draw]]] = {
    "lognormal": (1, _lognormal),
    "exponential": (1, _exponential),
    "pareto": (1, _pareto),
    "slow": (2, _slow),
}


@dataclass(frozen=True, slots=True)
class Stragglers:
    """A distribution of factors; parts multiply. From text, parts with `+` between:

    - `lognormal:S`: median 1, S the deviation of its logarithm: the usual jitter.
    - `exponential:M`: 1 and an exponential of mean M.
    - `pareto:A`: at least 1, with a tail of power A.
    - `slow:P,T`: with probability P, 1 and an exponential of mean T - 1, so T on average: now and then a worker stalls.
    """

    text: str = ""
    parts: tuple[Draw, ...] = ()

    @staticmethod
    def parse(text: str) -> Stragglers:
        """Raises GraphError that shows what can be written."""
        return Stragglers(text, tuple(_part(p, text) for p in text.split("+") if p))

    def factors(self, steps: int, workers: int, seed: int) -> list[list[float]]:
        """A factor for each step and worker. The same seed gives the same ones, and more workers leave the factors of
        the first ones as they are."""
        if not self.parts:
            return []
        made = np.ones((steps, workers))
        for step in range(steps):
            for number, draw in enumerate(self.parts):
                # One generator a worker would be slow; drawing always as many keeps the first ones the same.
                random = np.random.Generator(np.random.Philox(key=[seed, step * 16 + number]))
                made[step] *= draw(random, _most(workers))[:workers]
        return made.tolist()


def _most(workers: int) -> int:
    """A power of two of at least 1024: draws of the same length agree in all of it."""
    return max(1024, 1 << (workers - 1).bit_length())


def _part(part: str, text: str) -> Draw:
    name, _, numbers = part.partition(":")
    try:
        values = [float(v) for v in numbers.split(",")] if numbers else []
    except ValueError:
        values = []
    count, make = KINDS.get(name, (-1, _lognormal))
    if (
        len(values) != count
        or not all(math.isfinite(v) and v >= 0 for v in values)
        or (name == "pareto" and not values[0])
    ):
        raise GraphError(
            f"not a distribution of stragglers: {text!r}; write lognormal:0.1, exponential:0.2, pareto:3 or "
            "slow:0.02,3 (probability, times slower), or several with + between"
        )
    return make(*values)
