"""The activations of ONNX that are not ops of their own: composed, so they have gradients of every order."""

from __future__ import annotations

from nbflow.graph import Tensor
from nbflow.ops._build import ArrayLike, convert
from nbflow.ops.casting import astype
from nbflow.ops.comparison import equal, greater, logical_and, maximum, minimum, where
from nbflow.ops.elementwise import abs, expm1, tanh
from nbflow.ops.joining import split
from nbflow.ops.nn import op_scope, sigmoid, softplus
from nbflow.ops.reduction import cumulative_sum, max

# Klambauer et al., arXiv 1706.02515, equation 14: the fixed point of mean 0 and variance 1.
_SELU_ALPHA = 1.6732632423543772
_SELU_GAMMA = 1.0507009873554805


def selu(x: ArrayLike, /, alpha: float = _SELU_ALPHA, gamma: float = _SELU_GAMMA, *, name: str | None = None) -> Tensor:
    """gamma · x where positive, else gamma · alpha · (exp(x) - 1). Klambauer et al., arXiv 1706.02515."""
    tensor = convert(x)
    with op_scope(name, "selu", tensor):
        # As in elu: the minimum keeps exp from overflowing where it is not used.
        return where(greater(tensor, 0), tensor, expm1(minimum(tensor, 0)) * alpha) * gamma


def celu(x: ArrayLike, /, alpha: float = 1.0, *, name: str | None = None) -> Tensor:
    """x where positive, else alpha · (exp(x / alpha) - 1). Barron, arXiv 1704.07483."""
    tensor = convert(x)
    with op_scope(name, "celu", tensor):
        return where(greater(tensor, 0), tensor, expm1(minimum(tensor, 0) / alpha) * alpha)


def relu6(x: ArrayLike, /, *, name: str | None = None) -> Tensor:
    """min(max(x, 0), 6)."""
    tensor = convert(x)
    with op_scope(name, "relu6", tensor):
        return minimum(maximum(tensor, 0), 6)


def hard_sigmoid(x: ArrayLike, /, alpha: float = 0.2, beta: float = 0.5, *, name: str | None = None) -> Tensor:
    """min(max(alpha · x + beta, 0), 1); the defaults are ONNX's, other libraries have alpha = 1 / 6."""
    tensor = convert(x)
    with op_scope(name, "hard_sigmoid", tensor):
        return minimum(maximum(tensor * alpha + beta, 0.0), 1.0)


def hard_swish(x: ArrayLike, /, *, name: str | None = None) -> Tensor:
    """x · min(max(x / 6 + 1 / 2, 0), 1). Howard et al., arXiv 1905.02244."""
    tensor = convert(x)
    with op_scope(name, "hard_swish", tensor):
        return tensor * hard_sigmoid(tensor, 1 / 6, 0.5)


def hard_tanh(x: ArrayLike, /, *, name: str | None = None) -> Tensor:
    """min(max(x, -1), 1)."""
    tensor = convert(x)
    with op_scope(name, "hard_tanh", tensor):
        return minimum(maximum(tensor, -1), 1)


def mish(x: ArrayLike, /, *, name: str | None = None) -> Tensor:
    """x · tanh(softplus(x)). Misra, arXiv 1908.08681."""
    tensor = convert(x)
    with op_scope(name, "mish", tensor):
        return tensor * tanh(softplus(tensor))


def softsign(x: ArrayLike, /, *, name: str | None = None) -> Tensor:
    """x / (1 + |x|)."""
    tensor = convert(x)
    with op_scope(name, "softsign", tensor):
        return tensor / (abs(tensor) + 1)


def log_sigmoid(x: ArrayLike, /, *, name: str | None = None) -> Tensor:
    """log(sigmoid(x)), without overflow."""
    tensor = convert(x)
    with op_scope(name, "log_sigmoid", tensor):
        return -softplus(-tensor)


def prelu(x: ArrayLike, slope: ArrayLike, *, name: str | None = None) -> Tensor:
    """x where positive, else slope · x; `slope` is learnt and broadcasts against x. He et al., arXiv 1502.01852."""
    tensor = convert(x)
    with op_scope(name, "prelu", tensor):
        return where(greater(tensor, 0), tensor, tensor * convert(slope, like=tensor))


def thresholded_relu(x: ArrayLike, /, threshold: float = 1.0, *, name: str | None = None) -> Tensor:
    """x where above `threshold`, else 0."""
    tensor = convert(x)
    with op_scope(name, "thresholded_relu", tensor):
        return where(greater(tensor, threshold), tensor, 0)


def shrink(x: ArrayLike, /, threshold: float = 0.5, bias: float = 0.0, *, name: str | None = None) -> Tensor:
    """x - bias above `threshold`, x + bias below -threshold, else 0. Hard with bias 0, soft with bias = threshold."""
    tensor = convert(x)
    with op_scope(name, "shrink", tensor):
        above = where(greater(tensor, threshold), tensor - bias, 0.0)
        return where(greater(-tensor, threshold), tensor + bias, above)


def swish(x: ArrayLike, /, beta: float = 1.0, *, name: str | None = None) -> Tensor:
    """x · sigmoid(beta · x): silu with beta 1, nearly gelu with beta 1.702. Ramachandran et al., arXiv 1710.05941."""
    tensor = convert(x)
    with op_scope(name, "swish", tensor):
        return tensor * sigmoid(tensor if beta == 1 else tensor * float(beta))


def glu(x: ArrayLike, /, axis: int = -1, *, name: str | None = None) -> Tensor:
    """The first half of x along `axis` times sigmoid of the second. Dauphin et al., arXiv 1612.08083.

    Raises ShapeError when the dimension is not known to be even.
    """
    tensor = convert(x)
    with op_scope(name, "glu", tensor):
        value, gate = split(tensor, 2, axis=axis)
        return value * sigmoid(gate)


def hardmax(x: ArrayLike, /, axis: int = -1, *, name: str | None = None) -> Tensor:
    """1 at the first maximum along `axis`, else 0, in the dtype of x. No gradient passes."""
    tensor = convert(x)
    with op_scope(name, "hardmax", tensor):
        top = equal(tensor, max(tensor, axis=axis, keepdims=True))
        # The running count of maxima is 1 from the first of them to the second.
        first = logical_and(top, equal(cumulative_sum(astype(top, "int32"), axis=axis), 1))
        return astype(first, tensor.dtype)
