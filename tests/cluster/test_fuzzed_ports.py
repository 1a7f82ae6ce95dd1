"""Noise on a worker's ports: it lives on, answers the next right request, and keeps nothing of the noise."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
import uuid
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
import zmq
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nbflow_workers
from nbflow import wire
from nbflow.proto import wire_pb2
from nbflow.testing.transport import FIRST, SECOND, add_bundle, command, pair, wait
from nbflow_workers import Cluster, rpc
from nbflow_workers.channel import Link
from nbflow_workers.proto import worker_pb2 as pb

pytestmark = pytest.mark.cluster

WAIT_S = 20.0
SLACK_DESCRIPTORS, SLACK_THREADS, SLACK_BYTES = 4, 4, 48 * 2**20
# Every one is a few ms, and nothing is shrunk: what matters is the state that a worker is in afterwards.
many = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))


class Victim:
    """Two workers, a session that is open on both, and what is right."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.session = f"fuzzed-{uuid.uuid4().hex[:8]}"
        self.doors = cluster.connect(self.session)
        self.link = Link(cluster.workers()[0].address, cluster._token, name=FIRST)
        self.secret = cluster._sessions[self.session]
        self._add = add_bundle(FIRST, (3,))
        self._pairs = [pair(FIRST, SECOND, 1), pair(SECOND, FIRST, 1)]
        for bundle in (self._add, *(b for both in self._pairs for b in both)):
            self.doors[bundle.task].register(bundle)

    def lives(self) -> None:
        x = np.ones(3, np.float32)
        assert wait(self.doors[FIRST].start(command(self._add, {"x": x}))).fetches["y"].tolist() == [2.0] * 3
        for sender, receiver in self._pairs:
            for size in (3, 100_000):
                x, step_id = np.arange(size, dtype=np.float32), uuid.uuid4().hex
                done = self.doors[receiver.task].start(command(receiver, step_id=step_id))
                wait(self.doors[sender.task].start(command(sender, {"x": x}, step_id=step_id)))
                np.testing.assert_array_equal(wait(done).fetches["y"], x + x)

    def level(self) -> tuple[int, int, int]:
        process = psutil.Process(self.cluster.workers()[0].pid)
        return process.num_fds(), process.num_threads(), process.memory_info().rss

    def close(self) -> None:
        self.link.close()
        for door in self.doors.values():
            door.close()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with nbflow_workers.local(workers=2) as made:
        warm = Victim(made)
        warm.lives()
        warm.close()
        yield made


@pytest.fixture
def victim(cluster: Cluster) -> Iterator[Victim]:
    """Before the noise, and after it, in the session that it came to and in the process."""
    made = Victim(cluster)
    made.lives()
    before = made.level()
    yield made
    made.lives()
    end = time.monotonic() + WAIT_S
    slack = (SLACK_DESCRIPTORS, SLACK_THREADS, SLACK_BYTES)
    while any(a > b + s for a, b, s in zip(made.level(), before, slack, strict=True)):
        assert time.monotonic() < end, f"descriptors, threads and bytes were {before}, and are {made.level()}"
        time.sleep(0.05)
    made.close()
    assert cluster.workers()[0].state != "lost"


# --- messages with anything in them -----------------------------------------------------------------------------------

_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_WORDS = [
    "",
    "x",
    "k",
    FIRST,
    SECOND,
    f"{FIRST}/cpu:0",
    "add",
    "send",
    "recv",
    "loop",
    "cond",
    "float32",
    "\0",
    "ä" * 99,
]


def one_of(draw: Any, field: Any, depth: int) -> Any:
    """A value of a field; None when messages are nested deep enough."""
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_MESSAGE:
        return anything(draw, field.message_type._concrete_class, depth + 1) if depth < 4 else None
    if kind in _INTEGERS:
        least, most = _INTEGERS[kind]
        return draw(st.sampled_from([0, 1, 2, least, most]) | st.integers(least, most))
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return draw(st.booleans())
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return draw(st.sampled_from([v.number for v in field.enum_type.values]))
    if kind == FieldDescriptor.CPPTYPE_STRING:
        words = draw(st.sampled_from(_WORDS))
        return words.encode() if field.type == FieldDescriptor.TYPE_BYTES else words
    return draw(st.floats(width=32))


def anything(draw: Any, message_type: Any, depth: int = 0) -> Any:
    """A message of this type, some of whose fields have some value."""
    made = message_type()
    for field in message_type.DESCRIPTOR.fields:
        if not draw(st.booleans()):
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            key, value = (one_of(draw, f, depth) for f in field.message_type.fields)
            if hasattr(value, "SerializeToString"):
                getattr(made, field.name)[key].CopyFrom(value)
            elif value is not None:
                getattr(made, field.name)[key] = value
            continue
        values = [one_of(draw, field, depth) for _ in range(draw(st.integers(1, 3)) if field.is_repeated else 1)]
        found = [v for v in values if v is not None]
        if field.is_repeated:
            getattr(made, field.name).extend(found)
        elif found and hasattr(found[0], "SerializeToString"):
            getattr(made, field.name).CopyFrom(found[0])
        elif found:
            setattr(made, field.name, found[0])
    return made


def damaged(draw: Any, data: bytes) -> bytes:
    """As it is, cut short, or with a byte changed."""
    how = draw(st.sampled_from(["whole", "whole", "half", "changed"]))
    if how == "half":
        return data[: draw(st.integers(0, len(data)))]
    if how == "changed" and data:
        at = draw(st.integers(0, len(data) - 1))
        return data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]
    return data


# --- the control plane ------------------------------------------------------------------------------------------------

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
http_frames = st.builds(
    lambda kind, flags, stream, body, lie: (
        struct.pack(">I", max(0, len(body) + lie))[1:] + struct.pack(">BBI", kind, flags, stream) + body
    ),
    st.integers(0, 12),
    st.integers(0, 255),
    st.integers(0, 2**32 - 1),
    st.binary(max_size=60),
    st.integers(-3, 2**20),
)


def pour(address: str, data: bytes) -> None:
    """Sends bytes over a connection of their own, and ends it; the other side may end it first."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=WAIT_S) as end, contextlib.suppress(OSError):
        end.sendall(data)
        end.shutdown(socket.SHUT_WR)


def test_bytes_on_the_grpc_port(victim: Victim) -> None:
    @many
    @given(st.binary(max_size=400) | st.lists(http_frames, max_size=5).map(lambda f: PREFACE + b"".join(f)))
    def check(data: bytes) -> None:
        pour(victim.link.address, data)

    check()


def outcome(call: Any) -> grpc.StatusCode:
    """How a call ends: always soon, and never because the worker is not there or failed by itself."""
    code: Any = grpc.StatusCode.OK
    try:
        call()
    except grpc.RpcError as error:
        code = error.code()  # type: ignore[attr-defined]  # every call's error is one of grpc.Call too
    assert code not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNKNOWN)
    return code


UNARY = [m for m in rpc.METHODS.values() if not m.reply_stream and m.name not in ("Shutdown", "CloseSession")]


@pytest.mark.parametrize("method", UNARY, ids=[m.name for m in UNARY])
def test_messages_to_every_method(victim: Victim, method: rpc.Method) -> None:
    kind = "stream_unary" if method.request_stream else "unary_unary"
    raw = getattr(victim.link._channel, kind)(method.path)

    @settings(many, max_examples=40)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        draw = data.draw
        requests = [self_made(draw, method) for _ in range(draw(st.integers(0, 3)) if method.request_stream else 1)]
        sent = iter(requests) if method.request_stream else requests[0]
        session = draw(st.sampled_from([victim.session, victim.session, "nobody's"]))
        metadata = victim.link.metadata(session)
        outcome(lambda: raw(sent, timeout=WAIT_S, metadata=metadata))

    check()


def self_made(draw: Any, method: rpc.Method) -> bytes:
    message = anything(draw, method.request)
    if method.name == "Register" and draw(st.booleans()):
        bundle = anything(draw, wire_pb2.Bundle)
        envelope = wire_pb2.Envelope(magic=wire._MAGIC, version=wire.WIRE_VERSION, bundle=bundle)
        message.bundle = envelope.SerializeToString()
    return damaged(draw, message.SerializeToString())


def test_wrong_tokens(victim: Victim) -> None:
    @settings(many, max_examples=60)
    @given(st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), max_size=60), st.sampled_from(UNARY))
    def check(token: str, method: rpc.Method) -> None:
        kind = "stream_unary" if method.request_stream else "unary_unary"
        raw = getattr(victim.link._channel, kind)(method.path)
        metadata = ((rpc.TOKEN_KEY, token), (rpc.SESSION_KEY, victim.session))
        sent = iter(()) if method.request_stream else b""
        assert outcome(lambda: raw(sent, timeout=WAIT_S, metadata=metadata)) is grpc.StatusCode.UNAUTHENTICATED

    check()


def test_frames_on_the_stream_of_steps(victim: Victim) -> None:
    @many
    @given(st.data())
    def check(data: st.DataObject) -> None:
        draw = data.draw
        frames = []
        for _ in range(draw(st.integers(0, 4))):
            kind = draw(st.sampled_from(["message", "first", "next", "noise"]))
            if kind == "message":
                frames.append(damaged(draw, b"\0" + anything(draw, pb.ToWorker).SerializeToString()))
            elif kind == "noise":
                frames.append(draw(st.binary(max_size=20)))
            else:
                run, size = draw(st.integers(0, 3)), draw(st.sampled_from([0, 3, 2**20, 2**63]))
                head = struct.pack("<BIQ", 1, run, size) if kind == "first" else struct.pack("<BI", 2, run)
                frames.append(damaged(draw, head + draw(st.binary(max_size=9))))
        metadata = (*victim.link.metadata(victim.session), (rpc.DRIVER_KEY, "somebody else"))
        raw = victim.link._channel.stream_stream("/" + rpc.SERVICE + "/Steps")
        outcome(lambda: list(raw(iter(frames), timeout=WAIT_S, metadata=metadata)))

    check()


# --- the data plane ---------------------------------------------------------------------------------------------------


def test_bytes_on_the_data_port(victim: Victim) -> None:
    address = victim.cluster._workers[FIRST].data.address.removeprefix("tcp://")
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\0NULL" + bytes(16) + bytes(32)

    @many
    @given(st.binary(max_size=300), st.booleans())
    def check(data: bytes, greets: bool) -> None:
        pour(address, greeting * greets + data)

    check()


def test_messages_on_the_data_port(victim: Victim) -> None:
    with zmq.Context() as context, context.socket(zmq.PUSH) as push:
        push.linger, push.sndtimeo = 5000, int(WAIT_S * 1000)
        push.connect(victim.cluster._workers[FIRST].data.address)

        @settings(many, max_examples=250)
        @given(st.data())
        def check(data: st.DataObject) -> None:
            draw = data.draw
            kind = draw(st.sampled_from([b"m", b"m", b"c", b"?", b""]))
            message = anything(draw, pb.DataChunk if kind == b"c" else pb.DataMessage)
            message.session = draw(st.sampled_from([victim.session, victim.session, "nobody's"]))
            message.source = draw(st.sampled_from([SECOND, SECOND, FIRST, "/job:x/task:9"]))
            secret = draw(st.sampled_from([victim.secret, victim.secret, b"", os.urandom(32)]))
            parts = [secret, kind, damaged(draw, message.SerializeToString()), draw(st.binary(max_size=40))]
            push.send_multipart(parts[: draw(st.integers(1, 4))])

        check()
    victim.lives()
