"""What a worker remembers of runs: everything in order, from any number on, in bounded memory."""

from __future__ import annotations

import itertools

import pytest

from nbflow.errors import Rejected
from nbflow.events import Metric, RunState
from nbflow.runs import About, Part, RunBook, Series, merge
from nbflow.transport import Loop


def about(*loops: str) -> str:
    parts = tuple(Part(n, "/job:worker/task:0", 1, 100, 1, 1, True, 0, "", ("/job:worker/task:0",)) for n in loops)
    return About("mnist", 100 * len(loops), ("loss",), parts, 5.0).text()


def loop(name: str = "run-0", run: str = "run") -> Loop:
    return Loop(name, run, {"/job:worker/task:0": "b"}, {}, (), 1, 100, 1, about=about(name))


def state(status: str, step: int, *, loop: str = "run-0", run: str = "run", detail: str = "") -> RunState:
    return RunState(run, status, step, 100, float(step), detail, loop)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 10, 17, 100, 1000])
def test_a_series_is_whole_up_to_its_limit_and_then_thinned_evenly(count: int) -> None:
    series = Series(limit=8)
    for n in range(count):
        series.add(n + 1, n, n / 2, 0.0)
    steps = [step for _, step, _, _ in series.after(0)]
    assert len(series) == len(steps) <= 9
    assert steps[0] == 0
    assert steps[-1] == count - 1
    if count <= 8:
        assert steps == list(range(count))
    gaps = {b - a for a, b in itertools.pairwise(steps[:-1])}
    assert len(gaps) <= 1
    assert [value for _, _, value, _ in series.after(0)] == [s / 2 for s in steps]


def test_reading_goes_on_where_it_was() -> None:
    book = RunBook()
    book.begin(loop())
    book.note(state("running", 0))
    for n in range(1, 6):
        book.note(Metric("run", "loss", n, float(n), 0.0))
    first = book.read("run")
    assert [e.step for e in first.events] == [0, 1, 2, 3, 4, 5]
    assert not book.read("run", first.next).events
    book.note(state("done", 5))
    assert book.read("run", first.next).events == (state("done", 5),)


def test_progress_is_not_a_change_and_takes_no_room() -> None:
    book = RunBook()
    book.begin(loop())
    for n in range(5000):
        book.note(state("running", n))
    assert [e.step for e in book.read("run").events] == [0, 4999]


def test_runs_that_ended_long_ago_are_forgotten_and_running_ones_are_not() -> None:
    book = RunBook(kept_ended=2)
    book.begin(loop("going-0", "going"))
    for n in range(5):
        book.begin(loop(f"{n}-0", str(n)))
        book.note(state("done", 1, loop=f"{n}-0", run=str(n)))
    book.begin(loop("last-0", "last"))
    assert [e.run for e in book.entries("s", "t")] == ["going", "3", "4", "last"]
    with pytest.raises(Rejected, match="known: going"):
        book.read("0")


@pytest.mark.parametrize(
    ("states", "status"),
    [
        ([], "starting"),
        (["running", "running"], "running"),
        (["done", "running"], "running"),
        (["paused", "paused"], "paused"),
        (["done", "done"], "done"),
        (["done", "stopped"], "stopped"),
        (["failed", "running"], "failed"),
    ],
)
def test_the_list_joins_what_the_leaders_know(states: list[str], status: str) -> None:
    entries = []
    for number in range(2):
        book, name = RunBook(), f"run-{number}"
        book.begin(Loop(name, "run", {"t": "b"}, {}, (), 1, 100, 1, about=about("run-0", "run-1")))
        if states:
            book.note(state(states[number], 10, loop=name))
        entries += book.entries("session", f"/job:worker/task:{number}")
    (found,) = merge(entries)
    assert (found.name, found.status, found.steps) == ("mnist", status, 200)
    assert found.step == (20 if states else 0)
    assert found.workers == ("/job:worker/task:0", "/job:worker/task:1")


def test_what_cannot_be_read_is_said() -> None:
    with pytest.raises(Rejected, match="does not know"):
        About.read('{"parts": 3}')
    assert About.read(about("a")).parts[0].tasks == ("/job:worker/task:0",)
