"""cupy: variables and optimizers. Each update is one kernel over the variable, its slots and the gradient, in place.

Learning rates and step numbers stay on the GPU. A gate is read by the host, which waits for the GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cupy as cp
import numpy as np

from nbflow.backends.base import Context, Table
from nbflow.backends.numpy.state import _check, current_value
from nbflow.spec import is_half
from nbflow.state import Cell

TABLE = Table()
A = Any


@TABLE.implements("variable")
def _variable(ctx: Context, *, shape: Any, dtype: Any, trainable: bool) -> Cell:
    return ctx.state.cell(ctx.key)


@TABLE.implements("initialize")
def _initialize(ctx: Context, cell: Cell, value: A, *, variable: str) -> tuple[()]:
    with cell.lock:
        if cell.value is None:
            cell.value = cp.array(value, order="C")
    return ()


@TABLE.implements("read_variable")
def _read_variable(ctx: Context, cell: Cell, *, variable: str) -> A:
    return current_value(cell, variable)


@TABLE.implements("gradient_join")
def _gradient_join(ctx: Context, grad: A, cell: Cell, *, variable: str) -> A:
    return grad


@TABLE.implements("assign")
def _assign(ctx: Context, cell: Cell, value: A, *, variable: str, shape: Any) -> A:
    _check(value, shape, value.dtype, variable)
    with cell.lock:
        if cell.value is None:
            cell.value = cp.array(value, order="C")
        else:
            cp.copyto(cell.value, value)
        return cell.value.copy()


def _define_assign(name: str, ufunc: Any) -> None:
    @TABLE.implements(name)
    def assign(ctx: Context, cell: Cell, value: A, *, variable: str, shape: Any) -> A:
        with cell.lock:
            kept = current_value(cell, variable)
            _check(value, kept.shape, kept.dtype, variable)
            if is_half(kept.dtype):
                cp.copyto(kept, ufunc(kept.astype(np.float32), value.astype(np.float32)), casting="unsafe")
            else:
                ufunc(kept, value, out=kept)
            return kept.copy()


_define_assign("assign_add", cp.add)
_define_assign("assign_sub", cp.subtract)


# --- optimizers ------------------------------------------------------------------------------------------------------
#
# In a kernel, T is the dtype of the variable and W the one that it computes in: float32 for floats of 16 bits. `n`
# holds the numbers of the rule, by place; what is made of device scalars lies in `s`.


def rule(name: str, slots: Sequence[str], body: str) -> Any:
    """A kernel that reads the gradient `g_` and changes `w_` and the slots; in `body` they are `g`, `w` …, in W.

    Called with an array of W that gives W, numbers `n`, scalars `s` (float64), the gradient, and what changes.
    """
    kept = ("w", *slots)
    load = " ".join(f"W {k} = (W){k}_;" for k in (*kept, "g"))
    store = " ".join(f"{k}_ = (T){k};" for k in kept)
    return cp.ElementwiseKernel(
        "raw W n, raw float64 s, T g_", ", ".join(f"T {k}_" for k in kept), f"{load} {body} {store}", f"nbflow_{name}"
    )


def apply(
    kernel: Any, cells: Sequence[Cell], grad: A, variable: str, numbers: Sequence[float], scalars: A, gate: A | None
) -> tuple[()]:
    """Runs `kernel` on a variable and its slots, whose locks the caller need not hold. A false `gate` leaves all."""
    if gate is not None and not bool(gate):
        return ()
    with cells[0].lock:
        values = [current_value(cell, variable) for cell in cells]
        _check(grad, values[0].shape, values[0].dtype, variable)
        wide = np.dtype(np.float32) if is_half(grad.dtype) else grad.dtype
        kernel(numbers_of(tuple(numbers), wide), scalars, grad, *values)
    return ()


_kept_numbers: dict[tuple[int, tuple[float, ...], np.dtype[Any]], A] = {}


def numbers_of(numbers: tuple[float, ...], dtype: np.dtype[Any]) -> A:
    """`numbers` on the GPU that is in use; kept, as every step asks for the same ones."""
    key = (int(cp.cuda.Device().id), numbers, dtype)
    found = _kept_numbers.get(key)
    if found is None:
        found = _kept_numbers[key] = cp.asarray(np.array(numbers or (0.0,), dtype))
    return found


def scalars_of(*values: A) -> A:
    """Device scalars side by side, in float64."""
    return cp.stack([v.reshape(()).astype(np.float64) for v in values])


_SGD = rule("sgd", (), "g += w * n[0]; w -= g * (W)s[0];")
_MOMENTUM = rule("momentum", ("m",), "g += w * n[1]; m = m * n[0] + g; w -= (n[2] > 0 ? m * n[0] + g : m) * (W)s[0];")
_ADAM = rule(
    "adam",
    ("m", "v"),
    """m = m * n[0] + g * n[1]; v = v * n[2] + g * g * n[3];
    W step = m / ((W)sqrt(v) * (W)s[1] + n[4]) * (W)s[0]; if (n[5] > 0) w *= (W)s[2]; w -= step;""",
)
_RMSPROP = rule("rmsprop", ("v",), "v = v * n[0] + g * g * n[1]; w -= g / ((W)sqrt(v) + n[2]) * (W)s[0];")
_ADAGRAD = rule("adagrad", ("v",), "v += g * g; w -= g / ((W)sqrt(v) + n[0]) * (W)s[0];")

# (rate, root, decay) of Adam at step t, with bias corrections in float64.
_ADAM_SCALARS = cp.ElementwiseKernel(
    "raw int64 t, raw float64 lr, float64 beta1, float64 beta2, float64 decay",
    "raw float64 s",
    """
    double n = (double)t[0] + 1;
    s[0] = lr[0] / (1 - pow(beta1, n));
    s[1] = 1 / sqrt(1 - pow(beta2, n));
    s[2] = 1 - lr[0] * decay;
    """,
    "nbflow_adam_scalars",
)


def adam_scalars(iterations: A, lr: A, beta1: float, beta2: float, decay: float) -> A:
    """(lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t), 1 - lr · decay) on the GPU, t counted from 1."""
    made = cp.empty(3, np.float64)
    _ADAM_SCALARS(
        iterations.reshape(1).astype(np.int64), lr.reshape(1).astype(np.float64), beta1, beta2, decay, made, size=1
    )
    return made


@TABLE.implements("apply_sgd")
def apply_sgd(
    ctx: Context, cell: Cell, lr: A, grad: A, gate: A | None = None, *, variable: str, weight_decay: float
) -> tuple[()]:
    return apply(_SGD, (cell,), grad, variable, (weight_decay,), scalars_of(lr), gate)


@TABLE.implements("apply_momentum")
def apply_momentum(
    ctx: Context,
    cell: Cell,
    momentum_cell: Cell,
    lr: A,
    grad: A,
    gate: A | None = None,
    *,
    variable: str,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
) -> tuple[()]:
    numbers = (momentum, weight_decay, float(nesterov))
    return apply(_MOMENTUM, (cell, momentum_cell), grad, variable, numbers, scalars_of(lr), gate)


@TABLE.implements("apply_adam")
def apply_adam(
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
    numbers = (beta1, 1 - beta1, beta2, 1 - beta2, epsilon, weight_decay)
    scalars = adam_scalars(iterations, lr, beta1, beta2, weight_decay)
    return apply(_ADAM, (cell, m_cell, v_cell), grad, variable, numbers, scalars, gate)


@TABLE.implements("apply_rmsprop")
def apply_rmsprop(
    ctx: Context,
    cell: Cell,
    v_cell: Cell,
    lr: A,
    grad: A,
    gate: A | None = None,
    *,
    variable: str,
    rho: float,
    epsilon: float,
) -> tuple[()]:
    return apply(_RMSPROP, (cell, v_cell), grad, variable, (rho, 1 - rho, epsilon), scalars_of(lr), gate)


@TABLE.implements("apply_adagrad")
def apply_adagrad(
    ctx: Context, cell: Cell, sum_cell: Cell, lr: A, grad: A, gate: A | None = None, *, variable: str, epsilon: float
) -> tuple[()]:
    return apply(_ADAGRAD, (cell, sum_cell), grad, variable, (epsilon,), scalars_of(lr), gate)
