"""TfIdfVectorizer, of tokens that are integers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from nbflow import ops
from nbflow.errors import DTypeError
from nbflow.onnx.registry import Call, translates
from nbflow.onnx.translators.elementwise import number


@translates("TfIdfVectorizer", since=9)
def _tf_idf(c: Call) -> Any:
    pool = c.attrs.get("pool_int64s")
    if not pool:
        raise DTypeError(f"{c.what} has a pool of strings; tensors hold numbers and booleans")
    starts, places = [*c.attrs["ngram_counts"], len(pool)], c.attrs["ngram_indexes"]
    weights = c.attrs.get("weights") or [1.0] * len(places)
    shortest, longest = c.attrs["min_gram_length"], c.attrs["max_gram_length"]
    ngrams: list[list[int]] = []
    for size, (first, last) in enumerate(pairwise(starts), start=1):
        ngrams += [pool[n : n + size] for n in range(first, last, size)]
    kept = [n for n, ngram in enumerate(ngrams) if shortest <= len(ngram) <= longest]
    found = ops.astype(ops.ngram_counts(c[0], [ngrams[n] for n in kept], c.attr("max_skip_count", 0)), "float32")
    mode = c.attrs["mode"]
    if mode != "TF":
        weight = number([weights[n] for n in kept], found)
        found = ops.where(ops.greater(found, 0.0), weight, 0.0) if mode == "IDF" else found * weight
    rows = c[0].shape or (None,)
    shape = [*(ops.shape_of(c[0])[n] if d is None else d for n, d in enumerate(rows[:-1])), max(places) + 1]
    return ops.scatter_add(ops.zeros(shape), np.array([places[n] for n in kept]), found, axis=-1)
