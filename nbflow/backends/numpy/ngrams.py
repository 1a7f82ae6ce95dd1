"""numpy: counting n-grams."""

from __future__ import annotations

from typing import Any

import numpy as np

from nbflow.backends.base import Table

TABLE = Table()
A = np.ndarray[Any, Any]


@TABLE.implements("ngram_counts")
def _ngram_counts(tokens: A, *, ngrams: tuple[tuple[int, ...], ...], skips: int) -> A:
    out = np.zeros((*tokens.shape[:-1], len(ngrams)), np.int64)
    length = tokens.shape[-1]
    for number, ngram in enumerate(ngrams):
        for step in range(1, 2 if len(ngram) == 1 else skips + 2):
            starts = length - step * (len(ngram) - 1)
            if starts <= 0:
                break
            found = np.ones((*tokens.shape[:-1], starts), bool)
            for place, token in enumerate(ngram):
                found &= tokens[..., place * step : place * step + starts] == token
            out[..., number] += found.sum(axis=-1)
    return out
