"""Attention and what goes with it: positions by rotation. Made of other ops."""

from __future__ import annotations

import math

import numpy as np

from nbflow.errors import GraphError, ShapeError
from nbflow.graph import Tensor
from nbflow.ops._build import ArrayLike, convert, known_rank, require_kind
from nbflow.ops.casting import astype
from nbflow.ops.comparison import greater, greater_equal, less_equal, logical_and, where
from nbflow.ops.creation import arange
from nbflow.ops.elementwise import cos, sin, tanh
from nbflow.ops.joining import concat, split, stack
from nbflow.ops.linalg import matmul
from nbflow.ops.manipulation import expand_dims, repeat
from nbflow.ops.nn import op_scope, softmax
from nbflow.ops.shape import reshape_like, shape_of
from nbflow.spec import format_shape, kind_of

# (how many keys before its own a query sees, how many after); None: all
Window = tuple[int | None, int | None]


def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    mask: ArrayLike | None = None,
    causal: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    window: Window | None = None,
    offset: ArrayLike | None = None,
    *,
    name: str | None = None,
) -> Tensor:
    """softmax(q kᵀ · scale) v over the last two dimensions. Vaswani et al., arXiv 1706.03762.

    - q (…, queries, depth), k (…, keys, depth), v (…, keys, size) → (…, queries, size). With four dimensions and more
      the third from the end are the heads; q may have a multiple of those of k and v, which then serve several each
      (Ainslie et al., arXiv 2305.13245).
    - `mask`: broadcasts against (…, queries, keys). Boolean: False hides a key. Floating: added to the scores.
    - `causal`: query i sees the keys up to i + `offset`.
    - `window`: (before, after), the number of keys around i + `offset` that query i sees; None for no bound.
    - `offset`: an integer, or integers that broadcast like the mask; left out, the last query sees the last key.
    - `scale`: 1 / √depth when left out; depth must then be known.
    - `softcap`: scores become softcap · tanh(scores / softcap), before masks.

    A query that sees no key gets zeros. Raises ShapeError for an unknown depth and for heads that do not divide.
    """
    query, key, value = convert(q), convert(k), convert(v)
    with op_scope(name, "attention", query):
        key, value = _shared(query, key), _shared(query, value)
        if scale is None:
            scale = 1 / math.sqrt(_depth(query))
        scores = matmul(query * scale, key, transpose_b=True)
        if softcap is not None:
            if not softcap > 0:
                raise GraphError(f"softcap is positive, not {softcap}")
            scores = tanh(scores / softcap) * softcap
        # The lowest finite number: of a row of -inf, softmax would make NaN.
        hidden = float(np.finfo(np.float16 if scores.dtype.itemsize == 2 else scores.dtype).min)
        seen = _placed(scores, causal, window, offset)
        if mask is not None:
            given = convert(mask)
            if kind_of(given.dtype) == "b":
                seen = given if seen is None else logical_and(seen, given)
            else:
                require_kind(given.spec, "f", "a mask is boolean, or floating and added to the scores")
                scores = scores + given
                some = greater(given, hidden)
                seen = some if seen is None else logical_and(seen, some)
        if seen is None:
            return matmul(softmax(scores), value)
        # The second choice is for queries that see nothing: of equal scores softmax makes a mean.
        return matmul(where(seen, softmax(where(seen, scores, hidden)), 0.0), value)


def _depth(query: Tensor) -> int:
    if not query.shape or query.shape[-1] is None:
        raise ShapeError(
            f"attention needs the last dimension of {query.name}, {format_shape(query.shape)}, or a scale=",
            where=query.node.where,
        )
    return query.shape[-1]


def _shared(query: Tensor, x: Tensor) -> Tensor:
    """Keys or values, repeated where one of their heads serves several of the query."""
    if query.shape is None or x.shape is None or len(query.shape) < 4 or len(x.shape) < 4:
        return x
    heads, mine = query.shape[-3], x.shape[-3]
    if heads is None or mine is None or mine in (heads, 1):
        return x
    if heads % mine:
        raise ShapeError(
            f"{heads} heads of queries {format_shape(query.shape)} do not divide among {mine} of {x.name} "
            f"{format_shape(x.shape)}"
        )
    return repeat(x, heads // mine, axis=len(x.shape) - 3)


def _placed(scores: Tensor, causal: bool, window: Window | None, offset: ArrayLike | None) -> Tensor | None:
    """Which keys a query sees by where it stands; None: all."""
    if window is not None and not (isinstance(window, (tuple, list)) and len(window) == 2):
        raise GraphError(f"a window is (keys before, keys after), either of them None for all, not {window!r}")
    before, after = window or (None, None)
    if causal:
        after = 0 if after is None else min(after, 0)
    if before is None and after is None:
        return None
    queries, keys = _size(scores, -2), _size(scores, -1)
    start = keys - queries if offset is None else convert(offset)
    at = expand_dims(arange(queries), axis=-1) + start - arange(keys)  # how many keys back
    parts = []
    if after is not None:
        parts.append(greater_equal(at, -after))
    if before is not None:
        parts.append(less_equal(at, before))
    return parts[0] if len(parts) == 1 else logical_and(*parts)


def _size(x: Tensor, axis: int) -> int | Tensor:
    """Dimension `axis`, from the end: known, or found when the op runs."""
    size = x.shape[axis] if x.shape is not None and len(x.shape) >= -axis else None
    return shape_of(x)[axis] if size is None else size


# --- rotary positions ------------------------------------------------------------------------------------------------


def rotary(
    x: ArrayLike, cosines: ArrayLike, sines: ArrayLike, interleaved: bool = False, *, name: str | None = None
) -> Tensor:
    """Pairs of numbers of x (…, depth) turned by angles: of `cosines` and `sines` (…, size / 2), which broadcast.

    The first `size` numbers are turned, the rest stay. A pair is (i, i + size / 2), or (2 i, 2 i + 1) if `interleaved`.
    Su et al., arXiv 2104.09864, equation 34. Raises ShapeError when the last dimensions are not known or do not fit.
    """
    tensor = convert(x)
    cosine, sine = convert(cosines, like=tensor), convert(sines, like=tensor)
    depth = tensor.shape[-1] if tensor.shape else None
    half = cosine.shape[-1] if cosine.shape else None
    if depth is None or half is None or 2 * half > depth or not sine.shape or sine.shape[-1] != half:
        raise ShapeError(
            f"rotary turns pairs of the last dimension of {format_shape(tensor.shape)} by half as many angles, not by "
            f"cosines {format_shape(cosine.shape)} and sines {format_shape(sine.shape)}"
        )
    with op_scope(name, "rotary", tensor):
        turned, *rest = [tensor] if 2 * half == depth else split(tensor, (2 * half, depth - 2 * half), axis=-1)
        a, b = (turned[..., 0::2], turned[..., 1::2]) if interleaved else split(turned, 2, axis=-1)
        real, imaginary = a * cosine - b * sine, a * sine + b * cosine
        if interleaved:
            made = reshape_like(stack([real, imaginary], axis=known_rank(real.spec, "rotary")), turned)
        else:
            made = concat([real, imaginary], axis=-1)
        return concat([made, *rest], axis=-1) if rest else made


def rotary_embedding(
    x: ArrayLike,
    positions: ArrayLike | None = None,
    base: float = 10000.0,
    size: int | None = None,
    interleaved: bool = False,
    *,
    name: str | None = None,
) -> Tensor:
    """Queries or keys (…, time, depth) turned by their positions, so that scores depend on distances only.

    - `positions`: integers that broadcast against (…, time); 0, 1, 2 … when left out.
    - pair i turns by position / base^(2 i / size); `size`, all of the depth when left out, is even.

    Su et al., arXiv 2104.09864. See rotary.
    """
    tensor = convert(x)
    turned = size if size is not None else (tensor.shape[-1] if tensor.shape else None)
    if turned is None or turned % 2 or turned < 2:
        raise ShapeError(f"rotary_embedding turns an even number of the last dimension, not {turned}, "
                         f"of {format_shape(tensor.shape)}")  # fmt: skip
    with op_scope(name, "rotary_embedding", tensor):
        places = arange(_size(tensor, -2)) if positions is None else convert(positions)
        speeds = base ** (-np.arange(0, turned, 2) / turned)
        # In float64 until the sine: at late positions the angles of float32 are off by whole degrees.
        angles = expand_dims(astype(places, "float64"), axis=-1) * convert(speeds)
        return rotary(tensor, astype(cos(angles), tensor.dtype), astype(sin(angles), tensor.dtype), interleaved)
