"""Rows of attention and rotary positions, by loops over queries; see `case.py`."""

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


# --- attention -------------------------------------------------------------------------------------------------------


def plain(q: A, k: A, v: A, sees: Callable[[int, int], bool], scale: float, bias: A | None = None, cap: float = 0) -> A:
    """One query at a time: (heads, queries, depth), of which several may share a head of k and v."""
    made = np.zeros((*q.shape[:-1], v.shape[-1]))
    for h in range(q.shape[0]):
        g = h * k.shape[0] // q.shape[0]
        for n in range(q.shape[1]):
            keys = [m for m in range(k.shape[1]) if sees(n, m)]
            scores = np.array([q[h, n] @ k[g, m] * scale for m in keys])
            scores = np.tanh(scores / cap) * cap if cap else scores
            scores = scores if bias is None else scores + bias[n, keys]
            if keys:
                weights = np.exp(scores - scores.max())
                made[h, n] = weights @ v[g, keys] / weights.sum()
    return made


_Q, _K, _V = f(1, 4, 3, 2), f(1, 4, 5, 2, seed=1), f(1, 4, 5, 3, seed=2)
_M, _B = b(3, 5), f(3, 5, seed=3)
_KEYS = [_Q, _K, _V]
_S = 2**-0.5
row("softmax", lambda q, k, v: nf.nn.attention(q, k, v, scale=_S), _KEYS,
    lambda q, k, v: plain(q[0], k[0], v[0], lambda n, m: True, _S)[None], differentiable=2)  # fmt: skip
row("softmax", lambda q, k, v: nf.nn.attention(q, k, v, scale=_S, causal=True), _KEYS,
    lambda q, k, v: plain(q[0], k[0], v[0], lambda n, m: m <= n + 2, _S)[None], differentiable=2)  # fmt: skip
row("softmax", lambda q, k, v: nf.nn.attention(q, k, v, scale=_S, causal=True, offset=0, window=(1, None)), _KEYS,
    lambda q, k, v: plain(q[0], k[0], v[0], lambda n, m: n - 1 <= m <= n, _S)[None], differentiable=1)  # fmt: skip
row("softmax", lambda q, k, v, o: nf.nn.attention(q, k, v, scale=_S, window=(0, 1), offset=o), [*_KEYS, np.array(-1)],
    lambda q, k, v, o: plain(q[0], k[0], v[0], lambda n, m: n - 1 <= m <= n, _S)[None],
    note="the first query sees one key only")  # fmt: skip
row("softmax", lambda q, k, v: nf.nn.attention(q, k, v, scale=_S, causal=True, offset=-2), _KEYS,
    lambda q, k, v: plain(q[0], k[0], v[0], lambda n, m: m <= n - 2, _S)[None], differentiable=2,
    note="two queries see nothing, and get zeros")  # fmt: skip
row("softmax", lambda q, k, v, m: nf.nn.attention(q, k, v, m, scale=_S), [*_KEYS, _M],
    lambda q, k, v, m: plain(q[0], k[0], v[0], lambda n, j: m[n, j], _S)[None], differentiable=2)  # fmt: skip
row("softmax", lambda q, k, v, m: nf.nn.attention(q, k, v, m, scale=_S, causal=True, softcap=0.5), [*_KEYS, _B],
    lambda q, k, v, m: plain(q[0], k[0], v[0], lambda n, j: j <= n + 2, _S, m, 0.5)[None],
    differentiable=2)  # fmt: skip
row("softmax", lambda q, k, v, m: nf.nn.attention(q, k, v, m, scale=_S), [*_KEYS, np.where(_M, _B, -np.inf)],
    lambda q, k, v, m: plain(q[0], k[0], v[0], lambda n, j: bool(_M[n, j]), _S, m)[None])  # fmt: skip
row("repeat", nf.nn.attention, [_Q, _K[:, :2], _V[:, :2]],
    lambda q, k, v: plain(q[0], k[0], v[0], lambda n, m: True, _S)[None], differentiable=2, dynamic=False,
    note="the heads must be known")  # fmt: skip

# --- rotary positions ------------------------------------------------------------------------------------------------


def turned(x: A, positions: A, size: int, base: float, interleaved: bool) -> A:
    """(…, time, depth): each pair as a complex number times e^(i · angle)."""
    made = x.copy()
    for pair in range(size // 2):
        a, b = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + size // 2)
        z = (x[..., a] + 1j * x[..., b]) * np.exp(1j * positions * base ** (-2 * pair / size))
        made[..., a], made[..., b] = z.real, z.imag
    return made


_X = f(2, 3, 5, 6)
_AT = i(2, 1, 5, low=0, high=50)
for _between in (False, True):
    row("cos", lambda x, n=_between: nf.nn.rotary_embedding(x, interleaved=n), [_X],
        lambda x, n=_between: turned(x, np.arange(5), 6, 1e4, n), differentiable=2, dynamic=False)  # fmt: skip
    row("cos", lambda x, p, n=_between: nf.nn.rotary_embedding(x, p, 100.0, 4, n), [_X, _AT],
        lambda x, p, n=_between: turned(x, p, 4, 100.0, n), differentiable=2, dynamic=False,
        note="the depth must be known")  # fmt: skip
