"""What is it worth that the loop of a training runs on the workers?

The same training of an MLP, on two workers and a ps and in one process, driven in two ways: by `nf.train.run`, whose
loop is on a worker, and by a loop in the notebook that starts a step, waits for it and takes the loss, as one writes it
by hand. `nf.train.run` reports the loss of each step too, so both ways give the same, and losses must agree. A third
way lets workers come and go meanwhile (`elastic=True`), and nobody does. Each side is a process of its own
(`served.py`), with its cluster ready before anything is timed; a window includes a start.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack

import common  # first: it names the threads
import models
import numpy as np
import served

import nbflow as nf

MODEL = models.MLP
LOSSES = 20
WINDOW_S = 1.0  # long beside the start of a run
CLUSTERS = {"2 workers + ps": (2, 1), "one process": (0, 0)}
WORKERS, NOTEBOOK, ELASTIC = "loop on the workers", "loop in the notebook", "loop on the workers, elastic"
SIDES = {f"{cluster}, {way}": (cluster, way) for cluster in CLUSTERS for way in (WORKERS, NOTEBOOK)}
SIDES[f"2 workers + ps, {ELASTIC}"] = ("2 workers + ps", ELASTIC)


def answers_of(side: str, stack: ExitStack) -> served.Answers:
    cluster, way = SIDES[side]
    workers, ps = CLUSTERS[cluster]
    if workers:
        # Workers that share the machine get their part of its threads, unless the environment says otherwise.
        for name in common.THREAD_VARIABLES:
            os.environ.pop(name)
        nf.set_cluster(stack.enter_context(nf.cluster.local(workers=workers, ps=ps)))
    batches = MODEL.batches()
    arrays = {"x": np.concatenate([x for x, _ in batches]), "y": np.concatenate([y for _, y in batches])}
    batch = nf.data.from_arrays(arrays).repeat().batch(MODEL.batch).next()
    loss = models.nbflow_loss(MODEL.weights(), batch["x"], batch["y"])
    step = nf.optim.SGD(float(models.RATE)).minimize(loss, strategy=nf.train.DataParallel())

    def on_workers(k: int) -> list[float]:
        run = nf.train.run(step, k, {"loss": loss}, every=1, show=False, elastic=way == ELASTIC)
        return [float(v) for v in run.history["loss"]]

    def in_notebook(k: int) -> list[float]:
        return [float(nf.run([step, loss])[1]) for _ in range(k)]

    return {"train": in_notebook if way == NOTEBOOK else on_workers}


def main() -> int:
    parser = common.arguments(__doc__)
    options = served.options(parser, list(SIDES), answers_of)
    if options is None:
        return 0
    report = common.Report("What is it worth that the loop runs on the workers?", ["numpy", "grpcio", "pyzmq"])
    report.begin()
    with served.opened(__file__, list(SIDES)) as cases:
        common.compare_losses(MODEL.name, {name: case.ask("train", LOSSES) for name, case in cases.items()})
        train = {name: case.steps("train") for name, case in cases.items()}
        measured = common.measure(MODEL.name, train, rounds=common.rounds(options), window_s=WINDOW_S)
    for cluster in CLUSTERS:
        ours, theirs = f"{cluster}, {WORKERS}", f"{cluster}, {NOTEBOOK}"
        report.compare(measured, ours, ours, unit="/s")
        report.compare(measured, theirs, ours, unit="/s")
    report.compare(measured, f"2 workers + ps, {ELASTIC}", f"2 workers + ps, {WORKERS}", unit="/s")
    if not options.quick:
        report.write("loop")
    return 0


if __name__ == "__main__":
    sys.exit(main())
