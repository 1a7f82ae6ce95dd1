"""Rows of losses; see `case.py`. Those of older ones are in `nn.py` and `test_nn_more.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import nbflow as nf
from nbflow.testing.cases.case import Case, b, f, i

A = np.ndarray[Any, Any]

OPS: list[Case] = []


def row(op: str, make: Callable[..., Any], inputs: Any, expect: Callable[..., Any] | None, **more: Any) -> None:
    OPS.append(Case(op, make, tuple(inputs), expect, **more))


def _log_softmax(x: A, axis: int = -1) -> A:
    return x - np.log(np.exp(x).sum(axis, keepdims=True))


def _sigmoid(x: A) -> A:
    return 1 / (1 + np.exp(-x))


# --- cross entropies -------------------------------------------------------------------------------------------------

_X, _IDS = f(3, 4), i(3, low=0, high=4)
_P = np.exp(_log_softmax(f(3, 4, seed=1)))


def _smooth(labels: A, part: float) -> A:
    return labels * (1 - part) + part / labels.shape[-1]


for _reduction, _reduce in (("none", lambda x: x), ("mean", np.mean), ("sum", np.sum)):
    row("sparse_softmax_cross_entropy", lambda x, n, r=_reduction: nf.nn.softmax_cross_entropy(x, n, 0.1, r),
        [_X, _IDS], lambda x, n, r=_reduce: r(-(_smooth(np.eye(4)[n], 0.1) * _log_softmax(x)).sum(-1)),
        differentiable=2)  # fmt: skip
    row("log_softmax", lambda x, p, r=_reduction: nf.nn.softmax_cross_entropy(x, p, 0.2, reduction=r), [_X, _P],
        lambda x, p, r=_reduce: r(-(_smooth(p, 0.2) * _log_softmax(x)).sum(-1)))  # fmt: skip
    row("softplus", lambda x, p, r=_reduction: nf.nn.sigmoid_cross_entropy(x, p, 3.0, 0.1, r), [_X, _P],
        lambda x, p, r=_reduce: r(-3 * (0.9 * p + 0.05) * np.log(_sigmoid(x))
                                  - (1 - (0.9 * p + 0.05)) * np.log(1 - _sigmoid(x))),
        differentiable=2, rtol=1e-12)  # fmt: skip
    row("clip", lambda p, q, r=_reduction: nf.nn.binary_cross_entropy(p, q, reduction=r), [_P, _P[::-1]],
        lambda p, q, r=_reduce: r(-q * np.log(p) - (1 - q) * np.log(1 - p)), differentiable=2)  # fmt: skip
row("clip", nf.nn.binary_cross_entropy, [np.array([0.0, 1.0]), np.array([0.0, 0.0])],
    lambda p, q: np.array((-np.log(1 - 1e-7) - np.log(1e-7)) / 2), rtol=1e-7)  # fmt: skip

# --- picked by class ids ---------------------------------------------------------------------------------------------

_LOGP, _W = _log_softmax(f(2, 4, 3), 1), f(4, low=0.2)
_N = np.array([[0, 3, 1], [2, 2, -7]])


def _nll(x: A, n: A, w: A, reduction: str, ignored: int | None) -> A:
    total, weights, each = 0.0, 0.0, np.zeros(n.shape)
    for at in np.ndindex(n.shape):
        if n[at] != ignored:
            each[at] = -w[n[at]] * x[at[0], n[at], at[1]]
            total, weights = total + each[at], weights + w[n[at]]
    return {"none": each, "sum": np.array(total), "mean": np.array(total / weights)}[reduction]


for _reduction in ("none", "mean", "sum"):
    row("take_along_axis",
        lambda x, n, w, r=_reduction: nf.nn.negative_log_likelihood(x, n, 1, w, -7, r), [_LOGP, _N, _W],
        lambda x, n, w, r=_reduction: _nll(x, n, w, r, -7), differentiable=2)  # fmt: skip
    row("take_along_axis", lambda x, n, r=_reduction: nf.nn.negative_log_likelihood(x, n, 1, None, -7, r),
        [_LOGP, _N], lambda x, n, r=_reduction: _nll(x, n, np.ones(4), r, -7), differentiable=2)  # fmt: skip
    row("take_along_axis", lambda x, n, w, r=_reduction: nf.nn.negative_log_likelihood(x, n, 1, w, reduction=r),
        [_LOGP, abs(_N % 4), _W], lambda x, n, w, r=_reduction: _nll(x, n, w, r, None), differentiable=2)  # fmt: skip
row("take_along_axis", nf.nn.negative_log_likelihood, [_log_softmax(_X), _IDS],
    lambda x, n: np.mean(-x[np.arange(3), n]), differentiable=2)  # fmt: skip
row("isfinite", lambda x, n: nf.isfinite(nf.nn.negative_log_likelihood(x, n, ignore_index=1)),
    [np.array([[0.0, -np.inf], [0.0, -np.inf]]), np.array([0, 1])], lambda x, n: np.array(True))  # fmt: skip

# --- numbers and margins ---------------------------------------------------------------------------------------------

_A, _B, _C = f(3, 4), f(3, 4, seed=1), f(3, 4, seed=2)
_SIGNS = np.where(b(3, 4), 1.0, -1.0)
for _reduction, _reduce in (("none", lambda x: x), ("mean", np.mean), ("sum", np.sum)):
    row("square", lambda x, y, r=_reduction: nf.nn.mean_squared_error(x, y, r), [_A, _B],
        lambda x, y, r=_reduce: r((x - y) ** 2), differentiable=2)  # fmt: skip
    row("abs", lambda x, y, r=_reduction: nf.nn.mean_absolute_error(x, y, r), [_A, _B],
        lambda x, y, r=_reduce: r(np.abs(x - y)), differentiable=1)  # fmt: skip
    row("minimum", lambda x, y, r=_reduction: nf.nn.huber(x, y, 0.5, r), [_A, _B],
        lambda x, y, r=_reduce: r(np.where(np.abs(x - y) < 0.5, (x - y) ** 2 / 2, 0.5 * (np.abs(x - y) - 0.25))),
        differentiable=1)  # fmt: skip
    row("softplus", lambda x, y, r=_reduction: nf.nn.log_cosh(x, y, r), [_A, _B],
        lambda x, y, r=_reduce: r(np.log(np.cosh(x - y))), differentiable=2, rtol=1e-12)  # fmt: skip
    row("exp", lambda x, y, r=_reduction: nf.nn.poisson_nll(x, y, r), [_A, np.abs(_B)],
        lambda x, y, r=_reduce: r(np.exp(x) - y * x), differentiable=2)  # fmt: skip
    row("log", lambda x, y, v, r=_reduction: nf.nn.gaussian_nll(x, y, v, reduction=r), [_A, _B, np.abs(_C) + 0.1],
        lambda x, y, v, r=_reduce: r((np.log(v) + (x - y) ** 2 / v) / 2), differentiable=2)  # fmt: skip
    row("maximum", lambda x, y, r=_reduction: nf.nn.hinge(x, y, r), [_A, _SIGNS],
        lambda x, y, r=_reduce: r(np.maximum(0, 1 - x * y)))  # fmt: skip
    row("maximum", lambda x, y, r=_reduction: nf.nn.squared_hinge(x, y, r), [_A, _SIGNS],
        lambda x, y, r=_reduce: r(np.maximum(0, 1 - x * y) ** 2), differentiable=1)  # fmt: skip
    row("maximum", lambda x, y, z, r=_reduction: nf.nn.triplet_margin(x, y, z, 0.5, reduction=r), [_A, _B, _C],
        lambda x, y, z, r=_reduce: r(np.maximum(0, ((x - y) ** 2).sum(-1) - ((x - z) ** 2).sum(-1) + 0.5)),
        differentiable=1)  # fmt: skip
    row("log", lambda p, q, r=_reduction: nf.nn.kl_divergence(p, q, reduction=r), [_P, _P[::-1]],
        lambda p, q, r=_reduce: r((p * np.log(p / q)).sum(-1)), differentiable=2)  # fmt: skip
row("softplus", lambda x: nf.nn.sigmoid_focal(x, nf.astype(x > 0, "float64"), 2.0, 0.25), [_A],
    lambda x: np.where(x > 0, 0.25, 0.75) * (1 - _sigmoid(np.abs(x))) ** 2 * -np.log(_sigmoid(np.abs(x))),
    rtol=1e-12)  # fmt: skip

# --- embeddings ------------------------------------------------------------------------------------------------------

row("take", lambda t, n: nf.nn.embedding_lookup(t, n, padding_id=2), [f(4, 3), np.array([[0, 2], [3, 2]])],
    lambda t, n: np.where((n != 2)[..., None], t[n], 0), differentiable=2, unranked=False)  # fmt: skip
row("take", lambda t, n: nf.gradients(nf.sum(nf.nn.embedding_lookup(t, n, padding_id=2)), [t])[0],
    [f(4, 3), np.array([0, 2, 0])], lambda t, n: np.array([[2.0] * 3, [0] * 3, [0] * 3, [0] * 3]),
    unranked=False)  # fmt: skip
