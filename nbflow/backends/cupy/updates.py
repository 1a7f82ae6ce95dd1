"""cupy: more updates of optimizers. Lamb and LARS need the norms of whole arrays first; those stay on the GPU."""

from __future__ import annotations

from typing import Any

import cupy as cp
import numpy as np

from nbflow.backends.base import Context, Table
from nbflow.backends.cupy.state import adam_scalars, apply, rule, scalars_of
from nbflow.backends.numpy.state import _check, current_value
from nbflow.spec import is_half
from nbflow.state import Cell

TABLE = Table()
A = Any

_RMSPROP_MOMENTUM = rule(
    "rmsprop_momentum",
    ("v", "m"),
    "v = v * n[0] + g * g * n[1]; m = m * n[2] + g / ((W)sqrt(v) + n[3]) * (W)s[0]; w -= m;",
)
_RMSPROP_CENTERED = rule(
    "rmsprop_centered",
    ("v", "a", "m"),
    """v = v * n[0] + g * g * n[1]; a = a * n[0] + g * n[1]; W d = v - a * a; if (d < 0) d = 0;
    m = m * n[2] + g / (W)sqrt(d + n[3]) * (W)s[0]; w -= m;""",
)
_LION = rule(
    "lion",
    ("m",),
    """W d = m * n[0] + g * n[1]; d = (W)((d > 0) - (d < 0)) * (W)s[0];
    if (n[4] > 0) w *= (W)(1 - s[0] * n[4]); w -= d; m = m * n[2] + g * n[3];""",
)
_LARS = rule("lars", ("m",), "m = m * n[0] + (w * n[1] + g) * (W)s[0]; w -= m;")
# The first array of a rule is called `w`: here the first moment.
_MOMENTS = rule("moments", ("v",), "w = w * n[0] + g * n[1]; v = v * n[2] + g * g * n[3];")
# `g` is the direction here.
_STEP = rule("step", (), "w -= g * (W)s[0];")
_DIRECTION = cp.ElementwiseKernel(
    "W w, W m, W v, raw float64 s, float64 epsilon, float64 decay",
    "W d",
    "d = m * (W)s[0] / ((W)sqrt(v) * (W)s[1] + (W)epsilon) + w * (W)decay",
    "nbflow_lamb_direction",
)


def _wide(a: A) -> A:
    return a.astype(np.float32) if is_half(a.dtype) else a


def _norm(a: A) -> A:
    flat = _wide(a).reshape(-1)
    return cp.sqrt(cp.dot(flat, flat).astype(np.float64))


@TABLE.implements("apply_rmsprop_momentum")
def apply_rmsprop_momentum(
    ctx: Context,
    cell: Cell,
    v_cell: Cell,
    m_cell: Cell,
    lr: A,
    grad: A,
    gate: A | None = None,
    *,
    variable: str,
    rho: float,
    momentum: float,
    epsilon: float,
) -> tuple[()]:
    numbers = (rho, 1 - rho, momentum, epsilon)
    return apply(_RMSPROP_MOMENTUM, (cell, v_cell, m_cell), grad, variable, numbers, scalars_of(lr), gate)


@TABLE.implements("apply_rmsprop_centered")
def apply_rmsprop_centered(
    ctx: Context,
    cell: Cell,
    v_cell: Cell,
    mean_cell: Cell,
    m_cell: Cell,
    lr: A,
    grad: A,
    gate: A | None = None,
    *,
    variable: str,
    rho: float,
    momentum: float,
    epsilon: float,
) -> tuple[()]:
    cells, numbers = (cell, v_cell, mean_cell, m_cell), (rho, 1 - rho, momentum, epsilon)
    return apply(_RMSPROP_CENTERED, cells, grad, variable, numbers, scalars_of(lr), gate)


@TABLE.implements("apply_lion")
def apply_lion(
    ctx: Context,
    cell: Cell,
    m_cell: Cell,
    lr: A,
    grad: A,
    gate: A | None = None,
    *,
    variable: str,
    beta1: float,
    beta2: float,
    weight_decay: float,
) -> tuple[()]:
    numbers = (beta1, 1 - beta1, beta2, 1 - beta2, weight_decay)
    return apply(_LION, (cell, m_cell), grad, variable, numbers, scalars_of(lr), gate)


@TABLE.implements("apply_lars")
def apply_lars(
    ctx: Context,
    cell: Cell,
    m_cell: Cell,
    lr: A,
    grad: A,
    gate: A | None = None,
    *,
    variable: str,
    momentum: float,
    trust: float,
    epsilon: float,
    weight_decay: float,
) -> tuple[()]:
    size, slope = _norm(current_value(cell, variable)), _norm(grad)
    ratio = trust * size / (slope + weight_decay * size + epsilon)
    rate = lr.reshape(()).astype(np.float64) * cp.where((size > 0) & (slope > 0), ratio, 1.0)
    return apply(_LARS, (cell, m_cell), grad, variable, (momentum, weight_decay), scalars_of(rate), gate)


@TABLE.implements("apply_lamb")
def apply_lamb(
    ctx: Context,
    cell: Cell,
    m_cell: Cell,
    v_cell: Cell,
    iterations: A,
    lr: A,
    grad: A,
    gate: A | None = None,
    *,
    variable: str,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
) -> tuple[()]:
    if gate is not None and not bool(gate):
        return ()
    with cell.lock:
        w, m, v = (current_value(c, variable) for c in (cell, m_cell, v_cell))
        _check(grad, w.shape, w.dtype, variable)
        one = cp.ones((), np.float64)
        scalars = adam_scalars(iterations, one, beta1, beta2, 0.0)
        numbers = (beta1, 1 - beta1, beta2, 1 - beta2)
        apply(_MOMENTS, (m_cell, v_cell), grad, variable, numbers, scalars, None)
        towards = _DIRECTION(_wide(w), _wide(m), _wide(v), scalars, epsilon, weight_decay)
        size, slope = _norm(w), _norm(towards)
        rate = lr.reshape(()).astype(np.float64) * cp.where((size > 0) & (slope > 0), size / slope, 1.0)
        apply(_STEP, (cell,), towards.astype(w.dtype, copy=False), variable, (), scalars_of(rate), None)
    return ()
