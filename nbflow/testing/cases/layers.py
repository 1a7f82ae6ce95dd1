"""Rows of activations and normalisations made of other ops; see `case.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import nbflow as nf
from nbflow.testing.cases.case import Case, f

A = np.ndarray[Any, Any]

OPS: list[Case] = []


def row(op: str, make: Callable[..., Any], inputs: Any, expect: Callable[..., Any] | None, **more: Any) -> None:
    OPS.append(Case(op, make, tuple(inputs), expect, **more))


def _sigmoid(x: A) -> A:
    return 1 / (1 + np.exp(-x))


# --- activations -----------------------------------------------------------------------------------------------------

row("sigmoid", lambda x: nf.nn.swish(x, 1.5), [f(2, 3)], lambda x: x * _sigmoid(1.5 * x), differentiable=2)
row("sigmoid", nf.nn.swish, [f(2, 3, dtype="float32")], lambda x: x * _sigmoid(x))
row("sigmoid", lambda x: nf.nn.glu(x, axis=1), [f(2, 4)], lambda x: x[:, :2] * _sigmoid(x[:, 2:]),
    differentiable=2, dynamic=False, note="the dimension must be known")  # fmt: skip
_TIES = np.array([[1, 3, 3, 0], [2, 2, 2, 2], [-1, -3, -1, 0.0]])
row("cumulative_sum", nf.nn.hardmax, [_TIES], lambda x: np.eye(4)[[1, 0, 3]])
row("cumulative_sum", lambda x: nf.nn.hardmax(x, axis=0), [_TIES], lambda x: np.eye(3)[[1, 0, 0, 1]].T)

# --- normalisation ---------------------------------------------------------------------------------------------------


def _near(x: A, size: int, alpha: float, beta: float, bias: float) -> A:
    """Channels last."""
    made = np.zeros_like(x)
    for c in range(x.shape[-1]):
        low, high = max(0, c - (size - 1) // 2), min(x.shape[-1], c + size // 2 + 1)
        made[..., c] = x[..., c] / (bias + alpha / size * (x[..., low:high] ** 2).sum(-1)) ** beta
    return made


for _size in (1, 2, 3, 5):
    row("avg_pool", lambda x, s=_size: nf.nn.local_response_norm(x, s, 0.5, 0.6, 1.2), [f(2, 3, 4)],
        lambda x, s=_size: _near(x, s, 0.5, 0.6, 1.2), differentiable=2, unranked=False)  # fmt: skip
row("avg_pool", lambda x: nf.nn.local_response_norm(x, 3, 0.5, axis=1), [f(2, 4, 3, 2)],
    lambda x: np.moveaxis(_near(np.moveaxis(x, 1, -1), 3, 0.5, 0.75, 1.0), -1, 1), differentiable=1,
    unranked=False)  # fmt: skip
for _p in (1.0, 2.0, 3.0):
    row("divide", lambda x, p=_p: nf.nn.lp_normalize(x, p), [f(3, 4)],
        lambda x, p=_p: x / (np.abs(x) ** p).sum(-1, keepdims=True) ** (1 / p), differentiable=2)  # fmt: skip
row("divide", lambda x: nf.gradients(nf.sum(nf.nn.lp_normalize(x, axis=0)), [x])[0], [np.zeros((2, 1))],
    np.zeros_like, note="no NaN where all is 0")  # fmt: skip
