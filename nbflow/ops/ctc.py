"""Connectionist temporal classification: the loss of sequences of labels whose places in time are not known.

Graves et al., "Connectionist Temporal Classification", ICML 2006. Made of a loop over time, so it has gradients of
every order; all sums of probabilities are made of logarithms.
"""

from __future__ import annotations

import numpy as np

from nbflow.errors import GraphError, ShapeError
from nbflow.graph import Tensor
from nbflow.ops._build import ArrayLike, convert, require_kind
from nbflow.ops.casting import astype
from nbflow.ops.comparison import equal, greater, less, logical_and, not_equal, where
from nbflow.ops.creation import arange, full, full_like, zeros_like
from nbflow.ops.elementwise import logaddexp
from nbflow.ops.indexing import take_along_axis
from nbflow.ops.joining import concat, stack
from nbflow.ops.loops import scan
from nbflow.ops.losses import check_reduction, reduced
from nbflow.ops.manipulation import expand_dims, permute_dims, squeeze
from nbflow.ops.nn import log_softmax, op_scope
from nbflow.ops.shape import reshape, shape_of
from nbflow.spec import format_shape, shape_accepts

# The logarithm of no probability: finite, so that differences of two of them are no NaN, and below what any sequence
# of float32 reaches.
_NEVER = -1e30


def ctc_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    logit_lengths: ArrayLike | None = None,
    label_lengths: ArrayLike | None = None,
    blank: int = 0,
    zero_infinity: bool = False,
    reduction: str = "none",
    *,
    name: str | None = None,
) -> Tensor:
    """-log of the probability that the logits, softmax at each step, spell `labels`; one loss per example.

    - `logits`: (n, time, classes), one class being the `blank` that stands for no label.
    - `labels`: (n, length) integers; what is beyond an example's length is not looked at.
    - `logit_lengths`, `label_lengths`: (n,) integers; all steps and all labels when left out.
    - Labels that do not fit into the steps, with a blank between equal ones, have the loss infinity; or 0 with
      `zero_infinity`. Neither has a gradient.

    Raises ShapeError when shapes do not fit each other.
    """
    check_reduction(reduction)
    scores, target = convert(logits), convert(labels)
    require_kind(scores.spec, "f", "logits are floating")
    require_kind(target.spec, "iu", "labels are integers")
    _check_shapes(scores, target, blank)
    with op_scope(name, "ctc_loss", scores):
        wide = astype(scores, "float32") if scores.dtype.itemsize == 2 else scores
        lengths = [_lengths(given, like) for given, like in ((logit_lengths, scores), (label_lengths, target))]
        total = _log_likelihood(log_softmax(wide), astype(target, "int64"), lengths[0], lengths[1], blank)
        possible = greater(total, _NEVER / 2)
        losses = where(possible, -total, 0.0 if zero_infinity else np.inf)
        return reduced(astype(losses, scores.dtype), reduction)


def _check_shapes(logits: Tensor, labels: Tensor, blank: int) -> None:
    if logits.spec.rank not in (3, None) or labels.spec.rank not in (2, None):
        raise ShapeError(
            f"ctc_loss takes logits (n, time, classes) and labels (n, length), not {format_shape(logits.shape)} and "
            f"{format_shape(labels.shape)}"
        )
    n, classes = (None, None) if logits.shape is None else (logits.shape[0], logits.shape[2])
    if not shape_accepts((n, None), labels.shape):
        raise ShapeError(
            f"logits {format_shape(logits.shape)} and labels {format_shape(labels.shape)} are not of equally many "
            "examples"
        )
    if blank < 0 or (classes is not None and blank >= classes):
        raise GraphError(f"the blank is one of the classes, 0 to {(classes or 0) - 1}, not {blank}")


def _lengths(given: ArrayLike | None, like: Tensor) -> Tensor:
    """(n,) int64; the second dimension of `like` when nothing is given."""
    if given is None:
        sizes = shape_of(like)
        return full((sizes[0],), sizes[1])
    lengths = convert(given)
    require_kind(lengths.spec, "iu", "lengths are integers")
    if not shape_accepts((None if like.shape is None else like.shape[0],), lengths.shape):
        raise ShapeError(f"lengths {format_shape(lengths.shape)} are not one number for each of {like.spec}")
    return astype(lengths, "int64")


def _log_likelihood(log_p: Tensor, labels: Tensor, steps: Tensor, lengths: Tensor, blank: int) -> Tensor:
    """The logarithm of the sum over all alignments: the forward variables of the paper, sections 4.1 and 4.2."""
    number = shape_of(labels)[1]
    real = less(arange(number), expand_dims(lengths, axis=-1))
    padded = where(real, labels, blank)  # so that they can be looked up
    gap = full_like(expand_dims(lengths, axis=-1), blank)
    # Blank, label, blank, label, …, blank: (n, 2 length + 1).
    pairs = stack([full_like(padded, blank), padded], axis=2)
    spelt = concat([reshape(pairs, (shape_of(labels)[0], number * 2)), gap], axis=1)
    before = concat([gap, gap, spelt], axis=1)[:, :-2]
    # A blank between may be left out where labels differ.
    skips = logical_and(not_equal(spelt, blank), not_equal(spelt, before))
    emitted = take_along_axis(log_p, expand_dims(spelt, axis=1), axis=2)
    never = full_like(spelt, _NEVER, dtype=log_p.dtype)

    def step(alpha: Tensor, row: tuple[Tensor, Tensor]) -> tuple[Tensor, None]:
        moment, log_row = row
        one = concat([never[:, :1], alpha], axis=1)[:, :-1]
        two = concat([never[:, :1], never[:, :1], alpha], axis=1)[:, :-2]
        after = logaddexp(logaddexp(alpha, one), where(skips, two, _NEVER)) + log_row
        return where(less(moment, expand_dims(steps, axis=-1)), after, alpha), None

    # Before the first step only the place before the first blank is reached, which is that blank's.
    places = arange(shape_of(spelt)[1])
    start = where(equal(places, 0), zeros_like(never), never)
    rows = permute_dims(emitted, (1, 0, 2))
    last, _ = scan(step, start, (arange(shape_of(rows)[0]), rows))
    ends = expand_dims(lengths * 2, axis=-1)
    final = take_along_axis(last, ends, axis=1)
    label = where(greater(ends, 0), take_along_axis(last, where(greater(ends, 0), ends - 1, 0), axis=1), _NEVER)
    return squeeze(logaddexp(final, label), axis=1)
