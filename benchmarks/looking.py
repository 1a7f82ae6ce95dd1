"""What does it cost that ordinary steps feed the profile of measured times?

One step in `executor.LOOK_EVERY` is timed op by op. Here all steps are, beside none: a hundredth of the difference is
what steps pay on average. CPU time, since that is what is spent: a chain of tiny ops, which is the worst case, and a
training step.

    python benchmarks/looking.py
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import common  # first: it names the threads
import numpy as np
from models import MLP, nbflow_loss

import nbflow as nf
from nbflow import executor

CHAIN = 2000


def chain() -> tuple[nf.Session, Callable[[], object]]:
    graph = nf.Graph()
    with graph.as_default():
        x = nf.placeholder("float32", (1,), name="x")
        y = x
        for _ in range(CHAIN):
            y = y + x
    session, value = nf.Session(None, graph), np.ones(1, np.float32)
    return session, lambda: session.run(y, {x: value})


def training() -> tuple[nf.Session, Callable[[], object]]:
    graph = nf.Graph()
    with graph.as_default():
        x = nf.random.normal((MLP.batch, MLP.units[0]))
        y = nf.zeros((MLP.batch,), dtype="int64")
        step = nf.optim.SGD(0.01).minimize(nbflow_loss(MLP.weights(), x, y))
    session = nf.Session(None, graph)
    return session, lambda: session.run(step)


def cpu_s(run: Callable[[], object], steps: int, every: int, first: int) -> float:
    """CPU seconds a step, with every `every`th looked at."""
    usual = executor.LOOK_EVERY, executor.LOOK_FIRST
    executor.LOOK_EVERY, executor.LOOK_FIRST = every, first
    try:
        start_s = time.process_time()
        for _ in range(steps):
            run()
        return (time.process_time() - start_s) / steps
    finally:
        executor.LOOK_EVERY, executor.LOOK_FIRST = usual


def main() -> int:
    options = common.arguments(__doc__).parse_args()
    report = common.Report("What does looking at one step in a hundred cost?", ["numpy"])
    report.begin()
    for case, make, steps in (
        (f"chain of {CHAIN:,} additions", chain, 40),
        ("training step of the MNIST MLP", training, 200),
    ):
        session, run = make()
        cpu_s(run, steps // 4, 1 << 60, 0)
        shares = []
        for _ in range(common.rounds(options, 15)):
            plain_s = cpu_s(run, steps, 1 << 60, 0)
            all_s = cpu_s(run, steps, 1, 0)
            shares.append((all_s / plain_s - 1) / executor.LOOK_EVERY)
        report.row(case, "of a step's CPU time", common.Spread.of(shares).scaled(100), "%")
        session.close()
    if not options.quick:
        report.write("looking")
    return 0


if __name__ == "__main__":
    sys.exit(main())
