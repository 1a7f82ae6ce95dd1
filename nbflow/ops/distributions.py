"""Distributions made of the random ops: choices among classes or rows, and the usual continuous ones.

16-bit floats are drawn in float32 and rounded. None is differentiable for its parameters but by the way it is made:
`scale`, `loc` and the like may be tensors, and then have gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from nbflow import op
from nbflow.errors import DTypeError, GraphError, ShapeError
from nbflow.graph import Tensor, get_graph
from nbflow.op import Attrs
from nbflow.ops._build import ArrayLike, as_tensor, build, convert, known_rank, require_kind
from nbflow.ops.casting import astype
from nbflow.ops.comparison import maximum
from nbflow.ops.elementwise import abs, log, log1p, sign
from nbflow.ops.indexing import take
from nbflow.ops.manipulation import expand_dims
from nbflow.ops.random import FLOAT32, draw_cost, floating, permutation, randint, static_shape_of, uniform, uniform_like
from nbflow.ops.reduction import argmax, cumulative_sum
from nbflow.ops.sets import searchsorted
from nbflow.ops.shape import broadcast_to
from nbflow.spec import DTypeLike, TensorSpec, format_shape, is_half

# Half the step of the uniform numbers: what stands for their 0, whose logarithm is infinite.
_HALF_STEP = {4: 2.0**-25, 8: 2.0**-54}


def _open(shape: Any, dtype: np.dtype[Any]) -> Tensor:
    """Uniform in (0, 1), float32 for 16-bit dtypes."""
    wide = FLOAT32 if is_half(dtype) else dtype
    return maximum(uniform(shape, dtype=wide), _HALF_STEP[wide.itemsize])


def _placed(drawn: Tensor, loc: ArrayLike, scale: ArrayLike, dtype: np.dtype[Any]) -> Tensor:
    made = drawn if as_tensor(scale) is None and scale == 1 else drawn * scale
    made = made if as_tensor(loc) is None and loc == 0 else made + loc
    return astype(made, dtype)


@contextmanager
def _scope(name: str | None, default: str) -> Iterator[None]:
    """Names made inside start with the user's `name`, or with `default`, numbered: they choose the streams of bits."""
    graph = get_graph()
    with graph.absolute_scope(graph.scoped(name) if name else graph.unique(default)):
        yield


def exponential(shape: Any, scale: ArrayLike = 1.0, dtype: DTypeLike = FLOAT32, *, name: str | None = None) -> Tensor:
    """Exponentially distributed with mean `scale`: -scale log(1 - u) for uniform u."""
    wanted = floating(dtype)
    wide = FLOAT32 if is_half(wanted) else wanted
    with _scope(name, "exponential"):
        return _placed(-log1p(-uniform(shape, dtype=wide)), 0, scale, wanted)


def laplace(
    shape: Any, loc: ArrayLike = 0.0, scale: ArrayLike = 1.0, dtype: DTypeLike = FLOAT32, *, name: str | None = None
) -> Tensor:
    """Laplace distributed around `loc`, with mean distance `scale`: two exponential ones back to back."""
    wanted = floating(dtype)
    with _scope(name, "laplace"):
        away = _open(shape, wanted) - 0.5
        return _placed(-sign(away) * log1p(-2 * abs(away)), loc, scale, wanted)


def gumbel(
    shape: Any, loc: ArrayLike = 0.0, scale: ArrayLike = 1.0, dtype: DTypeLike = FLOAT32, *, name: str | None = None
) -> Tensor:
    """Gumbel distributed (the maximum of many): loc - scale log(-log(u)) for uniform u in (0, 1)."""
    wanted = floating(dtype)
    with _scope(name, "gumbel"):
        return _placed(-log(-log(_open(shape, wanted))), loc, scale, wanted)


def categorical(logits: ArrayLike, /, *, axis: int = -1, num: int | None = None, name: str | None = None) -> Tensor:
    """Class numbers (int64) drawn with probabilities softmax(`logits`) along `axis`.

    One for each row of classes; with `num`, that many, along a new last dimension. The class whose logit plus a Gumbel
    number is greatest (Gumbel, 1954). Raises DTypeError unless logits are floating.
    """
    tensor = convert(logits)
    require_kind(tensor.spec, "f", "logits are floating point numbers")
    if num is not None:
        rank = known_rank(tensor.spec, "categorical with num")
        axis = axis if axis < 0 else axis - rank
        if tensor.shape is None or None in tensor.shape:
            raise ShapeError(
                f"categorical with num needs a static shape, got {format_shape(tensor.shape)}; leave num out, or "
                "repeat the logits first"
            )
        dims = [d for d in tensor.shape if d is not None]
        tensor = broadcast_to(expand_dims(tensor, rank), (*dims, int(num)))
        axis -= 1
    wide = FLOAT32 if is_half(tensor.dtype) else tensor.dtype
    with _scope(name, "categorical"):
        drawn = maximum(uniform_like(tensor, dtype=wide), _HALF_STEP[wide.itemsize])
        return argmax(astype(tensor, wide) - log(-log(drawn)), axis=axis)


def shuffle(x: ArrayLike, /, *, name: str | None = None) -> Tensor:
    """The tensor `x` in random order along its first dimension, which must be known: `permutation` of a tensor."""
    return permutation(convert(x), name=name)


def choice(
    x: int | ArrayLike,
    shape: Any = (),
    *,
    replace: bool = True,
    p: ArrayLike | None = None,
    name: str | None = None,
) -> Tensor:
    """Rows of `x` (or numbers below the int `x`), drawn into `shape`, each as likely as the others or with `p`.

    - `replace`: False draws no row twice; then `shape` holds no more elements than there are rows, and `p` is not
      possible.
    - `p`: a vector of probabilities, or weights that are divided by their sum.

    Raises ShapeError when the number of rows is not known or too small.
    """
    rows = None if as_tensor(x) is None and np.ndim(x) == 0 else convert(x)
    count = int(x) if rows is None else (rows.shape or (None,))[0]
    wanted = static_shape_of(shape)
    if count is None:
        raise ShapeError("choice needs a tensor whose first dimension is known")
    size = math.prod(wanted)
    if p is not None and not replace:
        raise GraphError("choice without replacement takes no p; take the top of logits plus nf.random.gumbel")
    if not replace and size > count:
        raise ShapeError(f"{size} different rows cannot be drawn from {count}")
    with _scope(name, "choice"):
        if p is not None:
            bounds = cumulative_sum(_weights(p, count))
            picked = searchsorted(bounds, uniform(wanted, dtype=bounds.dtype) * bounds[-1], side="right")
        else:
            picked = randint(wanted, 0, count) if replace else permutation(count)[:size].reshape(wanted)
        return picked if rows is None else take(rows, picked, axis=0)


def _weights(p: ArrayLike, count: int) -> Tensor:
    weights = convert(p)
    require_kind(weights.spec, "f", "probabilities are floating point numbers")
    if weights.shape != (count,):
        raise ShapeError(f"{count} rows need as many probabilities, not {format_shape(weights.shape)}")
    return astype(weights, np.float64)  # sums of many small weights


# --- gamma -----------------------------------------------------------------------------------------------------------


def _gamma_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    return [TensorSpec(attrs["shape"], attrs["dtype"])]


op.define(
    "random_gamma",
    infer=_gamma_infer,
    gradient=None,
    cost=draw_cost,
    stateful=True,
    doc="Gamma distributed with scale 1. attrs: shape, alpha (above 0), dtype.",
)


def gamma(
    shape: Any, alpha: float, scale: ArrayLike = 1.0, dtype: DTypeLike = FLOAT32, *, name: str | None = None
) -> Tensor:
    """Gamma distributed with shape parameter `alpha` and mean alpha * scale. No gradient for `alpha`.

    By rejection: Marsaglia and Tsang, "A simple method for generating gamma variables", 2000.
    """
    wanted = floating(dtype)
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise DTypeError(f"alpha is a number, not {alpha!r}")
    if not (alpha > 0 and math.isfinite(alpha)):
        raise GraphError(f"alpha of a gamma distribution is above 0, not {alpha}")
    wide = FLOAT32 if is_half(wanted) else wanted
    attrs = {"shape": static_shape_of(shape), "alpha": float(alpha), "dtype": wide}
    with _scope(name, "gamma"):
        return _placed(build("random_gamma", (), attrs), 0, scale, wanted)
