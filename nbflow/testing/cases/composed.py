"""Rows of `nf.einsum` and of the functions that other ops make up; see `case.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import nbflow as nf
from nbflow.ops import ragged
from nbflow.testing.cases.case import Case, b, f, i

OPS: list[Case] = []


def row(op: str, build: Callable[..., Any], inputs: Any, expect: Callable[..., Any] | None, **more: Any) -> None:
    OPS.append(Case(op, build, tuple(inputs), expect, **more))


# --- running products, differences -----------------------------------------------------------------------------------

_zeros = np.array([1.5, 0.0, 2.0, 0.0, -1.0])
for _axis in (0, 1, -1, -2):
    for _initial in (False, True):
        row("cumulative_prod", lambda x, a=_axis, n=_initial: nf.cumulative_prod(x, axis=a, include_initial=n),
            [f(3, 4)], lambda x, a=_axis, n=_initial: np.cumulative_prod(x, axis=a, include_initial=n),
            differentiable=2, unranked=_axis == -1)  # fmt: skip
row("cumulative_prod", nf.cumulative_prod, [_zeros], np.cumprod, differentiable=2, unranked=False)
row("cumulative_prod", lambda x: nf.cumulative_prod(x, axis=0), [i(5, dtype="int8")], np.cumprod)
row("cumulative_prod", lambda x: nf.cumulative_prod(x, axis=0), [i(5, low=0, dtype="uint8")], np.cumprod)
row("cumulative_prod", lambda x: nf.cumulative_prod(x, axis=0), [b(3)], np.cumprod)
row("cumulative_prod", lambda x: nf.cumulative_prod(x, axis=0, dtype="float64"), [f(3, dtype="float32")],
    lambda x: np.cumprod(x, dtype="float64"), differentiable=1, unranked=False)  # fmt: skip
for _axis in (0, -1):
    for _n in (1, 2):
        row("subtract", lambda x, a=_axis, n=_n: nf.diff(x, axis=a, n=n), [f(3, 4)],
            lambda x, a=_axis, n=_n: np.diff(x, n, a), differentiable=2)  # fmt: skip
row("concat", lambda x, y: nf.diff(x, prepend=y, append=y), [f(2, 3), f(2, 1)],
    lambda x, y: np.diff(x, prepend=y, append=y), differentiable=2)  # fmt: skip
row("subtract", nf.diff, [i(6)], np.diff)

# --- grids, conversion, creation -------------------------------------------------------------------------------------

for _order in ("xy", "ij"):
    row("broadcast_to", lambda *x, o=_order: nf.meshgrid(*x, indexing=o), [f(2), f(3), f(4)],
        lambda *x, o=_order: np.meshgrid(*x, indexing=o), differentiable=2)  # fmt: skip
row("broadcast_to", nf.meshgrid, [f(2), f(3)], np.meshgrid, differentiable=2)
row("expand_dims", nf.meshgrid, [f(2)], np.meshgrid)
row("broadcast_to", nf.broadcast_arrays, [f(2, 1), f(3), i(2, 1)], np.broadcast_arrays, differentiable=2)
row("full", lambda: nf.empty((2, 3)), [], lambda: np.zeros((2, 3), "float32"))
row("full", lambda x: nf.empty_like(x, dtype="int64"), [f(2, 3)], lambda x: np.zeros((2, 3), "int64"))
row("astype", lambda x: nf.asarray(x, dtype="float32"), [f(3)], lambda x: x.astype("float32"))
row("constant", lambda: nf.asarray([1.0, 2.0]), [], lambda: np.array([1, 2], "float32"))
row("constant", lambda: nf.from_dlpack(np.arange(3)), [], lambda: np.arange(3))
row("constant", lambda: nf.asarray([nf.e, nf.pi, nf.inf, nf.nan]), [],
    lambda: np.array([np.e, np.pi, np.inf, np.nan], "float32"))  # fmt: skip

# --- einsum ----------------------------------------------------------------------------------------------------------

# (subscripts, shapes, an op it must be made of)
EINSUMS: list[tuple[str, tuple[tuple[int, ...], ...], str]] = [
    ("ij,jk->ik", ((2, 3), (3, 4)), "matmul"),
    ("ij,jk", ((2, 3), (3, 4)), "matmul"),
    ("ij,kj->ki", ((2, 3), (4, 3)), "matmul"),
    ("bij,bjk->bik", ((2, 2, 3), (2, 3, 2)), "matmul"),
    ("i,i", ((3,), (3,)), "matmul"),
    ("i,j->ij", ((2,), (3,)), "multiply"),
    ("i,i->i", ((3,), (3,)), "multiply"),
    ("ij->ji", ((2, 3),), "permute_dims"),
    ("ba", ((2, 3),), "permute_dims"),
    ("ii->i", ((3, 3),), "diagonal"),
    ("ii", ((3, 3),), "diagonal"),
    ("iji->j", ((2, 3, 2),), "diagonal"),
    ("iii->i", ((3, 3, 3),), "diagonal"),
    ("ij->", ((2, 3),), "sum"),
    ("ij,k->i", ((2, 3), (4,)), "sum"),
    ("ii,ij->j", ((3, 3), (3, 2)), "diagonal"),
    ("abcd,cdef->abef", ((2, 1, 3, 2), (3, 2, 2, 1)), "matmul"),
    ("abcd,dcae->eb", ((2, 2, 3, 2), (2, 3, 2, 2)), "matmul"),
    ("ij,jk,kl->il", ((2, 3), (3, 2), (2, 4)), "matmul"),
    ("a,ab,abc->abc", ((2,), (2, 3), (2, 3, 2)), "multiply"),
    ("ea,fb,abcd,gc,hd->efgh", ((2, 2), (2, 2), (2, 2, 2, 2), (2, 2), (2, 2)), "matmul"),
    (" i j , j k -> i k ", ((2, 3), (3, 4)), "matmul"),
    ("ij,jk->ik", ((0, 3), (3, 2)), "matmul"),
    ("ij,jk->ik", ((2, 0), (0, 2)), "matmul"),
]
ELLIPSES: list[tuple[str, tuple[tuple[int, ...], ...], str]] = [
    ("...ij,...jk->...ik", ((2, 2, 3), (2, 3, 2)), "matmul"),
    ("...ij,...jk", ((2, 2, 3), (3, 2)), "matmul"),
    ("...i,...i->...", ((2, 1, 3), (4, 3)), "matmul"),
    ("i...,i...->...", ((3, 2), (3, 1)), "matmul"),
    ("...ii->...i", ((2, 3, 3),), "diagonal"),
    ("b...,b->...", ((2, 3), (2,)), "matmul"),
]
for _subscripts, _shapes, _op in (*EINSUMS, *ELLIPSES):
    row(_op, lambda *x, s=_subscripts: nf.einsum(s, *x), [f(*shape, seed=n) for n, shape in enumerate(_shapes)],
        lambda *x, s=_subscripts: np.asarray(np.einsum(s, *x)), rtol=1e-12,
        differentiable=0 if 0 in sum(_shapes, ()) else 2 if len(_shapes) < 4 else 1,
        unranked="..." not in _subscripts and _op != "diagonal")  # fmt: skip
row("matmul", lambda x, y: nf.einsum("ij,jk->ik", x, y), [i(2, 3), i(3, 2)], np.matmul)
row("sum", lambda x: nf.einsum("ij->i", x), [i(2, 3, dtype="int8")], lambda x: np.einsum("ij->i", x))
row("astype", lambda x, y: nf.einsum("i,i->i", x, y), [f(3, dtype="float32"), f(3)], lambda x, y: x * y)


def _padded(x: np.ndarray, sizes: list[int]) -> np.ndarray:
    return np.pad(x, [(0, n - d) for n, d in zip(sizes, x.shape, strict=True)])


row("crop_to", lambda x: ragged.crop_to(x, nf.constant(np.array([2, 1]))), [f(3, 2)], lambda x: x[:2, :1],
    differentiable=2)  # fmt: skip
row("crop_to", lambda x: ragged.crop_to(x, nf.constant(np.array([0]))), [f(3)], lambda x: x[:0])
row("pad_to", lambda x: ragged.pad_to(x, nf.constant(np.array([3, 4]))), [f(3, 2)], lambda x: _padded(x, [3, 4]),
    differentiable=2)  # fmt: skip
row("pad_to", lambda x: ragged.pad_to(x, nf.constant(np.array([2]))), [i(0)], lambda x: _padded(x, [2]))


# --- on the way ------------------------------------------------------------------------------------------------------

row("compressed", nf.compressed, [f(3)], lambda x: x, differentiable=2)
row("compressed", lambda x: nf.compressed(x, "float16"), [f(3, dtype="float64")], lambda x: x, differentiable=2)
