"""Rows of the ops whose attributes come as tensors, and of those that index as ONNX does. See `case.py`."""

from __future__ import annotations

from typing import Any

import numpy as np

import nbflow as nf
from nbflow.ops._build import build
from nbflow.testing.cases.case import Case, b, f, i

OPS: list[Case] = []


def row(op: str, make: Any, inputs: Any, expect: Any, **more: Any) -> None:
    OPS.append(Case(op, make, tuple(inputs), expect, **more))


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


# --- slices ----------------------------------------------------------------------------------------------------------

row(
    "slice_dynamic",
    lambda x, a, b, c: nf.slice_dynamic(x, a, b, c, axes=(0, 2)),
    [f(5, 3, 4), ints(1, -1), ints(100, -100), ints(2, -1)],
    lambda x, a, b, c: x[1::2, :, ::-1],
    differentiable=2,
)
row(
    "slice_dynamic",
    lambda x, a, b: nf.slice_dynamic(x, a, b, axes=(-1,)),
    [f(2, 5), ints(-3), ints(-1)],
    lambda x, a, b: x[:, -3:-1],
    differentiable=1,
)
row(
    "slice_dynamic_grad",
    lambda v, s, a, b, c: build("slice_dynamic_grad", (v, s, a, b, c), {"axes": (1,), "rank": 2}),
    [f(2, 2), ints(2, 5), ints(0), ints(4), ints(2)],
    lambda v, s, a, b, c: np.stack([v[:, 0], 0 * v[:, 0], v[:, 1], 0 * v[:, 0], 0 * v[:, 0]], axis=1),
    differentiable=2,
)

# --- paddings --------------------------------------------------------------------------------------------------------

row(
    "pad_dynamic",
    nf.pad_dynamic,
    [f(2, 3), ints(1, 0, 0, 2), np.float64(7.0)],
    lambda x, w, v: np.pad(x, ((1, 0), (0, 2)), constant_values=7.0),
    differentiable=2,
    unranked=False,
)
row(
    "pad_dynamic",
    nf.pad_dynamic,
    [f(4, 3), ints(-1, 1, -1, -1), np.float64(7.0)],
    lambda x, w, v: np.pad(x[1:3, :2], ((0, 0), (1, 0)), constant_values=7.0),
    differentiable=2,
    unranked=False,
)
row(
    "pad_crop",
    lambda v, w, s: build("pad_crop", (v, w, s)),
    [f(3, 4), ints(1, -1, 0, 0), ints(2, 5)],
    lambda v, w, s: np.pad(v[1:], ((0, 0), (1, 0))),
    differentiable=2,
)
for mode in ("reflect", "edge", "wrap"):
    row(
        "pad_places",
        lambda n, w, mode=mode: nf.pad_places(n, w, mode),
        [np.int64(5), ints(3, 2)],
        lambda n, w, mode=mode: np.pad(np.arange(5), (3, 2), mode=mode),
    )
row(
    "pad_places",
    lambda n, w: nf.pad_places(n, w, "edge"),
    [np.int64(5), ints(-1, -2)],
    lambda n, w: np.arange(1, 3),
)

# --- ranges and shapes -----------------------------------------------------------------------------------------------

row(
    "range_dynamic",
    nf.range_dynamic,
    [np.float32(1), np.float32(5), np.float32(1.5)],
    lambda a, b, c: np.arange(a, b, c, np.float32),
)
row(
    "range_dynamic", nf.range_dynamic, [np.int32(10), np.int32(4), np.int32(-3)], lambda *a: np.array([10, 7], np.int32)
)
row("broadcast_dims", nf.broadcast_dims, [ints(3, 1), ints(2, 1, 4)], lambda *a: ints(2, 3, 4))

# --- an index an element ---------------------------------------------------------------------------------------------


def _put(x: np.ndarray, indices: np.ndarray, updates: np.ndarray) -> np.ndarray:
    out = x.copy()
    np.put_along_axis(out, indices, updates, 0)
    return out


_PLACES = np.array([[2, 0, 1], [0, 3, 3]])
_APART = np.array([[2, 0, 1], [0, 3, 2]])
row(
    "gather_elements",
    lambda x, i: nf.gather_elements(x, i, axis=0),
    [f(4, 3), _PLACES],
    lambda x, i: np.take_along_axis(x, i, 0),
    differentiable=2,
)
row(
    "gather_elements",
    lambda x, i: nf.gather_elements(x, i, axis=-1),
    [f(3, 4), np.array([[-1, 0]])],
    lambda x, i: x[:1, [-1, 0]],
    differentiable=1,
)
row(
    "scatter_elements",
    lambda x, i, u: nf.scatter_elements(x, i, u, axis=0),
    [f(4, 3), _APART, f(2, 3, seed=1)],
    _put,
    differentiable=2,
)


_COMBINE = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def _scattered(x: np.ndarray, indices: np.ndarray, updates: np.ndarray, reduction: str) -> np.ndarray:
    """One update after the other, along dimension 0."""
    out = x.copy()
    for row_, column in np.ndindex(indices.shape):
        place = indices[row_, column], column
        out[place] = _COMBINE[reduction](out[place], updates[row_, column])
    return out


for reduction in _COMBINE:
    row(
        "scatter_elements",
        lambda x, i, u, r=reduction: nf.scatter_elements(x, i, u, axis=0, reduction=r),
        [f(4, 3), _PLACES, f(2, 3, seed=1)],
        lambda x, i, u, r=reduction: _scattered(x, i, u, r),
        differentiable=2 if reduction == "add" else 0,
    )

# --- an index for the first dimensions -------------------------------------------------------------------------------


def _put_nd(x: np.ndarray, indices: np.ndarray, updates: np.ndarray) -> np.ndarray:
    out = x.copy()
    out[tuple(indices.T)] = updates
    return out


_PAIRS = np.array([[0, 1], [2, 0], [-1, 2]])
row(
    "scatter_nd",
    nf.scatter_nd,
    [f(3, 3, 2), _PAIRS, f(3, 2, seed=1)],
    _put_nd,
    differentiable=2,
    unranked=False,
    dynamic=False,
    note="the gradient needs the length of an index",
)
row(
    "scatter_nd",
    lambda x, i, u: nf.scatter_nd(x, i, u, reduction="add"),
    [f(3, 2), np.array([[1], [1]]), f(2, 2, seed=1)],
    lambda x, i, u: x + np.stack([0 * u[0], u[0] + u[1], 0 * u[0]]),
    differentiable=2,
    dynamic=False,
    note="the gradient needs the length of an index",
)
row(
    "scatter_nd",
    lambda x, i, u: nf.scatter_nd(x, i, u, reduction="max"),
    [f(3, 3), _PAIRS, f(3, seed=1)],
    lambda x, i, u: _put_nd(x, i, np.maximum(u, x[tuple(i.T)])),
    dynamic=False,
)
row(
    "gather_nd",
    nf.gather_nd,
    [f(3, 3, 2), _PAIRS],
    lambda x, i: x[tuple(i.T)],
    differentiable=2,
    dynamic=False,
    note="the length of an index must be known",
)
row(
    "gather_nd",
    lambda x, i: nf.gather_nd(x, i, batch_dims=1),
    [f(2, 3, 2), np.array([[2], [0]])],
    lambda x, i: np.stack([x[0, 2], x[1, 0]]),
    differentiable=1,
    dynamic=False,
)


# --- distinct slices -------------------------------------------------------------------------------------------------

row(
    "unique_slices",
    lambda x: nf.unique_slices(x, axis=0),
    [np.array([[1, 0], [0, 1], [1, 0]])],
    lambda x: [np.array([[0, 1], [1, 0]]), ints(1, 0), ints(1, 0, 1), ints(1, 2)],
)
row(
    "unique_slices",
    lambda x: nf.unique_slices(x, ascending=False),
    [np.array([3, 1, 3, 2, 1])],
    lambda x: [ints(3, 1, 2), ints(0, 1, 3), ints(0, 1, 0, 2, 1), ints(2, 2, 1)],
)
row("unique_slices", lambda x: nf.unique_slices(x)[0], [b(3, 4)], np.unique)

# --- bits ------------------------------------------------------------------------------------------------------------

row("bitcast", lambda x: nf.bitcast(x, "int64"), [f(2, 3)], lambda x: x.view(np.int64))
row(
    "bitcast",
    lambda x: nf.bitcast(x, "float8_e5m2"),
    [i(3, low=0, high=90, dtype="uint8")],
    None,
    note="test_narrow.py",
)

# --- n-grams ---------------------------------------------------------------------------------------------------------

row(
    "ngram_counts",
    lambda x: nf.ngram_counts(x, [(2,), (2, 3), (3, 2, 2)], skips=1),
    [np.array([[2, 3, 2, 3, 2], [1, 2, 2, 2, 3]])],
    # (2, 3): next to each other, then with one between. (3, 2, 2) of the first row would reach beyond its end.
    lambda x: np.array([[3, 2, 0], [3, 2, 0]]),
)
row("ngram_counts", lambda x: nf.ngram_counts(x, [(1, 1)], skips=2), [ints(1, 1, 0, 1)], lambda x: ints(3))
