"""Memory that tensors from other hosts land in. It is used again: the first touch of fresh pages costs more than the
copy."""

from __future__ import annotations

import math
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from nbflow.errors import Rejected
from nbflow.transport import HostArray

# What a process keeps for the tensors to come.
KEPT_BYTES = 512 * 2**20
# Smaller ones come from the allocator, which keeps them as well.
LEAST_BYTES = 2**20

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class Full(Rejected):
    """There is no memory for a tensor: not its sender's fault."""


class Buffers:
    """A pool. `take` from any thread; `give` also from finalizers."""

    def __init__(self, limit_bytes: int = KEPT_BYTES) -> None:
        self._limit = limit_bytes
        self._lock = threading.Lock()
        self._kept: list[Bytes] = []
        self._returned: deque[Bytes] = deque()

    def take(self, nbytes: int) -> Bytes:
        """At least `nbytes` bytes, with anything in them. Raises Full."""
        if nbytes < LEAST_BYTES:
            return np.empty(nbytes, np.uint8)
        with self._lock:
            self._collect()
            # Not one that is far too large: the next large tensor would have none.
            fits = [b for b in self._kept if nbytes <= b.size <= 4 * nbytes]
            if fits:
                best = min(fits, key=lambda b: b.size)
                self._kept = [b for b in self._kept if b is not best]
                return best
        # Powers of two, so that tensors of near sizes share; pages that nobody touches take no memory.
        size = 1 << (nbytes - 1).bit_length() if nbytes <= self._limit else nbytes
        try:
            return np.empty(size, np.uint8)
        except MemoryError:
            raise Full(f"there is no memory for a tensor of {nbytes} bytes") from None

    def give(self, buffer: Bytes) -> None:
        """Takes a buffer back. Safe in finalizers."""
        if buffer.size >= LEAST_BYTES:
            self._returned.append(buffer)

    def _collect(self) -> None:
        while self._returned:
            self._kept.append(self._returned.popleft())
        # The oldest go first.
        while sum(b.size for b in self._kept) > self._limit:
            self._kept.pop(0)


def array_over(
    memory: Any, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...], released: Callable[..., None], *args: Any
) -> HostArray:
    """The array in `memory` from `offset` on. `released(*args)` is called when it, and all views of it, are gone."""
    nbytes = math.prod(shape) * dtype.itemsize
    # A memoryview between: numpy then keeps this array as the base of all views, and not the memory itself.
    root = np.frombuffer(memoryview(memory), np.uint8, nbytes, offset)
    weakref.finalize(root, released, *args).atexit = False
    return root.view(dtype).reshape(shape)
