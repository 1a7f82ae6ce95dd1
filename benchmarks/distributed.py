"""How fast is the distributed runtime, beside TensorFlow's?

The same work by nbflow and by `tf.distribute.Server` (TensorFlow 2.21), in turn, all as processes on loopback of this
machine: steps that do nothing, a scalar there and back, tensors between tasks, synchronous training of an MLP by two
workers and a ps, and how long a cluster takes to be ready. TensorFlow needs an environment of its own:

    make bench-tf-env
    python benchmarks/distributed.py --tf-python .venv-tf/bin/python

Without it the rest runs, and its rows say how to get it. Losses must agree over 20 steps before training is timed.
Each side is a process of its own (`served.py`, `peers/tf_distributed.py`); clusters that wait cost nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path

import common  # first: it names the threads
import models
import numpy as np
import served
import transfer

import nbflow as nf
from nbflow_workers.launchers.local import LocalLauncher

LOSSES = 20
WIDE, SMALL, READY, ONE, TCP = "4 workers", "2 workers + ps", "ready", "one process", "2 workers, tcp"
# Workers, parameter servers and flags of each side of nbflow's.
CLUSTERS: dict[str, tuple[int, int, tuple[str, ...]]] = {
    WIDE: (4, 0, ()),
    SMALL: (2, 1, ()),
    TCP: (2, 0, ("--no-shm",)),
    ONE: (0, 0, ()),
}
TF_CASES = (WIDE, SMALL, READY)
TF_PEER = Path(__file__).parent / "peers" / "tf_distributed.py"
HOW = "not installed: make bench-tf-env, then --tf-python .venv-tf/bin/python"
OURS, TF, RAW = "nbflow", "TensorFlow", "gRPC bytes"
BYTES = 10**8
# 128 rows a worker.
MODEL = models.Model("MLP 784-512-512-10, batch 2 x 128", models.MLP.units, 256)


class Peer(served.Case):
    """A side of TensorFlow's, by a Python of its own."""

    def __init__(self, python: str, case: str, data: Path) -> None:
        self.name = f"{TF}, {case}"
        # As nbflow's workers: what others set for this process's BLAS is not for the servers.
        environment = {k: v for k, v in os.environ.items() if k not in (*common.THREAD_VARIABLES, "PYTHONPATH")}
        self.process = subprocess.Popen(
            [python, str(TF_PEER), case, str(data)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )


def write_data(path: Path) -> None:
    """The weights and batches that the peer starts from; `models` cannot be imported there."""
    arrays = {f"{kind}{n}": a for n, layer in enumerate(MODEL.weights()) for kind, a in zip("wb", layer, strict=True)}
    batches = MODEL.batches()
    np.savez(path, x=np.stack([x for x, _ in batches]), y=np.stack([y for _, y in batches]), rate=models.RATE, **arrays)


# --- nbflow's sides --------------------------------------------------------------------------------------------------


def answers_of(case: str, stack: ExitStack) -> served.Answers:
    workers, ps, flags = CLUSTERS[case]
    if workers:
        # Workers that share the machine get their part of its threads.
        for name in common.THREAD_VARIABLES:
            os.environ.pop(name, None)
        launcher = LocalLauncher(flags=flags)
        nf.set_cluster(stack.enter_context(nf.cluster.local(workers=workers, ps=ps, launcher=launcher)))
    if case == WIDE:
        return {f"null_{n}": null(n) for n in (1, 2, 4)}
    cluster = nf.current_session().cluster
    big = {"100_MB": transfer.by_nbflow(cluster, transfer.one_way(BYTES), 7.0)} if case in (SMALL, TCP) else {}
    if case == TCP:
        return big
    loss, step = training()

    def train(k: int) -> None:
        nf.train.run(step, steps=k, show=False)

    def losses(k: int) -> list[float]:
        return [float(v) for v in nf.train.run(step, k, {"loss": loss}, every=1, show=False).history["loss"]]

    made: dict[str, common.Steps] = {"train": train, "losses": losses, **big}
    if case == SMALL:
        made["there_and_back"] = transfer.by_nbflow(cluster, transfer.there_and_back, 7.0)
        made["pull"] = transfer.by_nbflow(cluster, pull, 7.0)
    return made


def null(workers: int) -> common.Steps:
    touched = []
    for task in range(workers):
        with nf.device(f"/job:worker/task:{task}"):
            touched.append(nf.Variable(7.0, name=f"null_{workers}_{task}") + 1.0)
    nothing = nf.group(*touched)

    def steps(k: int) -> None:
        for _ in range(k):
            nf.run(nothing)

    return steps


def pull() -> nf.Tensor:
    with nf.device("/job:ps/task:0"):
        tensor = nf.Variable(nf.full((250_000,), 7.0), name="pulled").read()
    with nf.device(transfer.W1):
        return tensor[0]


def training() -> tuple[nf.Tensor, nf.Node]:
    batches = MODEL.batches()
    arrays = {"x": np.concatenate([x for x, _ in batches]), "y": np.concatenate([y for _, y in batches])}
    batch = nf.data.from_arrays(arrays).repeat().batch(MODEL.batch).next()
    loss = models.nbflow_loss(MODEL.weights(), batch["x"], batch["y"])
    return loss, nf.optim.SGD(float(models.RATE)).minimize(loss, strategy=nf.train.DataParallel())


def clusters_ready(k: int) -> None:
    """Starts four workers and runs one step on all, `k` times."""
    for _ in range(k):
        graph = nf.Graph()
        with graph.as_default(), nf.cluster.local(workers=4) as cluster:
            touched = []
            for task in range(4):
                with nf.device(f"/job:worker/task:{task}"):
                    touched.append(nf.negative(nf.constant(1.0)))
            with closing(nf.Session(cluster, graph)) as session:
                session.run(nf.group(*touched))


# --- the table -------------------------------------------------------------------------------------------------------


class Table:
    """What is measured, row by row: nbflow, its peers in the same rounds, and the goals."""

    def __init__(self, report: common.Report, rounds: int, peers: Mapping[str, served.Case]) -> None:
        self.report, self.rounds, self.peers = report, rounds, peers

    def ask(
        self,
        case: str,
        sides: dict[str, common.Steps],
        peer: tuple[str, str],
        goals: Mapping[str, float],
        *,
        unit: str,
        per: float = 1.0,
        rounds: int | None = None,
        window_s: float = common.WINDOW_S,
        warm_up: int = 3,
    ) -> None:
        """`peer`: TensorFlow's case, and its kind of step. `goals`: a side -> how many times as fast as it to be;
        `OURS` -> the figure itself, in `unit`."""
        if peer[1] and peer[0] in self.peers:
            sides = {**sides, TF: self.peers[peer[0]].steps(peer[1])}
        measured = common.measure(case, sides, rounds=rounds or self.rounds, window_s=window_s, warm_up=warm_up)
        self.report.add(measured, OURS, unit=unit, per=per)
        ours = self.report.rows[-len(sides)]
        met = {}
        for side, wanted in goals.items():
            if side == OURS:
                met[f"{'at least' if unit in ('/s', 'GB/s') else 'at most'} {wanted:g} {unit}"] = (
                    ours["median"] >= wanted if unit in ("/s", "GB/s") else ours["median"] <= wanted
                )
            elif side in sides:
                met[f"{wanted:g} x {side}"] = measured.times_faster(OURS, side).median >= wanted
        ours["goals"] = met
        for goal, reached in met.items():
            print(f"    goal: {goal}: {'reached' if reached else 'MISSED'}", flush=True)
        if peer[1] and peer[0] not in self.peers:
            self.report.rows.append({"case": case, "side": TF, "missing": HOW})
            print(f"{case:<36} {TF:<26} {HOW}")


def fill(table: Table, cases: Mapping[str, served.Case], quick: bool) -> None:
    wide, small = cases[WIDE], cases[SMALL]
    for n in (1, 2, 4):
        sides = {OURS: wide.steps(f"null_{n}")}
        table.ask(f"null step, {n} of 4 workers", sides, (WIDE, f"null {n}"), {TF: 2.0}, unit="ms")
    back = {OURS: small.steps("there_and_back")}
    table.ask("a scalar there and back", back, (SMALL, "there and back"), {OURS: 1.0}, unit="ms")
    table.ask("1 MB, ps to worker", {OURS: small.steps("pull")}, (SMALL, "pull"), {OURS: 0.8}, unit="ms")
    copy = {OURS: small.steps("100_MB"), transfer.COPY: transfer.a_copy(BYTES)}
    table.ask("100 MB, one host", copy, (SMALL, "100 MB"), {OURS: 6.0, transfer.COPY: 0.7}, unit="GB/s", per=BYTES)
    with closing(transfer.GrpcPeer(BYTES)) as raw:
        sides = {OURS: cases[TCP].steps("100_MB"), RAW: raw.steps}
        table.ask("100 MB, ZeroMQ tcp", sides, (SMALL, ""), {OURS: 2.5, RAW: 4.0}, unit="GB/s", per=BYTES)
    losses = {OURS: small.ask("losses", LOSSES), ONE: cases[ONE].ask("losses", LOSSES)}
    if SMALL in table.peers:
        losses[TF] = table.peers[SMALL].ask("losses", LOSSES)
    common.compare_losses(MODEL.name, losses)
    train = {OURS: small.steps("train"), ONE: cases[ONE].steps("train")}
    goals = {TF: 2.0, ONE: 0.85}
    table.ask(f"{MODEL.name}, {SMALL}", train, (SMALL, "train"), goals, unit="/s", window_s=0.4)
    few = 2 if quick else 7
    ready: dict[str, common.Steps] = {OURS: clusters_ready}
    table.ask("4 workers ready", ready, (READY, "ready"), {OURS: 2.0}, unit="s", rounds=few, warm_up=0)


def main() -> int:
    parser = common.arguments(__doc__)
    parser.add_argument("--tf-python", metavar="PATH", help="a Python that has TensorFlow 2.21")
    options = served.options(parser, list(CLUSTERS), answers_of)
    if options is None:
        return 0
    report = common.Report("How fast is the distributed runtime, beside TensorFlow's?", ["numpy", "grpcio", "pyzmq"])
    report.begin()
    with ExitStack() as stack:
        data = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nbflow-bench-"))) / "data.npz"
        write_data(data)
        peers = {}
        for case in TF_CASES if options.tf_python else ():
            peers[case] = stack.enter_context(closing(Peer(options.tf_python, case, data)))
            print(f"{case}: {peers[case].answer()}", flush=True)
        cases = stack.enter_context(served.opened(__file__, list(CLUSTERS)))
        fill(Table(report, common.rounds(options, 15), peers), cases, options.quick)
    if not options.quick:
        report.write("distributed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
