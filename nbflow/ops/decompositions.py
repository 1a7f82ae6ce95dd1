"""Matrices as products: Cholesky, QR, eigenvalues, singular values.

Factors are those of LAPACK; where they are unique only up to signs, so are they. Gradients of eigenvectors and of
singular vectors exist only where the values are distinct, and are infinite or NaN elsewhere; those of complex vectors
are for functions that do not change when a vector is turned by a phase, as only such have one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nbflow import op
from nbflow.errors import GraphError
from nbflow.graph import Node, Tensor
from nbflow.op import Attrs
from nbflow.ops._build import ArrayLike, build, build_node, convert, unary
from nbflow.ops._complex import is_complex
from nbflow.ops.creation import zeros_like
from nbflow.ops.joining import concat
from nbflow.ops.linalg import matmul
from nbflow.ops.manipulation import expand_dims, tril
from nbflow.ops.matrices import (
    adjoint,
    cubic_cost,
    identity_like,
    matrix_dims,
    shaped,
    square_dims,
    symmetric,
    times,
)
from nbflow.ops.solving import solve
from nbflow.spec import Dim, TensorSpec, as_dtype, kind_of

Grads = Sequence[Tensor | None]


def _real(dtype: np.dtype[np.generic]) -> np.dtype[np.generic]:
    return as_dtype(np.zeros(0, dtype).real.dtype)


def _columns(x: Tensor) -> Tensor:
    """A vector that scales columns."""
    return expand_dims(x, -2)


def _rows(x: Tensor) -> Tensor:
    """A vector that scales rows."""
    return expand_dims(x, -1)


def _inverse_gaps(values: Tensor) -> Tensor:
    """1 / (values[j] - values[i]) at [i, j], 0 on the diagonal."""
    gaps = _columns(values) - _rows(values)
    unit = identity_like(gaps)
    return (1 - unit) / (gaps + unit)


# --- Cholesky --------------------------------------------------------------------------------------------------------


def _cholesky_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    batch, length = square_dims(inputs[0], "cholesky")
    return [TensorSpec(shaped(batch, length, length), inputs[0].dtype)]


def _cholesky_gradient(node: Node, grads: Grads) -> Grads:
    # Murray, "Differentiation of the Cholesky decomposition" (2016), section 3.2: L^-T P(L^T L') L^-1, symmetrised.
    (grad,) = grads
    assert grad is not None  # the only output
    lower = node.outputs[0]
    turned = adjoint(lower)
    inner = matmul(turned, grad)
    half = (tril(inner) + tril(inner, k=-1)) * 0.5  # the lower triangle, its diagonal halved
    return [symmetric(solve(turned, adjoint(solve(turned, half))))]


op.define(
    "cholesky",
    infer=_cholesky_infer,
    gradient=_cholesky_gradient,
    cost=cubic_cost(1 / 3),
    doc="The lower triangular L with L L^T = A for symmetric positive definite A, of which the lower triangle is read. "
    "Anything else is an error at run time. The gradient is symmetric.",
)


def cholesky(x: ArrayLike, /, *, upper: bool = False, name: str | None = None) -> Tensor:
    """The lower triangular L with L L^T = `x` (conjugated if complex); `upper`: the upper one, its transpose.

    `x` is symmetric and positive definite: only its lower triangle is read, and anything else is an error at run time.
    """
    if not upper:
        return unary("cholesky", x, name=name)
    lower = build("cholesky", (convert(x),))
    if kind_of(lower.dtype) == "c":
        lower = build("conj", (lower,))
    return build("matrix_transpose", (lower,), name=name)


# --- QR --------------------------------------------------------------------------------------------------------------


class QR(NamedTuple):
    """What `nf.linalg.qr` gives."""

    Q: Tensor
    R: Tensor


def _least(rows: Dim, columns: Dim) -> Dim:
    return None if rows is None or columns is None else min(rows, columns)


def _qr_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    batch, rows, columns = matrix_dims(inputs[0], "qr")
    inner = rows if attrs["mode"] == "complete" else _least(rows, columns)
    dtype = inputs[0].dtype
    return [TensorSpec(shaped(batch, rows, inner), dtype), TensorSpec(shaped(batch, inner, columns), dtype)]


def _tall_qr(q: Tensor, r: Tensor, grad_q: Tensor, grad_r: Tensor) -> Tensor:
    inner = matmul(r, adjoint(grad_r)) - matmul(adjoint(grad_q), q)
    below = tril(inner, k=-1)
    diagonal = tril(inner) - below
    copied = below + adjoint(below) + symmetric(diagonal)
    whole = grad_q + matmul(q, copied)
    return adjoint(solve(r, adjoint(whole)))


def _qr_gradient(node: Node, grads: Grads) -> Grads:
    # Roberts and Roberts, "QR and LQ decomposition matrix backpropagation algorithms for square, wide, and deep
    # matrices" (2020): tall ones at once, wide ones as a square part and the columns that follow from it.
    x = node.inputs[0]
    q, r = node.outputs
    grad_q, grad_r = (zeros_like(t) if g is None else g for g, t in zip(grads, node.outputs, strict=True))
    _, rows, columns = matrix_dims(x.spec, "qr")
    if rows is None or columns is None:
        raise GraphError(f"the gradient of qr needs matrices of known size, not {x!r}; give the placeholder a shape")
    if rows >= columns:
        if node.attrs["mode"] == "complete" and rows > columns:
            raise GraphError("the gradient of qr(mode='complete') is not defined for tall matrices; use mode='reduced'")
        return [_tall_qr(q, r, grad_q, grad_r)]
    square, rest = r[..., :rows], x[..., rows:]
    grad_square, grad_rest = grad_r[..., :rows], grad_r[..., rows:]
    grad_q = grad_q + matmul(rest, adjoint(grad_rest))
    return [concat([_tall_qr(q, square, grad_q, grad_square), matmul(q, grad_rest)], axis=-1)]


op.define(
    "qr",
    infer=_qr_infer,
    gradient=_qr_gradient,
    cost=cubic_cost(4.0),
    doc="Q with orthonormal columns and an upper triangular R, Q R = A. attrs: mode ('reduced', or 'complete': Q is "
    "square; no gradient then if A is tall).",
)


def qr(x: ArrayLike, /, *, mode: str = "reduced", name: str | None = None) -> QR:
    """(Q, R): Q (..., M, K) with orthonormal columns and an upper triangular R (..., K, N), K = min(M, N).

    `mode` 'complete': K = M. The gradient needs matrices of known size whose first K columns are independent.
    """
    if mode not in ("reduced", "complete"):
        raise GraphError(f"mode is 'reduced' or 'complete', not {mode!r}")
    return QR(*build_node("qr", (convert(x),), {"mode": mode}, name=name).outputs)


# --- eigenvalues -----------------------------------------------------------------------------------------------------


class Eigh(NamedTuple):
    """What `nf.linalg.eigh` gives."""

    eigenvalues: Tensor
    eigenvectors: Tensor


def _eigh_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    batch, length = square_dims(inputs[0], "eigh")
    dtype = inputs[0].dtype
    return [TensorSpec(shaped(batch, length), _real(dtype)), TensorSpec(shaped(batch, length, length), dtype)]


def _eigh_gradient(node: Node, grads: Grads) -> Grads:
    # Giles 2008, 3.1: U (D' + F o (U^H U')) U^H, symmetrised; F are the inverse gaps between eigenvalues.
    grad_values, grad_vectors = grads
    values, vectors = node.outputs
    inner: Tensor | None = None
    if grad_vectors is not None:
        inner = _inverse_gaps(values) * matmul(adjoint(vectors), grad_vectors)
    if grad_values is not None:
        spread = identity_like(vectors) * _columns(grad_values)
        inner = spread if inner is None else inner + spread
    assert inner is not None  # one output has a gradient
    return [symmetric(times(vectors, inner, adjoint(vectors)))]


op.define(
    "eigh",
    infer=_eigh_infer,
    gradient=_eigh_gradient,
    cost=cubic_cost(9.0),
    doc="Eigenvalues, ascending, and eigenvectors (columns) of symmetric matrices; the lower triangle is read. "
    "The gradient is symmetric; that of vectors needs distinct values.",
)


def eigh(x: ArrayLike, /, *, name: str | None = None) -> Eigh:
    """(eigenvalues, eigenvectors) of symmetric (Hermitian) matrices: ascending (..., M), and columns (..., M, M).

    Only the lower triangle is read. Eigenvectors have a gradient where eigenvalues are distinct.
    """
    return Eigh(*build_node("eigh", (convert(x),), name=name).outputs)


def eigvalsh(x: ArrayLike, /, *, name: str | None = None) -> Tensor:
    """The eigenvalues of symmetric (Hermitian) matrices, ascending; only the lower triangle is read."""
    return eigh(x, name=name).eigenvalues


# --- singular values -------------------------------------------------------------------------------------------------


class SVD(NamedTuple):
    """What `nf.linalg.svd` gives."""

    U: Tensor
    S: Tensor
    Vh: Tensor


def _svd_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    batch, rows, columns = matrix_dims(inputs[0], "svd")
    count = _least(rows, columns)
    left, right = (rows, columns) if attrs["full_matrices"] else (count, count)
    dtype = inputs[0].dtype
    return [
        TensorSpec(shaped(batch, rows, left), dtype),
        TensorSpec(shaped(batch, count), _real(dtype)),
        TensorSpec(shaped(batch, right, columns), dtype),
    ]


def _svd_gradient(node: Node, grads: Grads) -> Grads:
    # Townsend, "Differentiating the singular value decomposition" (2016), equations 26 to 31; the phase of complex
    # vectors after Wan and Zhang, "Automatic differentiation for complex valued SVD", arXiv 1909.02659.
    x = node.inputs[0]
    grad_u, grad_s, grad_vh = grads
    u, s, vh = node.outputs
    if node.attrs["full_matrices"]:
        _, rows, columns = matrix_dims(x.spec, "svd")
        if (grad_u is not None or grad_vh is not None) and (rows is None or rows != columns):
            raise GraphError(
                f"the gradient of all singular vectors is not defined for {x!r}, which is not known to be square; "
                "use svd(x, full_matrices=False)"
            )
        u, s, vh = build_node("svd", (x,), {"full_matrices": False}).outputs
    v, parts = adjoint(vh), []
    if grad_s is not None:
        parts.append(times(u * _columns(grad_s), vh))
    if grad_u is not None:
        inner = matmul(adjoint(u), grad_u)
        skew = inner - adjoint(inner)
        turning = _inverse_gaps(s * s) * skew
        if is_complex(u):
            turning = turning + identity_like(inner) * skew * 0.5 / _columns(s * s)
        outside = (grad_u - matmul(u, inner)) / _columns(s)
        parts.append(matmul(matmul(u, turning) * _columns(s) + outside, vh))
    if grad_vh is not None:
        grad_v = adjoint(grad_vh)
        inner = matmul(vh, grad_v)
        turning = _inverse_gaps(s * s) * (inner - adjoint(inner))
        outside = adjoint(grad_v - matmul(v, inner)) / _rows(s)
        parts.append(matmul(u, _rows(s) * matmul(turning, vh) + outside))
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return [total]


op.define(
    "svd",
    infer=_svd_infer,
    gradient=_svd_gradient,
    cost=cubic_cost(20.0),
    doc="U, S (descending) and V^T with U diag(S) V^T = A. attrs: full_matrices (U and V are square; their gradient "
    "then needs a square A). The gradient of vectors needs distinct values above 0.",
)


def svd(x: ArrayLike, /, *, full_matrices: bool = True, name: str | None = None) -> SVD:
    """(U, S, Vh): `x` = U diag(S) Vh, S descending (..., K), K = min(M, N).

    With `full_matrices` U is (..., M, M) and Vh (..., N, N); without, (..., M, K) and (..., K, N), which is what has a
    gradient. That of U and Vh needs distinct singular values above 0.
    """
    return SVD(*build_node("svd", (convert(x),), {"full_matrices": bool(full_matrices)}, name=name).outputs)


def svdvals(x: ArrayLike, /, *, name: str | None = None) -> Tensor:
    """The singular values of matrices, descending."""
    return svd(x, full_matrices=False, name=name).S
