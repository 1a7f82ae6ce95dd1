"""Peers on other hosts: ZeroMQ over TCP. One PULL socket takes all that comes; a peer has two PUSH sockets, one for
messages and one for large tensors, so that a small tensor does not wait behind a large one.

A message is [secret, kind, head] or [secret, chunk, head, bytes]: large tensors go in frames of 4 MiB, sent from where
they lie (no copy), and received into memory that exists. Beyond loopback all connections are encrypted with CURVE,
whose keys the control plane hands over; only those who were given a worker's public key can complete a handshake.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import zmq
from google.protobuf.message import DecodeError

from nbflow.errors import NbflowError, Rejected, WorkerLost
from nbflow.transport import HostArray
from nbflow_workers.dataplane.arrivals import Arrivals
from nbflow_workers.dataplane.base import LOOK_S, SEND_TIMEOUT_S, Endpoint, FindArrivals
from nbflow_workers.frames import bytes_of
from nbflow_workers.proto import worker_pb2 as pb

log = logging.getLogger("nbflow.dataplane")

# ZeroMQ is fastest with frames of 1 to 16 MB; one frame of 100 MB is three times slower.
FRAME_BYTES = 4 * 2**20
# Measured: 1 MiB of kernel buffer gains a fifth over the default, more gains nothing.
SOCKET_BYTES = 2**20
# Frames waiting for one peer. They lie where the tensor lies, so this bounds nothing but their number.
HIGH_WATER = 1024
# Frames that came and wait for our thread, per peer: these are copies.
RECEIVED = 32
# A frozen peer is disconnected after this long, so that `send` notices.
HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS = 1000, 3500
MAX_HEAD_BYTES = 2**20
_MESSAGE, _CHUNK = b"m", b"c"
_STOP = "inproc://nbflow-stop"


# The scheme of an endpoint's address says whether its connections are encrypted.
PLAIN, ENCRYPTED = "tcp://", "curve://"


# --- sending ----------------------------------------------------------------------------------------------------------


class Sent:
    """A large tensor on its way: ZeroMQ reads it where it lies until `wait` says True."""

    def __init__(self, tracker: Any) -> None:
        self._tracker = tracker

    def wait(self, timeout_s: float) -> bool:
        try:
            self._tracker.wait(timeout_s)
        except zmq.NotDone:
            return False
        return True


class ZmqLink:
    """The way to one peer. `is_gone()`: nobody wants its tensors any more."""

    via = "tcp"

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        task: str,
        endpoint: Endpoint,
        hello: pb.DataHello,
        is_gone: Callable[[], bool],
    ) -> None:
        self._task, self._endpoint, self._hello, self._is_gone = task, endpoint, hello, is_gone
        # ZeroMQ's sockets belong to one thread at a time.
        self._lock, self._bulk_lock = threading.Lock(), threading.Lock()
        self._numbers = itertools.count(1)
        self._small = _push(context, endpoint)
        self._bulk = _push(context, endpoint)

    def post(self, message: pb.DataMessage, patience_s: float = SEND_TIMEOUT_S) -> None:
        """Sends a message without large tensors."""
        with self._lock:
            parts = [self._hello.secret, _MESSAGE, message.SerializeToString()]
            self._send(self._small, parts, patience_s=patience_s)

    def large(self, message: pb.DataMessage, value: HostArray) -> Sent | None:
        """Sends `message`, whose last tensor is `value`, which must not change until `wait` of what this returns."""
        number = next(self._numbers)
        message.tensors[-1].tensor.chunks = number
        view = bytes_of(value)
        secret, tracker = self._hello.secret, None
        chunk = pb.DataChunk(session=self._hello.session, source=self._hello.source, transfer=number)
        with self._bulk_lock:
            self._send(self._bulk, [secret, _MESSAGE, message.SerializeToString()])
            for start in range(0, len(view), FRAME_BYTES):
                chunk.offset = start
                self._send(self._bulk, [secret, _CHUNK, chunk.SerializeToString()], zmq.SNDMORE)
                last = start + FRAME_BYTES >= len(view)
                frame = zmq.Frame(view[start : start + FRAME_BYTES], track=last, copy=False)
                self._bulk.send(frame, copy=False)  # the parts of a message after the first never wait
                tracker = frame.tracker
        return None if tracker is None else Sent(tracker)

    def _send(
        self,
        socket: zmq.Socket[bytes],
        parts: list[bytes],
        flags: int = 0,
        *,
        patience_s: float = SEND_TIMEOUT_S,
    ) -> None:
        start = time.monotonic()
        while True:
            try:
                socket.send_multipart(parts, flags)
                return
            except zmq.Again:  # of the first frame; the others of a message never wait
                waited = time.monotonic() - start
                if waited < patience_s and not self._is_gone():
                    continue
                raise WorkerLost(
                    f"{self._task} ({self._endpoint.address}) took no tensor for {waited:.1f} s: it died, froze, left "
                    "the session, or the network between the workers is cut",
                    worker=self._task,
                ) from None
            except zmq.ZMQError as error:
                raise WorkerLost(
                    f"{self._task} ({self._endpoint.address}): {error.strerror}", worker=self._task
                ) from None

    def end_step(self) -> None:
        """Nothing is kept for a step."""

    def close(self) -> None:
        with self._lock:
            self._small.close()
        with self._bulk_lock:
            self._bulk.close()


def _push(context: zmq.Context[zmq.Socket[bytes]], endpoint: Endpoint) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.PUSH)
    if not endpoint.address.startswith(PLAIN):
        socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
        socket.curve_serverkey = endpoint.public_key
    socket.linger = 0
    socket.sndhwm = HIGH_WATER
    socket.sndbuf = SOCKET_BYTES
    socket.sndtimeo = int(LOOK_S * 1000)
    # Only connections that stand take messages, so that a dead peer makes `send` wait, and then fail.
    socket.immediate = 1
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
    socket.reconnect_ivl, socket.reconnect_ivl_max = 50, 1000
    socket.ipv6 = "[" in endpoint.address
    socket.connect(endpoint.address.replace(ENCRYPTED, PLAIN))
    return socket


# --- receiving --------------------------------------------------------------------------------------------------------


class ZmqListener:
    """Takes what comes over TCP; one thread. `keys`: public and secret, for CURVE; None: not encrypted.

    `find` gives the arrivals of who knows a session's secret.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        listen_host: str,
        port: int,
        keys: tuple[bytes, bytes] | None,
        find: FindArrivals,
    ) -> None:
        self._context = context
        self._find = find
        self._pull = context.socket(zmq.PULL)
        host = f"[{listen_host}]" if ":" in listen_host else listen_host
        if keys is not None:
            self._pull.curve_publickey, self._pull.curve_secretkey = keys
            self._pull.curve_server = True
        self._pull.linger = 0
        self._pull.rcvhwm = RECEIVED
        self._pull.rcvbuf = SOCKET_BYTES
        self._pull.setsockopt(zmq.MAXMSGSIZE, FRAME_BYTES + 2**20)
        self._pull.ipv6 = ":" in listen_host
        self._pull.bind(f"tcp://{host}:{port or '*'}")
        bound = self._pull.getsockopt_string(zmq.LAST_ENDPOINT).rsplit(":", 1)[1]
        # Beyond one address only the peer knows by which name it reaches this machine: `*` stands for it.
        scheme = PLAIN if keys is None else ENCRYPTED
        self.address = f"{scheme}{'*' if listen_host in ('0.0.0.0', '::') else host}:{bound}"
        self._stop = context.socket(zmq.PAIR)
        self._stop.linger = 0
        self._stop.bind(_STOP)
        self._thread = threading.Thread(target=self._run, name="nbflow-tcp", daemon=True)
        self._thread.start()

    def close(self) -> None:
        if self._stop.closed:
            return
        with self._context.socket(zmq.PAIR) as wake:
            wake.linger = 0
            wake.connect(_STOP)
            wake.send(b"")
            self._thread.join(5.0)
        self._stop.close()

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._pull, zmq.POLLIN)
        poller.register(self._stop, zmq.POLLIN)
        while self._stop not in dict(poller.poll()):
            try:
                self._take()
            except NbflowError as error:
                log.warning("a message was dropped: %s", error)
            except Exception:
                # One session's trouble must not silence the others.
                log.exception("a message could not be delivered")
            while self._pull.rcvmore:  # whatever is left of it
                self._pull.recv(copy=False)
        self._pull.close()

    def _next(self) -> bytes:
        if not self._pull.rcvmore:
            raise Rejected("a message was cut short")
        frame = self._pull.recv(copy=False)
        if len(frame) > MAX_HEAD_BYTES:
            raise Rejected(f"a message has a head of {len(frame)} bytes; {MAX_HEAD_BYTES} is the limit")
        return frame.bytes

    def _take(self) -> None:
        secret = self._pull.recv()
        kind, head = self._next(), self._next()
        try:
            if kind == _MESSAGE:
                message = pb.DataMessage.FromString(head)
                self._arrivals(message, secret).message(message, via="tcp")
            elif kind == _CHUNK:
                self._chunk(pb.DataChunk.FromString(head), secret)
            else:
                raise Rejected(f"a message of unknown kind {kind[:8]!r} came")
        except (DecodeError, UnicodeDecodeError) as error:
            raise Rejected(f"a damaged message came: {error}") from None

    def _arrivals(self, message: Any, secret: bytes) -> Arrivals:
        found: Arrivals | None = self._find(message.session, message.source, secret)
        if found is None:
            raise Rejected(f"something for session {message.session[:40]!r} came, which is closed or not the sender's")
        return found

    def _chunk(self, chunk: pb.DataChunk, secret: bytes) -> None:
        arrivals = self._arrivals(chunk, secret)
        room = arrivals.room(chunk)
        if room is None:
            return
        if not self._pull.rcvmore:
            raise Rejected("a chunk came without its bytes")
        # More than there is room for is cut off by ZeroMQ, and its true size given: `filled` refuses it.
        arrivals.filled(chunk, self._pull.recv_into(room))
