"""Evaluation on schedule: what a run evaluates, when, on which data, and that training does not notice."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nbflow as nf
from nbflow import errors
from nbflow.graph import Graph
from nbflow.inprocess import InProcessCluster

PATIENCE_S = 60


@pytest.fixture(autouse=True)
def graph() -> Iterator[Graph]:
    with Graph().as_default() as made:
        yield made
    nf.set_cluster(None)


class Model:
    """A line fitted to 12 points in batches of 4, and 6 other points in batches of 2."""

    def __init__(self, **strategy: Any) -> None:
        rng = np.random.default_rng(0)
        self.x, self.test_x = rng.normal(size=(12, 3)).astype("float32"), rng.normal(size=(6, 3)).astype("float32")
        self.batch = nf.data.from_arrays({"x": self.x}).shuffle(12, seed=1).repeat().batch(4).next()
        self.test = nf.data.from_arrays({"x": self.test_x}).repeat().batch(2).next()
        self.w = nf.Variable(np.full((3,), 0.5, "float32"), name="w")
        self.loss = nf.mean(nf.square(self.batch["x"] @ self.w - 1.0))
        self.step = nf.optim.SGD(0.05).minimize(self.loss, strategy=nf.train.DataParallel(**strategy))

    def run(self, steps: int, **options: Any) -> Any:
        options = {"metrics": {"loss": self.loss}, "every": 1, "show": False, **options}
        return nf.train.run(self.step, steps, **options)

    def evaluated(self, steps: int, **options: Any) -> Any:
        feeds = {self.batch["x"]: self.test["x"]}
        return self.run(steps, evaluate={"test": self.loss}, eval_feeds=feeds, eval_every=3, eval_steps=3, **options)


def told(run: Any, name: str = "test") -> dict[int, float]:
    history = run.history  # at one moment: it grows
    return {int(s): v for s, v in zip(history["step"], history[name], strict=True) if not np.isnan(v)}


def by_hand(steps: int) -> tuple[dict[int, float], np.ndarray[Any, Any]]:
    """The same with the loop in this process: losses on all test points, and the training's losses."""
    nf.set_cluster(None)
    with Graph().as_default():
        model, losses, found = Model(), [], {}
        for number in range(1, steps + 1):
            losses.append(model.run(1).history["loss"][0])
            if number % 3 == 0 or number == steps:
                found[number] = float(np.mean((model.test_x @ nf.run(model.w) - 1.0) ** 2))
        return found, np.array(losses)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_values_are_those_after_exactly_that_step_on_the_whole_test_set(workers: int) -> None:
    nf.set_cluster(InProcessCluster(workers, min(workers, 1)))
    run = Model().evaluated(7)
    found = told(run)
    assert list(found) == [3, 6, 7]
    values, losses = by_hand(7)
    np.testing.assert_allclose(list(found.values()), list(values.values()), rtol=1e-5)
    np.testing.assert_allclose(run.history["loss"], losses, rtol=1e-5)


def test_with_backup_workers_the_chief_evaluates_what_its_step_left() -> None:
    nf.set_cluster(InProcessCluster(3, 1))
    model = Model(backup=1)
    found = told(model.evaluated(7))
    assert list(found) == [3, 6, 7]
    np.testing.assert_allclose(found[7], np.mean((model.test_x @ nf.run(model.w) - 1.0) ** 2), rtol=1e-5)


def test_training_does_not_notice() -> None:
    with Graph().as_default():
        plain = Model().run(10).history["loss"]
    looked = Model().evaluated(10).history["loss"]
    np.testing.assert_array_equal(plain, looked)


def test_asynchronous_replicas_evaluate_once_for_all() -> None:
    nf.set_cluster(InProcessCluster(2, 1))
    run = Model(sync=False).evaluated(24)
    values = told(run)
    assert 24 in values
    assert all(np.isfinite(v) for v in values.values())
    assert sum(getattr(e, "name", "") == "test" for e in run.events) == len(values)


def test_arrays_stand_for_tensors_and_a_single_tensor_has_a_name() -> None:
    model = Model()
    run = model.run(4, metrics={}, evaluate=model.loss, eval_feeds={model.batch["x"]: model.test_x}, eval_every=4)
    expected = np.mean((model.test_x @ nf.run(model.w) - 1.0) ** 2)
    np.testing.assert_allclose(told(run, "evaluation")[4], expected, rtol=1e-5)
    assert run.metric_names == ("evaluation",)


def test_stretches_between_checkpoints_do_not_evaluate_more(tmp_path: Path) -> None:
    run = Model().evaluated(7, checkpoint=tmp_path, checkpoint_every=2)
    assert list(told(run)) == [3, 6, 7]
    values, _ = by_hand(7)
    np.testing.assert_allclose(list(told(run).values()), list(values.values()), rtol=1e-5)


def test_what_the_evaluation_says_wrong_ends_the_run() -> None:
    model = Model()
    test = nf.data.from_arrays({"x": model.test_x}).batch(2).next()  # one pass only
    options = {"evaluate": {"test": model.loss}, "eval_feeds": {model.batch["x"]: test["x"]}}
    with pytest.raises(errors.DataError, match=r"after step 2: the data ended at batch 2 of 2; let it \.repeat\(\)"):
        model.run(4, eval_every=1, eval_steps=2, **options)


def test_not_a_number_stops_a_run_that_asked_for_it() -> None:
    model = Model()
    wrong = nf.log(nf.mean(model.w) - 10.0)
    run = model.run(20, evaluate={"wrong": wrong}, eval_every=5, stop_on_nan=True)
    assert (run.status, run.step) == ("stopped", 5)
    assert "wrong is nan since step 5" in run.detail


def test_a_stop_leaves_a_run_that_evaluates_all_the_time() -> None:
    model = Model()
    test = {"evaluate": {"w": nf.sum(model.w)}, "eval_every": 1}
    run = model.run(10**7, background=True, **test)
    while not told(run, "w"):
        pass
    run.stop(PATIENCE_S)
    assert run.status == "stopped"
    assert max(told(run, "w")) == run.step


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eval_every": 0}, "eval_every is at least 1"),
        ({"eval_steps": 0}, "eval_steps is at least 1"),
        ({"evaluate": 3}, "cannot fetch 3"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.GraphError, match=message):
        Model().run(2, **options)


def test_names_and_data_are_not_shared_with_the_training() -> None:
    model = Model()
    with pytest.raises(errors.GraphError, match="loss is both a metric and evaluated"):
        model.run(2, evaluate={"loss": nf.sum(model.w)})
    with pytest.raises(errors.GraphError, match=r"would take batches from .*, which the training reads"):
        model.run(2, evaluate={"test": model.loss})
    with pytest.raises(errors.GraphError, match="is computed from it"):
        model.run(2, evaluate={"test": model.loss}, eval_feeds={model.batch["x"]: model.batch["x"] * 2.0})


@pytest.mark.parametrize(
    "strategy",
    [
        nf.train.DataParallel(ps=None),
        nf.train.DataParallel(split_bytes=1),
        nf.train.DataParallel(sync=False, staleness=2),
        nf.train.LocalSGD(every=4),
    ],
    ids=["all-reduce", "split", "stale", "local"],
)
def test_under_every_strategy_it_reads_what_a_step_from_here_reads(strategy: Any) -> None:
    nf.set_cluster(InProcessCluster(2, 1))
    model = Model()
    step = nf.optim.SGD(0.05).minimize(model.loss, strategy=strategy)
    run = nf.train.run(step, 8, every=2, show=False, evaluate={"w": nf.sum(model.w)}, eval_every=2)
    values = told(run, "w")
    assert list(values) == [2, 4, 6, 8]
    if getattr(strategy, "sync", True):  # otherwise another replica may end after the one that evaluates
        np.testing.assert_allclose(values[8], nf.run(nf.sum(model.w)), rtol=1e-6)
    if isinstance(strategy, nf.train.LocalSGD):  # between two averages the variables stand still
        assert values[2] == 1.5
        assert values[4] == values[6] != 1.5


def test_an_interrupt_ends_an_evaluation_in_its_middle() -> None:
    model = Model()
    endless = {"evaluate": nf.sum(model.w), "eval_every": 3, "eval_steps": 10**9}
    run = model.run(9, background=True, **endless)
    evaluating = threading.Event()
    run.listen(lambda e: evaluating.set() if "evaluating: batch" in getattr(e, "detail", "") else None)
    assert evaluating.wait(PATIENCE_S)
    run.interrupt()
    assert run.watch(PATIENCE_S)
    assert (run.status, run.step) == ("stopped", 3)
    assert not told(run, "evaluation")
