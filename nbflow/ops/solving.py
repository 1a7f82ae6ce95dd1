"""Linear systems: solve, inverse, pseudo-inverse, determinants, powers.

Rules after Giles, "An extended collection of matrix derivative results for forward and reverse mode algorithmic
differentiation" (Oxford, 2008); that of the pseudo-inverse after Golub and Pereyra, SIAM J. Numer. Anal. 10 (1973).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nbflow import op
from nbflow.errors import ShapeError
from nbflow.graph import Node, Tensor
from nbflow.op import Attrs
from nbflow.ops._build import ArrayLike, build, build_node, convert, convert_promoted, promote, unary
from nbflow.ops._complex import holomorphic, is_complex
from nbflow.ops.casting import astype
from nbflow.ops.creation import identity
from nbflow.ops.linalg import matmul
from nbflow.ops.manipulation import expand_dims, squeeze
from nbflow.ops.matrices import adjoint, cubic_cost, identity_like, matrix_dims, shaped, square_dims, times, transposed
from nbflow.ops.numbers import conj, imag
from nbflow.ops.shape import broadcast_like, unbroadcast
from nbflow.spec import Shape, TensorSpec, as_dtype, broadcast_shapes, format_shape

Grads = Sequence[Tensor | None]


def _only(grads: Grads) -> Tensor:
    (grad,) = grads
    assert grad is not None  # the only output of the op
    return grad


def _spread(grad: Tensor) -> Tensor:
    """A number for each matrix, ready to be multiplied with the matrices."""
    return expand_dims(grad, (-2, -1))


# --- solve -----------------------------------------------------------------------------------------------------------


def _solve_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    a, b = inputs
    batch_a, length = square_dims(a, "solve")
    batch_b, rows, columns = matrix_dims(b, "solve")
    if length is not None and rows is not None and length != rows:
        raise ShapeError(f"a system of {format_shape(a.shape)} has no right side of {format_shape(b.shape)}")
    batch = broadcast_shapes(batch_a, batch_b)
    return [TensorSpec(shaped(batch, length if rows is None else rows, columns), promote(a.dtype, b.dtype))]


def _batch(shape: Shape) -> Shape:
    """What broadcasting sees of the other operand: its matrix fits anyway."""
    return None if shape is None else (*shape[:-2], 1, 1)


def _solve_gradient(node: Node, grads: Grads) -> Grads:
    # Giles 2.3.1: B' = A^-T C', A' = -B' C^T.
    a, b = node.inputs
    right = solve(transposed(a), _only(grads))
    left = -matmul(right, node.outputs[0], transpose_b=True)
    return [unbroadcast(left, a, _batch(b.shape)), unbroadcast(right, b, _batch(a.shape))]


op.define(
    "solve",
    infer=_solve_infer,
    gradient=holomorphic(_solve_gradient),
    cost=cubic_cost(2 / 3),
    doc="X with A X = B for square matrices A and matrices B; batches broadcast. A singular A is an error at run time.",
)


def solve(x1: ArrayLike, x2: ArrayLike, /, *, name: str | None = None) -> Tensor:
    """X with `x1 @ X = x2`: `x1` (..., M, M), `x2` a vector (M,) or matrices (..., M, K); batches broadcast.

    A singular matrix is an error at run time.
    """
    a, b = convert_promoted((x1, x2))
    if b.ndim != 1:
        return build("solve", (a, b), name=name)
    return squeeze(build("solve", (a, expand_dims(b, 1))), -1, name=name)


# --- inverses --------------------------------------------------------------------------------------------------------


def _inv_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    batch, length = square_dims(inputs[0], "inv")
    return [TensorSpec(shaped(batch, length, length), inputs[0].dtype)]


def _inv_gradient(node: Node, grads: Grads) -> Grads:
    # Giles 2.2.3: A' = -C^T C' C^T.
    turned = transposed(node.outputs[0])
    return [-times(turned, _only(grads), turned)]


op.define(
    "inv",
    infer=_inv_infer,
    gradient=holomorphic(_inv_gradient),
    cost=cubic_cost(2.0),
    doc="The inverse of square matrices; a singular one is an error at run time.",
)


def inv(x: ArrayLike, /, *, name: str | None = None) -> Tensor:
    """The inverse of square matrices; a singular one is an error at run time. `solve` is faster and more exact."""
    return unary("inv", x, name=name)


def _pinv_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    batch, rows, columns = matrix_dims(inputs[0], "pinv")
    return [TensorSpec(shaped(batch, columns, rows), inputs[0].dtype)]


def _pinv_gradient(node: Node, grads: Grads) -> Grads:
    # Golub and Pereyra (4.12), transposed; it holds where the rank does not change.
    grad, a, p = _only(grads), node.inputs[0], node.outputs[0]
    p_t, grad_t = adjoint(p), adjoint(grad)
    left, right = times(a, p), times(p, a)
    outside = times(identity_like(left) - left, grad_t, p, p_t)
    inside = times(p_t, p, grad_t, identity_like(right) - right)
    return [outside + inside - times(p_t, grad, p_t)]


op.define(
    "pinv",
    infer=_pinv_infer,
    gradient=_pinv_gradient,
    cost=cubic_cost(20.0),
    doc="The Moore-Penrose inverse. attrs: rtol (singular values up to rtol times the greatest count as 0; None: the "
    "longer side times the dtype's epsilon).",
)


def pinv(x: ArrayLike, /, *, rtol: float | None = None, name: str | None = None) -> Tensor:
    """The Moore-Penrose inverse, (..., N, M) for matrices (..., M, N).

    Singular values up to `rtol` times the greatest count as 0; None: max(M, N) times the dtype's epsilon.
    """
    return unary("pinv", x, {"rtol": None if rtol is None else float(rtol)}, name=name)


# --- determinants ----------------------------------------------------------------------------------------------------


class Slogdet(NamedTuple):
    """What `nf.linalg.slogdet` gives."""

    sign: Tensor
    logabsdet: Tensor


def _det_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    batch, _ = square_dims(inputs[0], "det")
    return [TensorSpec(batch, inputs[0].dtype)]


def _det_gradient(node: Node, grads: Grads) -> Grads:
    # Giles 2.2.4: A' = c' c A^-T.
    return [_spread(_only(grads) * node.outputs[0]) * transposed(inv(node.inputs[0]))]


def _slogdet_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    batch, _ = square_dims(inputs[0], "slogdet")
    dtype = inputs[0].dtype
    return [TensorSpec(batch, dtype), TensorSpec(batch, as_dtype(np.zeros(0, dtype).real.dtype))]


def _slogdet_gradient(node: Node, grads: Grads) -> Grads:
    # The logarithm of Giles 2.2.4. The sign of real matrices is piecewise constant; that of complex ones, exp(i t),
    # turns with the imaginary part t of the logarithm.
    x, sign = node.inputs[0], node.outputs[0]
    grad_sign, grad_log = grads
    total = None if grad_log is None else astype(grad_log, x.dtype)
    if grad_sign is not None and is_complex(x):
        turning = astype(imag(conj(sign) * grad_sign), x.dtype) * 1j
        total = turning if total is None else total + turning
    return [None if total is None else _spread(total) * adjoint(inv(x))]


op.define(
    "det",
    infer=_det_infer,
    gradient=holomorphic(_det_gradient),
    cost=cubic_cost(2 / 3),
    doc="The determinant of square matrices. Its gradient at a singular matrix is an error at run time.",
)
op.define(
    "slogdet",
    infer=_slogdet_infer,
    gradient=_slogdet_gradient,
    cost=cubic_cost(2 / 3),
    doc="The sign of the determinant, and the logarithm of its absolute value: no overflow for large matrices.",
)


def det(x: ArrayLike, /, *, name: str | None = None) -> Tensor:
    """The determinant of square matrices. Its gradient at a singular matrix is an error at run time."""
    return unary("det", x, name=name)


def slogdet(x: ArrayLike, /, *, name: str | None = None) -> Slogdet:
    """(sign, logabsdet): the determinant is `sign * exp(logabsdet)`, without overflow for large matrices."""
    return Slogdet(*build_node("slogdet", (convert(x),), name=name).outputs)


# --- powers ----------------------------------------------------------------------------------------------------------


def matrix_power(x: ArrayLike, n: int, /, *, name: str | None = None) -> Tensor:
    """The product of `n` times the square matrices `x`, by repeated squaring; the inverse's for a negative `n`."""
    power = convert(x)
    square_dims(power.spec, "matrix_power")
    if not isinstance(n, (int, np.integer)) or isinstance(n, bool):
        raise ShapeError(f"matrix_power takes an integer power, not {n!r}")
    if n == 0:
        return identity(broadcast_like(identity_like(power), power), name=name)
    if n < 0:
        power, n = inv(power), -n
    made: Tensor | None = None
    while True:
        if n & 1:
            made = power if made is None else matmul(made, power)
        n >>= 1
        if not n:
            return identity(made, name=name)
        power = matmul(power, power)
