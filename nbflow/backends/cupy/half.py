"""cupy: 16-bit floats. float16 goes by way of float32 in the ops where the numpy backend does so; bfloat16 does in all
ops that compute, as cupy's own functions take it only in part. Ops that only move values, and products of matrices,
take both as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cupy as cp
import numpy as np

from nbflow.backends.base import Implementation
from nbflow.backends.numpy import half
from nbflow.spec import BFLOAT16, FLOAT32, is_half, kind_of

A = Any

_NAMES = frozenset(half.PROMOTED) | frozenset(half.LIKE_FIRST)
# What moves bits and computes nothing, or sees to narrow floats itself.
_AS_IT_IS = frozenset(
    (
        *(
            "constant",
            "identity",
            "stop_gradient",
            "compressed",
            "group",
            "full",
            "arange",
            "eye",
            "shape_of",
            "bitcast",
        ),
        *("reshape", "broadcast_to", "permute_dims", "matrix_transpose", "expand_dims", "squeeze", "flip", "roll"),
        *("tile", "repeat", "pad", "triu", "tril", "concat", "stack", "unstack", "split", "getitem", "getitem_grad"),
        *("slice_dynamic", "slice_dynamic_grad", "pad_dynamic", "pad_crop", "crop_to", "pad_to", "diagonal"),
        *("checkpoint", "checkpoint_many", "astype", "count", "diagonal_grad", "where", "matmul"),
        *("sum", "prod", "cumulative_sum", "cumulative_prod"),
    )
)


def with_single(table: Mapping[str, Implementation]) -> dict[str, Implementation]:
    """`table`, in which ops that compute take 16-bit floats by way of float32 as said above."""
    from_float16 = _NAMES - _AS_IT_IS
    made = dict(table)
    for name, implementation in table.items():
        if name in _AS_IT_IS or name in _STATEFUL or any("E" in loop for loop in getattr(implementation, "types", ())):
            continue  # the last: a ufunc with a loop for bfloat16
        made[name] = _in_single(implementation, name in from_float16, name not in half.LIKE_FIRST)
    return made


# What takes a context first; these see to narrow floats themselves.
_STATEFUL = frozenset(
    (
        *("variable", "initialize", "read_variable", "assign", "assign_add", "assign_sub", "sparse_join"),
        *("gradient_join", "recompute_barrier", "random_uniform", "random_uniform_like", "random_normal"),
        *("random_normal_like", "random_truncated_normal", "random_integers", "random_bernoulli"),
        *("random_permutation", "random_gamma"),
        *(f"variable_scatter_{how}" for how in ("add", "sub", "mul", "min", "max", "assign")),
        *(f"apply_{rule}" for rule in ("sgd", "momentum", "adam", "rmsprop", "adagrad", "lion", "lars", "lamb")),
        *(f"apply_{rule}_sparse" for rule in ("sgd", "momentum", "adagrad", "adam")),
        *("apply_rmsprop_momentum", "apply_rmsprop_centered"),
    )
)


def _in_single(implementation: Implementation, float16: bool, promoted: bool) -> Implementation:
    narrow = frozenset((BFLOAT16.num, np.dtype(np.float16).num) if float16 else (BFLOAT16.num,))

    def computed(*inputs: A, **attrs: Any) -> Any:
        for x in inputs:
            if x.dtype.num in narrow:
                break
        else:
            return implementation(*inputs, **attrs)
        out = attrs.pop("out", None)
        wide = [x.astype(FLOAT32) if is_half(x.dtype) else x for x in inputs]
        made = implementation(*wide, **attrs)
        if out is not None:
            cp.copyto(out, made, casting="unsafe")
            return out
        dtype = _narrowed(inputs if promoted else inputs[:1])
        return tuple(_rounded(m, dtype) for m in made) if isinstance(made, tuple) else _rounded(made, dtype)

    return computed


def _narrowed(inputs: tuple[A, ...]) -> np.dtype[Any]:
    """The dtype of floating results: the only 16-bit one among the inputs, unless a wider one is there too."""
    found = [x.dtype for x in inputs]
    halves = {d for d in found if is_half(d)}
    wider = any(kind_of(d) in "fc" and not is_half(d) for d in found)
    return halves.pop() if len(halves) == 1 and not wider else FLOAT32


def _rounded(made: A, dtype: np.dtype[Any]) -> A:
    return made.astype(dtype) if made.dtype == FLOAT32 else made
