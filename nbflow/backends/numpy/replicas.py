"""Accumulators and coordinators: what replicas that drive their own steps give each other.

One lock each; whoever waits looks every `_POLL_S` whether its step should end, so that no wait outlives its step.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nbflow.backends.base import Context, Table
from nbflow.errors import EndOfData, OpError, ShapeError
from nbflow.spec import Shape, format_shape, is_half, shape_accepts

TABLE = Table()

Array = np.ndarray[Any, np.dtype[Any]]

_POLL_S = 0.05


class Accumulator:
    """The newest value of each worker, with its step and weight."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dropped = 0  # values that came for a step that was over
        self._first = 0  # the first step that is not over
        self._kept: dict[int, tuple[int, float, Array]] = {}
        self._lock = threading.Lock()

    def apply(self, worker: int, step: int, weight: float, value: Array) -> None:
        with self._lock:
            if step < self._first:
                self.dropped += 1
                return
        copied = np.array(value, order="C")  # outside of the lock: copies for different workers go on at once
        with self._lock:
            if step >= self._first:
                self._kept[worker] = (step, weight, copied)
            else:
                self.dropped += 1

    def take(self, step: int, workers: Sequence[int]) -> list[tuple[float, Array]]:
        """Weights and values of `workers` for `step`. Raises OpError when one has given none."""
        with self._lock:
            missing = [w for w in workers if w not in self._kept or self._kept[w][0] != step]
            if missing:
                raise OpError(f"accumulator {self.name!r} has nothing of worker {missing[0]} for step {step}")
            taken = [self._kept[w][1:] for w in workers]
            self._first = step + 1
            self._kept = {w: k for w, k in self._kept.items() if k[0] > step}
            return taken


@TABLE.implements("accumulator")
def accumulator(ctx: Context) -> Accumulator:
    return ctx.state.get_or_make(ctx.key, lambda: Accumulator(ctx.name))


@TABLE.implements("accumulator_apply")
def accumulator_apply(
    ctx: Context, state: Accumulator, value: Array, step: Array, weight: Array, *, worker: int, dtype: Any, shape: Shape
) -> tuple[()]:
    if not shape_accepts(shape, np.shape(value)):
        raise ShapeError(f"accumulator {state.name!r} holds {format_shape(shape)}, not {format_shape(np.shape(value))}")
    state.apply(worker, int(step), float(weight), value)
    return ()


@TABLE.implements("accumulator_take")
def accumulator_take(
    ctx: Context, state: Accumulator, step: Array, workers: Array, *, how: str, dtype: Any, shape: Shape
) -> Array:
    taken = state.take(int(step), [int(w) for w in workers])
    values = [value for _, value in taken]
    if how == "rows":
        return np.concatenate(values, axis=0)
    total = sum(weight for weight, _ in taken)
    shares = [weight / total if total else 0.0 for weight, _ in taken]
    if how == "share":
        # A worker without rows may have a NaN for its mean, which is nobody's gradient.
        return np.concatenate([_times(v, s) for v, s in zip(values, shares, strict=True)], axis=0)
    return _mean(values, shares)


def _times(value: Array, share: float) -> Array:
    return np.multiply(value, value.dtype.type(share)) if share else np.zeros_like(value)


def _mean(values: Sequence[Array], shares: Sequence[float]) -> Array:
    """Σ share · value, in this order. Narrow floats are summed as float32 and rounded once."""
    dtype = values[0].dtype
    wide = np.dtype(np.float32) if is_half(dtype) else dtype
    total = np.zeros(values[0].shape, wide)
    for value, share in zip(values, shares, strict=True):
        if share:
            total += value.astype(wide, copy=False) * wide.type(share)
    return total.astype(dtype, copy=False)


class Coordinator:
    """Which step is made, and what each replica has done."""

    def __init__(self, name: str, replicas: int) -> None:
        self.name = name
        self.dropped = 0  # reports that came for a step that was over
        self._replicas = replicas
        self._changed = threading.Condition()
        self._step = 0
        self._closed = False
        self._live = set(range(replicas))
        self._arrived: list[int] = []
        self._reported: dict[int, int] = {}
        self._done = dict.fromkeys(range(replicas), 0)

    def open(self) -> None:
        with self._changed:
            self._step += 1  # what is still on its way belongs to a step that is over
            self._closed = False
            self._live = set(range(self._replicas))
            self._arrived, self._reported = [], {}
            self._done = dict.fromkeys(range(self._replicas), 0)
            self._changed.notify_all()

    def close(self) -> None:
        """Also called when the store drops the state."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def leave(self, worker: int) -> None:
        with self._changed:
            self._live.discard(worker)
            self._changed.notify_all()

    # --- steps that some of the replicas make together -----------------------------------------------------------

    def wait(self, worker: int, check: Callable[[], None]) -> int:
        with self._changed:
            self._live.add(worker)
            while not self._closed and self._reported.get(worker) == self._step:
                self._pause(check)
            if self._closed:
                raise EndOfData("there are no more steps to give to")
            return self._step

    def report(self, worker: int, step: int) -> None:
        with self._changed:
            if step != self._step:
                self.dropped += 1
                return
            self._reported[worker] = step
            if worker not in self._arrived:
                self._arrived.append(worker)
            self._changed.notify_all()

    def begin(self, count: int, check: Callable[[], None]) -> tuple[int, list[int]]:
        with self._changed:
            while len(self._arrived) < count:
                if self._closed or len(self._live | set(self._arrived)) < count:
                    raise EndOfData(f"{count} replicas make a step, and {len(self._live)} are left")
                self._pause(check)
            return self._step, sorted(self._arrived[:count])

    def advance(self, step: int) -> None:
        with self._changed:
            if step == self._step:
                self._step += 1
                self._arrived = []
                self._changed.notify_all()

    # --- steps that each replica makes by itself -----------------------------------------------------------------

    def pace(self, worker: int, staleness: int, check: Callable[[], None]) -> int:
        with self._changed:
            if worker not in self._live:
                others = [self._done[w] for w in self._live]
                self._done[worker] = max(self._done[worker], min(others, default=0))
                self._live.add(worker)
            while self._done[worker] - min(self._done[w] for w in self._live | {worker}) > staleness:
                self._pause(check)
            return self._done[worker]

    def tick(self, worker: int) -> None:
        with self._changed:
            self._done[worker] += 1
            self._changed.notify_all()

    def _pause(self, check: Callable[[], None]) -> None:
        self._changed.wait(_POLL_S)
        check()


@TABLE.implements("coordinator")
def coordinator(ctx: Context, *, replicas: int) -> Coordinator:
    return ctx.state.get_or_make(ctx.key, lambda: Coordinator(ctx.name, replicas))


@TABLE.implements("coordinator_wait")
def wait(ctx: Context, state: Coordinator, *, worker: int) -> Array:
    return np.array(state.wait(worker, ctx.check), np.int64)


@TABLE.implements("coordinator_report")
def report(ctx: Context, state: Coordinator, step: Array, *, worker: int) -> tuple[()]:
    state.report(worker, int(step))
    return ()


@TABLE.implements("coordinator_begin")
def begin(ctx: Context, state: Coordinator, *, count: int) -> tuple[Array, Array]:
    step, workers = state.begin(count, ctx.check)
    return np.array(step, np.int64), np.array(workers, np.int64)


@TABLE.implements("coordinator_advance")
def advance(ctx: Context, state: Coordinator, step: Array) -> tuple[()]:
    state.advance(int(step))
    return ()


@TABLE.implements("coordinator_pace")
def pace(ctx: Context, state: Coordinator, *, worker: int, staleness: int) -> Array:
    return np.array(state.pace(worker, staleness, ctx.check), np.int64)


@TABLE.implements("coordinator_tick")
def tick(ctx: Context, state: Coordinator, *, worker: int) -> tuple[()]:
    state.tick(worker)
    return ()


@TABLE.implements("coordinator_leave")
def leave(ctx: Context, state: Coordinator, *, worker: int) -> tuple[()]:
    state.leave(worker)
    return ()


@TABLE.implements("coordinator_open")
def open_(ctx: Context, state: Coordinator) -> tuple[()]:
    state.open()
    return ()


@TABLE.implements("coordinator_close")
def close(ctx: Context, state: Coordinator) -> tuple[()]:
    state.close()
    return ()
