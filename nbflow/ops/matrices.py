"""What a matrix is asked for besides products: its kind, diagonal, trace, and what gradients need of it.

All work on the last two dimensions; the others are a batch.
"""

from __future__ import annotations

from collections.abc import Sequence

from nbflow import op
from nbflow.errors import DTypeError, ShapeError
from nbflow.graph import Node, Tensor
from nbflow.op import Attrs, Cost, CostRule
from nbflow.ops._build import ArrayLike, build, convert, convert_promoted, unary
from nbflow.ops._complex import conjugate
from nbflow.ops.creation import eye, ones_like
from nbflow.ops.linalg import matmul
from nbflow.ops.manipulation import matrix_transpose, roll, tril, triu
from nbflow.ops.reduction import sum as sum_over
from nbflow.ops.shape import shape_infer, shape_like
from nbflow.spec import Dim, DTypeLike, Shape, TensorSpec, as_dtype, format_shape

Grads = Sequence[Tensor | None]

# What LAPACK computes in. Half precision would have to be converted; who wants that says so.
_LAPACK = ("float32", "float64", "complex64", "complex128")

# --- rules that the families of linear algebra share -----------------------------------------------------------------


def matrix_dims(spec: TensorSpec, what: str) -> tuple[Shape, Dim, Dim]:
    """Batch dimensions, rows and columns. Raises DTypeError for what LAPACK does not take, ShapeError for vectors."""
    if spec.dtype.name not in _LAPACK:
        raise DTypeError(f"{what} takes {', '.join(_LAPACK)}, not {spec.dtype}; use nf.astype first")
    if spec.shape is None:
        return None, None, None
    if len(spec.shape) < 2:
        raise ShapeError(f"{what} takes matrices, at least two dimensions, not {format_shape(spec.shape)}")
    return spec.shape[:-2], spec.shape[-2], spec.shape[-1]


def square_dims(spec: TensorSpec, what: str) -> tuple[Shape, Dim]:
    """Batch dimensions and length of a square matrix. Raises ShapeError when it is not square."""
    batch, rows, columns = matrix_dims(spec, what)
    if rows is not None and columns is not None and rows != columns:
        raise ShapeError(f"{what} takes square matrices, not {format_shape(spec.shape)}")
    return batch, columns if rows is None else rows


def shaped(batch: Shape, *dims: Dim) -> Shape:
    """`batch` and `dims`; unknown when the batch is."""
    return None if batch is None else (*batch, *dims)


def cubic_cost(factor: float) -> CostRule:
    """`factor * n**3` operations a matrix, n being the geometric mean of its sides (Golub and Van Loan's tables)."""

    def cost(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], attrs: Attrs) -> Cost:
        shape = inputs[0].shape or (None, None)
        rows, columns = (op.UNKNOWN_DIM if d is None else d for d in shape[-2:])
        flops = factor * op.size_of(inputs[0]) * min(rows, columns)
        return Cost(flops, op.nbytes_of(inputs) + op.nbytes_of(outputs))

    return cost


def transposed(x: Tensor) -> Tensor:
    """The transpose."""
    return matrix_transpose(x)


def adjoint(x: Tensor) -> Tensor:
    """The transpose, conjugated if complex."""
    return conjugate(matrix_transpose(x))


def symmetric(x: Tensor) -> Tensor:
    """The symmetric (Hermitian) part, (x + x^H) / 2."""
    return (x + adjoint(x)) * 0.5


def identity_like(x: Tensor) -> Tensor:
    """The unit matrix in the shape and dtype of the square `x`, its length found at run time if need be."""
    if x.shape is not None and x.shape[-1] is not None:
        return eye(x.shape[-1], dtype=x.dtype)
    ones = ones_like(x)
    return tril(ones) * triu(ones)


def times(*factors: Tensor) -> Tensor:
    """The matrix product of all `factors`, from left to right."""
    made = factors[0]
    for factor in factors[1:]:
        made = matmul(made, factor)
    return made


# --- diagonal and trace ----------------------------------------------------------------------------------------------


def _length(rows: Dim, columns: Dim, offset: int) -> Dim:
    if rows is None or columns is None:
        return None
    return max(0, min(rows, columns - offset) if offset >= 0 else min(rows + offset, columns))


def _diagonal_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    shape = inputs[0].shape
    if shape is None:
        return [TensorSpec(None, inputs[0].dtype)]
    if len(shape) < 2:
        raise ShapeError(f"only matrices have a diagonal, at least two dimensions, not {format_shape(shape)}")
    return [TensorSpec((*shape[:-2], _length(shape[-2], shape[-1], attrs["offset"])), inputs[0].dtype)]


def _diagonal_gradient(node: Node, grads: Grads) -> Grads:
    (grad,) = grads
    assert grad is not None  # the only output
    shape, extra = shape_like(node.inputs[0])
    return [build("diagonal_grad", (grad, *extra), {"offset": node.attrs["offset"], "shape": shape})]


def _diagonal_grad_gradient(node: Node, grads: Grads) -> Grads:
    (grad,) = grads
    assert grad is not None  # the only output
    return [diagonal(grad, offset=node.attrs["offset"]), *[None] * (len(node.inputs) - 1)]


op.define(
    "diagonal",
    infer=_diagonal_infer,
    gradient=_diagonal_gradient,
    cost=op.free_cost,
    alias=True,
    doc="The diagonals of matrices; a view. attrs: offset (above the main diagonal if positive).",
)
op.define(
    "diagonal_grad",
    infer=lambda inputs, attrs: [TensorSpec(shape_infer(inputs[1:], attrs), inputs[0].dtype)],
    gradient=_diagonal_grad_gradient,
    out=True,
    doc="The transpose of diagonal: the values on the diagonal, zeros elsewhere. inputs: values, and the shape unless "
    "known. attrs: offset, shape.",
)


def diagonal(x: ArrayLike, /, *, offset: int = 0, name: str | None = None) -> Tensor:
    """The diagonals of the matrices in the last two dimensions; `offset` 1 is the one above the main diagonal."""
    return unary("diagonal", x, {"offset": int(offset)}, name=name)


def trace(x: ArrayLike, /, *, offset: int = 0, dtype: DTypeLike = None, name: str | None = None) -> Tensor:
    """The sum of a diagonal; small integers are added as 64-bit ones unless `dtype` says otherwise, as in `nf.sum`."""
    wanted = None if dtype is None else as_dtype(dtype)
    return sum_over(diagonal(x, offset=offset), axis=-1, dtype=wanted, name=name)


# --- cross -----------------------------------------------------------------------------------------------------------


def cross(x: ArrayLike, y: ArrayLike, /, *, axis: int = -1, name: str | None = None) -> Tensor:
    """The vector product along `axis`, which has length 3 in both; the other dimensions broadcast.

    A negative `axis` counts from the end in both, as the standard asks.
    """
    if axis >= 0 and convert(x).ndim != convert(y).ndim:
        raise ShapeError(f"cross of tensors of different ranks takes a negative axis, not {axis}")
    a, b = convert_promoted((x, y))
    for tensor in (a, b):
        if tensor.shape is not None and (not -len(tensor.shape) <= axis < len(tensor.shape)):
            raise ShapeError(f"axis {axis} is out of range for {format_shape(tensor.shape)}")
        if tensor.shape is not None and tensor.shape[axis] not in (3, None):
            raise ShapeError(f"cross takes vectors of length 3, but dimension {axis} of {tensor!r} is not")

    def turned(tensor: Tensor, by: int) -> Tensor:
        return roll(tensor, -by, axis=axis)

    return build("subtract", (turned(a, 1) * turned(b, 2), turned(a, 2) * turned(b, 1)), name=name)
