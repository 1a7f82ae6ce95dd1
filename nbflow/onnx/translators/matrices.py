"""Matrix products and linear algebra."""

from __future__ import annotations

from typing import Any

from nbflow import ops
from nbflow.graph import Tensor
from nbflow.onnx.registry import Call, translates
from nbflow.onnx.translators.elementwise import number
from nbflow.ops.solving import det


@translates("MatMul")
def _matmul(c: Call) -> Any:
    return ops.matmul(c[0], c[1])


@translates("Gemm")
def _gemm(c: Call) -> Any:
    a = ops.matrix_transpose(c[0]) if c.attr("transA", 0) else c[0]
    b = ops.matrix_transpose(c[1]) if c.attr("transB", 0) else c[1]
    made = _scaled(ops.matmul(a, b), c.attr("alpha", 1.0))
    bias = c.get(2)
    return made if bias is None else made + _scaled(bias, c.attr("beta", 1.0))


def _scaled(x: Tensor, factor: float) -> Tensor:
    if factor == 1:
        return x
    return x * number(factor, x)


@translates("Einsum")
def _einsum(c: Call) -> Any:
    return ops.einsum(c.attrs["equation"].replace(" ", ""), *c.tensors)


@translates("Det")
def _det(c: Call) -> Any:
    return det(c[0])


@translates("LpNormalization")
def _lp_normalization(c: Call) -> Any:
    x, axis = c[0], c.attr("axis", -1)
    if c.attr("p", 2) == 1:
        norm = ops.sum(ops.abs(x), axis=axis, keepdims=True)
    else:
        norm = ops.sqrt(ops.sum(ops.square(x), axis=axis, keepdims=True))
    # A vector of zeros stays one.
    nothing = ops.equal(norm, number(0, x))
    return ops.where(nothing, number(0, x), x / ops.where(nothing, number(1, x), norm))


@translates("MeanVarianceNormalization")
def _mean_variance(c: Call) -> Any:
    x, axes = c[0], tuple(c.attr("axes", (0, 2, 3)))
    middle = ops.mean(x, axis=axes, keepdims=True)
    spread = ops.sqrt(ops.mean(ops.square(x), axis=axes, keepdims=True) - ops.square(middle))
    return (x - middle) / (spread + number(1e-9, x))


@translates("MatMulInteger")
def _matmul_integer(c: Call) -> Any:
    return ops.matmul(centred(c[0], c.get(2), rows=True), centred(c[1], c.get(3), rows=False))


def centred(x: Tensor, zero_point: Tensor | None, rows: bool) -> Tensor:
    """`x` less its zero point, int32. A vector of zero points: one a row of the first matrix, a column of the other."""
    wide = ops.astype(x, "int32")
    if zero_point is None:
        return wide
    zero = ops.astype(zero_point, "int32")
    if rows and zero.spec.rank == 1 and zero.shape != (1,):
        zero = ops.expand_dims(zero, axis=1)
    return wide - zero
