"""Losses beside the cross entropies: of numbers, margins, distributions and directions."""

from __future__ import annotations

from nbflow.errors import GraphError, ShapeError
from nbflow.graph import Tensor
from nbflow.ops._build import ArrayLike, convert
from nbflow.ops.elementwise import abs, exp, greater, log, maximum, minimum, rsqrt, square, where
from nbflow.ops.nn import op_scope, sigmoid_cross_entropy, softplus
from nbflow.ops.reduction import mean, sum
from nbflow.spec import format_shape, shape_accepts


def mean_absolute_error(predictions: ArrayLike, targets: ArrayLike, *, name: str | None = None) -> Tensor:
    """The mean of |predictions - targets| over all elements, a scalar. Raises ShapeError for different shapes."""
    first, second = _pair(predictions, targets)
    with op_scope(name, "mean_absolute_error", first):
        return mean(abs(first - second))


def huber(predictions: ArrayLike, targets: ArrayLike, delta: float = 1.0, *, name: str | None = None) -> Tensor:
    """The mean of d² / 2 where |d| = |predictions - targets| is up to delta, else delta · (|d| - delta / 2); a scalar.

    Huber, Annals of Mathematical Statistics 35, 1964. Raises ShapeError for different shapes.
    """
    if not delta > 0:
        raise GraphError(f"the delta of huber is positive, not {delta}")
    first, second = _pair(predictions, targets)
    with op_scope(name, "huber", first):
        distance = abs(first - second)
        near = minimum(distance, delta)
        return mean(near * (distance - near * 0.5))


def hinge(scores: ArrayLike, labels: ArrayLike, *, name: str | None = None) -> Tensor:
    """The mean of max(0, 1 - labels · scores), a scalar; `labels` are -1 and 1 in the dtype of the scores."""
    first, second = _pair(scores, labels)
    with op_scope(name, "hinge", first):
        return mean(maximum(1.0 - first * second, 0.0))


def kl_divergence(p: ArrayLike, q: ArrayLike, axis: int = -1, *, name: str | None = None) -> Tensor:
    """Σ p · log(p / q) along `axis`, one a distribution; where p is 0 it adds nothing, whatever q is."""
    first, second = _pair(p, q)
    with op_scope(name, "kl_divergence", first):
        some = greater(first, 0)
        # Both logarithms see 1 where p is 0, so that neither the value nor the gradient becomes NaN.
        ratio = log(where(some, first, 1.0)) - log(where(some, second, 1.0))
        return sum(first * ratio, axis=axis)


def cosine_similarity(
    a: ArrayLike, b: ArrayLike, axis: int = -1, epsilon: float = 1e-12, *, name: str | None = None
) -> Tensor:
    """a · b / (‖a‖ ‖b‖) along `axis`, between -1 and 1; squared norms below `epsilon` count as epsilon."""
    first, second = _pair(a, b)
    with op_scope(name, "cosine_similarity", first):
        sizes = [rsqrt(maximum(sum(square(v), axis=axis), epsilon)) for v in (first, second)]
        return sum(first * second, axis=axis) * sizes[0] * sizes[1]


def sigmoid_focal(logits: ArrayLike, labels: ArrayLike, gamma: float = 2.0, *, name: str | None = None) -> Tensor:
    """(1 - p)^gamma times the sigmoid cross entropy, elementwise, p the probability of the label (0 or 1).

    Easy examples count less. Lin et al., arXiv 1708.02002, equation 4.
    """
    first, second = _pair(logits, labels)
    with op_scope(name, "sigmoid_focal", first):
        # log(1 - p) = -softplus(z), z the logit with the sign of the label: +, for a label of 1.
        signed = first * (second * 2.0 - 1.0)
        return exp(softplus(signed) * -gamma) * sigmoid_cross_entropy(first, second)


def _pair(first: ArrayLike, second: ArrayLike) -> tuple[Tensor, Tensor]:
    a = convert(first)
    b = convert(second, like=a)
    if b.shape != () and not shape_accepts(a.shape, b.shape):
        raise ShapeError(f"shapes {format_shape(a.shape)} and {format_shape(b.shape)} differ")
    return a, b
