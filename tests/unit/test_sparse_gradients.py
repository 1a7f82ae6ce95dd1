"""Gradients of looked up rows: sparse as long as nobody needs them dense, and equal to the dense ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import nbflow as nf
from nbflow.errors import DTypeError, OpError, ShapeError
from nbflow.graph import Graph, Node, ancestors
from nbflow.inprocess import InProcessCluster
from nbflow.optim import LARS, SGD, Adagrad, Adam, AdamW, Clip, DynamicLossScale, Lamb, Lion, Optimizer, RMSProp
from nbflow.testing import Evaluator, check_gradients, evaluate

A = np.ndarray[Any, Any]
ROWS, WIDTH = 50, 3
TABLE = np.random.default_rng(0).normal(size=(ROWS, WIDTH))


@pytest.fixture
def graph() -> Iterator[Graph]:
    nf.set_cluster(None)
    with Graph().as_default() as made:
        yield made
        nf.set_cluster(None)


def dense_nodes(step: Node, shape: tuple[int, ...] = (ROWS, WIDTH)) -> list[str]:
    """What the step makes that is as large as the table, other than the table and its initial value."""
    given = ("variable", "read_variable", "constant", "full")
    return [
        n.name
        for n in ancestors([step])
        if n.op not in given and any(t.shape == shape and not t.spec.resource for t in n.outputs)
    ]


# --- what nf.gradients gives -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ids", [[3, 1, 3, -1], [[0, 1], [1, 1]], 7, np.zeros((0,), np.int64), np.zeros((2, 0), np.int32)]
)
@pytest.mark.parametrize("shape", [(8,), (8, 2), (8, 2, 3)])
def test_slices_are_the_gradient(graph: Graph, ids: Any, shape: tuple[int, ...]) -> None:
    x = nf.placeholder("float64", shape, name="x")
    weights = np.random.default_rng(1).normal(size=(*np.shape(ids), *shape[1:]))
    y = nf.sum(nf.take(x, np.asarray(ids), axis=0) * weights)
    (found,) = nf.gradients(y, [x], sparse=True)
    assert isinstance(found, nf.IndexedSlices)
    assert (found.shape, found.dtype) == (shape, np.float64)
    (dense,) = nf.gradients(y, [x])
    wanted = np.zeros(shape)
    np.add.at(wanted, np.asarray(ids), weights)
    flat = found.flat()
    for value in evaluate([dense, found.to_dense(), flat.to_dense(), found.summed().to_dense()], {x: np.ones(shape)}):
        np.testing.assert_allclose(value, wanted, rtol=1e-12)
    numbers, values = evaluate([found.summed().indices, found.summed().values], {x: np.ones(shape)})
    assert list(numbers) == sorted({int(i) % 8 for i in np.ravel(ids)})
    np.testing.assert_allclose(values, wanted[numbers], rtol=1e-12)


def test_unknown_shapes(graph: Graph) -> None:
    x = nf.placeholder("float64", (None, None), name="x")
    ids = nf.placeholder("int32", (None, None), name="ids")
    (found,) = nf.gradients(nf.sum(nf.take(x, ids, axis=0) ** 2.0), [x], sparse=True)
    assert isinstance(found, nf.IndexedSlices)
    feeds = {x: TABLE, ids: [[1, 2, 1]]}
    values, numbers = evaluate([found.flat().values, found.flat().indices], feeds)
    np.testing.assert_allclose(values, 2 * TABLE[[1, 2, 1]])
    assert numbers.dtype == np.int64
    with pytest.raises(ShapeError, match="known length"):
        found.summed()
    unranked = nf.placeholder("float64", None, name="y")
    (dense,) = nf.gradients(nf.sum(nf.take(unranked, ids, axis=0)), [unranked], sparse=True)
    assert isinstance(dense, nf.Tensor)


def test_lookups_by_index_and_through_casts_stay_sparse(graph: Graph) -> None:
    w = nf.Variable(TABLE, name="w")
    ids = nf.placeholder("int64", (4,), name="ids")
    y = nf.sum(nf.astype(w, "float32")[ids]) + nf.astype(nf.sum(nf.take(nf.identity(w), ids, axis=-2)), "float32")
    (found,) = nf.gradients(y, [w], sparse=True)
    assert isinstance(found, nf.IndexedSlices)
    assert found.dtype == np.float64
    (dense,) = nf.gradients(y, [w])
    one, other = evaluate([dense, found.to_dense()], {ids: [1, 2, 2, 0]})
    np.testing.assert_array_equal(one, other)
    assert one.sum() == 2 * 4 * WIDTH


def test_slices_and_a_dense_part_add_up(graph: Graph) -> None:
    w = nf.Variable(TABLE, name="w")
    y = nf.sum(nf.take(w, [1, 1, 4], axis=0)) + nf.sum(w * w)
    (found,) = nf.gradients(y, [w], sparse=True)
    assert isinstance(found, nf.Tensor)
    wanted = 2 * TABLE
    np.add.at(wanted, [1, 1, 4], 1.0)
    np.testing.assert_allclose(evaluate(found), wanted)


def test_rules_get_dense_gradients(graph: Graph) -> None:
    """What is between the lookup and x, and higher derivatives, know nothing of slices."""
    ids = np.array([2, 0, 2])
    check_gradients(lambda x: nf.take(nf.tanh(x), ids, axis=0) ** 2.0, TABLE[:4])
    check_gradients(lambda x: nf.take(x, ids, axis=0) ** 3.0, TABLE[:4])
    check_gradients(lambda x: nf.take(x, ids, axis=0) * x[ids], TABLE[:4])


def test_summed_slices_have_a_gradient(graph: Graph) -> None:
    ids = np.array([2, 0, 2, -1])

    def summed(values: nf.Tensor) -> nf.Tensor:
        like = nf.zeros((5, WIDTH), dtype="float64")
        return nf.IndexedSlices(values, nf.constant(ids), like).summed().values ** 2.0

    check_gradients(summed, TABLE[:4])


# --- optimizers ------------------------------------------------------------------------------------------------------


def trained(
    optimizer: Optimizer, *, dense: bool, steps: int = 5, table: A = TABLE, touch_all: bool = False, **more: Any
) -> tuple[A, Node]:
    """The table after some steps on rows that repeat; `dense`: through an op that makes the gradient dense."""
    with Graph().as_default():
        w = nf.Variable(table, name="table")
        v = nf.Variable(np.linspace(-1, 1, WIDTH), name="v")
        ids = nf.placeholder("int64", (None,), name="ids")
        x = nf.take(w * 1.0 if dense else w, ids, axis=0)
        loss = nf.mean(nf.square(nf.sum(x * v, axis=-1) - 1.0))
        step = optimizer.minimize(loss, **more)
        runner = Evaluator()
        for n in range(steps):
            runner.run(step, {ids: np.arange(ROWS) if touch_all else [n, n + 1, n, 7, -1]})
        value: A = runner.run(w)
        return value, step


EXACT: dict[str, tuple[Optimizer, dict[str, Any]]] = {
    "sgd": (SGD(0.1), {}),
    "adagrad": (Adagrad(0.1), {}),
    "clipped by norm": (SGD(0.1), {"clip": Clip(norm=0.05)}),
    "clipped by global norm": (SGD(0.1), {"clip": Clip(global_norm=0.05)}),
    "clipped by value": (SGD(0.1), {"clip": Clip(value=0.01)}),
    "clipped by a function": (SGD(0.1), {"clip": lambda grads: [g * 0.5 for g in grads]}),
    "accumulated": (SGD(0.1), {"accumulate": 2}),
    "scaled": (SGD(0.1), {"loss_scale": DynamicLossScale()}),
    "scaled and clipped": (Adagrad(0.1), {"loss_scale": DynamicLossScale(), "clip": Clip(global_norm=0.05)}),
    "scaled and accumulated": (SGD(0.1), {"loss_scale": DynamicLossScale(), "accumulate": 2}),
    "decay": (SGD(0.1, momentum=0.9, weight_decay=0.1), {}),
    "adamw": (AdamW(0.1), {}),
    "rmsprop": (RMSProp(0.1), {}),
    "lion": (Lion(0.1), {}),
    "lamb": (Lamb(0.1), {}),
    "lars": (LARS(0.1), {}),
}


@pytest.mark.parametrize("name", EXACT)
def test_sparse_updates_equal_dense_ones(name: str) -> None:
    optimizer, more = EXACT[name]
    sparse, _ = trained(optimizer, dense=False, **more)
    np.testing.assert_allclose(sparse, trained(optimizer, dense=True, **more)[0], rtol=1e-9, atol=1e-12)
    assert np.abs(sparse - TABLE).max() > 1e-5


@pytest.mark.parametrize("name", ["sgd", "adagrad", "clipped by norm", "clipped by global norm", "scaled and clipped"])
def test_nothing_as_large_as_the_table_is_made(name: str) -> None:
    optimizer, more = EXACT[name]
    _, step = trained(optimizer, dense=False, steps=1, **more)
    assert dense_nodes(step) == []
    assert any(n.op.endswith("_sparse") for n in ancestors([step]))
    assert dense_nodes(trained(optimizer, dense=True, steps=1, **more)[1]) != []


LAZY: dict[str, Optimizer] = {
    "momentum": SGD(0.1, momentum=0.9),
    "nesterov": SGD(0.1, momentum=0.9, nesterov=True),
    "adam": Adam(0.1),
    "adamw without decay of the table": AdamW(0.1, decay_mask=lambda v: v.name != "table"),
}


@pytest.mark.parametrize("name", LAZY)
def test_lazy_updates_move_only_the_rows_they_see(name: str) -> None:
    """Equal to dense ones where every row is seen; elsewhere rows wait, momentum and all."""
    full, _ = trained(LAZY[name], dense=False, touch_all=True)
    np.testing.assert_allclose(full, trained(LAZY[name], dense=True, touch_all=True)[0], rtol=1e-9)
    some, step = trained(LAZY[name], dense=False)
    assert dense_nodes(step) == []
    moved = np.flatnonzero(np.abs(some - TABLE).max(axis=1))
    assert list(moved) == [0, 1, 2, 3, 4, 5, 7, ROWS - 1]
    # Row 0 is seen in the first step only.
    np.testing.assert_array_equal(some[0], trained(LAZY[name], dense=False, steps=1)[0][0])


def test_an_overflow_in_a_sparse_gradient_moves_nothing() -> None:
    table = TABLE.copy()
    table[7] = np.inf
    found, _ = trained(Adam(0.1), dense=False, table=table, loss_scale=DynamicLossScale())
    np.testing.assert_array_equal(found, table)


def test_a_tied_table_trains(graph: Graph) -> None:
    """Looked up at the bottom, multiplied with at the top: rows are added into the dense gradient."""
    w = nf.Variable(TABLE[:, :2] * 0.1, name="w")
    logits = nf.take(w, [1, 2, 3], axis=0) @ nf.matrix_transpose(w.to_tensor())
    loss = nf.mean(nf.nn.softmax_cross_entropy(logits, [2, 3, 4]))
    step = SGD(1.0).minimize(loss)
    runner = Evaluator()
    before = runner.run(loss)
    for _ in range(20):
        runner.run(step)
    assert runner.run(loss) < before


# --- replicas --------------------------------------------------------------------------------------------------------


def embedding_losses(
    workers: int, ps: int, make: Callable[[], Optimizer], batched: Callable[[Any], Any] | None = None, **more: Any
) -> A:
    rng = np.random.default_rng(3)
    words, labels = rng.integers(0, ROWS, (48, 4)), rng.integers(0, 3, 48)
    cluster = InProcessCluster(workers, ps)
    with Graph().as_default() as graph:
        nf.set_cluster(cluster)
        dataset = nf.data.from_arrays({"words": words, "y": labels})
        data = (batched(dataset) if batched is not None else dataset.repeat().batch(12)).next()
        vectors = nf.mean(nf.layers.embedding(data["words"], 1000, WIDTH, name="words"), axis=1)
        table = graph.node("words/weights")
        logits = nf.layers.dense(vectors, 3, name="logits")
        loss = nf.mean(nf.nn.softmax_cross_entropy(logits, data["y"]))
        step = make().minimize(loss, strategy=nf.train.DataParallel(), **more)
        if not more.get("accumulate"):
            assert dense_nodes(step, (1000, WIDTH)) == []
        run = nf.train.run(step, steps=15, metrics={"loss": loss}, every=1, show=False)
        assert run.status == "done", run.error
        rows = nf.placement(step)
        nf.set_cluster(None)
    cluster.close()
    if workers and ps:
        for row in rows:
            if row.type == "take" or row.type.endswith("_sparse"):
                assert row.actual.startswith("/job:ps"), row  # rows travel, the table does not
    assert table.op == "variable"
    return run.history["loss"]


@pytest.mark.parametrize("name", ["sgd", "adagrad", "adam", "clipped", "accumulated", "scaled"])
def test_losses_do_not_depend_on_the_number_of_workers(name: str) -> None:
    make: Callable[[], Optimizer] = {"adagrad": lambda: Adagrad(0.5), "adam": lambda: Adam(0.05)}.get(
        name, lambda: SGD(0.5)
    )
    more: dict[str, Any] = {
        "clipped": {"clip": Clip(global_norm=0.1)},
        "accumulated": {"accumulate": 3},
        "scaled": {"loss_scale": DynamicLossScale()},
    }.get(name, {})
    alone = embedding_losses(1, 0, make, **more)
    assert alone[-4:].mean() < alone[:4].mean()
    for workers, ps in ((1, 1), (2, 1)):
        np.testing.assert_allclose(embedding_losses(workers, ps, make, **more), alone, rtol=1e-5)


def test_uneven_and_empty_parts() -> None:
    """Of 5 rows, and of 47 and 1 in turn, which leaves a replica none."""
    for batched in (lambda d: d.repeat().batch(5), lambda d: d.batch(47).repeat()):
        one, two = (embedding_losses(n, 1, lambda: SGD(0.5), batched) for n in (1, 2))
        np.testing.assert_allclose(two, one, rtol=1e-5)


# --- scatter updates of variables ------------------------------------------------------------------------------------

SCATTERS: dict[str, Any] = {
    "scatter_update": lambda w, i, v: w.__setitem__(i, v),
    "scatter_add": np.add.at,
    "scatter_sub": np.subtract.at,
    "scatter_mul": np.multiply.at,
    "scatter_min": np.minimum.at,
    "scatter_max": np.maximum.at,
}


@pytest.mark.parametrize("how", SCATTERS)
@pytest.mark.parametrize("ids", [[2, 0, 2, -1], [[1], [1]], 3, np.zeros(0, np.int64)])
@pytest.mark.parametrize("tail", [(), (2,)])
def test_scatter_updates(graph: Graph, how: str, ids: Any, tail: tuple[int, ...]) -> None:
    rng = np.random.default_rng(5)
    start, values = rng.normal(size=(5, *tail)), rng.normal(size=(*np.shape(ids), *tail))
    w = nf.Variable(start, name="w")
    changed = getattr(w, how)(np.asarray(ids), values)
    with nf.control_dependencies([changed]):
        after = w.read()
    wanted = start.copy()
    SCATTERS[how](wanted, np.asarray(ids), values)
    np.testing.assert_allclose(nf.run(after), wanted, rtol=1e-12)
    np.testing.assert_allclose(evaluate(after), wanted, rtol=1e-12)


def test_scatter_updates_that_do_not_fit(graph: Graph) -> None:
    w = nf.Variable(TABLE, name="w")
    with pytest.raises(ShapeError, match="do not fit"):
        w.scatter_add([1, 2], np.ones((2, WIDTH + 1)))
    with pytest.raises(DTypeError, match="integers"):
        w.scatter_add(np.array([1.0]), np.ones((1, WIDTH)))
    with pytest.raises(ShapeError, match="scalar"):
        nf.Variable(1.0, name="s").scatter_add([0], [1.0])
    with pytest.raises(DTypeError, match="scatter_min is not defined for variables of complex"):
        nf.Variable(np.ones(2, "complex64"), name="c").scatter_min([0], np.ones(1, "complex64"))
    with pytest.raises(OpError, match="row numbers from 0 to 50 for 50 rows"):
        evaluate(w.scatter_add([0, ROWS], np.ones((2, WIDTH))))
    ids = nf.placeholder("int64", (None,), name="ids")
    values = nf.placeholder("float64", (None, WIDTH), name="values")
    with pytest.raises(OpError, match="3 row numbers for 2 rows"):
        evaluate(w.scatter_add(ids, values), {ids: [0, 1, 2], values: np.ones((2, WIDTH))})


def test_scattered_rows_of_all_replicas_count(graph: Graph) -> None:
    """Counting words: every replica scatters those of its part of the batch."""

    def counts(workers: int) -> A:
        words = np.random.default_rng(1).integers(0, 6, 24)
        cluster = InProcessCluster(workers, 1)
        with Graph().as_default():
            nf.set_cluster(cluster)
            batch = nf.data.from_arrays({"w": words, "x": words.astype("float32")}).repeat().batch(8).next()
            seen = nf.Variable(np.zeros(6, np.float32), name="seen", trainable=False)
            scattered = seen.scatter_add(batch["w"], nf.ones_like(batch["x"]))
            scale = nf.Variable(np.float32(0), name="scale")
            step = SGD(0.1).minimize(nf.mean(nf.square(batch["x"] * scale - 1.0)), strategy=nf.train.DataParallel())
            whole = nf.get_graph().add("group", (), dict(step.attrs), name="both", control_inputs=[step, scattered])
            nf.train.run(whole, steps=3, show=False)
            found: A = nf.run(seen)
            nf.set_cluster(None)
        cluster.close()
        return found

    wanted = np.bincount(np.random.default_rng(1).integers(0, 6, 24), minlength=6)
    np.testing.assert_array_equal(counts(1), wanted)
    np.testing.assert_array_equal(counts(2), wanted)


def test_joining_is_no_write_so_the_variable_is_not_copied(graph: Graph) -> None:
    table, w = nf.Variable(TABLE, name="table"), nf.Variable(np.ones(WIDTH), name="w")
    ids = nf.placeholder("int64", (4,), name="ids")
    loss = nf.sum(nf.square(nf.take(table, ids, axis=0) * w))
    step = SGD(0.1).minimize(loss, clip=Clip(global_norm=1.0))
    with nf.Session() as session:
        prepared = session.prepare([step], {ids: ids.spec})
        ops = [i.op for b in prepared.bundles.values() for plan in b.plans for i in plan.instructions]
    assert {"gradient_join", "sparse_join", "apply_sgd_sparse"} <= set(ops)
    assert "copy" not in ops
