"""A dataset that is being gone through: its stages, the thread that works ahead, and where it stands.

One lives in the worker's StateStore for each iterator op; `StateStore.drop` calls `close`. Iterating a dataset in
Python makes one too.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from nbflow.data import blocks
from nbflow.data.blocks import Columns, part_of
from nbflow.data.build import Environment, build, works_long
from nbflow.data.describe import Tree, components, is_batched, prefetched
from nbflow.data.stages import State
from nbflow.errors import DataError, EndOfData

Batch = Columns  # one array a component, then the share

VERSION = 1
# How long a wait sleeps before it looks again whether the step was cancelled.
_POLL_S = 0.05
# How long `close` waits for the thread; making one batch takes far less.
_JOIN_S = 5.0


@dataclass(frozen=True, slots=True)
class _Ready:
    """An element: as the stages gave it, for `export_state`, and as it will be handed out."""

    raw: Columns
    batch: Batch


class DataIterator:
    """The elements of the dataset that `tree` describes.

    - `deal` = (index, count): every count-th element, from the index-th on (asynchronous replicas).
    - `shard` = (index, count): of each of those the index-th of count consecutive parts (synchronous replicas).
    - `position`: elements of the whole dataset that were handed out.
    - `fingerprint`: of the dataset; states of another are refused.
    - `keep`: its state has the last so many elements that it handed out, so that it can be `rewound`.

    Elements are made by the caller's thread where that only moves row numbers, by one of its own where it may take
    long, or where the dataset was told to `prefetch`; then waiting can be cancelled, and nothing is lost by it.
    """

    def __init__(
        self,
        tree: Tree,
        environment: Environment | None = None,
        *,
        shard: tuple[int, int] = (0, 1),
        deal: tuple[int, int] = (0, 1),
        fingerprint: str = "",
        keep: int = 0,
    ) -> None:
        for what, (index, count) in (("shard", shard), ("deal", deal)):
            if not 0 <= index < count:
                raise DataError(f"{what} is (index, count) with 0 <= index < count, not {(index, count)}")
        self._tree = tree
        self._environment = environment or Environment()
        self._shard, self._deal = shard, deal
        self._fingerprint = fingerprint
        self._names = [name for name, _ in components(tree)]
        self._batched = is_batched(tree)
        self._stage = build(tree, self._environment)
        self._stage.restart(())
        self.position = 0
        self._handed: deque[Columns] = deque(maxlen=keep)
        self._again: deque[_Ready | None] = deque()  # made before, and not handed out; a feeder has its own
        self._lock = threading.Lock()  # of whoever asks
        self._making = threading.Lock()  # of the stages, and of what is ready
        self._error: BaseException | None = None
        self._closed = False
        ahead = prefetched(tree)
        self._feeder = _Feeder(self._make, ahead, self._making) if ahead or works_long(tree) else None

    def next(self, check: Callable[[], None] = lambda: None) -> Batch:
        """The next element: an array for each component, then the float64 share of the whole batch that they are.

        `check` raises when the step should end. Raises EndOfData after the last, and the same error again once a
        stage has failed.
        """
        with self._lock:
            if self._closed:
                raise DataError("the dataset's iterator was closed; run the cell that makes it again")
            found = self._feeder.get(check) if self._feeder is not None else self._make_here()
            if found is None:
                raise EndOfData(
                    f"the dataset has no more elements: it ended after {self.position}; .repeat() goes round again"
                )
            self.position += self._deal[1]
            self._handed.append(found.raw)
            return found.batch

    def export_state(self, check: Callable[[], None] = lambda: None) -> State:
        """Where it stands, as JSON values and arrays: what `import_state` takes, here or in another process."""
        with _held(self._lock, check), _held(self._making, check):
            if self._error is not None or (self._feeder is not None and self._feeder.error is not None):
                raise DataError("the dataset failed, so there is no place to continue from")
            ready = list(self._again if self._feeder is None else self._feeder.ready)
            return {
                "version": VERSION,
                "fingerprint": self._fingerprint,
                "position": self.position,
                "ready": [list(r.raw) for r in ready if r is not None],
                "ended": None in ready,
                **({"handed": [list(raw) for raw in self._handed]} if self._handed.maxlen else {}),
                "stage": self._stage.save(),
            }

    def import_state(self, state: State) -> None:
        """Continues from what `export_state` gave. Raises DataError for the state of another dataset."""
        check_state(state)
        if "stage" in state and state["fingerprint"] != self._fingerprint:
            raise DataError(
                "the state is that of another dataset: its stages, seeds or contents differ; "
                "make the dataset as it was when the state was saved"
            )
        with self._lock:
            if self._feeder is not None:
                self._feeder.stop()
            self._error = None
            try:
                if "stage" in state:
                    self._stage.load(state["stage"])
                else:
                    self._stage.restart(())
                ready: list[_Ready | None] = [self._ready(tuple(raw)) for raw in state.get("ready", ())]
                self._skip(state.get("skip", 0), ready)
            except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
                raise DataError(f"the state does not fit this dataset: {type(error).__name__}: {error}") from error
            self.position = state["position"]
            self._handed.clear()
            if state.get("ended"):
                ready.append(None)
            if self._feeder is None:
                self._again = deque(ready)
            else:
                self._feeder = _Feeder(self._make, self._feeder.ahead, self._making, ready)

    def close(self) -> None:
        """Stops the thread and frees files. A `next` that waits in another thread ends with EndOfData first."""
        self._environment.closing.set()
        if self._feeder is not None:
            self._feeder.stop()
        with self._lock:
            if not self._closed:
                self._closed = True
                self._stage.close()

    def _skip(self, elements: int, ready: list[_Ready | None]) -> None:
        for done in range(elements):
            self._environment.report("going on to where it was", done, elements)
            if ready:
                ready.pop(0)
            elif self._stage.next(1) is None:
                return

    # --- inside ---------------------------------------------------------------------------------------------------

    def _make_here(self) -> _Ready | None:
        if self._error is not None:
            raise self._error
        if self._again:
            return self._again[0] if self._again[0] is None else self._again.popleft()
        try:
            with self._making:
                return self._make()
        except BaseException as error:
            self._error = error  # stages that failed half-way are not asked again
            raise

    def _make(self) -> _Ready | None:
        """One element, or None at the end. The lock of the stages is held."""
        index, count = self._deal
        dealt = [self._stage.next(1) for _ in range(count)]
        mine = dealt[index]
        return None if mine is None else self._ready(mine)

    def _ready(self, raw: Columns) -> _Ready:
        part, share = self._part(raw)
        table = self._stage.table
        arrays = blocks.element(part if table is None else table.gather(part), 0)
        return _Ready(raw, (*arrays, np.array(share, np.float64)))

    def _part(self, raw: Columns) -> tuple[Columns, float]:
        """This replica's part of an element, as a block, and how much of the whole that is."""
        if self._shard[1] == 1:
            return raw, 1.0
        arrays = blocks.element(raw, 0)
        if not self._batched or any(len(a) != len(arrays[0]) for a in arrays):
            raise DataError(
                f"the components {', '.join(self._names)} have no common number of rows to be split over "
                f"{self._shard[1]} replicas; put .batch(n) into the dataset"
            )
        rows = len(arrays[0])
        mine = part_of(rows, self._shard)
        return blocks.single([a[mine] for a in arrays]), (mine.stop - mine.start) / rows if rows else 0.0


def rewound(state: State, elements: int) -> State | None:
    """`state`, of one that keeps what it hands out, as it was `elements` elements before; None when it kept fewer.

    That what is handed out again is what it was: it is kept, not made anew.
    """
    handed = state.get("handed", ())
    if not 0 <= elements <= len(handed):
        return None
    again = list(handed[len(handed) - elements :])
    plain = {key: value for key, value in state.items() if key != "handed"}
    return {**plain, "position": state["position"] - elements, "ready": [*again, *state.get("ready", ())]}


def advanced(state: State, elements: int) -> State:
    """`state` as it will be `elements` elements later. These are made, and not handed out, by who begins there."""
    plain = {key: value for key, value in state.items() if key != "handed"}
    return {**plain, "position": state["position"] + elements, "skip": state.get("skip", 0) + elements}


class _held:  # noqa: N801  # reads as what it does
    """Holds a lock; `check` ends the wait by raising."""

    def __init__(self, lock: threading.Lock, check: Callable[[], None]) -> None:
        self._lock, self._check = lock, check

    def __enter__(self) -> None:
        while not self._lock.acquire(timeout=_POLL_S):
            self._check()

    def __exit__(self, *exc: object) -> None:
        self._lock.release()


def check_state(state: Any) -> None:
    """Raises DataError unless `state` looks like one that `export_state` gave."""
    known = isinstance(state, dict) and state.get("version") == VERSION and isinstance(state.get("position"), int)
    known = known and isinstance(state.get("skip", 0), int) and state.get("skip", 0) >= 0
    if not known or ("stage" in state and not isinstance(state.get("fingerprint"), str)):
        raise DataError(f"not the state of an iterator (of version {VERSION})")


class _Feeder:
    """A thread that keeps up to `ahead` elements ready, or makes one when asked if that is 0."""

    def __init__(
        self,
        make: Callable[[], _Ready | None],
        ahead: int,
        making: threading.Lock,
        ready: list[_Ready | None] | None = None,
    ) -> None:
        self.ahead = ahead
        self.ready: deque[_Ready | None] = deque(ready or ())
        self.error: BaseException | None = None
        self._make = make
        self._making = making
        self._asked = 0  # elements that somebody waits for
        self._stopping = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def get(self, check: Callable[[], None]) -> _Ready | None:
        """The next element; None at the end, again and again. `check` ends the wait by raising."""
        with self._changed:
            if self._thread is None and not self._stopping:
                self._thread = threading.Thread(target=self._run, name="nbflow-prefetch", daemon=True)
                self._thread.start()
            self._asked = 1
            self._changed.notify_all()
            try:
                while not self.ready and self.error is None and not self._stopping:
                    self._changed.wait(_POLL_S)
                    check()
            finally:
                self._asked = 0
            if self.ready:
                found = self.ready[0]
                if found is not None:
                    self.ready.popleft()
                self._changed.notify_all()
                return found
            if self.error is not None:
                raise self.error
            return None

    def stop(self) -> None:
        """Ends the thread. Raises DataError when it does not end in time."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(_JOIN_S)
            if self._thread.is_alive():
                raise DataError(f"the thread that reads the dataset did not stop within {_JOIN_S} s")

    def _run(self) -> None:
        try:
            while self._wait():
                # An element is made and put down under one lock, so that whoever holds it sees all or nothing of it.
                with self._making:
                    made = self._make()
                    with self._changed:
                        self.ready.append(made)
                        self._changed.notify_all()
                if made is None:
                    return
        except BaseException as error:  # noqa: BLE001  # handed to whoever calls `get`
            with self._changed:
                self.error = error
                self._changed.notify_all()

    def _wait(self) -> bool:
        """Waits until another element is wanted; False when none ever will be."""
        with self._changed:
            while not self._stopping and (None in self.ready or len(self.ready) >= max(self.ahead, self._asked)):
                # Woken by `get` and by `stop`, which both notify; the timeout only guards against a lost wake-up.
                self._changed.wait(1.0)
            return not self._stopping
