"""Random tensors. Each op draws from its own stream, keyed by the graph's seed and the op's name, at the step's number.

So the same graph draws the same numbers on one worker or on eight, and a step that runs again draws what it drew. How
bits become numbers is in `docs/random.md`. None of these ops is differentiable.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nbflow import op
from nbflow.errors import DTypeError, GraphError, ShapeError
from nbflow.graph import Tensor
from nbflow.op import Attrs
from nbflow.ops._build import ArrayLike, as_tensor, build, convert
from nbflow.ops.casting import astype
from nbflow.ops.comparison import less, minimum
from nbflow.ops.indexing import take
from nbflow.ops.shape import broadcast_to, shape_argument
from nbflow.spec import DTypeLike, TensorSpec, as_dtype, as_shape, format_shape, is_half, kind_of, require_values

FLOAT32 = np.dtype(np.float32)
INT64 = np.dtype(np.int64)


def _filled_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    return [TensorSpec(attrs["shape"], attrs["dtype"])]


def _like_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    require_values(inputs)
    return [TensorSpec(inputs[0].shape, attrs["dtype"])]


def _permutation_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    return [TensorSpec((attrs["n"],), INT64)]


def draw_cost(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], attrs: Attrs) -> op.Cost:
    """Of one word an element."""
    # Ten Philox rounds of about ten operations for four words, and the conversion to floats.
    return op.Cost(30 * op.size_of(outputs[0]), op.nbytes_of(outputs))


def _define(name: str, infer: op.ShapeRule, doc: str) -> None:
    op.define(name, infer=infer, gradient=None, cost=draw_cost, stateful=True, doc=doc)


_define("random_uniform", _filled_infer, "Uniform in [minval, maxval). attrs: shape, minval, maxval, dtype.")
_define(
    "random_uniform_like", _like_infer, "Uniform in [0, 1), shaped like the input, which is not read. attrs: dtype."
)
_define("random_normal", _filled_infer, "Normal. attrs: shape, mean, stddev, dtype.")
_define(
    "random_normal_like", _like_infer, "Normal, shaped like the input, which is not read. attrs: mean, stddev, dtype."
)
_define(
    "random_truncated_normal",
    _filled_infer,
    "Normal, within two standard deviations. attrs: shape, mean, stddev, dtype.",
)
_define("random_integers", _filled_infer, "Uniform integers in [low, high). attrs: shape, low, high, dtype.")
_define("random_bernoulli", _filled_infer, "1 (or True) with probability p. attrs: shape, p, dtype.")
_define("random_permutation", _permutation_infer, "0 to n - 1 in random order. attrs: n.")


def static_shape_of(shape: Any) -> tuple[int, ...]:
    """`shape` as a tuple of ints. Raises ShapeError for unknown dimensions."""
    found = as_shape(shape)
    if found is None or any(d is None for d in found):
        raise ShapeError(
            f"random numbers need a static shape, got {format_shape(found)}; "
            "nf.random.uniform_like(x) and normal_like(x) draw in the shape that x has at run time"
        )
    return tuple(d for d in found if d is not None)


def _shape_at_run_time(shape: Any) -> Tensor | None:
    """Something of the given `shape` when tensors are in it (`nf.shape_of(x)`, `(n, 3)`); None for a static shape."""
    _, extra = shape_argument(shape) if _has_tensors(shape) else ((), ())
    return broadcast_to(convert(False), shape) if extra else None


def _has_tensors(shape: Any) -> bool:
    return any(as_tensor(item) is not None for item in (shape, *(shape if isinstance(shape, (list, tuple)) else ())))


def floating(dtype: DTypeLike) -> np.dtype[Any]:
    """The dtype. Raises DTypeError unless it is floating."""
    found = as_dtype(dtype)
    if kind_of(found) != "f":
        raise DTypeError(f"this distribution gives floats, not {found}; use nf.random.randint or nf.astype")
    return found


def normal(
    shape: Any, mean: float = 0.0, stddev: float = 1.0, dtype: DTypeLike = FLOAT32, *, name: str | None = None
) -> Tensor:
    """Normally distributed. Dimensions may be integer tensors, as in `nf.shape_of(x)`."""
    like = _shape_at_run_time(shape)
    if like is not None:
        return normal_like(like, mean, stddev, floating(dtype), name=name)
    attrs = {"shape": static_shape_of(shape), "mean": float(mean), "stddev": float(stddev), "dtype": floating(dtype)}
    return build("random_normal", (), attrs, name=name)


def normal_like(
    x: ArrayLike, mean: float = 0.0, stddev: float = 1.0, dtype: DTypeLike = None, *, name: str | None = None
) -> Tensor:
    """Normally distributed, in the shape that `x` has at run time, and its dtype when that is floating (else float32).

    Draws what `normal` of that name does in that shape.
    """
    tensor = convert(x)
    attrs = {"mean": float(mean), "stddev": float(stddev), "dtype": _dtype_like(tensor, dtype)}
    return build("random_normal_like", (tensor,), attrs, name=name)


def truncated_normal(
    shape: Any, mean: float = 0.0, stddev: float = 1.0, dtype: DTypeLike = FLOAT32, *, name: str | None = None
) -> Tensor:
    """Normally distributed, values beyond two standard deviations drawn again."""
    attrs = {"shape": static_shape_of(shape), "mean": float(mean), "stddev": float(stddev), "dtype": floating(dtype)}
    return build("random_truncated_normal", (), attrs, name=name)


def uniform(
    shape: Any, minval: float = 0.0, maxval: float = 1.0, dtype: DTypeLike = FLOAT32, *, name: str | None = None
) -> Tensor:
    """Uniform in [minval, maxval). Dimensions may be integer tensors. Raises GraphError for an empty interval."""
    if not minval < maxval:
        raise GraphError(f"the interval from minval={minval} to maxval={maxval} is empty")
    like = _shape_at_run_time(shape)
    if like is not None:
        return _stretched(like, float(minval), float(maxval), floating(dtype), name)
    attrs = {
        "shape": static_shape_of(shape),
        "minval": float(minval),
        "maxval": float(maxval),
        "dtype": floating(dtype),
    }
    return build("random_uniform", (), attrs, name=name)


def _stretched(like: Tensor, low: float, high: float, dtype: np.dtype[Any], name: str | None) -> Tensor:
    """Uniform in [low, high) in the shape of `like`."""
    if (low, high) == (0.0, 1.0):
        return uniform_like(like, dtype, name=name)
    drawn = uniform_like(like, FLOAT32 if is_half(dtype) else dtype, name=None if name is None else f"{name}_drawn")
    # Rounding may give `high` itself; the interval is half open.
    below = np.nextafter(dtype.type(high), dtype.type(low))
    return minimum(astype(drawn * (high - low) + low, dtype), convert(below), name=name)


def uniform_like(x: ArrayLike, dtype: DTypeLike = None, *, name: str | None = None) -> Tensor:
    """Uniform in [0, 1), in the shape that `x` has at run time, and its dtype when that is floating (else float32)."""
    tensor = convert(x)
    return build("random_uniform_like", (tensor,), {"dtype": _dtype_like(tensor, dtype)}, name=name)


def _dtype_like(x: Tensor, dtype: DTypeLike) -> np.dtype[Any]:
    default = x.dtype if kind_of(x.dtype) == "f" else FLOAT32
    return default if dtype is None else floating(dtype)


def randint(shape: Any, low: int, high: int, dtype: DTypeLike = INT64, *, name: str | None = None) -> Tensor:
    """Uniform integers in [low, high). Raises GraphError for an empty range, DTypeError when `dtype` is too small."""
    found = as_dtype(dtype)
    if kind_of(found) not in "iu":
        raise DTypeError(f"randint gives integers, not {found}")
    if not low < high:
        raise GraphError(f"the range from low={low} to high={high} is empty")
    info = np.iinfo(found)
    if low < info.min or high - 1 > min(info.max, np.iinfo(np.int64).max):
        raise DTypeError(f"integers from {low} to {high - 1} do not fit {found}")
    attrs = {"shape": static_shape_of(shape), "low": int(low), "high": int(high), "dtype": found}
    return build("random_integers", (), attrs, name=name)


def bernoulli(shape: Any, p: float = 0.5, dtype: DTypeLike = np.bool_, *, name: str | None = None) -> Tensor:
    """True (1 for other dtypes) with probability `p`. Dimensions may be integer tensors. Raises GraphError unless
    0 <= p <= 1."""
    if not 0 <= p <= 1:
        raise GraphError(f"a probability lies between 0 and 1, not {p}")
    like = _shape_at_run_time(shape)
    if like is not None:
        drawn = uniform_like(like, np.float64, name=None if name is None else f"{name}_drawn")
        below = less(drawn, float(p), name=name if as_dtype(dtype) == np.bool_ else None)
        return below if below.dtype == as_dtype(dtype) else astype(below, dtype, name=name)
    attrs = {"shape": static_shape_of(shape), "p": float(p), "dtype": as_dtype(dtype)}
    return build("random_bernoulli", (), attrs, name=name)


def permutation(x: int | ArrayLike, *, name: str | None = None) -> Tensor:
    """0 to x - 1 in random order (int64), or the tensor `x` in random order along its first dimension.

    Raises ShapeError when that dimension is not known.
    """
    if as_tensor(x) is None and np.ndim(x) == 0:
        if int(x) < 0:
            raise GraphError(f"cannot permute {x} numbers")
        return build("random_permutation", (), {"n": int(x)}, name=name)
    tensor = convert(x)
    if not tensor.shape or tensor.shape[0] is None:
        raise ShapeError(
            f"permutation needs to know the first dimension of {tensor.name}: {format_shape(tensor.shape)}"
        )
    return take(tensor, build("random_permutation", (), {"n": tensor.shape[0]}), axis=0, name=name)
