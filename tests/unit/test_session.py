"""`nf.run` in one process: fetches, feeds, variables, state order, errors, the cache."""

from __future__ import annotations

import collections
import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nbflow as nf
from nbflow import errors
from nbflow.graph import Graph
from nbflow.inprocess import InProcessCluster
from nbflow.session import CACHED, Session


@pytest.fixture(params=[(0, 0), (2, 1)], ids=["one task", "2 workers and a ps"])
def session(request: pytest.FixtureRequest) -> Iterator[Session]:
    workers, ps = request.param
    cluster = InProcessCluster(workers, ps)
    with Graph().as_default() as graph, Session(cluster, graph) as made:
        yield made
    cluster.close()


def test_fetches_of_any_nesting(session: Session) -> None:
    pair = collections.namedtuple("pair", "a b")
    x = nf.constant([1.0, 2.0])
    got = session.run({"x": x, "both": [x + 1.0, (x * 2.0,)], "named": pair(x, x)})
    np.testing.assert_array_equal(got["x"], [1, 2])
    np.testing.assert_array_equal(got["both"][1][0], [2, 4])
    assert got["named"]._fields == ("a", "b")
    assert session.run([]) == []
    assert got["x"].dtype == np.float32


def test_any_tensor_can_be_fed(session: Session) -> None:
    x = nf.placeholder("float32", (None, 2), name="x")
    y = x * 2.0
    z = y + 1.0
    np.testing.assert_array_equal(session.run(z, {x: [[1, 2]]}), [[3, 5]])
    np.testing.assert_array_equal(session.run(z, {y: [[10, 20]]}), [[11, 21]])
    np.testing.assert_array_equal(session.run([x, y], {x: np.ones((3, 2))})[1], np.full((3, 2), 2))
    assert session.run(z, {x: np.zeros((0, 2), np.float32)}).shape == (0, 2)


@pytest.mark.parametrize(
    ("dtype", "value", "error"),
    [
        ("int64", 2.7, "cannot hold 2.7"),
        ("int64", float("nan"), "cannot hold nan"),
        ("uint8", [1, 300], "cannot hold"),
        ("uint8", -1, "cannot hold -1"),
        ("float32", 1j, "was fed complex128"),
        ("int64", [[1, 2], [3]], "no array"),
    ],
)
def test_python_numbers_are_never_changed_to_fit(session: Session, dtype: str, value: Any, error: str) -> None:
    x = nf.placeholder(dtype, None)
    with pytest.raises((errors.DTypeError, errors.ShapeError), match=error):
        session.run(x, {x: value})


@pytest.mark.parametrize(
    ("dtype", "value"), [("int64", []), ("int32", 3.0), ("uint64", 2**64 - 1), ("bfloat16", [1.5])]
)
def test_python_numbers_take_the_dtype_that_holds_them(session: Session, dtype: str, value: Any) -> None:
    x = nf.placeholder(dtype, None)
    found = session.run(x, {x: value})
    assert found.dtype == x.dtype
    np.testing.assert_array_equal(found.astype(object), np.asarray(value, dtype=object))


def test_bad_feeds_and_fetches_are_clear_errors(session: Session) -> None:
    x = nf.placeholder("float32", (None, 2), name="x")
    y = x + 1.0
    with pytest.raises(errors.GraphError, match="feed a value for 'x'"):
        session.run(y)
    with pytest.raises(errors.ShapeError, match=r"x has shape \(\?, 2\), but was fed \(3,\)"):
        session.run(y, {x: [1, 2, 3]})
    with pytest.raises(errors.DTypeError, match="was fed complex"):
        session.run(y, {x: np.zeros((1, 2), complex)})
    with pytest.raises(errors.DTypeError):
        session.run(y, {x: [["a", "b"]]})
    with pytest.raises(errors.GraphError, match="cannot fetch 3"):
        session.run([y, 3])
    with Graph().as_default():
        foreign = nf.constant(1.0)
    with pytest.raises(errors.GraphError, match="another graph"):
        session.run(foreign)


def test_variables_initialise_themselves_and_keep_their_values(session: Session) -> None:
    w = nf.Variable([1.0, 2.0], name="w")
    v = nf.Variable(w.read() * 10.0, name="v")  # depends on another variable
    np.testing.assert_array_equal(session.run(v), [10, 20])
    np.testing.assert_array_equal(session.run(w.assign_add([1.0, 1.0])), [2, 3])
    np.testing.assert_array_equal(session.run(w), [2, 3])
    np.testing.assert_array_equal(session.run(v), [10, 20])


def test_a_fetched_value_never_changes_later(session: Session) -> None:
    w = nf.Variable([1.0, 2.0], name="w")
    add = w.assign_add([1.0, 1.0])
    read = session.run(w.to_tensor())
    added = session.run(add)
    view = session.run(nf.reshape(w.to_tensor(), (2, 1)))
    session.run(add)
    np.testing.assert_array_equal(read, [1, 2])
    np.testing.assert_array_equal(added, [2, 3])
    np.testing.assert_array_equal(view, [[2], [3]])
    constant = nf.constant([5.0])
    got = session.run(constant)
    got += 1
    np.testing.assert_array_equal(session.run(constant), [5])


def test_a_read_sees_the_value_from_before_the_update_in_the_same_step(session: Session) -> None:
    w = nf.Variable([1.0, 2.0], name="w")
    before = nf.reshape(w.to_tensor(), (1, 2)) * 1.0
    update = w.assign_add([1.0, 1.0])
    for number in range(5):
        got, _ = session.run([before, update])
        np.testing.assert_array_equal(got, [[1 + number, 2 + number]])


def test_a_read_that_nothing_orders_comes_before_the_update(session: Session) -> None:
    w = nf.Variable([1.0], name="w")
    update = w.assign_add([1.0])
    late = w.read()  # made after the update, but nothing says that it runs after it
    for number in range(3):
        got, used, _ = session.run([late, late * 1.0, update])
        assert got == used == 1 + number
        assert session.run([w.read(), update])[0] == 2 + number
        session.run(w.assign_sub([1.0]))


def test_a_read_after_the_update_sees_the_new_value(session: Session) -> None:
    w = nf.Variable([1.0], name="w")
    old = w.to_tensor() * 1.0
    update = w.assign_add([1.0])
    with nf.control_dependencies([update]):
        new = w.read()
    # What reads the old value comes after the update, so the old value must be copied to survive it.
    both = nf.concat([old, new, nf.identity(w.to_tensor())], axis=0)
    np.testing.assert_array_equal(session.run(both), [1, 2, 1])


def test_control_edges_cross_devices(session: Session) -> None:
    w = nf.Variable(0.0, name="w")
    names = [str(i.spec) for i in session.cluster.devices()]
    with nf.device(names[-1]):
        update = w.assign_add(1.0)
    with nf.device(names[0]), nf.control_dependencies([update]):
        marker = nf.constant(7.0) + 1.0
    assert session.run(marker) == 8
    assert session.run(w) == 1


def test_an_op_that_fails_says_where(session: Session) -> None:
    x = nf.placeholder("float32", (None, None), name="x")
    y = nf.take(x, nf.constant([7]), axis=0, name="bad")
    with pytest.raises(errors.OpError, match=r"take 'bad' on .*cpu:0 failed") as caught:
        session.run(y, {x: np.zeros((2, 2))})
    assert caught.value.op == "bad"
    assert "line" in caught.value.where
    z = nf.reshape(x, (7, -1), name="odd")
    with pytest.raises(errors.ShapeError, match="'odd' with what was fed"):
        session.run(z, {x: np.zeros((2, 2))})
    np.testing.assert_array_equal(session.run(x + 1.0, {x: [[1]]}), [[2]])  # the session lives on


def test_a_trace_tells_ops_devices_and_bytes(session: Session, tmp_path: Path) -> None:
    x = nf.constant(np.ones((10, 10), np.float32))
    value, trace = session.run(nf.matmul(x, x, name="product"), trace=True)
    assert value.shape == (10, 10)
    product = next(o for o in trace.ops if o.node == "product")
    assert product.nbytes == 400
    assert product.duration_s > 0
    trace.save(tmp_path / "t.json")
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert any(e["name"] == "product" and e["ph"] == "X" for e in events)


def test_preparing_is_cached_until_something_changes(session: Session) -> None:
    x = nf.placeholder("float32", (None,), name="x")
    y = x + 1.0
    session.run(y, {x: [1.0]})
    first = session.last
    session.run(y, {x: [5.0]})
    assert session.last is first
    session.run(y, {x: [5.0, 6.0]})
    assert session.last is not first
    nf.constant(1.0)  # more nodes do not touch what is prepared
    session.run(y, {x: [1.0]})
    assert session.last is first


def test_the_first_op_that_makes_a_nan_is_named(session: Session) -> None:
    x = nf.placeholder("float32", (3,), name="x")
    low = nf.subtract(x, 2.0, name="low")
    root = nf.sqrt(low, name="root")
    total = nf.sum(nf.tanh(root), name="total")
    assert np.isnan(session.run(total, {x: [1.0, 2.0, 3.0]}))
    with pytest.raises(errors.OpError, match=r"sqrt 'root' .* made 1 NaN among 3 values from finite .* in \[-1, 1\]"):
        session.run(total, {x: [1.0, 2.0, 3.0]}, check_numerics=True)
    assert session.run(total, {x: [2.0, 2.0, 2.0]}, check_numerics=True) == 0
    # What was fed is not an op's fault; what a variable holds is told like any other input.
    assert np.isnan(session.run(total, {x: [np.nan, 2.0, 3.0]}, check_numerics=True))
    w = nf.Variable([0.0], name="w")
    with pytest.raises(errors.OpError, match=r"log 'broken' .* made 1 Inf .*in \[0, 0\]"):
        session.run(nf.log(w, name="broken"), check_numerics=True)


def test_plans_that_nobody_runs_again_are_freed(session: Session) -> None:
    x = nf.constant([1.0])
    for number in range(CACHED + 50):
        session.run(x + float(number))
    gc.collect()
    session.run(x)  # frees on the way
    for transport in session.transports.values():
        assert len(transport._programs) <= CACHED + 2  # type: ignore[attr-defined]  # in-process: an Executor


def test_nothing_is_left_in_flight(session: Session) -> None:
    x = nf.constant(np.ones((100, 100), np.float32))
    w = nf.Variable(x, name="w")
    for _ in range(3):
        session.run(w.assign_add(x))
    for transport in session.transports.values():
        assert transport.rendezvous.in_flight() == 0  # type: ignore[attr-defined]  # in-process: an Executor
        assert not transport._running  # type: ignore[attr-defined]


def test_a_closed_session_says_so() -> None:
    with Graph().as_default() as graph:
        x = nf.constant(1.0)
        session = Session(None, graph)
        assert session.run(x) == 1
        session.close()
        with pytest.raises(errors.GraphError, match="closed"):
            session.run(x)


def test_a_step_past_its_deadline_is_an_error_and_the_session_lives_on(session: Session) -> None:
    x = nf.constant(np.ones((50, 50), np.float32))
    y = x
    for _ in range(200):
        y = nf.matmul(y, x)
    with pytest.raises((errors.DeadlineExceeded, errors.Cancelled)):
        session.run(y, deadline_s=1e-9)
    assert session.run(nf.constant(1.0)) == 1


def test_random_ops_draw_anew_each_step_and_the_same_again_in_a_new_session() -> None:
    draws: list[Any] = []
    for _ in range(2):
        with Graph().as_default() as graph, Session(None, graph) as session:
            r = nf.random.uniform((4,), name="r")
            draws.append([session.run(r) for _ in range(2)])
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0][0], draws[0][1])


def test_values_are_carried_to_where_the_next_run_wants_them() -> None:
    """A value is read, freed where it was, and set before it is needed; nothing is initialised again."""
    cluster = InProcessCluster(3, 0)
    with Graph().as_default() as graph, Session(cluster, graph) as session:
        w = nf.Variable(nf.random.normal((4,)), name="w")
        other = nf.Variable(1.0, name="other")
        session.run([w.assign_add(np.ones(4, np.float32)), other])
        before = session.run(w)
        home = session.homes()["w:0"]
        session.carry(["w", "nothing", "w"])
        assert "w:0" not in session.homes()
        assert all("w:0" not in transport.state.keys() for transport in session.transports.values())
        assert session.names_of(["w:0", "other:0"], without_value=True) == []
        there = next(i.spec for i in cluster.devices() if i.spec.task_name != home.task_name)
        session._held.homes["w:0"] = there
        np.testing.assert_array_equal(session.run(w), before)
        assert session.homes()["w:0"] == there
        session.carry(["other"])
        session.run(w)  # which does not need it
        assert session.run(other + 1.0) == 2.0
    cluster.close()
