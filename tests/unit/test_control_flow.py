"""cond, while_loop, scan and map: values, shapes, gradients, state, random numbers; alone and inside each other."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import nbflow as nf
from nbflow.errors import DeadlineExceeded, DTypeError, GraphError, OpError, ShapeError
from nbflow.explain import explain_plan
from nbflow.graph import Graph, Owner
from nbflow.inprocess import InProcessCluster
from nbflow.owner import begin
from nbflow.spec import TensorSpec
from nbflow.testing import Evaluator, check_gradients


@pytest.fixture(autouse=True)
def graph() -> Iterator[Graph]:
    with Graph().as_default() as made:
        yield made


@pytest.fixture
def run(graph: Graph) -> Iterator[Callable[..., Any]]:
    """Runs fetches through the whole pipeline, and compares with the plain interpreter."""
    with nf.Session(graph=graph) as session:
        oracle = Evaluator()

        def both(fetches: Any, feeds: Any = None) -> Any:
            found = session.run(fetches, feeds)
            np.testing.assert_equal(found, oracle.run(fetches, feeds))
            return found

        yield both


X = np.array([1.0, -2.0, 3.0])


# --- cond ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decision", [True, False])
def test_cond_runs_one_branch(run: Any, decision: bool) -> None:
    p = nf.placeholder("bool", (), name="p")
    x = nf.placeholder("float64", (3,), name="x")
    y = nf.cond(p, lambda: {"a": x * 2, "b": (x[0],)}, lambda: {"a": -x, "b": (x[1],)})
    found = run(y, {p: decision, x: X})
    np.testing.assert_array_equal(found["a"], X * 2 if decision else -X)
    assert found["b"][0] == (1.0 if decision else -2.0)


def test_cond_takes_operands_and_numbers(run: Any) -> None:
    x = nf.placeholder("float32", (), name="x")
    y = nf.cond(x > 0, lambda a: a + 1, lambda a: a * 0.5, x)
    assert run(y, {x: 3.0}) == 4.0
    assert run(y, {x: -3.0}) == -1.5


def test_branches_may_differ_in_shape(run: Any) -> None:
    p = nf.placeholder("bool", (), name="p")
    x = nf.placeholder("float64", (3,), name="x")
    y = nf.cond(p, lambda: x, lambda: nf.concat([x, x]))
    assert y.shape == (None,)
    assert run(y, {p: True, x: X}).shape == (3,)
    assert run(y, {p: False, x: X}).shape == (6,)


def test_branches_that_do_not_fit_say_so() -> None:
    x = nf.placeholder("float64", (3,), name="x")
    with pytest.raises(GraphError, match="different nestings"):
        nf.cond(x[0] > 0, lambda: (x, x), lambda: x)
    with pytest.raises(DTypeError, match=r"float64.*int64"):
        nf.cond(x[0] > 0, lambda: x[0], lambda: nf.constant(1))
    with pytest.raises(DTypeError, match="one boolean"):
        nf.cond(x > 0, lambda: x, lambda: x)
    with pytest.raises(DTypeError, match="one boolean"):
        nf.cond(x[0], lambda: x, lambda: x)


def test_a_branch_that_raises_leaves_nothing_behind(graph: Graph) -> None:
    x = nf.placeholder("float64", (3,), name="x")
    before = list(graph.nodes.keys())
    with pytest.raises(ZeroDivisionError):
        nf.cond(nf.constant(True), lambda: x, lambda: 1 / 0)
    assert [n for n in graph.nodes.keys() if n not in before] == ["constant"]


def test_what_writes_state_runs_with_its_branch_only(run: Any) -> None:
    p = nf.placeholder("bool", (), name="p")
    w = nf.Variable(np.zeros(2), name="w")
    step = nf.cond(p, lambda: w.assign_add([1.0, 2.0]), lambda: w.assign(w.read() * 10))
    run(step, {p: True})
    run(step, {p: True})
    np.testing.assert_array_equal(run(w), [2.0, 4.0])
    run(step, {p: False})
    np.testing.assert_array_equal(run(w), [20.0, 40.0])


def test_a_branch_without_a_value_is_an_op(run: Any) -> None:
    p = nf.placeholder("bool", (), name="p")
    w = nf.Variable(1.0, name="w")
    op = nf.cond(p, lambda: nf.group(w.assign(5.0)), lambda: None)
    assert run(op, {p: False}) is None
    assert run(w) == 1.0
    run(op, {p: True})
    assert run(w) == 5.0


# --- while_loop ------------------------------------------------------------------------------------------------------


def test_while_loop_counts(run: Any) -> None:
    n = nf.placeholder("int64", (), name="n")
    i, total = nf.while_loop(lambda i, s: i < n, lambda i, s: (i + 1, s + nf.astype(i, "float64")), (0, np.float64(0)))
    assert run((i, total), {n: 10}) == (10, 45.0)
    assert run((i, total), {n: 0}) == (0, 0.0)
    assert run((i, total), {n: -3}) == (0, 0.0)


def test_loop_variables_nest(run: Any) -> None:
    out = nf.while_loop(
        lambda v: v["i"] < 3, lambda v: {"i": v["i"] + 1, "x": [v["x"][0] * 2.0]}, {"i": 0, "x": [np.ones(2)]}
    )
    found = run(out)
    assert found["i"] == 3
    np.testing.assert_array_equal(found["x"][0], [8.0, 8.0])


def test_maximum_iterations(run: Any) -> None:
    out = nf.while_loop(lambda i: i < 100, lambda i: i + 1, [0], maximum_iterations=7)
    assert run(out) == [7]


def test_shapes_that_grow_need_an_invariant(run: Any) -> None:
    x = nf.placeholder("float64", (2,), name="x")

    def double(i: Any, v: Any) -> Any:
        return i + 1, nf.concat([v, v])

    with pytest.raises(ShapeError, match=r"enters as float64 \(2,\) and leaves as float64 \(4,\).*shape_invariants"):
        nf.while_loop(lambda i, v: i < 3, double, (0, x))
    _, v = nf.while_loop(lambda i, v: i < 3, double, (0, x), shape_invariants=((), (None,)))
    assert v.shape == (None,)
    assert run(v, {x: [1.0, 2.0]}).shape == (16,)


def test_fed_shapes_that_grow(run: Any) -> None:
    """What is unknown when the loop is built and known when it runs must not be taken to stay."""
    x = nf.placeholder("float64", (None,), name="x")
    _, v = nf.while_loop(lambda i, v: i < 3, lambda i, v: (i + 1, nf.concat([v, v])), (0, x))
    assert run(v, {x: [1.0, 2.0]}).shape == (16,)


def test_dtypes_stay() -> None:
    with pytest.raises(DTypeError, match="loop variable 0 of 'while_loop' enters as int64"):
        nf.while_loop(lambda i: i < 3, lambda i: nf.astype(i, "float64"), [0])


def test_a_variable_is_its_value_at_the_start_unless_read_anew(run: Any) -> None:
    w = nf.Variable(1.0, name="w", dtype="float64")

    def body(i: Any, seen: Any, fresh: Any) -> Any:
        with nf.control_dependencies([w.assign_add(1.0)]):
            return i + 1, seen + w, fresh + w.read()

    _, seen, fresh = nf.while_loop(lambda i, s, f: i < 3, body, (0, np.float64(0), np.float64(0)))
    assert run((seen, fresh)) == (3.0, 2.0 + 3.0 + 4.0)
    assert run(w) == 4.0


def test_10_000_iterations(run: Any, graph: Graph) -> None:
    with nf.Session(graph=graph) as session:
        assert session.run(nf.while_loop(lambda i: i < 10_000, lambda i: i + 1, [0])) == [10_000]


# --- scan and map ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True])
def test_scan(run: Any, reverse: bool) -> None:
    x = nf.placeholder("float64", (None, 2), name="x")
    total, sums = nf.scan(lambda c, r: (c + r, c * 1.0), np.zeros(2), x, reverse=reverse)
    data = np.arange(10.0).reshape(5, 2)
    last, rows = run((total, sums), {x: data})
    np.testing.assert_array_equal(last, data.sum(0))
    flow = data[::-1] if reverse else data
    before = np.cumsum(flow, 0) - flow
    np.testing.assert_array_equal(rows, before[::-1] if reverse else before)


def test_scan_of_nothing(run: Any) -> None:
    x = nf.placeholder("float64", (None, 2), name="x")
    total, sums = nf.scan(lambda c, r: (c + r, c), np.ones(2), x)
    last, rows = run((total, sums), {x: np.empty((0, 2))})
    np.testing.assert_array_equal(last, np.ones(2))
    assert rows.shape == (0, 2)


def test_scan_by_length(run: Any) -> None:
    total, powers = nf.scan(lambda c, _: (c * 2, c), 1, length=5)
    assert run(total) == 32
    np.testing.assert_array_equal(run(powers), [1, 2, 4, 8, 16])


def test_scan_without_rows_says_what_it_needs() -> None:
    with pytest.raises(GraphError, match="xs to go over, or a length"):
        nf.scan(lambda c, _: (c, c), 1)
    x, y = nf.placeholder("float64", (3,)), nf.placeholder("float64", (4,))
    with pytest.raises(ShapeError, match=r"float64\[3\] and float64\[4\]"):
        nf.map(lambda r: r[0] + r[1], (x, y))
    with pytest.raises(ShapeError, match="has none"):
        nf.map(lambda r: r, nf.constant(1.0))


def test_rows_of_different_number_at_run_time(graph: Graph) -> None:
    x, y = nf.placeholder("float64", (None,), name="x"), nf.placeholder("float64", (None,), name="y")
    out = nf.identity(nf.map(lambda r: r[0] + r[1], (nf.flip(x), y)))
    with nf.Session(graph=graph) as session, pytest.raises((OpError, ShapeError), match="one length"):
        session.run(out, {x: np.ones(3), y: np.ones(4)})


def test_map_nests(run: Any) -> None:
    x = nf.placeholder("float64", (3, 4), name="x")
    y = nf.map(lambda row: {"twice": nf.map(lambda v: v * 2 + row[0], row), "sum": nf.sum(row)}, x)
    data = np.arange(12.0).reshape(3, 4)
    found = run(y, {x: data})
    np.testing.assert_array_equal(found["twice"], data * 2 + data[:, :1])
    np.testing.assert_array_equal(found["sum"], data.sum(1))


def test_a_layer_in_a_body_has_one_set_of_variables(run: Any) -> None:
    x = nf.placeholder("float64", (5, 2, 3), name="x")

    def cell(h: Any, row: Any) -> Any:
        h = nf.layers.dense(nf.concat([h, row], axis=1), 4, activation=nf.tanh, name="cell")
        return h, h

    last, every = nf.scan(cell, np.zeros((2, 4)), x, name="rnn")
    assert [v.name for v in nf.trainable_variables()] == ["rnn/cell/bias", "rnn/cell/weights"]
    found = run((last, every), {x: np.ones((5, 2, 3))})
    np.testing.assert_array_equal(found[0], found[1][-1])


def test_a_variable_cannot_start_from_a_loop_variable() -> None:
    with pytest.raises(GraphError, match="the initial value of variable w depends on"):
        nf.scan(lambda c, r: (nf.Variable(c, name="w") + r, None), 0.0, np.ones(3, np.float32))


# --- random numbers --------------------------------------------------------------------------------------------------


def test_iterations_draw_different_numbers_and_steps_too(run: Any) -> None:
    draws = nf.map(lambda r: nf.random.uniform((3,), name="draw"), np.zeros(4, np.float32))
    first, second = run(draws), run(draws)
    assert len(np.unique(np.concatenate([first, second]))) == 24


def test_gradients_see_the_numbers_that_were_drawn(run: Any) -> None:
    """A dropped element has no gradient: the twin of the loop draws what the loop drew."""
    x = nf.placeholder("float64", (4, 50), name="x")
    kept = nf.map(lambda r: nf.nn.dropout(r, 0.5), x)
    (grad,) = nf.gradients(kept, x)
    value, slope = run((kept, grad), {x: np.ones((4, 50))})
    np.testing.assert_array_equal(value, slope)
    assert set(np.unique(slope)) == {0.0, 2.0}


@pytest.mark.parametrize("decision", [True, False])
def test_gradients_of_a_branch_see_the_numbers_that_were_drawn(run: Any, decision: bool) -> None:
    p = nf.placeholder("bool", (), name="p")
    x = nf.placeholder("float64", (50,), name="x")
    kept = nf.cond(p, lambda: nf.nn.dropout(x, 0.5), lambda: nf.nn.dropout(x * 3, 0.2))
    (grad,) = nf.gradients(kept, x)
    value, slope = run((kept, grad), {p: decision, x: np.ones(50)})
    np.testing.assert_allclose(value, slope, rtol=1e-15)


def test_nested_loops_keep_their_streams(run: Any) -> None:
    x = nf.placeholder("float64", (3, 4, 20), name="x")
    kept = nf.map(lambda row: nf.map(lambda r: nf.nn.dropout(r, 0.5), row), x)
    (grad,) = nf.gradients(kept, x)
    value, slope = run((kept, grad), {x: np.ones((3, 4, 20))})
    np.testing.assert_array_equal(value, slope)
    assert len({tuple(r) for r in slope.reshape(12, 20)}) == 12


# --- gradients -------------------------------------------------------------------------------------------------------


W = np.random.default_rng(0).normal(size=(3, 3)) * 0.5
V = np.random.default_rng(1).normal(size=3)
ROWS = np.random.default_rng(2).normal(size=(4, 3))


def _power(x: Any) -> Any:
    return nf.while_loop(lambda i, y: i < 4, lambda i, y: (i + 1, y * x + 0.1), (0, x))[1]


def _rnn(w: Any, h: Any, xs: Any) -> Any:
    last, every = nf.scan(lambda h, x: (nf.tanh(w @ h + x), h * x), h, xs)
    return nf.sum(last) + nf.sum(every * every)


def _backwards(w: Any, h: Any, xs: Any) -> Any:
    last, every = nf.scan(lambda h, x: (nf.tanh(w @ h + x), h), h, xs, reverse=True)
    return nf.sum(last * last) + nf.sum(nf.sin(every))


def _invariant(w: Any, h: Any) -> Any:
    """What every iteration computes anew from captured values alone."""
    return nf.sum(nf.scan(lambda c, _: ((w @ nf.matrix_transpose(w)) @ c, None), h, length=3)[0])


def _branches(x: Any) -> Any:
    return nf.sum(nf.map(lambda v: nf.cond(v > 0, lambda: nf.sin(v) * v, lambda: v * v * v), x))


def _two_values(x: Any) -> Any:
    a, b = nf.cond(nf.sum(x) > 100, lambda: (x, x * x), lambda: (nf.exp(x), x))
    return nf.sum(a * b)


def _loop_in_loop(w: Any, h: Any) -> Any:
    def outer(i: Any, h: Any) -> Any:
        inner = nf.while_loop(lambda j, g: j < 2, lambda j, g: (j + 1, nf.tanh(w @ g + h)), (0, h))[1]
        return i + 1, inner * h

    return nf.sum(nf.while_loop(lambda i, h: i < 2, outer, (0, h))[1])


def _loop_in_cond(w: Any, h: Any) -> Any:
    return nf.cond(
        nf.sum(h) < 100,
        lambda: nf.sum(nf.scan(lambda c, x: (nf.tanh(w @ c) * x, None), h, nf.constant(ROWS[:, 0]))[0]),
        lambda: nf.sum(h),
    )


def _passes_through(x: Any) -> Any:
    a, b = nf.while_loop(lambda a, b: nf.sum(a) < 30.0, lambda a, b: (a + b * b, b), (x * x, x))
    return nf.sum(a * b)


CASES: dict[str, tuple[Callable[..., Any], tuple[np.ndarray, ...]]] = {
    "power": (_power, (V,)),
    "rnn": (_rnn, (W, V, ROWS)),
    "backwards": (_backwards, (W, V, ROWS)),
    "invariant": (_invariant, (W, V)),
    "branches": (_branches, (V,)),
    "two values": (_two_values, (V,)),
    "loop in loop": (_loop_in_loop, (W, V)),
    "loop in cond": (_loop_in_cond, (W, V)),
    "passes through": (_passes_through, (V,)),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_orders_1_and_2(name: str) -> None:
    function, arrays = CASES[name]
    check_gradients(function, *arrays, order=2)


@pytest.mark.parametrize("name", CASES)
def test_the_pipeline_computes_what_the_interpreter_does(name: str, run: Any) -> None:
    function, arrays = CASES[name]
    inputs = [nf.placeholder("float64", a.shape, name=f"x{i}") for i, a in enumerate(arrays)]
    y = function(*inputs)
    first = nf.gradients(y, inputs)
    second = nf.gradients(nf.add_n([nf.sum(g * g) for g in first if g is not None]), inputs)
    run([y, first, [g for g in second if g is not None]], dict(zip(inputs, arrays, strict=True)))


def test_a_loop_of_no_iterations_has_the_gradient_of_doing_nothing(run: Any) -> None:
    x = nf.placeholder("float64", (3,), name="x")
    _, y = nf.while_loop(lambda i, y: i < 0, lambda i, y: (i + 1, nf.tanh(y) * x), (0, x))
    (grad,) = nf.gradients(y, x)
    np.testing.assert_array_equal(run(grad, {x: X}), np.ones(3))


def test_the_forward_loop_runs_once(graph: Graph) -> None:
    """Fetching a value and its gradient runs the twin alone, state updates included."""
    w = nf.Variable(0, name="runs")
    x = nf.placeholder("float64", (3,), name="x")

    def body(c: Any, r: Any) -> Any:
        w.assign_add(1)
        return nf.tanh(c + r), None

    y, _ = nf.scan(body, np.float64(0), x)
    (grad,) = nf.gradients(y, x)
    with nf.Session(graph=graph) as session:
        session.run([y, grad], {x: X})
        assert session.run(w) == 3


def test_training_through_a_scan_lowers_the_loss(graph: Graph) -> None:
    x = nf.placeholder("float32", (8, None, 2), name="x")
    y = nf.placeholder("float32", (None,), name="y")

    def cell(h: Any, row: Any) -> Any:
        return nf.layers.dense(nf.concat([h, row], axis=1), 8, activation=nf.tanh, name="cell"), None

    start = nf.zeros_like(nf.concat([x[0]] * 4, axis=1))
    h, _ = nf.scan(cell, start, x, name="rnn")
    loss = nf.mean(nf.square(nf.layers.dense(h, 1, name="out")[:, 0] - y))
    step = nf.optim.Adam(1e-2).minimize(loss)
    rng = np.random.default_rng(0)
    data = rng.normal(size=(8, 32, 2)).astype("float32")
    feeds = {x: data, y: data.sum((0, 2)) / 4}
    with nf.Session(graph=graph) as session:
        losses = [session.run([loss, step], feeds)[0] for _ in range(60)]
    assert losses[-1] < losses[0] / 4


# --- the graph -------------------------------------------------------------------------------------------------------


def _model() -> Any:
    x = nf.placeholder("float64", (3,), name="x")
    return nf.while_loop(
        lambda i, y: i < 3, lambda i, y: (i + 1, nf.cond(nf.sum(y) > 0, lambda: y * x, lambda: y)), (0, x)
    )[1]


def test_round_trip_and_digest(graph: Graph, run: Any) -> None:
    y = _model()
    nf.gradients(y, graph.node("x").outputs[0])
    copy = Graph.from_proto(graph.to_proto().SerializeToString())
    assert copy.digest() == graph.digest()
    with nf.Session(graph=copy) as session:
        found = session.run(copy.nodes[y.node.name].outputs[y.index], {copy.nodes["x"].outputs[0]: X})
    np.testing.assert_array_equal(found, run(y, {graph.node("x").outputs[0]: X}))
    with Graph().as_default() as other:
        x = nf.placeholder("float64", (3,), name="x")
        nf.while_loop(
            lambda i, y: i < 3, lambda i, y: (i + 1, nf.cond(nf.sum(y) > 0, lambda: y * x, lambda: -y)), (0, x)
        )
    with Graph().as_default() as plain:
        _model()
    assert other.digest() != plain.digest()


def test_running_a_cell_again_changes_nothing(graph: Graph) -> None:
    owner = Owner("c1", "In[1]")

    def cell(scale: float) -> Any:
        transaction = begin(graph, owner)
        w = nf.Variable(1.0, name="w", dtype="float64")
        nf.while_loop(lambda v: v < 8.0, lambda v: v * w + scale, [np.float64(1)], name="grow")
        return transaction.commit()

    cell(1.0)
    assert cell(1.0).changed == ()
    assert cell(2.0).changed == ("grow",)


def test_the_listing_shows_bodies(graph: Graph) -> None:
    y = _model()
    table = nf.placement(y)
    assert {"while_loop/body/cond", "while_loop/body/cond/then/multiply"} <= {r.op for r in table}
    with nf.Session(graph=graph) as session:
        prepared = session.prepare([y], {graph.node("x").outputs[0]: TensorSpec((3,), np.dtype("float64"))})
    text = explain_plan(next(iter(prepared.bundles.values())).plans[0])
    assert "body of instruction" in text
    assert "while_loop/body/cond/then/multiply" in text
    (loop,) = [n for n in nf.graph_json(graph)["nodes"] if n["op"] == "loop"]
    assert "less" in [n["op"] for n in loop["bodies"]["condition"]["nodes"]]


def test_a_loop_that_never_ends_meets_its_deadline(graph: Graph) -> None:
    out = nf.while_loop(lambda i: i >= 0, lambda i: i * 0, [0])
    with nf.Session(graph=graph) as session:
        with pytest.raises(DeadlineExceeded):
            session.run(out, deadline_s=0.2)
        assert session.run(nf.constant(1) + 1) == 2


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_replicas_train_through_a_scan(graph: Graph, workers: int) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(24, 5, 2)).astype("float32")
    data = nf.data.from_arrays({"x": rows, "y": rows.sum((1, 2))})
    batch = data.repeat().batch(12).next()

    def cell(h: Any, row: Any) -> Any:
        return nf.layers.dense(nf.concat([h, row], axis=1), 4, activation=nf.tanh, name="cell"), None

    start = nf.zeros_like(nf.concat([batch["x"][:, 0]] * 2, axis=1))
    h, _ = nf.scan(cell, start, nf.permute_dims(batch["x"], (1, 0, 2)), name="rnn")
    loss = nf.mean(nf.square(nf.layers.dense(h, 1, name="out")[:, 0] - batch["y"]))
    step = nf.optim.SGD(0.05).minimize(loss, strategy=nf.train.DataParallel())
    with nf.Session(InProcessCluster(workers, 1), graph) as session:
        losses = [float(session.run([loss, step])[0]) for _ in range(6)]
    np.testing.assert_allclose(losses, LOSSES.setdefault("scan", losses), rtol=1e-5)
    assert losses[-1] < losses[0]


# What the first number of workers gave: the others must give the same.
LOSSES: dict[str, list[float]] = {}


def test_a_body_does_not_leak(graph: Graph) -> None:
    kept: list[Any] = []
    nf.while_loop(lambda i: i < 3, lambda i: kept.append(i * 2) or i + 1, [0])
    with pytest.raises(GraphError, match="another graph"):
        nf.Session(graph=graph).run(kept[0])
    with pytest.raises(GraphError, match="belongs to another graph"):
        nf.while_loop(lambda i: i < 3, lambda i: i + kept[0], [0])


def test_iterators_are_made_outside() -> None:
    dataset = nf.data.from_arrays({"x": np.zeros((4, 2))}).batch(2)
    with pytest.raises(GraphError, match=r"keeps state.*make it before"):
        nf.while_loop(lambda i: i < 3, lambda i: i + nf.astype(nf.sum(dataset.next()["x"]), "int64"), [0])


def test_errors_in_a_body_name_the_op_and_the_line(graph: Graph) -> None:
    x = nf.placeholder("float64", (3,), name="x")
    with pytest.raises(ShapeError, match=r"\(3,\) and \(2,\)"):
        nf.map(lambda r: x + nf.zeros((2,), dtype="float64"), x)
    i = nf.placeholder("int64", (None,), name="i")
    y = nf.map(lambda k: nf.take(x, k), i)
    with nf.Session(graph=graph) as session, pytest.raises(OpError, match=r"map\.1/body/take"):
        session.run(y, {x: X, i: [1, 7]})


def test_check_numerics_looks_into_bodies(graph: Graph) -> None:
    x = nf.placeholder("float64", (3,), name="x")
    y = nf.map(nf.log, x)
    with nf.Session(graph=graph) as session, pytest.raises(OpError, match="map/body/log"):
        session.run(y, {x: X}, check_numerics=True)


# --- trimming --------------------------------------------------------------------------------------------------------


def test_what_nobody_reads_is_not_computed(graph: Graph) -> None:
    """The gradient for one captured value does not bring those of the others, nor that of the rows."""
    w = nf.placeholder("float64", (3, 3), name="w")
    data = nf.placeholder("float64", (5, 3), name="data")
    h = nf.placeholder("float64", (3,), name="h")
    last, _ = nf.scan(lambda c, x: (nf.tanh(w @ c + x), c), h, data)
    (grad,) = nf.gradients(nf.sum(last), w)
    feeds = {w: W, data: np.ones((5, 3)), h: V}

    def loops(passes: str) -> tuple[dict[str, int], Any]:
        with nf.Session(graph=graph, passes=passes) as session:
            value = session.run(grad, feeds)
            prepared = session.prepare([grad], {t: TensorSpec(t.shape, t.dtype) for t in feeds})
        found = {n.name: len(n.outputs) for n in prepared.graph.nodes.values() if n.op == "loop"}
        return found, value

    whole, wanted = loops("-trim")
    trimmed, value = loops("")
    np.testing.assert_array_equal(value, wanted)
    backward = next(n for n in whole if n.endswith("loop.1"))
    assert whole[backward] == 4  # the carry's gradient, the sum for w, iterations, the rows' gradient
    assert trimmed[backward] == 3
    forward = next(n for n in whole if n != backward)
    assert trimmed[forward] == whole[forward] - 1  # without the stacked carries


def test_a_branch_for_its_effect_alone_runs_elsewhere_too(graph: Graph) -> None:
    p = nf.placeholder("bool", (), name="p")
    with nf.device("/job:ps"):
        w = nf.Variable(1.0, name="w")
    with nf.device("/job:worker/task:0"):
        step = nf.cond(p, lambda: nf.group(w.assign_add(1.0)), lambda: None)
    with nf.Session(InProcessCluster(1, 1), graph) as session:
        for decision in (True, False, True):
            session.run(step, {p: decision})
        assert session.run(w) == 3.0


def test_gradients_inside_a_body_for_what_is_around_it(graph: Graph) -> None:
    w = nf.Variable(np.array([2.0, -1.0]), name="w")
    rows = nf.constant(np.eye(2))

    def loss() -> nf.Tensor:
        return nf.sum(nf.square(w * w - 3.0)) + nf.prod(w)

    outside = loss()
    (slope,) = nf.gradients(outside, w)
    by_row = nf.map(lambda v: nf.gradients(nf.sum(w * w * v), w)[0], rows)
    (second,) = nf.gradients(nf.sum(by_row * by_row), w)  # Σ 4 w²
    hessian = np.array([[12 * 4.0 - 12, 1.0], [1.0, 12.0 - 12]])
    found = [
        nf.map(lambda v: nf.hessian_vector_product(loss(), w, v)[0], rows),
        nf.map(lambda v: nf.hessian_vector_product(outside, w, v)[0], rows),
        nf.map(lambda v: nf.gradients(slope, w, v)[0], rows),
        nf.map(lambda v: nf.jvp(slope, w, v)[0], rows),
    ]
    values = Evaluator().run([*found, by_row, second])
    for value in values[:-2]:
        np.testing.assert_allclose(value, hessian)
    np.testing.assert_allclose(values[-2], np.diag([4.0, -2.0]))
    np.testing.assert_allclose(values[-1], [16.0, -8.0])

    def partly(v: nf.Tensor, factor: nf.Tensor) -> nf.Tensor:
        return nf.gradients(nf.sum(w * v * factor), w)[0]

    doubled = w * 2.0
    with pytest.raises(GraphError, match=r"depends on it too; compute that inside"):
        nf.map(lambda v: partly(v, doubled), rows)
    held = nf.map(lambda v: partly(v, nf.stop_gradient(doubled)), rows)
    np.testing.assert_allclose(Evaluator().run(held), np.diag([4.0, -2.0]))


def test_the_gradient_of_no_steps_has_the_shape_of_what_was_gone_over(run: Any) -> None:
    """What is stacked has no rows to take unknown dimensions from, but its gradient has: those of xs."""
    x = nf.placeholder("float64", (None, None, 3), name="x")
    anything = nf.placeholder("float64", None, name="anything")
    last, rows = nf.scan(lambda c, row: (c + nf.sum(row), row * c), nf.constant(np.float64(1)), x)
    doubled = nf.map(lambda row: nf.sum(row * row), x)  # a second gradient for x, to be added to the first
    turned = nf.map(lambda row: row @ nf.ones((3, 3), dtype="float64"), x)
    squared = nf.map(lambda row: row * row, anything)
    sums = [last, *map(nf.sum, (rows, doubled, turned))]
    grads = [*nf.gradients(sums, [x]), *nf.gradients(nf.sum(squared), [anything])]
    found = run(grads, {x: np.zeros((0, 2, 3)), anything: np.zeros((0, 4, 1))})
    assert [g.shape for g in found] == [(0, 2, 3), (0, 4, 1)]
    found = run(grads, {x: np.ones((1, 2, 3)), anything: np.full((2, 2), 3.0)})
    np.testing.assert_array_equal(found[1], np.full((2, 2), 6.0))


def test_long_bodies_are_differentiated_in_linear_time() -> None:
    """What is before an op of the body is looked for once for all of them, not once for each."""
    x = nf.placeholder("float64", (), name="x")

    def body(i: Any, v: Any) -> Any:
        for _ in range(400):
            v = nf.sin(v) * 1.01
        return i + 1, v

    _, y = nf.while_loop(lambda i, v: i < 2, body, (0, x))
    visited = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal visited
        visited += event == "call" and frame.f_code.co_name == "ancestors"

    sys.setprofile(count)
    try:
        nf.gradients(y, [x])
    finally:
        sys.setprofile(None)
    assert visited < 100
