"""Stages that compute: functions of one element, made of ops.

The function travels as a graph (`program.py`), so no Python code of a notebook runs on a worker. Each element is one
call with the number of the element as its step, so what random ops draw does not depend on threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from nbflow.data import blocks
from nbflow.data.blocks import Array, Columns
from nbflow.data.stages import Epoch, Stage, State, values

# (an element's arrays, its number) -> arrays
Function = Callable[[Sequence[Array], int], Sequence[Array]]


def as_block(elements: Sequence[Sequence[Array]]) -> Columns:
    """A block of elements."""
    columns = []
    for parts in zip(*elements, strict=True):
        arrays = [np.asarray(p) for p in parts]
        alike = all(a.shape == arrays[0].shape for a in arrays)
        columns.append(np.stack(arrays) if alike else blocks.objects(arrays))
    return tuple(columns)


class Map(Stage):
    """`function` of each element."""

    def __init__(self, child: Stage, function: Function) -> None:
        super().__init__(values(child))
        self._function = function
        self._number = 0  # of elements so far, over all epochs

    def restart(self, epoch: Epoch) -> None:
        self.children[0].restart(epoch)

    def next(self, limit: int) -> Columns | None:
        block = self.children[0].next(limit)
        if block is None:
            return None
        first, self._number = self._number, self._number + blocks.length(block)
        count = blocks.length(block)
        return as_block([self._function(blocks.element(block, i), first + i) for i in range(count)])

    def save(self) -> State:
        return {"number": self._number, "child": self.children[0].save()}

    def load(self, state: State) -> None:
        self._number = state["number"]
        self.children[0].load(state["child"])


class ParallelMap(Stage):
    """As `Map`, with `threads` threads, which work ahead by as many elements. The order stays."""

    def __init__(self, child: Stage, function: Function, threads: int) -> None:
        super().__init__(values(child))
        self._function = function
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="nbflow-map")
        self._number = 0
        # What is being computed: the elements that went in (for `save`), and what will come out.
        self._ahead: deque[tuple[Columns, int, Future[Sequence[Array]]]] = deque()
        self._ended = False

    def restart(self, epoch: Epoch) -> None:
        self._forget()
        self.children[0].restart(epoch)

    def next(self, limit: int) -> Columns | None:
        while not self._ended and len(self._ahead) < limit + self._threads:
            block = self.children[0].next(limit + self._threads - len(self._ahead))
            if block is None:
                self._ended = True
                break
            for i in range(blocks.length(block)):
                self._submit(blocks.cut(block, i, i + 1), self._number)
                self._number += 1
        if not self._ahead:
            return None
        count = min(limit, len(self._ahead))
        made = [self._ahead[i][2].result() for i in range(count)]
        for _ in range(count):
            self._ahead.popleft()
        return as_block(made)

    def _submit(self, one: Columns, number: int) -> None:
        arrays = blocks.element(one, 0)
        self._ahead.append((one, number, self._pool.submit(self._function, arrays, number)))

    def _forget(self) -> None:
        for _, _, future in self._ahead:
            future.cancel()
        self._ahead.clear()
        self._ended = False

    def save(self) -> State:
        return {
            "number": self._number,
            "ended": self._ended,
            "ahead": [list(one) for one, _, _ in self._ahead],
            "numbers": [number for _, number, _ in self._ahead],
            "child": self.children[0].save(),
        }

    def load(self, state: State) -> None:
        self._forget()
        self._number, self._ended = state["number"], state["ended"]
        self.children[0].load(state["child"])
        for one, number in zip(state["ahead"], state["numbers"], strict=True):
            self._submit(tuple(one), number)

    def close(self) -> None:
        self._forget()
        self._pool.shutdown(wait=True)
        super().close()


class Filter(Stage):
    """The elements of which `predicate` gives a true scalar."""

    def __init__(self, child: Stage, predicate: Function) -> None:
        super().__init__(values(child))
        self._predicate = predicate
        self._number = 0

    def restart(self, epoch: Epoch) -> None:
        self.children[0].restart(epoch)

    def next(self, limit: int) -> Columns | None:
        while True:
            block = self.children[0].next(limit)
            if block is None:
                return None
            count = blocks.length(block)
            kept = [bool(self._predicate(blocks.element(block, i), self._number + i)[0]) for i in range(count)]
            self._number += count
            if any(kept):
                return tuple(c[np.array(kept)] for c in block)

    def save(self) -> State:
        return {"number": self._number, "child": self.children[0].save()}

    def load(self, state: State) -> None:
        self._number = state["number"]
        self.children[0].load(state["child"])
