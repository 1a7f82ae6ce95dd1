"""numpy: systems, decompositions and diagonals of matrices, by LAPACK. A singular matrix raises numpy's LinAlgError."""

from __future__ import annotations

from typing import Any

import numpy as np

from nbflow.backends.base import Table
from nbflow.backends.numpy.shape import target

TABLE = Table()
A = np.ndarray[Any, Any]


@TABLE.implements("solve")
def _solve(a: A, b: A) -> A:
    return np.linalg.solve(a, b)


@TABLE.implements("inv")
def _inv(x: A) -> A:
    return np.linalg.inv(x)


@TABLE.implements("pinv")
def _pinv(x: A, *, rtol: float | None) -> A:
    if rtol is None:
        rtol = max(x.shape[-2:]) * float(np.finfo(x.dtype).eps)
    return np.asarray(np.linalg.pinv(x, rtol=rtol))


@TABLE.implements("det")
def _det(x: A) -> A:
    return np.asarray(np.linalg.det(x))


@TABLE.implements("slogdet")
def _slogdet(x: A) -> tuple[A, A]:
    sign, logarithm = np.linalg.slogdet(x)
    return np.asarray(sign), np.asarray(logarithm)


@TABLE.implements("cholesky")
def _cholesky(x: A) -> A:
    return np.linalg.cholesky(x)


@TABLE.implements("qr")
def _qr(x: A, *, mode: Any) -> tuple[A, A]:
    q, r = np.linalg.qr(x, mode)
    return q, r


@TABLE.implements("eigh")
def _eigh(x: A) -> tuple[A, A]:
    values, vectors = np.linalg.eigh(x)
    return values, vectors


@TABLE.implements("svd")
def _svd(x: A, *, full_matrices: bool) -> tuple[A, A, A]:
    u, s, vh = np.linalg.svd(x, full_matrices=full_matrices)
    return u, s, vh


@TABLE.implements("diagonal")
def _diagonal(x: A, *, offset: int) -> A:
    return np.diagonal(x, offset, -2, -1)


@TABLE.implements("diagonal_grad")
def _diagonal_grad(
    values: A, vector: A | None = None, *, offset: int, shape: tuple[int, ...] | None, out: A | None = None
) -> A:
    if out is None:
        out = np.zeros(target(shape, vector), values.dtype)
    else:
        out.fill(0)
    rows = np.arange(values.shape[-1]) + max(0, -offset)
    out[..., rows, rows + offset] = values
    return out
