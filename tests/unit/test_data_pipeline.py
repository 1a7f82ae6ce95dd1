"""Datasets: order, batching, sharding, shuffling, prefetching, and what is refused."""

from __future__ import annotations

import threading
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nbflow as nf
from nbflow import data
from nbflow.data.blocks import part_of
from nbflow.data.build import Environment
from nbflow.data.iterator import DataIterator
from nbflow.errors import DataError, DeadlineExceeded, EndOfData
from nbflow.graph import Graph
from nbflow.session import Session
from nbflow.testing import Evaluator


def rows(dataset: data.Dataset, limit: int = 1000, environment: Any = MappingProxyType({}), **options: Any) -> Any:
    """The batches of the only array of `dataset`, as lists."""
    iterator = DataIterator(dataset.tree, Environment(**environment), **options)
    found: list[Any] = []
    try:
        while len(found) < limit:
            found.append(iterator.next()[0].tolist())
    except EndOfData:
        pass
    finally:
        iterator.close()
    return found


def numbers(n: int) -> data.Dataset:
    return data.from_arrays(np.arange(n))


def test_batches_and_their_last_one() -> None:
    assert rows(numbers(7).batch(3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert rows(numbers(7).batch(3, drop_remainder=True)) == [[0, 1, 2], [3, 4, 5]]
    assert rows(numbers(3).repeat(2).batch(4)) == [[0, 1, 2, 0], [1, 2]]
    assert rows(numbers(3).batch(2).repeat(2)) == [[0, 1], [2], [0, 1], [2]]
    assert rows(numbers(2).repeat().batch(3), limit=3) == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]


def test_take_and_skip_count_rows_before_batch_and_batches_after() -> None:
    assert rows(numbers(9).skip(2).take(5).batch(2)) == [[2, 3], [4, 5], [6]]
    assert rows(numbers(9).batch(2).skip(1).take(2)) == [[2, 3], [4, 5]]
    assert rows(numbers(3).repeat().skip(2).take(3).batch(3)) == [[2, 0, 1]]


def test_a_full_shuffle_is_a_permutation_and_another_one_each_epoch() -> None:
    found = rows(numbers(50).shuffle(50, seed=1).repeat(3).batch(50))
    assert all(sorted(epoch) == list(range(50)) for epoch in found)
    assert len({tuple(epoch) for epoch in found}) == 3
    assert found == rows(numbers(50).shuffle(80, seed=1).repeat(3).batch(50))
    assert found != rows(numbers(50).shuffle(50, seed=2).repeat(3).batch(50))


def test_a_smaller_buffer_is_a_window() -> None:
    (order,) = rows(numbers(200_000).shuffle(100, seed=3).batch(200_000))
    assert sorted(order) == list(range(200_000))
    # Nothing can come out before it came in: element e leaves at place e - 99 at the earliest.
    assert all(element - place < 100 for place, element in enumerate(order))
    assert order[:1000] != sorted(order[:1000])


def test_batches_may_be_shuffled() -> None:
    found = rows(numbers(40).batch(2).shuffle(20, seed=0))
    assert sorted(found) == [[i, i + 1] for i in range(0, 40, 2)]
    assert found != sorted(found)
    windowed = rows(numbers(40).batch(2).shuffle(4, seed=0))
    assert sorted(windowed) == sorted(found)
    assert windowed != sorted(found)


def test_a_seed_left_out_comes_from_the_graph() -> None:
    dataset = numbers(30).shuffle(30).batch(30)
    same = [rows(dataset, environment={"seed": seed, "name": name}) for seed, name in ((0, "a"), (0, "a"), (1, "a"))]
    assert same[0] == same[1] != same[2]
    assert rows(dataset, environment={"seed": 0, "name": "b"}) != same[0]


@given(
    n=st.integers(1, 40),
    batch=st.integers(1, 12),
    count=st.integers(1, 5),
    shuffle=st.integers(0, 20),
    epochs=st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_shards_together_see_what_one_replica_sees(n: int, batch: int, count: int, shuffle: int, epochs: int) -> None:
    dataset = numbers(n).shuffle(shuffle, seed=5) if shuffle else numbers(n)
    dataset = dataset.repeat(epochs).batch(batch)
    whole = rows(dataset)
    parts = [rows(dataset, shard=(i, count)) for i in range(count)]
    assert [[row for p in parts for row in p[i]] for i in range(len(whole))] == whole
    dealt = [rows(dataset, deal=(i, count)) for i in range(count)]
    assert [dealt[i % count][i // count] for i in range(len(whole))] == whole
    assert dataset.cardinality == len(whole)


def test_shares_are_the_parts_of_the_batch() -> None:
    found = [DataIterator(numbers(5).batch(5).tree, shard=(i, 2)).next() for i in range(2)]
    assert [f[0].tolist() for f in found] == [[0, 1, 2], [3, 4]]
    assert [float(f[1]) for f in found] == [0.6, 0.4]
    assert [len(np.arange(2)[part_of(2, (i, 4))]) for i in range(4)] == [
        len(p) for p in np.array_split(np.arange(2), 4)
    ]


def test_prefetching_changes_nothing_and_leaves_no_thread() -> None:
    before = threading.active_count()
    dataset = numbers(100).shuffle(30, seed=2).repeat(3).batch(7)
    for ahead in (1, 2, 5):
        assert rows(dataset.prefetch(ahead)) == rows(dataset)
    iterator = DataIterator(numbers(10).repeat().batch(2).prefetch(3).tree)
    assert iterator.next()[0].tolist() == [0, 1]
    iterator.close()
    iterator.close()
    assert threading.active_count() == before
    with pytest.raises(DataError, match="closed"):
        iterator.next()


def test_the_end_is_the_end_each_time() -> None:
    for dataset in (numbers(2).batch(2), numbers(2).batch(2).prefetch(2)):
        iterator = DataIterator(dataset.tree)
        iterator.next()
        for _ in range(2):
            with pytest.raises(EndOfData, match=r"no more elements: it ended after 1; \.repeat\(\)"):
                iterator.next()
        iterator.close()


def test_waiting_for_a_batch_ends_when_the_step_does_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    iterator = DataIterator(numbers(4).batch(2).prefetch(1).tree)
    real = iterator._stage.next

    def held(limit: int) -> Any:
        assert gate.wait(10)
        return real(limit)

    monkeypatch.setattr(iterator._stage, "next", held)

    def ended() -> None:
        raise DeadlineExceeded("the step is over")

    with pytest.raises(DeadlineExceeded):
        iterator.next(ended)
    gate.set()
    assert iterator.next()[0].tolist() == [0, 1]
    iterator.close()


@pytest.mark.parametrize("ahead", [False, True])
def test_an_error_in_a_stage_reaches_the_step_each_time(ahead: bool) -> None:
    dataset = data.from_arrays(np.arange(4)).map(lambda e: {"y": nf.nonzero(nf.arange(3) < e["x"])[0]}).batch(2)
    iterator = DataIterator((dataset.prefetch(1) if ahead else dataset).tree)
    for _ in range(2):
        with pytest.raises(DataError, match=r"'y' differ in shape \(\(0,\), \(1,\)\); use \.padded_batch"):
            iterator.next()
    iterator.close()


def test_next_gives_tensors_by_name() -> None:
    x, y = np.arange(12, dtype=np.float32).reshape(6, 2), np.arange(6)
    with Graph().as_default():
        batch = data.from_arrays({"x": x, "y": y}).batch(4).next(name="train")
        assert list(batch) == ["x", "y"]
        assert (batch["x"].name, batch["y"].name) == ("train", "train:1")
        assert batch["x"].shape == (None, 2)
        assert batch["y"].dtype == np.int64
        runner = Evaluator()
        first = runner.run([batch, batch["x"].node.outputs[-1]])
        np.testing.assert_array_equal(first[0]["x"], x[:4])
        np.testing.assert_array_equal(first[0]["y"], y[:4])
        assert float(first[1]) == 1.0
        np.testing.assert_array_equal(runner.run(batch["y"]), y[4:])
        with pytest.raises(EndOfData):
            runner.run(batch["y"])
        runner.state.clear()


def test_another_dataset_under_the_same_name_starts_anew() -> None:
    """The key of the state is the same, the fingerprint is not."""
    runner = Evaluator()
    for values in (np.arange(4), np.arange(4) + 10, np.arange(4) + 10):
        with Graph().as_default():
            batch = data.from_arrays(values).batch(2).next(name="it")
            seen = runner.run(batch["x"]).tolist()
        assert seen[0] in ((0, 1) if values[0] == 0 else (10, 12))
    assert seen == [12, 13]


def test_map_applies_ops_to_batches() -> None:
    with Graph().as_default():
        dataset = data.from_arrays({"x": np.arange(4.0), "y": np.arange(4)}).batch(2)
        batch = dataset.map(lambda b: {"z": b["x"] * 2.0, "y": b["y"]}).map(lambda b: {**b, "w": b["z"] + 1.0}).next()
        assert list(batch) == ["z", "y", "w"]
        np.testing.assert_array_equal(Evaluator().run(batch["w"]), [1, 3])
        with pytest.raises(DataError, match="dict of tensors, it returned Tensor"):
            dataset.map(lambda b: b["x"]).next()  # type: ignore[arg-type,return-value]


def test_what_is_refused() -> None:
    with Graph().as_default():
        for make, text in (
            (lambda: data.from_arrays({}), "no arrays"),
            (lambda: data.from_arrays({"x": np.zeros(3), "y": np.zeros(4)}), "x: 3, y: 4"),
            (lambda: data.from_arrays(np.array(["a", None], object)), "dtype object"),
            (lambda: data.from_arrays(np.array(["a", "b"])), "numbers and booleans"),
            (lambda: data.from_arrays(np.float32(3)), "single number"),
            (lambda: numbers(3).batch(0), "at least 1"),
            (lambda: numbers(3).shuffle(0), "at least 1"),
            (lambda: numbers(3).repeat(0), "at least 1"),
            (lambda: numbers(3).skip(-1), "not negative"),
            (lambda: numbers(0).repeat().batch(2).next(), "no elements at all"),
            (lambda: numbers(0).batch(2).next(), "no elements at all"),
            (lambda: numbers(3).batch(5, drop_remainder=True).repeat().next(), "no elements after .batch"),
            (lambda: numbers(3).shard(2, 2), "0 <= index < count"),
            (lambda: numbers(3).map(lambda e: e, parallel=-1), "not negative"),
            (lambda: numbers(3).unbatch(), "'x' is a scalar"),
            (lambda: numbers(3).enumerate().enumerate(), "has already"),
            (lambda: numbers(3).padded_batch(2, shapes={"z": (3,)}), "names 'z'; the components are x"),
            (lambda: numbers(3).padded_batch(2, shapes={"x": (3,)}), "not \\(3,\\)"),
            (lambda: numbers(3).filter(lambda e: e["x"]), "one boolean scalar"),
            (lambda: data.concatenate(numbers(3), data.from_arrays(np.zeros(3))), "the same components"),
            (data.concatenate, "no datasets"),
            (lambda: data.interleave([numbers(3)], cycle=0), "at least 1"),
            (lambda: numbers(3).skip(3).batch(1).next(), "no elements after .skip"),
        ):
            with pytest.raises(DataError, match=text):
                make()


def test_cardinality() -> None:
    assert numbers(10).cardinality == 10
    assert numbers(10).repeat().cardinality is None
    assert numbers(10).repeat().batch(3).take(4).cardinality == 4
    assert numbers(10).batch(3).cardinality == 4
    assert numbers(10).batch(3, drop_remainder=True).repeat(2).cardinality == 6


def test_arrays_are_not_copied_but_protected() -> None:
    values = np.arange(6.0)
    dataset = data.from_arrays(values)
    (kept,) = dataset.tree[2]
    assert np.shares_memory(kept, values)
    assert not kept.flags.writeable
    assert values.flags.writeable
    (swapped,) = data.from_arrays(values.astype(">f8")).tree[2]
    assert swapped.dtype.isnative
    assert "6 rows, x: float64(?,) .batch(2, False)" in repr(dataset.batch(2))


def test_a_fed_component_does_not_move_the_iterator() -> None:
    with Graph().as_default() as graph:
        batch = data.from_arrays({"x": np.arange(4.0), "y": np.arange(4)}).batch(2).next()
        total = batch["x"] + batch["y"].astype("float64")
        session = Session(graph=graph)
        np.testing.assert_array_equal(session.run(total), [0, 2])
        fed = session.run(total, {batch["x"]: np.ones(5), batch["y"]: np.zeros(5, np.int64)})
        np.testing.assert_array_equal(fed, np.ones(5))
        np.testing.assert_array_equal(session.run(total), [4, 6])
        session.close()
