"""A tour of nbflow: one small model goes through every stage, from a cell to a picture, and each stage is printed.

    python examples/00_tour.py [PICTURE.png]

The calls below are the ones that `nf.run` makes, one a stage; `docs/architecture.md` says what each module is for.
"""

from __future__ import annotations

import sys
import tempfile
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import nbflow as nf
from nbflow import owner
from nbflow.compile import check_plan, compile_part
from nbflow.events import Metric, NodeFinished
from nbflow.explain import PlacementTable, explain_plan, placement_table
from nbflow.inprocess import InProcessCluster
from nbflow.optimize import prune
from nbflow.parallel import expand
from nbflow.partition import Part, check_partition, moved, partition
from nbflow.placement import Placed, place
from nbflow.verify import check_graph
from nbflow_widgets import GraphView

ROWS, FEATURES = 64, 3
TRUE_WEIGHTS = np.array([[2.0], [-1.0], [0.5]], np.float32)


@dataclass(frozen=True)
class Model:
    """What the cell below binds to Python names."""

    w: nf.Variable
    loss: nf.Tensor
    step: nf.Node


def say(number: int, title: str, text: str) -> None:
    print(f"\n{number}. {title}\n" + textwrap.indent(textwrap.fill(" ".join(text.split()), 110), "   "))


def indented(text: str) -> None:
    print(textwrap.indent(text, "     "))


def main(picture: Path) -> None:
    graph = nf.Graph()
    with graph.as_default():
        model = cell(graph)
        shown(graph)
        pruned = only_what_is_needed(graph, model)
        replicated, placement = placed(pruned, model)
        parts = cut(replicated, placement)
        compiled(parts, replicated)
        trained(model)
        drawn(replicated, placement, picture)


# --- from Python to a graph ------------------------------------------------------------------------------------------


def cell(graph: nf.Graph) -> Model:
    say(
        1,
        "A cell makes ops",
        """The kernel opens a transaction for each cell that runs. The ops that the cell makes are its own: running it
        again replaces them under the same names, so nothing is ever called `loss_1`.""",
    )
    for run in range(2):
        transaction = owner.begin(graph, owner.Owner("cell-1", f"In[{run + 1}]"))
        model = build()
        change = transaction.commit()
        print(f"     In[{run + 1}] ran: {len(change.added)} ops added, {len(change.removed)} removed, ", end="")
        print(f"{len(change.unchanged)} unchanged, {len(change.kept_variables)} variable values kept")
    return model


def build() -> Model:
    """The cell: linear regression on one device. Nothing in it knows of workers."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(ROWS, FEATURES)).astype(np.float32)
    data = nf.data.from_arrays({"x": features, "y": features @ TRUE_WEIGHTS}).repeat().batch(16).next()
    w = nf.Variable(nf.zeros((FEATURES, 1)), name="w")
    error = nf.subtract(nf.matmul(data["x"], w, name="prediction"), data["y"], name="error")
    loss = nf.mean(nf.square(error), name="loss")
    step = nf.optim.SGD(0.1).minimize(loss, strategy=nf.train.DataParallel())
    nf.exp(loss, name="unused")
    return Model(w, loss, step)


def shown(graph: nf.Graph) -> None:
    say(
        2,
        "The graph, gradients included",
        """A node is one op with typed inputs, the cell and the line that made it. Gradients are nodes like any other:
        `minimize` added them by one sweep backwards from the loss, and gradients have gradients.""",
    )
    check_graph(graph)
    for node in graph.nodes.values():
        inputs = ", ".join(t.name for t in node.inputs)
        outputs = ", ".join(str(t.spec) for t in node.outputs)
        print(f"     {node.name:<30} {outputs:<40} = {node.op}({inputs})")
    print(f"     digest {graph.digest()[:16]}…: the same after restarting and running all cells")


# --- from the graph to programs --------------------------------------------------------------------------------------


def only_what_is_needed(graph: nf.Graph, model: Model) -> nf.Graph:
    say(
        3,
        "Prune",
        """A run needs the ancestors of what it fetches and no more. This pass, as all later ones, works on a copy: the
        graph that the cells made stays as it is.""",
    )
    pruned = prune(graph, [model.step], {}).graph
    gone = sorted(set(graph.nodes.keys()) - set(pruned.nodes))
    print(f"     {len(graph.nodes)} ops, of which the training step needs {len(pruned.nodes)}; not {', '.join(gone)}")
    return pruned


def placed(pruned: nf.Graph, model: Model) -> tuple[nf.Graph, Mapping[str, Placed]]:
    say(
        4,
        "Replicate and place",
        """DataParallel copies forward and backward ops to every worker and joins the gradients: a rewrite of the graph.
        Then every op gets a device and a reason, first by what is asked, then by simulating when it would finish.""",
    )
    infos = InProcessCluster(workers=2, ps=1).devices()
    expanded = expand(pruned, [pruned.node(model.step.name)], [i.spec for i in infos])
    check_graph(expanded.graph)
    placement = place(expanded.graph, infos, prefer=expanded.prefer)
    rows = [row for row in placement_table(expanded.graph, placement) if not row.op.startswith("replica_1/")]
    indented(repr(PlacementTable(rows)))
    print(f"     replica_1, of {len(expanded.graph.nodes) - len(rows)} ops, is the same on {expanded.replicas[1]}")
    return expanded.graph, placement


def cut(graph: nf.Graph, placement: Mapping[str, Placed]) -> list[Part]:
    say(
        5,
        "Partition",
        """The graph is cut into one part a device. Where an edge crosses, a send and a recv take its place: one pair
        for each tensor and destination, however many ops read it there.""",
    )
    parts = partition(graph, placement)
    check_partition(parts, graph, placement)
    for part in parts:
        kinds = [item.kind for item in part.items]
        print(
            f"     {part.device}: {kinds.count('node')} ops, {kinds.count('send')} sends, {kinds.count('recv')} recvs"
        )
    for pair, count in moved(parts).items():
        print(f"     {pair}: {count} tensors a step")
    return parts


def compiled(parts: list[Part], graph: nf.Graph) -> None:
    say(
        6,
        "Compile",
        """A part becomes a plan: straight-line instructions over numbered slots, with buffers that are used again as
        soon as nobody reads them. A worker gets it once; then a step is one short message.""",
    )
    plans = [compile_part(part, graph, {}) for part in parts]
    for plan in plans:
        check_plan(plan)
    indented(explain_plan(next(p for p in plans if "worker/task:0" in p.device)))


# --- running ---------------------------------------------------------------------------------------------------------


def trained(model: Model) -> None:
    say(
        7,
        "Execute",
        """`nf.run` is the stages above with a cache, and one command to every worker. `nf.train.run` sends the loop
        itself to the workers. Here they are two workers and a parameter server in this process.""",
    )
    cluster = InProcessCluster(workers=2, ps=1)
    nf.set_cluster(cluster)
    try:
        (_, before), trace = nf.run([model.step, model.loss], trace=True)
        run = nf.train.run(model.step, steps=60, metrics={"loss": model.loss}, every=20, show=False)
        learned = nf.run(model.w)
    finally:
        nf.set_cluster(None)
        cluster.close()
    losses = run.history["loss"]
    print(f"     loss {before:.4f} → {losses[-1]:.2e}; w = {learned.ravel()}, should be {TRUE_WEIGHTS.ravel()}")
    say(
        8,
        "Events",
        """What happened arrives as frozen values, to listeners that can never hurt the run; the widgets see nothing
        else. A traced step tells each op's device and time; a training run tells its metrics and its state.""",
    )
    slowest = sorted((e for e in trace.events if isinstance(e, NodeFinished)), key=lambda e: -e.duration_s)
    for event in slowest[:3]:
        print(f"     {event.device} ran {event.node} in {event.duration_s * 1e6:.0f} µs")
    print(f"     {len(trace.ops)} ops ran and {len(trace.transfers)} tensors moved in that step")
    for told in run.events:
        if isinstance(told, Metric):
            print(f"     step {told.step}: {told.name} = {told.value:.3g}")


def drawn(graph: nf.Graph, placement: Mapping[str, Placed], picture: Path) -> None:
    say(
        9,
        "Draw",
        """In a notebook `nf.show(step)` shows the graph with scopes that open, coloured by device. The same picture,
        drawn without a browser, is kept in the saved notebook.""",
    )
    view = GraphView(nf.graph_json(graph, placement))
    picture.write_bytes(view.png())
    indented(str(view))
    print(f"     {picture}: {picture.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.gettempdir()) / "nbflow-tour.png")
