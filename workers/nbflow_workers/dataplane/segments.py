"""Shared memory without names, from one sender to one receiver on the same host.

A segment is a memfd: it has no name anywhere, so nothing can be left behind; the kernel frees it with the last of the
two processes, however they end. The sender copies a tensor in, and hands over the descriptor the first time, and then
only the segment's number. The receiver maps the data read-only and makes the array right on it. When the last view of
that array is gone a finalizer marks the segment free, by a byte in its first page: giving back needs no message.

A segment cannot shrink (it is sealed), so a sender gone wrong cannot make a receiver's read fail.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import mmap
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nbflow.errors import Rejected
from nbflow.transport import HostArray
from nbflow_workers.dataplane.memory import Full, array_over

# The mark has a page of its own: it is the only thing that a receiver may write.
HEADER_BYTES = mmap.PAGESIZE
_FREE, _FULL = 0, 1
# What a sender keeps towards one peer; a tensor larger than this gets a segment that is not kept.
POOL_BYTES = 512 * 2**20
POOL_SEGMENTS = 256
# What a receiver maps from one peer.
MAX_MAPPED = 4 * POOL_SEGMENTS


def available() -> bool:
    """True where segments can be made (Linux)."""
    return sys.platform == "linux" and hasattr(os, "memfd_create")


@dataclass(slots=True, eq=False)
class Segment:
    """One segment of the sender. `descriptor`: -1 once it was handed over; the mapping is all that is needed then."""

    number: int
    descriptor: int
    map: mmap.mmap
    capacity: int

    def is_free(self) -> bool:
        return self.map[0] == _FREE

    def handed_over(self) -> None:
        """The receiver has it. There can be more segments than a process may have descriptors."""
        os.close(self.descriptor)
        self.descriptor = -1

    def close(self) -> None:
        if self.descriptor >= 0:
            self.handed_over()
        try:
            self.map.close()
        except BufferError:
            # Another thread still copies into it; it is unmapped when that ends.
            return


class Pool:
    """The segments of one sender towards one receiver. Safe from any thread."""

    def __init__(self, *, limit_bytes: int = POOL_BYTES) -> None:
        self._limit = limit_bytes
        self._lock = threading.Lock()
        self._segments: list[Segment] = []
        self._numbers = itertools.count(1)
        self._gone: list[int] = []
        self._closed = False

    def write(self, value: HostArray) -> Segment | None:
        """Copies `value` into a segment; None when there is no room, and it must go another way."""
        with self._lock:
            segment = self._take(value.nbytes)
            if segment is None:
                return None
            segment.map[0] = _FULL
        target = np.frombuffer(segment.map, np.uint8, value.nbytes, HEADER_BYTES).view(value.dtype)
        np.copyto(target.reshape(value.shape), value)
        return segment

    def gone(self) -> list[int]:
        """Numbers of segments that were given up since this was last asked; the receiver may unmap them."""
        with self._lock:
            found, self._gone = self._gone, []
            return found

    def _take(self, nbytes: int) -> Segment | None:
        if self._closed:
            return None
        free = [s for s in self._segments if s.is_free()]
        fits = [s for s in free if s.capacity >= nbytes]
        if fits:
            return min(fits, key=lambda s: s.capacity)
        # Powers of two, so that tensors of near sizes share segments; pages that nobody touches take no memory.
        capacity = 1 << max(nbytes - 1, 2**16).bit_length()
        for segment in free:
            if self._has_room(capacity):
                break
            self._drop(segment)
        if not self._has_room(capacity):
            return None
        try:
            made = _create(next(self._numbers), capacity)
        except OSError:
            return None  # no memory, or no descriptors: the tensor's bytes can go through the socket
        self._segments.append(made)
        return made

    def _has_room(self, capacity: int) -> bool:
        if not self._segments:
            return True
        held = sum(s.capacity for s in self._segments)
        return held + capacity <= self._limit and len(self._segments) < POOL_SEGMENTS

    def _drop(self, segment: Segment) -> None:
        self._segments.remove(segment)
        if segment.descriptor < 0:
            self._gone.append(segment.number)
        segment.close()

    def trim(self) -> None:
        """Gives up what is free and larger than the pool may be."""
        with self._lock:
            for segment in [s for s in self._segments if s.capacity > self._limit and s.is_free()]:
                self._drop(segment)

    def close(self) -> None:
        """Gives up everything. Arrays that a receiver made stay good."""
        with self._lock:
            self._closed = True
            segments, self._segments = self._segments, []
            for segment in segments:
                segment.close()


def _create(number: int, capacity: int) -> Segment:
    descriptor = os.memfd_create("nbflow", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, HEADER_BYTES + capacity)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        mapped = mmap.mmap(descriptor, HEADER_BYTES + capacity)
    except OSError:
        os.close(descriptor)
        raise
    return Segment(number, descriptor, mapped, capacity)


@dataclass(slots=True)
class _Shared:
    """A segment that was handed over. `descriptor`: -1 once it is mapped."""

    nbytes: int
    descriptor: int
    mark: mmap.mmap | None = None
    data: mmap.mmap | None = None

    def map(self) -> tuple[mmap.mmap, mmap.mmap]:
        """The mark and the whole. Raises Full."""
        if self.mark is None or self.data is None:
            try:
                self.mark = self.mark or mmap.mmap(self.descriptor, HEADER_BYTES)
                self.data = mmap.mmap(self.descriptor, HEADER_BYTES + self.nbytes, prot=mmap.PROT_READ)
            except OSError as error:
                raise Full(f"there is no memory to map a segment of {self.nbytes} bytes: {error.strerror}") from None
            self.close()
        return self.mark, self.data

    def close(self) -> None:
        """Needs the descriptor no longer; mappings end with the last array on them."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class Reader:
    """The receiver's side of one pool. Used from one thread."""

    def __init__(self) -> None:
        self._segments: dict[int, _Shared] = {}

    def add(self, number: int, nbytes: int, descriptor: int) -> None:
        """Takes a segment that was handed over; owns `descriptor`. Raises Rejected for what is no segment."""
        shared = _Shared(nbytes, descriptor)
        try:
            if number in self._segments or len(self._segments) >= MAX_MAPPED:
                raise Rejected(f"segment {number} was handed over twice, or is one of more than {MAX_MAPPED}")
            size = os.fstat(descriptor).st_size
            if nbytes <= 0 or size < HEADER_BYTES + nbytes:
                raise Rejected(f"a segment of {nbytes} bytes was announced, it has {size - HEADER_BYTES}")
            if not fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
                raise Rejected("a segment that can shrink was handed over")
        except OSError as error:
            shared.close()
            raise Rejected(f"what was handed over as a segment is none: {error.strerror}") from None
        except Rejected:
            shared.close()
            raise
        self._segments[number] = shared
        # Now, so that no descriptor stays open. Without memory for it, the tensor in it is refused: it says whose step
        # that concerns, and the connection goes on.
        with contextlib.suppress(Full):
            shared.map()

    def drop(self, number: int) -> None:
        """The sender gave a segment up. It is unmapped when no array is on it any more."""
        found = self._segments.pop(number, None)
        if found is not None:
            found.close()

    def get(
        self, number: int, dtype: np.dtype[np.generic], shape: tuple[int, ...], nbytes: int, freed: Callable[[], None]
    ) -> HostArray:
        """The tensor in a segment, read-only. `freed()` is called when it is gone. Raises Rejected."""
        found = self._segments.get(number)
        if found is None:
            raise Rejected(f"a tensor is said to be in segment {number}, which was not handed over")
        if nbytes > found.nbytes or nbytes == 0:
            raise Rejected(f"a tensor of {nbytes} bytes does not lie in its segment of {found.nbytes}")
        try:
            mark, data = found.map()
        except Full:
            if found.mark is not None:  # the tensor is refused, and the next one may find memory
                found.mark[0] = _FREE
            raise
        if mark[0] != _FULL:
            raise Rejected(f"a tensor is said to be in segment {number}, which is free")
        return array_over(data, HEADER_BYTES, dtype, shape, _release, mark, freed)

    def close(self) -> None:
        segments, self._segments = self._segments, {}
        for shared in segments.values():
            shared.close()


def _release(mark: mmap.mmap, freed: Callable[[], None]) -> None:
    mark[0] = _FREE
    freed()
