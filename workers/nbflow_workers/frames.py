"""Frames of the `Steps` stream: protobuf messages, and large tensors as raw bytes in runs of 1 MiB chunks before them.

    frame   = kind (1 byte) body
    kind 0  : a ToWorker or FromWorker message
    kind 1  : run (u32) total (u64) bytes   the first chunk of run number `run`
    kind 2  : run (u32) bytes               the next chunk

A message refers to a run by `Tensor.chunks`; all chunks of its runs come before it, on the same stream, so that order
needs no bookkeeping. Tensors between processes of one host take shared memory instead (`dataplane/shm.py`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from nbflow import codec
from nbflow.codec import HostArray
from nbflow.errors import Rejected
from nbflow.proto import wire_pb2

# gRPC's best size by measurement: a message is copied once on each side, and above 16 MiB that collapses.
CHUNK_BYTES = 2**20
# What one stream may have in the air towards one message: beyond it a client is damaged or hostile.
MAX_RUN_BYTES = 16 * 2**30

_MESSAGE, _FIRST, _NEXT = 0, 1, 2
_FIRST_HEAD = struct.Struct("<BIQ")
_NEXT_HEAD = struct.Struct("<BI")


def bytes_of(value: HostArray) -> memoryview:
    """The bytes of an array in C order; copied only when they do not lie so already."""
    flat: Any = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    return memoryview(flat)


class Outgoing:
    """A message and the arrays that travel before it. `put` is what the codec is given for large arrays."""

    def __init__(self) -> None:
        self._runs: list[HostArray] = []

    def put(self, message: wire_pb2.Tensor, value: HostArray) -> None:
        """Notes that `value` travels as raw chunks; its bytes are read when the frames are made."""
        self._runs.append(np.ascontiguousarray(value))
        message.chunks = len(self._runs)

    def frames(self, message: Any) -> Iterator[bytes]:
        """All frames: chunks, then `message`."""
        for number, value in enumerate(self._runs, 1):
            view = bytes_of(value)
            yield _FIRST_HEAD.pack(_FIRST, number, len(view)) + view[:CHUNK_BYTES]
            for start in range(CHUNK_BYTES, len(view), CHUNK_BYTES):
                yield _NEXT_HEAD.pack(_NEXT, number) + view[start : start + CHUNK_BYTES]
        yield bytes([_MESSAGE]) + message.SerializeToString()


@dataclass(slots=True)
class _Run:
    """A tensor whose bytes are coming. `buffer`: None when there was no memory for them, and they are let go."""

    size: int
    buffer: HostArray | None
    filled: int = 0


def _room(nbytes: int) -> HostArray | None:
    try:
        return np.empty(nbytes, np.uint8)
    except MemoryError:
        return None


class Incoming:
    """Joins chunks, and parses messages of `message_type`. One per stream and direction."""

    def __init__(self, message_type: Any) -> None:
        self._type = message_type
        self._runs: dict[int, _Run] = {}

    def feed(self, frame: bytes) -> Any | None:
        """The message in `frame`, or None for a chunk. Raises Rejected for anything malformed."""
        kind = frame[0] if frame else -1
        if kind == _MESSAGE:
            try:
                return self._type.FromString(frame[1:])
            except (DecodeError, ValueError) as error:
                raise Rejected(f"a damaged message was sent: {error}") from None
        if kind == _FIRST and len(frame) >= _FIRST_HEAD.size:
            _, run, total = _FIRST_HEAD.unpack_from(frame)
            held = sum(r.size for r in self._runs.values())
            if run in self._runs or held + total > MAX_RUN_BYTES:
                raise Rejected(f"a tensor of {total} bytes was announced; {MAX_RUN_BYTES} bytes is the limit")
            self._runs[run] = _Run(total, _room(total))
            self._append(run, frame, _FIRST_HEAD.size)
        elif kind == _NEXT and len(frame) >= _NEXT_HEAD.size:
            self._append(_NEXT_HEAD.unpack_from(frame)[1], frame, _NEXT_HEAD.size)
        else:
            raise Rejected("a damaged frame was sent")
        return None

    def _append(self, run: int, frame: bytes, start: int) -> None:
        if run not in self._runs:
            raise Rejected(f"a chunk of tensor {run} came before its first")
        found = self._runs[run]
        filled = found.filled + len(frame) - start
        if filled > found.size:
            raise Rejected(f"{filled} bytes were sent for a tensor of {found.size}")
        if found.buffer is not None:
            found.buffer[found.filled : filled] = np.frombuffer(frame, np.uint8, offset=start)
        found.filled = filled

    def get(self, message: wire_pb2.Tensor) -> HostArray:
        """The array that `message` refers to by its run; each can be taken once. Raises Rejected."""
        run = message.chunks if message.WhichOneof("content") == "chunks" else 0
        found = self._runs.pop(run, None)
        if found is None or found.filled != found.size:
            size = 0 if found is None else found.size
            raise Rejected(f"a tensor was named whose {size} bytes did not all come")
        if found.buffer is None:
            raise Rejected(f"there is no memory for a tensor of {found.size} bytes")
        return codec.array_from(message, found.buffer.data)

    def end_message(self) -> None:
        """Forgets runs that the message just handled did not take, so that they cannot pile up."""
        self._runs.clear()
