"""What comes from one peer for one session: messages taken apart, checked, and handed to the session's inbox.

No sockets: `local` and `tcp` feed it what they read. A tensor that is not what it says fails its own step here, and the
peer is told; nothing else suffers.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from nbflow import codec
from nbflow.errors import NbflowError, Rejected, WorkerLost
from nbflow.transport import HostArray, Inbox, Moved
from nbflow_workers.dataplane.credit import Account, charge
from nbflow_workers.dataplane.memory import Buffers, Full, array_over
from nbflow_workers.proto import worker_pb2 as pb

log = logging.getLogger("nbflow.dataplane")

MAX_TENSOR_BYTES = 64 * 2**30
# A frame takes this long at 130 kB a second: slower is counted as not at all.
STALLED_S = 30.0
# Transfers that one peer may have begun and not ended.
MAX_TRANSFERS = 4096
# Names the array in a segment: (number, dtype, shape, bytes, what to call when it is gone).
FromSegment = Callable[[int, np.dtype[Any], tuple[int, ...], int, Callable[[], None]], HostArray]
# (source, message)
Hear = Callable[[str, pb.DataMessage], None]


@dataclass(slots=True)
class _Transfer:
    """A tensor whose bytes come in chunks, in order."""

    item: pb.DataTensor
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    nbytes: int
    memory: Any
    filled: int
    start_s: float
    last_s: float  # when something of it came


class Arrivals:
    """One peer of one session. Everything is called from the thread that receives from it, but for `end` and `cut`.

    `here`: this task. `one_clock`: the peer's monotonic clock is ours, as on one host. `hear(source, message)`: what it
    says of tensors that go the other way. `tell`: what it must be told.
    """

    def __init__(
        self,
        source: str,
        inbox: Callable[[], Inbox],
        account: Account,
        buffers: Buffers,
        hear: Hear,
        tell: Hear,
        *,
        one_clock: bool,
        here: str = "",
    ) -> None:
        self.source = source
        self._here = here
        self.account = account
        self._inbox = inbox
        self._buffers = buffers
        self._hear = hear
        self._tell = tell
        self._one_clock = one_clock
        self._lock = threading.Lock()
        self._transfers: dict[int, _Transfer] = {}

    def message(self, message: pb.DataMessage, from_segment: FromSegment | None = None, via: str = "") -> None:
        """Takes a message in. `from_segment` is given where the peer is on this host."""
        refused = []
        for item in message.tensors:
            try:
                self._tensor(item, from_segment, via)
            except NbflowError as error:
                refused.append(self._refuse(item, error))
        if refused:
            self._tell(self.source, pb.DataMessage(refused=refused))
        if message.credit or message.stalled or message.granted:
            self._hear(self.source, message)
        for key in message.refused:
            told = Rejected(f"{self.source} refused {key.key!r}, sent from here: {key.reason}", worker=self.source)
            log.warning("%s", told)
            if key.step_id:
                self._inbox().fail(key.step_id, told)

    def _tensor(self, item: pb.DataTensor, from_segment: FromSegment | None, via: str) -> None:
        tensor = item.tensor
        dtype, shape, nbytes = codec.array_layout(tensor)
        kind = tensor.WhichOneof("content")
        counted = charge(nbytes)
        self.account.took(counted)
        try:
            if kind == "chunks":
                self._begin(item, dtype, shape, nbytes)
                return
            if kind == "segment" and from_segment is not None:
                number = int(tensor.segment.name) if tensor.segment.name.isdecimal() else 0
                value = from_segment(number, dtype, shape, nbytes, lambda: self.account.free(counted))
                via = "shared memory"
            elif kind == "data":
                if len(tensor.data) != nbytes:
                    raise Rejected(f"an array {dtype}{list(shape)} has {nbytes} bytes, {len(tensor.data)} were sent")
                value = self._own(bytearray(tensor.data), dtype, shape, nbytes, self.account.free, counted)
            else:
                raise Rejected(f"an array without bytes was sent (its content is {kind or 'missing'})")
        except NbflowError:
            self.account.free(counted)
            raise
        self._deliver(item, value, nbytes, time.monotonic(), via)

    def _own(
        self, memory: Any, dtype: np.dtype[Any], shape: tuple[int, ...], nbytes: int, freed: Any, *args: Any
    ) -> HostArray:
        if nbytes:
            return array_over(memory, 0, dtype, shape, freed, *args)
        freed(*args)
        return np.empty(shape, dtype)

    def _deliver(self, item: pb.DataTensor, value: HostArray, nbytes: int, start_s: float, via: str) -> None:
        now = time.monotonic()
        start = min(item.sent_s, now) if self._one_clock and item.sent_s > 0 else start_s
        self._inbox().deliver(item.step_id, item.key, value, Moved(nbytes, start, now, via, item.error))

    def _refuse(self, item: pb.DataTensor, error: NbflowError) -> pb.DataKey:
        """Fails the step here; what to tell the peer."""
        if isinstance(error, Full):
            found = Rejected(f"{self._here} is full: {error.message}; {item.key[:200]!r} was lost", worker=self._here)
        else:
            text = f"{self.source} sent {item.key[:200]!r} malformed: {error.message}"
            found = Rejected(text, worker=self.source)
        log.warning("%s", found)
        self._inbox().fail(item.step_id, found)
        return pb.DataKey(step_id=item.step_id, key=item.key, reason=error.message)

    # --- chunks ---------------------------------------------------------------------------------------------------

    def _begin(self, item: pb.DataTensor, dtype: np.dtype[Any], shape: tuple[int, ...], nbytes: int) -> None:
        number = item.tensor.chunks
        if nbytes > MAX_TENSOR_BYTES or nbytes == 0:
            raise Rejected(f"a tensor of {nbytes} bytes was announced; between 1 and {MAX_TENSOR_BYTES} may come")
        with self._lock:
            if number in self._transfers or len(self._transfers) >= MAX_TRANSFERS:
                raise Rejected(f"transfer {number} was begun twice, or is one of more than {MAX_TRANSFERS}")
            memory, now = self._buffers.take(nbytes), time.monotonic()
            self._transfers[number] = _Transfer(item, dtype, shape, nbytes, memory, 0, now, now)

    def room(self, chunk: pb.DataChunk) -> memoryview | None:
        """Where the bytes of a chunk go, up to the end of its tensor; None when nobody wants it any more."""
        with self._lock:
            found = self._transfers.get(chunk.transfer)
        if found is None:
            return None
        if chunk.offset != found.filled:
            self._break(chunk.transfer, f"bytes from {chunk.offset} on came, those from {found.filled} on were to come")
            return None
        return memoryview(found.memory)[found.filled : found.nbytes]

    def filled(self, chunk: pb.DataChunk, nbytes: int) -> None:
        """`nbytes` bytes of a chunk are where `room` said. More than there was room for: the tensor was a lie."""
        with self._lock:
            found = self._transfers.get(chunk.transfer)
        if found is None:
            return
        if found.filled + nbytes > found.nbytes:
            self._break(chunk.transfer, f"{found.filled + nbytes} bytes came for a tensor of {found.nbytes}")
            return
        found.filled += nbytes
        found.last_s = time.monotonic()
        if found.filled < found.nbytes:
            return
        with self._lock:
            if self._transfers.pop(chunk.transfer, None) is None:
                return
        value = self._own(found.memory, found.dtype, found.shape, found.nbytes, self._freed, found)
        self._deliver(found.item, value, found.nbytes, found.start_s, "tcp")

    def _freed(self, transfer: _Transfer) -> None:
        self._buffers.give(transfer.memory)
        self.account.free(charge(transfer.nbytes))

    def _break(self, number: int, why: str) -> None:
        with self._lock:
            found = self._transfers.pop(number, None)
        if found is not None:
            self._freed(found)
            self._tell(self.source, pb.DataMessage(refused=[self._refuse(found.item, Rejected(why))]))

    def end(self, step_id: str) -> None:
        """The step is over: the rest of its transfers is not kept."""
        with self._lock:
            gone = [n for n, t in self._transfers.items() if t.item.step_id == step_id]
            found = [self._transfers.pop(n) for n in gone]
        for transfer in found:
            # Its memory may be written to just now, so it is not used again.
            self.account.free(charge(transfer.nbytes))

    def cut(self) -> None:
        """The connection ended: steps whose tensors were half here fail."""
        with self._lock:
            found, self._transfers = list(self._transfers.values()), {}
        for transfer in found:
            self._give_up(transfer, f"{self.source} was cut off in the middle of {transfer.item.key!r}")

    def look(self, now_s: float) -> None:
        """Fails the steps of tensors of which nothing came for STALLED_S: a connection that broke and was made again
        has lost what was on it."""
        with self._lock:
            gone = [n for n, t in self._transfers.items() if now_s - t.last_s > STALLED_S]
            found = [self._transfers.pop(n) for n in gone]
        for transfer in found:
            self._give_up(transfer, f"{self.source} stopped in the middle of {transfer.item.key!r} {STALLED_S:g} s ago")

    def _give_up(self, transfer: _Transfer, what: str) -> None:
        self.account.free(charge(transfer.nbytes))
        text = f"{what}: {transfer.filled} of {transfer.nbytes} bytes came"
        self._inbox().fail(transfer.item.step_id, WorkerLost(text, worker=self.source))

    @property
    def transfers(self) -> int:
        """How many tensors are half here."""
        return len(self._transfers)
