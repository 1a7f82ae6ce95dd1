"""Does a cluster stay as large as it is? Trains for a long time, and looks at every process on the way.

    python benchmarks/soak.py --minutes 30 --steps 10000

Two workers and a ps train an MLP synchronously and evaluate on the way; before each sample a step is started from here
too. Every few seconds the resident memory, the open files and the threads of each process are noted, and the
shared-memory segments that they map. After `--minutes` the run is stopped.

The rule. The first quarter of the samples is warm-up. Of memory, the median of the last quarter may exceed that of the
second by 2 % and 4 MB; of files, threads and segments the median may not exceed it by more than 1. And at least
`--steps` steps must have been made. Otherwise the command fails.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import common  # first: it names the threads
import models
import numpy as np
import psutil
from flat import growth, is_flat

import nbflow as nf

# How many samples there are, and how far apart they are at least and at most.
SAMPLES = 240
CLOSEST_S, FARTHEST_S = 0.5, 10.0
MB = 1e6
EVAL_EVERY = 500
SHARED = "/dev/shm/"  # where segments are, not a file that is written


def sample(processes: Mapping[str, psutil.Process]) -> dict[str, float]:
    """What all processes hold now: series -> value. Raises psutil.NoSuchProcess when one has ended."""
    found = {}
    segments = set()
    for name, process in processes.items():
        found[f"memory of {name}"] = process.memory_info().rss / MB
        found[f"open files of {name}"] = process.num_fds()
        found[f"threads of {name}"] = process.num_threads()
        lines = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
        segments |= {line[line.index(SHARED) :] for line in lines if SHARED in line}
    found["segments mapped"] = len(segments)
    found["segments mapped, removed"] = sum(s.endswith("(deleted)") for s in segments)
    return found


def train(minutes: float, samples: list[dict[str, float]]) -> nf.train.Run:
    """Trains for so long, sampling into `samples`; the run, stopped. Raises the run's error."""
    with nf.cluster.local(workers=2, ps=1) as cluster:
        nf.set_cluster(cluster)
        processes = {f"{w.job}:{w.task}": psutil.Process(w.pid) for w in cluster.workers() if w.pid is not None}
        processes["the notebook"] = psutil.Process()
        model = models.DIGITS
        batches = model.batches()
        arrays = {"x": np.concatenate([x for x, _ in batches]), "y": np.concatenate([y for _, y in batches])}
        batch = nf.data.from_arrays(arrays).repeat().batch(model.batch).next()
        loss = models.nbflow_loss(model.weights(), batch["x"], batch["y"])
        step = nf.optim.SGD(0.01).minimize(loss, strategy=nf.train.DataParallel())
        feeds = {batch["x"]: batches[0][0], batch["y"]: batches[0][1]}
        run = nf.train.run(
            step, 1 << 40, {"loss": loss}, every=100, background=True, show=False,
            evaluate={"test loss": loss}, eval_feeds=feeds, eval_every=EVAL_EVERY,
        )  # fmt: skip
        end_s = time.monotonic() + minutes * 60
        pause_s = min(FARTHEST_S, max(CLOSEST_S, minutes * 60 / SAMPLES))
        try:
            while time.monotonic() < end_s and not run.watch(pause_s):
                nf.run(loss, feeds)
                samples.append(sample(processes))
        finally:
            run.stop()
            nf.set_cluster(None)
        if run.error is not None:
            raise run.error
        return run


def main() -> int:
    parser = common.arguments(__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long it trains")
    parser.add_argument("--steps", type=int, default=10_000, help="how many steps there must be at least")
    options = parser.parse_args()
    if options.quick:
        options.minutes, options.steps = min(options.minutes, 0.2), 1
    report = common.Report("Does a cluster stay as large as it is?", ["numpy", "grpcio", "pyzmq"])
    report.begin()
    began = datetime.now(UTC)
    samples: list[dict[str, float]] = []
    run = train(options.minutes, samples)
    grown = []
    for name in samples[0]:
        values = [s[name] for s in samples]
        unit = "MB" if "memory" in name else ""
        flat = is_flat(values, memory="memory" in name)
        grown += [] if flat else [name]
        report.row(name, f"grew by {growth(values):+.1f} {unit}".rstrip(), common.Spread.of(values), unit)
        report.rows[-1]["goals"] = {"flat": flat}
    enough = run.step >= options.steps
    report.row("trained for", "", common.Spread.of([options.minutes]), "min")
    report.row("steps", "", common.Spread.of([run.step]), "")
    report.rows[-1]["goals"] = {f"at least {options.steps}": enough}
    print(f"\n{run.step} steps in {options.minutes:g} minutes, {len(samples)} samples: ", end="")
    print(f"GREW: {', '.join(grown)}" if grown else "flat", "" if enough else f"; fewer steps than {options.steps}")
    if not options.quick:
        more = {"began": began.isoformat(timespec="seconds"), "minutes": options.minutes, "samples": samples}
        report.write("soak", more)
    return int(bool(grown) or not enough)


if __name__ == "__main__":
    sys.exit(main())
