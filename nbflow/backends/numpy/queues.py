"""Queues on numpy arrays. The rules are TensorFlow's (Abadi et al. 2015, section 4.6): an enqueue waits for room, a
dequeue for elements, and closing ends both in order.

One lock a queue; whoever waits looks every `_POLL_S` whether its step should end, so that no wait outlives its step.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nbflow.backends.base import Context, Table
from nbflow.data.apply import as_block
from nbflow.data.blocks import element, pad_stack, stack
from nbflow.errors import DataError, EndOfData, ShapeError
from nbflow.spec import Shape, TensorSpec, format_shape, shape_accepts

TABLE = Table()

Array = np.ndarray[Any, np.dtype[Any]]
Element = tuple[Array, ...]

_POLL_S = 0.05


class QueueState:
    """The elements of one queue."""

    def __init__(self, name: str, capacity: int, shuffle: bool, least: int, seed: str) -> None:
        self.name = name
        self._capacity = capacity
        self._least = least  # how many stay in while it is open
        self._elements: deque[Element] = deque()
        digest = hashlib.sha256(f"{seed}|queue".encode()).digest()
        key: Any = np.frombuffer(digest[:16], "<u8").astype(np.uint64)
        self._draws = np.random.Philox(key=key) if shuffle else None
        self._changed = threading.Condition()
        self._closed = False
        self._round = 0  # grows when pending enqueues are cancelled

    @property
    def closed(self) -> bool:
        return self._closed

    def __len__(self) -> int:
        return len(self._elements)

    def put(self, elements: Sequence[Element], check: Callable[[], None]) -> None:
        """Puts elements in, one by one as there is room. Raises DataError when closed, or what `check` raises."""
        with self._changed:
            if self._closed:
                raise DataError(f"queue {self.name!r} is closed; nothing more goes in")
            mine = self._round
            for one in elements:
                while len(self._elements) >= self._capacity and self._round == mine:
                    self._wait(check)
                if self._round != mine:
                    raise DataError(f"queue {self.name!r} was closed while this enqueue waited for room")
                self._elements.append(one)
                self._changed.notify_all()

    def take(self, n: int, check: Callable[[], None], *, fewer: bool = False) -> list[Element]:
        """`n` elements at once, as soon as they are there; `fewer`: what is left once it is closed.

        Raises EndOfData when it is closed and there are not as many, or what `check` raises.
        """
        with self._changed:
            while len(self._elements) < n + (0 if self._closed else self._least):
                if self._closed:
                    if fewer and self._elements:
                        n = len(self._elements)
                        break
                    raise EndOfData(f"queue {self.name!r} is closed and has {len(self._elements)} elements, not {n}")
                self._wait(check)
            taken = [self._pop() for _ in range(n)]
            self._changed.notify_all()
            return taken

    def end(self, cancel_pending: bool) -> None:
        """Closes it. Those that wait for room are let in, or fail."""
        with self._changed:
            self._closed = True
            if cancel_pending:
                self._round += 1
            self._changed.notify_all()

    def close(self) -> None:
        """Called when the store drops the state: nobody waits for it any longer."""
        self.end(cancel_pending=True)

    def _pop(self) -> Element:
        if self._draws is not None:
            # The last takes the place of a random one, which goes out.
            at = int(self._draws.random_raw() % len(self._elements))
            self._elements[at], self._elements[-1] = self._elements[-1], self._elements[at]
            return self._elements.pop()
        return self._elements.popleft()

    def _wait(self, check: Callable[[], None]) -> None:
        self._changed.wait(_POLL_S)
        check()


@TABLE.implements("queue")
def queue(
    ctx: Context,
    *,
    capacity: int,
    dtypes: tuple[Any, ...],
    shapes: tuple[Shape, ...],
    shuffle: bool,
    min_after_dequeue: int,
    seed: int | str,
    padding: bool,
) -> QueueState:
    text = f"{ctx.seed}|{ctx.name}" if seed == "" else str(seed)
    return ctx.state.get_or_make(ctx.key, lambda: QueueState(ctx.name, capacity, shuffle, min_after_dequeue, text))


def _checked(state: QueueState, parts: Sequence[Array], shapes: tuple[Shape, ...]) -> Element:
    for number, (part, shape) in enumerate(zip(parts, shapes, strict=True)):
        if not shape_accepts(shape, np.shape(part)):
            got = format_shape(np.shape(part))
            raise ShapeError(f"component {number} of queue {state.name!r} is {format_shape(shape)}, not {got}")
    return tuple(np.array(p, order="C") for p in parts)


@TABLE.implements("queue_enqueue")
def enqueue(
    ctx: Context, state: QueueState, *parts: Array, dtypes: tuple[Any, ...], shapes: tuple[Shape, ...]
) -> tuple[()]:
    state.put([_checked(state, parts, shapes)], ctx.check)
    return ()


@TABLE.implements("queue_enqueue_many")
def enqueue_many(
    ctx: Context, state: QueueState, *parts: Array, dtypes: tuple[Any, ...], shapes: tuple[Shape, ...]
) -> tuple[()]:
    if len({len(p) for p in parts}) > 1:
        raise ShapeError(f"queue {state.name!r} was given different numbers of rows: {[len(p) for p in parts]}")
    rows = [_checked(state, [p[i] for p in parts], shapes) for i in range(len(parts[0]))]
    state.put(rows, ctx.check)
    return ()


@TABLE.implements("queue_dequeue")
def dequeue(ctx: Context, state: QueueState, *, dtypes: tuple[Any, ...], shapes: tuple[Shape, ...]) -> Any:
    return _given(state.take(1, ctx.check)[0])


@TABLE.implements("queue_dequeue_many")
def dequeue_many(
    ctx: Context,
    state: QueueState,
    *,
    dtypes: tuple[Any, ...],
    shapes: tuple[Shape, ...],
    n: int,
    padding: bool,
) -> Any:
    return _given(_together(state, state.take(n, ctx.check), dtypes, shapes, padding))


@TABLE.implements("queue_dequeue_up_to")
def dequeue_up_to(
    ctx: Context,
    state: QueueState,
    *,
    dtypes: tuple[Any, ...],
    shapes: tuple[Shape, ...],
    n: int,
    padding: bool,
) -> Any:
    return _given(_together(state, state.take(n, ctx.check, fewer=True), dtypes, shapes, padding))


def _together(
    state: QueueState, taken: Sequence[Element], dtypes: tuple[Any, ...], shapes: tuple[Shape, ...], padding: bool
) -> Element:
    names = [f"{state.name}:{i}" for i in range(len(dtypes))]
    block = as_block(taken)
    if padding:
        specs = [TensorSpec(s, d) for s, d in zip(shapes, dtypes, strict=True)]
        return element(pad_stack(block, specs, [0] * len(specs), names), 0)
    return element(stack(block, names), 0)


def _given(parts: Element) -> Any:
    """What a program takes from an op: one value, or a tuple of several."""
    return parts if len(parts) > 1 else parts[0]


@TABLE.implements("queue_size")
def size(ctx: Context, state: QueueState) -> Array:
    return np.array(len(state), np.int64)


@TABLE.implements("queue_is_closed")
def is_closed(ctx: Context, state: QueueState) -> Array:
    return np.array(state.closed)


@TABLE.implements("queue_close")
def close(ctx: Context, state: QueueState, *, cancel_pending_enqueues: bool) -> tuple[()]:
    state.end(cancel_pending_enqueues)
    return ()
