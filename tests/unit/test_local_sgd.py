"""Local SGD: copies that are averaged, and what is seen in between."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nbflow as nf
from nbflow import errors
from nbflow.device import parse_device
from nbflow.graph import Graph
from nbflow.inprocess import InProcessCluster
from nbflow.optimize import chosen
from nbflow.prepare import Setting, preview
from nbflow.transport import DeviceInfo
from tests.unit.test_data_parallel import losses as synchronous
from tests.unit.test_data_parallel import model


@pytest.fixture
def graph() -> Iterator[Graph]:
    nf.set_cluster(None)
    with Graph().as_default() as made:
        yield made
        nf.set_cluster(None)


def trained(every: int, workers: int, optimizer: Any, steps: int = 24) -> Any:
    cluster = InProcessCluster(workers, 1)
    with Graph().as_default():
        nf.set_cluster(cluster)
        step, loss, _ = model(nf.train.LocalSGD(every=every), optimizer)
        run = nf.train.run(step, steps=steps, metrics={"loss": loss}, every=1, show=False)
        nf.set_cluster(None)
    cluster.close()
    assert (run.status, run.step) == ("done", steps)
    return run.history["loss"]


def test_averaged_every_step_it_is_synchronous_training(graph: Graph) -> None:
    """For SGD with momentum, too: what is averaged is linear in the gradients."""
    expected = synchronous(3, 1, steps=24)
    np.testing.assert_allclose(trained(1, 3, nf.optim.SGD(0.1, momentum=0.9)), expected, rtol=1e-4)


def test_it_trains_and_repeats(graph: Graph) -> None:
    found = trained(4, 3, nf.optim.Adam(0.02))
    assert found[-1] < found[0]
    np.testing.assert_array_equal(found, trained(4, 3, nf.optim.Adam(0.02)))


def test_variables_hold_the_last_average(graph: Graph) -> None:
    """Two workers pull w towards 0 and 4: each moves by itself, and w moves when they are averaged."""
    cluster = InProcessCluster(2, 1)
    data = nf.data.from_arrays({"x": np.array([0.0, 4.0], "float32")}).repeat().batch(2).next()["x"]
    w = nf.Variable(np.float32(8.0), name="w")
    step = nf.optim.SGD(0.25).minimize(nf.mean((w - data) ** 2), strategy=nf.train.LocalSGD(every=2))
    with nf.Session(cluster, graph) as session:
        session.run(step)
        assert session.run(w) == 8.0
        session.run(step)
        # Towards 0: 8, 4, 2. Towards 4: 8, 6, 5. Their mean is 3.5.
        assert session.run(w) == 3.5
        session.run(step)
        assert session.run(w) == 3.5
        session.run(w.assign(0.0))
        session.run(step)  # ends the second round, in which the copies began at 3.5
        np.testing.assert_allclose(session.run(w), (3.5 / 4 + (3.5 - 4) / 4 + 4) / 2, rtol=1e-6)
    cluster.close()


def test_between_averages_no_variable_travels(graph: Graph) -> None:
    cluster = InProcessCluster(2, 1)
    x = np.ones((4, 1000), "float32")
    data = nf.data.from_arrays({"x": x}).repeat().batch(4).next()["x"]
    w = nf.Variable(np.ones((1000, 10), "float32"), name="w")
    step = nf.optim.SGD(0.01).minimize(nf.mean((data @ w) ** 2), strategy=nf.train.LocalSGD(every=3))
    moved = []
    with nf.Session(cluster, graph) as session:
        for _ in range(6):
            _, trace = session.run(step, trace=True)
            moved.append(sum(t.nbytes for t in trace.transfers))
    cluster.close()
    taken, between, given = moved[:3]
    assert moved == [taken, between, given] * 2
    assert between < 200
    assert taken >= 2 * 40_000
    assert given >= 2 * 40_000


def test_rounds_have_at_least_one_step() -> None:
    with pytest.raises(errors.GraphError, match="at least 1"):
        nf.train.LocalSGD(every=0)


def test_a_replica_without_rows_changes_nothing_and_weighs_less(graph: Graph) -> None:
    """Batches of 4 and of 1 for two replicas. By hand: of w, which follows the rows' mean; of `kept`, an average of
    them on the way; and of m, the momentum, which a gradient of 0 lets decay."""
    cluster = InProcessCluster(2, 1)
    data = nf.data.from_arrays({"x": np.float32([0.0, 4.0, 8.0, 16.0, 10.0])}).batch(4).repeat().next()["x"]
    w = nf.Variable(np.float32(8.0), name="w")
    kept = nf.Variable(np.float32(0.0), name="kept", trainable=False)
    with nf.control_dependencies([kept.assign(0.5 * kept + 0.5 * nf.mean(data))]):
        loss = nf.mean((w - data) ** 2)
    step = nf.optim.SGD(0.25, momentum=0.5).minimize(loss, strategy=nf.train.LocalSGD(every=2))
    with nf.Session(cluster, graph) as session:
        np.testing.assert_allclose(session.run([step, loss])[1], ((64 + 16) / 2 + (0 + 64) / 2) / 2)
        # Means 2 and 12: w goes from 8 to 5 and 10, by momenta 12 and -8. The second batch is all the first one's.
        assert session.run([step, loss])[1] == 25.0
        (m,) = (nf.Variable.from_node(n) for n in graph.nodes.values() if n.name.endswith("/m"))
        shares = np.array([0.75, 0.25])
        momenta = np.array([0.5 * 12 + 2 * (5 - 10), 0.5 * -8])
        np.testing.assert_allclose(session.run(m), shares @ momenta)
        np.testing.assert_allclose(session.run(w), shares @ (np.array([5.0, 10.0]) - 0.25 * momenta))
        np.testing.assert_allclose(session.run(kept), shares @ [0.5 * 1 + 0.5 * 10, 6.0])
    cluster.close()


@pytest.mark.parametrize("writer", ["worker", "client"])
def test_a_run_that_ends_within_a_round_leaves_its_average(graph: Graph, tmp_path: Path, writer: Any) -> None:
    """Two workers pull w towards 0 and 4; the third step is the first of a second round. Checkpoints have it, too."""
    cluster = InProcessCluster(2, 1)
    nf.set_cluster(cluster)
    data = nf.data.from_arrays({"x": np.float32([0.0, 4.0])}).repeat().batch(2).next()["x"]
    w = nf.Variable(np.float32(8.0), name="w")
    loss = nf.mean((w - data) ** 2)
    step = nf.optim.SGD(0.25).minimize(loss, strategy=nf.train.LocalSGD(every=2))
    run = nf.train.run(step, 3, checkpoint=tmp_path, checkpoint_by=writer, show=False, evaluate=w + 0.0, eval_every=3)
    expected = (3.5 / 2 + (3.5 + 4) / 2) / 2
    assert nf.run(w) == expected
    assert run.history["evaluation"][-1] == expected
    nf.run(w.assign(0.0))
    nf.train.restore(run.checkpoint())
    assert nf.run(w) == expected
    # It goes on with a round of its own: 2.75 to 1.375 and 3.375, to 0.6875 and 3.6875.
    run = nf.train.run(step, 5, checkpoint=tmp_path, checkpoint_by=writer, show=False)
    assert run.step == 5
    assert nf.run(w) == (0.6875 + 3.6875) / 2
    nf.set_cluster(None)
    cluster.close()


def test_an_average_is_made_where_its_variable_lives() -> None:
    devices = [DeviceInfo(parse_device(f"/job:{job}/task:{n}/cpu:0")) for job in ("worker", "ps") for n in range(2)]
    with nf.Graph().as_default() as graph:
        x = nf.data.from_arrays({"x": np.zeros((64, 4), np.float32)}).repeat().batch(8).next()["x"]
        loss = nf.mean(nf.layers.dense(nf.layers.dense(x, 8), 8) ** 2)
        step = nf.optim.SGD(0.1).minimize(loss, strategy=nf.train.LocalSGD(4))
    _, placed = preview(graph, [step], Setting(devices, {}, chosen()))
    inside = {n.rpartition("/")[2]: str(p.device) for n, p in placed.items() if "/make_average/then/" in n}
    means = {n: d for n, d in inside.items() if n.startswith("weighted_sum")}
    assert len(means) == 4
    assert set(means.values()) == {"/job:ps/task:0/cpu:0", "/job:ps/task:1/cpu:0"}
    for name, device in means.items():
        assert inside[name.replace("weighted_sum", "assign")] == device
