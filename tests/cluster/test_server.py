"""A worker's service against malformed input: an error to its sender, and nothing else is harmed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import nbflow_workers
from nbflow import wire
from nbflow.errors import Rejected, Unauthenticated
from nbflow.testing.transport import FIRST, add_bundle, command, pair
from nbflow_workers import Cluster, rpc
from nbflow_workers.channel import Link
from nbflow_workers.proto import worker_pb2 as pb
from nbflow_workers.security import Token

pytestmark = pytest.mark.cluster
SESSION = "victim"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with nbflow_workers.local(workers=2) as made:
        yield made


@pytest.fixture
def link(cluster: Cluster) -> Iterator[Link]:
    made = Link(cluster.workers()[0].address, cluster._token, name=FIRST)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def unharmed(cluster: Cluster) -> Iterator[None]:
    """Whatever a test sends: the session it did it beside still works afterwards."""
    doors = cluster.connect(SESSION)
    bundle = add_bundle(FIRST, (300, 300))
    doors[FIRST].register(bundle)
    yield
    x = np.zeros((300, 300), np.float32)
    np.testing.assert_array_equal(doors[FIRST].start(command(bundle, {"x": x})).result(30).fetches["y"], x + 1)


def call(link: Link, method: str, request: Any, session: str = SESSION) -> Any:
    return link.call(method, request, timeout_s=10, doing="testing", session=session)


def test_malformed_messages_are_refused(link: Link) -> None:
    channel = link._channel
    for method in rpc.METHODS.values():
        if method.name in ("Steps", "Shutdown", "CloseSession", "Describe", "Events"):
            continue
        kind = ("stream" if method.request_stream else "unary", "stream" if method.reply_stream else "unary")
        raw = getattr(channel, "{}_{}".format(*kind))(method.path)
        noise = b"\xff\xff\xff"
        with pytest.raises(grpc.RpcError) as caught:
            raw(iter([noise]) if method.request_stream else noise, timeout=10, metadata=link.metadata(SESSION))
        assert isinstance(caught.value, grpc.Call)
        assert caught.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL)


@pytest.mark.parametrize("data", [b"", b"noise", b"\x0dlfbn"])
def test_damaged_bundles_are_refused(link: Link, data: bytes) -> None:
    with pytest.raises(Rejected):
        call(link, "Register", pb.RegisterRequest(bundle=data))


def test_unknown_sessions_are_refused(link: Link) -> None:
    with pytest.raises(Rejected, match="not open"):
        call(link, "DropState", pb.DropStateRequest(), session="nobody's")


def test_constants_that_nobody_asked_for_are_refused(link: Link) -> None:
    chunks = [pb.BlobChunk(digest="00" * 32, nbytes=3, data=b"abc")]
    with pytest.raises(Rejected, match="no plan asked for"):
        call(link, "PutBlob", iter(chunks))


def test_damaged_constants_are_refused(link: Link) -> None:
    bundle, blobs = add_bundle(FIRST, (301, 301)), wire.Blobs()
    request = pb.RegisterRequest(bundle=wire.dumps(bundle, blobs.put))
    (digest,) = call(link, "Register", request).missing
    nbytes = blobs.arrays[digest].nbytes
    for data, announced in ((bytes(nbytes), nbytes), (b"short", nbytes), (bytes(nbytes), 5)):
        with pytest.raises(Rejected, match=r"damaged|announced"):
            call(link, "PutBlob", iter([pb.BlobChunk(digest=digest, nbytes=announced, data=data)]))
    assert list(call(link, "Register", request).missing) == [digest]


@pytest.mark.parametrize(
    "frames",
    [
        [b""],
        [b"\x00\xff\xff"],
        [b"\x07what"],
        [b"\x00"],
        [b"\x01\x01"],
        [b"\x02\x01\x00\x00\x00abc"],
        [b"\x01\x01\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00abc"],
        [b"\x01\x01\x00\x00\x00" + b"\xff" * 8],
    ],
    ids=["empty", "noise", "unknown kind", "nothing asked", "short", "no first chunk", "too long", "huge"],
)
def test_damaged_frames_end_only_their_stream(link: Link, frames: list[bytes]) -> None:
    held = threading.Event()

    def requests() -> Iterator[bytes]:
        yield from frames
        held.wait(10)

    stream = link.stream("Steps", requests(), link.metadata(SESSION))
    try:
        with pytest.raises(grpc.RpcError) as caught:
            list(stream)
    finally:
        held.set()
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_every_method_refuses_a_wrong_token(cluster: Cluster, link: Link) -> None:
    other = Link(link.address, Token("another-token-altogether"), name=FIRST)
    try:
        for method in rpc.METHODS.values():
            request = iter(()) if method.request_stream else method.request()
            if not method.reply_stream:
                with pytest.raises(Unauthenticated):
                    call(other, method.name, request)
                continue
            stream = other.stream(method.name, request, other.metadata(SESSION))
            with pytest.raises(grpc.RpcError) as caught:
                list(stream)
            assert isinstance(caught.value, grpc.Call)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    finally:
        other.close()
    assert [r.state for r in cluster.workers()][:1] != ["lost"]


def test_health_answers_without_a_token_and_while_steps_wait(cluster: Cluster) -> None:
    doors = cluster.connect(SESSION)
    _, receiver = pair("/job:worker/task:1", FIRST, 1)
    doors[FIRST].register(receiver)
    waiting = [command(receiver, lane=f"lane-{n}") for n in range(40)]
    futures = [doors[FIRST].start(c) for c in waiting]
    with grpc.insecure_channel(cluster.workers()[0].address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", rpc.SERVICE):
            reply = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError):
            list(stub.Watch(health_pb2.HealthCheckRequest(), timeout=5))
    for asked in waiting:
        doors[FIRST].cancel(asked.step_id, "enough").result(10)
    assert all(f.exception(10) is not None for f in futures)


def test_messages_beyond_the_limit_are_refused(link: Link) -> None:
    with pytest.raises(Rejected):
        call(link, "Register", pb.RegisterRequest(bundle=bytes(rpc.MAX_MESSAGE_BYTES + 1)))


def test_a_driver_that_goes_away_takes_its_steps_with_it(cluster: Cluster) -> None:
    """So that a notebook that died does not leave lanes blocked."""
    doors = cluster.connect("leaving")
    _, receiver = pair("/job:worker/task:1", FIRST, 1)
    doors[FIRST].register(receiver)
    future = doors[FIRST].start(command(receiver, deadline_s=600))
    pipe: Any = doors[FIRST]
    while not pipe._link.describe(timeout_s=5).running_steps:
        pass
    pipe._steps.close()
    assert future.exception(5) is not None
    deadline = threading.Event()
    for _ in range(200):
        if not pipe._link.describe(timeout_s=5).running_steps:
            break
        deadline.wait(0.05)
    assert not pipe._link.describe(timeout_s=5).running_steps
