"""Queues: order, bounds, closing, waiting, from threads and over workers in this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

import nbflow as nf
from nbflow import errors
from nbflow.backends.numpy.queues import QueueState
from nbflow.errors import Cancelled, DataError, DeadlineExceeded, DTypeError, EndOfData, ShapeError
from nbflow.graph import Graph
from nbflow.inprocess import InProcessCluster
from nbflow.session import Session

# For what must happen soon, on a slow machine too.
PATIENCE_S = 20


@pytest.fixture
def session() -> Iterator[Session]:
    with Graph().as_default() as graph, Session(graph=graph) as made:
        yield made


def beside(function: Callable[[], Any]) -> Future[Any]:
    """`function` in a thread of its own."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except Exception as error:  # noqa: BLE001  # the test looks at it
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


class Waiting:
    """A `check` that says when somebody waits, and ends the wait when told to."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.error: Exception | None = None

    def __call__(self) -> None:
        self.began.set()
        if self.error is not None:
            raise self.error


def put(state: QueueState, *values: int, check: Callable[[], None] = lambda: None) -> None:
    state.put([(np.array(v),) for v in values], check)


def take(state: QueueState, n: int = 1, check: Callable[[], None] = lambda: None, **more: bool) -> list[int]:
    return [int(e[0]) for e in state.take(n, check, **more)]


# --- the queue itself ------------------------------------------------------------------------------------------------


def test_first_in_first_out() -> None:
    state = QueueState("q", 4, False, 0, "")
    put(state, 1, 2, 3)
    assert (take(state), take(state, 2), len(state)) == ([1], [2, 3], 0)


def test_a_full_queue_holds_the_producer_back() -> None:
    state, waiting = QueueState("q", 2, False, 0, ""), Waiting()
    producer = beside(lambda: put(state, 1, 2, 3, check=waiting))
    assert waiting.began.wait(PATIENCE_S)
    assert len(state) == 2
    assert not producer.done()
    assert take(state) == [1]
    producer.result(PATIENCE_S)
    assert take(state, 2) == [2, 3]


def test_a_consumer_waits_for_as_many_as_it_wants() -> None:
    state, waiting = QueueState("q", 9, False, 0, ""), Waiting()
    consumer = beside(lambda: take(state, 3, waiting))
    assert waiting.began.wait(PATIENCE_S)
    put(state, 1, 2)
    assert len(state) == 2
    put(state, 3)
    assert consumer.result(PATIENCE_S) == [1, 2, 3]


def test_closing_lets_out_what_is_in() -> None:
    state = QueueState("q", 9, False, 0, "")
    put(state, 1, 2, 3)
    state.end(cancel_pending=False)
    with pytest.raises(DataError, match="queue 'q' is closed; nothing more goes in"):
        put(state, 4)
    with pytest.raises(EndOfData, match="closed and has 3 elements, not 4"):
        take(state, 4)
    assert take(state, 2) == [1, 2]
    assert take(state, 2, fewer=True) == [3]
    for fewer in (False, True):
        with pytest.raises(EndOfData, match="has 0 elements"):
            take(state, fewer=fewer)


def test_closing_wakes_a_consumer() -> None:
    state, waiting = QueueState("q", 9, False, 0, ""), Waiting()
    consumer = beside(lambda: take(state, 1, waiting))
    assert waiting.began.wait(PATIENCE_S)
    state.end(cancel_pending=False)
    with pytest.raises(EndOfData):
        consumer.result(PATIENCE_S)


@pytest.mark.parametrize("cancel", [False, True])
def test_closing_lets_waiting_producers_in_or_turns_them_away(cancel: bool) -> None:
    state, waiting = QueueState("q", 1, False, 0, ""), Waiting()
    put(state, 1)
    producer = beside(lambda: put(state, 2, check=waiting))
    assert waiting.began.wait(PATIENCE_S)
    state.end(cancel_pending=cancel)
    if cancel:
        with pytest.raises(DataError, match="closed while this enqueue waited"):
            producer.result(PATIENCE_S)
        assert take(state) == [1]
    else:
        assert take(state) == [1]
        producer.result(PATIENCE_S)
        assert take(state) == [2]


@pytest.mark.parametrize("side", ["put", "take"])
def test_a_wait_ends_with_its_step(side: str) -> None:
    state, waiting = QueueState("q", 1, False, 0, ""), Waiting()
    if side == "put":
        put(state, 1)
    waiter = beside(lambda: put(state, 2, check=waiting) if side == "put" else take(state, 1, waiting))
    assert waiting.began.wait(PATIENCE_S)
    waiting.error = DeadlineExceeded("over")
    with pytest.raises(DeadlineExceeded):
        waiter.result(PATIENCE_S)
    assert len(state) == (side == "put")


def test_random_order_keeps_a_minimum_and_is_repeatable() -> None:
    def order() -> list[int]:
        state = QueueState("q", 20, True, 5, "7")
        put(state, *range(15))
        found = [take(state)[0] for _ in range(10)]
        with pytest.raises(DeadlineExceeded):
            take(state, 1, over)
        state.end(cancel_pending=False)
        return found + take(state, 5)

    def over() -> None:
        raise DeadlineExceeded("over")

    found = order()
    assert sorted(found) == list(range(15))
    assert found != sorted(found)
    assert found == order()


# --- as ops ----------------------------------------------------------------------------------------------------------


def test_structures(session: Session) -> None:
    spec = nf.TensorSpec((2,), np.dtype(np.float32))
    named = nf.queue(4, {"x": spec, "y": ("int64", ())}, name="named")
    session.run(named.enqueue({"y": 3, "x": [1, 2]}))
    found = session.run(named.dequeue())
    assert found["x"].tolist() == [1, 2]
    assert int(found["y"]) == 3
    pair = nf.queue(4, (spec, ("int64", ())))
    session.run(pair.enqueue_many((np.ones((3, 2)), [1, 2, 3])))
    first, second = session.run(pair.dequeue_many(3))
    assert (first.shape, second.tolist()) == ((3, 2), [1, 2, 3])
    alone = nf.queue(4, ("int64", ()))
    session.run(alone.enqueue(5))
    assert int(session.run(alone.size())) == 1
    assert int(session.run(alone.dequeue())) == 5
    assert "<Queue named of 4, x: float32[2], y: int64[], from" in repr(named)
    assert alone.dequeue_many(2).shape == (2,)
    assert alone.dequeue_up_to(2).shape == (None,)


def test_what_is_enqueued_is_a_copy(session: Session) -> None:
    v = nf.Variable([1.0, 2.0], name="v")
    q = nf.queue(4, ("float32", (2,)))
    session.run(q.enqueue(v))
    session.run(v.assign([5.0, 5.0]))
    assert session.run(q.dequeue()).tolist() == [1, 2]


def test_padding(session: Session) -> None:
    q = nf.queue(4, ("int64", (None,)), padding=True)
    for row in ([1], [1, 2, 3], []):
        session.run(q.enqueue(np.array(row, np.int64)))
    assert session.run(q.dequeue_many(3)).tolist() == [[1, 0, 0], [1, 2, 3], [0, 0, 0]]
    plain = nf.queue(4, ("int64", (None,)))
    session.run(plain.enqueue(np.zeros(1, np.int64)))
    session.run(plain.enqueue(np.zeros(2, np.int64)))
    with pytest.raises(DataError, match="differ in shape"):
        session.run(plain.dequeue_many(2))


def test_closing_as_ops(session: Session) -> None:
    q = nf.queue(4, ("int64", ()), name="q")
    session.run(q.enqueue_many([1, 2]))
    assert not session.run(q.is_closed())
    session.run(q.close())
    assert session.run(q.is_closed())
    with pytest.raises(DataError, match="queue 'q' is closed"):
        session.run(q.enqueue(3))
    assert session.run(q.dequeue_up_to(4)).tolist() == [1, 2]
    with pytest.raises(EndOfData, match="made by"):
        session.run(q.dequeue())


def test_two_threads_of_one_session(session: Session) -> None:
    """A dequeue that waits does not stand in the way of the enqueue that it waits for, nor of other steps."""
    q = nf.queue(2, ("int64", ()))
    value = nf.placeholder("int64", ())
    give, get, other = q.enqueue(value), q.dequeue(), nf.constant(3) + 4
    consumer = beside(lambda: [int(session.run(get)) for _ in range(50)])
    assert int(session.run(other)) == 7
    producer = beside(lambda: [session.run(give, {value: n}) for n in range(50)] and None)
    assert consumer.result(PATIENCE_S) == list(range(50))
    producer.result(PATIENCE_S)
    assert int(session.run(q.size())) == 0


def test_a_producer_is_held_back_until_somebody_takes(session: Session) -> None:
    q = nf.queue(2, ("int64", ()))
    many = q.enqueue_many(np.arange(5))
    producer = beside(lambda: session.run(many))
    assert [int(session.run(q.dequeue())) for _ in range(5)] == list(range(5))
    producer.result(PATIENCE_S)


def test_a_deadline_ends_the_wait_and_the_queue_lives_on(session: Session) -> None:
    q = nf.queue(2, ("int64", ()))
    with pytest.raises(DeadlineExceeded):
        session.run(q.dequeue(), deadline_s=0.1)
    session.run(q.enqueue(1))
    assert int(session.run(q.dequeue())) == 1


def test_closing_the_session_ends_the_wait() -> None:
    with Graph().as_default() as graph:
        session = Session(graph=graph)
        q = nf.queue(2, ("int64", ()))
        get = q.dequeue()
        session.run(q.size())
        consumer = beside(lambda: session.run(get))
        pair = beside(lambda: session.run(get))
        session.close()
        for waiter in (consumer, pair):
            with pytest.raises((Cancelled, errors.NbflowError)):
                waiter.result(PATIENCE_S)


def test_within_one_step(session: Session) -> None:
    q = nf.queue(2, ("float32", ()))
    put_in = q.enqueue(nf.constant(2.0))
    with nf.control_dependencies([put_in]):
        out = q.dequeue()
    assert float(session.run(out * 3)) == 6


def test_a_body_that_waits_does_not_stand_in_the_way(session: Session) -> None:
    q = nf.queue(2, ("float32", ()))
    get = nf.while_loop(lambda n, s: n < 3, lambda n, s: (n + 1, s + q.dequeue()), (nf.constant(0), nf.constant(0.0)))
    consumer = beside(lambda: float(session.run(get)[1]))
    for value in (1.0, 2.0, 4.0):
        session.run(q.enqueue(value))
    assert consumer.result(PATIENCE_S) == 7


def test_a_queue_stays_where_it_is() -> None:
    """Plans made one after the other agree on the device, whatever else is in them."""
    cluster = InProcessCluster(2, 1)
    with Graph().as_default() as graph, Session(cluster, graph) as session:
        q = nf.queue(8, ("float32", (2,)), name="q")
        with nf.device("/job:worker/task:1"):
            here = nf.constant([1.0, 2.0]) * 2.0
        session.run(q.enqueue(here))
        with nf.device("/job:worker/task:0"):
            there = q.dequeue() + 1.0
        assert session.run(there).tolist() == [3, 5]
    cluster.close()


def test_replicas_share_a_queue() -> None:
    cluster = InProcessCluster(2, 1)
    nf.set_cluster(cluster)
    with Graph().as_default():
        q = nf.queue(40, {"x": ("float32", (4, 3))})
        loss = nf.mean(nf.layers.dense(q.dequeue()["x"], 1, name="d") ** 2)
        step = nf.optim.SGD(0.1).minimize(loss, strategy=nf.train.DataParallel())
        feeding = nf.feed(q, nf.data.from_arrays(np.ones((20, 4, 3), np.float32)))
        run = nf.train.run(step, steps=10, metrics={"loss": loss}, every=5, show=False)
        feeding.wait(PATIENCE_S)
        assert run.status == "done"
        assert int(nf.run(q.size())) == 0
        nf.set_cluster(None)
    cluster.close()


# --- feeding ---------------------------------------------------------------------------------------------------------


def test_a_dataset_feeds_a_queue_to_its_end(session: Session) -> None:
    dataset = nf.data.from_arrays({"x": np.arange(7), "y": np.arange(7) * 2}).batch(2)
    q = nf.queue(2, dataset.element_spec)
    feeding = nf.feed(q, dataset, session)
    get = q.dequeue()
    assert [session.run(get)["y"].tolist() for _ in range(4)] == [[0, 2], [4, 6], [8, 10], [12]]
    with pytest.raises(EndOfData):
        session.run(get)
    feeding.wait(PATIENCE_S)
    assert feeding.count == 4
    assert "over" in repr(feeding)


def test_feeding_is_stopped(session: Session) -> None:
    q = nf.queue(3, ("int64", ()))
    feeding = nf.feed(q, nf.data.from_arrays(np.arange(5)).repeat(), session)
    assert int(session.run(q.dequeue())) == 0
    feeding.stop()
    assert session.run(q.is_closed())
    feeding.wait(PATIENCE_S)
    assert feeding.count < 10


def test_feeding_reports_its_error(session: Session) -> None:
    q = nf.queue(3, ("int64", (None, None)))
    ragged = nf.data.from_arrays(np.arange(6)).map(lambda e: {"x": nf.nonzero(nf.arange(3) < e["x"])[0]})
    feeding = nf.feed(q, ragged.batch(2), session)
    with pytest.raises(EndOfData):
        session.run(q.dequeue())
    with pytest.raises(DataError, match="differ in shape"):
        feeding.wait(PATIENCE_S)
    with pytest.raises(DataError, match="make the queue with"):
        nf.feed(q, nf.data.from_arrays({"a": np.arange(3), "b": np.arange(3)}), session)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_what_is_refused() -> None:
    with Graph().as_default():
        q = nf.queue(4, {"x": ("float32", (2,))}, name="q")
        for make, kind, text in (
            (lambda: nf.queue(0, ("int64", ())), DataError, "at least 1 element"),
            (lambda: nf.queue(4, ("int64", ()), shuffle=True, min_after_dequeue=4), DataError, "fewer than it holds"),
            (lambda: nf.queue(4, ("int64", ()), min_after_dequeue=1), DataError, "nothing to choose from"),
            (lambda: nf.queue(4, ("int64", None)), DataError, "known rank"),
            (lambda: nf.queue(4, {}), DataError, "known rank"),
            (lambda: nf.queue(4, "int64"), DataError, r"\(dtype, shape\)"),
            (lambda: nf.queue(4, (("int64", ()), 3)), DataError, "a component of a queue"),
            (lambda: q.enqueue({"y": 1}), DataError, r"a dict of \['x'\], not \['y'\]"),
            (lambda: q.enqueue(1), DataError, r"a dict of \['x'\], not int"),
            (lambda: q.enqueue({"x": np.zeros(3, np.float32)}), ShapeError, r"\(2,\), not \(3,\)"),
            (lambda: q.enqueue({"x": nf.constant([1, 2])}), DTypeError, "int64"),
            (lambda: q.dequeue_many(5), DataError, "cannot give 5 elements at once: it holds 4"),
            (lambda: nf.queue(4, (("int64", ()),)).enqueue((1, 2)), DataError, "a tuple of 1"),
        ):
            with pytest.raises(kind, match=text):
                make()
