"""Variables and optimizers on numpy arrays. Values change in place; nothing kept ever aliases what came in.

Updates go through the arrays in chunks that stay in the first-level caches, with scratch space that each thread keeps:
one pass over memory, and no fresh arrays in steady state.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from nbflow.backends.base import Context, Table
from nbflow.errors import OpError
from nbflow.spec import format_shape, is_half
from nbflow.state import Cell

TABLE = Table()

Array = np.ndarray[Any, np.dtype[Any]]

# Elements of one chunk: 64 KiB of float32, so that value, slots, gradient and scratch fit the second-level cache.
_CHUNK = 16384

_scratch = threading.local()


def scratch(dtype: np.dtype[Any], index: int) -> Array:
    """This thread's chunk number `index` of `dtype`; its content is anything."""
    kept: dict[tuple[np.dtype[Any], int], Array] = _scratch.__dict__.setdefault("kept", {})
    found = kept.get((dtype, index))
    if found is None:
        found = kept[(dtype, index)] = np.empty(_CHUNK, dtype)
    return found


def current_value(cell: Cell, variable: str) -> Array:
    """The variable's array itself. Raises OpError when it has none yet."""
    value: Array | None = cell.value
    if value is None:
        raise OpError(
            f"variable {variable!r} is not initialised; fetch it through a Session, which initialises variables on "
            "first use, or run an assign to it first"
        )
    return value


def _check(got: Array, shape: tuple[int, ...], dtype: np.dtype[Any], variable: str) -> None:
    if got.shape != shape or got.dtype != dtype:
        raise OpError(
            f"variable {variable!r} holds {dtype.name} {format_shape(shape)} and cannot take "
            f"{got.dtype.name} {format_shape(got.shape)}"
        )


@TABLE.implements("variable")
def variable(ctx: Context, *, shape: Any, dtype: Any, trainable: bool) -> Cell:
    return ctx.state.cell(ctx.key)


@TABLE.implements("initialize")
def initialize(ctx: Context, cell: Cell, value: Array, *, variable: str) -> tuple[()]:
    with cell.lock:
        if cell.value is None:
            cell.value = np.array(value, order="C", copy=True)
    return ()


@TABLE.implements("read_variable")
def read_variable(ctx: Context, cell: Cell, *, variable: str) -> Array:
    return current_value(cell, variable)


@TABLE.implements("assign")
def assign(ctx: Context, cell: Cell, value: Array, *, variable: str, shape: Any) -> Array:
    _check(value, shape, value.dtype, variable)
    with cell.lock:
        if cell.value is None:
            cell.value = np.array(value, order="C", copy=True)
        else:
            np.copyto(cell.value, value)
        return np.array(cell.value)


@TABLE.implements("assign_add")
def assign_add(ctx: Context, cell: Cell, value: Array, *, variable: str, shape: Any) -> Array:
    with cell.lock:
        kept = current_value(cell, variable)
        _check(value, kept.shape, kept.dtype, variable)
        np.add(kept, value, out=kept)
        return np.array(kept)


@TABLE.implements("assign_sub")
def assign_sub(ctx: Context, cell: Cell, value: Array, *, variable: str, shape: Any) -> Array:
    with cell.lock:
        kept = current_value(cell, variable)
        _check(value, kept.shape, kept.dtype, variable)
        np.subtract(kept, value, out=kept)
        return np.array(kept)


Update = Callable[..., None]


def apply_chunks(
    update: Update, cells: tuple[Cell, ...], grad: Array, variable: str, gate: Array | None = None
) -> tuple[()]:
    """Calls `update(value, *slots, grad)` on matching flat chunks of the variable, its slots and the gradient.

    The variable's lock is held, so two replicas that update one variable at once do not mix. A false `gate` leaves all
    as it is.
    """
    if gate is not None and not gate:
        return ()
    with cells[0].lock:
        for chunk in chunks(cells, grad, variable):
            update(*chunk)
    return ()


def chunks(cells: tuple[Cell, ...], grad: Array, variable: str) -> Iterator[tuple[Array, ...]]:
    """Matching flat chunks of the cells' values and the gradient. The caller holds the variable's lock.

    Of 16-bit floats these are float32 copies, whose rounded values are kept: a small epsilon is 0 in float16, and a
    square out of its range.
    """
    values = [current_value(cell, variable) for cell in cells]
    _check(grad, values[0].shape, values[0].dtype, variable)
    flat = [v.reshape(-1) for v in values] + [grad.reshape(-1)]
    for start in range(0, grad.size, _CHUNK):
        part = tuple(a[start : start + _CHUNK] for a in flat)
        if not is_half(grad.dtype):
            yield part
            continue
        wide = tuple(a.astype(np.float32) for a in part)
        yield wide
        for kept, new in zip(part[:-1], wide[:-1], strict=True):
            kept[...] = new


@TABLE.implements("apply_sgd")
def apply_sgd(
    ctx: Context,
    cell: Cell,
    lr: Array,
    grad: Array,
    gate: Array | None = None,
    *,
    variable: str,
    weight_decay: float,
) -> tuple[()]:
    def update(w: Array, g: Array) -> None:
        a = scratch(w.dtype, 0)[: w.size]
        if weight_decay:
            b = scratch(w.dtype, 1)[: w.size]
            np.multiply(w, w.dtype.type(weight_decay), out=b)
            np.add(b, g, out=b)
            np.multiply(b, lr, out=a)
        else:
            np.multiply(g, lr, out=a)
        np.subtract(w, a, out=w)

    return apply_chunks(update, (cell,), grad, variable, gate)


@TABLE.implements("apply_momentum")
def apply_momentum(
    ctx: Context,
    cell: Cell,
    momentum_cell: Cell,
    lr: Array,
    grad: Array,
    gate: Array | None = None,
    *,
    variable: str,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
) -> tuple[()]:
    def update(w: Array, m: Array, g: Array) -> None:
        a = scratch(w.dtype, 0)[: w.size]
        if weight_decay:
            b = scratch(w.dtype, 1)[: w.size]
            np.multiply(w, w.dtype.type(weight_decay), out=b)
            np.add(b, g, out=b)
            g = b
        np.multiply(m, m.dtype.type(momentum), out=m)
        np.add(m, g, out=m)
        if nesterov:
            np.multiply(m, m.dtype.type(momentum), out=a)
            np.add(a, g, out=a)
            np.multiply(a, lr, out=a)
        else:
            np.multiply(m, lr, out=a)
        np.subtract(w, a, out=w)

    return apply_chunks(update, (cell, momentum_cell), grad, variable, gate)


@TABLE.implements("apply_adam")
def apply_adam(
    ctx: Context,
    cell: Cell,
    m_cell: Cell,
    v_cell: Cell,
    iterations: Array,
    lr: Array,
    grad: Array,
    gate: Array | None = None,
    *,
    variable: str,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
) -> tuple[()]:
    t = int(iterations) + 1
    # The bias corrections are scalars in float64, rounded once.
    rate = float(lr) / (1 - beta1**t)
    root = 1 / (1 - beta2**t) ** 0.5
    decay = 1 - float(lr) * weight_decay

    def update(w: Array, m: Array, v: Array, g: Array) -> None:
        number = w.dtype.type
        a = scratch(w.dtype, 0)[: w.size]
        np.multiply(m, number(beta1), out=m)
        np.multiply(g, number(1 - beta1), out=a)
        np.add(m, a, out=m)
        np.multiply(v, number(beta2), out=v)
        np.multiply(g, g, out=a)
        np.multiply(a, number(1 - beta2), out=a)
        np.add(v, a, out=v)
        np.sqrt(v, out=a)
        np.multiply(a, number(root), out=a)
        np.add(a, number(epsilon), out=a)
        np.divide(m, a, out=a)
        np.multiply(a, number(rate), out=a)
        if weight_decay:
            np.multiply(w, number(decay), out=w)
        np.subtract(w, a, out=w)

    return apply_chunks(update, (cell, m_cell, v_cell), grad, variable, gate)


@TABLE.implements("apply_rmsprop")
def apply_rmsprop(
    ctx: Context,
    cell: Cell,
    v_cell: Cell,
    lr: Array,
    grad: Array,
    gate: Array | None = None,
    *,
    variable: str,
    rho: float,
    epsilon: float,
) -> tuple[()]:
    def update(w: Array, v: Array, g: Array) -> None:
        number = w.dtype.type
        a = scratch(w.dtype, 0)[: w.size]
        np.multiply(v, number(rho), out=v)
        np.multiply(g, g, out=a)
        np.multiply(a, number(1 - rho), out=a)
        np.add(v, a, out=v)
        np.sqrt(v, out=a)
        np.add(a, number(epsilon), out=a)
        np.divide(g, a, out=a)
        np.multiply(a, lr, out=a)
        np.subtract(w, a, out=w)

    return apply_chunks(update, (cell, v_cell), grad, variable, gate)


@TABLE.implements("apply_adagrad")
def apply_adagrad(
    ctx: Context,
    cell: Cell,
    sum_cell: Cell,
    lr: Array,
    grad: Array,
    gate: Array | None = None,
    *,
    variable: str,
    epsilon: float,
) -> tuple[()]:
    def update(w: Array, total: Array, g: Array) -> None:
        a = scratch(w.dtype, 0)[: w.size]
        np.multiply(g, g, out=a)
        np.add(total, a, out=total)
        np.sqrt(total, out=a)
        np.add(a, w.dtype.type(epsilon), out=a)
        np.divide(g, a, out=a)
        np.multiply(a, lr, out=a)
        np.subtract(w, a, out=w)

    return apply_chunks(update, (cell, sum_cell), grad, variable, gate)
