"""Sums, means, extremes and running sums over dimensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nbflow import ops
from nbflow.graph import Tensor
from nbflow.onnx.registry import Call, translates
from nbflow.onnx.translators.elementwise import dims, number
from nbflow.spec import kind_of

Axes = tuple[int, ...] | None


def _sum(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    return ops.sum(x, axis=axes, keepdims=keep, dtype=x.dtype)


def _prod(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    return ops.prod(x, axis=axes, keepdims=keep, dtype=x.dtype)


def _mean(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    if kind_of(x.dtype) == "f":
        return ops.mean(x, axis=axes, keepdims=keep)
    return ops.astype(ops.mean(ops.astype(x, "float64"), axis=axes, keepdims=keep), x.dtype)


def _max(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    return _extreme(x, axes, keep, ops.max, ops.any, low=True)


def _min(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    return _extreme(x, axes, keep, ops.min, ops.all, low=False)


def _extreme(x: Tensor, axes: Axes, keep: bool, function: Any, logical: Any, low: bool) -> Tensor:
    if x.dtype == np.bool_:
        made: Tensor = logical(x, axis=axes, keepdims=keep)
        return made
    shape = x.shape or ()
    over = range(len(shape)) if axes is None else axes
    if any(shape[a] == 0 for a in over):  # the extreme of nothing is the other end of the dtype
        info: Any = np.finfo(x.dtype) if kind_of(x.dtype) == "f" else np.iinfo(x.dtype)
        edge: Any = (-np.inf if low else np.inf) if kind_of(x.dtype) == "f" else (info.min if low else info.max)
        places = {a % len(shape) for a in over}
        rest = [(1 if n in places else d) for n, d in enumerate(dims(x)) if keep or n not in places]
        return ops.broadcast_to(number(edge, x), rest)
    found: Tensor = function(x, axis=axes, keepdims=keep)
    return found


def _root(x: Tensor) -> Tensor:
    return ops.sqrt(x) if kind_of(x.dtype) == "f" else ops.astype(ops.sqrt(ops.astype(x, "float64")), x.dtype)


def _log_sum_exp(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    shape = x.shape or ()
    if any(shape[a] == 0 for a in (range(len(shape)) if axes is None else axes)):
        return ops.log(_sum(x, axes, keep))
    return ops.logsumexp(x, axis=axes, keepdims=keep)


REDUCTIONS: dict[str, Callable[[Tensor, Axes, bool], Tensor]] = {
    "ReduceSum": _sum,
    "ReduceMean": _mean,
    "ReduceProd": _prod,
    "ReduceMax": _max,
    "ReduceMin": _min,
    "ReduceL1": lambda x, axes, keep: _sum(ops.abs(x), axes, keep),
    "ReduceL2": lambda x, axes, keep: _root(_sum(ops.square(x), axes, keep)),
    "ReduceSumSquare": lambda x, axes, keep: _sum(ops.square(x), axes, keep),
    "ReduceLogSum": lambda x, axes, keep: ops.log(_sum(x, axes, keep)),
    "ReduceLogSumExp": _log_sum_exp,
}


def _reduction(function: Callable[[Tensor, Axes, bool], Tensor]) -> Callable[[Call], Any]:
    def translate(c: Call) -> Any:
        axes = c.ints(1, "axes")
        if not axes:
            if c.attr("noop_with_empty_axes", 0):
                # Nothing is summed, but what is done to each element is done (the square of ReduceSumSquare).
                return function(ops.expand_dims(c[0], axis=(c.rank(),)), (c.rank(),), False)
            axes = None
        return function(c[0], axes, bool(c.attr("keepdims", 1)))

    return translate


for _name, _function in REDUCTIONS.items():
    translates(_name)(_reduction(_function))


@translates("ArgMax", "ArgMin")
def _arg(c: Call) -> Any:
    function = ops.argmax if c.proto.op_type == "ArgMax" else ops.argmin
    x, axis, keep = c[0], c.attr("axis", 0), bool(c.attr("keepdims", 1))
    if not c.attr("select_last_index", 0):
        return function(x, axis=axis, keepdims=keep)
    last = function(ops.flip(x, axis=axis), axis=axis, keepdims=keep)
    length = dims(x)[axis]
    return (length - 1) - last


@translates("CumSum", "CumProd", since=11)
def _cumulative(c: Call) -> Any:
    x, axis = c[0], int(c.known(1).item())
    if c.attr("reverse", 0):
        x = ops.flip(x, axis=axis)
    function = ops.cumulative_sum if c.proto.op_type == "CumSum" else ops.cumulative_prod
    before = bool(c.attr("exclusive", 0))
    made = function(x, axis=axis, include_initial=before, dtype=x.dtype)
    if before:
        key: list[slice] = [slice(None)] * c.rank()
        key[axis] = slice(None, -1)
        made = made[tuple(key)]
    return ops.flip(made, axis=axis) if c.attr("reverse", 0) else made
