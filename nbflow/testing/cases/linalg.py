"""Rows of the families of linear algebra, searching and sets, and the parts of numbers; see `case.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import nbflow as nf
from nbflow.graph import Tensor
from nbflow.testing.cases.case import Case, b, f, i

OPS: list[Case] = []


def row(op: str, build: Callable[..., Any], inputs: Any, expect: Callable[..., Any] | None, **more: Any) -> None:
    OPS.append(Case(op, build, tuple(inputs), expect, **more))


def z(*shape: int, dtype: str = "complex128", seed: int = 0) -> np.ndarray:
    """Complex numbers."""
    return (f(*shape, seed=seed) + 1j * f(*shape, seed=seed + 1)).astype(dtype)


def regular(*shape: int, seed: int = 0) -> np.ndarray:
    """Square matrices far from singular."""
    return f(*shape, low=-1, high=1, seed=seed) + 3 * np.eye(shape[-1])


def spd(x: Tensor) -> Tensor:
    """A symmetric positive definite matrix, its eigenvalues apart: only symmetric ones have a gradient to check."""
    grading = np.diag(np.arange(1.0, 1 + x.shape[-1])) if x.shape and x.shape[-1] else np.diag(np.arange(1.0, 4.0))
    return x @ nf.matrix_transpose(x) + grading


def np_spd(x: np.ndarray) -> np.ndarray:
    return x @ x.swapaxes(-1, -2) + np.diag(np.arange(1.0, 1 + x.shape[-1]))


# --- parts of numbers ------------------------------------------------------------------------------------------------

_EDGES = np.array([0.0, -0.0, 1.5, -1.5, np.inf, -np.inf, np.nan])
row("copysign", nf.copysign, [f(2, 3), f(2, 3, seed=1)], np.copysign, differentiable=2)
row("copysign", nf.copysign, [f(2, 1), f(3, seed=1)], np.copysign, differentiable=2)
row("copysign", nf.copysign, [_EDGES, _EDGES[::-1].copy()], np.copysign)
row("copysign", lambda x: nf.copysign(x, -1.0), [f(3, dtype="float32")], lambda x: -np.abs(x))
row("nextafter", nf.nextafter, [f(2, 1), f(3, seed=1)], np.nextafter)
row("nextafter", nf.nextafter, [_EDGES, _EDGES[::-1].copy()], np.nextafter)
row("signbit", nf.signbit, [_EDGES], np.signbit)
row("signbit", nf.signbit, [f(2, 3, dtype="float32")], np.signbit)
for _dtype in ("complex64", "complex128"):
    row("real", nf.real, [z(2, 3, dtype=_dtype)], np.real)
    row("imag", nf.imag, [z(2, 3, dtype=_dtype)], np.imag)
    row("conj", nf.conj, [z(2, 3, dtype=_dtype)], np.conj)
row("identity", nf.real, [f(3)], np.real, differentiable=2)
row("identity", nf.conj, [f(3)], np.conj, differentiable=2)
row("full", nf.imag, [i(3)], np.zeros_like)

row("conj", nf.vecdot, [z(2, 3), z(2, 3, seed=5)], np.vecdot)

# --- searching and sets ----------------------------------------------------------------------------------------------

row("nonzero", nf.nonzero, [i(3, 4, low=0, high=2)], np.nonzero, unranked=False)
row("nonzero", nf.nonzero, [b(5)], np.nonzero, unranked=False)
row("nonzero", nf.nonzero, [f(0, 3)], np.nonzero, unranked=False)
row("sum", nf.count_nonzero, [i(3, 4, low=0, high=2)], lambda x: np.array(np.count_nonzero(x)))
row("sum", lambda x: nf.count_nonzero(x, axis=1, keepdims=True), [i(3, 4, low=0, high=3)],
    lambda x: np.count_nonzero(x, axis=1, keepdims=True))  # fmt: skip
row("sum", lambda x: nf.count_nonzero(x, axis=(0, 1)), [f(3, 4)], lambda x: np.array(12))
_sorted = np.array([1.0, 2.0, 2.0, 5.0])
row("searchsorted", nf.searchsorted, [_sorted, np.array([[0.0, 2.0], [5.0, 9.0]])], np.searchsorted)
row("searchsorted", lambda x, v: nf.searchsorted(x, v, side="right"), [_sorted, np.array([2.0, 5.0])],
    lambda x, v: np.searchsorted(x, v, "right"))  # fmt: skip
row("searchsorted", lambda x, v: nf.searchsorted(x, v, sorter=nf.argsort(x)), [f(6), f(2, 2, seed=1)],
    lambda x, v: np.searchsorted(np.sort(x), v))  # fmt: skip
row("searchsorted", nf.searchsorted, [i(4, low=0), np.array(2)], lambda x, v: np.array(np.searchsorted(x, v)))
row("isin", nf.isin, [i(3, 4), i(2, 2, seed=1)], np.isin)
row("isin", lambda x: nf.isin(x, [1, 2], invert=True), [i(9)], lambda x: np.isin(x, [1, 2], invert=True))
row("isin", nf.isin, [f(0, 3), f(2)], np.isin)


def _unique(x: np.ndarray) -> list[np.ndarray]:
    """The definition, said once more: first places in order of value."""
    flat = x.reshape(-1).tolist()
    values = sorted(set(flat))
    return [
        np.array(values, x.dtype),
        np.array([flat.index(v) for v in values], "int64"),
        np.array([values.index(v) for v in flat], "int64").reshape(x.shape),
        np.array([flat.count(v) for v in values], "int64"),
    ]


row("unique", nf.unique_all, [i(3, 4)], _unique)
row("unique", nf.unique_all, [b(7)], _unique)
row("unique", nf.unique_all, [f(0)], _unique)
row("unique", nf.unique_all, [np.array(3.0)], _unique)
row("unique", nf.unique_counts, [i(9)], lambda x: [_unique(x)[0], _unique(x)[3]])
row("unique", nf.unique_inverse, [i(2, 5)], lambda x: [_unique(x)[0], _unique(x)[2]])
row("unique", nf.unique_values, [i(9)], lambda x: _unique(x)[0])
row("unique", nf.unique_all, [np.array([np.nan, 1.0, np.nan])],
    lambda x: [np.sort(x), np.array([1, 0, 2]), np.array([1, 0, 2]), np.ones(3, "int64")])  # fmt: skip

# --- diagonal, trace, cross ------------------------------------------------------------------------------------------

for _shape in ((3, 3), (2, 3, 4), (4, 2)):
    for _k in (0, 1, -1, 2, -2):
        row("diagonal", lambda x, k=_k: nf.linalg.diagonal(x, offset=k), [f(*_shape)],
            lambda x, k=_k: np.diagonal(x, k, -2, -1), differentiable=2)  # fmt: skip
row("diagonal", lambda x: nf.linalg.diagonal(x, offset=9), [f(2, 3)], lambda x: np.zeros(0))
row("diagonal", nf.linalg.trace, [f(2, 3, 4)], lambda x: np.trace(x, axis1=-2, axis2=-1), differentiable=2)
row("sum", lambda x: nf.linalg.trace(x, offset=1), [i(3, 3)], lambda x: np.array(np.trace(x, 1)))
row("diagonal_grad", lambda x: nf.gradients(nf.sum(nf.linalg.diagonal(x * x)), [x])[0], [f(2, 3)],
    lambda x: np.where(np.eye(2, 3, dtype=bool), 2 * x, 0), differentiable=1)  # fmt: skip
row("roll", nf.linalg.cross, [f(2, 3), f(2, 3, seed=1)], np.cross, differentiable=2)
row("roll", nf.linalg.cross, [f(3), f(4, 3)], np.cross, differentiable=2)
row("roll", lambda x, y: nf.linalg.cross(x, y, axis=0), [f(3, 2), f(3, 2, seed=1)],
    lambda x, y: np.cross(x, y, axis=0), differentiable=2, unranked=False)  # fmt: skip

# --- systems ---------------------------------------------------------------------------------------------------------

for _batch_a, _batch_b in (((), ()), ((2,), (2,)), ((), (2,)), ((2, 1), (3,))):
    _order = 2 if len(_batch_a) + len(_batch_b) < 3 else 1
    row("solve", nf.linalg.solve, [regular(*_batch_a, 3, 3), f(*_batch_b, 3, 2)], np.linalg.solve,
        differentiable=_order)  # fmt: skip
row("solve", nf.linalg.solve, [regular(2, 3, 3), f(3)], np.linalg.solve, differentiable=2, unranked=False)
row("solve", nf.linalg.solve, [regular(3, 3).astype("float32"), f(3, 2, dtype="float32")], np.linalg.solve)
row("solve", nf.linalg.solve, [z(3, 3), z(3, 2, seed=3)], np.linalg.solve, rtol=1e-12)
for _batch in ((), (2,)):
    row("inv", nf.linalg.inv, [regular(*_batch, 3, 3)], np.linalg.inv, differentiable=2)
    row("det", nf.linalg.det, [regular(*_batch, 3, 3)], lambda x: np.asarray(np.linalg.det(x)), differentiable=2)
    row("slogdet", nf.linalg.slogdet, [-regular(*_batch, 3, 3)],
        lambda x: [np.asarray(v) for v in np.linalg.slogdet(x)], differentiable=2)  # fmt: skip
row("slogdet", lambda x: nf.linalg.slogdet(x)[0], [np.zeros((2, 2))], lambda x: np.array(0.0))
row("inv", nf.linalg.inv, [z(2, 2)], np.linalg.inv, rtol=1e-12)
row("det", nf.linalg.det, [f(0, 2, 2)], np.linalg.det)
for _shape in ((4, 2), (2, 4), (3, 3), (2, 3, 2)):
    row("pinv", nf.linalg.pinv, [f(*_shape)], np.linalg.pinv, differentiable=2 if len(_shape) == 2 else 1, rtol=1e-12)
row("pinv", lambda x: nf.linalg.pinv(x, rtol=0.5), [np.diag([4.0, 3.0, 1.0])], lambda x: np.diag([0.25, 1 / 3, 0.0]))
for _n in (0, 1, 2, 3, 5, -1, -2):
    row("identity", lambda x, n=_n: nf.linalg.matrix_power(x, n), [regular(2, 2, 2)],
        lambda x, n=_n: np.linalg.matrix_power(x, n), differentiable=2 if _n in (3, -2) else 0, rtol=1e-12)  # fmt: skip

# --- decompositions --------------------------------------------------------------------------------------------------

for _batch in ((), (2,)):
    row("cholesky", lambda x: nf.linalg.cholesky(spd(x)), [f(*_batch, 3, 3)],
        lambda x: np.linalg.cholesky(np_spd(x)), differentiable=2)  # fmt: skip
    row("eigh", lambda x: nf.linalg.eigh(spd(x)), [f(*_batch, 3, 3)],
        lambda x: list(np.linalg.eigh(np_spd(x))), differentiable=2, rtol=1e-12)  # fmt: skip
row("cholesky", lambda x: nf.linalg.cholesky(spd(x), upper=True), [f(3, 3)],
    lambda x: np.linalg.cholesky(np_spd(x)).T, differentiable=2)  # fmt: skip
row("cholesky", lambda x: nf.linalg.cholesky(x, upper=True), [np.array([[2, 1j], [-1j, 2]])],
    lambda x: np.linalg.cholesky(x, upper=True))  # fmt: skip
row("eigh", lambda x: nf.linalg.eigvalsh(spd(x)), [f(3, 3)], lambda x: np.linalg.eigvalsh(np_spd(x)),
    differentiable=2, rtol=1e-12)  # fmt: skip
row("eigh", lambda x: nf.linalg.eigh(spd(x))[1], [f(3, 3)], lambda x: np.linalg.eigh(np_spd(x))[1],
    differentiable=2, rtol=1e-12)  # fmt: skip
row("eigh", nf.linalg.eigvalsh, [np.array([[2, 1j], [-1j, 2]])], lambda x: np.array([1.0, 3.0]))
for _shape in ((3, 3), (4, 2), (2, 4), (2, 3, 2), (1, 3)):
    _order = 2 if len(_shape) == 2 else 1
    row("qr", nf.linalg.qr, [f(*_shape)], lambda x: list(np.linalg.qr(x)), rtol=1e-12, dynamic=False,
        differentiable=_order, note="the gradient needs known sizes; dynamic rows follow")  # fmt: skip
    row("qr", nf.linalg.qr, [f(*_shape)], lambda x: list(np.linalg.qr(x)), rtol=1e-12)
    row("svd", lambda x: nf.linalg.svd(x, full_matrices=False), [f(*_shape)],
        lambda x: list(np.linalg.svd(x, full_matrices=False)), differentiable=_order, rtol=1e-12)  # fmt: skip
    row("svd", nf.linalg.svd, [f(*_shape)], lambda x: list(np.linalg.svd(x)), rtol=1e-12)
    row("svd", nf.linalg.svdvals, [f(*_shape)], lambda x: np.linalg.svd(x, compute_uv=False), differentiable=_order,
        rtol=1e-12)  # fmt: skip
row("svd", lambda x: nf.linalg.svd(x)[1], [f(2, 3)], lambda x: np.linalg.svd(x)[1], differentiable=2, rtol=1e-12)
row("svd", nf.linalg.svd, [f(3, 3)], lambda x: list(np.linalg.svd(x)), differentiable=2, rtol=1e-12, dynamic=False,
    note="the gradient of all vectors needs a square of known size")  # fmt: skip
row("qr", lambda x: nf.linalg.qr(x, mode="complete"), [f(4, 2)], lambda x: list(np.linalg.qr(x, "complete")),
    rtol=1e-12)  # fmt: skip
row("qr", lambda x: nf.linalg.qr(x, mode="complete"), [f(2, 3)], lambda x: list(np.linalg.qr(x, "complete")),
    differentiable=2, dynamic=False, rtol=1e-12)  # fmt: skip

# --- norms -----------------------------------------------------------------------------------------------------------

for _ord in (2, 1, 3, 0.5, np.inf, -np.inf):
    row({2: "sqrt", 0.5: "square", 1: "sum", np.inf: "max", -np.inf: "min"}.get(_ord, "pow"),
        lambda x, o=_ord: nf.linalg.vector_norm(x, axis=1, ord=o), [f(2, 3)],
        lambda x, o=_ord: np.linalg.vector_norm(x, axis=1, ord=o), differentiable=2)  # fmt: skip
row("sqrt", lambda x: nf.linalg.vector_norm(x, keepdims=True), [f(2, 3)],
    lambda x: np.linalg.vector_norm(x, keepdims=True), differentiable=2)  # fmt: skip
row("sum", lambda x: nf.linalg.vector_norm(x, ord=0), [np.array([0.0, 1.0, 2.0])], lambda x: np.array(2.0))
row("real", nf.linalg.vector_norm, [z(3)], lambda x: np.asarray(np.linalg.vector_norm(x)))
row("sqrt", lambda x: nf.gradients(nf.linalg.vector_norm(x), [x])[0], [np.zeros(2)], np.zeros_like)
for _ord, _op in (("fro", "sqrt"), ("nuc", "svd"), (2, "svd"), (-2, "svd"), (1, "max"), (-1, "min"), (np.inf, "max"),
                  (-np.inf, "min")):  # fmt: skip
    for _keep in (False, True):
        row(_op, lambda x, o=_ord, k=_keep: nf.linalg.matrix_norm(x, ord=o, keepdims=k), [f(2, 3, 2)],
            lambda x, o=_ord, k=_keep: np.linalg.matrix_norm(x, ord=o, keepdims=k), differentiable=1 + (not _keep),
            rtol=1e-12)  # fmt: skip
row("svd", nf.linalg.matrix_rank, [np.array([[1.0, 2.0], [2.0, 4.0]])], lambda x: np.array(1))
row("svd", nf.linalg.matrix_rank, [f(2, 3, 4)], lambda x: np.array([3, 3]))
row("svd", lambda x: nf.linalg.matrix_rank(x, rtol=0.3), [np.diag([4.0, 3.0, 1.0])], lambda x: np.array(2))

# --- Fourier transforms ----------------------------------------------------------------------------------------------

for _name in ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft"):
    _real_input = _name in ("rfft", "ihfft")
    _mine, _theirs = getattr(nf.fft, _name), getattr(np.fft, _name)
    _op = {"fft": "fftn", "ifft": "ifftn", "rfft": "rfftn", "ihfft": "rfftn"}.get(_name, "irfftn")
    for _inputs in ([f(5)], [f(2, 6)]) if _real_input else ([z(5)], [z(2, 6)], [z(4, dtype="complex64")]):
        for _args in ({}, {"n": 3}, {"n": 8, "norm": "ortho"}, {"axis": 0, "norm": "forward"}):
            row(_op, lambda x, g=_mine, a=_args: g(x, **a), _inputs, lambda x, g=_theirs, a=_args: g(x, **a))
row("fftn", nf.fft.fft, [f(5, dtype="float32")], np.fft.fft)
row("irfftn", nf.fft.irfft, [f(4)], np.fft.irfft)
for _name in ("fftn", "ifftn", "rfftn", "irfftn"):
    _mine, _theirs = getattr(nf.fft, _name), getattr(np.fft, _name)
    for _args in ({}, {"axes": (0, -1)}, {"s": (3, 5)}, {"s": (4, 6), "axes": (2, 0), "norm": "ortho"}):
        _full = {"axes": (-2, -1), **_args} if "s" in _args else _args
        row(_name, lambda x, g=_mine, a=_args: g(x, **a), [f(2, 3, 4) if _name == "rfftn" else z(2, 3, 4)],
            lambda x, g=_theirs, a=_full: g(x, **a))  # fmt: skip
for _n in (1, 4, 5):
    row("constant", lambda n=_n: nf.fft.fftfreq(n, d=0.5, dtype="float64"), [], lambda n=_n: np.fft.fftfreq(n, 0.5))
    row("constant", lambda n=_n: nf.fft.rfftfreq(n), [], lambda n=_n: np.fft.rfftfreq(n).astype("float32"))
for _name in ("fftshift", "ifftshift"):
    _mine, _theirs = getattr(nf.fft, _name), getattr(np.fft, _name)
    for _axes in (None, 0, (0, 1)):
        row(_name, lambda x, g=_mine, a=_axes: g(x, axes=a), [f(4, 5)], lambda x, g=_theirs, a=_axes: g(x, a),
            differentiable=2)  # fmt: skip

# --- indexing by tensors and masks -----------------------------------------------------------------------------------

_i, _j = np.array([0, 2, -1]), np.array([1, 0, 1])
_table = np.array([[0, 1], [2, 0]])


def pick(op: str, key: Callable[..., Any], inputs: Any, **more: Any) -> None:
    """`x[key(...)]` in both worlds."""
    order = more.pop("differentiable", 2)
    row(op, lambda x, *k: x[key(*k)], inputs, lambda x, *k: np.asarray(x[key(*k)]), differentiable=order, **more)


_x3, _x4 = f(3, 3, 4), f(3, 2, 3, 4)
pick("gather_nd", lambda a, b: (a, b), [_x3, _i, _j])
pick("gather_nd", lambda a, b: (a, b), [_x3, _table, np.array([1, 2])])
pick("gather_nd", lambda a, b: (slice(None), a, b), [_x3, _i, _j])
pick("gather_nd", lambda a, b: (..., a, b), [_x3, _i, _j])
pick("gather_nd", lambda a, b: (..., a, b, slice(1, 3)), [_x3, _i, _j])
pick("gather_nd", lambda a, b: (a, slice(None), b), [_x3, _i, _j], unranked=False)
pick("gather_nd", lambda a, b: (a, None, b), [_x3, _i, _j], unranked=False)
pick("gather_nd", lambda a, b: (slice(None), a, ..., b), [_x3, _i, _j], unranked=False)
pick("gather_nd", lambda a, b: (slice(None), a, slice(1, None), b), [_x4, _j, _i], unranked=False, differentiable=1)
pick("gather_nd", lambda a, b: (1, a, b), [_x3, _i, _j])
pick("gather_nd", lambda a, b, c: (a, b, c), [_x3, _i, _j, np.array(2)])
pick("gather_nd", lambda a, b: (a[:0], b[:0]), [_x3, _i, _j], differentiable=1)
pick("take", lambda a: (0, slice(None), a), [_x3, _i], unranked=False)
pick("take", lambda a: (a, 0), [_x3, _i])
pick("take", lambda a: (slice(1, None), a), [_x3, _i])
pick("take", lambda a: (None, ..., a), [_x3, _i])
pick("take", lambda: [], [_x3])
pick("take", lambda: [2, 0], [_x3])
pick("take", lambda m: m, [f(5), b(5)], unranked=False)
pick("take", lambda m: m, [_x3, b(3)], unranked=False)
pick("gather_nd", lambda m: m, [_x3, b(3, 3)], unranked=False)
pick("gather_nd", lambda m: m, [_x3, b(3, 3, 4)], unranked=False)
pick("gather_nd", lambda m: (slice(None), m), [_x3, b(3, 4)], unranked=False)
pick("take", lambda m: (..., m), [_x3, b(4)], unranked=False)
pick("take", lambda m: (1, m, slice(0, 2)), [_x3, b(3)], unranked=False)
pick("gather_nd", lambda a, m: (a, m), [_x3, np.array(1), b(3, 4)], unranked=False)
pick("gather_nd", lambda m: (m, slice(None), np.array(2)), [_x3, b(3)], unranked=False)
pick("take", lambda m: m, [f(3, 2), np.zeros(3, bool)], unranked=False)


def _scattered(x: np.ndarray, p: np.ndarray, q: np.ndarray) -> np.ndarray:
    out = np.zeros_like(x)
    for a, c in zip(p, q, strict=True):
        out[a, c] += 3 * x[a, c] ** 2
    return out


row("scatter_nd_add", lambda x, p, q: nf.gradients(nf.sum(x[p, q] ** 3.0), [x])[0], [f(3, 3), _i, _j], _scattered,
    differentiable=1)  # fmt: skip
