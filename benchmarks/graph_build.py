"""How long does it take to build a graph?

Microseconds an op: a chain of 1,000 elementwise ops, dense layers with their gradients and an optimizer, and a chain of
100,000 ops, once, with the memory it takes and the first run of it. The goal: at most 30 µs an op. TensorFlow's graph
mode is a peer where it is installed (`pip install tensorflow`).
"""

from __future__ import annotations

import importlib.util
import sys
import time

import common  # first: it names the threads
import numpy as np
import psutil

import nbflow as nf

CHAIN = 1_000
LONG = 100_000
LAYERS = 20


def chain(length: int) -> nf.Graph:
    graph = nf.Graph()
    with graph.as_default():
        x = nf.placeholder("float32", (8,), name="x")
        for _ in range(length // 2):
            x = nf.tanh(x + 1.0)
    return graph


def layers() -> nf.Graph:
    graph = nf.Graph()
    with graph.as_default():
        h = nf.placeholder("float32", (None, 64), name="x")
        for n in range(LAYERS):
            h = nf.layers.dense(h, 64, activation=nf.nn.relu, name=f"layer{n}")
        nf.optim.Adam(1e-3).minimize(nf.mean(nf.square(h)))
    return graph


def chain_tf(length: int) -> None:
    import tensorflow as tf  # a peer that need not be there

    with tf.Graph().as_default():
        x = tf.compat.v1.placeholder("float32", (8,))
        for _ in range(length // 2):
            x = tf.tanh(x + 1.0)


def long_chain(report: common.Report) -> None:
    """Once: what it takes to build and to run 100,000 ops."""
    process = psutil.Process()
    before = process.memory_info().rss
    start_s = time.perf_counter()
    graph = chain(LONG)
    built_s = time.perf_counter() - start_s
    grown = process.memory_info().rss - before
    count = len(graph.nodes)
    last = list(graph.nodes.values())[-1].outputs[0]
    session = nf.Session(None, graph)
    feeds = {graph.nodes["x"].outputs[0]: np.zeros(8, np.float32)}
    start_s = time.perf_counter()
    session.run(last, feeds)
    first_s = time.perf_counter() - start_s
    case = f"a chain of {count:,} ops, once"
    for side, value, unit in (
        ("nbflow, an op", built_s / count * 1e6, "µs"),
        ("nbflow, its memory an op", grown / count / 1e3, "KB"),
        ("nbflow, its first run, an op", first_s / count * 1e6, "µs"),
    ):
        report.row(case, side, common.Spread.of([value]), unit)


def main() -> int:
    options = common.arguments(__doc__).parse_args()
    report = common.Report("How long does it take to build a graph?", ["numpy", "tensorflow"])
    report.begin()
    ops = len(chain(CHAIN).nodes)
    sides: dict[str, common.Steps] = {"nbflow": lambda k: [chain(CHAIN) for _ in range(k)]}
    if importlib.util.find_spec("tensorflow") is not None:
        sides["tensorflow graph"] = lambda k: [chain_tf(CHAIN) for _ in range(k)]
    measured = common.measure(f"a chain of {ops:,} ops, an op", sides, rounds=common.rounds(options))
    report.add(measured, "nbflow", per=ops)
    ops = len(layers().nodes)
    case = f"{LAYERS} layers and Adam, {ops:,} ops, an op"
    measured = common.measure(case, {"nbflow": lambda k: [layers() for _ in range(k)]}, rounds=common.rounds(options))
    report.add(measured, "nbflow", per=ops)
    if not options.quick:
        long_chain(report)
        report.write("graph_build")
    return 0


if __name__ == "__main__":
    sys.exit(main())
