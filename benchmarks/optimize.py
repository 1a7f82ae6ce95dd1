"""What do the optimizer's passes cost, and what do they gain?

Cost: preparing a graph of 30,000 ops (elementwise ops, constants, permutations; one in ten is the same as another
one), each pass alone and all of them, in microseconds of processor time per op: others use the machine too.

Gain: steps with all exact passes on, beside the same steps with none, in turn, in processor time on one thread
(BENCH_THREADS=1); how many instructions the plans have, and the bytes of their buffers.
What was expected, written down before measuring:

- A softmax regression step loses three of its twenty ops, which only fill a number: 2 to 5 % faster.
- An attention step: as fast as before, with a quarter less memory.
- Five 3 x 3 convolutions with the channels first, forward, with `layout` too: 1.1 to 1.3 times as fast.
- Passes: at most 5 µs an op each, and together less than the rest of preparing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import common  # first: it names the threads
import models
import numpy as np

import nbflow as nf
from nbflow.backends.host import evaluate
from nbflow.optimize import EXACT

OPS = 30_000


def large() -> tuple[nf.Graph, nf.Tensor]:
    graph = nf.Graph()
    with graph.as_default():
        x = nf.placeholder("float32", (8, 8), name="x")
        h = x
        for n in range(OPS // 10):
            scale = nf.constant(1.0 if n % 7 == 0 else float(n % 5))
            h = nf.tanh(h * scale) + nf.tanh(h * scale)
            h = nf.matrix_transpose(nf.negative(nf.matrix_transpose(h)))
            h = nf.identity(h)
    return graph, h


def cost(report: common.Report, times: int) -> None:
    graph, y = large()
    feed = {graph.nodes["x"].outputs[0]: nf.TensorSpec((8, 8), np.dtype(np.float32))}
    count = len(graph.nodes)
    pruned = nf.optimize.prune(graph, [y], feed)

    def prepare(passes: tuple[str, ...]) -> float:
        begun = time.process_time()
        with nf.Session(None, graph, passes=passes) as session:
            session.prepare([y], feed)
            return time.process_time() - begun

    def passes_only(passes: tuple[str, ...]) -> float:
        begun = time.process_time()
        nf.optimize.optimize(pruned.graph, [pruned.tensors[(y.node.name, 0)]], passes, evaluate)
        return time.process_time() - begun

    copying = min(passes_only(()) for _ in range(times))
    report.row(f"{count:,} ops", "the copy they work on", common.Spread.of([copying * 1e6 / count]), "µs per op")
    for name in (n for n in EXACT if n != "schedule"):
        found = [(passes_only((name,)) - copying) * 1e6 / count for _ in range(times)]
        report.row(f"{count:,} ops", name, common.Spread.of(found), "µs per op")
    for label, passes in (
        ("preparing, no pass", ()),
        ("preparing, schedule", ("schedule",)),
        ("preparing, all", EXACT),
    ):
        found = [prepare(passes) * 1e6 / count for _ in range(times)]
        report.row(f"{count:,} ops", label, common.Spread.of(found), "µs per op")


# --- gain ------------------------------------------------------------------------------------------------------------

Case = tuple[nf.Graph, list[object], dict[nf.Tensor, np.ndarray]]


def softmax() -> Case:
    with nf.Graph().as_default() as graph:
        x, y = nf.placeholder("float32", (None, 784)), nf.placeholder("int64", (None,))
        step = nf.optim.SGD(0.01).minimize(models.nbflow_loss(models.SOFTMAX.weights(), x, y))
    ((bx, by), *_) = models.SOFTMAX.batches(1)
    return graph, [step], {x: bx, y: by}


def attention() -> Case:
    rng = np.random.default_rng(0)
    with nf.Graph().as_default() as graph:
        x, y = nf.placeholder("float32", (None, 64, 64)), nf.placeholder("int64", (None,))
        h = x
        for n in range(2):
            h = nf.layers.layer_norm(h + nf.layers.multi_head_attention(h, heads=4, name=f"att{n}"), name=f"na{n}")
            wide = nf.layers.dense(h, 128, activation=nf.nn.gelu, name=f"up{n}")
            h = nf.layers.layer_norm(h + nf.layers.dense(wide, 64, name=f"down{n}"), name=f"nb{n}")
        logits = nf.layers.dense(nf.mean(h, axis=1), 10, name="out")
        step = nf.optim.Adam(1e-3).minimize(nf.mean(nf.nn.softmax_cross_entropy(logits, y)))
    return graph, [step], {x: rng.normal(size=(16, 64, 64)).astype(np.float32), y: rng.integers(0, 10, 16)}


def convolutions() -> Case:
    rng = np.random.default_rng(0)
    with nf.Graph().as_default() as graph:
        x = h = nf.placeholder("float32", (None, 3, 64, 64))
        for n, channels in enumerate((32, 32, 64, 64, 64)):
            h = nf.layers.conv2d(h, channels, 3, activation=nf.nn.relu, data_format="NCHW", name=f"c{n}")
            h = nf.nn.max_pool2d(h, 2, data_format="NCHW") if n in (1, 3) else h
        y = nf.mean(h, axis=(2, 3))
    return graph, [y], {x: rng.normal(size=(8, 3, 64, 64)).astype(np.float32)}


CASES: dict[str, Callable[[], Case]] = {
    "softmax regression, a step": softmax,
    "2 transformer blocks, a step": attention,
    "5 NCHW convolutions, forward": convolutions,
}


def gain(report: common.Report, rounds: int) -> None:
    for name, make in CASES.items():
        graph, fetches, feeds = make()
        sessions = {
            "all exact passes": nf.Session(None, graph, passes="all"),
            "these and layout": nf.Session(None, graph, passes="all,+layout"),
            "none": nf.Session(None, graph, passes="none"),
        }
        seconds = {side: list[float]() for side in sessions}
        for _ in range(rounds):
            for side, session in sessions.items():
                seconds[side].append(window(session, fetches, feeds))
        report.add(common.Measured(name, seconds), "all exact passes")
        for side, session in sessions.items():
            assert session.last is not None
            plans = [p for bundle in session.last.bundles.values() for p in bundle.plans]
            held = sum(b.nbytes or 0 for p in plans for b in p.buffers)
            count = sum(len(p.instructions) for p in plans)
            report.row(name, f"{side}: buffers", common.Spread.of([held / 1e6]), "MB")
            report.row(name, f"{side}: instructions", common.Spread.of([float(count)]), "")
            session.close()


def window(session: nf.Session, fetches: list[object], feeds: dict[nf.Tensor, np.ndarray]) -> float:
    """Seconds of processor time a step: twice as many steps until they take a window."""
    steps, taken = 1, 0.0
    while taken < common.WINDOW_S:
        begun = time.process_time()
        for _ in range(steps):
            session.run(fetches, feeds)
        taken, per = time.process_time() - begun, steps
        steps *= 2
    return taken / per


def main() -> int:
    options = common.arguments(__doc__).parse_args()
    report = common.Report("What do the optimizer's passes cost, and what do they gain?", ["numpy"])
    report.begin()
    gain(report, common.rounds(options))
    cost(report, 1 if options.quick else 3)
    if not options.quick:
        report.write("optimize")
    return 0


if __name__ == "__main__":
    sys.exit(main())
