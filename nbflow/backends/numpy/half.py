"""numpy: 16-bit floats, float16 and bfloat16, where numpy's own arithmetic is not good enough.

numpy adds them in 16 bits (in bfloat16, 1 added a thousand times is 256), multiplies their matrices without BLAS, and
sorts bfloat16 wrongly around NaN. The ops listed here compute in float32 instead, which holds both exactly, and round
once, at the end. Ops that are one ufunc are not listed: numpy and ml_dtypes compute each element in float32 as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nbflow.backends.base import Implementation
from nbflow.spec import BFLOAT16, FLOAT32, is_half, kind_of

A = np.ndarray[Any, Any]

# numpy's numbers of the two dtypes: comparing ints costs a tenth of comparing dtypes.
_HALVES = frozenset((np.dtype(np.float16).num, BFLOAT16.num))

# The result has the dtype that the inputs promote to.
PROMOTED = (
    *("matmul", "conv", "conv_input_grad", "conv_filter_grad"),
    *("avg_pool", "avg_pool_grad", "max_pool_grad", "max_unpool", "max_unpool_grad"),
    *("mean", "prod_others", "prod_others_grad", "add_n", "rsqrt"),
    *("sum_to_shape", "repeat_grad", "tile_grad", "deduplicate"),
    *("relu_grad", "sigmoid", "softplus", "softmax", "log_softmax"),
    *("sparse_softmax_cross_entropy", "sparse_softmax_cross_entropy_grad"),
    *("scatter_add", "scatter_add_along_axis", "scatter_nd_add"),
    *("sort", "argsort", "unique", "searchsorted", "isin"),
)
# The result has the dtype of the first input; the others may be wider.
LIKE_FIRST = ("weighted_sum",)


def with_single(table: Mapping[str, Implementation]) -> dict[str, Implementation]:
    """`table`, in which the ops listed above take 16-bit floats by way of float32."""
    made = dict(table)
    for names, promoted in ((PROMOTED, True), (LIKE_FIRST, False)):
        made.update({name: in_single(table[name], promoted) for name in names})
    return made


def in_single(implementation: Implementation, promoted: bool = True) -> Implementation:
    """`implementation`, with 16-bit inputs widened to float32, and float32 results of them rounded back."""

    def computed(*inputs: Any, **attrs: Any) -> Any:
        for x in inputs:
            if x.dtype.num in _HALVES:
                break
        else:
            return implementation(*inputs, **attrs)
        out = attrs.pop("out", None)
        wide = [x.astype(np.float32) if x.dtype.num in _HALVES else x for x in inputs]
        made = implementation(*wide, **attrs)
        dtype = _narrow(inputs, promoted)
        if out is not None:
            np.copyto(out, made, casting="unsafe")  # to numpy, float32 to bfloat16 is not of the same kind
            return out
        return tuple(_rounded(m, dtype) for m in made) if isinstance(made, tuple) else _rounded(made, dtype)

    return computed


def _narrow(inputs: tuple[Any, ...], promoted: bool) -> np.dtype[Any]:
    """The dtype of floating results: the only 16-bit one among the inputs, unless a wider one is there too."""
    found: list[np.dtype[Any]] = [x.dtype for x in (inputs if promoted else inputs[:1])]
    halves = {d for d in found if is_half(d)}
    wider = any(kind_of(d) in "fc" and not is_half(d) for d in found)
    return halves.pop() if len(halves) == 1 and not wider else FLOAT32


def _rounded(made: Any, dtype: np.dtype[Any]) -> Any:
    return made.astype(dtype) if made.dtype == FLOAT32 else made
