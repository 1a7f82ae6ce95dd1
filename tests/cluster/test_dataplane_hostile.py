"""The data plane and peers gone wrong: sizes that lie, messages cut in half, wrong secrets, noise."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from nbflow.errors import Rejected, WorkerLost
from nbflow.proto import wire_pb2
from nbflow.testing.transport import command, pair, wait
from nbflow_workers.dataplane.arrivals import STALLED_S, Arrivals
from nbflow_workers.dataplane.base import SessionKey
from nbflow_workers.dataplane.credit import Account
from nbflow_workers.dataplane.local import _CHUNK, _HELLO, _MESSAGE, _PREFIX, _SEGMENT, _Connection, name_of
from nbflow_workers.dataplane.memory import Buffers
from nbflow_workers.dataplane.plane import PeerDataPlane
from nbflow_workers.dataplane.segments import HEADER_BYTES, Pool, Reader
from nbflow_workers.proto import worker_pb2 as pb
from tests.planes import Inbox, PlaneCluster

A, B = "/job:worker/task:0", "/job:worker/task:1"
KEY = SessionKey("s", b"x" * 32)
WAIT_S = 20.0


def tensor(dtype: str = "float64", shape: tuple[int, ...] = (2,), **content: Any) -> wire_pb2.Tensor:
    return wire_pb2.Tensor(dtype=dtype, shape=shape, **content)


def item(sent: wire_pb2.Tensor, step: str = "step", key: str = "k") -> pb.DataTensor:
    return pb.DataTensor(step_id=step, key=key, tensor=sent)


def message(*items: pb.DataTensor) -> pb.DataMessage:
    return pb.DataMessage(session="s", source=A, tensors=items)


class Ends:
    """Arrivals by themselves, with what they say noted."""

    def __init__(self) -> None:
        self.inbox = Inbox()
        self.told: list[pb.DataMessage] = []
        self.account = Account(lambda a: None)
        self.arrivals = Arrivals(
            A,
            lambda: self.inbox,
            self.account,
            Buffers(),
            lambda source, said: None,
            lambda source, said: self.told.append(said),
            one_clock=False,
        )


# --- one tensor that is not what it says ------------------------------------------------------------------------------

LIES = {
    "too few bytes": (tensor(data=bytes(15)), "16 bytes, 15"),
    "too many bytes": (tensor(data=bytes(17)), "16 bytes, 17"),
    "unknown dtype": (tensor("float7", data=bytes(16)), "float7"),
    "no memory's size": (tensor(shape=(2**40, 2**40), data=b""), "no memory"),
    "too many dimensions": (tensor(shape=(1,) * 65, data=bytes(8)), "65 dimensions"),
    "no bytes": (tensor(), "without bytes"),
    "a segment of another host": (tensor(segment=wire_pb2.Segment(name="1")), "without bytes"),
    "too large": (tensor(shape=(2**36,), chunks=1), "may come"),
    "an empty transfer": (tensor(shape=(0,), chunks=1), "may come"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_fails_its_own_step_at_both_ends(lie: str) -> None:
    ends = Ends()
    sent, says = LIES[lie]
    ends.arrivals.message(
        message(item(tensor(data=bytes(16)), "good"), item(sent, "bad"), item(tensor(data=bytes(16)), "good"))
    )
    assert [ends.inbox.queue.get_nowait()[0] for _ in range(2)] == ["good", "good"]
    step, error = ends.inbox.failed.get_nowait()
    assert step == "bad"
    assert isinstance(error, Rejected)
    assert error.worker == A
    assert says in str(error)
    [told] = ends.told
    assert [(r.step_id, r.key) for r in told.refused] == [("bad", "k")]
    assert ends.account.held() == 0


def test_a_refusal_fails_the_senders_step() -> None:
    ends = Ends()
    ends.arrivals.message(pb.DataMessage(refused=[pb.DataKey(step_id="mine", key="k", reason="it was malformed")]))
    step, error = ends.inbox.failed.get_nowait()
    assert step == "mine"
    assert "it was malformed" in str(error)
    assert ends.told == []


@pytest.mark.parametrize(
    ("chunks", "says"),
    [([(0, 100), (100, 101)], "201 bytes came for a tensor of 200"), ([(0, 100), (50, 100)], "bytes from 50 on came")],
)
def test_chunks_that_do_not_fit(chunks: list[tuple[int, int]], says: str) -> None:
    ends = Ends()
    ends.arrivals.message(message(item(tensor("uint8", (200,), chunks=7))))
    for offset, nbytes in chunks:
        chunk = pb.DataChunk(transfer=7, offset=offset)
        if ends.arrivals.room(chunk) is not None:
            ends.arrivals.filled(chunk, nbytes)
    assert says in str(ends.inbox.failed.get_nowait()[1])
    assert ends.inbox.queue.empty()
    assert ends.arrivals.transfers == ends.account.held() == 0
    assert ends.arrivals.room(pb.DataChunk(transfer=7, offset=100)) is None, "the rest is still taken"


def test_half_a_tensor_fails_its_step_when_the_connection_ends() -> None:
    ends = Ends()
    ends.arrivals.message(message(item(tensor("uint8", (200,), chunks=7))))
    ends.arrivals.filled(pb.DataChunk(transfer=7, offset=0), 100)
    ends.arrivals.cut()
    step, error = ends.inbox.failed.get_nowait()
    assert step == "step"
    assert isinstance(error, WorkerLost)
    assert "100 of 200 bytes" in str(error)
    assert ends.account.held() == 0


def test_a_tensor_that_stops_half_way_fails_its_step() -> None:
    ends = Ends()
    ends.arrivals.message(message(item(tensor("uint8", (200,), chunks=7))))
    ends.arrivals.filled(pb.DataChunk(transfer=7, offset=0), 100)
    ends.arrivals.look(time.monotonic() + STALLED_S - 1)
    assert ends.inbox.failed.empty()
    ends.arrivals.look(time.monotonic() + STALLED_S + 1)
    step, error = ends.inbox.failed.get_nowait()
    assert step == "step"
    assert isinstance(error, WorkerLost)
    assert "stopped in the middle of 'k'" in str(error)
    assert ends.arrivals.transfers == ends.account.held() == 0


def test_the_rest_of_a_step_that_is_over_is_not_kept() -> None:
    ends = Ends()
    ends.arrivals.message(message(item(tensor("uint8", (200,), chunks=7)), item(tensor("uint8", (9,), chunks=8), "on")))
    ends.arrivals.end("step")
    assert ends.arrivals.transfers == 1
    assert ends.arrivals.room(pb.DataChunk(transfer=7, offset=0)) is None
    assert ends.inbox.failed.empty()


contents = st.one_of(
    st.builds(lambda b: {"data": b}, st.binary(max_size=40)),
    st.builds(lambda n: {"chunks": n}, st.integers(0, 3)),
    st.builds(lambda n: {"segment": wire_pb2.Segment(name=n)}, st.sampled_from(["", "1", "x", "9" * 30])),
    st.just({}),
)
tensors = st.builds(
    lambda dtype, shape, content: tensor(dtype, tuple(shape), **content),
    st.sampled_from(["uint8", "float64", "bfloat16", "bool", "", "O"]),
    st.lists(st.sampled_from([0, 1, 2, 5, 2**33, 2**63]), max_size=4),
    contents,
)
keys = st.builds(
    lambda step, nbytes: pb.DataKey(step_id=step, key="k", nbytes=nbytes),
    st.sampled_from(["", "a"]),
    st.integers(0, 99),
)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.one_of(tensors, st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 9))), max_size=8),
    st.lists(keys, max_size=2),
)
def test_any_messages_and_chunks(sent: list[Any], about: list[pb.DataKey]) -> None:
    """Never another error than a refusal, and no memory is left when what came is gone."""
    ends = Ends()
    for one in sent:
        if isinstance(one, tuple):
            number, offset, nbytes = one
            chunk = pb.DataChunk(transfer=number, offset=offset)
            if ends.arrivals.room(chunk) is not None:
                ends.arrivals.filled(chunk, nbytes)
        else:
            ends.arrivals.message(pb.DataMessage(tensors=[item(one)], stalled=about, granted=about, refused=about))
    ends.arrivals.cut()
    ends.inbox.clear()
    assert ends.account.held() == 0


# --- a stream gone wrong ----------------------------------------------------------------------------------------------


def frame(kind: int, head: Any, body: bytes = b"") -> bytes:
    data = head if isinstance(head, bytes) else head.SerializeToString()
    return _PREFIX.pack(kind, len(data), len(body)) + data + body


HELLO = frame(_HELLO, pb.DataHello(session="s", source=A, secret=KEY.secret))
GOOD = frame(_MESSAGE, message(item(tensor(data=bytes(16)))))
LARGE = frame(_MESSAGE, message(item(tensor("uint8", (3000,), chunks=1))))
CHUNKS = b"".join(frame(_CHUNK, pb.DataChunk(transfer=1, offset=start), bytes(1000)) for start in range(0, 3000, 1000))


class Wire:
    """One end of a connection whose other end is written to by hand."""

    def __init__(self) -> None:
        self.ends = Ends()
        self.here, there = socket.socketpair()
        there.setblocking(False)
        self.connection = _Connection(there, lambda *asked: self.ends.arrivals if asked[2] == KEY.secret else None)

    def feed(self, data: bytes) -> None:
        """Raises what the connection raises."""
        for start in range(0, len(data), 50_000):
            self.here.sendall(data[start : start + 50_000])
            while self.connection.read():
                if not self.here.fileno() or not _readable(self.connection.socket):
                    break

    def close(self) -> None:
        self.here.close()
        self.connection.close()


def _readable(one: socket.socket) -> bool:
    try:
        return bool(one.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


@pytest.fixture
def stream() -> Iterator[Wire]:
    made = Wire()
    yield made
    made.close()


@pytest.mark.parametrize("step", [1, 7, 4096])
def test_a_stream_may_come_in_any_pieces(stream: Wire, step: int) -> None:
    data = HELLO + GOOD + LARGE + CHUNKS + GOOD
    for start in range(0, len(data), step):
        stream.feed(data[start : start + step])
    assert [stream.ends.inbox.queue.get_nowait()[2].nbytes for _ in range(3)] == [16, 3000, 16]


@pytest.mark.parametrize(
    "bad",
    [
        GOOD,
        frame(_HELLO, pb.DataHello(session="s", source=A, secret=b"y" * 32)),
        HELLO + frame(_MESSAGE, b"\xff\xff\xff"),
        HELLO + frame(99, b""),
        HELLO + frame(_MESSAGE, message(), b"body"),
        HELLO + struct.pack("<BII", _MESSAGE, 2**31, 0),
        HELLO + struct.pack("<BII", _CHUNK, 0, 2**31),
        HELLO + frame(_SEGMENT, pb.DataSegment(number=1, nbytes=100)),
    ],
)
def test_streams_that_cannot_go_on_are_cut(stream: Wire, bad: bytes) -> None:
    with pytest.raises(Rejected):
        stream.feed(bad)
    assert stream.ends.inbox.queue.empty()


def test_a_chunk_larger_than_its_tensor_does_not_stop_the_stream(stream: Wire) -> None:
    stream.feed(HELLO + LARGE + frame(_CHUNK, pb.DataChunk(transfer=1, offset=0), bytes(3001)) + GOOD)
    assert "3001 bytes came" in str(stream.ends.inbox.failed.get_nowait()[1])
    assert stream.ends.inbox.queue.get_nowait()[2].nbytes == 16


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_noise_in_a_stream(data: st.DataObject) -> None:
    raw = bytearray(HELLO + GOOD + LARGE + CHUNKS + GOOD)
    for _ in range(data.draw(st.integers(0, 4))):
        raw[data.draw(st.integers(len(HELLO), len(raw) - 1))] = data.draw(st.integers(0, 255))
    wire = Wire()
    try:
        with contextlib.suppress(Rejected):
            wire.feed(bytes(raw[: data.draw(st.integers(0, len(raw)))]))
    finally:
        wire.close()
    wire.ends.inbox.clear()
    assert wire.ends.account.held() == 0


def test_descriptors_that_are_no_segments_are_refused_and_closed() -> None:
    before = len(os.listdir("/proc/self/fd"))
    reader = Reader()
    read, write = os.pipe()
    shrinks = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    os.ftruncate(shrinks, 2 * HEADER_BYTES)
    small = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    for descriptor, says in ((read, "announced"), (write, "announced"), (small, "announced"), (shrinks, "shrink")):
        with pytest.raises(Rejected, match=says):
            reader.add(1, 100, descriptor)
    assert len(os.listdir("/proc/self/fd")) == before


def test_tensors_that_do_not_lie_in_their_segment_are_refused() -> None:
    pool, reader = Pool(), Reader()
    segment = pool.write(np.zeros(2**16, np.uint8))
    assert segment is not None
    reader.add(segment.number, segment.capacity, os.dup(segment.descriptor))
    byte = np.dtype(np.uint8)
    for number, nbytes, says in ((9, 10, "not handed over"), (1, segment.capacity + 1, "does not lie"), (1, 0, "lie")):
        with pytest.raises(Rejected, match=says):
            reader.get(number, byte, (nbytes,), nbytes, lambda: None)
    value = reader.get(1, byte, (2**16,), 2**16, lambda: None)
    with pytest.raises(ValueError, match="read-only"):
        value[0] = 1
    del value
    with pytest.raises(Rejected, match="free"):
        reader.get(1, byte, (10,), 10, lambda: None)
    pool.close()
    reader.close()


# --- over sockets -----------------------------------------------------------------------------------------------------


@pytest.fixture(params=[True, False], ids=["shared memory", "tcp"])
def planes(request: pytest.FixtureRequest) -> Iterator[tuple[PeerDataPlane, PeerDataPlane]]:
    made = PeerDataPlane(use_shm=request.param), PeerDataPlane(use_shm=request.param)
    yield made
    for plane in made:
        plane.close()


def raw_tcp(plane: PeerDataPlane, messages: list[list[bytes]]) -> None:
    """What a peer with a bad program could send."""
    with zmq.Context() as context, context.socket(zmq.PUSH) as push:
        push.linger = 5000
        push.connect(plane.endpoint.address)
        for frames in messages:
            push.send_multipart(frames)


def test_bad_messages_over_tcp_are_dropped_and_good_ones_go_on() -> None:
    plane = PeerDataPlane(use_shm=False)
    try:
        inbox = Inbox()
        plane.open(KEY, inbox, {A: plane.endpoint, B: plane.endpoint})
        secret, good = KEY.secret, message(item(tensor(data=bytes(16)))).SerializeToString()
        large = message(item(tensor("uint8", (10,), chunks=1), "large")).SerializeToString()

        def chunk(offset: int) -> bytes:
            return bytes(pb.DataChunk(session="s", source=A, transfer=1, offset=offset).SerializeToString())

        stranger = pb.DataMessage(session="s", source="/job:x/task:5", tensors=[item(tensor(data=bytes(16)))])
        raw_tcp(
            plane,
            [
                [b"x"],
                [secret, b"m"],
                [secret, b"m", b"\xff\xff"],
                [secret, b"?", good],
                [secret, b"m", bytes(2**20 + 1)],
                [b"y" * 32, b"m", good],
                [secret, b"m", stranger.SerializeToString()],
                [secret, b"c", chunk(0), b"no such transfer"],
                [secret, b"c", b"\xff"],
                [secret, b"m", large],
                [secret, b"c", chunk(0)],
                [secret, b"c", chunk(0), bytes(5), b"one part too many"],
                [secret, b"c", chunk(5), bytes(6)],
                [secret, b"m", good],
            ],
        )
        assert inbox.queue.get(timeout=WAIT_S)[0] == "step"
        assert inbox.queue.empty()
        step, error = inbox.failed.get(timeout=WAIT_S)
        assert step == "large"
        assert "11 bytes came for a tensor of 10" in str(error)
    finally:
        plane.close()


def test_a_sender_that_dies_in_the_middle_fails_the_step_it_was_in() -> None:
    plane = PeerDataPlane()
    try:
        inbox = Inbox()
        plane.open(KEY, inbox, {A: plane.endpoint, B: plane.endpoint})
        with socket.socket(socket.AF_UNIX) as end:
            end.connect(name_of(plane.endpoint))
            end.sendall(HELLO + LARGE + CHUNKS[:1500])
        step, error = inbox.failed.get(timeout=WAIT_S)
        assert step == "step"
        assert "cut off" in str(error)
    finally:
        plane.close()


def test_the_session_goes_on_after_a_malformed_tensor(planes: Any) -> None:
    """A real receiver's step fails with the reason, the sender hears of it, and the next step runs."""
    with contextlib.closing(PlaneCluster(2, use_shm=bool(planes[0].endpoint.host_id))) as cluster:
        doors = cluster.connect("s")
        sender, receiver = pair(A, B, 1)
        for bundle in (sender, receiver):
            doors[bundle.task].register(bundle)
        running = doors[B].start(command(receiver, step_id="bad"))
        outbox = cluster.planes[A]._sessions["s"].outbox
        lie = item(tensor("float32", (3,), data=bytes(5)), "bad", "x->y")
        outbox.control(B, pb.DataMessage(tensors=[lie]))
        error = running.exception(WAIT_S)
        assert isinstance(error, Rejected)
        assert "12 bytes, 5 were sent" in str(error)
        x = np.ones(3, np.float32)
        done = doors[B].start(command(receiver, step_id="good"))
        doors[A].start(command(sender, {"x": x}, step_id="good"))
        np.testing.assert_array_equal(wait(done).fetches["y"], x + x)
        # The sender's own part of that step is over too, once it has heard.
        end = time.monotonic() + WAIT_S
        while "bad" not in outbox._aborted and time.monotonic() < end:
            time.sleep(0.002)
        late = doors[A].start(command(sender, {"x": x}, step_id="bad"))
        assert isinstance(late.exception(WAIT_S), Rejected)
