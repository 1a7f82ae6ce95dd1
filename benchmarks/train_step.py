"""How many training steps a second, in one process, beside numpy written by hand and torch?

Every side starts from the same weights, sees the same batches, and must show the same losses over 20 steps.
nbflow twice: `nf.run(step, feeds)` called from Python for each step, and `nf.train.run`, whose batches are ops.
torch eager with its own SGD, also on one thread: its threads spin at each op, so on a shared machine two are often
slower than one. `--compile` adds torch.compile (which needs a C++ compiler). Each side is a process of its own
(`served.py`).
"""

from __future__ import annotations

import argparse
import functools
import itertools
import sys
import time
from collections.abc import Callable
from typing import Any

import common  # first: it names the threads
import models
import numpy as np
import served

import nbflow as nf

LOSSES = 20
MODELS = {"softmax": models.SOFTMAX, "mlp": models.MLP}
# One step on the next batch; returns its loss, as a number or a scalar that has not been looked at.
Step = Callable[[], Any]


def by_nbflow(model: models.Model) -> served.Answers:
    """`losses` fetches them, `train` only trains."""
    graph = nf.Graph()
    with graph.as_default():
        x, y = nf.placeholder("float32", (None, model.units[0])), nf.placeholder("int64", (None,))
        loss = models.nbflow_loss(model.weights(), x, y)
        step = nf.optim.SGD(float(models.RATE)).minimize(loss)
    session = nf.Session(None, graph)
    batches = itertools.cycle([{x: bx, y: by} for bx, by in model.batches()])

    with_loss = repeated(lambda: session.run([step, loss], next(batches))[1])
    return {"losses": with_loss, "train": repeated(lambda: session.run(step, next(batches)), keep=False)}


def by_nbflow_loop(model: models.Model) -> served.Answers:
    """The batches come from a dataset, in the same order."""
    batches = model.batches()
    arrays = {"x": np.concatenate([x for x, _ in batches]), "y": np.concatenate([y for _, y in batches])}
    batch = nf.data.from_arrays(arrays).repeat().batch(model.batch).next()
    loss = models.nbflow_loss(model.weights(), batch["x"], batch["y"])
    step = nf.optim.SGD(float(models.RATE)).minimize(loss)

    def losses(k: int) -> list[float]:
        return [float(v) for v in nf.train.run(step, k, {"loss": loss}, every=1, show=False).history["loss"]]

    def train(k: int) -> None:
        nf.train.run(step, steps=k, show=False)

    return {"losses": losses, "train": train}


def by_hand(model: models.Model) -> served.Answers:
    written = models.ByHand(model)
    batches = itertools.cycle(model.batches())
    step = lambda: written.step(*next(batches))  # noqa: E731  # as the others have it
    return {"losses": repeated(step), "train": repeated(step, keep=False)}


def by_torch(model: models.Model, *, threads: int = common.THREADS, compiled: bool = False) -> served.Answers:
    import torch  # optional: only its own sides need it
    from torch.nn import functional

    torch.set_num_threads(threads)
    layers = [(torch.tensor(w, requires_grad=True), torch.tensor(b, requires_grad=True)) for w, b in model.weights()]
    optimizer = torch.optim.SGD([p for layer in layers for p in layer], lr=float(models.RATE))
    batches = itertools.cycle([(torch.from_numpy(x), torch.from_numpy(y)) for x, y in model.batches()])

    def forward(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        h = x
        for n, (w, b) in enumerate(layers):
            h = torch.addmm(b, h, w)
            if n < len(layers) - 1:
                h = functional.relu(h)
        return functional.cross_entropy(h, y)

    loss_of = torch.compile(forward, dynamic=False) if compiled else forward

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(*next(batches))
        loss.backward()
        optimizer.step()
        return loss.detach()

    return {"losses": repeated(step), "train": repeated(step, keep=False)}


def repeated(step: Step, *, keep: bool = True) -> Callable[[int], list[float] | None]:
    """Runs a number of steps; returns their losses, or drops each at once."""

    def steps(k: int) -> list[float] | None:
        if keep:
            return [float(step()) for _ in range(k)]
        for _ in range(k):
            step()
        return None

    return steps


SIDES: dict[str, Callable[[models.Model], served.Answers]] = {
    "nbflow": by_nbflow,
    "nbflow loop": by_nbflow_loop,
    "numpy by hand": by_hand,
    "torch eager": by_torch,
    "torch eager, 1 thread": functools.partial(by_torch, threads=1),
    "torch.compile": functools.partial(by_torch, compiled=True),
}


def measure(key: str, report: common.Report, options: argparse.Namespace) -> None:
    names = [n for n in SIDES if not n.startswith("torch") or (served.has_torch() and (n[5] == " " or options.compile))]
    with served.opened(__file__, [f"{key}/{name}" for name in names]) as cases:
        of_side = {name: cases[f"{key}/{name}"] for name in names}
        start_s = time.perf_counter()
        losses = {"nbflow": of_side["nbflow"].ask("losses", 1)}
        first_s = time.perf_counter() - start_s
        losses["nbflow"] += of_side["nbflow"].ask("losses", LOSSES - 1)
        losses |= {name: case.ask("losses", LOSSES) for name, case in of_side.items() if name != "nbflow"}
        title = MODELS[key].name
        common.compare_losses(title, losses)
        sides = {name: case.steps("train") for name, case in of_side.items()}
        report.add(common.measure(title, sides, rounds=common.rounds(options)), "nbflow", unit="/s")
    report.row(title, "nbflow: prepare, first step", common.Spread(first_s, first_s, first_s), "s")


def main() -> int:
    parser = common.arguments(__doc__)
    parser.add_argument("--compile", action="store_true", help="torch.compile too")
    parser.add_argument("--serve", metavar="MODEL/SIDE", help="used by the benchmark itself")
    options = parser.parse_args()
    if options.serve:
        key, _, name = options.serve.partition("/")
        served.serve(SIDES[name](MODELS[key]))
        return 0
    report = common.Report("How many training steps a second, in one process?", ["numpy", "torch"])
    report.begin()
    for key in MODELS:
        measure(key, report, options)
    if not options.quick:
        report.write("train_step")
    return 0


if __name__ == "__main__":
    sys.exit(main())
