"""`nf.random`: random tensors. See `nbflow/ops/{random,distributions}.py`; `docs/random.md` has the bits."""

from nbflow.ops.distributions import categorical, choice, exponential, gamma, gumbel, laplace, shuffle
from nbflow.ops.random import (
    bernoulli,
    normal,
    normal_like,
    permutation,
    randint,
    truncated_normal,
    uniform,
    uniform_like,
)

__all__ = [
    "bernoulli",
    "categorical",
    "choice",
    "exponential",
    "gamma",
    "gumbel",
    "laplace",
    "normal",
    "normal_like",
    "permutation",
    "randint",
    "shuffle",
    "truncated_normal",
    "uniform",
    "uniform_like",
]
