"""cupy: products by cuBLAS, systems and decompositions by cuSOLVER. A singular matrix raises LinAlgError, as in numpy,
which waits for the GPU."""

from __future__ import annotations

from math import prod
from typing import Any

import cupy as cp
import cupyx
import numpy as np

from nbflow.backends.base import Table
from nbflow.backends.cupy.elementwise import cast
from nbflow.backends.numpy.shape import target
from nbflow.spec import BFLOAT16

TABLE = Table()
A = Any


@TABLE.implements("matmul")
def matmul(x: A, y: A, *, transpose_a: bool, transpose_b: bool, out: A | None = None) -> A:
    """Transposed views go to cuBLAS as they are. 16-bit floats are multiplied as they are and summed in float32; cupy
    has no batches of bfloat16, which go by way of float32."""
    if transpose_a:
        x = x.swapaxes(-1, -2)
    if transpose_b:
        y = y.swapaxes(-1, -2)
    if x.ndim > 2 and y.ndim == 2 and x.flags.c_contiguous and (out is None or out.flags.c_contiguous):
        # One large product instead of a batch of them, each with the same second matrix.
        rows = x.reshape(prod(x.shape[:-1]), x.shape[-1])
        if out is None:
            return cp.matmul(rows, y).reshape(*x.shape[:-1], y.shape[-1])
        cp.matmul(rows, y, out=out.reshape(len(rows), y.shape[-1]))
        return out
    if BFLOAT16 in (x.dtype, y.dtype) and max(x.ndim, y.ndim) > 2:
        made = cp.matmul(x.astype(np.float32), y.astype(np.float32))
        return cast(made, cp.result_type(x, y), out)
    return cp.matmul(x, y, out=out)


def _raising() -> Any:
    return cupyx.errstate(linalg="raise")


@TABLE.implements("solve")
def _solve(a: A, b: A) -> A:
    columns = b[:, None] if b.ndim == 1 else b
    batch = np.broadcast_shapes(a.shape[:-2], columns.shape[:-2])  # which cupy does not do
    with _raising():
        found = cp.linalg.solve(
            cp.broadcast_to(a, (*batch, *a.shape[-2:])), cp.broadcast_to(columns, (*batch, *columns.shape[-2:]))
        )
    return found[..., 0] if b.ndim == 1 else found


@TABLE.implements("inv")
def _inv(x: A) -> A:
    with _raising():
        return cp.linalg.inv(x)


@TABLE.implements("pinv")
def _pinv(x: A, *, rtol: float | None) -> A:
    if rtol is None:
        rtol = max(x.shape[-2:]) * float(np.finfo(x.dtype).eps)
    return cp.linalg.pinv(x, rcond=rtol)


@TABLE.implements("det")
def _det(x: A) -> A:
    return cp.linalg.det(x)


@TABLE.implements("slogdet")
def _slogdet(x: A) -> tuple[A, A]:
    sign, logarithm = cp.linalg.slogdet(x)
    return sign, logarithm


@TABLE.implements("cholesky")
def _cholesky(x: A) -> A:
    with _raising():
        return cp.linalg.cholesky(x)


@TABLE.implements("qr")
def _qr(x: A, *, mode: Any) -> tuple[A, A]:
    q, r = cp.linalg.qr(x, mode)
    return q, r


@TABLE.implements("eigh")
def _eigh(x: A) -> tuple[A, A]:
    values, vectors = cp.linalg.eigh(x)
    return values, vectors


@TABLE.implements("svd")
def _svd(x: A, *, full_matrices: bool) -> tuple[A, A, A]:
    u, s, vh = cp.linalg.svd(x, full_matrices=full_matrices)
    return u, s, vh


@TABLE.implements("diagonal")
def _diagonal(x: A, *, offset: int) -> A:
    return cp.diagonal(x, offset, -2, -1)


@TABLE.implements("diagonal_grad")
def _diagonal_grad(
    values: A, vector: A | None = None, *, offset: int, shape: tuple[int, ...] | None, out: A | None = None
) -> A:
    if out is None:
        out = cp.zeros(target(shape, vector), values.dtype)
    else:
        out.fill(0)
    rows = cp.arange(values.shape[-1]) + max(0, -offset)
    out[..., rows, rows + offset] = values
    return out
