"""What does a step cost with up to 100 workers?

A null step, as in Abadi et al., "TensorFlow" (OSDI 2016), section 6.2: every worker fetches a model from 16 ps tasks,
does next to nothing with it, and sends updates back; all are applied in one step. The model is a scalar a ps; 100 MB or
1 GB; or 32 rows a worker (2 a ps) of a table of 1 GB or 16 GB. And a step of which each task has one op and nothing
travels: what control costs.

What is real: a process a task (`nbflow worker`), plans, commands, rendezvous, the messages of the data plane, one a
tensor. What is emulated: devices compute nothing (`--devices null`), tensors travel as descriptions, and a link of each
task, LINK both ways, is busy for as long as the bytes would take. So the times of dense steps are those of the stated
links plus real coordination, all of it on the cores of this machine, which the paper's 117 machines did not share.
Where that many processes do not fit into `--memory`, tasks run in this process, and the row says so.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import common  # first: it names the threads
import psutil

import nbflow as nf
from nbflow.inprocess import InProcessCluster
from nbflow.transport import Cluster

PS = 16
LINK = "null@link=1e9/latency=50us"  # about what the paper's ps tasks reached
WORKERS = (1, 2, 5, 10, 25, 50, 100)
MB = 10**6
ROW = 1000  # float32 numbers
# Median milliseconds of the paper with 1 and 100 workers, read from its text, second hand.
PAPER = {"scalar": (1.8, 8.8), "dense 100 MB": (147, 613), "dense 1 GB": (1010, 7160)}
DEADLINE_S = 300.0
# By how much a process is larger after its steps.
GROWS = 1.1


def control(workers: int) -> nf.Node:
    """One op on every task."""
    devices = [f"/job:worker/task:{n}" for n in range(workers)] + [f"/job:ps/task:{n}" for n in range(PS)]
    made = []
    for device in devices:
        with nf.device(device):
            made.append(nf.random.uniform(()))
    return nf.group(*made)


def dense(nbytes: int) -> Callable[[int], nf.Node]:
    """Each worker reads `nbytes` from all ps tasks together, and subtracts as many."""

    def build(workers: int) -> nf.Node:
        updates = []
        for number in range(PS):
            with nf.device(f"/job:ps/task:{number}"):
                shape = () if nbytes <= 4 * PS else (nbytes // 4 // PS,)
                part = nf.Variable(nf.zeros(shape), name=f"part_{number}")
                value = part.read()
            found = []
            for worker in range(workers):
                with nf.device(f"/job:worker/task:{worker}"):
                    found.append(nf.negative(value))
            with nf.device(f"/job:ps/task:{number}"):
                updates.append(part.assign_sub(nf.add_n(found) if len(found) > 1 else found[0]))
        return nf.group(*updates)

    return build


def sparse(nbytes: int) -> Callable[[int], nf.Node]:
    """Each worker reads 32 rows of a table of `nbytes`, 2 of each ps' part, and subtracts as many."""

    def build(workers: int) -> nf.Node:
        updates = []
        rows = nbytes // 4 // ROW // PS
        for number in range(PS):
            with nf.device(f"/job:ps/task:{number}"):
                part = nf.Variable(nf.zeros((rows, ROW)), name=f"table_{number}")
                value = part.read()
            found, ids = [], []
            for worker in range(workers):
                with nf.device(f"/job:ps/task:{number}"):
                    ids.append(nf.constant([(7 * worker) % rows, (7 * worker + 3) % rows]))
                    picked = nf.take(value, ids[-1], axis=0)
                with nf.device(f"/job:worker/task:{worker}"):
                    found.append(nf.negative(picked))
            with nf.device(f"/job:ps/task:{number}"):
                updates.append(part.scatter_sub(nf.concat(ids, axis=0), nf.concat(found, axis=0)))
        return nf.group(*updates)

    return build


CASES = {
    "control only": control,
    "scalar": dense(4 * PS),
    "dense 100 MB": dense(100 * MB),
    "dense 1 GB": dense(1000 * MB),
    "sparse, 1 GB table": sparse(1000 * MB),
    "sparse, 16 GB table": sparse(16_000 * MB),
}


def used_bytes(cluster: Any) -> list[int]:
    """Memory of each worker process that no other shares."""
    return [psutil.Process(r.pid).memory_full_info().uss for r in cluster.workers() if r.pid]


def cpu_s(cluster: Any) -> float:
    """CPU seconds that this process and all workers have used."""
    pids = [psutil.Process()]
    if not isinstance(cluster, InProcessCluster):
        pids += [psutil.Process(r.pid) for r in cluster.workers() if r.pid]
    return sum(t.user + t.system for t in (p.cpu_times() for p in pids))


@contextmanager
def started(workers: int, memory: float) -> Iterator[tuple[Any, str]]:
    """A cluster of `workers` and PS null tasks, and how its tasks run."""
    with nf.cluster.local(workers=2, ps=2, devices=LINK) as probe:
        session = nf.Session(probe, nf.Graph())
        each = statistics.mean(used_bytes(probe))
        session.close()
    print(f"a worker process takes {each / MB:.0f} MB of its own before its first step")
    if each * GROWS * (workers + PS) > memory:
        cluster = InProcessCluster(workers=workers, ps=PS, null=LINK.partition("@")[2])
        yield cluster, "tasks in one process"
        cluster.close()
        return
    start = time.perf_counter()
    with nf.cluster.local(workers=workers, ps=PS, devices=LINK, timeout_s=DEADLINE_S) as made:
        print(f"{workers + PS} processes ready after {time.perf_counter() - start:.1f} s")
        yield made, "processes"


def measure(cluster: Cluster, build: Callable[[int], nf.Node], workers: int, seconds: float) -> dict[str, float]:
    """Steps for about `seconds`: their times, and CPU a step."""
    graph = nf.Graph()
    with graph.as_default():
        step = build(workers)
    with nf.Session(cluster, graph, deadline_s=DEADLINE_S) as session:
        start = time.perf_counter()
        session.run(step)
        first = time.perf_counter() - start
        session.run(step)
        times: list[float] = []
        before = cpu_s(cluster)
        while len(times) < 3 or (sum(times) < seconds and len(times) < 200):
            start = time.perf_counter()
            session.run(step)
            times.append(time.perf_counter() - start)
        used = (cpu_s(cluster) - before) / len(times)
    times.sort()
    return {
        "step_s": statistics.median(times),
        "low_s": times[len(times) // 10],
        "high_s": times[-1 - len(times) // 10],
        "first_s": first,
        "cpu_s": used,
        "steps": len(times),
    }


def per_worker(rows: Sequence[dict[str, Any]], case: str, key: str) -> float:
    """How much each further worker adds, by least squares."""
    xs = [r["workers"] for r in rows if r["case"] == case]
    ys = [r[key] for r in rows if r["case"] == case]
    if len(xs) < 2:
        return 0.0
    return statistics.covariance(xs, ys) / statistics.variance(xs)


def main() -> int:
    parser = common.arguments(__doc__)
    parser.add_argument("--workers", default=",".join(map(str, WORKERS)), help="how many, with commas between")
    parser.add_argument("--memory", type=float, default=10e9, help="bytes that all processes may take")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each figure")
    options = parser.parse_args()
    counts = [1, 2] if options.quick else sorted(int(n) for n in options.workers.split(","))
    report = common.Report(
        "What does a step cost with up to 100 workers? (devices and links emulated)", ["grpcio", "pyzmq"]
    )
    report.begin()
    rows: list[dict[str, Any]] = []
    with started(max(counts), options.memory) as (cluster, how):
        for case, build in CASES.items():
            for workers in counts:
                found = measure(cluster, build, workers, 0.2 if options.quick else options.seconds)
                rows.append({"case": case, "workers": workers, "ps": PS, "tasks": how, "link": LINK, **found})
                spread = f"({found['low_s'] * 1e3:.4g} to {found['high_s'] * 1e3:.4g})"
                published = dict(zip((1, 100), PAPER.get(case, ()), strict=False)).get(workers)
                beside = "" if published is None else f"  OSDI'16: {published:g} ms on machines of their own"
                print(
                    f"{case:<20} {workers:>4} workers {found['step_s'] * 1e3:>9.4g} ms {spread:<22} "
                    f"CPU {found['cpu_s'] * 1e3:>7.4g} ms a step{beside}",
                    flush=True,
                )
        processes = [] if isinstance(cluster, InProcessCluster) else used_bytes(cluster)
    added = {case: {k: per_worker(rows, case, k) for k in ("step_s", "cpu_s")} for case in CASES}
    for case, values in added.items():
        print(
            f"{case:<20} a further worker adds {values['step_s'] * 1e3:.3g} ms, {values['cpu_s'] * 1e3:.3g} ms of CPU"
        )
    if processes:
        largest = max(processes) / MB
        print(
            f"afterwards a process takes {statistics.mean(processes) / MB:.0f} MB of its own, the largest {largest:.0f}"
        )
    report.rows = [*rows, {"per_worker": added, "process_bytes": statistics.mean(processes) if processes else 0}]
    if not options.quick:
        report.write("scale")
    return 0


if __name__ == "__main__":
    sys.exit(main())
