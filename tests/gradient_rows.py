"""What the gradient matrix covers: for each op, a product of shapes, axes and further arguments.

A row is (op, function, arrays). Domains keep clear of kinks: no two elements of an array are alike, and differences
that a sign depends on are far above the step of the finite differences.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

import nbflow as nf
from nbflow.ops._build import build

A = np.ndarray[Any, Any]
Row = tuple[str, Callable[..., Any], tuple[A, ...]]

SHAPES: tuple[tuple[int, ...], ...] = ((), (1,), (3,), (0,), (2, 3), (2, 0), (2, 1, 3), (2, 1, 2, 2))
PAIRS: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (
    ((), ()),
    ((3,), ()),
    ((), (2, 3)),
    ((3,), (3,)),
    ((2, 3), (3,)),
    ((2, 1), (1, 3)),
    ((1,), (2, 2, 1)),
    ((0, 3), (3,)),
    ((0, 1), (1, 2)),
    ((2, 1, 3), (4, 1)),
    ((1, 2, 1, 2), (2, 1, 2, 1)),
)


def reals(shape: Sequence[int], low: float = -2.0, high: float = 2.0, seed: int = 0) -> A:
    """Numbers in [low, high], evenly apart and shuffled, so that any two differ by much more than a step."""
    size = int(np.prod(shape))
    rng = np.random.default_rng([seed, size, len(shape)])
    spread = (np.arange(size) + 0.3 + 0.4 * rng.random(size)) / max(size, 1)
    return (low + (high - low) * rng.permutation(spread)).reshape(tuple(shape))


def both_signs(shape: Sequence[int], seed: int = 0) -> A:
    """Numbers of both signs with sizes in [0.2, 2]."""
    signs = np.random.default_rng([seed + 1, len(shape)]).choice([-1.0, 1.0], tuple(shape))
    return reals(shape, 0.2, 2.0, seed) * signs


def axes_of(rank: int) -> Iterator[int]:
    """Every dimension, counted from both ends."""
    return iter(range(-rank, rank))


def reduced_axes(rank: int) -> Iterator[Any]:
    """None, each dimension from both ends, none, and every set of at least two."""
    yield None
    yield from axes_of(rank)
    yield ()
    for size in range(2, rank + 1):
        for chosen in itertools.combinations(range(rank), size):
            yield chosen
            yield tuple(a - rank for a in reversed(chosen))


# --- elementwise -----------------------------------------------------------------------------------------------------

# name: domain
UNARY: dict[str, tuple[float, float]] = {
    "negative": (-2, 2),
    "positive": (-2, 2),
    "square": (-2, 2),
    "sqrt": (0.3, 3),
    "rsqrt": (0.3, 3),
    "reciprocal": (0.4, 2),
    "exp": (-2, 2),
    "expm1": (-1, 1),
    "log": (0.3, 3),
    "log1p": (-0.6, 2),
    "log2": (0.3, 3),
    "log10": (0.3, 3),
    "sin": (-3, 3),
    "cos": (-3, 3),
    "tan": (-1, 1),
    "sinh": (-2, 2),
    "cosh": (-2, 2),
    "tanh": (-2, 2),
    "asin": (-0.8, 0.8),
    "acos": (-0.8, 0.8),
    "atan": (-2, 2),
    "asinh": (-2, 2),
    "acosh": (1.3, 3),
    "atanh": (-0.8, 0.8),
    "erf": (-2, 2),
    "abs": (0, 0),  # (0, 0): numbers of both signs, away from 0
    "identity": (-2, 2),
    "sigmoid": (-3, 3),
    "softplus": (-3, 3),
    "relu": (0, 0),
}


def _input(shape: Sequence[int], domain: tuple[float, float], seed: int = 0) -> A:
    return both_signs(shape, seed) if domain == (0, 0) else reals(shape, *domain, seed=seed)


def unary_rows() -> Iterator[Row]:
    for (name, domain), shape in itertools.product(UNARY.items(), SHAPES):
        function = getattr(nf.nn, name) if hasattr(nf.nn, name) and name != "tanh" else None
        yield name, function or getattr(nf, name, None) or _built(name), (_input(shape, domain),)
    for shape in SHAPES:
        x = both_signs(shape)
        yield "clip", lambda x: nf.clip(x * x * x, -1.0, 1.1), (x,)
        yield "clip", lambda x: nf.clip(x, None, 0.1), (x,)
        yield "astype", lambda x: nf.astype(nf.astype(x, "complex128") * 1j, "complex128") * 1j, (x,)
        yield "where", lambda x: nf.where(x > 0, x * x, nf.exp(x)), (x,)
        yield "copysign", lambda x: nf.copysign(x, -x * x), (x,)


def _built(name: str) -> Callable[..., Any]:
    return lambda *inputs: build(name, inputs)


# name: domains of both operands
BINARY: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "add": ((-2, 2), (-2, 2)),
    "subtract": ((-2, 2), (-2, 2)),
    "multiply": ((-2, 2), (-2, 2)),
    "divide": ((-2, 2), (0.4, 2)),
    "remainder": ((4.1, 4.3), (1.5, 1.9)),  # no multiple of the second is near the first
    "pow": ((0.3, 2), (-2, 2)),
    "atan2": ((0.3, 2), (0.3, 2)),
    "hypot": ((0.3, 2), (-2, 2)),
    "logaddexp": ((-2, 2), (-2, 2)),
    "maximum": ((-2, 2), (-2, 2)),
    "minimum": ((-2, 2), (-2, 2)),
    "gated_multiply": ((0.3, 2), (-2, 2)),
    "gated_divide": ((0.3, 2), (0.4, 2)),
}


def binary_rows() -> Iterator[Row]:
    for (name, domains), (first, second) in itertools.product(BINARY.items(), PAIRS):
        function = getattr(nf, name, None) or _built(name)
        for one, other in ((first, second), (second, first)):
            shift = 0.0713 if name in ("maximum", "minimum") else 0.0  # no ties between the two
            yield name, function, (reals(one, *domains[0]), reals(other, *domains[1], seed=1) + shift)
    for first, second in PAIRS:
        for third in (first, ()):
            flags = np.random.default_rng(0).random(third) < 0.5
            yield "where", lambda x, y, f=flags: nf.where(nf.constant(f), x * x, y * y), (reals(first), reals(second))
        if first == second:
            yield "add_n", lambda x, y: nf.ops.add_n([x, y * y, x]), (reals(first), reals(second, seed=1))
            weights = (lambda x, y, w: nf.weighted_sum([x, y * y], [w, 0.3]), (reals(first), reals(second), reals(())))
            yield "weighted_sum", *weights


# --- reductions ------------------------------------------------------------------------------------------------------

REDUCTIONS: dict[str, Callable[..., Any]] = {
    "sum": nf.sum,
    "mean": nf.mean,
    "prod": nf.prod,
    "max": nf.max,
    "min": nf.min,
    "var": nf.var,
    "std": nf.std,
    "logsumexp": nf.logsumexp,
    "norm 1": lambda x, **more: nf.linalg.vector_norm(x, ord=1, **more),
    "norm 2": nf.linalg.vector_norm,
    "norm 3": lambda x, **more: nf.linalg.vector_norm(x, ord=3, **more),
    "norm inf": lambda x, **more: nf.linalg.vector_norm(x, ord=float("inf"), **more),
}
# What has no value, or an infinite slope, over nothing or over one element.
_NEEDS_TWO = ("std",)
_NEEDS_ONE = ("mean", "var", "max", "min", "logsumexp", "norm inf")


def _over(shape: Sequence[int], axis: Any) -> int:
    axes = range(len(shape)) if axis is None else (axis,) if isinstance(axis, int) else axis
    return int(np.prod([shape[a] for a in axes]))


def reduction_rows() -> Iterator[Row]:
    for (name, function), shape in itertools.product(REDUCTIONS.items(), SHAPES):
        for axis, keepdims in itertools.product(reduced_axes(len(shape)), (False, True)):
            least = 2 if name in _NEEDS_TWO else 1 if name in _NEEDS_ONE else 0
            if _over(shape, axis) >= least:
                op = name if name in ("sum", "mean", "prod", "max", "min") else "abs"
                yield op, lambda x, f=function, a=axis, k=keepdims: f(x, axis=a, keepdims=k), (both_signs(shape),)
    zeros = np.array([[0.0, 1.5, 2.0], [0.0, 0.0, 1.0], [1.0, 2.0, 3.0]])
    for axis in reduced_axes(2):
        yield "prod", lambda x, a=axis: nf.prod(x, axis=a), (zeros,)
        yield "prod_others", lambda x, a=axis: build("prod_others", (x,), {"axis": a}), (zeros,)
    for shape in SHAPES[1:]:
        for axis, initial in itertools.product(axes_of(len(shape)), (False, True)):
            more = {"axis": axis, "include_initial": initial}
            yield "cumulative_sum", lambda x, m=more: nf.cumulative_sum(x * x, **m), (both_signs(shape),)
            yield "cumulative_prod", lambda x, m=more: nf.cumulative_prod(x, **m), (both_signs(shape),)
        for axis in axes_of(len(shape)):
            yield "softmax", lambda x, a=axis: nf.nn.softmax(x, axis=a), (reals(shape),)
            yield "log_softmax", lambda x, a=axis: nf.nn.log_softmax(x, axis=a), (reals(shape),)
            for descending in (False, True):
                more = {"axis": axis, "descending": descending}
                yield "sort", lambda x, m=more: nf.sort(x, **m) ** 2.0, (both_signs(shape),)


# --- shapes ----------------------------------------------------------------------------------------------------------


def shape_rows() -> Iterator[Row]:
    """Ops that move elements; squares make their second derivatives more than zero."""
    for shape in SHAPES:
        x, rank = reals(shape), len(shape)
        for axis in range(-rank - 1, rank + 1):
            yield "expand_dims", lambda x, a=axis: nf.expand_dims(x * x, axis=a), (x,)
        yield "reshape", lambda x: nf.reshape(x * x, (-1,)), (x,) if 0 not in shape else (reals((3,)),)
        yield "broadcast_to", lambda x, s=shape: nf.broadcast_to(x * x, (2, *s)), (x,)
        yield "sum_to_shape", lambda x: build("sum_to_shape", (x * x,), {"shape": ()}), (x,)
        for order in itertools.permutations(range(rank)):
            yield "permute_dims", lambda x, o=order: nf.permute_dims(x * x, o), (x,)
        for axis in reduced_axes(rank):
            if axis != ():
                yield "flip", lambda x, a=axis: nf.flip(x * x, axis=a), (x,)
        for axis in (None, *axes_of(rank)) if rank else ():
            for shift in (1, -2):
                yield "roll", lambda x, a=axis, s=shift: nf.roll(x * x, s, axis=a), (x,)
            yield "repeat", lambda x, a=axis: nf.repeat(x * x, 2, axis=a), (x,)
        yield "tile", lambda x: nf.tile(x * x, (2, 3)), (x,)
        yield "pad", lambda x, r=rank: nf.pad(x * x, [(n, 2 - n % 3) for n in range(r)]), (x,)
        ones = tuple(n for n, d in enumerate(shape) if d == 1)
        for axis in (*ones, *(n - rank for n in ones)):
            yield "squeeze", lambda x, a=axis: nf.squeeze(x * x, axis=a), (x,)
        if rank >= 2:
            yield "matrix_transpose", lambda x: nf.matrix_transpose(x * x), (x,)
            for k in (-1, 0, 1):
                yield "tril", lambda x, k=k: nf.tril(x * x, k=k), (x,)
                yield "triu", lambda x, k=k: nf.triu(x * x, k=k), (x,)
                yield "diagonal", lambda x, k=k: nf.linalg.diagonal(x * x, offset=k), (x,)
                yield "trace", lambda x, k=k: nf.linalg.trace(x * x, offset=k), (x,)
        for axis in axes_of(rank):
            yield "concat", lambda x, a=axis: nf.concat([x, x * x, x], axis=a), (x,)
            yield "stack", lambda x, a=axis: nf.stack([x, x * x], axis=a), (x,)
            yield "unstack", lambda x, a=axis: [y * y for y in nf.unstack(x, axis=a)] or [x * x], (x,)
            if shape[axis] >= 2:
                yield "split", lambda x, a=axis, n=shape[axis]: [y * y for y in nf.split(x, (1, n - 1), axis=a)], (x,)
                yield "diff", lambda x, a=axis: nf.diff(x * x, axis=a), (x,)


def value_rows() -> Iterator[Row]:
    """Which values there are, and ranges."""
    for shape in ((3, 2), (4,), ()):
        yield "unique", lambda x: nf.unique_values(x) ** 2.0, (reals(shape),)
        for ascending in (False, True):
            for axis in (None, *axes_of(len(shape))):
                more = {"axis": axis, "ascending": ascending}
                yield "unique_slices", lambda x, m=more: nf.unique_slices(x, **m)[0] ** 2.0, (reals(shape),)
    yield "range_dynamic", lambda a, s: nf.range_dynamic(a, 5.0, s) ** 2.0, (np.array(0.3), np.array(0.7))


KEYS: tuple[tuple[tuple[int, ...], Any], ...] = (
    ((4,), slice(None, None, -2)),
    ((4,), np.array([[0, 3], [-1, 0]])),
    ((4,), np.array([True, False, True, True])),
    ((3, 2), (1, ...)),
    ((3, 2), (..., None, slice(1, None))),
    ((3, 2), (np.array([0, 2, 0]),)),
    ((3, 2), (slice(None), np.array([1, 1, 0]))),
    ((3, 2), (np.array([0, 2, 0]), np.array([1, -1, 1]))),
    ((3, 2, 2), (np.array([2, 2]), slice(None), np.array([0, 1]))),
    ((3, 2), np.array([[True, False], [False, True], [True, True]])),
    ((0, 2), slice(1, None)),
    ((2, 3, 2), (slice(None, None, -1), 0, slice(0, 0))),
)


def indexing_rows() -> Iterator[Row]:
    for shape, key in KEYS:
        yield "getitem", lambda x, k=key: nf.getitem(x * x, k), (reals(shape),)
    indices = (np.array(1), np.array([0, 1, 1, -1]), np.array([[0], [-2]]), np.zeros((0,), np.int64))
    for shape in ((3,), (2, 3), (2, 2, 3), (2, 0)):
        for axis, ids in itertools.product(axes_of(len(shape)), indices):
            if ids.size and shape[axis] == 0:
                continue
            place = axis % len(shape)
            picked = (*shape[:place], *ids.shape, *shape[place + 1 :])
            yield "take", lambda x, i=ids, a=axis: nf.take(x, i, axis=a) ** 2.0, (reals(shape),)
            arrays = (reals(shape), reals(picked, seed=1))
            yield "scatter_add", lambda x, u, i=ids, a=axis: nf.scatter_add(x, i, u * u, axis=a) ** 2.0, arrays
        for axis in axes_of(len(shape)):
            if 0 in shape:
                continue
            along = np.random.default_rng(0).integers(-shape[axis], shape[axis], shape)
            yield "take_along_axis", lambda x, i=along, a=axis: nf.take_along_axis(x, i, axis=a) ** 2.0, (reals(shape),)
            function = _scattered_along(along, axis)
            yield "scatter_add_along_axis", function, (reals(shape), reals(shape, seed=1))
    for axis in (0, 1, -3):
        x, i, j = reals((3, 2, 2)), np.array([0, 1, 0]), np.array([[1], [-1]])
        if axis < 2:
            yield "gather_nd", lambda x, a=axis, i=i, j=j: _picked(x, [i % 2, j], a) ** 2.0, (x,)


def _picked(x: Any, indices: list[A], axis: int) -> Any:
    return build("gather_nd", (x, *[nf.constant(i) for i in indices]), {"axis": axis})


def _scattered_along(indices: A, axis: int) -> Callable[..., Any]:
    return lambda x, u: build("scatter_add_along_axis", (x, nf.constant(indices), u * u), {"axis": axis}) ** 2.0


# --- products --------------------------------------------------------------------------------------------------------

EINSUMS: tuple[tuple[str, tuple[tuple[int, ...], ...]], ...] = (
    ("ij,jk->ik", ((2, 3), (3, 2))),
    ("ij,jk", ((2, 3), (3, 2))),
    ("ij->ji", ((2, 3),)),
    ("ii->i", ((3, 3),)),
    ("ij->", ((2, 3),)),
    ("i,j->ij", ((2,), (3,))),
    ("bij,bjk->bik", ((2, 2, 3), (2, 3, 2))),
    ("...ij,...jk->...ik", ((2, 1, 2, 3), (3, 3, 2))),
    ("ij,jk,kl->il", ((2, 3), (3, 2), (2, 2))),
    ("ijk,ijk->i", ((2, 3, 2), (2, 3, 2))),
)


def product_rows() -> Iterator[Row]:
    batches = (((), ()), ((2,), ()), ((), (2,)), ((2, 1), (1, 3)), ((0,), (1,)))
    for (first, second), ta, tb in itertools.product(batches, (False, True), (False, True)):
        a = reals((*first, *((3, 2) if ta else (2, 3))))
        b = reals((*second, *((2, 3) if tb else (3, 2))), seed=1)
        yield "matmul", lambda x, y, t=ta, u=tb: nf.matmul(x, y, transpose_a=t, transpose_b=u), (a, b)
    for first, second in (((3,), (3,)), ((3,), (2, 3, 2)), ((2, 3), (3,)), ((2, 0), (0, 3)), ((0, 2), (2, 3))):
        yield "matmul", nf.matmul, (reals(first), reals(second, seed=1))
    for axes in (0, 1, 2, ((0, 1), (1, 0)), ((-1,), (0,))):
        shape = (2, 3) if axes == ((0, 1), (1, 0)) else (2, 2)
        yield "tensordot", lambda x, y, a=axes: nf.tensordot(x, y, axes=a), (reals(shape), reals(shape[::-1], seed=1))
    for axis in (0, 1, -1):
        yield "vecdot", lambda x, y, a=axis: nf.vecdot(x, y, axis=a), (reals((3, 3)), reals((3, 3), seed=1))
        yield "cross", lambda x, y, a=axis: nf.linalg.cross(x, y, axis=a), (reals((3, 3)), reals((3, 3), seed=1))
    yield "outer", nf.outer, (reals((2,)), reals((3,), seed=1))
    for subscripts, shapes in EINSUMS:
        arrays = tuple(reals(s, seed=n) for n, s in enumerate(shapes))
        yield "einsum", lambda *xs, s=subscripts: nf.einsum(s, *[x * x for x in xs]), arrays
    for batch in ((), (2,), (0,)):
        square, right = reals((*batch, 3, 3)) + 2.5 * np.eye(3), reals((*batch, 3, 2), seed=1)
        yield "inv", nf.linalg.inv, (square,)
        yield "det", nf.linalg.det, (square,)
        yield "slogdet", nf.linalg.slogdet, (square,)
        yield "solve", nf.linalg.solve, (square, right)
        yield "cholesky", lambda x: nf.linalg.cholesky(x @ nf.matrix_transpose(x)), (square,)
        yield "eigh", lambda x: nf.linalg.eigvalsh(x + nf.matrix_transpose(x)), (square,)
        for shape in ((3, 2), (2, 3)):
            if batch != (0,):
                yield "svd", nf.linalg.svdvals, (reals((*batch, *shape)),)
                yield "pinv", nf.linalg.pinv, (reals((*batch, *shape)),)
                yield "qr", nf.linalg.qr, (reals((*batch, *shape)),)


GROUPS: dict[str, Callable[[], Iterator[Row]]] = {
    "unary": unary_rows,
    "binary": binary_rows,
    "reductions": reduction_rows,
    "shapes": shape_rows,
    "values": value_rows,
    "indexing": indexing_rows,
    "products": product_rows,
}
