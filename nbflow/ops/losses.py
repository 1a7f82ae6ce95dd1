"""Losses: cross entropies, of numbers, margins, distributions and directions.

`reduction` says what becomes of the single losses: "none" (as they are), "mean" or "sum" (a scalar).
"""

from __future__ import annotations

import math

from nbflow.errors import GraphError, ShapeError
from nbflow.graph import Tensor
from nbflow.ops._build import ArrayLike, build, convert, require_kind
from nbflow.ops.casting import astype
from nbflow.ops.comparison import clip, greater, maximum, minimum, where
from nbflow.ops.elementwise import abs, exp, log, rsqrt, square
from nbflow.ops.indexing import take, take_along_axis
from nbflow.ops.manipulation import expand_dims, squeeze
from nbflow.ops.nn import log_softmax, op_scope, softplus
from nbflow.ops.reduction import mean, sum
from nbflow.spec import format_shape, kind_of, shape_accepts

_REDUCTIONS = ("none", "mean", "sum")


def check_reduction(reduction: str) -> None:
    """Raises GraphError for what is no reduction."""
    if reduction not in _REDUCTIONS:
        raise GraphError(f"reduction is 'none', 'mean' or 'sum', not {reduction!r}")


def reduced(losses: Tensor, reduction: str) -> Tensor:
    """The losses as they are, or their mean or sum."""
    if reduction == "none":
        return losses
    return mean(losses) if reduction == "mean" else sum(losses)


def _pair(first: ArrayLike, second: ArrayLike) -> tuple[Tensor, Tensor]:
    """Both as tensors. Shapes must agree, not only broadcast: (n, 1) against (n,) is almost always a mistake."""
    a = convert(first)
    b = convert(second, like=a)
    if b.shape != () and not shape_accepts(a.shape, b.shape):
        raise ShapeError(f"shapes {format_shape(a.shape)} and {format_shape(b.shape)} differ")
    return a, b


def _check_smoothing(value: float) -> None:
    if not 0 <= value < 1:
        raise GraphError(f"label_smoothing is at least 0 and below 1, not {value}")


# --- cross entropies -------------------------------------------------------------------------------------------------


def softmax_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    label_smoothing: float = 0.0,
    reduction: str = "none",
    *,
    name: str | None = None,
) -> Tensor:
    """The cross entropy of softmax(logits) with `labels`, one loss per example, shape logits.shape[:-1].

    - `logits`: floating, classes last.
    - `labels`: integer class ids of shape logits.shape[:-1], or probabilities shaped like the logits.
    - `label_smoothing`: so much of each label is spread over all classes evenly. Szegedy et al., arXiv 1512.00567.
    """
    check_reduction(reduction)
    _check_smoothing(label_smoothing)
    scores = convert(logits)
    target = convert(labels)
    ids = kind_of(target.dtype) in "iu"
    if ids and label_smoothing == 0 and reduction == "none":
        return build("sparse_softmax_cross_entropy", (scores, target), name=name)
    if not ids:
        _check_probabilities(scores, target)
    with op_scope(name, "softmax_cross_entropy", scores):
        if ids:
            losses = build("sparse_softmax_cross_entropy", (scores, target))
        else:
            losses = -sum(target * log_softmax(scores), axis=-1)
        if label_smoothing > 0:
            losses = losses * (1.0 - label_smoothing) - mean(log_softmax(scores), axis=-1) * label_smoothing
        return reduced(losses, reduction)


def _check_probabilities(scores: Tensor, target: Tensor) -> None:
    require_kind(target.spec, "f", "labels are integer class ids or floating probabilities")
    if not shape_accepts(scores.shape, target.shape):
        raise ShapeError(
            f"probabilities {target.name} {format_shape(target.shape)} are not shaped like the logits {scores.name} "
            f"{format_shape(scores.shape)}; class ids must be integers (nf.astype)",
            where=target.node.where,
        )


def sigmoid_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    positive_weight: float = 1.0,
    label_smoothing: float = 0.0,
    reduction: str = "none",
    *,
    name: str | None = None,
) -> Tensor:
    """-w · labels · log σ(logits) - (1 - labels) · log(1 - σ(logits)), elementwise and without overflow.

    `labels`: probabilities, in the dtype of the logits. `positive_weight`: w. `label_smoothing`: labels go this part
    of the way to 1/2.
    """
    check_reduction(reduction)
    _check_smoothing(label_smoothing)
    scores = convert(logits)
    with op_scope(name, "sigmoid_cross_entropy", scores):
        target = convert(labels, like=scores)
        if label_smoothing > 0:
            target = target * (1.0 - label_smoothing) + label_smoothing / 2
        # -log σ(z) is softplus(z) - z, and -log(1 - σ(z)) is softplus(z).
        losses = softplus(scores) - scores * target
        if positive_weight != 1:
            losses = losses + (softplus(scores) - scores) * target * (positive_weight - 1.0)
        return reduced(losses, reduction)


def binary_cross_entropy(
    probabilities: ArrayLike,
    labels: ArrayLike,
    epsilon: float = 1e-7,
    reduction: str = "mean",
    *,
    name: str | None = None,
) -> Tensor:
    """-labels · log p - (1 - labels) · log(1 - p), where p and 1 - p are at least epsilon; sigmoid_cross_entropy takes
    logits and needs no cut. Raises ShapeError for different shapes."""
    check_reduction(reduction)
    first, second = _pair(probabilities, labels)
    with op_scope(name, "binary_cross_entropy", first):
        # Both are cut on their own: 1 - epsilon is 1 in 16 bits, and 1 - (1 - epsilon) far from epsilon in 32.
        p, q = clip(first, min=epsilon), clip(1.0 - first, min=epsilon)
        return reduced(-(second * log(p)) - (1.0 - second) * log(q), reduction)


def negative_log_likelihood(
    log_probabilities: ArrayLike,
    ids: ArrayLike,
    axis: int = -1,
    weights: ArrayLike | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
    *,
    name: str | None = None,
) -> Tensor:
    """-weights[id] · log_probabilities[…, id, …]: what log_softmax gives, picked by class ids.

    - `axis`: the classes; ids are integers of the shape without it. `weights`: one number a class.
    - `ignore_index`: examples with this id count nothing.
    - "mean" divides by the sum of the weights that count.
    """
    check_reduction(reduction)
    scores, numbers = convert(log_probabilities), convert(ids)
    require_kind(scores.spec, "f", "log probabilities are floating")
    require_kind(numbers.spec, "iu", "class ids are integers")
    with op_scope(name, "negative_log_likelihood", scores):
        counts = None if ignore_index is None else numbers != ignore_index
        safe = numbers if counts is None else where(counts, numbers, 0)
        losses = -squeeze(take_along_axis(scores, expand_dims(safe, axis=axis), axis=axis), axis=axis)
        heavy = None if weights is None else take(convert(weights, like=scores), safe, axis=0)
        if counts is not None:
            heavy = astype(counts, scores.dtype) if heavy is None else where(counts, heavy, 0.0)
            losses = where(counts, losses, 0.0)  # an ignored infinity would become NaN
        if heavy is not None:
            losses = losses * heavy
        if reduction == "mean" and heavy is not None:
            return sum(losses) / sum(heavy)
        return reduced(losses, reduction)


def sigmoid_focal(
    logits: ArrayLike,
    labels: ArrayLike,
    gamma: float = 2.0,
    alpha: float | None = None,
    reduction: str = "none",
    *,
    name: str | None = None,
) -> Tensor:
    """(1 - p)^gamma times the sigmoid cross entropy, elementwise, p the probability of the label (0 or 1).

    Easy examples count less. `alpha`: the weight of label 1, 1 - alpha that of 0. Lin et al., arXiv 1708.02002,
    equation 4.
    """
    check_reduction(reduction)
    first, second = _pair(logits, labels)
    with op_scope(name, "sigmoid_focal", first):
        # log(1 - p) = -softplus(z), z the logit with the sign of the label: +, for a label of 1.
        signed = first * (second * 2.0 - 1.0)
        losses = exp(softplus(signed) * -gamma) * sigmoid_cross_entropy(first, second)
        if alpha is not None:
            losses = losses * (second * (2.0 * alpha - 1.0) + (1.0 - alpha))
        return reduced(losses, reduction)


# --- numbers ---------------------------------------------------------------------------------------------------------


def mean_squared_error(
    predictions: ArrayLike, targets: ArrayLike, reduction: str = "mean", *, name: str | None = None
) -> Tensor:
    """(predictions - targets)². Raises ShapeError for different shapes."""
    check_reduction(reduction)
    first, second = _pair(predictions, targets)
    with op_scope(name, "mean_squared_error", first):
        return reduced(square(first - second), reduction)


def mean_absolute_error(
    predictions: ArrayLike, targets: ArrayLike, reduction: str = "mean", *, name: str | None = None
) -> Tensor:
    """|predictions - targets|. Raises ShapeError for different shapes."""
    check_reduction(reduction)
    first, second = _pair(predictions, targets)
    with op_scope(name, "mean_absolute_error", first):
        return reduced(abs(first - second), reduction)


def huber(
    predictions: ArrayLike, targets: ArrayLike, delta: float = 1.0, reduction: str = "mean", *, name: str | None = None
) -> Tensor:
    """d² / 2 where |d| = |predictions - targets| is up to delta, else delta · (|d| - delta / 2).

    Huber, Annals of Mathematical Statistics 35, 1964. Raises ShapeError for different shapes.
    """
    check_reduction(reduction)
    if not delta > 0:
        raise GraphError(f"the delta of huber is positive, not {delta}")
    first, second = _pair(predictions, targets)
    with op_scope(name, "huber", first):
        distance = abs(first - second)
        near = minimum(distance, delta)
        return reduced(near * (distance - near * 0.5), reduction)


def log_cosh(predictions: ArrayLike, targets: ArrayLike, reduction: str = "mean", *, name: str | None = None) -> Tensor:
    """log cosh(predictions - targets), without overflow: nearly d² / 2, and |d| - log 2 far out."""
    check_reduction(reduction)
    first, second = _pair(predictions, targets)
    with op_scope(name, "log_cosh", first):
        d = first - second
        return reduced(d + softplus(d * -2.0) - math.log(2), reduction)


def poisson_nll(log_rates: ArrayLike, counts: ArrayLike, reduction: str = "mean", *, name: str | None = None) -> Tensor:
    """exp(log_rates) - counts · log_rates: the negative log likelihood of Poisson counts, less log(counts!)."""
    check_reduction(reduction)
    first, second = _pair(log_rates, counts)
    with op_scope(name, "poisson_nll", first):
        return reduced(exp(first) - second * first, reduction)


def gaussian_nll(
    means: ArrayLike,
    targets: ArrayLike,
    variances: ArrayLike,
    epsilon: float = 1e-6,
    reduction: str = "mean",
    *,
    name: str | None = None,
) -> Tensor:
    """(log v + (targets - means)² / v) / 2, v = max(variances, epsilon): normal likelihoods, less log √2π."""
    check_reduction(reduction)
    first, second = _pair(means, targets)
    with op_scope(name, "gaussian_nll", first):
        v = maximum(convert(variances, like=first), epsilon)
        return reduced((log(v) + square(second - first) / v) * 0.5, reduction)


# --- margins ---------------------------------------------------------------------------------------------------------


def hinge(scores: ArrayLike, labels: ArrayLike, reduction: str = "mean", *, name: str | None = None) -> Tensor:
    """max(0, 1 - labels · scores); `labels` are -1 and 1 in the dtype of the scores."""
    check_reduction(reduction)
    first, second = _pair(scores, labels)
    with op_scope(name, "hinge", first):
        return reduced(maximum(1.0 - first * second, 0.0), reduction)


def squared_hinge(scores: ArrayLike, labels: ArrayLike, reduction: str = "mean", *, name: str | None = None) -> Tensor:
    """max(0, 1 - labels · scores)²; see hinge."""
    check_reduction(reduction)
    first, second = _pair(scores, labels)
    with op_scope(name, "squared_hinge", first):
        return reduced(square(maximum(1.0 - first * second, 0.0)), reduction)


def triplet_margin(
    anchors: ArrayLike,
    positives: ArrayLike,
    negatives: ArrayLike,
    margin: float = 1.0,
    axis: int = -1,
    reduction: str = "mean",
    *,
    name: str | None = None,
) -> Tensor:
    """max(0, |a - p|² - |a - n|² + margin) along `axis`: what is alike nearer. Schroff et al., arXiv 1503.03832."""
    check_reduction(reduction)
    anchor, near = _pair(anchors, positives)
    _, far = _pair(anchor, negatives)
    with op_scope(name, "triplet_margin", anchor):
        apart = [sum(square(anchor - other), axis=axis) for other in (near, far)]
        return reduced(maximum(apart[0] - apart[1] + margin, 0.0), reduction)


# --- distributions and directions ------------------------------------------------------------------------------------


def kl_divergence(
    p: ArrayLike, q: ArrayLike, axis: int = -1, reduction: str = "none", *, name: str | None = None
) -> Tensor:
    """Σ p · log(p / q) along `axis`, one a distribution; where p is 0 it adds nothing, whatever q is."""
    check_reduction(reduction)
    first, second = _pair(p, q)
    with op_scope(name, "kl_divergence", first):
        some = greater(first, 0)
        # Both logarithms see 1 where p is 0, so that neither the value nor the gradient becomes NaN.
        ratio = log(where(some, first, 1.0)) - log(where(some, second, 1.0))
        return reduced(sum(first * ratio, axis=axis), reduction)


def cosine_similarity(
    a: ArrayLike, b: ArrayLike, axis: int = -1, epsilon: float = 1e-12, *, name: str | None = None
) -> Tensor:
    """a · b / (‖a‖ ‖b‖) along `axis`, between -1 and 1; squared norms below `epsilon` count as epsilon."""
    first, second = _pair(a, b)
    with op_scope(name, "cosine_similarity", first):
        sizes = [rsqrt(maximum(sum(square(v), axis=axis), epsilon)) for v in (first, second)]
        return sum(first * second, axis=axis) * sizes[0] * sizes[1]
