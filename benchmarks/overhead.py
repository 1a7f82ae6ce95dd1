"""What does nbflow add to an op, and to a run?

A chain of 10,000 additions of 1-element arrays costs nothing but overhead: per op, beside the same additions in a
Python loop over numpy, and torch eager. Then whole runs of tiny graphs, beside one call of the library.
"""

from __future__ import annotations

import sys
import time

import common  # first: it names the threads
import numpy as np

import nbflow as nf

try:
    import torch
except ImportError:  # optional: pip install "nbflow[bench]"
    torch = None  # type: ignore[assignment]  # checked before use

CHAIN = 10_000


def chain_sides() -> tuple[dict[str, common.Steps], dict[str, float], float]:
    """The sides, what each computes, and how long nbflow took to build, prepare and first run the chain."""
    start, step = np.ones(1, np.float32), np.full(1, 1e-3, np.float32)
    begun_s = time.perf_counter()
    graph = nf.Graph()
    with graph.as_default():
        x, b = nf.placeholder("float32", (1,), name="x"), nf.placeholder("float32", (1,), name="b")
        y = x
        for _ in range(CHAIN):
            y = y + b
    session = nf.Session(None, graph)
    feeds = {x: start, b: step}
    first = session.run(y, feeds)
    prepared_s = time.perf_counter() - begun_s

    def by_numpy() -> np.ndarray:
        value = start
        for _ in range(CHAIN):
            value = value + step
        return value

    sides: dict[str, common.Steps] = {
        "nbflow": lambda k: [session.run(y, feeds) for _ in range(k)],
        "numpy loop": lambda k: [by_numpy() for _ in range(k)],
    }
    values = {"nbflow": float(first[0]), "numpy loop": float(by_numpy()[0])}
    if torch is not None:
        torch_start, torch_step = torch.from_numpy(start), torch.from_numpy(step)

        def by_torch() -> torch.Tensor:
            with torch.inference_mode():
                value = torch_start
                for _ in range(CHAIN):
                    value = value + torch_step
                return value

        sides["torch eager"] = lambda k: [by_torch() for _ in range(k)]
        values["torch eager"] = float(by_torch()[0])
    return sides, values, prepared_s


def tiny_sides() -> dict[str, common.Steps]:
    graph = nf.Graph()
    with graph.as_default():
        a = nf.placeholder("float32", (), name="a")
        c = nf.constant(1.0)
        total = a + c
        nothing = nf.group()
    session = nf.Session(None, graph)
    one = np.float32(1)

    def repeat(call: object) -> common.Steps:
        def steps(k: int) -> None:
            for _ in range(k):
                call()  # type: ignore[operator]  # a function, see below

        return steps

    sides = {
        "nbflow: run(a + c, {a: 1})": repeat(lambda: session.run(total, {a: one})),
        "nbflow: run(c)": repeat(lambda: session.run(c)),
        "nbflow: run(nothing)": repeat(lambda: session.run(nothing)),
        "numpy a + c": repeat(lambda: one + one),
    }
    if torch is not None:
        torch_one = torch.ones(())
        sides["torch eager a + c"] = repeat(lambda: torch_one + torch_one)
    return sides


def main() -> int:
    options = common.arguments(__doc__).parse_args()
    if torch is not None:
        torch.set_num_threads(common.THREADS)
    report = common.Report("What does nbflow add to an op, and to a run?", ["numpy", "torch"])
    report.begin()
    sides, values, prepared_s = chain_sides()
    common.compare_losses("chain", {name: [value] for name, value in values.items()})
    measured = common.measure(f"chain of {CHAIN:,} adds, per op", sides, rounds=common.rounds(options))
    report.add(measured, "nbflow", per=CHAIN)
    once = common.Spread(prepared_s, prepared_s, prepared_s)
    report.row(f"chain of {CHAIN:,} adds, once", "nbflow: build, first run", once, "s")
    tiny = tiny_sides()
    measured = common.measure("a tiny run", tiny, rounds=common.rounds(options))
    report.add(measured, next(iter(tiny)))
    if not options.quick:
        report.write("overhead")
    return 0


if __name__ == "__main__":
    sys.exit(main())
