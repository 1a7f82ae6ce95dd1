"""Peers on one host: a Unix socket for messages, shared memory for the bytes of large tensors (`segments`).

The socket has an abstract name, made from the receiver's public key: nothing is left in a file system, and only who was
told the key can find it. Both ends ask the kernel for the other's user, and the first message carries the session's
secret. A frame is

    kind (1 byte)  length of the head (u32)  length of the body (u32)  head  body

with a message of worker.proto as head; only chunks have a body, which is read straight to where it belongs.
"""

from __future__ import annotations

import array
import contextlib
import hashlib
import itertools
import logging
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError

from nbflow.errors import NbflowError, Rejected, WorkerLost
from nbflow.transport import HostArray
from nbflow_workers.dataplane.arrivals import Arrivals
from nbflow_workers.dataplane.base import LOOK_S, SEND_TIMEOUT_S, Endpoint, FindArrivals
from nbflow_workers.dataplane.segments import Pool, Reader, Segment
from nbflow_workers.frames import bytes_of
from nbflow_workers.proto import worker_pb2 as pb

log = logging.getLogger("nbflow.dataplane")

_HELLO, _MESSAGE, _CHUNK, _SEGMENT = 1, 2, 3, 4
_PREFIX = struct.Struct("<BII")
# Bytes of tensors that find no segment go through the socket in pieces of this size.
CHUNK_BYTES = 2**20
# A message holds small tensors, of less than 64 KiB each, and ends when it is larger than `outbox.BATCH_BYTES`.
MAX_HEAD_BYTES = 2**20
_READ_BYTES = 2**16
_ANCILLARY_BYTES = socket.CMSG_SPACE(64)
_PEER = struct.Struct("3i")
_TIMEOUT = struct.pack("ll", 0, int(LOOK_S * 1e6))


def name_of(endpoint: Endpoint) -> str:
    """The abstract name of the socket of the process with this endpoint."""
    return "\0nbflow-" + hashlib.sha256(endpoint.public_key).hexdigest()[:32]


def _same_user(connection: socket.socket) -> bool:
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    return int(_PEER.unpack(data)[1]) == os.getuid()


# --- sending ----------------------------------------------------------------------------------------------------------


class LocalLink:
    """The way to one peer. `is_gone()`: nobody wants its tensors any more. Raises WorkerLost when it is not there."""

    via = "shared memory"

    def __init__(self, task: str, endpoint: Endpoint, hello: pb.DataHello, is_gone: Callable[[], bool]) -> None:
        self._task = task
        self._is_gone = is_gone
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self.pool = Pool()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(name_of(endpoint))
            if not _same_user(self._socket):
                raise WorkerLost(f"the socket of {task} is another user's", worker=task)
            # By the kernel, so that a send is one system call: Python's own timeouts take two.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEOUT)
            self._write(_HELLO, hello.SerializeToString())
        except OSError as error:
            self.close()
            raise self._lost(error.strerror) from None
        except WorkerLost:
            self.close()
            raise

    def post(self, message: pb.DataMessage, patience_s: float = SEND_TIMEOUT_S) -> None:
        """Sends a message without large tensors."""
        with self._lock:
            self._write(_MESSAGE, message.SerializeToString(), patience_s=patience_s)

    def large(self, message: pb.DataMessage, value: HostArray) -> None:
        """Sends `message`, whose last tensor is `value`. `value` may change when this returns."""
        tensor = message.tensors[-1].tensor
        segment = self.pool.write(value)
        if segment is None:
            self._in_chunks(message, value)
            return
        tensor.segment.name = str(segment.number)
        with self._lock:
            self._announce(segment)
            self._write(_MESSAGE, message.SerializeToString())

    def _announce(self, segment: Segment) -> None:
        for number in self.pool.gone():
            self._write(_SEGMENT, pb.DataSegment(number=number, gone=True).SerializeToString())
        if segment.descriptor >= 0:
            head = pb.DataSegment(number=segment.number, nbytes=segment.capacity).SerializeToString()
            self._write(_SEGMENT, head, descriptor=segment.descriptor)
            segment.handed_over()

    def _in_chunks(self, message: pb.DataMessage, value: HostArray) -> None:
        number = next(self._numbers)
        message.tensors[-1].tensor.chunks = number
        self.post(message)
        view = bytes_of(value)
        for start in range(0, len(view), CHUNK_BYTES):
            head = pb.DataChunk(transfer=number, offset=start).SerializeToString()
            with self._lock:  # for each, so that small tensors of others come in between
                self._write(_CHUNK, head, view[start : start + CHUNK_BYTES])

    def _write(
        self,
        kind: int,
        head: bytes,
        body: memoryview | bytes = b"",
        *,
        descriptor: int = -1,
        patience_s: float = SEND_TIMEOUT_S,
    ) -> None:
        parts: list[Any] = [memoryview(_PREFIX.pack(kind, len(head), len(body)) + head)]
        if body:
            parts.append(memoryview(body))
        ancillary: list[Any] = []
        if descriptor >= 0:
            ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor])))
        moved_s = time.monotonic()
        while parts:
            try:
                count = self._socket.sendmsg(parts, ancillary)
            except BlockingIOError:
                waited = time.monotonic() - moved_s
                if waited > patience_s or self._is_gone():
                    raise self._lost(f"it took nothing for {waited:.1f} s") from None
                continue
            except OSError as error:
                raise self._lost(error.strerror) from None
            ancillary = []
            moved_s = time.monotonic()
            while parts and count >= len(parts[0]):
                count -= len(parts.pop(0))
            if count:
                parts[0] = parts[0][count:]

    def _lost(self, why: str | None) -> WorkerLost:
        return WorkerLost(f"{self._task} cannot be sent a tensor on this host: {why}", worker=self._task)

    def end_step(self) -> None:
        self.pool.trim()

    def close(self) -> None:
        # Wakes a thread that is sending, too.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self.pool.close()


# --- receiving --------------------------------------------------------------------------------------------------------


class LocalListener:
    """Takes what peers on this host send; one thread. `find` gives the arrivals of who knows a session's secret."""

    def __init__(self, endpoint: Endpoint, find: FindArrivals) -> None:
        self._find = find
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(name_of(endpoint))
        self._socket.listen(128)
        self._socket.setblocking(False)
        self._wake = os.eventfd(0)
        # Not `selectors`: it makes objects for each event, and a message here takes less time than they do.
        self._poll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._watch(self._socket.fileno(), self._accept)
        self._watch(self._wake, self._woken)
        self._closing: deque[Arrivals] = deque()
        self._connections: set[_Connection] = set()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="nbflow-local", daemon=True)
        self._thread.start()

    def forget(self, arrivals: Arrivals) -> None:
        """Ends the connections of a session, or a peer, that is closed."""
        if self._stopped:
            return
        self._closing.append(arrivals)
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        if self._stopped:
            return
        self._stopped = True
        os.eventfd_write(self._wake, 1)
        self._thread.join(5.0)
        os.close(self._wake)

    def _watch(self, descriptor: int, handler: Callable[[], None]) -> None:
        self._handlers[descriptor] = handler
        self._poll.register(descriptor, select.EPOLLIN)

    def _run(self) -> None:
        handlers = self._handlers
        while not self._stopped:
            for descriptor, _ in self._poll.poll():
                handler = handlers.get(descriptor)
                if handler is not None:
                    handler()
        for connection in list(self._connections):
            self._end(connection)
        self._socket.close()
        self._poll.close()

    def _woken(self) -> None:
        os.eventfd_read(self._wake)
        while self._closing:
            arrivals = self._closing.popleft()
            for connection in [c for c in self._connections if c.arrivals is arrivals]:
                self._end(connection)

    def _accept(self) -> None:
        try:
            made, _ = self._socket.accept()
        except OSError as error:
            log.warning("a peer could not be let in: %s", error)
            return
        if not _same_user(made):
            log.warning("another user's process tried to send tensors")
            made.close()
            return
        made.setblocking(False)
        connection = _Connection(made, self._find)
        self._connections.add(connection)
        self._watch(made.fileno(), lambda: self._read(connection))

    def _read(self, connection: _Connection) -> None:
        try:
            going = connection.read()
        except NbflowError as error:
            log.warning("a peer on this host is cut off: %s", error)
            going = False
        except Exception:
            # One peer's trouble must not silence the others.
            log.exception("a peer on this host is cut off")
            going = False
        if not going:
            self._end(connection)

    def _end(self, connection: _Connection) -> None:
        self._connections.discard(connection)
        self._poll.unregister(connection.socket)
        del self._handlers[connection.socket.fileno()]
        connection.close()


class _Connection:
    """One peer's connection: bytes in, frames out."""

    def __init__(self, connection: socket.socket, find: FindArrivals) -> None:
        self.socket = connection
        self.arrivals: Arrivals | None = None
        self._find = find
        self._reader = Reader()
        self._space = bytearray(_READ_BYTES)  # kept: allocating it costs more than reading a small message
        self._buffer = bytearray()
        self._descriptors: deque[int] = deque()
        # A chunk whose bytes are coming: where they go (None: nowhere), how many are left, how many there are in all.
        self._chunk: pb.DataChunk | None = None
        self._room: memoryview | None = None
        self._left = 0
        self._size = 0

    def read(self) -> bool:
        """Reads what is there; False at the end of the connection. Raises Rejected for what cannot go on."""
        try:
            if self._chunk is not None and self._room is not None and not self._buffer:
                count = self.socket.recv_into(self._room[self._size - self._left :][: self._left])
                if count:
                    self._got(count)
                return count > 0
            count, ancillary, _, _ = self.socket.recvmsg_into([self._space], _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return True
        except OSError:
            return False
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                found = array.array("i")
                found.frombytes(content[: len(content) - len(content) % found.itemsize])
                self._descriptors.extend(found)
        if not count:
            return False
        self._buffer += memoryview(self._space)[:count]
        self._take_apart()
        return True

    def _take_apart(self) -> None:
        buffer = self._buffer
        start = 0
        while True:
            if self._chunk is not None:
                start += self._from_buffer(start)
                if self._chunk is not None:
                    break
            if len(buffer) - start < _PREFIX.size:
                break
            kind, head, body = _PREFIX.unpack_from(buffer, start)
            if head > MAX_HEAD_BYTES or body > 16 * CHUNK_BYTES or (body and kind != _CHUNK):
                raise Rejected(f"a frame of {head} and {body} bytes of kind {kind} came")
            end = start + _PREFIX.size + head
            if len(buffer) < end:
                break
            self._frame(kind, bytes(buffer[start + _PREFIX.size : end]), body)
            start = end
        del buffer[:start]

    def _from_buffer(self, start: int) -> int:
        """Moves bytes of the current chunk out of the buffer; how many."""
        count = min(self._left, len(self._buffer) - start)
        done = self._size - self._left
        if self._room is not None and count:
            self._room[done : done + count] = memoryview(self._buffer)[start : start + count]
        self._got(count)
        return count

    def _got(self, count: int) -> None:
        self._left -= count
        if self._left == 0 and self._chunk is not None:
            chunk, self._chunk, room, self._room = self._chunk, None, self._room, None
            if room is not None and self.arrivals is not None:
                self.arrivals.filled(chunk, self._size)

    def _frame(self, kind: int, head: bytes, body: int) -> None:
        try:
            if kind == _HELLO:
                self._hello(pb.DataHello.FromString(head))
                return
            if self.arrivals is None:
                raise Rejected("something came before who sends it")
            if kind == _MESSAGE:
                self.arrivals.message(pb.DataMessage.FromString(head), self._reader.get)
            elif kind == _SEGMENT:
                self._segment(pb.DataSegment.FromString(head))
            elif kind == _CHUNK:
                self._begin_chunk(pb.DataChunk.FromString(head), body)
            else:
                raise Rejected(f"a frame of unknown kind {kind} came")
        except DecodeError as error:
            raise Rejected(f"a damaged message came: {error}") from None

    def _hello(self, hello: pb.DataHello) -> None:
        self.arrivals = self._find(hello.session, hello.source, hello.secret)
        if self.arrivals is None:
            raise Rejected(f"session {hello.session[:40]!r} is closed, or not the sender's")

    def _segment(self, message: pb.DataSegment) -> None:
        if message.gone:
            self._reader.drop(message.number)
            return
        if not self._descriptors:
            raise Rejected(f"segment {message.number} came without its memory")
        self._reader.add(message.number, message.nbytes, self._descriptors.popleft())

    def _begin_chunk(self, chunk: pb.DataChunk, nbytes: int) -> None:
        assert self.arrivals is not None  # `_frame` has looked
        self._chunk, self._left, self._size = chunk, nbytes, nbytes
        self._room = self.arrivals.room(chunk)
        if self._room is not None and nbytes > len(self._room):
            self.arrivals.filled(chunk, nbytes)  # refuses it
            self._room = None

    def close(self) -> None:
        self.socket.close()
        self._reader.close()
        while self._descriptors:
            os.close(self._descriptors.popleft())
        if self.arrivals is not None:
            self.arrivals.cut()
