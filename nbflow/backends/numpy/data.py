"""Dataset iterators on numpy arrays: the ops around `nbflow.data.iterator`."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from nbflow.backends.base import Context, Table
from nbflow.data.build import Environment
from nbflow.data.describe import draws_from_graph
from nbflow.data.iterator import VERSION, DataIterator, check_state
from nbflow.data.snapshot import pack, unpack
from nbflow.data.stages import State
from nbflow.errors import DataError

log = logging.getLogger("nbflow.data")

TABLE = Table()

Array = np.ndarray[Any, np.dtype[Any]]
Pair = tuple[int, int]

_BEGINNING: State = {"version": VERSION, "position": 0}


class Holder:
    """What the store keeps under an iterator's key: its iterators, one for each replica that runs on this worker, and
    where those begin that do not run yet.

    A cell that runs again may put another dataset under the same name; then the iterator starts anew.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._iterators: dict[tuple[Pair, Pair], tuple[tuple[str, int], DataIterator]] = {}
        self._begin: State = _BEGINNING

    def get(
        self,
        tree: tuple[Any, ...],
        fingerprint: str,
        shard: Pair,
        deal: Pair,
        seed: int,
        say: Callable[[str], None],
        keep: int = 0,
    ) -> DataIterator:
        """The iterator of one replica, made or made anew when anything about the dataset differs."""
        wanted = (fingerprint, seed)
        with self._lock:
            known = self._iterators.get((shard, deal))
            if known is not None and known[0] == wanted:
                return known[1]
            if known is not None:
                known[1].close()
                self._begin = _BEGINNING
            environment = Environment(self.name, seed, say)
            # A place among other random draws is another place.
            mark = f"{fingerprint} of {self.name} with seed {seed}" if draws_from_graph(tree) else fingerprint
            made = DataIterator(tree, environment, shard=shard, deal=deal, fingerprint=mark, keep=keep)
            if self._begin is not _BEGINNING:
                made.import_state(self._begin)
            self._iterators[(shard, deal)] = (wanted, made)
            return made

    def state(self, check: Callable[[], None]) -> State:
        """Where the replica stands that came furthest."""
        found = self._furthest()
        return self._begin if found is None else found.export_state(check)

    def position(self) -> int:
        found = self._furthest()
        return int(self._begin["position"]) if found is None else found.position

    def restore(self, state: State) -> None:
        """Every replica here continues, or will begin, at `state`."""
        check_state(state)
        with self._lock:
            self._begin = state
            gone, self._iterators = self._iterators, {}
        for _, iterator in gone.values():
            iterator.close()

    def close(self) -> None:
        """Called when the store drops the state. One that does not give way, such as a generator that waits for
        something, must not keep the rest of a session from being freed: it is logged, and left to its thread."""
        with self._lock:
            gone, self._iterators = self._iterators, {}
        for _, iterator in gone.values():
            try:
                iterator.close()
            except DataError as error:
                log.warning("dataset %s: %s", self.name, error)

    def _furthest(self) -> DataIterator | None:
        with self._lock:
            return max((i for _, i in self._iterators.values()), key=lambda i: i.position, default=None)


@TABLE.implements("iterator")
def iterator(ctx: Context, *, shared: str) -> Holder:
    name, _, generation = ctx.key.rpartition(":")
    name = shared or name
    return ctx.state.get_or_make(f"{name}:{generation}", lambda: Holder(name))


@TABLE.implements("iterator_next")
def iterator_next(
    ctx: Context,
    holder: Holder,
    *,
    tree: tuple[Any, ...],
    dtypes: tuple[Any, ...],
    shapes: tuple[Any, ...],
    fingerprint: str,
    shard: Pair,
    deal: Pair,
    keep: int = 0,
) -> tuple[Array, ...]:
    found = holder.get(tree, fingerprint, shard, deal, ctx.seed, ctx.state.say, keep)
    return found.next(ctx.check)


@TABLE.implements("iterator_state")
def iterator_state(ctx: Context, holder: Holder) -> Array:
    return pack(holder.state(ctx.check))


@TABLE.implements("iterator_restore")
def iterator_restore(ctx: Context, holder: Holder, value: Array) -> tuple[()]:
    holder.restore(unpack(value))
    return ()


@TABLE.implements("iterator_position")
def iterator_position(ctx: Context, holder: Holder) -> Array:
    return np.array(holder.position(), np.int64)
