"""The methods of a worker as a table, from which server and client are both made; and the channel options of both.

`proto/worker.proto` declares the same methods, but `Steps`, whose messages are raw frames (`frames.py`); a test holds
the two together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

from nbflow_workers.proto import worker_pb2 as pb

SERVICE = "nbflow.workers.v1.Worker"
SESSION_KEY = "nbflow-session"
# Which process the caller means: another one at the same address does not have what it counts on.
INCARNATION_KEY = "nbflow-incarnation"
# Who drives the steps of a stream: `client`, or a task. It has one such stream in a session.
DRIVER_KEY = "nbflow-driver"
TOKEN_KEY = "authorization"

# Plans are small (large constants travel as blobs), results inline are below 64 KiB each. A limit keeps a wrong
# or hostile message from taking a worker's memory.
MAX_MESSAGE_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Method:
    """One method: message classes (None: raw bytes) and which sides are streams."""

    name: str
    request: Any
    reply: Any
    request_stream: bool = False
    reply_stream: bool = False

    @property
    def path(self) -> str:
        return f"/{SERVICE}/{self.name}"


METHODS = {
    m.name: m
    for m in (
        Method("Describe", pb.DescribeRequest, pb.DescribeReply),
        Method("OpenSession", pb.OpenSessionRequest, pb.OpenSessionReply),
        Method("CloseSession", pb.Empty, pb.Empty),
        Method("Register", pb.RegisterRequest, pb.RegisterReply),
        Method("PutBlob", pb.BlobChunk, pb.Empty, request_stream=True),
        Method("Steps", None, None, request_stream=True, reply_stream=True),
        Method("StartLoop", pb.StartLoopRequest, pb.Empty),
        Method("ControlLoop", pb.ControlLoopRequest, pb.Empty),
        Method("DropState", pb.DropStateRequest, pb.Empty),
        Method("Unregister", pb.UnregisterRequest, pb.Empty),
        Method("Events", pb.Empty, pb.EventReply, reply_stream=True),
        Method("Runs", pb.Empty, pb.RunsReply),
        Method("ReadRun", pb.ReadRunRequest, pb.ReadRunReply),
        Method("LookAtFolder", pb.LookAtFolderRequest, pb.LookAtFolderReply),
        Method("Shutdown", pb.Empty, pb.Empty),
    )
}

_SIZES = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
]

# Keepalive alone does not see a stopped process; with ping_timeout_ms it is found in about 2 s. The argument is not in
# gRPC's public header, so a test pins it. 2 s each way stays below the promise of 5 s.
CLIENT_OPTIONS: list[tuple[str, Any]] = [
    *_SIZES,
    ("grpc.keepalive_time_ms", 1500),
    ("grpc.keepalive_timeout_ms", 2500),
    ("grpc.http2.ping_timeout_ms", 2500),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    # Despite its name it is how long an attempt to connect may take at least: a packet of the handshake that is lost
    # comes again after 0.2 s and more.
    ("grpc.min_reconnect_backoff_ms", 1500),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A proxy between a notebook and its workers is never meant.
    ("grpc.enable_http_proxy", 0),
]

SERVER_OPTIONS: list[tuple[str, Any]] = [
    *_SIZES,
    # Without these two, clients that ping are sent away as `too_many_pings`.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 10_000),
    # By default a second server may take the same port without an error.
    ("grpc.so_reuseport", 0),
]


def _serialize(message_type: Any) -> Callable[[Any], bytes] | None:
    return None if message_type is None else message_type.SerializeToString


def _parse(message_type: Any) -> Callable[[bytes], Any] | None:
    return None if message_type is None else message_type.FromString


def handlers(service: object) -> Any:
    """A gRPC handler that calls the method of `service` of the same name in snake_case, for every row of the table."""
    made = {}
    for method in METHODS.values():
        snake = "".join(f"_{c.lower()}" if c.isupper() else c for c in method.name).lstrip("_")
        kind = ("stream" if method.request_stream else "unary", "stream" if method.reply_stream else "unary")
        make = getattr(grpc, "{}_{}_rpc_method_handler".format(*kind))
        made[method.name] = make(
            getattr(service, snake),
            request_deserializer=_parse(method.request),
            response_serializer=_serialize(method.reply),
        )
    return grpc.method_handlers_generic_handler(SERVICE, made)


def callables(channel: grpc.Channel) -> dict[str, Any]:
    """The callables of a channel by method name."""
    made: dict[str, Any] = {}
    for method in METHODS.values():
        kind = ("stream" if method.request_stream else "unary", "stream" if method.reply_stream else "unary")
        make = getattr(channel, "{}_{}".format(*kind))
        made[method.name] = make(
            method.path,
            request_serializer=_serialize(method.request),
            response_deserializer=_parse(method.reply),
        )
    return made
