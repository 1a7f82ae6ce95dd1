"""The null backend: right shapes and no values, stated times, real coordination."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

import nbflow as nf
from nbflow.backends import null
from nbflow.backends.null import NullBackend
from nbflow.backends.null.array import NullArray, describe, described, zeros
from nbflow.backends.null.clock import Clock, Link
from nbflow.errors import PlacementError, Rejected
from nbflow.inprocess import InProcessCluster
from nbflow.machines import MACHINES, Machine, parse_machine
from nbflow.op import Cost
from nbflow.spec import spec_of
from nbflow.testing.cases import ROWS, Case, build, ids


@pytest.mark.parametrize("case", ROWS, ids=ids(ROWS))
def test_every_op_gives_the_shapes_that_numpy_gives(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(null, "SMALL", 0)  # nothing is computed that need not be
    graph = nf.Graph()
    with graph.as_default():
        outputs, feeds = build(case, lambda a: a.shape)
        here, there = nf.Session(), nf.Session(InProcessCluster(null=""))
        with here, there:
            assert {d.spec.type for d in there.cluster.devices()} == {"null"}
            for real, made in zip(here.run(outputs, feeds), there.run(outputs, feeds), strict=True):
                assert spec_of(made) == spec_of(real)


def test_zeros_take_no_memory_and_cannot_be_written() -> None:
    big = zeros((2**20, 2**20), np.dtype("float32"))
    assert big.nbytes == 2**42
    assert big.copy() is big
    big[0] = 1.0
    assert float(big[0, 0]) == 0.0


def test_zeros_travel_as_their_description() -> None:
    for value in (zeros((3, 0, 4), np.dtype("float32")), zeros((), nf.spec.BFLOAT16)):
        key, sent = describe("a;b:0;c@1", value, 1.5)
        assert sent.nbytes == 0
        plain, found, at = described(key)
        assert (plain, found.shape, found.dtype, at) == ("a;b:0;c@1", value.shape, value.dtype, 1.5)
    with pytest.raises(Rejected, match="damaged description"):
        described(key.replace("bfloat16", "object"))
    with pytest.raises(Rejected, match="damaged description"):
        described(key + null.array.MARK)


@pytest.mark.parametrize("strategy", [nf.train.DataParallel(ps=None), nf.train.LocalSGD(every=2)])
def test_copies_that_a_strategy_makes_get_a_value_that_is_not_there(strategy: object) -> None:
    with nf.Graph().as_default():
        data = nf.data.from_arrays({"x": np.zeros((64, 1), np.float32)}).repeat().batch(8).next()
        large = nf.Variable(nf.zeros((1, 5_000)), name="large")
        small = nf.Variable(nf.zeros((5_000, 1)), name="small")
        loss = nf.mean(nf.matmul(nf.matmul(data["x"], large), small) ** 2)
        step = nf.optim.SGD(0.1, momentum=0.9).minimize(loss, strategy=strategy)
        nf.set_cluster(InProcessCluster(workers=2, ps=1, null=""))
        try:
            assert nf.train.run(step, steps=5, show=False).status == "done"
            assert nf.run(large).shape == (1, 5_000)
        finally:
            nf.set_cluster(None)


# --- machines --------------------------------------------------------------------------------------------------------


def test_machines_are_named_or_described() -> None:
    assert parse_machine("") == Machine()
    assert parse_machine("h100").flops == MACHINES["h100"].flops
    mixed = parse_machine("H100/flops=2e14/op=2us")
    assert (mixed.flops, mixed.op_s, mixed.bytes_per_s) == (2e14, 2e-6, MACHINES["h100"].bytes_per_s)
    assert parse_machine("op=1.5ms/link=1e9/latency=100us").latency_s == pytest.approx(1e-4)
    assert Machine(flops=10.0, bytes_per_s=5.0, op_s=1.0).device.seconds(Cost(20.0, 20.0)) == 5.0
    assert Machine().device.seconds(Cost(20.0, 20.0)) == 0.0


@pytest.mark.parametrize("text", ["h101", "flops", "flops=fast", "op=1m", "link=1s", "op=-1", "k40/h100"])
def test_what_is_no_machine_is_told_what_is(text: str) -> None:
    with pytest.raises(PlacementError, match="write one of cpu, k40"):
        parse_machine(text)


# --- time ------------------------------------------------------------------------------------------------------------


def test_a_device_is_busy_beside_the_thread_that_asks() -> None:
    clock = Clock()
    start = time.monotonic()
    done = [clock.spend(0.01) for _ in range(3)][-1]
    asked = time.monotonic() - start
    clock.wait()
    assert asked < 0.03 <= done - start <= time.monotonic() - start


def test_tensors_queue_on_both_ends_of_a_link() -> None:
    machine = Machine(link_bytes_per_s=1000.0, latency_s=0.002)
    out, other, way_in = Link(machine), Link(machine), Link(machine)
    arrived: list[tuple[str, float]] = []
    both = threading.Barrier(2)

    def deliver(name: str) -> None:
        arrived.append((name, time.monotonic()))
        if len(arrived) == 3:
            both.wait(5.0)

    start = time.monotonic()
    for name, link in (("first", out), ("second", out), ("third", other)):
        way_in.arrive(10, link.leave(10), lambda name=name: deliver(name))  # type: ignore[misc]
    assert not arrived
    both.wait(5.0)
    # 10 ms a tensor: two of one sender, one of another that must wait for the receiver's way in.
    assert {name for name, _ in arrived} == {"first", "second", "third"}
    assert arrived[-1][1] - start >= 0.032
    assert arrived[0][1] - start >= 0.012


def test_a_link_without_a_rate_delivers_at_once() -> None:
    link, arrived = Link(Machine()), []
    link.arrive(10, link.leave(10), lambda: arrived.append(1))
    assert arrived == [1]


# --- steps -----------------------------------------------------------------------------------------------------------


def step_of(rows: int = 64) -> tuple[nf.Tensor, nf.Node]:
    hidden = nf.layers.dense(nf.random.normal((rows, 512)), 512, activation=nf.nn.relu)
    logits = nf.layers.dense(hidden, 10)
    loss = nf.mean(nf.nn.softmax_cross_entropy(logits, nf.zeros((rows,), dtype="int64")))
    return loss, nf.optim.Adam(0.1).minimize(loss, strategy=nf.train.DataParallel())


def test_a_training_step_takes_what_is_stated() -> None:
    with nf.Graph().as_default():
        loss, step = step_of()
        with nf.Session(InProcessCluster(workers=2, ps=1, null="op=0s/link=2e8")) as session:
            session.run(step)
            start = time.perf_counter()
            value, _ = session.run([loss, step])
            took = time.perf_counter() - start
    weights = 4 * (512 * 512 + 512 + 512 * 10 + 10)
    assert value.shape == ()
    # Both workers pull all weights over one link, and push as many gradients.
    assert took >= 2 * 2 * weights / 2e8


def test_state_is_kept_and_counters_count() -> None:
    with nf.Graph().as_default():
        count = nf.Variable(nf.constant(0, dtype="int64"), name="count", trainable=False)
        table = nf.Variable(nf.zeros((2**20, 2**10)), name="table")
        more = count.assign_add(1)
        rows = nf.take(table, nf.constant([1, 2, 3]), axis=0)
        cluster = InProcessCluster(workers=1, ps=1, null="")
        with nf.Session(cluster) as session:
            assert [int(session.run(more)) for _ in range(3)] == [1, 2, 3]
            assert session.run(rows).shape == (3, 2**10)
            assert session.run(table.assign(nf.ones((2**20, 2**10)))[0, :2]).tolist() == [0.0, 0.0]


def test_loops_end_when_their_counters_say_so() -> None:
    with nf.Graph().as_default():
        last, big = nf.while_loop(
            lambda n, x: n < 5, lambda n, x: (n + 1, x @ x), [nf.constant(0), nf.random.normal((64, 64))]
        )
        with nf.Session(InProcessCluster(null="")) as session:
            number, value = session.run([last, big])
        assert (int(number), value.shape) == (5, (64, 64))


def test_null_devices_work_beside_real_ones() -> None:
    with nf.Graph().as_default():
        with nf.device("/job:worker/task:0"):
            made = nf.random.normal((64, 64))
        total = nf.sum(made)
        with nf.Session(InProcessCluster(workers=2, null="link=1e6")) as session:
            start = time.perf_counter()
            with nf.device("/job:worker/task:1"):
                moved = nf.sum(made + 1.0)
            session.run([total, moved])
            assert time.perf_counter() - start >= 64 * 64 * 4 / 1e6


def test_the_table_is_numpys() -> None:
    backend = NullBackend("k40")
    assert set(backend.table) == set(null.NUMPY)
    assert isinstance(backend.empty((100, 100), np.dtype("int8")), NullArray)
    assert backend.empty((3,), np.dtype("int8")).shape == (3,)


def test_a_hundred_workers_in_one_process_make_a_step_together() -> None:
    workers, ps = 100, 3
    with nf.Graph().as_default():
        updates = []
        for number in range(ps):
            with nf.device(f"/job:ps/task:{number}"):
                part = nf.Variable(nf.constant(0.0), name=f"part_{number}")
                value = part.read()
            found = []
            for worker in range(workers):
                with nf.device(f"/job:worker/task:{worker}"):
                    found.append(value + 1.0)
            with nf.device(f"/job:ps/task:{number}"):
                updates.append(part.assign_add(nf.add_n(found)))
        with nf.Session(InProcessCluster(workers, ps, null="latency=1us")) as session:
            # Scalars are really computed: every worker's number is in the sum.
            assert {float(v) for v in session.run(updates)} == {100.0}
            assert {float(v) for v in session.run(updates)} == {100.0 + 100 * 101.0}
