"""What does a step with an embedding take, against the size of its table?

Two workers look up 256 rows each of a table of 64 float32 that lies on 1 or 2 ps tasks, split by rows where there are
two. *By rows*: the rows are gathered where they are, and their gradients travel as rows. The peer is the same model
with *the whole table* read by each worker, whose gradient is as large as the table. Each side is a process of its own
(`served.py`), with its cluster ready before anything is timed.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass

import common  # first: it names the threads
import numpy as np
import served

import nbflow as nf

WIDTH, IDS, WORKERS = 64, 256, 2
WINDOW_S = 0.5


@dataclass(frozen=True, slots=True)
class Side:
    rows: int
    whole: bool = False
    ps: int = 1

    def __str__(self) -> str:
        way = "the whole table" if self.whole else "by rows"
        return f"{self.rows:,} rows, {way}, {self.ps} ps"


SIDES = {
    str(side): side
    for side in (
        *(Side(rows) for rows in (10_000, 100_000, 1_000_000)),
        Side(1_000_000, ps=2),
        *(Side(rows, whole=True) for rows in (10_000, 100_000)),
    )
}
# A side, and what it is compared with.
PAIRS = (
    (Side(10_000), Side(10_000)),
    (Side(100_000), Side(10_000)),
    (Side(1_000_000), Side(10_000)),
    (Side(1_000_000, ps=2), Side(1_000_000)),
    (Side(10_000, whole=True), Side(10_000)),
    (Side(100_000, whole=True), Side(100_000)),
)


def answers_of(name: str, stack: ExitStack) -> served.Answers:
    side = SIDES[name]
    # Workers that share the machine get their part of its threads, unless the environment says otherwise.
    for variable in common.THREAD_VARIABLES:
        os.environ.pop(variable, None)
    nf.set_cluster(stack.enter_context(nf.cluster.local(workers=WORKERS, ps=side.ps)))
    ids = np.random.default_rng(0).integers(0, side.rows, (64, IDS * WORKERS))
    batch = nf.data.from_arrays({"ids": ids.reshape(-1)}).repeat().batch(IDS * WORKERS).next()
    table = nf.Variable(nf.zeros((side.rows, WIDTH)), name="table")
    found = nf.take(table * 1.0 if side.whole else table, batch["ids"], axis=0)
    loss = nf.mean((nf.layers.dense(found, 1) - 1.0) ** 2)
    # Two tasks hold half of the table each.
    split = 4 * WIDTH * side.rows // side.ps
    strategy = nf.train.DataParallel(split_bytes=split)
    step = nf.optim.SGD(0.1).minimize(loss, strategy=strategy)

    def losses(k: int) -> list[float]:
        return [float(v) for v in nf.train.run(step, k, {"loss": loss}, every=1, show=False).history["loss"]]

    return {"losses": losses, "train": lambda k: nf.train.run(step, k, show=False).status}


def main() -> int:
    parser = common.arguments(__doc__)
    options = served.options(parser, list(SIDES), answers_of)
    if options is None:
        return 0
    report = common.Report("What does a step with an embedding take, against its table's size?", ["numpy", "grpcio"])
    report.begin()
    with served.opened(__file__, list(SIDES)) as cases:
        for rows in (10_000, 100_000):
            pair = {name: case.ask("losses", 10) for name, case in cases.items() if SIDES[name].rows == rows}
            common.compare_losses(f"{rows:,} rows", pair)
        train = {name: case.steps("train") for name, case in cases.items()}
        rounds = common.rounds(options, 12)
        measured = common.measure("embedding", train, rounds=rounds, window_s=WINDOW_S)
    for side, peer in PAIRS:
        report.compare(measured, str(side), str(peer), unit="/s")
    if not options.quick:
        report.write("embedding")
    return 0


if __name__ == "__main__":
    sys.exit(main())
