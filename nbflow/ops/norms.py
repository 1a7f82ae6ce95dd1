"""Norms of vectors and matrices, and the rank: made of other ops, so that gradients come with them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from nbflow.errors import ShapeError
from nbflow.graph import Tensor
from nbflow.ops._build import ArrayLike, axis_attr, build, convert, require_kind
from nbflow.ops.casting import astype
from nbflow.ops.comparison import equal, greater, not_equal, where
from nbflow.ops.creation import identity
from nbflow.ops.decompositions import svdvals
from nbflow.ops.elementwise import abs, pow, sqrt
from nbflow.ops.manipulation import expand_dims
from nbflow.ops.matrices import matrix_dims
from nbflow.ops.numbers import imag, real
from nbflow.ops.reduction import max, min
from nbflow.ops.reduction import sum as sum_over
from nbflow.ops.shape import shape_of
from nbflow.spec import FLOAT32, float_info, is_half, kind_of

Axis = int | Sequence[int] | None


def _root(total: Tensor, power: float) -> Tensor:
    """`total ** (1 / power)`, with gradient 0 where the total is 0: there the norm has a kink, and none is right."""
    nothing = equal(total, 0)
    safe = where(nothing, 1, total)
    return where(nothing, 0, sqrt(safe) if power == 2 else pow(safe, 1 / power))


def _squares(x: Tensor) -> Tensor:
    return x * x if kind_of(x.dtype) == "f" else real(x) * real(x) + imag(x) * imag(x)


def vector_norm(
    x: ArrayLike,
    /,
    *,
    axis: Axis = None,
    keepdims: bool = False,
    ord: float = 2,
    name: str | None = None,
) -> Tensor:
    """(sum |x|^ord)^(1/ord) over `axis` (None: all elements); `ord` is a number, inf or -inf, and 0 counts nonzeros.

    The gradient at a zero vector is 0. Raises DTypeError for integers: use `nf.astype` first.
    """
    tensor = convert(x)
    require_kind(tensor.spec, "fc", "a norm is of floating point values")
    if is_half(tensor.dtype):  # squares leave the range of float16
        made = vector_norm(astype(tensor, FLOAT32), axis=axis, keepdims=keepdims, ord=ord)
        return build("astype", (made,), {"dtype": tensor.dtype}, name=name)
    if ord == 2:
        made = _root(sum_over(_squares(tensor), axis=axis, keepdims=keepdims), 2)
    elif ord == math.inf:
        made = max(abs(tensor), axis=axis, keepdims=keepdims)
    elif ord == -math.inf:
        made = min(abs(tensor), axis=axis, keepdims=keepdims)
    elif ord == 0:
        size = abs(tensor)
        made = sum_over(astype(not_equal(size, 0), size.dtype), axis=axis, keepdims=keepdims)
    elif ord == 1:
        made = sum_over(abs(tensor), axis=axis, keepdims=keepdims)
    else:
        made = _root(sum_over(pow(abs(tensor), float(ord)), axis=axis, keepdims=keepdims), float(ord))
    return made if name is None else identity(made, name=name)


def matrix_norm(
    x: ArrayLike, /, *, keepdims: bool = False, ord: float | str | None = "fro", name: str | None = None
) -> Tensor:
    """A norm of the matrices in the last two dimensions.

    `ord`: 'fro' (or None), the root of the sum of squares; 'nuc', the sum of singular values; 2 and -2, the greatest
    and least singular value; 1 and -1, the greatest and least column sum of |x|; inf and -inf, of row sums.
    """
    tensor = convert(x)
    matrix_dims(tensor.spec, "matrix_norm")
    if ord in ("fro", None):
        return vector_norm(tensor, axis=(-2, -1), keepdims=keepdims, name=name)
    if ord in (1, -1, math.inf, -math.inf):
        summed, left = (-2, -1) if ord in (1, -1) else (-1, -2)
        sums = sum_over(abs(tensor), axis=summed, keepdims=True)
        made = (max if float(ord) > 0 else min)(sums, axis=left, keepdims=True)
        return _kept(made, keepdims, name)
    if ord in ("nuc", 2, -2):
        values = svdvals(tensor)
        chosen = sum_over if ord == "nuc" else max if ord == 2 else min
        made = expand_dims(chosen(values, axis=-1, keepdims=True), -1)
        return _kept(made, keepdims, name)
    raise ShapeError(f"ord of a matrix norm is 'fro', 'nuc', 1, -1, 2, -2, inf or -inf, not {ord!r}")


def _kept(norm: Tensor, keepdims: bool, name: str | None) -> Tensor:
    """`norm`, (..., 1, 1), with or without the two dimensions."""
    if keepdims:
        return norm if name is None else identity(norm, name=name)
    return build("squeeze", (norm,), {"axis": axis_attr((-2, -1))}, name=name)


def matrix_rank(x: ArrayLike, /, *, rtol: float | None = None, name: str | None = None) -> Tensor:
    """How many singular values exceed `rtol` times the greatest one, int64; None: max(M, N) times the dtype's epsilon.

    No gradient: it is a count.
    """
    tensor = convert(x)
    _, rows, columns = matrix_dims(tensor.spec, "matrix_rank")
    values = svdvals(tensor)
    relative: Tensor | float
    eps = float_info(values.dtype).eps
    if rtol is not None:
        relative = float(rtol)
    elif rows is not None and columns is not None:
        relative = eps * float(np.maximum(rows, columns))
    else:
        relative = astype(max(shape_of(tensor)[-2:]), values.dtype) * eps
    bound = max(values, axis=-1, keepdims=True) * relative
    return sum_over(greater(values, bound), axis=-1, name=name)
