"""numpy: results whose way is computed again in the backward pass."""

from __future__ import annotations

from typing import Any

import numpy as np

from nbflow.backends.base import Context, Table

TABLE = Table()
A = np.ndarray[Any, Any]


@TABLE.implements("checkpoint")
def checkpoint(*inputs: A, outputs: int) -> A:
    return inputs[0]


@TABLE.implements("checkpoint_many")
def checkpoint_many(*inputs: A, outputs: int) -> tuple[A, ...]:
    return tuple(np.array(x) for x in inputs[:outputs])


@TABLE.implements("recompute_barrier")
def recompute_barrier(ctx: Context, x: A) -> A:
    return x
