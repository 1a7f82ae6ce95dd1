"""The stages of a running dataset: what pulls elements from what.

A stage is asked for at most `limit` elements at a time and gives a block of one or more, or None at its end (again and
again, until it is restarted). Nobody keeps what was not asked for, so where a dataset stands is a few numbers, and
`save` and `load` are exact. A stage restarts with an *epoch*, a tuple with one number for each `repeat` around it;
shuffles draw raw Philox words keyed with seed and epoch, so that any worker, with any numpy, makes the same order.

A stage with a `table` hands on row numbers of that table instead of rows: shuffling and batching arrays moves eight
bytes a row, and rows are gathered once, at the end.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nbflow.data import blocks
from nbflow.data.blocks import Array, Columns, Table
from nbflow.errors import DataError
from nbflow.spec import TensorSpec

Epoch = tuple[int, ...]
# What JSON can say, and arrays.
State = dict[str, Any]

FOREVER = -1
# Elements that a filling buffer asks for at once: large enough that Python's part does not count.
_BLOCK = 1 << 16


class Stage(ABC):
    """One stage. `children` are what it pulls from."""

    def __init__(self, *children: Stage) -> None:
        self.children = children
        self.table: Table | None = None

    @abstractmethod
    def restart(self, epoch: Epoch) -> None:
        """Begins anew, as epoch `epoch`."""

    @abstractmethod
    def next(self, limit: int) -> Columns | None:
        """1 … `limit` elements; None at the end."""

    @abstractmethod
    def save(self) -> State:
        """Where it stands."""

    @abstractmethod
    def load(self, state: State) -> None:
        """Continues from what `save` gave, in a stage made from the same description."""

    def close(self) -> None:
        """Frees files and threads."""
        for child in self.children:
            child.close()


class Rows(Stage):
    """The row numbers of a table, in order."""

    def __init__(self, arrays: Columns) -> None:
        super().__init__()
        self.table = Table(arrays)
        self._rows = len(arrays[0])
        self._at = 0

    def restart(self, epoch: Epoch) -> None:
        self._at = 0

    def next(self, limit: int) -> Columns | None:
        start, self._at = self._at, min(self._at + limit, self._rows)
        return (np.arange(start, self._at, dtype=np.int64),) if self._at > start else None

    def save(self) -> State:
        return {"at": self._at}

    def load(self, state: State) -> None:
        self._at = state["at"]


class Gather(Stage):
    """Row numbers become rows."""

    def __init__(self, child: Stage) -> None:
        super().__init__(child)
        assert child.table is not None
        self._source = child.table

    def restart(self, epoch: Epoch) -> None:
        self.children[0].restart(epoch)

    def next(self, limit: int) -> Columns | None:
        block = self.children[0].next(limit)
        return None if block is None else self._source.gather(block)

    def save(self) -> State:
        return self.children[0].save()

    def load(self, state: State) -> None:
        self.children[0].load(state)


def values(stage: Stage) -> Stage:
    """`stage`, with its rows gathered."""
    return stage if stage.table is None else Gather(stage)


class Repeat(Stage):
    """Its child `count` times, or FOREVER."""

    def __init__(self, child: Stage, count: int) -> None:
        super().__init__(child)
        self.table = child.table
        self._count = count
        self._epoch: Epoch = ()
        self._number = 0
        self._given = False  # whether this round gave anything

    def restart(self, epoch: Epoch) -> None:
        self._epoch, self._number, self._given = epoch, 0, False
        self.children[0].restart((*epoch, 0))

    def next(self, limit: int) -> Columns | None:
        while self._number != self._count:
            block = self.children[0].next(limit)
            if block is not None:
                self._given = True
                return block
            if not self._given:
                raise DataError("repeat goes round a dataset that gave no element; look at what is before it")
            self._number += 1
            self._given = False
            if self._number != self._count:
                self.children[0].restart((*self._epoch, self._number))
        return None

    def save(self) -> State:
        return {
            "epoch": list(self._epoch),
            "number": self._number,
            "given": self._given,
            "child": self.children[0].save(),
        }

    def load(self, state: State) -> None:
        self._epoch, self._number, self._given = tuple(state["epoch"]), state["number"], state["given"]
        self.children[0].load(state["child"])


class Take(Stage):
    """The first `n` elements."""

    def __init__(self, child: Stage, n: int) -> None:
        super().__init__(child)
        self.table = child.table
        self._n = self._left = n

    def restart(self, epoch: Epoch) -> None:
        self._left = self._n
        self.children[0].restart(epoch)

    def next(self, limit: int) -> Columns | None:
        block = self.children[0].next(min(limit, self._left)) if self._left else None
        if block is not None:
            self._left -= blocks.length(block)
        return block

    def save(self) -> State:
        return {"left": self._left, "child": self.children[0].save()}

    def load(self, state: State) -> None:
        self._left = state["left"]
        self.children[0].load(state["child"])


class Skip(Stage):
    """All but the first `n` elements."""

    def __init__(self, child: Stage, n: int) -> None:
        super().__init__(child)
        self.table = child.table
        self._n = self._left = n

    def restart(self, epoch: Epoch) -> None:
        self._left = self._n
        self.children[0].restart(epoch)

    def next(self, limit: int) -> Columns | None:
        while self._left:
            block = self.children[0].next(min(self._left, _BLOCK))
            if block is None:
                return None
            self._left -= blocks.length(block)
        return self.children[0].next(limit)

    def save(self) -> State:
        return {"left": self._left, "child": self.children[0].save()}

    def load(self, state: State) -> None:
        self._left = state["left"]
        self.children[0].load(state["child"])


class Shard(Stage):
    """Every `count`-th element, from the `index`-th on."""

    def __init__(self, child: Stage, count: int, index: int) -> None:
        super().__init__(child)
        self.table = child.table
        self._count, self._index = count, index
        self._at = 0

    def restart(self, epoch: Epoch) -> None:
        self._at = 0
        self.children[0].restart(epoch)

    def next(self, limit: int) -> Columns | None:
        while True:
            block = self.children[0].next(limit * self._count)
            if block is None:
                return None
            first = (self._index - self._at) % self._count
            self._at = (self._at + blocks.length(block)) % self._count
            if first < blocks.length(block):
                return tuple(c[first :: self._count] for c in block)

    def save(self) -> State:
        return {"at": self._at, "child": self.children[0].save()}

    def load(self, state: State) -> None:
        self._at = state["at"]
        self.children[0].load(state["child"])


class Batch(Stage):
    """`n` elements become one."""

    def __init__(self, child: Stage, n: int, drop_remainder: bool, combine: Callable[[Columns], Columns]) -> None:
        super().__init__(child)
        self.table = child.table
        self._n, self._drop = n, drop_remainder
        self._combine = combine

    def restart(self, epoch: Epoch) -> None:
        self.children[0].restart(epoch)

    def next(self, limit: int) -> Columns | None:
        parts: list[Columns] = []
        missing = self._n
        while missing:
            part = self.children[0].next(missing)
            if part is None:
                break
            parts.append(part)
            missing -= blocks.length(part)
        if not parts or (missing and self._drop):
            return None
        return self._combine(parts[0] if len(parts) == 1 else blocks.join(parts))

    def save(self) -> State:
        return {"child": self.children[0].save()}

    def load(self, state: State) -> None:
        self.children[0].load(state["child"])


class Unbatch(Stage):
    """Each element's rows as elements."""

    def __init__(self, child: Stage, names: Sequence[str]) -> None:
        super().__init__(values(child))
        self._names = names
        self._rows: Columns | None = None

    def restart(self, epoch: Epoch) -> None:
        self._rows = None
        self.children[0].restart(epoch)

    def next(self, limit: int) -> Columns | None:
        while self._rows is None or not blocks.length(self._rows):
            block = self.children[0].next(1)
            if block is None:
                return None
            self._rows = blocks.unstack(block, self._names)
        count = blocks.length(self._rows)
        given, self._rows = blocks.cut(self._rows, 0, limit), blocks.cut(self._rows, min(limit, count), count)
        return given

    def save(self) -> State:
        rows = None if self._rows is None else list(self._rows)
        return {"rows": rows, "child": self.children[0].save()}

    def load(self, state: State) -> None:
        self._rows = None if state["rows"] is None else tuple(state["rows"])
        self.children[0].load(state["child"])


class Enumerate(Stage):
    """A first component that counts the elements."""

    def __init__(self, child: Stage, start: int) -> None:
        super().__init__(values(child))
        self._start = self._at = start

    def restart(self, epoch: Epoch) -> None:
        self._at = self._start
        self.children[0].restart(epoch)

    def next(self, limit: int) -> Columns | None:
        block = self.children[0].next(limit)
        if block is None:
            return None
        start, self._at = self._at, self._at + blocks.length(block)
        return (np.arange(start, self._at, dtype=np.int64), *block)

    def save(self) -> State:
        return {"at": self._at, "child": self.children[0].save()}

    def load(self, state: State) -> None:
        self._at = state["at"]
        self.children[0].load(state["child"])


class Shuffle(Stage):
    """A permutation when everything fits into `buffer`, otherwise a window of `buffer` elements that slides along:
    each new element takes the place of a random one, which goes out.

    A window that has not slid yet holds the first elements of its epoch: its state is how many went out, and loading
    fills it again. One that slid is saved whole.
    """

    def __init__(
        self,
        child: Stage,
        buffer: int,
        seed: str,
        *,
        level: int,
        reshuffle: bool,
        report: Callable[[str, int, int], None],
    ) -> None:
        super().__init__(child)
        self.table = child.table
        self._buffer, self._seed, self._level, self._reshuffle = buffer, seed, level, reshuffle
        self._report = report
        self._begin(())

    def _begin(self, epoch: Epoch) -> None:
        self._epoch = epoch
        self._draws = np.random.Philox(key=self._key(epoch if self._reshuffle else ()))
        self._window: Columns | None = None
        self._order: Array | None = None  # of what is left in the window, once the child has ended
        self._at = 0
        self._slid = False

    def _key(self, epoch: Epoch) -> Any:
        digest = hashlib.sha256(f"{self._seed}|{self._level}|{epoch}".encode()).digest()
        return np.frombuffer(digest[:16], "<u8").astype(np.uint64)

    def restart(self, epoch: Epoch) -> None:
        self._begin(epoch)
        self.children[0].restart(epoch)

    def next(self, limit: int) -> Columns | None:
        if self._window is None and self._order is None:
            self._fill()
        if self._order is None:
            new = self.children[0].next(limit)
            if new is not None:
                return self._slide(new)
            self._drain()
        assert self._order is not None
        if self._window is None or self._at >= len(self._order):
            return None
        start, self._at = self._at, min(self._at + limit, len(self._order))
        return blocks.pick(self._window, self._order[start : self._at])

    def _fill(self) -> None:
        parts: list[Columns] = []
        have = 0
        while have < self._buffer:
            part = self.children[0].next(min(self._buffer - have, _BLOCK))
            if part is None:
                break
            parts.append(part)
            have += blocks.length(part)
            self._report("filling a shuffle buffer", have, self._buffer)
        self._window = blocks.join(parts) if parts else None
        if have < self._buffer:
            self._drain()

    def _drain(self) -> None:
        count = 0 if self._window is None else blocks.length(self._window)
        self._order = np.argsort(self._draws.random_raw(count), kind="stable")

    def _slide(self, new: Columns) -> Columns:
        assert self._window is not None
        self._slid = True
        count = blocks.length(new)
        slots = (self._draws.random_raw(count) % np.uint64(blocks.length(self._window))).astype(np.int64)
        # Where a slot comes twice, what goes out the second time is what came in the first time.
        order = np.argsort(slots, kind="stable")
        again = np.flatnonzero(slots[order][1:] == slots[order][:-1])
        out = blocks.pick(self._window, slots)
        if len(again):
            out = blocks.put(out, order[again + 1], blocks.pick(new, order[again]))
        self._window = blocks.put(self._window, slots, new)
        return out

    def save(self) -> State:
        state: State = {"epoch": list(self._epoch), "slid": self._slid, "at": self._at}
        if self._slid:
            assert self._window is not None
            state["draws"] = _philox_state(self._draws)
            state["window"] = [c.copy() for c in self._window]  # the window goes on changing in place
            state["order"] = self._order
            state["child"] = self.children[0].save()
        return state

    def load(self, state: State) -> None:
        self._begin(tuple(state["epoch"]))
        self._slid = state["slid"]
        if self._slid:
            self._draws.state = _philox_from(state["draws"])
            self._window = tuple(state["window"])
            self._order = state["order"]
            self.children[0].load(state["child"])
        else:
            self.children[0].restart(self._epoch)
            if state["at"]:
                self._fill()
                if self._order is None:
                    self._drain()  # something went out of a window that has not slid: its child had ended
                    self.children[0].next(1)
        self._at = state["at"]


def _philox_state(draws: np.random.Philox) -> State:
    state = draws.state
    return {
        "counter": [int(n) for n in state["state"]["counter"]],
        "key": [int(n) for n in state["state"]["key"]],
        "buffer": [int(n) for n in state["buffer"]],
        "at": int(state["buffer_pos"]),
    }


def _philox_from(state: State) -> Any:
    numbers = {name: np.array(state[name], np.uint64) for name in ("counter", "key")}
    return {
        "bit_generator": "Philox",
        "state": numbers,
        "buffer": np.array(state["buffer"], np.uint64),
        "buffer_pos": state["at"],
        "has_uint32": 0,
        "uinteger": 0,
    }


def batching(names: Sequence[str], table: Table | None) -> Callable[[Columns], Columns]:
    """How `Batch` makes one element of many."""
    known = names if table is None else ("row number",)
    return lambda block: blocks.stack(block, known)


def padding(names: Sequence[str], specs: Sequence[TensorSpec], fills: Sequence[Any]) -> Callable[[Columns], Columns]:
    """As `batching`, with padding."""
    return lambda block: blocks.pad_stack(block, specs, fills, names)
