"""What is bad gets a clear error, to the right party, and the session goes on with right values: on real processes."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import psutil
import pytest
import zmq

import nbflow as nf
import nbflow_workers
from nbflow import driver
from nbflow.errors import (
    DeadlineExceeded,
    GraphError,
    NbflowError,
    OpError,
    PlacementError,
    Rejected,
    WorkerError,
    WorkerLost,
)
from nbflow.plan import Bundle, Plan
from nbflow.proto import wire_pb2
from nbflow.testing.transport import FIRST, SECOND, add_bundle, command, pair, wait
from nbflow_workers import Cluster
from nbflow_workers.client import GrpcTransport
from nbflow_workers.dataplane.base import Endpoint
from nbflow_workers.dataplane.local import _CHUNK, _HELLO, _MESSAGE, _PREFIX, name_of
from nbflow_workers.launchers.local import LocalLauncher
from nbflow_workers.proto import worker_pb2 as pb
from nbflow_workers.worker import TEST_VERSION_VARIABLE
from tests.cluster.test_attach import TOKEN, worker
from tests.liars import Liar
from tests.proxies import Proxy

pytestmark = pytest.mark.cluster

PS = "/job:ps/task:0"
WAIT_S = 30.0


class Used:
    """A session that has run, and counts on: what was wrong must not be seen in what comes after."""

    def __init__(self, cluster: Cluster) -> None:
        self.graph = nf.Graph()
        with self.graph.as_default():
            with nf.device("/job:worker/task:0"):
                kept = nf.Variable(np.arange(20_000, dtype=np.float32), name="kept")
                more = kept.assign_add(np.ones(20_000, np.float32))
            with nf.device(cluster.devices()[-1].spec.task_name):
                self._next = more * 2.0
        self.session = nf.Session(cluster, self.graph)
        self._count = 0
        self.goes_on()

    def goes_on(self) -> None:
        for _ in range(2):
            self._count += 1
            found = self.session.run(self._next)
            np.testing.assert_array_equal(found, 2 * (np.arange(20_000, dtype=np.float32) + self._count))

    def run(self, make: Callable[[], Any], **options: Any) -> Any:
        with self.graph.as_default():
            fetch = make()
        return self.session.run(fetch, **options)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with nbflow_workers.local(workers=2, ps=1) as made:
        yield made


@pytest.fixture
def used(cluster: Cluster) -> Iterator[Used]:
    made = Used(cluster)
    yield made
    made.goes_on()
    made.session.close()


# --- placement that cannot be satisfied -------------------------------------------------------------------------------


def test_a_device_that_is_not_there(used: Used) -> None:
    def elsewhere() -> nf.Tensor:
        with nf.device("/job:worker/task:7"):
            return nf.constant(1.0, name="lost") + 1.0

    with pytest.raises(PlacementError, match=r"'lost'.*/job:worker/task:7.*/job:worker/task:0/cpu:0.*made by"):
        used.run(elsewhere)


def test_two_that_must_be_together_and_apart(used: Used) -> None:
    def torn() -> nf.Tensor:
        with nf.device("/job:worker/task:0"):
            here = nf.constant(1.0, name="here")
        with nf.colocate_with(here), nf.device("/job:worker/task:1"):
            return nf.negative(here, name="there")

    with pytest.raises(PlacementError, match=r"'there'.*share a device with 'here'"):
        used.run(torn)


def test_more_backups_than_make_a_step(cluster: Cluster) -> None:
    with nf.Graph().as_default():
        nf.set_cluster(cluster)
        try:
            w = nf.Variable(np.float32(3.0), name="w")

            def step(backup: int) -> Any:
                strategy = nf.train.DataParallel(backup=backup)
                return nf.optim.SGD(0.5).minimize(w * w, strategy=strategy, name=f"step{backup}")

            with pytest.raises(GraphError, match=r"backup=1 of 2 workers leaves 1.*more of those than backups"):
                nf.train.run(step(1), steps=3, show=False)
            assert nf.run(w) == 3.0
            assert nf.train.run(step(0), steps=1, show=False).status == "done"
            assert nf.run(w) == 0.0
        finally:
            nf.set_cluster(None)


# --- a ps that is full ------------------------------------------------------------------------------------------------


def test_a_variable_that_no_ps_can_hold(used: Used) -> None:
    def huge() -> nf.Tensor:
        return nf.Variable(nf.zeros((2**36,), dtype="float32"), name="huge").read()[0]

    with pytest.raises(PlacementError, match=r"'huge' of 275 GB fits nowhere: /job:ps/task:0/cpu:0 has"):
        used.run(huge)


@contextlib.contextmanager
def full(cluster: Cluster, task: str, left_bytes: int) -> Iterator[None]:
    """While a worker may take only so much more memory."""
    process = psutil.Process(next(r.pid for r in cluster.workers() if r.task_name == task))
    before = process.rlimit(psutil.RLIMIT_AS)
    process.rlimit(psutil.RLIMIT_AS, (process.memory_info().vms + left_bytes, before[1]))
    try:
        yield
    finally:
        process.rlimit(psutil.RLIMIT_AS, before)


MIB = 2**20


def on(task: str, value: Callable[[], nf.Tensor]) -> nf.Tensor:
    with nf.device(task):
        return value()


@pytest.mark.parametrize("flags", [(), ("--no-shm",)], ids=["shared memory", "tcp"])
def test_a_ps_that_runs_full(flags: tuple[str, ...]) -> None:
    """While it makes a value, while it is sent one, while it is fed one, and while one is fetched from it."""
    with nbflow_workers.local(workers=1, ps=1, launcher=LocalLauncher(flags=flags)) as cluster:
        used = Used(cluster)
        with used.graph.as_default():
            fed = nf.placeholder("float32", [None], name="fed")
            made = on(PS, lambda: nf.Variable(nf.ones((32 * MIB,), dtype="float32"), name="made").read()[0])
            total = on(PS, lambda: nf.sum(fed))
            here = on(FIRST, lambda: nf.Variable(nf.ones((32 * MIB,), dtype="float32"), name="here").read())
            sent = on(PS, lambda: nf.sum(here))
        much = np.ones(32 * MIB, np.float32)
        run = used.session.run
        assert run(here[0]) == 1.0
        with full(cluster, PS, 64 * MIB):
            for _ in range(2):
                with pytest.raises(OpError, match=r"on /job:ps/task:0/cpu:0 failed: out of memory"):
                    run(made)
                used.goes_on()
                for fetch, feeds in ((sent, None), (total, {fed: much})):
                    with pytest.raises(
                        Rejected, match=r"/job:ps/task:0 is full|refused .*there is no memory"
                    ) as caught:
                        run(fetch, feeds, deadline_s=WAIT_S)
                    assert caught.value.worker == PS
                    used.goes_on()
        assert run([made, sent]) == [1.0, 32 * MIB]
        assert run(total, {fed: much}) == 32 * MIB
        used.goes_on()
        used.session.close()


# --- a worker of another version --------------------------------------------------------------------------------------


def test_a_worker_that_comes_back_in_another_version() -> None:
    with worker() as first, worker(**{TEST_VERSION_VARIABLE: "99"}) as second, Proxy(first) as proxy:
        with nbflow_workers.attach([proxy.address], token=TOKEN) as cluster:
            used = Used(cluster)
            for target in (second, first):
                proxy.cut()
                host, _, port = target.rpartition(":")
                proxy._target = (host, int(port))
                proxy.heal()
                said: list[str] = []
                end = time.monotonic() + WAIT_S
                while time.monotonic() < end:
                    try:
                        # Not a step that counts: one that went out as the link broke may have been done, or not.
                        used.run(lambda: nf.constant(1.0), deadline_s=5.0)
                    except NbflowError as error:
                        said.append(str(error))
                        if target == second and "speaks wire version 99, and was called in version 1;" in said[-1]:
                            break
                        time.sleep(0.05)
                    else:
                        if target == first:
                            break
                else:
                    pytest.fail(f"{said[-3:]}")
            used.goes_on()
            used.session.close()


# --- a plan with an unknown op ----------------------------------------------------------------------------------------


def changed(bundle: Bundle, change: Callable[[Plan], Plan]) -> Bundle:
    return dataclasses.replace(bundle, plans=tuple(change(p) for p in bundle.plans))


def test_an_unknown_op(used: Used, monkeypatch: pytest.MonkeyPatch) -> None:
    register = GrpcTransport.register

    def tampered(self: GrpcTransport, bundle: Bundle, **options: Any) -> None:
        def rename(plan: Plan) -> Plan:
            items = (dataclasses.replace(i, op="frobnicate") if i.op == "sinh" else i for i in plan.instructions)
            return dataclasses.replace(plan, instructions=tuple(items))

        register(self, changed(bundle, rename), **options)

    def hyperbolic() -> nf.Tensor:
        with nf.device("/job:worker/task:1"):
            return nf.sinh(nf.placeholder("float32", [], name="x"), name="bad")

    with used.graph.as_default():
        bad = hyperbolic()
    x = bad.node.inputs[0]
    monkeypatch.setattr(GrpcTransport, "register", tampered)
    with pytest.raises(
        Rejected, match=r"op 'frobnicate' \('bad'\), which this worker does not have.*made by"
    ) as caught:
        used.session.run(bad, {x: 0.0})
    assert SECOND in caught.value.worker
    monkeypatch.undo()
    assert used.session.run(bad, {x: 0.0}) == 0.0


def test_a_plan_for_somebody_else(cluster: Cluster) -> None:
    doors = cluster.connect("plans")
    good = add_bundle(FIRST, (3,))
    bad = changed(dataclasses.replace(good, id="other"), lambda p: dataclasses.replace(p, device=f"{SECOND}/cpu:0"))
    with pytest.raises(Rejected, match=f"a plan for {SECOND}/cpu:0 was given to {FIRST}"):
        doors[FIRST].register(bad)
    doors[FIRST].register(good)
    x = np.ones(3, np.float32)
    np.testing.assert_array_equal(wait(doors[FIRST].start(command(good, {"x": x}))).fetches["y"], x + 1)


# --- tensors that lie, and messages cut in half, between workers ------------------------------------------------------


def tensor(shape: tuple[int, ...] = (3,), dtype: str = "float32", **content: Any) -> wire_pb2.Tensor:
    return wire_pb2.Tensor(dtype=dtype, shape=shape, **content)


LIES = {
    "too few bytes": (tensor(data=bytes(11)), "12 bytes, 11 were sent"),
    "too many bytes": (tensor(data=bytes(13)), "12 bytes, 13 were sent"),
    "beyond all memory": (tensor((2**62, 2**62), data=bytes(12)), "no memory's size"),
    "an unknown dtype": (tensor(dtype="float7", data=bytes(12)), "float7"),
    "too many dimensions": (tensor((1,) * 99, data=bytes(4)), "99 dimensions"),
    "nothing": (tensor(), "without bytes"),
    "a segment that never came": (tensor(segment=wire_pb2.Segment(name="7")), "not handed over|without bytes"),
}


class Forger:
    """Sends to a worker as if it were another one of its session, over either way."""

    def __init__(self, cluster: Cluster, session: str, source: str, to: str) -> None:
        self.session, self.source = session, source
        self._secret = cluster._sessions[session]
        data = cluster._workers[to].data
        self._endpoint = Endpoint(data.address, data.public_key, data.host_id)

    def message(self, step_id: str, key: str, sent: wire_pb2.Tensor) -> bytes:
        item = pb.DataTensor(step_id=step_id, key=key, tensor=sent)
        data: bytes = pb.DataMessage(session=self.session, source=self.source, tensors=[item]).SerializeToString()
        return data

    def tcp(self, messages: Iterable[list[bytes]]) -> None:
        with zmq.Context() as context, context.socket(zmq.PUSH) as push:
            push.linger = 5000
            push.connect(self._endpoint.address)
            for parts in messages:
                push.send_multipart([self._secret, *parts])

    def local(self, frames: Iterable[bytes]) -> None:
        """The connection ends after the last frame."""
        hello = pb.DataHello(session=self.session, source=self.source, secret=self._secret).SerializeToString()
        with socket.socket(socket.AF_UNIX) as end:
            end.connect(name_of(self._endpoint))
            end.sendall(b"".join([_PREFIX.pack(_HELLO, len(hello), 0) + hello, *frames]))


def frame(kind: int, head: bytes, body: bytes = b"") -> bytes:
    return _PREFIX.pack(kind, len(head), len(body)) + head + body


@contextlib.contextmanager
def waiting(cluster: Cluster, name: str) -> Iterator[tuple[Forger, Any]]:
    """A step on the second worker that waits for a tensor of the first; afterwards, one that gets it."""
    doors = cluster.connect(name)
    sender, receiver = pair(FIRST, SECOND, 1)
    for bundle in (sender, receiver):
        doors[bundle.task].register(bundle)
    yield Forger(cluster, name, FIRST, SECOND), doors[SECOND].start(command(receiver, step_id="bad"))
    for number, size in enumerate((3, 100_000)):
        x = np.arange(size, dtype=np.float32)
        done = doors[SECOND].start(command(receiver, step_id=f"good {number}"))
        wait(doors[FIRST].start(command(sender, {"x": x}, step_id=f"good {number}")))
        np.testing.assert_array_equal(wait(done).fetches["y"], x + x)
    for door in doors.values():
        door.close()


@pytest.mark.parametrize("way", ["tcp", "local"])
@pytest.mark.parametrize("lie", LIES)
def test_a_tensor_that_lies_between_workers(cluster: Cluster, lie: str, way: str) -> None:
    sent, says = LIES[lie]
    with waiting(cluster, f"{lie} {way}") as (forger, running):
        data = forger.message("bad", "x->y", sent)
        if way == "tcp":
            forger.tcp([[b"m", data]])
        else:
            forger.local([frame(_MESSAGE, data)])
        with pytest.raises(Rejected, match=rf"{FIRST} sent 'x->y' malformed: .*({says})") as caught:
            running.result(WAIT_S)
        assert caught.value.worker == FIRST


def test_chunks_that_are_more_than_their_tensor(cluster: Cluster) -> None:
    with waiting(cluster, "more") as (forger, running):
        chunk = pb.DataChunk(session=forger.session, source=FIRST, transfer=9).SerializeToString()
        forger.tcp([[b"m", forger.message("bad", "x->y", tensor(chunks=9))], [b"c", chunk, bytes(13)]])
        with pytest.raises(Rejected, match="13 bytes came for a tensor of 12"):
            running.result(WAIT_S)


def test_half_a_tensor_between_workers(cluster: Cluster) -> None:
    with waiting(cluster, "half") as (forger, running):
        begun = frame(_MESSAGE, forger.message("bad", "x->y", tensor(chunks=9)))
        chunk = frame(_CHUNK, pb.DataChunk(transfer=9).SerializeToString(), bytes(12))
        forger.local([begun, chunk[:-6]])
        with pytest.raises(WorkerLost, match=rf"{FIRST} was cut off in the middle of 'x->y': 0 of 12 bytes came"):
            running.result(WAIT_S)


def test_half_a_message_between_workers(cluster: Cluster) -> None:
    """Nothing says whose it was: it is dropped, and the step waits for what is whole."""
    with waiting(cluster, "halves") as (forger, running):
        whole = forger.message("bad", "x->y", tensor(data=np.ones(3, np.float32).tobytes()))
        forger.tcp([[b"m"], [b"m", whole[:-20]], []])
        forger.local([frame(_MESSAGE, whole)[:-5]])
        assert not running.done()
        forger.tcp([[b"m", whole]])
        np.testing.assert_array_equal(running.result(WAIT_S).fetches["y"], [2.0, 2.0, 2.0])


# --- a worker that lies to the client ---------------------------------------------------------------------------------


class Lied:
    """A session with one worker, all of whose answers pass a liar."""

    def __init__(self, cluster: Cluster, liar: Liar) -> None:
        self.liar = liar
        self.used = Used(cluster)
        with self.used.graph.as_default():
            self.small, self.large = nf.full((5,), 3.0), nf.full((300_000,), 3.0)
            x = nf.placeholder("float32", [], name="x")
            self.fed = self.small + x
            self.fed_large = self.large + x
        self.feeds = {x: 4.0}

    def run(self, fetch: nf.Tensor, lie: Callable[[bytes], Iterable[bytes]], **options: Any) -> Any:
        self.liar.lie = lie
        try:
            return self.used.session.run(fetch, self.feeds, **options)
        finally:
            self.liar.lie = None

    def goes_on(self) -> None:
        """Maybe over a new connection."""
        end = time.monotonic() + WAIT_S
        while True:
            try:
                assert self.used.session.run(self.fed, self.feeds).tolist() == [7.0] * 5
                break
            except WorkerError:
                assert time.monotonic() < end
                time.sleep(0.02)
        self.used.goes_on()


@pytest.fixture(scope="module")
def lied() -> Iterator[Lied]:
    with worker("--no-shm") as address, Liar(address) as liar:
        with nbflow_workers.attach([liar.address], token=TOKEN) as cluster:
            made = Lied(cluster, liar)
            yield made
            made.used.session.close()


def answer(change: Callable[[pb.FromWorker], None]) -> Callable[[bytes], list[bytes]]:
    """A lie about what a step gave."""

    def lie(data: bytes) -> list[bytes]:
        if data[0]:
            return [data]
        message = pb.FromWorker.FromString(data[1:])
        if message.WhichOneof("kind") == "done":
            change(message)
        return [b"\0" + message.SerializeToString()]

    return lie


def fetched(change: Callable[[wire_pb2.Tensor], None]) -> Callable[[bytes], list[bytes]]:
    def each(message: pb.FromWorker) -> None:
        for value in message.done.fetches.values():
            change(value)

    return answer(each)


def reshaped(*shape: int) -> Callable[[wire_pb2.Tensor], None]:
    def change(value: wire_pb2.Tensor) -> None:
        value.shape[:] = shape

    return change


@pytest.mark.parametrize("shape", [(6,), (2**62, 2**62), (), (1,) * 80], ids=["more", "huge", "fewer", "long"])
@pytest.mark.parametrize("size", ["fed", "fed_large"])
def test_an_answer_that_lies_about_its_size(lied: Lied, size: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(Rejected, match=rf"{FIRST} sent .*(needs|no memory's size|80 dimensions)") as caught:
        lied.run(getattr(lied, size), fetched(reshaped(*shape)), deadline_s=WAIT_S)
    assert caught.value.worker == FIRST
    lied.goes_on()


def test_an_answer_that_is_cut_in_half(lied: Lied) -> None:
    with pytest.raises(WorkerError, match="damaged message"):
        lied.run(lied.fed, lambda data: [data[: len(data) // 2]], deadline_s=WAIT_S)
    lied.goes_on()


def test_an_answer_without_half_of_its_tensor(lied: Lied) -> None:
    with pytest.raises(Rejected, match=r"whose 1200000 bytes did not all come") as caught:
        lied.run(lied.fed_large, lambda data: [] if data[0] == 2 else [data], deadline_s=WAIT_S)
    assert caught.value.worker == FIRST
    lied.goes_on()


@pytest.mark.parametrize("data", [b"", b"\x07what", b"\x00\xff\xff", b"\x01\x01", b"\x02\x01\0\0\0abc", b"\x00"])
def test_an_answer_that_is_noise(lied: Lied, data: bytes) -> None:
    with pytest.raises(
        Rejected, match=rf"{FIRST} sent what cannot be taken: .*(damaged|before its first|nothing)"
    ) as caught:
        lied.run(lied.fed, lambda real: [data], deadline_s=WAIT_S)
    assert caught.value.worker == FIRST
    lied.goes_on()


def test_answers_that_come_twice_or_for_nobody(lied: Lied) -> None:
    def twice(data: bytes) -> list[bytes]:
        stranger = pb.FromWorker(done=wire_pb2.StepResult(step_id="nobody's"))
        cancelled = pb.FromWorker(cancelled=pb.CancelDone(step_id="nobody's"))
        return [*(b"\0" + m.SerializeToString() for m in (stranger, cancelled)), data, data]

    for _ in range(3):
        assert lied.run(lied.fed, twice).tolist() == [7.0] * 5
    lied.goes_on()


def test_a_worker_that_answers_for_a_step_that_was_cancelled(lied: Lied, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the next step runs: with a result, with an error, with both."""
    monkeypatch.setattr(driver, "GRACE_S", 0.1)
    monkeypatch.setattr(driver, "CANCEL_S", 1.0)
    late: list[bytes] = []
    held = threading.Event()

    def hold(data: bytes) -> list[bytes]:
        message = pb.FromWorker.FromString(data[1:])
        if message.WhichOneof("kind") == "cancelled":
            return [data]
        late.append(data)
        held.set()
        return []

    with pytest.raises(DeadlineExceeded, match=f"no word from {FIRST}"):
        lied.run(lied.fed, hold, deadline_s=0.1)
    assert held.wait(WAIT_S)
    step_id = pb.FromWorker.FromString(late[0][1:]).done.step_id
    error = wire_pb2.Error(type="OpError", message="too late")
    late.append(b"\0" + pb.FromWorker(failed=pb.StepFailed(step_id=step_id, error=error)).SerializeToString())
    assert lied.run(lied.fed, lambda data: [*late, data, *late]).tolist() == [7.0] * 5
    lied.goes_on()
