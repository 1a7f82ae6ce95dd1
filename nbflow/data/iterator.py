"""The state behind `iterator_next`: where a dataset is, and the thread that gets batches ready.

One lives in the worker's StateStore for each iterator op; `StateStore.drop` calls `close`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from nbflow.data.pipeline import Rows, Stages, batches, check, part_of
from nbflow.errors import DataError, EndOfData

Array = np.ndarray[Any, np.dtype[Any]]
Batch = tuple[Array, ...]  # one array a component, then the share

# How long a wait sleeps before it looks again whether the step was cancelled.
_POLL_S = 0.05
# How long `close` waits for the thread; gathering one batch takes far less.
_JOIN_S = 5.0


class BatchIterator:
    """Batches of `arrays` in the order of `stages`.

    - `deal` = (index, count): every count-th batch, from the index-th on (asynchronous replicas).
    - `shard` = (index, count): of each of those the index-th of count consecutive parts (synchronous replicas).
    - `seed`: the graph's; mixed into shuffles that were given none.
    - `position`: batches of the whole dataset that were handed out; `seek` continues from any.
    """

    def __init__(
        self,
        arrays: tuple[Array, ...],
        stages: Stages,
        *,
        shard: tuple[int, int] = (0, 1),
        deal: tuple[int, int] = (0, 1),
        seed: int = 0,
    ) -> None:
        for what, (index, count) in (("shard", shard), ("deal", deal)):
            if not 0 <= index < count:
                raise DataError(f"{what} is (index, count) with 0 <= index < count, not {(index, count)}")
        self.arrays = arrays
        self.stages = stages
        self.shard = shard
        self.deal = deal
        self.seed = seed
        self.position = 0
        check(len(arrays[0]), stages)
        self._lock = threading.Lock()
        self._rows: Iterator[Rows] | None = None
        self._ahead = max((int(s[1]) for s in stages if s[0] == "prefetch"), default=0)
        self._feeder: _Feeder | None = None
        self._closed = False

    def next(self, check: Callable[[], None] = lambda: None) -> Batch:
        """The next batch: an array for each component, then the float64 share of the whole batch that they are.

        `check` raises when the step should end. Raises EndOfData after the last batch.
        """
        with self._lock:
            if self._closed:
                raise DataError("the dataset's iterator was closed; run the cell that makes it again")
            if self._ahead and self._feeder is None:
                self._feeder = _Feeder(self._gather, self._ahead)
            batch = self._feeder.get(check) if self._feeder is not None else self._gather()
            if batch is None:
                raise EndOfData(
                    f"the dataset has no more batches: it ended after {self.position}; .repeat() goes round again"
                )
            self.position += self.deal[1]
            return batch

    def seek(self, position: int) -> None:
        """Continues as if `position` batches of the whole dataset had been handed out; works out row numbers only.

        Raises EndOfData when there are not so many.
        """
        with self._lock:
            self._stop()
            rows = batches(len(self.arrays[0]), self.stages, self.seed)
            for done in range(position):
                if next(rows, None) is None:
                    raise EndOfData(f"the dataset has {done} batches, so it cannot continue after {position}")
            self._rows = rows
            self.position = position

    def close(self) -> None:
        """Stops the thread and forgets the arrays. A `next` that waits in another thread ends with EndOfData first."""
        feeder = self._feeder
        if feeder is not None:
            feeder.stop()
        with self._lock:
            self._stop()
            self._closed = True
            self._rows = None

    def _stop(self) -> None:
        if self._feeder is not None:
            self._feeder.stop()
            self._feeder = None

    def _gather(self) -> Batch | None:
        """One batch, or None at the end. Called by one thread at a time."""
        if self._rows is None:
            self._rows = batches(len(self.arrays[0]), self.stages, self.seed)
        index, count = self.deal
        dealt = [next(self._rows, None) for _ in range(count)]
        whole = dealt[index]
        if whole is None:
            return None
        mine = part_of(whole, self.shard)
        share = np.array(len(mine) / len(whole), np.float64)
        return (*(np.take(a, mine, axis=0) for a in self.arrays), share)


class _Feeder:
    """A thread that keeps up to `ahead` batches ready."""

    def __init__(self, make: Callable[[], Batch | None], ahead: int) -> None:
        self._make = make
        self._ahead = ahead
        self._ready: deque[Batch | None] = deque()
        self._error: BaseException | None = None
        self._stopping = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="nbflow-prefetch", daemon=True)
        self._thread.start()

    def get(self, check: Callable[[], None]) -> Batch | None:
        """The next batch; None at the end, again and again. `check` ends the wait by raising."""
        with self._changed:
            while not self._ready and self._error is None and not self._stopping:
                self._changed.wait(_POLL_S)
                check()
            if self._ready:
                batch = self._ready[0]
                if batch is not None:
                    self._ready.popleft()
                self._changed.notify_all()
                return batch
            if self._error is not None:
                raise self._error
            return None

    def stop(self) -> None:
        """Ends the thread. Raises DataError when it does not end in time."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(_JOIN_S)
        if self._thread.is_alive():
            raise DataError(f"the prefetching thread did not stop within {_JOIN_S} s")

    def _run(self) -> None:
        try:
            while True:
                batch = self._make()
                with self._changed:
                    self._ready.append(batch)
                    self._changed.notify_all()
                    if batch is None:
                        return
                    # Woken by `get` and by `stop`, which both notify; the timeout only guards against a lost wake-up.
                    while len(self._ready) >= self._ahead and not self._stopping:
                        self._changed.wait(1.0)
                    if self._stopping:
                        return
        except BaseException as error:  # noqa: BLE001  # handed to whoever calls `get`
            with self._changed:
                self._error = error
                self._changed.notify_all()
