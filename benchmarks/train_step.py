"""How many training steps a second, in one process, beside numpy written by hand and torch?

Every side starts from the same weights, sees the same batches, and must show the same losses over 20 steps.
nbflow twice: `nf.run(step, feeds)` called from Python for each step, and `nf.train.run`, whose batches are ops.
torch eager with its own SGD; `--compile` adds torch.compile (which needs a C++ compiler).
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable
from typing import Any

import common  # first: it names the threads
import models
import numpy as np

import nbflow as nf

try:
    import torch
    from torch.nn import functional
except ImportError:  # optional: pip install "nbflow[bench]"
    torch = None  # type: ignore[assignment]  # checked before use

LOSSES = 20
# One step on the next batch; returns its loss, as a number or a scalar that has not been looked at.
Step = Callable[[], Any]


def by_nbflow(model: models.Model) -> tuple[Step, Step]:
    """A step that also fetches the loss, and one that only trains."""
    graph = nf.Graph()
    with graph.as_default():
        x, y = nf.placeholder("float32", (None, model.units[0])), nf.placeholder("int64", (None,))
        loss = models.nbflow_loss(model.weights(), x, y)
        step = nf.optim.SGD(float(models.RATE)).minimize(loss)
    session = nf.Session(None, graph)
    batches = itertools.cycle([{x: bx, y: by} for bx, by in model.batches()])
    return lambda: session.run([step, loss], next(batches))[1], lambda: session.run(step, next(batches))


def by_nbflow_loop(model: models.Model) -> tuple[Callable[[], list[float]], common.Steps]:
    """The first losses, and the loop; the batches come from a dataset in the same order."""
    batches = model.batches()
    arrays = {"x": np.concatenate([x for x, _ in batches]), "y": np.concatenate([y for _, y in batches])}
    graph = nf.Graph()

    def steps(k: int, **options: Any) -> Any:
        with graph.as_default():
            return nf.train.run(step, steps=k, show=False, **options)

    with graph.as_default():
        batch = nf.data.from_arrays(arrays).repeat().batch(model.batch).next()
        loss = models.nbflow_loss(model.weights(), batch["x"], batch["y"])
        step = nf.optim.SGD(float(models.RATE)).minimize(loss)
    return lambda: list(steps(LOSSES, metrics={"loss": loss}, every=1).history["loss"]), steps


def by_hand(model: models.Model) -> Step:
    written = models.ByHand(model)
    batches = itertools.cycle(model.batches())
    return lambda: written.step(*next(batches))


def by_torch(model: models.Model, *, compiled: bool) -> Step:
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

    return step


def repeated(step: Step) -> common.Steps:
    def steps(k: int) -> None:
        for _ in range(k):
            step()

    return steps


def measure(model: models.Model, report: common.Report, options: argparse.Namespace) -> None:
    start_s = time.perf_counter()
    with_loss, plain = by_nbflow(model)
    losses = {"nbflow": [float(with_loss())]}
    first_s = time.perf_counter() - start_s
    losses["nbflow"] += [float(with_loss()) for _ in range(LOSSES - 1)]
    first_losses, loop = by_nbflow_loop(model)
    losses["nbflow loop"] = first_losses()
    sides = {"nbflow": repeated(plain), "nbflow loop": loop}
    others = {"numpy by hand": by_hand(model)}
    if torch is not None:
        others["torch eager"] = by_torch(model, compiled=False)
        if options.compile:
            others["torch.compile"] = by_torch(model, compiled=True)
    for name, step in others.items():
        losses[name] = [float(step()) for _ in range(LOSSES)]
        sides[name] = repeated(step)
    common.compare_losses(model.name, losses)
    report.add(common.measure(model.name, sides, rounds=common.rounds(options)), "nbflow", unit="/s")
    report.row(model.name, "nbflow: build, first step", common.Spread(first_s, first_s, first_s), "s")


def main() -> int:
    parser = common.arguments(__doc__)
    parser.add_argument("--compile", action="store_true", help="torch.compile too")
    options = parser.parse_args()
    if torch is not None:
        torch.set_num_threads(common.THREADS)
    report = common.Report("How many training steps a second, in one process?", ["numpy", "torch"])
    report.begin()
    for model in (models.SOFTMAX, models.MLP):
        measure(model, report, options)
    if not options.quick:
        report.write("train_step")
    return 0


if __name__ == "__main__":
    sys.exit(main())
