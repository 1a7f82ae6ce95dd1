"""Tensors between processes of one host: segments of shared memory, each from one writer to one reader.

The writer takes a free segment of its pool, copies the tensor in, marks the segment full, and sends its name by some
other way. The reader maps it, and copies the tensor out into memory of its own, or uses it where it is, read-only,
until the last array on it is gone; then it marks the segment free. The mark is a byte in the segment, so giving back
needs no message. The reader also unlinks the name when it first maps it: from then on the kernel frees the memory when
both processes are gone, however they went. Segments that nobody ever opened are unlinked by `close`, and after a kill
by whoever knows the writer's prefix (`remove_leftovers`).

Feeds and fetches take this way; workers among themselves share memory without names (`segments`).

Segments are plain files below /dev/shm, mode 0600, with unguessable names; `multiprocessing.shared_memory` would hand
them to a resource tracker process that unlinks what others still use.
"""

from __future__ import annotations

import errno
import glob
import mmap
import os
import re
import secrets
import stat
import threading
from dataclasses import dataclass, field

import numpy as np

from nbflow import codec
from nbflow.codec import HostArray
from nbflow.errors import Rejected
from nbflow.proto import wire_pb2
from nbflow_workers.dataplane.memory import array_over

FOLDER = "/dev/shm"
# The tensor starts on a cache line of its own, behind the mark.
HEADER_BYTES = 64
_FREE, _FULL = 0, 1
# One writer's pool towards one reader. Beyond it tensors take the other way, which is slower and always works.
POOL_BYTES = 512 * 2**20
POOL_SEGMENTS = 256
# A reader holds no more mappings than this per writer.
MAX_MAPPED = 4 * POOL_SEGMENTS
_NAME = re.compile(r"nbflow-[0-9a-f]{8,32}-[0-9a-f]{32}\Z")


def available() -> bool:
    """True where segments can be made."""
    return os.path.isdir(FOLDER) and os.access(FOLDER, os.W_OK)


def new_prefix() -> str:
    """What the names of one process's segments start with."""
    return f"nbflow-{secrets.token_hex(8)}"


def prefix_of(incarnation: str) -> str:
    """The prefix of the worker of this incarnation."""
    return f"nbflow-{incarnation[:16]}"


def remove_leftovers(prefix: str) -> int:
    """Unlinks segments that a killed process left; how many there were."""
    count = 0
    for path in glob.glob(os.path.join(FOLDER, glob.escape(prefix) + "-*")):
        try:
            os.unlink(path)
            count += 1
        except FileNotFoundError:
            continue  # its reader was quicker
    return count


@dataclass(slots=True)
class _Segment:
    name: str
    map: mmap.mmap
    capacity: int
    unlinked: bool = field(default=False)

    def is_free(self) -> bool:
        return self.map[0] == _FREE


class Pool:
    """One writer's segments towards one reader."""

    def __init__(self, prefix: str, *, limit_bytes: int = POOL_BYTES) -> None:
        self._prefix = prefix
        self._limit = limit_bytes
        self._lock = threading.Lock()
        self._segments: list[_Segment] = []
        self._total = 0
        self._closed = False

    def write(self, value: HostArray) -> wire_pb2.Segment | None:
        """Copies `value` into a segment; None when there is no room, and it must go another way."""
        with self._lock:
            segment = self._take(value.nbytes)
            if segment is None:
                return None
            segment.map[0] = _FULL
        target = np.frombuffer(segment.map, value.dtype, value.size, HEADER_BYTES).reshape(value.shape)
        np.copyto(target, value)
        return wire_pb2.Segment(name=segment.name, offset=HEADER_BYTES)

    def put(self, message: wire_pb2.Tensor, value: HostArray) -> bool:
        """`write`, noting the segment in `message`; False when there is no room."""
        segment = self.write(value)
        if segment is None:
            return False
        message.segment.CopyFrom(segment)
        return True

    def _take(self, nbytes: int) -> _Segment | None:
        if self._closed:
            return None
        fits = [s for s in self._segments if s.capacity >= nbytes and s.is_free()]
        if fits:
            return min(fits, key=lambda s: s.capacity)
        # Powers of two, so that tensors of near sizes share segments.
        capacity = 1 << max(nbytes - 1, 2**16).bit_length()
        if self._total + capacity > self._limit or len(self._segments) >= POOL_SEGMENTS:
            return None
        segment = _create(self._prefix, capacity)
        if segment is not None:
            self._segments.append(segment)
            self._total += capacity
        return segment

    def close(self) -> None:
        """Unlinks and unmaps everything. Tensors already written can still be read by whoever mapped them."""
        with self._lock:
            self._closed = True
            segments, self._segments = self._segments, []
        for segment in segments:
            _unlink(segment.name)
            _unmap(segment.map)


def _create(prefix: str, capacity: int) -> _Segment | None:
    name = f"{prefix}-{secrets.token_hex(16)}"
    path = os.path.join(FOLDER, name)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:
        return None  # no descriptors, or the folder is gone or full
    try:
        # Reserves the pages: a full /dev/shm is an error here, and would be SIGBUS at the first write otherwise.
        os.posix_fallocate(descriptor, 0, HEADER_BYTES + capacity)
        mapped = mmap.mmap(descriptor, HEADER_BYTES + capacity)
    except OSError as error:
        _unlink(name)
        if error.errno in (errno.ENOSPC, errno.ENOMEM, errno.EDQUOT):
            return None
        raise
    finally:
        os.close(descriptor)
    return _Segment(name, mapped, capacity)


def _unlink(name: str) -> None:
    try:
        os.unlink(os.path.join(FOLDER, name))
    except FileNotFoundError:
        return  # the reader unlinked it when it mapped it


def _unmap(mapped: mmap.mmap) -> None:
    try:
        mapped.close()
    except BufferError:
        # A copy in another thread still looks at it; it is unmapped with the last reference.
        return


class Reader:
    """Maps segments by name. One per stream, so that closing it frees them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._maps: dict[str, mmap.mmap] = {}

    def get(self, message: wire_pb2.Tensor, *, copy: bool = True) -> HostArray:
        """The tensor in the segment that `message` names, copied out; the segment is free again. Raises Rejected.

        Without `copy` it is read-only memory of the segment, which is free when the last array on it is gone.
        """
        dtype, shape, nbytes = codec.array_layout(message)
        segment = message.segment
        mapped = self._map(segment.name)
        if segment.offset < HEADER_BYTES or segment.offset + nbytes > len(mapped):
            raise Rejected(f"a tensor of {nbytes} bytes does not lie in its segment of {len(mapped)}")
        if not copy:
            value = array_over(mapped, segment.offset, dtype, shape, _release, mapped)
            value.flags.writeable = False
            return value
        source = np.frombuffer(mapped, dtype, nbytes // dtype.itemsize, segment.offset)
        try:
            value = source.copy().reshape(shape)
        except MemoryError:
            raise Rejected(f"there is no memory for a tensor of {nbytes} bytes") from None
        finally:
            del source
            mapped[0] = _FREE
        return value

    def _map(self, name: str) -> mmap.mmap:
        with self._lock:
            found = self._maps.get(name)
            if found is None:
                if len(self._maps) >= MAX_MAPPED:
                    raise Rejected(f"more than {MAX_MAPPED} shared segments were sent")
                found = self._maps[name] = _open(name)
            return found

    def close(self) -> None:
        """Unmaps everything."""
        with self._lock:
            maps, self._maps = self._maps, {}
        for mapped in maps.values():
            _unmap(mapped)


def _release(mapped: mmap.mmap) -> None:
    mapped[0] = _FREE


def _open(name: str) -> mmap.mmap:
    # The name comes from outside: it must not lead anywhere else, nor to another user's file.
    if not _NAME.match(name):
        raise Rejected(f"not the name of a shared segment: {name[:60]!r}")
    try:
        descriptor = os.open(os.path.join(FOLDER, name), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise Rejected(f"the shared segment of a tensor is gone: {error.strerror}") from None
    try:
        found = os.fstat(descriptor)
        if found.st_uid != os.getuid() or not stat.S_ISREG(found.st_mode) or found.st_size <= HEADER_BYTES:
            raise Rejected("a shared segment that is not this user's was named")
        mapped = mmap.mmap(descriptor, found.st_size)
    except OSError as error:
        raise Rejected(f"there is no memory to map a segment of {found.st_size} bytes: {error.strerror}") from None
    finally:
        os.close(descriptor)
    _unlink(name)
    return mapped
