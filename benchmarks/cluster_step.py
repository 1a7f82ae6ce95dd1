"""What does a step cost on a cluster, beside the same step in one process?

Worker processes on this machine, as `nf.cluster.local` starts them: they share the cores. First a step that computes
nothing but involves every task, started from Python one at a time: the latency of control. Then the training of a
small MLP under synchronous DataParallel by `nf.train.run`, whose losses must be the same everywhere, beside torch
alone and torch's DistributedDataParallel over gloo. On two cores no cluster beats one process that uses both; what is
measured is what distribution costs.

Each case is a process of its own (`served.py`), so that all clusters stand ready while they take turns.
"""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing

import common  # first: it names the threads
import models
import numpy as np
import served

import nbflow as nf

LOSSES = 20
# Workers and parameter servers; none: this process.
CLUSTERS = {"one process": (0, 0), "1 worker + ps": (1, 1), "2 workers + ps": (2, 1)}
# Processes, and threads in each.
TORCH = {
    "torch, one process": (1, common.THREADS),
    "torch, one process, 1 thread": (1, 1),
    "torch DDP, 2 processes": (2, 1),
}


def answers_of(case: str, stack: ExitStack) -> served.Answers:
    return serve_torch(*TORCH[case]) if case in TORCH else serve_nbflow(*CLUSTERS[case], stack)


# --- nbflow ----------------------------------------------------------------------------------------------------------


def serve_nbflow(workers: int, ps: int, stack: ExitStack) -> served.Answers:
    if workers:
        # Workers that share the machine get their part of its threads, unless the environment says otherwise.
        for name in common.THREAD_VARIABLES:
            os.environ.pop(name)
        nf.set_cluster(stack.enter_context(nf.cluster.local(workers=workers, ps=ps)))
    touched = []
    for info in nf.current_session().cluster.devices():
        with nf.device(str(info.spec)):
            touched.append(nf.negative(nf.constant(1.0)))
    nothing = nf.group(*touched)
    loss, step = digits()

    def null(k: int) -> None:
        for _ in range(k):
            nf.run(nothing)

    def train(k: int) -> None:
        nf.train.run(step, steps=k, show=False)

    def losses(k: int) -> list[float]:
        return [float(v) for v in nf.train.run(step, k, {"loss": loss}, every=1, show=False).history["loss"]]

    return {"null": null, "train": train, "losses": losses}


def digits() -> tuple[nf.Tensor, nf.Node]:
    model = models.DIGITS
    batches = model.batches()
    arrays = {"x": np.concatenate([x for x, _ in batches]), "y": np.concatenate([y for _, y in batches])}
    batch = nf.data.from_arrays(arrays).repeat().batch(model.batch).next()
    loss = models.nbflow_loss(model.weights(), batch["x"], batch["y"])
    return loss, nf.optim.SGD(float(models.RATE)).minimize(loss, strategy=nf.train.DataParallel())


# --- torch -----------------------------------------------------------------------------------------------------------


def serve_torch(size: int, threads: int) -> served.Answers:
    """`size` processes with a part of each batch each; rank 0, which is this one, tells the others how many steps."""
    import torch  # optional: only its own cases need it
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    rank = int(os.environ.get("RANK", "0"))
    torch.set_num_threads(threads)
    if size > 1:
        if rank == 0:
            start_other_ranks(size)
        distributed.init_process_group("gloo", rank=rank, world_size=size)
    hidden, logits = torch.nn.Linear(784, 128), torch.nn.Linear(128, 10)
    network = torch.nn.Sequential(hidden, torch.nn.ReLU(), logits)
    with torch.no_grad():
        for (w, b), layer in zip(models.DIGITS.weights(), (hidden, logits), strict=True):
            layer.weight.copy_(torch.from_numpy(w.T))
            layer.bias.copy_(torch.from_numpy(b))
    module = DistributedDataParallel(network) if size > 1 else network
    optimizer = torch.optim.SGD(module.parameters(), lr=float(models.RATE))
    rows = slice(rank * models.DIGITS.batch // size, (rank + 1) * models.DIGITS.batch // size)
    parts = [(torch.from_numpy(x[rows]), torch.from_numpy(y[rows])) for x, y in models.DIGITS.batches()]
    batches = itertools.cycle(parts)

    def train(k: int, *, keep: bool = False) -> list[float]:
        if size > 1:
            distributed.broadcast(torch.tensor([k, int(keep)]), 0)
        return run_steps(k, keep)

    def run_steps(k: int, keep: bool) -> list[float]:
        kept = []
        for _ in range(k):
            x, y = next(batches)
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(module(x), y)
            loss.backward()
            optimizer.step()
            if keep:
                mean = loss.detach().clone()
                if size > 1:
                    distributed.all_reduce(mean)
                kept.append(float(mean) / size)
        return kept

    if rank > 0:
        follow(run_steps)
    return {"train": train, "losses": lambda k: train(k, keep=True)}


def start_other_ranks(size: int) -> None:
    """Ranks 1 and up: they end when rank 0 does, since then their collective fails."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free.getsockname()[1]))
    for rank in range(1, size):
        command = [sys.executable, __file__, "--serve", f"torch DDP, {size} processes"]
        subprocess.Popen(command, env={**os.environ, "RANK": str(rank)}, stderr=subprocess.DEVNULL)


def follow(run_steps: Callable[[int, bool], object]) -> None:
    """What the other ranks do: as many steps as rank 0 says, until it is gone."""
    import torch
    from torch import distributed

    while True:
        told = torch.zeros(2, dtype=torch.int64)
        try:
            distributed.broadcast(told, 0)
        except RuntimeError:
            sys.exit(0)
        run_steps(int(told[0]), bool(told[1]))


def main() -> int:
    parser = common.arguments(__doc__)
    options = served.options(parser, [*CLUSTERS, *TORCH], answers_of)
    if options is None:
        return 0
    report = common.Report("What does a step cost on a cluster?", ["numpy", "grpcio", "pyzmq", "torch"])
    report.begin()
    names = [*CLUSTERS, *(TORCH if served.has_torch() else ())]
    one = next(iter(CLUSTERS))
    with served.opened(__file__, names) as cases:
        null = {name: cases[name].steps("null") for name in CLUSTERS}
        report.add(common.measure("null step", null, rounds=common.rounds(options)), one, unit="ms")
        losses = {name: case.ask("losses", LOSSES) for name, case in cases.items()}
        common.compare_losses(models.DIGITS.name, losses)
        train = {name: case.steps("train") for name, case in cases.items()}
        measured = common.measure(models.DIGITS.name, train, rounds=common.rounds(options), window_s=0.25)
        report.add(measured, one, unit="/s")
        ours, theirs = list(CLUSTERS)[-1], list(TORCH)[-1]
        if theirs in train:
            report.compare(measured, theirs, ours, unit="/s")
    if not options.quick:
        report.write("cluster_step")
    return 0


if __name__ == "__main__":
    sys.exit(main())
