"""Dataset iterators on numpy arrays: the implementation of `iterator_next` around `nbflow.data.iterator`."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from nbflow.backends.base import Context, Table
from nbflow.data.iterator import BatchIterator
from nbflow.data.pipeline import Stages

TABLE = Table()

Array = np.ndarray[Any, np.dtype[Any]]


class IteratorSlot:
    """What the store keeps under an iterator's key: the iterator, and which dataset it goes through.

    A cell that runs again may put another dataset under the same name; then the iterator starts anew.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made_for: tuple[Any, ...] = ()
        self.iterator: BatchIterator | None = None

    def get(
        self,
        arrays: tuple[Array, ...],
        stages: Stages,
        fingerprint: str,
        shard: tuple[int, int],
        deal: tuple[int, int],
        seed: int,
    ) -> BatchIterator:
        """The iterator, made or made anew when anything about the dataset differs."""
        wanted = (fingerprint, stages, shard, deal, seed)
        with self._lock:
            if self.iterator is None or self._made_for != wanted:
                if self.iterator is not None:
                    self.iterator.close()
                self.iterator = BatchIterator(arrays, stages, shard=shard, deal=deal, seed=seed)
                self._made_for = wanted
            return self.iterator

    def close(self) -> None:
        """Called when the store drops the state."""
        with self._lock:
            if self.iterator is not None:
                self.iterator.close()


@TABLE.implements("iterator_next")
def iterator_next(
    ctx: Context,
    *,
    arrays: tuple[Array, ...],
    names: tuple[str, ...],
    stages: Stages,
    fingerprint: str,
    shard: tuple[int, int],
    deal: tuple[int, int],
) -> tuple[Array, ...]:
    slot = ctx.state.get_or_make(ctx.key, IteratorSlot)
    return slot.get(arrays, stages, fingerprint, shard, deal, ctx.seed).next(ctx.check)
