"""Counting n-grams: how often given runs of tokens occur in rows of tokens."""

from __future__ import annotations

from collections.abc import Sequence

from nbflow import op
from nbflow.errors import GraphError, ShapeError
from nbflow.graph import Tensor
from nbflow.op import Attrs, Cost
from nbflow.ops._build import INT64, ArrayLike, build, convert, require_kind
from nbflow.spec import TensorSpec, format_shape


def _infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    (tokens,) = inputs
    require_kind(tokens, "iu", "tokens are integers")
    if tokens.shape == ():
        raise ShapeError(f"tokens stand in rows, (…, length), not {format_shape(tokens.shape)}")
    return [TensorSpec(None if tokens.shape is None else (*tokens.shape[:-1], len(attrs["ngrams"])), INT64)]


def _cost(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], attrs: Attrs) -> Cost:
    compared = sum(len(n) for n in attrs["ngrams"]) * (attrs["skips"] + 1)
    return Cost(compared * op.size_of(inputs[0]), op.nbytes_of(inputs) + op.nbytes_of(outputs))


op.define(
    "ngram_counts",
    infer=_infer,
    gradient=None,
    cost=_cost,
    doc="How often each n-gram occurs in each row of tokens, int64. attrs: ngrams (tuples of tokens), skips (how many "
    "tokens may at most lie between those of an n-gram, the same number each time). No gradient.",
)


def ngram_counts(
    tokens: ArrayLike, ngrams: Sequence[Sequence[int]], skips: int = 0, *, name: str | None = None
) -> Tensor:
    """How often each of `ngrams` occurs in each row: (…, length) integers → (…, number of n-grams), int64.

    `skips`: also with 1, 2, … up to so many tokens between each two of an n-gram; single tokens count once. The
    skip-grams of Guthrie et al., "A Closer Look at Skip-gram Modelling" (LREC 2006), with equal gaps. Raises GraphError
    for an n-gram without tokens.
    """
    wanted = tuple(tuple(int(token) for token in ngram) for ngram in ngrams)
    if not all(wanted) or skips < 0:
        raise GraphError(f"n-grams have at least one token, and skips is 0 or more, not {skips}")
    return build("ngram_counts", (convert(tokens),), {"ngrams": wanted, "skips": int(skips)}, name=name)
