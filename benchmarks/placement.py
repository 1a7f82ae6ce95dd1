"""How long placing and cutting a large graph takes, and what the placement is worth: the simulated step beside that of
everything free on the first device by name, which is what TensorFlow ships.

    python benchmarks/placement.py

Steps are simulated by the cost model of `nbflow.cost`: they say what the placer thinks, on any machine the same. Then
two worker processes of this machine run the towers, smaller, as they are placed, all on the first of them, and with
every group of ops on one of the two by lot: the same losses, in turn. Each worker computes with its part of the cores.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import common  # first: it names the threads
import numpy as np
from common import Report, Spread
from models import MLP, nbflow_loss

import nbflow as nf
from nbflow.cost import CostModel
from nbflow.device import parse_device
from nbflow.graph import Graph, Node, Tensor
from nbflow.partition import check_partition, partition
from nbflow.placement import Placed, place, simulated
from nbflow.placement_groups import constrain, groups_of
from nbflow.transport import DeviceInfo

OPS = 10_000
WORKERS = 16
REPEATS = 5


def devices(count: int) -> list[DeviceInfo]:
    return [DeviceInfo(parse_device(f"/job:worker/task:{t}/cpu:0")) for t in range(count)]


def many_ops(width: int) -> Graph:
    """`width` chains of products, activations and sums across, of 256 x 256, with a variable now and then."""
    with Graph().as_default() as graph:
        x = [nf.placeholder("float32", (256, 256), name=f"x{i}") for i in range(width)]
        turn = 0
        while len(graph.nodes) < OPS:
            i, turn = turn % width, turn + 1
            if turn % 50 == 0:
                x[i] = x[i] @ nf.Variable(nf.zeros((256, 256)), name=f"w{turn}")
            elif turn % 7 == 0:
                x[i] = x[i] + x[(i + 1) % width]
            else:
                x[i] = nf.tanh(x[i]) if turn % 3 else x[i] @ x[i]
    return graph


def mlp() -> Graph:
    """A training step of the MNIST model."""
    with Graph().as_default() as graph:
        x = nf.placeholder("float32", (MLP.batch, MLP.units[0]), name="x")
        y = nf.placeholder("int64", (MLP.batch,), name="y")
        nf.optim.SGD(0.01).minimize(nbflow_loss(MLP.weights(), x, y))
    return graph


def transformer(towers: int = 4, width: int = 512, length: int = 256, batch: int = 8) -> tuple[Graph, Node, Tensor]:
    """A training step of `towers` attention blocks beside each other whose outputs are added: width that a placer can
    use, as in an ensemble or a mixture of experts that are all asked."""
    with Graph().as_default() as graph:
        x = nf.placeholder("float32", (batch, length, width), name="x")
        outputs = []
        for n in range(towers):
            with nf.name_scope(f"tower{n}"):
                h = x + nf.layers.multi_head_attention(x, 8, name="attention")
                h = h + nf.layers.dense(nf.layers.dense(h, 4 * width, nf.nn.relu, name="up"), width, name="down")
                outputs.append(nf.mean(h, axis=1))
        loss = nf.mean(sum(outputs[1:], outputs[0]) ** 2)
        return graph, nf.optim.SGD(0.01).minimize(loss), loss


def first_by_name(graph: Graph, infos: list[DeviceInfo]) -> dict[str, Placed]:
    """Every group on the first of its devices, by name."""
    ordered = sorted((i.spec for i in infos), key=str)
    placed: dict[str, Placed] = {}
    for name, group in groups_of(graph).items():
        if not group.candidates:
            constrain(group, ordered, {}, lambda op, kind: True)
        placed[name] = Placed(group.candidates[0], "the first by name")
    return placed


def seconds(work: Callable[[], object]) -> Spread:
    found = []
    for _ in range(REPEATS):
        start_s = time.perf_counter()
        work()
        found.append(time.perf_counter() - start_s)
    return Spread.of(found)


def speed(report: Report, width: int) -> None:
    graph, infos = many_ops(width), devices(WORKERS)
    case = f"{OPS:,} ops in {width} chains, {WORKERS} workers"
    report.row(case, "place", seconds(lambda: place(graph, infos)), "s")
    by_name = groups_of(graph)
    number = {id(g): n for n, g in enumerate({id(g): g for g in by_name.values()}.values())}
    dealt = {name: Placed(infos[number[id(g)] % WORKERS].spec, "dealt") for name, g in by_name.items()}
    report.row(case, "partition, groups dealt out", seconds(lambda: partition(graph, dealt)), "s")
    parts = partition(graph, dealt)
    report.row(case, "check_partition", seconds(lambda: check_partition(parts, graph, dealt)), "s")


def worth(report: Report, case: str, graph: Graph, count: int) -> None:
    infos = devices(count)
    cost = CostModel.of(infos)
    sides = {"placer": place(graph, infos), "first device by name": first_by_name(graph, infos)}
    for side, placed in sides.items():
        step_ms = max(simulated(graph, placed, cost).values()) * 1e3
        used = len({p.device for p in placed.values()})
        report.row(f"{case}, {count} workers", f"{side} ({used} used)", Spread.of([step_ms]), "ms")


PLACER, FIRST, LOT = "placer", "first device by name", "by lot"


def on_workers(report: Report, options: argparse.Namespace) -> None:
    """Steps of real worker processes."""
    for name in common.THREAD_VARIABLES:  # workers that share the machine get their part of its threads
        os.environ.pop(name, None)
    with ExitStack() as stack:
        cluster = stack.enter_context(nf.cluster.local(workers=2))
        lot, specs = random.Random(0), [i.spec for i in cluster.devices()]
        x = np.random.default_rng(0).normal(size=(8, 128, 256)).astype(np.float32)
        losses, steps = {}, {}
        for side in (PLACER, FIRST, LOT):
            graph, step, loss = transformer(towers=4, width=256, length=128, batch=8)
            graph.seed = 1
            for group in {id(g): g for g in groups_of(graph).values()}.values():
                chosen = None if side == PLACER else specs[0] if side == FIRST else lot.choice(specs)
                for node in group.nodes:
                    node.device = chosen or node.device
            session = stack.enter_context(nf.Session(cluster, graph, profile="off"))
            feeds = {graph.node("x").outputs[0]: x}
            losses[side] = [float(session.run([step, loss], feeds)[1]) for _ in range(5)]
            used = {p.device.task_name for p in session.last.placement.values()} if session.last else set()
            print(f"{side}: {len(used)} workers used")
            steps[side] = _run(session, step, feeds)
        common.compare_losses("towers", losses)
        rounds = common.rounds(options)
        measured = common.measure("4 towers on 2 real workers", steps, rounds=rounds, window_s=1.0)
        report.add(measured, PLACER, unit="ms")


def _run(session: nf.Session, step: Node, feeds: dict[Tensor, Any]) -> Callable[[int], None]:
    def run(count: int) -> None:
        for _ in range(count):
            session.run(step, feeds)

    return run


def main() -> None:
    options = common.arguments(__doc__).parse_args()
    report = Report("Placing 10,000 ops, and what the placement is worth, simulated and on two workers", ["numpy"])
    report.begin()
    on_workers(report, options)
    if options.quick:
        return
    for width in (2, 16):
        speed(report, width)
    worth(report, "MNIST model", mlp(), 4)
    worth(report, "transformer, 4 towers", transformer()[0], 4)
    worth(report, "16 chains", many_ops(16), 16)
    print(f"\n{report.write('placement')}")


if __name__ == "__main__":
    main()
