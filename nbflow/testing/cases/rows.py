"""Rows of ops that work on some rows of a tensor or variable, of recomputing, and of products for gradients; a part of
the whole table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import nbflow as nf
from nbflow.graph import Node, Tensor
from nbflow.ops._build import build, build_node
from nbflow.testing.cases.case import Case, f
from nbflow.variable import Variable

A = np.ndarray[Any, Any]
OPS: list[Case] = []


def row(op: str, build: Callable[..., Any], inputs: Any, expect: Callable[..., Any] | None, **more: Any) -> None:
    OPS.append(Case(op, build, tuple(inputs), expect, **more))


_W, _M, _V = f(4, 3, dtype="float32"), f(4, 3, dtype="float32", seed=2), f(4, 3, low=0.1, dtype="float32", seed=3)
_G, _IDS = f(3, 3, dtype="float32", seed=1), np.array([2, 0, 2])
_LR = np.float32(0.1)
# What the gradient is with repeated rows added up, and its rows.
_SUM, _ROWS = np.stack([_G[1], _G[0] + _G[2]]), [0, 2]


def _after(node: Node, *variables: Variable) -> list[Tensor]:
    with nf.control_dependencies([node]):
        return [v.read() for v in variables]


# --- sums of rows ----------------------------------------------------------------------------------------------------


def _deduplicate(values: Any, indices: Any) -> list[Tensor]:
    return list(build_node("deduplicate", (values, indices), {"length": 5}).outputs)


def _sums(values: A, indices: A) -> list[A]:
    rows, place = np.unique(indices % 5, return_inverse=True)
    sums = np.zeros((len(rows), *values.shape[1:]), values.dtype)
    np.add.at(sums, place, values)
    return [sums, rows.astype("int64"), place.astype("int64")]


row("deduplicate", _deduplicate, [f(4, 2), np.array([3, 0, -2, 0])], _sums, differentiable=2, unranked=False)
row("deduplicate", _deduplicate, [f(3, dtype="float32"), np.array([4, 1, 0], "int32")], _sums)
row("deduplicate", _deduplicate, [f(0, 2), np.zeros(0, "int64")], _sums)


def _join(part: str, value: A) -> Callable[[], Tensor]:
    attrs = {"variable": "v", "part": part}
    return lambda: build("sparse_join", (nf.constant(value), nf.Variable(_W, name="v").handle), attrs)


row("sparse_join", _join("values", _G), [], lambda: _G)
row("sparse_join", _join("indices", _IDS), [], lambda: _IDS)

# --- scatter updates -------------------------------------------------------------------------------------------------

_AT: dict[str, Any] = {
    "assign": lambda w, i, v: w.__setitem__(i, v),
    "add": np.add.at,
    "sub": np.subtract.at,
    "mul": np.multiply.at,
    "min": np.minimum.at,
    "max": np.maximum.at,
}


def _scattered(how: str) -> Callable[[], list[Tensor]]:
    def make() -> list[Tensor]:
        v = nf.Variable(_W, name="v")
        inputs = (v.handle, nf.constant(_IDS), nf.constant(_G))
        return _after(build_node(f"variable_scatter_{how}", inputs, {"variable": "v"}), v)

    return make


def _scatter_in_numpy(how: str) -> A:
    wanted = _W.copy()
    _AT[how](wanted, _IDS, _G)
    return wanted


for _how in _AT:
    row(f"variable_scatter_{_how}", _scattered(_how), [], lambda how=_how: _scatter_in_numpy(how))

# --- optimizers on sparse gradients ----------------------------------------------------------------------------------


def _updated(op: str, slots: tuple[A, ...], scalars: tuple[Any, ...], **attrs: Any) -> Callable[[], list[Tensor]]:
    def make() -> list[Tensor]:
        variables = [Variable(value, name=f"v{n}") for n, value in enumerate((_W, *slots))]
        inputs = [v.handle for v in variables] + [nf.constant(s) for s in (*scalars, _LR, _G, _IDS)]
        return _after(build_node(op, inputs, {"variable": "v0", **attrs}), *variables)

    return make


def _on_rows(update: Callable[..., list[A]], *arrays: A) -> list[A]:
    """`update` of the rows, float64, put back into the whole."""
    made = []
    for whole, part in zip(arrays, update(*(a[_ROWS].astype("f8") for a in arrays)), strict=True):
        made.append(whole.copy())
        made[-1][_ROWS] = part
    return made


def _momentum(w: A, m: A) -> list[A]:
    m = 0.9 * m + _SUM
    return [w - 0.1 * m, m]


def _adagrad(w: A, total: A) -> list[A]:
    total = total + _SUM.astype("f8") ** 2
    return [w - 0.1 * _SUM / (np.sqrt(total) + 1e-7), total]


def _adam(w: A, m: A, v: A) -> list[A]:
    m, v = 0.9 * m + 0.1 * _SUM, 0.99 * v + 0.01 * _SUM.astype("f8") ** 2
    return [w - 0.1 * (m / (1 - 0.9**7)) / (np.sqrt(v / (1 - 0.99**7)) + 1e-6), m, v]


row(
    "apply_sgd_sparse",
    _updated("apply_sgd_sparse", (), (), weight_decay=0.0),
    [],
    lambda: _on_rows(lambda w: [w - 0.1 * _SUM], _W),
)
row(
    "apply_momentum_sparse",
    _updated("apply_momentum_sparse", (_M,), (), momentum=0.9, nesterov=False, weight_decay=0.0),
    [],
    lambda: _on_rows(_momentum, _W, _M),
)
row(
    "apply_adagrad_sparse",
    _updated("apply_adagrad_sparse", (_V,), (), epsilon=1e-7),
    [],
    lambda: _on_rows(_adagrad, _W, _V),
)
row(
    "apply_adam_sparse",
    _updated("apply_adam_sparse", (_M, _V), (np.int64(6),), beta1=0.9, beta2=0.99, epsilon=1e-6, weight_decay=0.0),
    [],
    lambda: _on_rows(_adam, _W, _M, _V),
)

# --- recomputing -----------------------------------------------------------------------------------------------------

row(
    "checkpoint",
    nf.checkpoint(lambda x: nf.sin(x) * x),
    [f(2, 3)],
    lambda x: np.sin(x) * x,
    differentiable=2,
)
row(
    "checkpoint_many",
    nf.checkpoint(lambda s, t: (nf.sin(s * t), nf.exp(t))),
    [f(2, 3), f(3)],
    lambda x, y: [np.sin(x * y), np.exp(y)],
    differentiable=2,
)
row("recompute_barrier", lambda x: build("recompute_barrier", (x,)), [f(2, 3)], lambda x: x, differentiable=2)

# --- products for gradients ------------------------------------------------------------------------------------------


def _gated(x: A, y: A, made: A, both: bool) -> A:
    return np.where((x == 0) | ((y == 0) & both), made.dtype.type(0), made)


_WITH_ZEROS = np.array([[0.0, 1.0, -2.0], [0.0, 0.5, 3.0]])
_BAD = np.array([np.inf, 2.0, np.nan])


def _gated_rows(op: str, ufunc: np.ufunc) -> None:
    def make(x: Tensor, y: Tensor) -> Tensor:
        return build(op, (x, y))

    def right(x: A, y: A) -> A:
        return _gated(x, y, ufunc(x, y), both=ufunc is np.multiply)

    row(op, make, [f(2, 3), f(3, low=0.5)], right, differentiable=2)
    row(op, make, [f(), f(low=0.5)], right, differentiable=2)
    row(op, make, [_WITH_ZEROS, np.array([0.0, 2.0, 1.0])], right)
    row(op, make, [_WITH_ZEROS, _BAD], right)
    row(op, make, [_BAD, _WITH_ZEROS], right)
    row(op, make, [_BAD[0], _WITH_ZEROS], right)
    row(op, make, [np.float32(0), np.float32(np.nan)], right)
    row(op, make, [f(0, 3), f(3)], right)


_gated_rows("gated_multiply", np.multiply)
_gated_rows("gated_divide", np.divide)
