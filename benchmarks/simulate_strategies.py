"""How far is `nbflow simulate` from what is measured, for each strategy?

An MLP on 2 and 4 worker processes (and 1 ps) with null devices, whose op and link times are stated, trained by
`nf.train.run`. What the driver and a tensor cost is measured first (`simulate.overheads`). A step's time is the
difference of a long and a short run over that of their steps, so that starting a run does not count; of asynchronous
training it is that of a replica's own step.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace
from typing import Any

import common  # first: it names the threads
import numpy as np
import simulate

import nbflow as nf
from nbflow import simulate as sim
from nbflow.simulate.asked import AHEAD

NULL = "flops=4e9/bytes=1e10/link=1e8/latency=200us"
ROWS, HIDDEN = 64, 512


@dataclass(frozen=True, slots=True)
class Case:
    """`shared`: the rows of a batch are for all workers together. `own`: replicas make steps of their own."""

    name: str
    strategy: Any
    shared: bool = True
    own: bool = False


def cases(workers: int) -> list[Case]:
    stages = tuple(f"/job:worker/task:{n}" for n in range(workers))
    return [
        Case("synchronous", nf.train.DataParallel()),
        Case("ring", nf.train.DataParallel(ps=None)),
        Case("asynchronous", nf.train.DataParallel(sync=False), shared=False, own=True),
        Case("at most 1 step apart", nf.train.DataParallel(sync=False, staleness=1), shared=False, own=True),
        Case("local SGD, every 4", nf.train.LocalSGD(every=4)),
        Case("pipeline, 8 micro-batches", nf.train.Pipeline(stages, microbatches=8), shared=False),
    ]


def mlp(case: Case, workers: int) -> nf.Node:
    rows = ROWS * workers if case.shared else ROWS
    with nf.Graph().as_default():
        x = nf.data.from_arrays({"x": np.zeros((rows * 4, 784), np.float32)}).repeat().batch(rows).next()["x"]
        for _ in range(4):
            x = nf.layers.dense(x, HIDDEN, activation=nf.nn.relu)
        return nf.optim.SGD(0.1, momentum=0.9).minimize(nf.mean(x**2), strategy=case.strategy)


def measured(cluster: Any, step: nf.Node, case: Case, workers: int, windows: int) -> list[float]:
    """Seconds of a step, one for each window."""
    short, long = 4 * workers, 16 * workers if case.own else 16

    def run(steps: int) -> float:
        start = time.perf_counter()
        nf.train.run(step, steps=steps, show=False)
        return time.perf_counter() - start

    with step.graph.as_default():
        nf.set_cluster(cluster)
        try:
            run(short)
            times = [(run(short + long) - run(short)) / long for _ in range(windows)]
        finally:
            nf.set_cluster(None)
    return [t * workers if case.own else t for t in times]


def main() -> int:
    parser = common.arguments(__doc__)
    options = parser.parse_args()
    report = common.Report("How far is the simulation of each strategy from what is measured?", ["numpy", "grpcio"])
    report.begin()
    for name in common.THREAD_VARIABLES:
        common.os.environ.pop(name, None)
    control, messages = simulate.overheads(5 if options.quick else 40)
    described = sim.Described(
        sim.parse_machine(NULL), control=replace(control, ahead=AHEAD), messages=messages, rows=ROWS
    )
    for workers in (2,) if options.quick else (2, 4):
        with nf.cluster.local(workers=workers, ps=1, devices=f"null@{NULL}") as cluster:
            for case in cases(workers):
                step = mlp(case, workers)
                found = measured(cluster, step, case, workers, 1 if options.quick else 5)
                predicted = sim.predict(step, workers, described, ps=1, steps=12)
                report.rows.append(simulate.row(case.name, workers, found, predicted.step_s))
    if not options.quick:
        report.write("simulate_strategies")
    return 0


if __name__ == "__main__":
    sys.exit(main())
