"""The data plane of a worker: one PULL socket for all that arrives, a PUSH socket for each peer of each session.

A message is [session secret, DataHeader, bytes ...]: the tensor's bytes in frames of at most 8 MiB, or none when the
header names a shared segment, which peers on one host use from 64 KiB on. All connections are encrypted with CURVE,
whose keys the control plane hands over; only those who were given a worker's public key can complete a handshake.
"""

from __future__ import annotations

import hmac
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zmq
from google.protobuf.message import DecodeError

from nbflow import codec
from nbflow.codec import INLINE_LIMIT_BYTES
from nbflow.errors import NbflowError, Rejected, WorkerLost
from nbflow.transport import HostArray, Inbox
from nbflow_workers.dataplane import shm
from nbflow_workers.dataplane.base import Endpoint, SessionKey, host_id
from nbflow_workers.frames import bytes_of
from nbflow_workers.proto import worker_pb2 as pb

log = logging.getLogger("nbflow.dataplane")

# ZeroMQ is fastest with frames of 4 to 16 MB; one frame of 100 MB is three times slower.
FRAME_BYTES = 8 * 2**20
# Messages waiting for one peer. More means that it does not keep up, and then `send` waits.
HIGH_WATER = 512
# How long `send` waits for a peer that takes nothing before it counts as lost. Below the promise of 5 s.
SEND_TIMEOUT_S = 4.0
# How often a waiting `send` looks whether the peer has been given up meanwhile.
LOOK_S = 0.1
# A frozen peer is disconnected after this long, so that `send` notices.
HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS = 1000, 3500
MAX_TENSOR_BYTES = 16 * 2**30
_STOP = "inproc://nbflow-stop"


@dataclass(slots=True)
class _Session:
    key: SessionKey
    inbox: Inbox
    outbox: ZmqOutbox
    reader: shm.Reader = field(default_factory=shm.Reader)


class ZmqDataPlane:
    """Implements `DataPlane`. `listen_host` is an address of this machine; `prefix` names its shared segments."""

    def __init__(
        self, listen_host: str = "127.0.0.1", *, port: int = 0, prefix: str = "", use_shm: bool = True
    ) -> None:
        self._context = zmq.Context(io_threads=1)
        self._lock = threading.Lock()
        self._sessions: dict[str, _Session] = {}
        self._prefix = prefix or shm.new_prefix()
        self._use_shm = use_shm and shm.available()
        self.public_key, self._secret_key = zmq.curve_keypair()
        self._pull = self._context.socket(zmq.PULL)
        self._pull.curve_secretkey = self._secret_key
        self._pull.curve_publickey = self.public_key
        self._pull.curve_server = True
        self._pull.linger = 0
        self._pull.rcvhwm = HIGH_WATER
        self._pull.setsockopt(zmq.MAXMSGSIZE, FRAME_BYTES + 2**20)
        self._pull.ipv6 = ":" in listen_host
        host = f"[{listen_host}]" if ":" in listen_host else listen_host
        self._pull.bind(f"tcp://{host}:{port or '*'}")
        bound = self._pull.getsockopt_string(zmq.LAST_ENDPOINT).rsplit(":", 1)[1]
        # Beyond one address only the peer knows by which name it reaches this machine: `*` stands for it.
        shown = "*" if listen_host in ("0.0.0.0", "::") else host
        self._endpoint = Endpoint(f"tcp://{shown}:{bound}", self.public_key, host_id() if self._use_shm else "")
        self._stop = self._context.socket(zmq.PAIR)
        self._stop.linger = 0
        self._stop.bind(_STOP)
        self._thread = threading.Thread(target=self._receive, name="nbflow-dataplane", daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> Endpoint:
        return self._endpoint

    def open(self, session: SessionKey, inbox: Inbox, peers: Mapping[str, Endpoint]) -> ZmqOutbox:
        with self._lock:
            found = self._sessions.get(session.id)
            if found is not None:
                found.key, found.inbox = session, inbox
                found.outbox.update(peers)
                return found.outbox
            host = self._endpoint.host_id
            outbox = ZmqOutbox(self._context, session, peers, my_host_id=host, prefix=self._prefix)
            self._sessions[session.id] = _Session(session, inbox, outbox)
            return outbox

    def close_session(self, session_id: str) -> None:
        with self._lock:
            session = self._sessions.pop(session_id, None)
        if session is not None:
            session.outbox.close()
            session.reader.close()

    def close(self) -> None:
        with self._lock:
            sessions = list(self._sessions)
        for session in sessions:
            self.close_session(session)
        if self._stop.closed:
            return
        with self._context.socket(zmq.PAIR) as wake:
            wake.linger = 0
            wake.connect(_STOP)
            wake.send(b"")
            self._thread.join(5.0)
        self._stop.close()
        self._context.term()

    # --- what arrives ---------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        poller = zmq.Poller()
        poller.register(self._pull, zmq.POLLIN)
        poller.register(self._stop, zmq.POLLIN)
        while True:
            ready = dict(poller.poll())
            if self._stop in ready:
                break
            frames = self._pull.recv_multipart(copy=False)
            try:
                self._deliver(frames)
            except NbflowError as error:
                log.warning("a tensor was dropped: %s", error)
            except Exception:
                # One session's trouble must not silence the others.
                log.exception("a tensor could not be delivered")
        self._pull.close()

    def _deliver(self, frames: list[zmq.Frame]) -> None:
        if len(frames) < 2:
            raise Rejected("a message without a header came")
        try:
            header = pb.DataHeader.FromString(frames[1].bytes)
        except (DecodeError, ValueError) as error:
            raise Rejected(f"a damaged header came: {error}") from None
        with self._lock:
            session = self._sessions.get(header.session)
        if session is None or not hmac.compare_digest(session.key.secret, frames[0].bytes):
            raise Rejected(f"a tensor for session {header.session[:40]!r} came, which is closed or not the sender's")

        def get(message: Any) -> HostArray:
            if message.WhichOneof("content") == "segment":
                return session.reader.get(message)
            return _join(message, frames[2:])

        session.inbox.deliver(header.step_id, header.key, codec.decode_array(header.tensor, get))


def _join(message: Any, frames: list[zmq.Frame]) -> HostArray:
    """The array in `frames`, in memory of its own. Raises Rejected when the sizes do not fit."""
    dtype, shape, nbytes = codec.array_layout(message)
    if nbytes > MAX_TENSOR_BYTES or sum(len(f) for f in frames) != nbytes:
        raise Rejected(f"a tensor of {nbytes} bytes was announced, {sum(len(f) for f in frames)} came")
    buffer = np.empty(nbytes, np.uint8)
    start = 0
    for frame in frames:
        buffer[start : start + len(frame)] = np.frombuffer(frame.buffer, np.uint8)
        start += len(frame)
    return buffer.view(dtype).reshape(shape)


@dataclass(slots=True)
class _Link:
    """The way to one peer. ZeroMQ's sockets belong to one thread at a time: the lock sees to that."""

    endpoint: Endpoint
    lock: threading.Lock = field(default_factory=threading.Lock)
    socket: zmq.Socket[bytes] | None = None
    pool: shm.Pool | None = None
    gone: bool = False  # the session goes on without this peer: a send that waits for it gives up


class ZmqOutbox:
    """Implements `Outbox` for one session."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        session: SessionKey,
        peers: Mapping[str, Endpoint],
        *,
        my_host_id: str,
        prefix: str,
    ) -> None:
        self._context = context
        self._session = session
        self._host_id = my_host_id
        self._prefix = prefix
        self._lock = threading.Lock()
        self._links: dict[str, _Link] = {task: _Link(endpoint) for task, endpoint in peers.items()}
        self._closed = False

    def update(self, peers: Mapping[str, Endpoint]) -> None:
        """Takes a new set of peers; links to those that stayed are kept."""
        with self._lock:
            old = self._links
            same = {t: old[t] for t, e in peers.items() if t in old and old[t].endpoint == e}
            self._links = {task: same.get(task) or _Link(endpoint) for task, endpoint in peers.items()}
            gone = [link for task, link in old.items() if task not in same]
        for link in gone:
            _close(link)

    def send(self, task: str, step_id: str, key: str, value: HostArray) -> None:
        with self._lock:
            link = None if self._closed else self._links.get(task)
        if link is None:
            raise WorkerLost(f"{task} is not part of session {self._session.id}", worker=task)
        header = pb.DataHeader(session=self._session.id, step_id=step_id, key=key)
        value = np.asarray(value)
        frames: list[Any] = []
        with link.lock:
            if link.socket is None:
                self._connect(link)
            if link.pool is not None and value.nbytes >= INLINE_LIMIT_BYTES:
                header.tensor.dtype = codec.encode_dtype(value.dtype)
                header.tensor.shape.extend(value.shape)
                if not link.pool.put(header.tensor, value):
                    frames = _split(header.tensor, value)
            elif value.nbytes >= INLINE_LIMIT_BYTES:
                codec.encode_array(value, lambda m, v: frames.extend(_split(m, v)), to=header.tensor)
            else:
                codec.encode_array(value, to=header.tensor)
            self._send(link, task, [self._session.secret, header.SerializeToString(), *frames])

    def _connect(self, link: _Link) -> None:
        if self._closed:
            raise WorkerLost(f"session {self._session.id} is closed")
        socket = self._context.socket(zmq.PUSH)
        socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
        socket.curve_serverkey = link.endpoint.public_key
        socket.linger = 0
        socket.sndhwm = HIGH_WATER
        socket.sndtimeo = int(LOOK_S * 1000)
        # Only connections that stand take messages, so that a dead peer makes `send` wait, and then fail.
        socket.immediate = 1
        socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
        socket.reconnect_ivl, socket.reconnect_ivl_max = 50, 1000
        socket.ipv6 = "[" in link.endpoint.address
        socket.connect(link.endpoint.address)
        link.socket = socket
        if self._host_id and link.endpoint.host_id == self._host_id:
            link.pool = shm.Pool(self._prefix)

    def _send(self, link: _Link, task: str, parts: list[Any]) -> None:
        assert link.socket is not None
        start = time.monotonic()
        while True:
            try:
                link.socket.send_multipart(parts)
                return
            except zmq.Again:  # of the first frame; the others of a message never wait
                waited = time.monotonic() - start
                if waited < SEND_TIMEOUT_S and not link.gone:
                    continue
                why = "took no tensor" if not link.gone else "left the session while a tensor waited for it"
                raise WorkerLost(
                    f"{task} ({link.endpoint.address}) {why} for {waited:.1f} s: it died, froze, or the network "
                    "between the workers is cut",
                    worker=task,
                ) from None
            except zmq.ZMQError as error:
                raise WorkerLost(f"{task} ({link.endpoint.address}): {error.strerror}", worker=task) from None

    def close(self) -> None:
        """Closes all links; sends under way end within LOOK_S."""
        with self._lock:
            self._closed = True
            links, self._links = self._links, {}
        for link in links.values():
            _close(link)


def _split(message: Any, value: HostArray) -> list[Any]:
    """`value` as frames, in C order. `message.chunks` says that its bytes follow."""
    message.chunks = 1
    view = bytes_of(value)
    return [view[start : start + FRAME_BYTES] for start in range(0, len(view), FRAME_BYTES)]


def _close(link: _Link) -> None:
    link.gone = True
    with link.lock:
        if link.socket is not None:
            link.socket.close()
            link.socket = None
        if link.pool is not None:
            link.pool.close()
            link.pool = None
