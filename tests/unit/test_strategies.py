"""Every strategy on every model: equal to one process where that is promised, below a stated loss elsewhere.

How equal. A strategy sums in another order, so results differ by rounding. Of float32 the gradient of one step is
held to 1e-6 of its norm: one number that is a small difference of large ones keeps the rounding of these. Over many
steps float64 models are held to 1e-12, where a wrong weight or a row too many stands out as much as ever.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nbflow as nf
from nbflow.graph import Graph
from nbflow.inprocess import InProcessCluster
from nbflow.train import DataParallel, LocalSGD, Pipeline
from tests.replica_models import BATCH, BOUNDS, MODELS, Array, apart, digits, mlp, trained

TWO = ("/job:worker/task:0", "/job:worker/task:1")
# What is the same as one process but for the order of sums: strategy, workers, ps tasks.
EXACT: dict[str, tuple[Any, int, int]] = {
    "ps": (DataParallel(), 2, 1),
    "ps, uneven parts": (DataParallel(), 3, 2),
    "ring": (DataParallel(ps=None), 3, 0),
    "local, averaged each step": (LocalSGD(every=1), 2, 1),
    "local, uneven parts": (LocalSGD(every=1), 3, 2),
    "pipeline": (Pipeline(TWO, 4), 2, 0),
}
# What is not: strategy, workers, ps tasks.
NOISY: dict[str, tuple[Any, int, int]] = {
    "backup": (DataParallel(backup=1), 3, 1),
    "async": (DataParallel(sync=False), 2, 1),
    "stale": (DataParallel(sync=False, staleness=1), 2, 1),
    "bfloat16": (DataParallel(compress="bfloat16"), 2, 1),
    "float16": (DataParallel(compress="float16"), 2, 1),
    "bfloat16, backup": (DataParallel(compress="bfloat16", backup=1), 3, 1),
    "local": (LocalSGD(every=4), 2, 1),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("row", EXACT)
def test_many_steps_equal_one_process(row: str, model: str) -> None:
    strategy, workers, ps = EXACT[row]
    optimizer = nf.optim.SGD(0.05)
    losses, variables = trained(MODELS[model], None, steps=5, dtype="float64", optimizer=optimizer)
    found, after = trained(MODELS[model], strategy, workers, ps, steps=5, dtype="float64", optimizer=optimizer)
    np.testing.assert_allclose(found, losses, rtol=1e-12)
    assert apart(after, variables) < 1e-12
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("row", EXACT)
def test_one_step_in_float32_equals_one_process(row: str, model: str) -> None:
    """The momentum after the first step is the gradient; a rate of 0 keeps it from being rounded into a variable."""
    strategy, workers, ps = EXACT[row]

    def gradient(*where: Any) -> tuple[Any, Array]:
        found, after = trained(MODELS[model], *where, steps=1, optimizer=nf.optim.SGD(0.0, momentum=0.9))
        return found, np.concatenate([v.ravel() for k, v in sorted(after.items()) if k.endswith("/SGD/m")])

    losses, expected = gradient(None)
    found, made = gradient(strategy, workers, ps)
    np.testing.assert_allclose(found, losses, rtol=1e-6)
    assert np.linalg.norm(expected) > 0
    assert np.linalg.norm(made - expected) < 1e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("row", NOISY)
def test_the_loss_falls_below_its_bound(row: str, model: str) -> None:
    strategy, workers, ps = NOISY[row]
    optimizer, bound = BOUNDS[model]
    found, _ = trained(MODELS[model], strategy, workers, ps, steps=40, optimizer=optimizer)
    assert found[0] > 2.0
    assert found[-4:].mean() < bound


# --- bit for bit -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [nf.optim.SGD(0.1, momentum=0.9), nf.optim.Adam(0.01)], ids=["sgd", "adam"])
@pytest.mark.parametrize("model", MODELS)
def test_where_ops_are_does_not_change_a_bit(model: str, optimizer: Any) -> None:
    """One replica and two ps tasks: every variable elsewhere, and no sum in another order."""
    losses, variables = trained(MODELS[model], None, steps=3, optimizer=optimizer)
    for strategy, workers, ps in ((DataParallel(), 1, 2), (None, 3, 0), (Pipeline(TWO, 1), 2, 0)):
        found, after = trained(MODELS[model], strategy, workers, ps, steps=3, optimizer=optimizer)
        np.testing.assert_array_equal(found, losses)
        for name, value in variables.items():
            np.testing.assert_array_equal(after[name], value, err_msg=name)


class Alone:
    """The model in one process, trained on rows that are given to it."""

    def __init__(self, optimizer: Any) -> None:
        self.graph = Graph()
        with self.graph.as_default():
            self.loss = mlp("float32")
            named = {n.name: nf.Variable.from_node(n) for n in self.graph.nodes.values() if n.op == "variable"}
            self.step = optimizer.minimize(self.loss)
            self.grads = dict(zip(named, nf.gradients(self.loss, [v.to_tensor() for v in named.values()]), strict=True))
        self.variables = {n.name: nf.Variable.from_node(n) for n in self.graph.nodes.values() if n.op == "variable"}
        data = next(n for n in self.graph.nodes.values() if n.op == "iterator_next")
        self.x, self.y = data.outputs[:2]
        self.session = nf.Session(graph=self.graph)

    def run(self, fetches: Any, rows: slice) -> Any:
        images, labels = digits()
        return self.session.run(fetches, {self.x: images[rows].astype("float32"), self.y: labels[rows]})

    def values(self) -> dict[str, Array]:
        found: dict[str, Array] = self.session.run({k: v.to_tensor() for k, v in self.variables.items()})
        return found


def halves(step: int) -> list[slice]:
    """What the two workers get of a batch."""
    first = step * BATCH
    return [slice(first, first + BATCH // 2), slice(first + BATCH // 2, first + BATCH)]


@pytest.mark.parametrize("every", [2, 3])
def test_local_sgd_is_the_average_of_two_that_train_alone(every: int) -> None:
    """Made by hand: two processes, whose variables and momenta are averaged. Bit for bit."""
    optimizer = nf.optim.SGD(0.1, momentum=0.9)
    alone = [Alone(optimizer), Alone(optimizer)]
    steps = 2 * every + 1  # the last round has one step
    for step in range(steps):
        for one, rows in zip(alone, halves(step), strict=True):
            one.run(one.step, rows)
        if (step + 1) % every == 0 or step + 1 == steps:
            first, second = (one.values() for one in alone)
            mean = {name: (0.5 * first[name] + 0.5 * second[name]).astype(first[name].dtype) for name in first}
            for one in alone:
                one.session.assign(mean)
    _, found = trained(mlp, LocalSGD(every=every), 2, 1, steps=steps, optimizer=optimizer)
    for name, value in found.items():
        np.testing.assert_array_equal(value, mean[name], err_msg=name)
    for one in alone:
        one.session.close()


@pytest.mark.parametrize("compress", ["bfloat16", "float16"])
def test_compressed_is_the_mean_of_rounded_gradients(compress: str) -> None:
    """Made by hand: each half's gradient is rounded, and their mean is applied. Bit for bit."""
    alone = Alone(nf.optim.SGD(0.1))
    narrow = {name: nf.astype(nf.astype(g, compress), "float32") for name, g in alone.grads.items()}
    before = alone.values()
    first, second = (alone.run(narrow, rows) for rows in halves(0))
    _, found = trained(mlp, DataParallel(compress=compress), 2, 1, steps=1)
    for name, value in found.items():
        mean = np.float32(0.5) * first[name] + np.float32(0.5) * second[name]
        np.testing.assert_array_equal(value, before[name] - np.float32(0.1) * mean, err_msg=name)
    alone.session.close()


@pytest.mark.parametrize("options", [{}, {"staleness": 0}, {"staleness": 3}, {"compress": "bfloat16"}], ids=str)
def test_asynchronous_updates_are_each_applied_once(options: dict[str, Any]) -> None:
    """Of a loss that is linear in w every gradient is known, and their sum does not depend on who came first."""
    rows = np.arange(24, dtype="float32")
    cluster = InProcessCluster(3, 1)
    with Graph().as_default(), nf.Session(cluster):
        nf.set_cluster(cluster)
        data = nf.data.from_arrays({"x": rows}).batch(2).next()["x"]
        w = nf.Variable(np.float32(0.0), name="w")
        step = nf.optim.SGD(1.0).minimize(nf.mean(w * data), strategy=DataParallel(sync=False, **options))
        run = nf.train.run(step, steps=12, show=False)
        assert (run.status, run.step) == ("done", 12)
        assert nf.run(w) == -rows.reshape(12, 2).mean(axis=1).sum()
        nf.set_cluster(None)
    cluster.close()


@pytest.mark.parametrize("strategy", [None, DataParallel(workers=TWO[0])], ids=str)
def test_a_metric_may_be_computed_on_a_worker_that_the_step_does_not_use(strategy: Any) -> None:
    cluster = InProcessCluster(4, 0)
    with Graph().as_default():
        nf.set_cluster(cluster)
        loss = mlp("float32")
        with nf.device("/job:worker/task:3"):
            doubled = 2.0 * loss
        step = nf.optim.SGD(0.1).minimize(loss, strategy=strategy)
        run = nf.train.run(step, 4, {"loss": loss, "doubled": doubled}, every=2, show=False)
        nf.set_cluster(None)
    cluster.close()
    np.testing.assert_allclose(run.history["doubled"], 2 * run.history["loss"], rtol=1e-6)
