"""Stages beyond the basics: padding, filters, functions of elements, caches, generators, several datasets at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nbflow as nf
from nbflow import data
from nbflow.data import build as building
from nbflow.data import iterator as iterating
from nbflow.data.build import Environment
from nbflow.data.iterator import DataIterator
from nbflow.errors import DataError, DeadlineExceeded, EndOfData, OpError
from nbflow.graph import Graph
from nbflow.session import Session
from tests.unit.data_checks import check_resumes, drain, elements


def numbers(n: int, first: int = 0) -> data.Dataset:
    return data.from_arrays({"x": np.arange(first, first + n)})


def xs(dataset: data.Dataset) -> list[Any]:
    return [e["x"] for e in elements(dataset)]


def specs(dataset: data.Dataset) -> dict[str, str]:
    return {name: str(spec) for name, spec in dataset.element_spec.items()}


def ragged() -> data.Dataset:
    def give() -> Iterator[dict[str, Any]]:
        for n in (2, 0, 3, 1):
            yield {"x": np.arange(n), "n": n}

    return data.from_generator(give, {"x": ("int64", (None,)), "n": ("int64", ())})


# --- what comes out --------------------------------------------------------------------------------------------------


def test_python_goes_through_a_dataset_by_itself() -> None:
    dataset = data.from_arrays({"x": np.arange(5.0), "y": np.arange(5)}).batch(2)
    found = list(dataset)
    assert [type(f["x"]) for f in found] == [np.ndarray] * 3
    assert [f["y"].tolist() for f in found] == [[0, 1], [2, 3], [4]]
    assert len(list(dataset)) == 3  # from the beginning again
    before = threading.active_count()
    for _ in dataset.repeat().prefetch(2):
        break
    assert threading.active_count() == before


def test_rows_without_batches_are_elements() -> None:
    with Graph().as_default() as graph, Session(graph=graph) as session:
        row = data.from_arrays({"x": np.arange(6.0).reshape(3, 2)}).next()["x"]
        assert row.shape == (2,)
        assert [session.run(row).tolist() for _ in range(3)] == [[0, 1], [2, 3], [4, 5]]


def test_padded_batches() -> None:
    assert elements(ragged().padded_batch(3)) == [
        {"x": [[0, 1, 0], [0, 0, 0], [0, 1, 2]], "n": [2, 0, 3]},
        {"x": [[0]], "n": [1]},
    ]
    fixed = ragged().padded_batch(2, shapes={"x": (4,)}, values={"x": -1}, drop_remainder=True)
    assert specs(fixed) == {"x": "int64[2,4]", "n": "int64[2]"}
    assert elements(fixed)[1]["x"] == [[0, 1, 2, -1], [0, -1, -1, -1]]
    with pytest.raises(DataError, match=r"'x' is larger .* than what it is padded to"):
        elements(ragged().padded_batch(4, shapes={"x": (2,)}))
    with pytest.raises(DataError, match=r"differ in shape .* use \.padded_batch"):
        elements(ragged().batch(4))


def test_batches_of_batches_and_back() -> None:
    nested = numbers(7).batch(2).batch(2)
    assert xs(nested.take(1)) == [[[0, 1], [2, 3]]]
    with pytest.raises(DataError, match="differ in shape"):
        elements(nested)
    assert xs(numbers(7).batch(3).unbatch()) == list(range(7))
    assert numbers(7).batch(3).unbatch().cardinality == 7
    assert xs(data.from_arrays({"x": np.arange(6).reshape(2, 3)}).unbatch()) == list(range(6))


def test_enumerate_and_filter() -> None:
    dataset = numbers(20, 100).enumerate(5).filter(lambda e: e["x"] % 7 == 0)
    assert elements(dataset) == [{"index": 10, "x": 105}, {"index": 17, "x": 112}, {"index": 24, "x": 119}]
    assert dataset.cardinality is None
    with pytest.raises(DataError, match="goes round a dataset that gave no element"):
        elements(numbers(3).filter(lambda e: e["x"] > 9).repeat())


def test_shards_are_every_nth_element() -> None:
    parts = [xs(numbers(10).shard(3, i)) for i in range(3)]
    assert parts == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]
    assert [numbers(10).shard(3, i).cardinality for i in range(3)] == [4, 3, 3]


def test_several_datasets() -> None:
    assert xs(data.concatenate(numbers(2), numbers(3, 10))) == [0, 1, 10, 11, 12]
    turns = data.interleave([numbers(3), numbers(1, 10), numbers(4, 20)], cycle=2)
    assert xs(turns) == [0, 10, 1, 20, 2, 21, 22, 23]
    assert xs(data.interleave([numbers(5), numbers(3, 10)], cycle=2, block=2)) == [0, 1, 10, 11, 2, 3, 12, 4]
    both = data.zip(a=numbers(5).shuffle(5, seed=1), b=numbers(5, 10).shuffle(5, seed=1))
    assert [e["b"] - e["a"] for e in elements(both)] == [10] * 5  # one seed, one order
    assert len(elements(data.zip(a=numbers(5).batch(2), b=numbers(2).repeat().batch(1)))) == 3
    mixed = data.concatenate(data.from_arrays({"x": np.zeros((2, 3))}), data.from_arrays({"x": np.zeros((2, 4))}))
    assert specs(mixed) == {"x": "float64[?]"}


def test_specs_and_counts() -> None:
    dataset = data.from_arrays({"x": np.zeros((10, 3), np.float32), "y": np.arange(10)})
    assert specs(dataset) == {"x": "float32[3]", "y": "int64[]"}
    assert specs(dataset.batch(4)) == {"x": "float32[?,3]", "y": "int64[?]"}
    assert specs(dataset.batch(4, drop_remainder=True)) == {"x": "float32[4,3]", "y": "int64[4]"}
    assert specs(dataset.repeat().batch(4)) == {"x": "float32[4,3]", "y": "int64[4]"}
    assert specs(dataset.batch(4).map(lambda b: {"s": nf.sum(b["x"], axis=-1)})) == {"s": "float32[?]"}
    assert data.zip(a=dataset, b=numbers(10)).repeat(3).batch(7).cardinality == 5
    assert ragged().cardinality is None


@pytest.mark.parametrize(
    "make",
    [
        lambda: numbers(11).shuffle(4, seed=1).repeat(2).skip(3).take(17).shard(2, 1).batch(3),
        lambda: numbers(9).batch(2).unbatch().enumerate().batch(4, drop_remainder=True),
        lambda: data.interleave([numbers(3), numbers(4)], cycle=2).batch(2),
        lambda: numbers(9).map(lambda e: {"x": e["x"] + 1}).batch(2).cache().repeat(2),
        lambda: data.concatenate(numbers(3), numbers(4)).padded_batch(2),
    ],
)
def test_specs_and_counts_hold(make: Any) -> None:
    dataset = make()
    found = list(dataset)
    assert dataset.cardinality == len(found)
    for element in found:
        for name, spec in dataset.element_spec.items():
            assert spec.accepts(nf.spec.spec_of(element[name])), (name, spec)


# --- functions of elements -------------------------------------------------------------------------------------------


def test_map_before_batch_sees_rows() -> None:
    dataset = numbers(5).map(lambda e: {"y": e["x"] * 2, "x": nf.stack([e["x"], e["x"]])}).batch(3)
    assert elements(dataset)[0] == {"y": [0, 2, 4], "x": [[0, 0], [1, 1], [2, 2]]}
    with Graph().as_default() as graph, Session(graph=graph) as session:
        assert session.run(dataset.next()["y"]).tolist() == [0, 2, 4]


def test_threads_change_neither_order_nor_what_is_drawn() -> None:
    def noisy(e: dict[str, Any]) -> dict[str, Any]:
        return {"y": nf.random.normal((3,)) + nf.astype(e["x"], "float32")}

    plain = elements(numbers(40).map(noisy).batch(4))
    for threads in (1, 4):
        assert elements(numbers(40).map(noisy, parallel=threads).batch(4)) == plain
    again = numbers(40).map(noisy).repeat(2)
    assert len({tuple(e["y"]) for e in elements(again)}) == 80  # each epoch draws anew


def test_threads_work_at_the_same_time() -> None:
    """Both of two elements are in their function before either comes out."""
    together = threading.Barrier(2, timeout=20)

    def function(element: Any, number: int) -> Any:
        together.wait()
        return [np.asarray(element[0])]

    iterator = DataIterator(numbers(4).map(lambda e: e, parallel=2).tree)
    iterator._stage._function = function  # type: ignore[attr-defined]
    assert [int(iterator.next()[0]) for _ in range(4)] == [0, 1, 2, 3]
    iterator.close()


def test_a_last_map_may_use_the_graph() -> None:
    with Graph().as_default() as graph, Session(graph=graph) as session:
        scale = nf.Variable(3.0, name="scale")
        rows = data.from_arrays({"x": np.arange(4, dtype=np.float32)}).batch(2)
        batch = rows.map(lambda b: {"y": b["x"] * scale}).prefetch(1).next()
        assert session.run(batch["y"]).tolist() == [0, 3]
        (slope,) = nf.gradients([nf.sum(batch["y"])], [scale])
        assert float(session.run(slope)) == 5
        with pytest.raises(DataError, match="uses a tensor or variable of the graph"):
            rows.map(lambda b: {"y": b["x"] * scale}, parallel=2)
        with pytest.raises(DataError, match="uses a tensor or variable of the graph"):
            rows.map(lambda b: {"y": b["x"] * scale}).unbatch()
        with pytest.raises(DataError, match="keeps state"):
            elements(rows.map(lambda b: {"y": b["x"] * nf.Variable(1.0)}, parallel=1))


def test_functions_may_branch_and_loop() -> None:
    def collatz(e: dict[str, Any]) -> dict[str, Any]:
        def step(n: Any, count: Any) -> Any:
            return nf.cond(n % 2 == 0, lambda: n // 2, lambda: 3 * n + 1), count + 1

        return {"steps": nf.while_loop(lambda n, count: n > 1, step, (e["x"], nf.constant(0)))[1]}

    assert [e["steps"] for e in elements(numbers(8, 1).map(collatz, parallel=2))] == [0, 1, 7, 2, 5, 8, 16, 3]


def test_a_dataset_shows_itself() -> None:
    dataset = data.from_arrays({"x": np.zeros((6, 2))}).shuffle(4, seed=1).batch(3)
    assert repr(dataset) == "<Dataset of 6 rows, x: float64(?, 2) .shuffle(4, 1).batch(3, False)>"
    with Graph().as_default():
        w = nf.Variable(1.0, name="w", dtype="float64")
        mapped = dataset.map(lambda b: {"y": b["x"] * w})
        assert repr(mapped) == (
            "<Dataset of 6 rows, x: float64(?, 2) before map .shuffle(4, 1).batch(3, False).map(…)>"
        )
    assert "elements, x: int64(?,), n: int64() .filter()>" in repr(ragged().filter(lambda e: e["n"] > 0))


def test_errors_in_a_function_name_it() -> None:
    with Graph().as_default() as graph, Session(graph=graph) as session:
        batch = numbers(3).map(lambda e: {"y": nf.reshape(nf.ones((4,)), (-1, e["x"] * 0 + 3))}).batch(2)
        with pytest.raises((OpError, DataError)):
            session.run(batch.next()["y"])


# --- generators ------------------------------------------------------------------------------------------------------


def test_generators() -> None:
    dataset = ragged()
    assert elements(dataset.take(2)) == [{"x": [0, 1], "n": 2}, {"x": [], "n": 0}]
    check_resumes(dataset.shuffle(2, seed=1).repeat(2).padded_batch(2))
    one = data.from_generator(lambda: iter([1.0, 2.0, 3.0]), ("float32", ()))
    assert elements(one.batch(2)) == [{"x": [1, 2]}, {"x": [3]}]
    reused = np.zeros(2)

    def fills() -> Iterator[Any]:
        for n in range(3):
            reused[:] = n
            yield reused

    assert xs(data.from_generator(fills, ("float64", (2,)))) == [[0, 0], [1, 1], [2, 2]]


def test_generators_run_in_a_graph_of_this_process() -> None:
    with Graph().as_default() as graph, Session(graph=graph) as session:
        batch = ragged().padded_batch(2).next()
        assert session.run(batch)["n"].tolist() == [2, 0]
        copy = Graph.from_proto(graph.to_proto().SerializeToString())
    with copy.as_default(), Session(graph=copy) as session:
        there = copy.node(batch["n"].node.name).outputs[1]
        with pytest.raises(DataError, match=r"'ragged.<locals>.give' is in the process that made .* nf\.feed"):
            session.run(there)


@pytest.mark.parametrize(
    ("give", "text"),
    [
        (lambda: iter([{"y": 1}]), r"gave \['y'\], but was said to give \['x'\]"),
        (lambda: iter([{"x": np.float64(1)}]), "gave float64 for 'x'"),
        (lambda: iter([{"x": 1.5}]), "gave float64 for 'x'"),
        (lambda: iter([{"x": [1, 2]}]), r"gave shape \(2,\) for 'x', but was said to give \(\)"),
    ],
)
def test_generators_give_what_they_said(give: Any, text: str) -> None:
    with pytest.raises(DataError, match=text):
        elements(data.from_generator(give, {"x": ("int64", ())}))


def test_an_error_in_a_generator_reaches_the_reader() -> None:
    def give() -> Iterator[int]:
        yield 1
        raise RuntimeError("out of luck")

    dataset = data.from_generator(give, ("int64", ()))
    with pytest.raises(RuntimeError, match="out of luck"):
        elements(dataset)
    with Graph().as_default() as graph, Session(graph=graph) as session:
        one = dataset.prefetch(1).next()["x"]
        with pytest.raises(OpError, match="RuntimeError: out of luck"):
            session.run(one), session.run(one)
    with pytest.raises(DataError, match="have names"):
        data.from_generator(give, (("int64", ()), ("int64", ())))
    with pytest.raises(DataError, match="a function that returns an iterator, not list"):
        data.from_generator([1, 2], ("int64", ()))


def test_a_generator_is_closed_with_its_iterator() -> None:
    ended = threading.Event()

    def give() -> Iterator[int]:
        try:
            yield from range(100)
        finally:
            ended.set()

    for _ in data.from_generator(give, ("int64", ())):
        break
    assert ended.is_set()


# --- caches ----------------------------------------------------------------------------------------------------------


def counted(n: int) -> tuple[data.Dataset, list[int]]:
    """A dataset that notes how often it is read."""
    reads: list[int] = []

    def give() -> Iterator[int]:
        reads.append(len(reads))
        yield from range(n)

    return data.from_generator(give, ("int64", ())), reads


@pytest.mark.parametrize("where", ["memory", "files"])
def test_a_cache_reads_once(where: str, tmp_path: Path) -> None:
    source, reads = counted(7)
    cached = source.map(lambda e: {"x": e["x"], "two": nf.stack([e["x"], e["x"]])}).cache(
        tmp_path / "kept" if where == "files" else ""
    )
    assert xs(cached.repeat(3).batch(4)) == [[0, 1, 2, 3], [4, 5, 6, 0], [1, 2, 3, 4], [5, 6, 0, 1], [2, 3, 4, 5], [6]]
    assert len(reads) == 1
    assert xs(cached.take(3).repeat(2)) == [0, 1, 2, 0, 1, 2]
    # A later iterator finds the files; memory goes with its iterator.
    assert len(reads) == (1 if where == "files" else 2)
    if where == "files":
        assert [p.name for p in tmp_path.iterdir()] == ["kept"]


def test_continuing_with_a_cache() -> None:
    check_resumes(numbers(9).map(lambda e: {"x": e["x"] + 1}).cache().shuffle(4, seed=1).repeat(3).batch(4))


def test_a_folder_holds_one_dataset(tmp_path: Path) -> None:
    list(numbers(4).cache(tmp_path / "a"))
    with pytest.raises(DataError, match="elements of another dataset; delete it"):
        list(numbers(5).cache(tmp_path / "a"))
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match="no cache of a dataset"):
        list(numbers(4).cache(tmp_path / "b"))
    with pytest.raises(DataError, match=r"differ in shape cannot be cached in files; use \.cache\(\)"):
        list(numbers(4).map(lambda e: {"x": nf.nonzero(nf.arange(4) < e["x"])[0]}).batch(1).cache(tmp_path / "c"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
    (tmp_path / "a" / "0.bin").write_bytes(b"")
    with pytest.raises(DataError, match="cut short; delete it"):
        list(numbers(4).cache(tmp_path / "a"))


def test_half_a_cache_is_not_kept(tmp_path: Path) -> None:
    for _ in numbers(9).cache(tmp_path / "a"):
        break
    assert list(tmp_path.iterdir()) == []


# --- progress and closing --------------------------------------------------------------------------------------------


def test_long_work_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "REPORT_S", -1.0)
    said: list[str] = []
    iterator = DataIterator(numbers(9).shuffle(5, seed=1).batch(2).tree, Environment("it", 0, said.append))
    iterator.next()
    iterator.close()
    assert said == ["dataset it: filling a shuffle buffer, 5 of 5"]


def test_progress_is_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "REPORT_S", -1.0)
    with Graph().as_default() as graph, Session(graph=graph) as session:
        heard: list[Any] = []
        batch = numbers(9).shuffle(5, seed=1).batch(2).next(name="train")
        session.run(nf.data.position(batch["x"]))  # connects
        session.events.add(heard.append)
        session.run(batch["x"])
    logs = [e for e in heard if isinstance(e, nf.events.Log)]
    assert [(e.level, e.message) for e in logs][:1] == [
        ("progress", "dataset train/iterator: filling a shuffle buffer, 5 of 5")
    ]


def test_closing_ends_long_work() -> None:
    going = threading.Event()

    def give() -> Iterator[int]:
        while True:
            going.set()
            yield 1

    iterator = DataIterator(data.from_generator(give, ("int64", ())).shuffle(10**9, seed=0).tree)
    heard: list[Exception] = []

    def wait() -> None:
        try:
            iterator.next()
        except EndOfData as error:
            heard.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    assert going.wait(20)
    iterator.close()
    waiter.join(20)
    assert len(heard) == 1


def test_a_generator_that_hangs_does_not_keep_a_session_open(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(iterating, "_JOIN_S", 0.05)
    begun, let_go = threading.Event(), threading.Event()

    def give() -> Iterator[int]:
        begun.set()
        let_go.wait(20)
        yield 1

    with Graph().as_default() as graph:
        session = Session(graph=graph)
        kept = nf.queue(2, ("int64", ()))
        stuck = data.from_generator(give, ("int64", ())).prefetch(1).next(name="stuck")["x"]
        session.run(kept.size())
        with pytest.raises(DeadlineExceeded):
            session.run(stuck, deadline_s=0.05)
        assert begun.wait(20)
        session.close()
    assert "dataset stuck/iterator: the thread that reads the dataset did not stop" in caplog.text
    let_go.set()


def test_an_element_is_split_among_replicas_only_where_it_has_rows() -> None:
    with pytest.raises(DataError, match=r"no common number of rows .* put \.batch"):
        DataIterator(numbers(4).tree, shard=(0, 2)).next()
    with pytest.raises(DataError, match="no common number of rows"):  # four columns are not four rows
        DataIterator(data.from_arrays(np.zeros((3, 4))).tree, shard=(0, 2)).next()
    assert drain(DataIterator(numbers(4).batch(4).tree, shard=(1, 2))) == [[[2, 3], 0.5]]


def test_a_run_shows_what_it_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "REPORT_S", -1.0)
    with Graph().as_default():
        batch = (
            data.from_arrays({"x": np.ones((90, 2), np.float32)}).shuffle(50, seed=1).repeat().batch(2).next(name="d")
        )
        loss = nf.mean(nf.layers.dense(batch["x"], 1, name="w") ** 2)
        run = nf.train.run(nf.optim.SGD(0.1).minimize(loss), steps=3, metrics={"loss": loss}, show=False)
    said = [e.detail for e in run.events if isinstance(e, nf.events.RunState)]
    assert "dataset d/iterator: filling a shuffle buffer, 50 of 50" in said
    assert run.detail == ""
