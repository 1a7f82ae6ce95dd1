"""What does a loop cost over the ops of its body?

Loops of 10,000 cheap iterations as one op, beside the same arithmetic in a Python loop over numpy and, where it can be
written so, beside the unrolled graph. The goal: an iteration costs at most 5 µs over its body.
"""

from __future__ import annotations

import sys

import common  # first: it names the threads
import numpy as np

import nbflow as nf

ITERATIONS = 10_000
# The unrolled graph is shorter: what is compared is the time an iteration.
UNROLLED = 1_000


def counting() -> dict[str, common.Steps]:
    graph = nf.Graph()
    with graph.as_default():
        (end,) = nf.while_loop(lambda i: i < ITERATIONS, lambda i: i + 1, [0])
    session = nf.Session(None, graph)

    def by_numpy() -> None:
        i, one, limit = np.int64(0), np.int64(1), np.int64(ITERATIONS)
        while np.less(i, limit):
            i = np.add(i, one)

    return {
        "nbflow while_loop": lambda k: [session.run(end) for _ in range(k)],
        "numpy in a Python loop": lambda k: [by_numpy() for _ in range(k)],
    }


def recurrent() -> tuple[dict[str, common.Steps], dict[str, float]]:
    """tanh(h · x) + x on 4 x 4 matrices: by scan, unrolled, and by numpy."""
    x = np.full((4, 4), 0.5, np.float32)
    graph = nf.Graph()
    with graph.as_default():
        fed = nf.placeholder("float32", (4, 4), name="x")
        last, _ = nf.scan(lambda h, _: (nf.tanh(h * fed) + fed, None), fed, length=ITERATIONS)
        h = fed
        for _ in range(UNROLLED):
            h = nf.tanh(h * fed) + fed
    session = nf.Session(None, graph)
    feeds = {fed: x}

    def by_numpy() -> np.ndarray:
        value = x
        for _ in range(ITERATIONS):
            value = np.add(np.tanh(np.multiply(value, x)), x)
        return value

    sides: dict[str, common.Steps] = {
        "nbflow scan": lambda k: [session.run(last, feeds) for _ in range(k)],
        "numpy in a Python loop": lambda k: [by_numpy() for _ in range(k)],
        # As many iterations in all.
        "nbflow unrolled": lambda k: [session.run(h, feeds) for _ in range(k * (ITERATIONS // UNROLLED))],
    }
    values = {"nbflow scan": float(session.run(last, feeds)[0, 0]), "numpy": float(by_numpy()[0, 0])}
    return sides, values


def main() -> int:
    options = common.arguments(__doc__).parse_args()
    report = common.Report("What does a loop cost over the ops of its body?", ["numpy"])
    report.begin()
    measured = common.measure("i + 1 while i < 10,000, per iteration", counting(), rounds=common.rounds(options))
    report.add(measured, "nbflow while_loop", per=ITERATIONS)
    sides, values = recurrent()
    common.compare_losses("recurrence", {name: [value] for name, value in values.items()})
    measured = common.measure("tanh(h · x) + x, per iteration", sides, rounds=common.rounds(options))
    report.add(measured, "nbflow scan", per=ITERATIONS)
    if not options.quick:
        report.write("control_flow")
    return 0


if __name__ == "__main__":
    sys.exit(main())
