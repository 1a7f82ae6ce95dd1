"""Tensors in flight: whoever comes first waits for the other; what comes too late is dropped."""

from __future__ import annotations

from queue import SimpleQueue

import pytest

from nbflow.errors import Cancelled
from nbflow.rendezvous import REMEMBERED, Arrival, Rendezvous


@pytest.fixture
def rendezvous() -> Rendezvous:
    return Rendezvous()


def drain(queue: SimpleQueue[Arrival]) -> list[Arrival]:
    return [queue.get_nowait() for _ in range(queue.qsize())]


def test_a_tensor_may_come_before_or_after_it_is_wanted(rendezvous: Rendezvous) -> None:
    queue: SimpleQueue[Arrival] = SimpleQueue()
    rendezvous.deliver("s", "early", 1)
    rendezvous.subscribe("s", ["early", "late"], queue)
    assert drain(queue) == [("early", 1, None)]
    rendezvous.deliver("s", "late", 2)
    assert drain(queue) == [("late", 2, None)]
    assert rendezvous.in_flight() == 0


def test_steps_do_not_see_each_other(rendezvous: Rendezvous) -> None:
    queue: SimpleQueue[Arrival] = SimpleQueue()
    rendezvous.subscribe("a", ["k"], queue)
    rendezvous.deliver("b", "k", 1)
    assert drain(queue) == []
    assert rendezvous.in_flight() == 1


def test_an_abort_reaches_those_who_wait_and_those_who_come_later(rendezvous: Rendezvous) -> None:
    now: SimpleQueue[Arrival] = SimpleQueue()
    later: SimpleQueue[Arrival] = SimpleQueue()
    rendezvous.subscribe("s", ["k", "l"], now)
    error = Cancelled("stop")
    rendezvous.abort("s", error)
    rendezvous.subscribe("s", ["k"], later)
    assert drain(now) == [("", error, None)]
    assert drain(later) == [("", error, None)]


def test_what_arrives_after_the_end_is_dropped(rendezvous: Rendezvous) -> None:
    rendezvous.deliver("s", "k", 1)
    rendezvous.end("s")
    rendezvous.deliver("s", "k", 2)
    rendezvous.abort("s", Cancelled("late"))
    assert rendezvous.in_flight() == 0


def test_ended_steps_are_forgotten_one_day(rendezvous: Rendezvous) -> None:
    for number in range(REMEMBERED + 10):
        rendezvous.end(str(number))
    assert len(rendezvous._ended) == REMEMBERED
