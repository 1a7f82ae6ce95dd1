"""Steps that are made whole or not at all: what updates wait for, and the counts that say how many were made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import nbflow as nf
from nbflow import loop
from nbflow.errors import GraphError
from nbflow.graph import Graph, ancestors
from nbflow.inprocess import InProcessCluster
from nbflow.parallel import Role, allreduce, whole
from nbflow.prepare import Prepared
from nbflow.train import DataParallel

STRATEGIES = {
    "ps": (DataParallel(), 1),
    "two ps": (DataParallel(split_bytes=200), 2),
    "on the workers": (DataParallel(), 0),
    "ring": (DataParallel(ps=None), 0),
}


@pytest.fixture
def graph() -> Iterator[Graph]:
    nf.set_cluster(None)
    with Graph().as_default() as made:
        yield made


def model(strategy: Any) -> tuple[Any, Any]:
    """Two layers with a batch_norm between them, whose moving averages are updated beside the weights."""
    x = np.random.default_rng(0).normal(size=(96, 10)).astype("float32")
    data = nf.data.from_arrays({"x": x, "y": (x[:, 0] > 0).astype("int64")}).shuffle(96, seed=1).repeat().batch(24)
    batch = data.next()
    h = nf.nn.relu(nf.layers.batch_norm(nf.layers.dense(batch["x"], 8, name="first"), name="norm"))
    loss = nf.mean(nf.nn.softmax_cross_entropy(nf.layers.dense(h, 2, name="second"), batch["y"]))
    return nf.optim.Adam(0.05).minimize(loss, strategy=strategy), loss


def counted(session: nf.Session, graph: Graph, step: Any, prepared: Prepared) -> list[int]:
    device = prepared.placement[whole.counter_name(step.name)].device
    beside, tensors = whole.counts(graph, whole.counter_name(step.name), device)
    return [int(n) for n in session.look(session.beside(beside, tensors))]


@pytest.mark.parametrize("name", STRATEGIES)
def test_losses_are_the_same_and_steps_are_counted(graph: Graph, name: str) -> None:
    strategy, ps = STRATEGIES[name]
    found = []
    for elastic in (False, True):
        cluster = InProcessCluster(3, ps)
        with Graph().as_default() as made, nf.Session(cluster, made) as session:
            step, loss = model(strategy)
            prepared = session.prepare([step, loss], {}, role=Role("chief", elastic=elastic))
            found.append([float(session.look(prepared)[0]) for _ in range(20)])
            if elastic:
                assert counted(session, made, step, prepared) == [20, 20]
        cluster.close()
    assert found[0] == found[1]
    assert found[0][-1] < found[0][0]


@pytest.mark.parametrize("name", STRATEGIES)
def test_no_update_runs_before_all_that_updates_are_computed_from(
    graph: Graph, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Nor does the step end before every update of what is not a copy."""
    monkeypatch.setattr(allreduce, "BUCKET_BYTES", 100)
    strategy, ps = STRATEGIES[name]
    cluster = InProcessCluster(2, ps)
    with nf.Session(cluster, graph) as session:
        step, _ = model(strategy)
        loose = session.prepare([step], {}, role=Role("chief"))
        tight = session.prepare([step], {}, role=Role("chief", elastic=True))
    cluster.close()

    def updates(prepared: Prepared) -> dict[str, set[str]]:
        kinds = ("apply_adam", "assign", "assign_sub")
        nodes = [n for n in prepared.graph.nodes.values() if n.op in kinds and n.inputs[0].node.op == "variable"]
        assert len(nodes) >= 6
        return {n.name: {a.name for a in ancestors([n])} for n in nodes}

    found = updates(tight)
    gradients = set().union(*(before for before in updates(loose).values()))
    gradients = {n for n in gradients if "replica_" in n and "gradients" in n}
    assert any(not gradients <= before for before in updates(loose).values())
    assert all(gradients <= before for before in found.values())
    ended = [n for n in tight.graph.nodes.values() if n.name.endswith("/made/ended")]
    assert len(ended) == (2 if name == "ring" else 1)  # one for whoever has the variables
    assert set(found) <= {a.name for a in ancestors(ended)}


def test_replicas_keep_more_elements_than_a_loop_has_steps_in_flight() -> None:
    assert whole.KEEP > loop.AHEAD


@pytest.mark.parametrize(
    ("backup", "replicas", "needed"), [(1, 3, 2), (1, 2, 2), (1, 1, 1), (2, 5, 3), (2, 4, 3), (0, 4, 4), (3, 7, 4)]
)
def test_how_many_make_a_step_follows_from_how_many_there_are(backup: int, replicas: int, needed: int) -> None:
    """As many backups as were asked for, but less than half of the replicas."""
    strategy = DataParallel(backup=backup)
    assert strategy.needed(replicas, elastic=True) == needed
    if replicas - needed < backup:
        with pytest.raises(GraphError, match="leaves"):
            strategy.needed(replicas)
