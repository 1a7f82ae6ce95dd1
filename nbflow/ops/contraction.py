"""`nf.einsum`: sums of products by index letters, in the order that opt_einsum finds, lowered to matrix products.

Each step takes two operands (or one): repeated letters become diagonals, letters that only one of them has and nobody
needs are summed away, the others become the batch, rows, columns and inner dimension of one `matmul`, or a product of
elements where there is no inner one. So gradients, costs and every backend come with the ops it is made of.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import opt_einsum
from opt_einsum.parser import get_symbol

from nbflow import op
from nbflow.errors import DTypeError, ShapeError
from nbflow.graph import Tensor
from nbflow.ops._build import ArrayLike, build, convert_all, known_rank, promote
from nbflow.ops.casting import astype
from nbflow.ops.creation import identity
from nbflow.ops.linalg import matmul
from nbflow.ops.manipulation import expand_dims, moveaxis, permute_dims, squeeze
from nbflow.ops.matrices import diagonal
from nbflow.ops.reduction import sum as sum_over
from nbflow.ops.shape import reshape, shape_of
from nbflow.spec import Dim, format_shape, kind_of

# --- reading the subscripts ------------------------------------------------------------------------------------------


def _parse(subscripts: str, tensors: Sequence[Tensor]) -> tuple[list[str], str]:
    """The letters of each operand and of the result; dimensions under '...' get letters of their own."""
    text = subscripts.replace(" ", "")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    if len(terms) != len(tensors):
        raise ShapeError(f"einsum {subscripts!r} names {len(terms)} operands, but {len(tensors)} are given")
    for term in (*terms, right):
        letters = term.replace("...", "", 1)
        if not all(c.isalpha() for c in letters):
            raise ShapeError(f"einsum {subscripts!r}: {term!r} is not letters and at most one '...'")
    free = _unused(text)
    depths = [
        known_rank(t.spec, "einsum with '...'") - len(term.replace("...", "")) if "..." in term else 0
        for term, t in zip(terms, tensors, strict=True)
    ]
    if min(depths) < 0:
        raise ShapeError(f"einsum {subscripts!r} has more letters than an operand has dimensions")
    hidden = [next(free) for _ in range(max(depths, default=0))]
    found = [term.replace("...", "".join(hidden[len(hidden) - d :])) for term, d in zip(terms, depths, strict=True)]
    if arrow:
        if hidden and "..." not in right:
            raise ShapeError(
                f"einsum {subscripts!r} sums over '...': name these dimensions, or put '...' in the result"
            )
        result = right.replace("...", "".join(hidden))
    else:  # as numpy: the letters that occur once, in alphabetical order, after '...'
        counts = Counter(c for c in left if c.isalpha())
        result = "".join(hidden) + "".join(sorted(c for c, n in counts.items() if n == 1))
    _check(subscripts, found, result, tensors)
    return found, result


def _unused(text: str) -> Iterator[str]:
    return (symbol for symbol in map(get_symbol, range(10_000)) if symbol not in text)


def _check(subscripts: str, terms: Sequence[str], result: str, tensors: Sequence[Tensor]) -> None:
    if len(set(result)) != len(result):
        raise ShapeError(f"einsum {subscripts!r} names a dimension of the result twice")
    missing = set(result) - set("".join(terms))
    if missing:
        raise ShapeError(f"einsum {subscripts!r}: no operand has {sorted(missing)}, which the result names")
    for term, tensor in zip(terms, tensors, strict=True):
        if tensor.shape is not None and len(tensor.shape) != len(term):
            raise ShapeError(
                f"einsum {subscripts!r} gives {len(term)} letters to a tensor of shape {format_shape(tensor.shape)}"
            )


def _sizes(subscripts: str, terms: Sequence[str], tensors: Sequence[Tensor]) -> dict[str, Dim]:
    """The length of each letter, None where unknown; 1 gives way to any other (under '...' dimensions broadcast)."""
    found: dict[str, Dim] = {}
    for term, tensor in zip(terms, tensors, strict=True):
        for letter, dim in zip(term, tensor.shape or (None,) * len(term), strict=True):
            known = found.get(letter)
            if known is None or known == 1:
                found[letter] = dim if dim is not None or known is None else known
            elif dim not in (None, 1, known):
                raise ShapeError(f"einsum {subscripts!r}: {letter!r} has length {known} and {dim}")
    return found


# --- one step --------------------------------------------------------------------------------------------------------


def _reduced(x: Tensor, term: str, needed: set[str]) -> tuple[Tensor, str]:
    """`x` with one dimension for each letter that others need: diagonals of repeated letters, sums over the rest."""
    for letter in dict.fromkeys(term):
        while term.count(letter) > 1:
            first = term.index(letter)
            second = term.index(letter, first + 1)
            x = diagonal(moveaxis(x, (first, second), (-2, -1)))
            term = term[:first] + term[first + 1 : second] + term[second + 1 :] + letter
    gone = tuple(n for n, letter in enumerate(term) if letter not in needed)
    if gone:
        x = sum_over(x, axis=gone, dtype=x.dtype)
        term = "".join(letter for letter in term if letter in needed)
    return x, term


def _contracted(a: Tensor, term_a: str, b: Tensor, term_b: str, needed: set[str]) -> tuple[Tensor, str]:
    """The product of two operands, summed over the letters that both have and nobody else needs."""
    a, term_a = _reduced(a, term_a, needed | set(term_b))
    b, term_b = _reduced(b, term_b, needed | set(term_a))
    shared = [c for c in term_a if c in term_b]
    batch = [c for c in shared if c in needed]
    inner = [c for c in shared if c not in needed]
    rows = [c for c in term_a if c not in term_b]
    columns = [c for c in term_b if c not in term_a]
    if not inner:
        left = _spread(a, term_a, [*batch, *rows], range(-len(columns), 0))
        right = _spread(b, term_b, [*batch, *columns], range(len(batch), len(batch) + len(rows)))
        return left * right, "".join([*batch, *rows, *columns])
    made = matmul(_grouped(a, term_a, batch, rows, inner), _grouped(b, term_b, batch, inner, columns))
    if len(rows) != 1 or len(columns) != 1:
        sizes = [_dim(made, n) for n in range(len(batch))]
        sizes += [_dim(a, term_a.index(c)) for c in rows] + [_dim(b, term_b.index(c)) for c in columns]
        made = reshape(made, sizes)
    return made, "".join([*batch, *rows, *columns])


def _ordered(x: Tensor, term: str, letters: Sequence[str]) -> Tensor:
    order = [term.index(c) for c in letters]
    return x if order == list(range(len(order))) else permute_dims(x, order)


def _spread(x: Tensor, term: str, letters: Sequence[str], new: Sequence[int]) -> Tensor:
    """`x` with its dimensions in the order of `letters`, and `new` ones of length 1."""
    x = _ordered(x, term, letters)
    return expand_dims(x, new) if new else x


def _grouped(x: Tensor, term: str, batch: list[str], first: list[str], second: list[str]) -> Tensor:
    """`x` as matrices: batch dimensions as they are, those of `first` joined to rows, of `second` to columns."""
    x = _ordered(x, term, [*batch, *first, *second])
    if len(first) == len(second) == 1:
        return x
    start, middle = len(batch), len(batch) + len(first)
    kept = [_dim(x, n) for n in range(start)]
    return reshape(x, [*kept, _joined(x, start, middle), _joined(x, middle, len(term))])


def _dim(x: Tensor, axis: int) -> Dim | Tensor:
    dim = None if x.shape is None else x.shape[axis]
    return shape_of(x)[axis] if dim is None else dim


def _joined(x: Tensor, start: int, stop: int) -> Dim | Tensor:
    """The length of dimensions `start` to `stop`, joined."""
    dims = (None,) * (stop - start) if x.shape is None else x.shape[start:stop]
    known = [d for d in dims if d is not None]
    if len(known) == len(dims):
        return math.prod(known)
    return build("prod", (shape_of(x)[start:stop],), {"axis": None, "keepdims": False, "dtype": None})


# --- the whole -------------------------------------------------------------------------------------------------------


def _path(terms: Sequence[str], result: str, sizes: dict[str, Dim]) -> list[tuple[int, ...]]:
    """Which operands to contract, in order: those named leave the list, their product comes at its end."""
    if len(terms) <= 2:
        return [tuple(range(len(terms)))]
    shapes = [tuple(op.UNKNOWN_DIM if (d := sizes[c]) is None else d for c in term) for term in terms]
    subscripts = ",".join(terms) + "->" + result
    path, _ = opt_einsum.contract_path(subscripts, *shapes, shapes=True, optimize="auto")
    return [tuple(step) for step in path]


def _widened(tensors: Sequence[Tensor]) -> list[Tensor]:
    """All in the promoted dtype; a matmul has none for booleans."""
    dtype = promote(*(t.dtype for t in tensors))
    if kind_of(dtype) == "b":
        raise DTypeError("einsum multiplies and adds numbers, not booleans; use nf.astype first")
    return [t if t.dtype == dtype else astype(t, dtype) for t in tensors]


def _settled(x: Tensor, term: str, sizes: dict[str, Dim]) -> tuple[Tensor, str]:
    """Without the dimensions of length 1 that stand for longer ones of others (under '...'), where this is known."""
    if x.shape is None:
        return x, term
    lone = tuple(n for n, c in enumerate(term) if x.shape[n] == 1 and sizes[c] != 1)
    return (squeeze(x, lone), "".join(c for n, c in enumerate(term) if n not in lone)) if lone else (x, term)


def einsum(subscripts: str, /, *operands: ArrayLike, name: str | None = None) -> Tensor:
    """Sums of products: `einsum("bij,bjk->bik", x, y)` multiplies batches of matrices.

    Each operand has a letter for each dimension, the result those after `->`; letters not there are summed over.
    '...' stands for dimensions that broadcast. Without `->` the result has the letters that occur once, in order of the
    alphabet. opt_einsum chooses the order of three or more operands. Raises ShapeError when letters and shapes differ.
    """
    if not operands:
        raise ShapeError(f"einsum {subscripts!r} needs operands")
    tensors = _widened(convert_all(operands))
    terms, result = _parse(subscripts, tensors)
    sizes = _sizes(subscripts, terms, tensors)
    pool = [_settled(t, term, sizes) for t, term in zip(tensors, terms, strict=True)]
    for step in _path([term for _, term in pool], result, sizes):
        chosen = [pool[n] for n in step]
        pool = [item for n, item in enumerate(pool) if n not in step]
        made = chosen[0]
        for k in range(1, max(2, len(chosen))):
            needed = set(result).union(*(term for _, term in (*pool, *chosen[k + 1 :])))
            made = _contracted(*made, *chosen[k], needed) if k < len(chosen) else _reduced(*made, needed)
        pool.append(made)
    ((last, term),) = pool
    last = _ordered(last, term, result)
    return last if name is None else identity(last, name=name)
