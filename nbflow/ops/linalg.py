"""Products of matrices and vectors. Transposition is an attribute of `matmul`: gradients need no transposed copies."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nbflow import op
from nbflow.errors import DTypeError, ShapeError
from nbflow.graph import Node, Tensor
from nbflow.op import Attrs, Cost
from nbflow.ops._build import ArrayLike, build, convert_promoted, int_tuple, known_rank, promote, static_shape
from nbflow.ops._complex import holomorphic
from nbflow.ops.manipulation import expand_dims, permute_dims, squeeze
from nbflow.ops.numbers import conj
from nbflow.ops.reduction import sum as sum_over
from nbflow.ops.shape import reshape, shape_of, unbroadcast
from nbflow.spec import Dim, Shape, TensorSpec, broadcast_shapes, format_shape, kind_of, normalize_axis

Grads = Sequence[Tensor | None]


def _matrix(shape: Shape, transposed: bool) -> tuple[Shape, Dim, Dim]:
    """Batch dimensions, rows and columns."""
    if shape is None:
        return None, None, None
    if len(shape) < 2:
        raise ShapeError(f"a matrix has at least two dimensions, not {format_shape(shape)}")
    rows, columns = (shape[-1], shape[-2]) if transposed else (shape[-2], shape[-1])
    return shape[:-2], rows, columns


def _matmul_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    x, y = inputs
    dtype = promote(x.dtype, y.dtype)
    if kind_of(dtype) == "b":
        raise DTypeError("matmul is not defined for booleans; use nf.astype first")
    batch_x, rows, inner_x = _matrix(x.shape, attrs["transpose_a"])
    batch_y, inner_y, columns = _matrix(y.shape, attrs["transpose_b"])
    if inner_x is not None and inner_y is not None and inner_x != inner_y:
        a, b = format_shape((rows, inner_x)), format_shape((inner_y, columns))
        raise ShapeError(f"matrices {a} and {b} do not multiply: {inner_x} columns, {inner_y} rows")
    batch = broadcast_shapes(batch_x, batch_y)
    return [TensorSpec(None if batch is None else (*batch, rows, columns), dtype)]


def _matmul_gradient(node: Node, grads: Grads) -> Grads:
    (g,) = grads
    assert g is not None  # the only output
    a, b = node.inputs
    ta, tb = node.attrs["transpose_a"], node.attrs["transpose_b"]
    da = _product(b, g, tb, True) if ta else _product(g, b, False, not tb)
    inner, outer = (None if t.shape is None else t.shape[-1] for t in (a, g))
    if b.ndim == 2 and a.ndim != 2 and not ta and inner and outer:
        # The batch only adds more rows: one product of all of them, instead of one each and their sum.
        rows, grad = reshape(a, (-1, inner)), reshape(g, (-1, outer))
        return [_unbatched(da, a, b), _product(grad, rows, True, False) if tb else _product(rows, grad, True, False)]
    db = _product(g, a, True, ta) if tb else _product(a, g, not ta, False)
    return [_unbatched(da, a, b), _unbatched(db, b, a)]


def _unbatched(grad: Tensor, x: Tensor, other: Tensor) -> Tensor:
    # Only the batch dimensions were broadcast; to the rule the other's matrix looks like (1, 1).
    return unbroadcast(grad, x, None if other.shape is None else (*other.shape[:-2], 1, 1))


def _matmul_cost(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], attrs: Attrs) -> Cost:
    _, _, inner = _matrix(inputs[0].shape, attrs["transpose_a"])
    flops = 2.0 * op.size_of(outputs[0]) * (op.UNKNOWN_DIM if inner is None else inner)
    return Cost(flops, op.nbytes_of(inputs) + op.nbytes_of(outputs))


op.define(
    "matmul",
    infer=_matmul_infer,
    gradient=holomorphic(_matmul_gradient),
    cost=_matmul_cost,
    out=True,
    doc="The product of matrices, the last two dimensions; the others broadcast. attrs: transpose_a, transpose_b.",
)


def _product(x: Tensor, y: Tensor, transpose_a: bool, transpose_b: bool, name: str | None = None) -> Tensor:
    return build("matmul", (x, y), {"transpose_a": transpose_a, "transpose_b": transpose_b}, name=name)


def matmul(
    x: ArrayLike,
    y: ArrayLike,
    /,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    name: str | None = None,
) -> Tensor:
    """The matrix product `x @ y`; leading dimensions broadcast, and vectors work as in the array API.

    `transpose_a` and `transpose_b` exchange the last two dimensions of `x` and `y` first. Raises ShapeError when the
    inner dimensions differ or an operand is a scalar.
    """
    a, b = convert_promoted((x, y))
    if a.ndim == 0 or b.ndim == 0:
        raise ShapeError(f"matmul takes matrices and vectors, not scalars: {a!r} @ {b!r}; use * instead")
    lone_a, lone_b = a.ndim == 1, b.ndim == 1
    if not lone_a and not lone_b:
        return _product(a, b, transpose_a, transpose_b, name)
    left = expand_dims(a, 0) if lone_a else a
    right = expand_dims(b, 1) if lone_b else b
    made = _product(left, right, transpose_a and not lone_a, transpose_b and not lone_b)
    return squeeze(made, (-2,) * lone_a + (-1,) * lone_b, name=name)


def vecdot(x: ArrayLike, y: ArrayLike, /, *, axis: int = -1, name: str | None = None) -> Tensor:
    """The sum of `x * y` along `axis`; complex `x` are conjugated, as in the array API."""
    a, b = convert_promoted((x, y))
    if kind_of(a.dtype) == "c":
        a = conj(a)
    return sum_over(a * b, axis=axis, name=name)


def outer(x: ArrayLike, y: ArrayLike, /, *, name: str | None = None) -> Tensor:
    """All products of an element of the vector `x` (rows) and one of the vector `y` (columns)."""
    a, b = convert_promoted((x, y))
    if a.ndim not in (1, None) or b.ndim not in (1, None):
        raise ShapeError(f"outer takes vectors, not {a!r} and {b!r}")
    return build("multiply", (expand_dims(a, 1), expand_dims(b, 0)), name=name)


def tensordot(
    x: ArrayLike,
    y: ArrayLike,
    /,
    *,
    axes: int | tuple[int | Sequence[int], int | Sequence[int]] = 2,
    name: str | None = None,
) -> Tensor:
    """The sum of products over pairs of dimensions: the last n of `x` with the first n of `y`, or the ones listed."""
    a, b = convert_promoted((x, y))
    rank_a, rank_b = known_rank(a.spec, "tensordot"), known_rank(b.spec, "tensordot")
    if isinstance(axes, int):
        pairs_a, pairs_b = list(range(rank_a - axes, rank_a)), list(range(axes))
    else:
        pairs_a = [normalize_axis(i, rank_a) for i in int_tuple(axes[0], "axes")]
        pairs_b = [normalize_axis(i, rank_b) for i in int_tuple(axes[1], "axes")]
    if len(pairs_a) != len(pairs_b):
        raise ShapeError(f"axes {axes} pair different numbers of dimensions")
    free_a = [i for i in range(rank_a) if i not in pairs_a]
    free_b = [i for i in range(rank_b) if i not in pairs_b]
    left = _flat(permute_dims(a, free_a + pairs_a), len(free_a))
    right = _flat(permute_dims(b, pairs_b + free_b), len(pairs_b))
    dims = [_dim(a, i) for i in free_a] + [_dim(b, i) for i in free_b]
    return reshape(_product(left, right, False, False), dims, name=name)


def _flat(x: Tensor, rows: int) -> Tensor:
    """`x` as a matrix: the first `rows` dimensions by the others."""
    assert x.shape is not None  # tensordot asked for the rank
    left, right = static_shape(x.shape[:rows]), static_shape(x.shape[rows:])
    if right is not None and 0 not in right:
        return reshape(x, (-1, math.prod(right)))
    if left is not None and 0 not in left:
        return reshape(x, (math.prod(left), -1))
    sizes = shape_of(x)
    return reshape(x, (_product_of(sizes[:rows]), _product_of(sizes[rows:])))


def _product_of(sizes: Tensor) -> Tensor:
    return build("prod", (sizes,), {"axis": None, "keepdims": False, "dtype": None})


def _dim(x: Tensor, axis: int) -> Dim | Tensor:
    assert x.shape is not None  # tensordot asked for the rank
    dim = x.shape[axis]
    return shape_of(x)[axis] if dim is None else dim
