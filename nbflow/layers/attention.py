"""Attention with learnt projections."""

from __future__ import annotations

from nbflow import nn
from nbflow.errors import ShapeError
from nbflow.graph import Tensor
from nbflow.layers.basic import dense
from nbflow.layers.common import count, floating, known, layer_scope
from nbflow.ops import permute_dims, reshape, shape_of
from nbflow.ops._build import ArrayLike, convert
from nbflow.ops.attention import Window
from nbflow.spec import format_shape

Size = int | Tensor


def multi_head_attention(
    query: ArrayLike,
    heads: int,
    key: ArrayLike | None = None,
    value: ArrayLike | None = None,
    depth: int | None = None,
    mask: ArrayLike | None = None,
    causal: bool = False,
    kv_heads: int | None = None,
    rotary: bool = False,
    softcap: float | None = None,
    window: Window | None = None,
    use_bias: bool = True,
    dropout: float = 0.0,
    training: bool | Tensor = True,
    *,
    name: str | None = None,
) -> Tensor:
    """Attention in `heads` projected subspaces of `depth` numbers, projected back to the size of the query.

    - query (batch, queries, features), key and value (batch, keys, …); the query itself when left out.
    - `mask`: boolean, or floating and added; broadcasts against (batch, heads, queries, keys).
    - `depth`: features / heads when left out.
    - `kv_heads`: so many heads of keys and values, each for heads / kv_heads of the queries (arXiv 2305.13245).
    - `rotary`: queries and keys are turned by their positions first. `softcap`, `window`: see nf.nn.attention.
    - `dropout`: of the result, while `training`.

    Vaswani et al., arXiv 1706.03762, section 3.2.2. Raises ShapeError for heads that do not divide.
    """
    asked = floating(query, "multi_head_attention")
    keys = asked if key is None else convert(key)
    values = keys if value is None else convert(value)
    with layer_scope(asked, name, "multi_head_attention"):
        features = known(asked, -1, "multi_head_attention")
        shared = count(heads, "heads") if kv_heads is None else count(kv_heads, "kv_heads")
        if heads % shared:
            raise ShapeError(f"{heads} heads of queries do not divide among {shared} of keys and values")
        if depth is None:
            if features % heads:
                raise ShapeError(f"{features} features do not divide into {heads} heads; give depth=")
            depth = features // heads
        q, k, v = (
            _split_heads(dense(tensor, number * depth, use_bias=use_bias, name=what), number, depth)
            for what, tensor, number in (("query", asked, heads), ("key", keys, shared), ("value", values, shared))
        )
        if rotary:
            q, k = nn.rotary_embedding(q), nn.rotary_embedding(k)
        seen = permute_dims(nn.attention(q, k, v, mask, causal, softcap=softcap, window=window), (0, 2, 1, 3))
        made = dense(reshape(seen, (*_sizes(asked), heads * depth)), features, use_bias=use_bias, name="output")
        return nn.dropout(made, dropout, training) if dropout else made


def _split_heads(x: Tensor, heads: int, depth: int) -> Tensor:
    """(batch, time, heads · depth) → (batch, heads, time, depth)."""
    if x.spec.rank != 3:
        raise ShapeError(f"multi_head_attention takes (batch, time, features), not {format_shape(x.shape)}")
    return permute_dims(reshape(x, (*_sizes(x), heads, depth)), (0, 2, 1, 3))


def _sizes(x: Tensor) -> tuple[Size, Size]:
    """(batch, time) for `reshape`. A batch of -1 is found by division, which says nothing where there are no steps."""
    batch, time = (x.shape or (None, None))[:2]
    if batch is None and time:
        return -1, time
    return shape_of(x)[0] if batch is None else batch, shape_of(x)[1] if time is None else time
