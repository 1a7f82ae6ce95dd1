"""Clipping gradients: by value, by the norm of each, by the norm of all. What `minimize(clip=…)` takes.

The functions take and give lists of gradients as `nf.gradients` makes them; None, where there is none, stays None, and
sparse ones stay sparse, with each row once. In `minimize` they see the gradients of the whole batch, joined over the
replicas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nbflow.errors import DTypeError, GraphError
from nbflow.graph import Tensor
from nbflow.ops import abs, add_n, astype, maximum, minimum, sqrt, square, sum
from nbflow.ops.slices import Gradient, IndexedSlices, dense
from nbflow.spec import kind_of

Gradients = Sequence[Gradient | None]
# From all gradients of a step to as many of the same shapes and dtypes. A function of yours gets them dense, `Clip` as
# they are.
Clipper = Callable[[list[Tensor]], Sequence[Tensor]]


def clip_by_value(grads: Gradients, low: float, high: float | None = None) -> list[Gradient | None]:
    """Each element into low…high; with one number, into -low…low. Sparse ones become dense if 0 is not between."""
    if high is None:
        low, high = -_limit(low, "the limit"), low
    if not low <= high:
        raise GraphError(f"clip_by_value needs low <= high, got {low} and {high}")
    least, most = low, high
    for g in grads:
        if g is not None and kind_of(g.dtype) == "c":
            raise DTypeError("complex gradients are not clipped by value, as they have no order; clip them by norm")
    found = [g if g is None or least <= 0 <= most else dense(g) for g in grads]
    return [None if g is None else _mapped(g, lambda v: minimum(maximum(v, least), most)) for g in found]


def clip_by_norm(grads: Gradients, limit: float) -> list[Gradient | None]:
    """Each gradient g times limit / max(‖g‖₂, limit): no norm stays above `limit`."""
    most = _limit(limit, "the limit")
    found = [None if g is None else summed(g) for g in grads]
    return [None if g is None else _scaled(g, global_norm([g]), most) for g in found]


def clip_by_global_norm(grads: Gradients, limit: float) -> list[Gradient | None]:
    """All gradients times limit / max(n, limit), n = global_norm(grads). Pascanu et al., arXiv 1211.5063, algorithm 1.

    A gradient that is not finite makes them all NaN, rather than moving the variables by something arbitrary.
    """
    most = _limit(limit, "the limit")
    found = [None if g is None else summed(g) for g in grads]
    norm = global_norm(found)
    return [None if g is None else _scaled(g, norm, most) for g in found]


def global_norm(grads: Gradients) -> Tensor:
    """√Σ‖g‖², a scalar: float64 if a gradient is, else float32, as squares of float16 overflow soon.

    Raises GraphError when all gradients are None.
    """
    found = [_sizes(_values(g)) for g in grads if g is not None]
    if not found:
        raise GraphError("there is no norm of no gradients: all of them are None")
    dtype = "float64" if any(g.dtype.itemsize > 4 for g in found) else "float32"
    squares = [sum(square(g if g.dtype == dtype else astype(g, dtype))) for g in found]
    return sqrt(add_n(squares) if len(squares) > 1 else squares[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """How `minimize(clip=…)` clips: exactly one of `value`, `norm` and `global_norm`; see the functions of the names.

    `nf.optim.Adam().minimize(loss, clip=nf.optim.Clip(global_norm=1.0))`
    """

    value: float | None = None
    norm: float | None = None
    global_norm: float | None = None

    def __post_init__(self) -> None:
        given = {k: v for k in ("value", "norm", "global_norm") if (v := getattr(self, k)) is not None}
        if len(given) != 1:
            raise GraphError(f"Clip takes exactly one of value, norm and global_norm, got {sorted(given) or 'none'}")
        for what, limit in given.items():
            _limit(limit, what)

    def __call__(self, grads: Sequence[Gradient]) -> list[Gradient]:
        if self.value is not None:
            made = clip_by_value(grads, self.value)
        elif self.norm is not None:
            made = clip_by_norm(grads, self.norm)
        else:
            assert self.global_norm is not None  # one of the three is given
            made = clip_by_global_norm(grads, self.global_norm)
        return [g for g in made if g is not None]


def summed(gradient: Gradient) -> Gradient:
    """A sparse gradient with each row once: only then is the norm of its values that of the gradient."""
    return gradient.summed() if isinstance(gradient, IndexedSlices) else gradient


def _values(gradient: Gradient) -> Tensor:
    return gradient.summed().values if isinstance(gradient, IndexedSlices) else gradient


def _sizes(values: Tensor) -> Tensor:
    return abs(values) if kind_of(values.dtype) == "c" else values


def _mapped(gradient: Gradient, function: Callable[[Tensor], Tensor]) -> Gradient:
    """A function that takes 0 to 0, of each element of a gradient."""
    if isinstance(gradient, IndexedSlices):
        once = gradient.summed()
        return once.with_values(function(once.values))
    return function(gradient)


def _scaled(grad: Gradient, norm: Tensor, limit: float) -> Gradient:
    factor = limit / maximum(norm, limit)
    return _mapped(grad, lambda v: v * (factor if factor.dtype == v.dtype else astype(factor, v.dtype)))


def _limit(value: float, what: str) -> float:
    if not value > 0:
        raise GraphError(f"{what} of clipping is positive, not {value}")
    return float(value)
