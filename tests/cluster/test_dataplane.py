"""Tensors between processes: shared memory, ZeroMQ, and frames, each by itself and with hostile input."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from nbflow import codec
from nbflow.errors import Rejected, WorkerLost
from nbflow.proto import wire_pb2
from nbflow_workers.dataplane import shm
from nbflow_workers.dataplane.base import Endpoint, SessionKey
from nbflow_workers.dataplane.plane import PeerDataPlane
from nbflow_workers.dataplane.zmq import FRAME_BYTES
from nbflow_workers.frames import CHUNK_BYTES, Incoming, Outgoing
from nbflow_workers.proto import worker_pb2 as pb
from tests.planes import Inbox

A, B = "/job:worker/task:0", "/job:worker/task:1"
KEY = SessionKey("s", b"x" * 32)
WAIT_S = 20.0


def segments() -> set[str]:
    return {n for n in os.listdir(shm.FOLDER) if n.startswith("nbflow-")}


def own_threads() -> int:
    # pyzmq keeps a thread of its own once something was sent without a copy.
    return sum("zmq" not in type(t).__module__ for t in threading.enumerate())


def open_files() -> list[str]:
    """What this process has open that a leak would add to."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
        if target.startswith(("/memfd:", "socket:")):
            found.append(target.split(":")[0])
    return sorted(found)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    before, threads, files = segments(), own_threads(), open_files()
    yield
    gc.collect()
    assert segments() == before
    # Fewer, where those of an earlier test had not ended yet.
    assert own_threads() <= threads
    assert len(open_files()) <= len(files)


WAYS: dict[str, dict[str, Any]] = {
    "shared memory": {},
    "tcp": {"use_shm": False},
    "curve": {"use_shm": False, "encrypt": True},
}


@pytest.fixture(params=WAYS)
def planes(request: pytest.FixtureRequest) -> Iterator[tuple[PeerDataPlane, PeerDataPlane]]:
    made = PeerDataPlane(**WAYS[request.param]), PeerDataPlane(**WAYS[request.param])
    yield made
    for plane in made:
        plane.close()
        plane.close()


def join(planes: tuple[PeerDataPlane, PeerDataPlane]) -> tuple[list[Any], list[Inbox]]:
    peers = {A: planes[0].endpoint, B: planes[1].endpoint}
    inboxes = [Inbox(), Inbox()]
    return [p.open(KEY, i, peers) for p, i in zip(planes, inboxes, strict=True)], inboxes


@pytest.mark.parametrize("nbytes", [0, 4, 65_532, 65_536, FRAME_BYTES, 3 * FRAME_BYTES + 4])
def test_tensors_arrive_and_may_be_overwritten_at_once(planes: Any, nbytes: int) -> None:
    outboxes, inboxes = join(planes)
    value = np.random.default_rng(0).random(nbytes // 4, np.float32)
    expected = value.copy()
    for number in range(3):
        sending = outboxes[0].send(B, f"step-{number}", "k", value)
        assert sending is None or sending.wait(WAIT_S)
        value[:] = -1
        step, key, got = inboxes[1].queue.get(timeout=WAIT_S)
        assert (step, key) == (f"step-{number}", "k")
        np.testing.assert_array_equal(got, expected)
        value[:] = expected


def test_any_layout_and_both_directions(planes: Any) -> None:
    outboxes, inboxes = join(planes)
    for value in (np.arange(40_000.0).reshape(200, 200).T, np.arange(90_000)[::3], np.array(True), np.zeros((0, 9))):
        outboxes[0].send(B, "s", "k", value)
        outboxes[1].send(A, "s", "k", value)
        for inbox in inboxes:
            got = inbox.queue.get(timeout=WAIT_S)[2]
            np.testing.assert_array_equal(got, value)
            assert got.dtype == value.dtype


def test_many_threads_send(planes: Any) -> None:
    outboxes, inboxes = join(planes)

    def send(thread: int) -> None:
        for number in range(25):
            outboxes[0].send(B, str(thread), str(number), np.full(20_000, number, np.float32))

    threads = [threading.Thread(target=send, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    got = [inboxes[1].queue.get(timeout=WAIT_S) for _ in range(100)]
    for thread in threads:
        thread.join(WAIT_S)
    for thread in range(4):
        own = [(int(k), float(v[0])) for s, k, v in got if s == str(thread)]
        assert own == [(n, float(n)) for n in range(25)]


def test_strangers_are_not_heard(planes: Any) -> None:
    """Another secret, another session, and a task that is no peer."""
    outboxes, inboxes = join(planes)
    value = np.ones(3)
    peers = {A: planes[0].endpoint, B: planes[1].endpoint}
    stranger = PeerDataPlane(use_shm=bool(planes[0].endpoint.host_id))
    try:
        for key, name in ((SessionKey("s", b"y" * 32), A), (SessionKey("other", b"x" * 32), A), (KEY, "/job:x/task:9")):
            mine = {name: stranger.endpoint}
            with contextlib.suppress(WorkerLost):  # on one host it is cut off, perhaps before it has sent
                stranger.open(key, Inbox(), {**peers, **mine}).send(B, "s", "k", value)
            stranger.close_session(key.id)
        assert inboxes[1].empty()
    finally:
        stranger.close()
    outboxes[0].send(B, "s", "k", value)
    assert not inboxes[1].empty(WAIT_S)


def test_without_the_public_key_nothing_gets_through() -> None:
    planes = PeerDataPlane(use_shm=False, encrypt=True), PeerDataPlane(use_shm=False, encrypt=True)
    try:
        _, inboxes = join(planes)
        planes[0].close_session("s")
        blind = {B: Endpoint(planes[1].endpoint.address, zmq.curve_keypair()[0], "")}
        with pytest.raises(WorkerLost, match=B):
            planes[0].open(KEY, Inbox(), blind).send(B, "s", "k", np.ones(1))
        assert inboxes[1].empty()
    finally:
        for plane in planes:
            plane.close()


def test_unknown_and_closed_peers(planes: Any) -> None:
    outboxes, inboxes = join(planes)
    with pytest.raises(WorkerLost, match="task:7"):
        outboxes[0].send("/job:worker/task:7", "s", "k", np.ones(1))
    planes[1].close_session("s")
    with contextlib.suppress(WorkerLost):
        outboxes[0].send(B, "s", "k", np.ones(1))
    assert inboxes[1].empty()
    planes[0].close_session("s")
    with pytest.raises(WorkerLost):
        outboxes[0].send(B, "s", "k", np.ones(1))


# --- shared memory ----------------------------------------------------------------------------------------------------


def test_segments_are_private_reused_and_gone() -> None:
    pool, reader = shm.Pool("nbflow-0123456789abcdef"), shm.Reader()
    names = []
    for number in range(5):
        message = codec.encode_array(np.full(20_000, number), lambda m, v: (pool.put(m, v), None)[1])
        names.append(message.segment.name)
        if number == 0:
            path = Path(shm.FOLDER) / message.segment.name
            assert path.stat().st_mode & 0o777 == 0o600
        np.testing.assert_array_equal(reader.get(message), np.full(20_000, number))
        assert message.segment.name not in segments()
    assert len(set(names)) == 1
    reader.close()
    pool.close()


def test_a_tensor_used_where_it_is_frees_its_segment_with_its_last_view() -> None:
    pool, reader = shm.Pool("nbflow-0123456789abcdef"), shm.Reader()
    message = codec.encode_array(np.arange(20_000), lambda m, v: (pool.put(m, v), None)[1])
    value = reader.get(message, copy=False)
    assert not value.flags.writeable
    view = value.reshape(2, -1)[1]
    del value
    other = codec.encode_array(np.zeros(20_000), lambda m, v: (pool.put(m, v), None)[1])
    assert other.segment.name != message.segment.name, "a segment that is looked at was written to"
    np.testing.assert_array_equal(view, np.arange(10_000, 20_000))
    del view
    again = codec.encode_array(np.zeros(20_000), lambda m, v: (pool.put(m, v), None)[1])
    assert again.segment.name == message.segment.name
    kept = reader.get(again, copy=False)
    reader.close()
    pool.close()
    assert kept.sum() == 0


def test_a_full_pool_says_so_and_leftovers_can_be_removed() -> None:
    pool = shm.Pool("nbflow-0123456789abcdef", limit_bytes=2**18)
    value = np.zeros(2**17, np.uint8)
    assert [pool.write(value) is not None for _ in range(3)] == [True, True, False]
    assert shm.remove_leftovers("nbflow-0123456789abcdef") == 2
    assert shm.remove_leftovers("nbflow-0123456789abcdef") == 0
    pool.close()
    assert pool.write(value) is None


@pytest.mark.parametrize("name", ["", "nbflow-", "../x", "/etc/passwd", "nbflow-0123456789abcdef-" + "0" * 32])
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    message = wire_pb2.Tensor(dtype="uint8", shape=[1], segment=wire_pb2.Segment(name=name, offset=64))
    with pytest.raises(Rejected):
        shm.Reader().get(message)


def test_tensors_that_do_not_lie_in_their_segment_are_refused() -> None:
    pool, reader = shm.Pool("nbflow-0123456789abcdef"), shm.Reader()
    message = wire_pb2.Tensor(dtype="uint8", shape=[2**16])
    assert pool.put(message, np.zeros(2**16, np.uint8))
    for shape, offset in (([2**30], 64), ([1], 0), ([1], 2**40)):
        bad = wire_pb2.Tensor(dtype="uint8", shape=shape)
        bad.segment.CopyFrom(wire_pb2.Segment(name=message.segment.name, offset=offset))
        with pytest.raises(Rejected, match="does not lie"):
            reader.get(bad)
    reader.close()
    pool.close()


# --- frames -----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from([1, 100, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES]), max_size=3))
def test_frames_come_back(sizes: list[int]) -> None:
    outgoing, incoming = Outgoing(), Incoming(pb.ToWorker)
    values = [np.random.default_rng(n).integers(0, 256, size, np.uint8) for n, size in enumerate(sizes)]
    message = pb.ToWorker()
    message.run.step_id = "s"
    for number, value in enumerate(values):
        tensor = message.run.feeds[str(number)]
        tensor.dtype = "uint8"
        tensor.shape.append(len(value))
        outgoing.put(tensor, value)
    *chunks, last = [incoming.feed(frame) for frame in outgoing.frames(message)]
    assert chunks == [None] * sum(-(-size // CHUNK_BYTES) for size in sizes)
    assert last == message
    for number, value in enumerate(values):
        np.testing.assert_array_equal(incoming.get(last.run.feeds[str(number)]), value)
        with pytest.raises(Rejected):
            incoming.get(last.run.feeds[str(number)])


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_noise_in_frames_is_refused_or_harmless(first: bytes, second: bytes) -> None:
    incoming = Incoming(pb.ToWorker)
    for frame in (first, second):
        # The two chunk kinds may announce gigabytes: that is the stream's own limit, tested with the server.
        if frame[:1] == b"\x01":
            continue
        try:
            incoming.feed(frame)
        except Rejected:
            return
