"""More updates of optimizers on numpy arrays, in chunks as in `state`: Lion, RMSProp's variants, and layerwise ones.

Lamb and LARS need the norms of whole arrays before they move anything, so they pass over memory twice.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from nbflow.backends.base import Context, Table
from nbflow.backends.numpy.state import apply_chunks, chunks, scratch
from nbflow.state import Cell

TABLE = Table()

Array = np.ndarray[Any, Any]


def _squares(a: Array) -> float:
    """Σ a², of float16 in float32, whose range it would leave."""
    wide = a.astype(np.float32) if a.dtype.itemsize < 4 else a
    return float(np.dot(wide, wide))


def _ratio(above: float, below: float) -> float:
    return above / below if above > 0 and below > 0 else 1.0


def _blend(kept: Array, new: Array, rate: float, space: Array) -> None:
    """kept = rate · kept + (1 - rate) · new, in place; `space` is overwritten."""
    number = kept.dtype.type
    np.multiply(kept, number(rate), out=kept)
    np.multiply(new, number(1 - rate), out=space)
    np.add(kept, space, out=kept)


@TABLE.implements("gradient_join")
def gradient_join(ctx: Context, grad: Array, cell: Cell, *, variable: str) -> Array:
    return grad


@TABLE.implements("apply_rmsprop_momentum")
def apply_rmsprop_momentum(
    ctx: Context,
    cell: Cell,
    v_cell: Cell,
    m_cell: Cell,
    lr: Array,
    grad: Array,
    gate: Array | None = None,
    *,
    variable: str,
    rho: float,
    momentum: float,
    epsilon: float,
) -> tuple[()]:
    def update(w: Array, v: Array, m: Array, g: Array) -> None:
        number = w.dtype.type
        a, b = (scratch(w.dtype, n)[: w.size] for n in (0, 1))
        np.multiply(g, g, out=a)
        _blend(v, a, rho, b)
        np.sqrt(v, out=a)
        np.add(a, number(epsilon), out=a)
        np.divide(g, a, out=a)
        np.multiply(a, lr, out=a)
        np.multiply(m, number(momentum), out=m)
        np.add(m, a, out=m)
        np.subtract(w, m, out=w)

    return apply_chunks(update, (cell, v_cell, m_cell), grad, variable, gate)


@TABLE.implements("apply_rmsprop_centered")
def apply_rmsprop_centered(
    ctx: Context,
    cell: Cell,
    v_cell: Cell,
    mean_cell: Cell,
    m_cell: Cell,
    lr: Array,
    grad: Array,
    gate: Array | None = None,
    *,
    variable: str,
    rho: float,
    momentum: float,
    epsilon: float,
) -> tuple[()]:
    def update(w: Array, v: Array, mean: Array, m: Array, g: Array) -> None:
        number = w.dtype.type
        a, b = (scratch(w.dtype, n)[: w.size] for n in (0, 1))
        np.multiply(g, g, out=a)
        _blend(v, a, rho, b)
        _blend(mean, g, rho, b)
        np.multiply(mean, mean, out=a)
        np.subtract(v, a, out=a)
        np.maximum(a, number(0), out=a)  # a variance; rounding can make it negative by more than epsilon
        np.add(a, number(epsilon), out=a)
        np.sqrt(a, out=a)
        np.divide(g, a, out=a)
        np.multiply(a, lr, out=a)
        np.multiply(m, number(momentum), out=m)
        np.add(m, a, out=m)
        np.subtract(w, m, out=w)

    return apply_chunks(update, (cell, v_cell, mean_cell, m_cell), grad, variable, gate)


@TABLE.implements("apply_lion")
def apply_lion(
    ctx: Context,
    cell: Cell,
    m_cell: Cell,
    lr: Array,
    grad: Array,
    gate: Array | None = None,
    *,
    variable: str,
    beta1: float,
    beta2: float,
    weight_decay: float,
) -> tuple[()]:
    decay = 1 - float(lr) * weight_decay

    def update(w: Array, m: Array, g: Array) -> None:
        number = w.dtype.type
        a, b = (scratch(w.dtype, n)[: w.size] for n in (0, 1))
        np.multiply(m, number(beta1), out=a)
        np.multiply(g, number(1 - beta1), out=b)
        np.add(a, b, out=a)
        np.sign(a, out=a)
        np.multiply(a, lr, out=a)
        if weight_decay:
            np.multiply(w, number(decay), out=w)
        np.subtract(w, a, out=w)
        _blend(m, g, beta2, b)

    return apply_chunks(update, (cell, m_cell), grad, variable, gate)


@TABLE.implements("apply_lars")
def apply_lars(
    ctx: Context,
    cell: Cell,
    m_cell: Cell,
    lr: Array,
    grad: Array,
    gate: Array | None = None,
    *,
    variable: str,
    momentum: float,
    trust: float,
    epsilon: float,
    weight_decay: float,
) -> tuple[()]:
    if gate is not None and not gate:
        return ()
    with cell.lock:
        ww = gg = 0.0
        for w, g in chunks((cell,), grad, variable):
            ww += _squares(w)
            gg += _squares(g)
        size, slope = math.sqrt(ww), math.sqrt(gg)
        ratio = trust * size / (slope + weight_decay * size + epsilon) if ww > 0 and gg > 0 else 1.0
        rate = float(lr) * ratio
        for w, m, g in chunks((cell, m_cell), grad, variable):
            number = w.dtype.type
            a = scratch(w.dtype, 0)[: w.size]
            np.multiply(w, number(weight_decay), out=a)
            np.add(a, g, out=a)
            np.multiply(a, number(rate), out=a)
            np.multiply(m, number(momentum), out=m)
            np.add(m, a, out=m)
            np.subtract(w, m, out=w)
    return ()


@TABLE.implements("apply_lamb")
def apply_lamb(
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
    if gate is not None and not gate:
        return ()
    t = int(iterations) + 1
    first, root = 1 / (1 - beta1**t), 1 / (1 - beta2**t) ** 0.5

    def direction(w: Array, m: Array, v: Array) -> Array:
        """The direction of Adam plus the decay, in scratch space 0."""
        number = w.dtype.type
        a, b = (scratch(w.dtype, n)[: w.size] for n in (0, 1))
        np.sqrt(v, out=b)
        np.multiply(b, number(root), out=b)
        np.add(b, number(epsilon), out=b)
        np.multiply(m, number(first), out=a)
        np.divide(a, b, out=a)
        if weight_decay:
            np.multiply(w, number(weight_decay), out=b)
            np.add(a, b, out=a)
        return a

    cells = (cell, m_cell, v_cell)
    with cell.lock:
        ww = uu = 0.0
        for w, m, v, g in chunks(cells, grad, variable):
            a, b = (scratch(w.dtype, n)[: w.size] for n in (0, 1))
            _blend(m, g, beta1, a)
            np.multiply(g, g, out=a)
            _blend(v, a, beta2, b)
            ww += _squares(w)
            uu += _squares(direction(w, m, v))
        rate = float(lr) * _ratio(math.sqrt(ww), math.sqrt(uu))
        for w, m, v, _ in chunks(cells, grad, variable):
            a = direction(w, m, v)
            np.multiply(a, w.dtype.type(rate), out=a)
            np.subtract(w, a, out=w)
    return ()
