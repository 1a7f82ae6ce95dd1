"""Rows of the core families: elementwise, creation, manipulation, indexing, reduction, sorting, products."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

import nbflow as nf
from nbflow.ops._build import build
from nbflow.ops.shape import sum_to_shape
from nbflow.testing.cases.case import Array, Case, b, f, i

OPS: list[Case] = []


def row(op: str, build: Callable[..., Any], inputs: Any, expect: Callable[..., Any] | None, **more: Any) -> None:
    OPS.append(Case(op, build, tuple(inputs), expect, **more))


# --- elementwise: one input ------------------------------------------------------------------------------------------


def _erf(x: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf, otypes=[np.float64])(x).astype(np.sqrt(np.zeros(1, x.dtype)).dtype)


# name: (numpy's function, domain, differentiable, what more it takes)
UNARY: dict[str, tuple[Callable[..., Any], tuple[float, float], int, str]] = {
    "negative": (np.negative, (-2, 2), 2, "i"),
    "positive": (np.positive, (-2, 2), 2, "i"),
    "abs": (np.abs, (0.1, 2), 2, "i"),
    "sign": (np.sign, (-2, 2), 0, "i"),
    "square": (np.square, (-2, 2), 2, "i"),
    "sqrt": (np.sqrt, (0.1, 4), 2, ""),
    "rsqrt": (lambda x: 1 / np.sqrt(x), (0.1, 4), 2, ""),
    "reciprocal": (np.reciprocal, (0.3, 2), 2, ""),
    "exp": (np.exp, (-2, 2), 2, "i"),
    "expm1": (np.expm1, (-1, 1), 2, ""),
    "log": (np.log, (0.1, 4), 2, ""),
    "log1p": (np.log1p, (-0.8, 2), 2, ""),
    "log2": (np.log2, (0.1, 4), 2, ""),
    "log10": (np.log10, (0.1, 4), 2, ""),
    "sin": (np.sin, (-3, 3), 2, ""),
    "cos": (np.cos, (-3, 3), 2, ""),
    "tan": (np.tan, (-1, 1), 2, ""),
    "sinh": (np.sinh, (-2, 2), 2, ""),
    "cosh": (np.cosh, (-2, 2), 2, ""),
    "tanh": (np.tanh, (-2, 2), 2, ""),
    "asin": (np.arcsin, (-0.9, 0.9), 2, ""),
    "acos": (np.arccos, (-0.9, 0.9), 2, ""),
    "atan": (np.arctan, (-2, 2), 2, ""),
    "asinh": (np.arcsinh, (-2, 2), 2, ""),
    "acosh": (np.arccosh, (1.2, 3), 2, ""),
    "atanh": (np.arctanh, (-0.9, 0.9), 2, ""),
    "erf": (_erf, (-3, 3), 2, "i"),
    "floor": (np.floor, (-3, 3), 0, "i"),
    "ceil": (np.ceil, (-3, 3), 0, "i"),
    "trunc": (np.trunc, (-3, 3), 0, "i"),
    "round": (np.round, (-3, 3), 0, "i"),
    "isnan": (np.isnan, (-1, 1), 0, ""),
    "isinf": (np.isinf, (-1, 1), 0, ""),
    "isfinite": (np.isfinite, (-1, 1), 0, ""),
    "logical_not": (np.logical_not, (-1, 1), 0, "ib"),
}
for _name, (_expect, (_low, _high), _order, _more) in UNARY.items():
    _build = getattr(nf, _name)
    row(_name, _build, [f(2, 3, low=_low, high=_high)], _expect, differentiable=_order)
    row(_name, _build, [f(4, low=_low, high=_high, dtype="float32")], _expect)
    row(_name, _build, [f(low=_low, high=_high)], _expect, differentiable=_order)
    row(_name, _build, [f(0, 3, dtype="float32")], _expect)
    for _kind in _more:
        row(_name, _build, [{"i": i(5), "b": b(5)}[_kind]], _expect)

row("isnan", nf.isnan, [np.array([np.nan, np.inf, -np.inf, 0.0])], np.isnan)
row("isinf", nf.isinf, [np.array([np.nan, np.inf, -np.inf, 0.0])], np.isinf)
row("isfinite", nf.isfinite, [np.array([np.nan, np.inf, -np.inf, 0.0])], np.isfinite)
row("round", nf.round, [np.array([0.5, 1.5, 2.5, -0.5, -1.5])], np.round)
row("exp", nf.exp, [np.array([1 + 2j, -1j], "complex64")], np.exp)
row("bitwise_invert", nf.bitwise_invert, [i(5)], np.invert)
row("bitwise_invert", lambda x: ~x, [b(5)], np.invert)

# --- elementwise: two inputs -----------------------------------------------------------------------------------------

BINARY: dict[str, tuple[Callable[..., Any], int, str]] = {
    "add": (np.add, 2, "i"),
    "subtract": (np.subtract, 2, "i"),
    "multiply": (np.multiply, 2, "i"),
    "divide": (np.divide, 2, ""),
    "floor_divide": (np.floor_divide, 0, ""),
    "remainder": (np.remainder, 2, ""),
    "atan2": (np.arctan2, 2, ""),
    "hypot": (np.hypot, 2, ""),
    "logaddexp": (np.logaddexp, 2, ""),
    "maximum": (np.maximum, 2, "i"),
    "minimum": (np.minimum, 2, "i"),
    "equal": (np.equal, 0, "ib"),
    "not_equal": (np.not_equal, 0, "ib"),
    "less": (np.less, 0, "i"),
    "less_equal": (np.less_equal, 0, "i"),
    "greater": (np.greater, 0, "i"),
    "greater_equal": (np.greater_equal, 0, "i"),
    "logical_and": (np.logical_and, 0, "b"),
    "logical_or": (np.logical_or, 0, "b"),
    "logical_xor": (np.logical_xor, 0, "b"),
}
for _name, (_expect, _order, _more) in BINARY.items():
    _build = getattr(nf, _name)
    # Away from the jumps of remainder and the kinks of maximum.
    _x, _y = f(2, 3, low=3.1, high=3.9), f(2, 3, low=1.1, high=1.5, seed=1)
    row(_name, _build, [_x, _y], _expect, differentiable=_order)
    row(_name, _build, [_x[:1], f(2, 1, low=1.1, high=1.5)], _expect, differentiable=_order)
    row(_name, _build, [f(low=3.1, high=3.9), _y], _expect, differentiable=_order)
    row(_name, _build, [f(2, 3, dtype="float32"), f(3, dtype="float64", seed=1)], _expect)
    row(_name, _build, [f(0, 3), f(3)], _expect)
    for _kind in _more:
        row(_name, _build, [{"i": i(5), "b": b(5)}[_kind], {"i": i(5, seed=1), "b": b(5, seed=1)}[_kind]], _expect)

row("maximum", nf.maximum, [np.array([1.0, np.nan, 2.0]), np.array([np.nan, 1.0, 3.0])], np.maximum)
row("divide", nf.divide, [i(4, low=1), i(4, low=1, seed=1)], np.divide)
row("floor_divide", nf.floor_divide, [i(9), i(9, low=1, seed=1)], np.floor_divide)
row("remainder", nf.remainder, [i(9), i(9, low=1, seed=1)], np.remainder)
row("remainder", lambda x: x % -3.0, [f(9)], lambda x: x % -3.0)
row("pow", nf.pow, [f(2, 3, low=0.2), f(3)], np.power, differentiable=0)
row("pow", nf.pow, [f(2, 3, low=0.2, high=2), f(3)], np.power, differentiable=2)
row("pow", lambda x: x**3.0, [f(4)], lambda x: x**3, differentiable=2)
row("pow", lambda x: nf.gradients(nf.sum(x**3.0), [x])[0], [np.array([0.0, -1.0])], lambda x: 3 * x**2)
row("pow", lambda x: 2.0**x, [f(4)], lambda x: 2.0**x, differentiable=2)
row("pow", nf.pow, [i(4), i(4, low=0, seed=1)], np.power)
row("square", lambda x: x**2, [f(4)], lambda x: x**2, differentiable=2)
row("sqrt", lambda x: x**0.5, [f(4, low=0.5)], lambda x: x**0.5, differentiable=2)
row("bitwise_and", nf.bitwise_and, [i(9), i(9, seed=1)], np.bitwise_and)
row("bitwise_or", nf.bitwise_or, [i(9), i(9, seed=1)], np.bitwise_or)
row("bitwise_xor", nf.bitwise_xor, [b(9), b(9, seed=1)], np.bitwise_xor)
row("bitwise_left_shift", nf.bitwise_left_shift, [i(5, low=0), i(5, low=0, seed=1)], np.left_shift)
row("bitwise_right_shift", nf.bitwise_right_shift, [i(5), i(5, low=0, seed=1)], np.right_shift)

# --- choice, casts, sums of many -------------------------------------------------------------------------------------

row("where", nf.where, [b(2, 3), f(2, 3), f(2, 3, seed=1)], np.where, differentiable=2)
row("where", nf.where, [b(3), f(2, 1), f(1, 3, seed=1)], np.where, differentiable=2)
row("where", lambda c, x: nf.where(c, x, 0), [b(3), f(2, 3)], lambda c, x: np.where(c, x, 0.0), differentiable=2)
row("where", nf.where, [b(), f(), f(seed=1)], np.where)
row("where", lambda c: nf.where(c, 1, 2), [b(3)], lambda c: np.where(c, 1, 2))
row("clip", lambda x: nf.clip(x, -1, 1), [f(3, 4)], lambda x: np.clip(x, -1, 1), differentiable=2)
row("clip", lambda x: nf.clip(x, min=0.5), [f(5, dtype="float32")], lambda x: np.clip(x, np.float32(0.5), None))
row("clip", lambda x: nf.clip(x, max=0.5), [f(5)], lambda x: np.clip(x, None, 0.5), differentiable=2)
row("clip", nf.clip, [f(5)], lambda x: x, differentiable=2)
row("clip", lambda x: nf.clip(x, -1, 2), [i(9)], lambda x: np.clip(x, -1, 2))
row("maximum", nf.clip, [f(5), f(5, low=-1, high=-0.5), f(low=0.5, high=1)], np.clip, differentiable=2)
for _source in ("float64", "float32", "int32", "bool", "float16"):
    for _wanted in ("float32", "int64", "bool", "uint8"):
        if _source != _wanted:
            row(
                "astype",
                lambda x, d=_wanted: nf.astype(x, d),
                [f(5, low=0, high=9).astype(_source)],
                lambda x, d=_wanted: x.astype(d),
            )
row("astype", lambda x: nf.astype(nf.astype(x, "longdouble"), "float64"), [f(3)], lambda x: x, differentiable=2)
row("add_n", lambda *x: nf.add_n(x), [f(2, 3), f(2, 3, seed=1), f(2, 3, seed=2)], lambda *x: sum(x), differentiable=2)
row("add_n", lambda x: nf.add_n([x]), [f(2)], lambda x: x, differentiable=2)
row("add_n", lambda *x: nf.add_n(x), [f(), f(seed=1)], lambda *x: sum(x))
row("weighted_sum", lambda x, y, v, w: nf.weighted_sum([x, y], [v, w]), [f(3), f(3, seed=1), f(), f(seed=1)],
    lambda x, y, v, w: x * v + y * w, differentiable=2)  # fmt: skip
row("weighted_sum", lambda x, y, v, w: nf.weighted_sum([x, y], [v, w]),
    [np.full(3, np.nan, "float32"), f(3, dtype="float32"), np.int64(0), np.int64(3)],
    lambda x, y, v, w: y * 3)  # fmt: skip
row("weighted_sum", lambda x, w: nf.weighted_sum([x], [w]), [f(2, 3), np.int64(0)], lambda x, w: x * 0)
row("weighted_sum", lambda x, w: nf.weighted_sum([x], [w]), [f(), f()], lambda x, w: x * w)

# --- creation --------------------------------------------------------------------------------------------------------

row("constant", lambda: nf.constant([[1, 2], [3, 4]]), [], lambda: np.array([[1, 2], [3, 4]]))
row("constant", lambda: nf.constant([1.5, 2]), [], lambda: np.array([1.5, 2], "float32"))
row("constant", lambda: nf.constant(f(3)), [], lambda: f(3))
row("constant", lambda: nf.linspace(0.0, 1.0, 5), [], lambda: np.linspace(0, 1, 5, dtype="float32"))
row("identity", nf.identity, [f(3)], lambda x: x, differentiable=2)
row("stop_gradient", nf.stop_gradient, [f(3)], lambda x: x)
row("full", lambda: nf.full((2, 3), 7), [], lambda: np.full((2, 3), 7))
row("full", lambda: nf.full((), True), [], lambda: np.full((), True))
row("full", lambda: nf.zeros((2, 0)), [], lambda: np.zeros((2, 0), "float32"))
row("full", lambda: nf.ones(3, dtype="int8"), [], lambda: np.ones(3, "int8"))
row("full", nf.zeros_like, [f(2, 3)], np.zeros_like)
row("full", nf.ones_like, [i(2, 3)], np.ones_like)
row("full", lambda x: nf.full_like(x, 2.5), [f(2, 3, dtype="float32")], lambda x: np.full_like(x, 2.5))
row("full", lambda x: nf.full((nf.shape_of(x)[0], 2), 1.5), [f(3, 1)], lambda x: np.full((3, 2), 1.5, "float32"))
row("broadcast_to", lambda x: nf.full((2, 3), x), [f()], lambda x: np.full((2, 3), x), differentiable=2)
row("broadcast_to", lambda: nf.full((2,), 1 + 2j), [], lambda: np.full((2,), 1 + 2j, "complex64"))
row("broadcast_to", nf.ones_like, [f(2).astype("complex128")], np.ones_like)
row("arange", lambda: nf.arange(5), [], lambda: np.arange(5))
row("arange", lambda: nf.arange(2, 9, 3), [], lambda: np.arange(2, 9, 3))
row("arange", lambda: nf.arange(5, 0, -2), [], lambda: np.arange(5, 0, -2))
row("arange", lambda: nf.arange(0.0, 1.0, 0.25), [], lambda: np.arange(0, 1, 0.25, dtype="float32"))
row("arange", lambda: nf.arange(3, dtype="float64"), [], lambda: np.arange(3.0))
row("arange", lambda: nf.arange(3, 1), [], lambda: np.arange(3, 1))
row("arange", lambda x: nf.arange(nf.shape_of(x)[0]), [f(3, 1)], lambda x: np.arange(3), note="length at run time")
row("eye", lambda: nf.eye(3), [], lambda: np.eye(3, dtype="float32"))
row("eye", lambda: nf.eye(2, 4, k=1, dtype="int64"), [], lambda: np.eye(2, 4, 1, "int64"))
row("eye", lambda: nf.eye(4, 2, k=-2), [], lambda: np.eye(4, 2, -2, "float32"))
row("eye", lambda: nf.eye(2, 2, k=5), [], lambda: np.eye(2, 2, 5, "float32"))

# --- shape -----------------------------------------------------------------------------------------------------------

row("shape_of", nf.shape_of, [f(2, 3)], lambda x: np.array(x.shape))
row("shape_of", nf.shape_of, [f()], lambda x: np.zeros(0, "int64"))
row("reshape", lambda x: nf.reshape(x, (3, 2)), [f(2, 3)], lambda x: x.reshape(3, 2), differentiable=2)
row("reshape", lambda x: x.reshape(-1), [f(2, 3)], lambda x: x.reshape(-1), differentiable=2)
row("reshape", lambda x: x.reshape(2, -1), [f(2, 3, 2)], lambda x: x.reshape(2, -1), differentiable=2)
row("reshape", lambda x: nf.reshape(x, ()), [f(1, 1)], lambda x: x.reshape(()), differentiable=2)
row("reshape", lambda x: nf.reshape(x, (None, 3)), [f(2, 3)], lambda x: x, differentiable=2)
row("reshape", lambda x: nf.reshape(x, (nf.shape_of(x)[1], nf.shape_of(x)[0])), [f(2, 3)],
    lambda x: x.reshape(3, 2), differentiable=2)  # fmt: skip
row("reshape", lambda x, y: nf.reshape(x, nf.shape_of(y)), [f(2, 3), f(3, 2)], lambda x, y: x.reshape(3, 2),
    note="y is read for its shape only")  # fmt: skip
row("broadcast_to", lambda x: nf.broadcast_to(x, (2, 4, 3)), [f(4, 1)], lambda x: np.broadcast_to(x, (2, 4, 3)),
    differentiable=2)  # fmt: skip
row("broadcast_to", lambda x, y: nf.broadcast_to(x, nf.shape_of(y)), [f(1, 3), f(2, 3)],
    lambda x, y: np.broadcast_to(x, (2, 3)), note="y is read for its shape only")  # fmt: skip
row("sum_to_shape", sum_to_shape, [f(2, 4, 3), f(4, 1)], lambda x, y: x.sum((0, 2))[:, None])
row("sum_to_shape", lambda x: sum_to_shape(x, nf.zeros((4, 1))), [f(2, 4, 3)], lambda x: x.sum((0, 2))[:, None],
    differentiable=2)  # fmt: skip
row("sum_to_shape", lambda x: build("sum_to_shape", (x,), {"shape": (2, 3)}), [f(2, 3)], lambda x: x)

# --- manipulation ----------------------------------------------------------------------------------------------------

row("permute_dims", lambda x: nf.permute_dims(x, (2, 0, 1)), [f(2, 3, 4)], lambda x: x.transpose(2, 0, 1),
    differentiable=2)  # fmt: skip
row("permute_dims", lambda x: nf.moveaxis(x, 0, -1), [f(2, 3, 4)], lambda x: np.moveaxis(x, 0, -1), unranked=False)
row("matrix_transpose", lambda x: x.T, [f(2, 3)], lambda x: x.T, differentiable=2)
row("matrix_transpose", nf.matrix_transpose, [f(2, 3, 4)], lambda x: x.swapaxes(1, 2), differentiable=2)
row("expand_dims", lambda x: nf.expand_dims(x, (0, -1)), [f(3)], lambda x: x[None, :, None], differentiable=2)
row("squeeze", lambda x: nf.squeeze(x, (0, 2)), [f(1, 3, 1)], lambda x: x[0, :, 0], differentiable=2)
row("squeeze", nf.squeeze, [f(1, 3, 1)], np.squeeze, differentiable=2, dynamic=False)
row("concat", lambda *x: nf.concat(x, axis=1), [f(2, 1), f(2, 3), f(2, 0)], lambda *x: np.concatenate(x, 1),
    differentiable=2)  # fmt: skip
row("concat", lambda *x: nf.concat(x, axis=-1), [f(2, 1), f(2, 3, dtype="float32")], lambda *x: np.concatenate(x, -1))
row("concat", lambda *x: nf.concat(x, axis=None), [f(2, 1), f(3)], lambda *x: np.concatenate(x, None), differentiable=2)
row("stack", lambda *x: nf.stack(x, axis=-1), [f(2), f(2, seed=1)], lambda *x: np.stack(x, -1), differentiable=2)
row("stack", lambda *x: nf.stack(x), [f(), f(seed=1)], lambda *x: np.stack(x, 0), differentiable=2)
row("unstack", lambda x: nf.unstack(x, axis=1, num=3), [f(2, 3)], lambda x: tuple(x.T), differentiable=2)
row("unstack", lambda x: nf.unstack(x, num=3)[1], [f(3)], lambda x: x[1], differentiable=2)
row("unstack", nf.unstack, [i(3)], tuple, dynamic=False)
row("split", lambda x: nf.split(x, 3, axis=1), [f(2, 6)], lambda x: np.split(x, 3, 1), differentiable=2)
row("split", lambda x: nf.split(x, (1, 0, 3)), [f(4, 2)], lambda x: (x[:1], x[1:1], x[1:]), differentiable=2)
row("split", lambda x: nf.split(x, (1, 3))[1], [f(4, 2)], lambda x: x[1:], differentiable=2)
row("flip", nf.flip, [f(2, 3)], np.flip, differentiable=2)
row("flip", lambda x: nf.flip(x, axis=1), [f(2, 3)], np.fliplr, differentiable=2)
row("roll", lambda x: nf.roll(x, 2), [f(2, 3)], lambda x: np.roll(x, 2), differentiable=2)
row("roll", lambda x: nf.roll(x, (1, -1), axis=(0, 1)), [f(2, 3)], lambda x: np.roll(x, (1, -1), (0, 1)),
    differentiable=2)  # fmt: skip
row("tile", lambda x: nf.tile(x, (2, 1, 3)), [f(2, 2)], lambda x: np.tile(x, (2, 1, 3)), differentiable=2,
    unranked=False)  # fmt: skip
row("tile", lambda x: nf.tile(x, 2), [f(2, 2)], lambda x: np.tile(x, 2), differentiable=2, unranked=False)
row("tile_grad", lambda x: build("tile_grad", (x,), {"reps": (2, 1, 3), "rank": 2}), [f(2, 2, 6)],
    lambda x: x.reshape(2, 2, 3, 2).sum((0, 2)), differentiable=2)  # fmt: skip
row("repeat", lambda x: nf.repeat(x, 2, axis=1), [f(2, 3)], lambda x: np.repeat(x, 2, 1), differentiable=2)
row("repeat", lambda x: nf.repeat(x, 3), [f(2, 2)], lambda x: np.repeat(x, 3), differentiable=2)
row("repeat_grad", lambda x: build("repeat_grad", (x,), {"repeats": 2, "axis": -1}), [f(2, 4)],
    lambda x: x.reshape(2, 2, 2).sum(2), differentiable=2)  # fmt: skip
row("pad", lambda x: nf.pad(x, ((1, 0), (2, 3)), constant_values=7), [f(2, 2)],
    lambda x: np.pad(x, ((1, 0), (2, 3)), constant_values=7), differentiable=2)  # fmt: skip
row("pad", lambda x: nf.pad(x, (1, 1)), [i(2, 2)], lambda x: np.pad(x, 1), unranked=False)
row("triu", lambda x: nf.triu(x, k=1), [f(2, 3, 4)], lambda x: np.triu(x, 1), differentiable=2)
row("tril", nf.tril, [f(3, 4)], np.tril, differentiable=2)

# --- indexing --------------------------------------------------------------------------------------------------------

INDICES: list[Any] = [
    0,
    -1,
    (1, 2),
    slice(1, None),
    (slice(None), slice(None, None, -1)),
    (..., 1),
    (None, ..., None, slice(0, -1, 2)),
    (slice(-2, None), 0),
    (),
    (slice(3, 1),),
]
for _index in INDICES:
    row("getitem", lambda x, k=_index: x[k], [f(3, 4)], lambda x, k=_index: np.asarray(x[k]), differentiable=2)
row("getitem", lambda x: x[1, 2, 0], [i(2, 3, 4)], lambda x: x[1, 2, 0])
row("getitem_grad", lambda x: build("getitem_grad", (x,), {"index": ((1, None, 2), "..."), "shape": (4, 3)}),
    [f(2, 3)], lambda x: np.stack([x[0] * 0, x[0], x[0] * 0, x[1]]), differentiable=2)  # fmt: skip
row("getitem_grad", lambda x, y: nf.gradients(nf.sum(x[1:] * y), [x])[0], [f(3, 2), f(2, 2)],
    lambda x, y: np.concatenate([np.zeros((1, 2)), y]), note="the shape at run time")  # fmt: skip
_ids = np.array([[2, 0, -1], [1, 1, 2]])
row("take", lambda x, k: nf.take(x, k, axis=0), [f(3, 4), _ids], lambda x, k: np.take(x, k, 0), differentiable=2)
row("take", lambda x, k: nf.take(x, k, axis=-1), [f(2, 3), _ids], lambda x, k: np.take(x, k, -1), differentiable=2)
row("take", lambda x, k: nf.take(x, k, axis=0), [f(3), _ids], lambda x, k: x[k], differentiable=2)
row("take", lambda x, k: nf.take(x, k, axis=0), [f(3, 2), np.int64(1)], lambda x, k: x[1], differentiable=2)
row("take", nf.gather, [f(3, 2, dtype="float32"), np.zeros((0,), "int32")], lambda x, k: x[k])
row("take", lambda x, k: x[:, k], [f(2, 3), _ids], lambda x, k: x[:, k], differentiable=2)
row("take", lambda x: x[[2, 0]], [f(3, 2)], lambda x: x[[2, 0]], differentiable=2)


def _scattered(x: Array, k: Array, u: Array, axis: int = 0) -> Array:
    out = x.copy()
    np.add.at(out, (slice(None),) * (axis % x.ndim) + (k,), u)
    return out


row("scatter_add", nf.scatter_add, [f(3, 4), _ids, f(2, 3, 4)], _scattered, differentiable=2)
row("scatter_add", nf.scatter_add, [f(3), _ids, f(2, 3)], _scattered, differentiable=2)
row("scatter_add", nf.scatter_add, [f(3, 4), _ids, f(4)], _scattered, differentiable=2)
row("scatter_add", nf.scatter_add, [i(3, 4), np.zeros(0, "int64"), i(0, 4)], _scattered)
row("scatter_add", nf.scatter_add, [i(3, 4), np.array([5, 0], "uint8") % 3, i(2, 4)], _scattered)
row("scatter_add", lambda x, k, u: nf.scatter_add(x, k, u, axis=-1), [f(2, 3), _ids, f(2, 2, 3)],
    lambda x, k, u: _scattered(x, k, u, -1), differentiable=2)  # fmt: skip
_along = np.array([[1, 0], [2, 2], [0, -1]])
row("take_along_axis", lambda x, k: nf.take_along_axis(x, k, axis=1), [f(3, 3), _along],
    lambda x, k: np.take_along_axis(x, k, 1), differentiable=2)  # fmt: skip
row("take_along_axis", nf.take_along_axis, [f(3, 3), _along[:1]],
    lambda x, k: np.take_along_axis(x, k, -1), differentiable=2)  # fmt: skip
row("take_along_axis", lambda x, k: nf.take_along_axis(x, k, axis=0), [f(3, 1), _along],
    lambda x, k: np.take_along_axis(x, k, 0), differentiable=2)  # fmt: skip


def _scattered_along(x: Array, k: Array, u: Array) -> Array:
    out = x.copy()
    for r in range(k.shape[0]):
        for c in range(k.shape[1]):
            out[r, k[r, c]] += u[r, c]
    return out


row("scatter_add_along_axis", lambda x, k, u: build("scatter_add_along_axis", (x, k, u), {"axis": 1}),
    [f(3, 3), _along, f(3, 2)], _scattered_along, differentiable=2)  # fmt: skip
row("one_hot", lambda k: nf.one_hot(k, 4), [np.array([[0, 3], [-1, 4]])],
    lambda k: (k[..., None] == np.arange(4)).astype("float32"))  # fmt: skip
row("one_hot", lambda k: nf.one_hot(k, 2, dtype="bool"), [np.uint8(1)], lambda k: np.array([False, True]))
_ties = np.array([[3.0, 1.0, 3.0, -2.0], [0.0, 0.0, 1.0, 0.0]])
row("sort", nf.sort, [f(3, 4)], np.sort, differentiable=2)
row("sort", lambda x: nf.sort(x, axis=0, descending=True), [f(3, 4)], lambda x: np.sort(x, 0)[::-1], differentiable=2)
row("argsort", nf.argsort, [_ties], lambda x: np.argsort(x, stable=True))
row("argsort", lambda x: nf.argsort(x, descending=True), [_ties], lambda x: np.argsort(-x, stable=True))

# --- reductions ------------------------------------------------------------------------------------------------------

AXES: list[dict[str, Any]] = [
    {},
    {"axis": 0},
    {"axis": -1, "keepdims": True},
    {"axis": (0, 2)},
    {"keepdims": True},
    {"axis": ()},
]


def _reduce(op: str, name: str, expect: Callable[..., Any], options: dict[str, Any], x: Array, **more: Any) -> None:
    """`nf.<name>(x, **options)` against numpy's function of the same arguments."""
    function = getattr(nf, name)
    row(op, lambda x: function(x, **options), [x], lambda x: np.asarray(expect(x, **options)), **more)


for _options in AXES:
    for _name, _expect in {"sum": np.sum, "mean": np.mean, "prod": np.prod, "max": np.max, "min": np.min}.items():
        _reduce(_name, _name, _expect, _options, f(2, 3, 2), differentiable=2)
    for _name, _expect in {"any": np.any, "all": np.all}.items():
        _reduce(_name, _name, _expect, _options, b(2, 3, 2))
    for _name, _expect in {"var": np.var, "std": np.std}.items():
        if _options.get("axis") != ():
            _reduce("mean", _name, _expect, _options, f(2, 3, 2), differentiable=2)
    row("exp", lambda x, o=_options: nf.logsumexp(x, **o), [f(2, 3, 2)],
        lambda x, o=_options: np.log(np.sum(np.exp(x), **o)), differentiable=2)  # fmt: skip
for _options in [{}, {"axis": 0}, {"axis": -1, "keepdims": True}, {"keepdims": True}]:
    for _name, _expect in {"argmax": np.argmax, "argmin": np.argmin}.items():
        _reduce(_name, _name, _expect, _options, _ties)
for _dtype in ("bool", "int8", "uint8", "int32", "int64", "uint64", "float16", "float32", "complex64"):
    row("sum", nf.sum, [i(2, 3, low=0).astype(_dtype)], lambda x: np.asarray(np.sum(x)))
    row("prod", nf.prod, [i(2, 3, low=1).astype(_dtype)], lambda x: np.asarray(np.prod(x)))
    row("sum", lambda x: nf.sum(x, dtype="float64", axis=0), [i(2, 3, low=0).astype(_dtype)],
        lambda x: x.sum(0, dtype="float64")) if _dtype != "complex64" else None  # fmt: skip
row("sum", lambda x: nf.sum(x, dtype="float64"), [f(3, dtype="float32")], lambda x: np.asarray(x.sum(dtype="float64")))
row("mean", nf.mean, [np.full(70000, 1, "float16")], lambda x: np.asarray(np.mean(x)))
row("mean", nf.mean, [f(3, 4, dtype="float32")], lambda x: np.asarray(np.mean(x)))
row("mean", lambda x: nf.mean(x, axis=0), [f(0, 2)], lambda x: np.full(2, np.nan))
row("mean", nf.mean, [f()], lambda x: x, differentiable=2)
row("max", nf.max, [np.array([1.0, np.nan])], lambda x: np.array(np.nan))
row("max", nf.max, [i(4)], lambda x: np.asarray(np.max(x)))
row("min", nf.min, [b(4)], lambda x: np.asarray(np.min(x)))
row("any", nf.any, [f(0)], lambda x: np.asarray(False))
row("all", nf.all, [np.array([1.0, np.nan])], lambda x: np.asarray(True))
row("prod", lambda x: nf.prod(x, axis=1), [np.array([[0.0, 2.0, 3.0], [0.0, 0.0, 3.0]])], lambda x: x.prod(1),
    differentiable=2)  # fmt: skip
row("prod_others", lambda x: build("prod_others", (x,), {"axis": (0, 2)}), [f(2, 3, 2)],
    lambda x: x.prod((0, 2), keepdims=True) / x, differentiable=1)  # fmt: skip
row("prod_others_grad", lambda x, g: build("prod_others_grad", (x, g), {"axis": None}), [f(3), f(3, seed=1)],
    lambda x, g: np.array([g[1] * x[2] + g[2] * x[1], g[0] * x[2] + g[2] * x[0], g[0] * x[1] + g[1] * x[0]]),
)  # fmt: skip
row("count", lambda x: build("count", (x,), {"axis": (0, -1), "dtype": np.dtype("float32")}), [f(2, 5, 3)],
    lambda x: np.array(6, "float32"))  # fmt: skip
row("cumulative_sum", nf.cumulative_sum, [f(4)], np.cumsum, differentiable=2, unranked=False)
for _options in [{"axis": 1}, {"axis": -2, "include_initial": True}, {"axis": 0, "include_initial": True}]:
    row("cumulative_sum", lambda x, o=_options: nf.cumulative_sum(x, **o), [f(2, 3)],
        lambda x, o=_options: np.cumulative_sum(x, **o), differentiable=2)  # fmt: skip
row("cumulative_sum", lambda x: nf.cumulative_sum(x, axis=0), [i(3, dtype="int8")], np.cumulative_sum)
row("cumulative_sum", lambda x: nf.cumulative_sum(x, axis=0, include_initial=True), [b(3)],
    lambda x: np.cumulative_sum(x, include_initial=True))  # fmt: skip
row("divide", lambda x: nf.var(x, axis=0, correction=1), [f(4, 2)], lambda x: x.var(0, ddof=1), differentiable=2)
row("exp", nf.logsumexp, [np.array([1000.0, 1000.0])], lambda x: np.array(1000 + np.log(2)))
row("exp", nf.logsumexp, [np.array([-np.inf, -np.inf])], lambda x: np.array(-np.inf))

# --- linear algebra --------------------------------------------------------------------------------------------------


def _matmul(x: Array, y: Array, ta: bool, tb: bool) -> Array:
    return (x.swapaxes(-1, -2) if ta else x) @ (y.swapaxes(-1, -2) if tb else y)


for _ta in (False, True):
    for _tb in (False, True):
        _shape_a, _shape_b = ((3, 2) if _ta else (2, 3)), ((4, 3) if _tb else (3, 4))
        for _batch_a, _batch_b in (((), ()), ((2,), (2,)), ((2, 1), (3,)), ((), (2,))):
            row("matmul", lambda x, y, s=_ta, t=_tb: nf.matmul(x, y, transpose_a=s, transpose_b=t),
                [f(*_batch_a, *_shape_a), f(*_batch_b, *_shape_b)],
                lambda x, y, s=_ta, t=_tb: _matmul(x, y, s, t),
                differentiable=2 if len(_batch_a) + len(_batch_b) < 3 else 1)  # fmt: skip
row("matmul", lambda x, y: x @ y, [f(3), f(3, 4)], np.matmul, differentiable=2, unranked=False)
row("matmul", lambda x, y: x @ y, [f(2, 3), f(3)], np.matmul, differentiable=2, unranked=False)
row("matmul", lambda x, y: x @ y, [f(3), f(3, seed=1)], lambda x, y: np.asarray(x @ y), differentiable=2,
    unranked=False)  # fmt: skip
row("matmul", nf.matmul, [i(2, 3), i(3, 2)], np.matmul)
row("matmul", nf.matmul, [f(0, 3, dtype="float32"), f(3, 2, dtype="float32")], np.matmul)
row("multiply", nf.outer, [f(2), f(3)], np.outer, differentiable=2, unranked=False)
row("sum", nf.vecdot, [f(2, 3), f(3)], lambda x, y: (x * y).sum(-1), differentiable=2)
row("matmul", lambda x, y: nf.tensordot(x, y, axes=1), [f(2, 3), f(3, 2)], lambda x, y: np.tensordot(x, y, 1),
    differentiable=2, unranked=False)  # fmt: skip
row("matmul", lambda x, y: nf.tensordot(x, y, axes=((0, -1), (1, 0))), [f(2, 3, 4), f(4, 2)],
    lambda x, y: np.tensordot(x, y, ((0, 2), (1, 0))), differentiable=2, unranked=False)  # fmt: skip
row("matmul", lambda x, y: nf.tensordot(x, y, axes=0), [f(2), f(3)], lambda x, y: np.tensordot(x, y, 0),
    differentiable=2, unranked=False)  # fmt: skip
