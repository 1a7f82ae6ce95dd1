"""Learning-rate schedules against their formulas, step by step, and inside optimizers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import nbflow as nf
from nbflow.errors import GraphError
from nbflow.graph import Graph
from nbflow.optim import schedule
from nbflow.session import Session


def _cosine(t: int) -> float:
    return 0.1 + 0.9 * (1 + math.cos(math.pi * min(t, 10) / 10)) / 2


def _warm(t: int) -> float:
    return 0.2 + 0.8 * t / 4 if t < 4 else _cosine(t - 4)


def _cycle(t: int) -> float:
    low, top, last = 0.25, 1.0, 0.0025
    turn = 3.6
    if min(t, 12) < turn:
        return low + (top - low) * (1 - math.cos(math.pi * t / turn)) / 2
    return last + (top - last) * (1 + math.cos(math.pi * (min(t, 12) - turn) / (12 - turn))) / 2


CASES: dict[str, tuple[schedule.Schedule, Callable[[int], float]]] = {
    "constant": (schedule.constant(0.3), lambda t: 0.3),
    "step_decay": (schedule.step_decay(1.0, 4, 0.5), lambda t: 0.5 ** (t // 4)),
    "piecewise": (schedule.piecewise([3, 7], [1.0, 0.1, 0.01]), lambda t: 1.0 if t < 3 else 0.1 if t < 7 else 0.01),
    "exponential": (schedule.exponential(2.0, 5, 0.3, 0.4), lambda t: max(2.0 * 0.3 ** (t / 5), 0.4)),
    "cosine": (schedule.cosine(1.0, 10, 0.1), _cosine),
    "warmup": (schedule.warmup(4, schedule.cosine(1.0, 10, 0.1), start=0.2), _warm),
    "warmup to a number": (schedule.warmup(4, 0.6), lambda t: 0.6 * min(t, 4) / 4),
    "one_cycle": (schedule.one_cycle(1.0, 12, 0.3, 4.0, 100.0), _cycle),
}


@pytest.mark.parametrize("name", CASES)
def test_formula(name: str) -> None:
    made, formula = CASES[name]
    with Graph().as_default():
        count = nf.placeholder("int64", (), name="count")
        rate = made(count)
        assert rate.dtype == np.float64
        assert rate.shape == ()
        session = Session()
        found = [float(session.run(rate, {count: np.int64(t)})) for t in range(18)]
        session.close()
    np.testing.assert_allclose(found, [formula(t) for t in range(18)], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", CASES)
def test_an_optimizer_takes_it(name: str) -> None:
    made, formula = CASES[name]
    with Graph().as_default():
        w = nf.Variable(np.zeros(2), name="w")
        step = nf.optim.SGD(made).minimize(nf.sum(w))
        session = Session()
        for t in range(12):
            session.run(step)
            np.testing.assert_allclose(session.run(w), -sum(formula(s) for s in range(t + 1)), rtol=1e-6)
        session.close()


@pytest.mark.parametrize(
    "make",
    [
        lambda: schedule.constant(-1.0),
        lambda: schedule.cosine(1.0, 0),
        lambda: schedule.piecewise([3], [1.0]),
        lambda: schedule.piecewise([3, 3], [1.0, 0.5, 0.1]),
        lambda: schedule.one_cycle(1.0, 10, rising=1.0),
        lambda: schedule.exponential(math.nan, 10, 0.5),
    ],
)
def test_what_is_refused(make: Any) -> None:
    with pytest.raises(GraphError):
        make()
