"""Where an iterator stands: saved after any number of elements and restored, it goes on as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nbflow as nf
from nbflow import data
from nbflow.data.iterator import DataIterator, rewound
from nbflow.data.snapshot import pack, unpack
from nbflow.errors import DataError, EndOfData, OpError
from nbflow.graph import Graph
from nbflow.inprocess import InProcessCluster
from nbflow.session import Session
from tests.unit.data_checks import check_resumes, check_rewinds


def numbers(n: int, first: int = 0) -> data.Dataset:
    return data.from_arrays({"x": np.arange(first, first + n)})


def ragged(n: int) -> data.Dataset:
    """Elements of 0 … 4 rows."""
    return numbers(n).map(lambda e: {"x": nf.nonzero(nf.arange(4) < e["x"] % 5)[0]}, parallel=2)


DATASETS: dict[str, Callable[[], data.Dataset]] = {
    "rows": lambda: numbers(23).batch(4),
    "permutation": lambda: numbers(23).shuffle(30, seed=1).repeat(3).batch(4),
    "exactly full window": lambda: numbers(20).shuffle(20, seed=1).repeat(2).batch(3),
    "window": lambda: numbers(40).shuffle(7, seed=1).repeat(2).batch(3),
    "window, prefetched": lambda: numbers(40).shuffle(7, seed=1).repeat(2).batch(3).prefetch(3),
    "the same order again": lambda: numbers(10).shuffle(10, seed=1, reshuffle=False).repeat(3).batch(3),
    "shuffled batches": lambda: numbers(41).batch(2).shuffle(6, seed=2).repeat(2).prefetch(2),
    "two shuffles": lambda: numbers(30).shuffle(5, seed=1).shuffle(9, seed=1).batch(2),
    "epochs within epochs": lambda: numbers(5).shuffle(3, seed=1).repeat(2).shuffle(4, seed=1).repeat(2).batch(3),
    "take, skip, shard": lambda: numbers(60).skip(5).shard(3, 1).take(12).repeat(2).batch(2),
    "unbatch": lambda: numbers(30).batch(7).shuffle(3, seed=0).unbatch().batch(4),
    "enumerate": lambda: numbers(9).enumerate(3).repeat(2).batch(2),
    "map": lambda: numbers(20).map(lambda e: {"y": e["x"] + nf.random.randint((), 0, 99)}).batch(3),
    "parallel map": lambda: numbers(20).map(lambda e: {"y": e["x"] * 2}, parallel=3).repeat(2).batch(3).prefetch(2),
    "filter": lambda: numbers(40).filter(lambda e: e["x"] % 3 == 0).shuffle(4, seed=1).repeat(2).batch(2),
    "ragged, in a window": lambda: ragged(30).shuffle(5, seed=1).repeat(2).padded_batch(3),
    "zip": lambda: data.zip(a=numbers(12).shuffle(4, seed=1), b=numbers(9, 50).shuffle(4, seed=2)).repeat(2).batch(2),
    "concatenate": lambda: data.concatenate(numbers(5), numbers(4, 50)).shuffle(3, seed=1).repeat(2).batch(2),
    "interleave": lambda: data.interleave([numbers(n, 100 * n) for n in (5, 2, 7, 3)], cycle=2, block=2).batch(2),
}


@pytest.mark.parametrize("name", DATASETS)
def test_resuming_is_exact(name: str) -> None:
    check_resumes(DATASETS[name]())


@pytest.mark.parametrize("name", DATASETS)
def test_rewinding_is_exact(name: str) -> None:
    check_rewinds(DATASETS[name](), keep=2)


def test_only_what_was_kept_can_be_rewound() -> None:
    plain, keeping = DataIterator(numbers(9).tree), DataIterator(numbers(9).tree, keep=2)
    for iterator in (plain, keeping):
        for _ in range(4):
            iterator.next()
    assert "handed" not in plain.export_state()
    assert rewound(plain.export_state(), 1) is None
    assert rewound(keeping.export_state(), 3) is None
    assert rewound(keeping.export_state(), -1) is None
    back = rewound(keeping.export_state(), 2)
    assert back is not None
    assert back["position"] == 2
    keeping.import_state(back)
    # What was handed out before the place it was put to is not its to give back.
    assert rewound(keeping.export_state(), 1) is None


def test_a_state_is_small() -> None:
    """A permutation is remembered by where it is; a window of row numbers takes eight bytes a row."""
    big = data.from_arrays(np.zeros((100_000, 20), np.float32))
    for dataset, most in ((big.shuffle(100_000, seed=0).batch(64), 1000), (big.shuffle(1000, seed=0).batch(64), 9000)):
        iterator = DataIterator(dataset.tree)
        for _ in range(3):
            iterator.next()
        assert pack(iterator.export_state()).nbytes < most
        iterator.close()


def test_an_iterator_that_has_run_goes_back_too() -> None:
    dataset = numbers(30).shuffle(5, seed=1).batch(2).prefetch(2)
    iterator = DataIterator(dataset.tree)
    iterator.next()
    state = iterator.export_state()
    first = iterator.next()[0].tolist()
    while True:
        try:
            iterator.next()
        except EndOfData:
            break
    iterator.import_state(state)
    assert iterator.next()[0].tolist() == first
    iterator.close()


def test_states_that_do_not_fit_are_refused() -> None:
    one, other = DataIterator(numbers(9).batch(2).tree, fingerprint="a"), DataIterator(numbers(9).tree, fingerprint="b")
    with pytest.raises(DataError, match="that of another dataset"):
        other.import_state(one.export_state())
    with pytest.raises(DataError, match="not the state of an iterator"):
        one.import_state({"version": 99})
    for state in ({**one.export_state(), "stage": {}}, {**one.export_state(), "stage": 3}):
        with pytest.raises(DataError, match="does not fit"):
            one.import_state(state)


values = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2**64 - 1) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text("xyz", min_size=1), values, max_size=4))
@settings(max_examples=40, deadline=None)
def test_bytes_give_back_what_was_packed(state: dict[str, Any]) -> None:
    assert unpack(pack(state)) == state


def test_arrays_in_bytes() -> None:
    rows = np.empty(2, object)
    rows[0], rows[1] = np.arange(3, dtype=np.int16), np.zeros((2, 0), np.float64)
    arrays = [np.arange(6, dtype=">i4").reshape(2, 3), np.array(1.5, np.float32), np.ones(3, nf.spec.BFLOAT16), rows]
    found = unpack(pack({"arrays": arrays}))["arrays"]
    for mine, right in zip(found[:3], arrays, strict=False):
        assert mine.dtype == right.dtype.newbyteorder("=")
        np.testing.assert_array_equal(mine.astype(np.float64), right.astype(np.float64))
        assert mine.flags.writeable
    assert [(r.dtype, r.shape) for r in found[3]] == [(r.dtype, r.shape) for r in rows]


@given(st.binary(min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_damaged_bytes_are_refused(noise: bytes) -> None:
    whole = pack({"a": np.arange(4), "b": 1})
    for damaged in (noise, whole.tobytes()[: len(noise)], noise + whole.tobytes()):
        with pytest.raises(DataError, match="not the state of an iterator"):
            unpack(np.frombuffer(damaged, np.uint8))


# --- as ops ----------------------------------------------------------------------------------------------------------


def test_saving_and_restoring_in_another_session() -> None:
    with Graph().as_default() as graph:
        batch = numbers(50).shuffle(9, seed=4).repeat().batch(4).prefetch(2).next(name="train")
        saved, place = data.save_state(batch["x"]), data.position(batch["x"])
        given = nf.placeholder("uint8", (None,))
        restored = data.restore_state(batch["x"].node, given)
        with Session(graph=graph) as session:
            before = [session.run(batch["x"]).tolist() for _ in range(5)]
            kept = session.run(saved)
            after = [session.run(batch["x"]).tolist() for _ in range(20)]
        with Session(graph=graph) as session:
            assert session.run(batch["x"]).tolist() == before[0]
            session.run(restored, {given: kept})
            assert int(session.run(place)) == 5
            assert [session.run(batch["x"]).tolist() for _ in range(20)] == after
        with Session(graph=graph) as session:  # before anything ran
            session.run(restored, {given: kept})
            np.testing.assert_array_equal(session.run(saved), kept)
            assert [session.run(batch["x"]).tolist() for _ in range(20)] == after
            with pytest.raises((DataError, OpError), match="not the state of an iterator"):
                session.run(restored, {given: np.zeros(3, np.uint8)})


def test_the_beginning_is_a_place_too() -> None:
    with Graph().as_default() as graph, Session(graph=graph) as session:
        batch = numbers(6).batch(2).next()
        kept = session.run(data.save_state(batch["x"]))
        session.run(batch["x"])
        session.run(data.restore_state(batch["x"], kept))
        assert session.run(batch["x"]).tolist() == [0, 1]


def test_the_state_of_another_dataset_fails_when_it_is_used() -> None:
    with Graph().as_default() as graph, Session(graph=graph) as session:
        one, other = numbers(6).batch(2).next(), numbers(6).batch(3).next()
        session.run(one["x"])
        session.run(data.restore_state(other["x"], session.run(data.save_state(one["x"]))))
        with pytest.raises(DataError, match="that of another dataset"):
            session.run(other["x"])


def test_a_place_among_other_draws_is_another_place() -> None:
    def after(graph_seed: int, kept: Any, **shuffled: Any) -> Any:
        with Graph().as_default() as graph, Session(graph=graph) as session:
            nf.set_seed(graph_seed)
            batch = numbers(20).shuffle(20, **shuffled).batch(2).next(name="it")
            if kept is not None:
                session.run(data.restore_state(batch["x"], kept))
            session.run(batch["x"])
            return session.run(data.save_state(batch["x"]))

    with pytest.raises(DataError, match="its stages, seeds or contents differ"):
        after(2, after(1, None))
    after(2, after(1, None, seed=5), seed=5)


def test_what_comes_from_no_iterator_or_two_has_no_place() -> None:
    with Graph().as_default():
        one, other = numbers(6).batch(2).next(name="one"), numbers(6).batch(3).next(name="other")
        with pytest.raises(DataError, match="2 iterators"):
            data.save_state(one["x"] + other["x"])
        with pytest.raises(DataError, match="0 iterators"):
            data.save_state(nf.constant(1.0))
        assert [n.name for n in data.state.iterators()] == ["one/iterator", "other/iterator"]
        assert data.save_state(one["x"] * 2).node.inputs[0].node.name == "one/iterator"


@pytest.mark.parametrize(("first", "then"), [(2, 3), (3, 1), (1, 2)])
def test_another_number_of_workers_goes_on_at_the_same_place(first: int, then: int) -> None:
    """Synchronous replicas have one place, wherever it is saved and restored."""
    x = np.arange(48, dtype=np.float32).reshape(24, 2)

    def seen(workers: int, kept: Any, steps: int) -> tuple[list[Any], Any]:
        cluster = InProcessCluster(workers, 1)
        with Graph().as_default() as graph, Session(cluster, graph) as session:
            batch = nf.data.from_arrays({"x": x}).shuffle(10, seed=5).repeat().batch(5).prefetch(2).next(name="d")
            loss = nf.mean(nf.layers.dense(batch["x"], 1, name="w"))
            step = nf.optim.SGD(0.1).minimize(loss, strategy=nf.train.DataParallel())
            if kept is not None:
                session.run(nf.data.restore_state(batch["x"], kept))
            found = [session.run([step, batch["x"]])[1].tolist() for _ in range(steps)]
            place = session.run(nf.data.save_state(batch["x"]))
        cluster.close()
        return found, place

    straight, _ = seen(1, None, 9)
    begun, kept = seen(first, None, 4)
    rest, _ = seen(then, kept, 5)
    assert begun + rest == straight


def test_the_place_is_asked_for_where_the_replicas_are() -> None:
    """Also where it was asked for before there were any, on a device that has none."""
    cluster = InProcessCluster(3, 1)
    with Graph().as_default() as graph, Session(cluster, graph) as session:
        batch = nf.data.from_arrays({"x": np.ones((24, 2), np.float32)}).repeat().batch(6).next(name="d")
        loss = nf.mean(nf.layers.dense(batch["x"], 1, name="w"))
        step = nf.optim.SGD(0.1).minimize(loss, strategy=nf.train.DataParallel(workers="/job:worker/task:2"))
        place = nf.data.position(batch["x"])
        assert int(session.run(place)) == 0
        for _ in range(3):
            session.run(step)
        assert int(session.run(place)) == 3
    cluster.close()
