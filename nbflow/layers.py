"""`nf.layers`: ops with variables of their own, under the layer's name.

A layer called `hidden` makes the variables `hidden/weights` and `hidden/bias`, and its ops lie in the scope `hidden`.
Without a name it is called after its kind, numbered: `dense`, `dense.1`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from nbflow import nn
from nbflow.errors import DTypeError, GraphError, ShapeError
from nbflow.graph import Tensor, get_graph, graph_for
from nbflow.ops import identity, matmul, ones, permute_dims, reshape, shape_of, where, zeros
from nbflow.ops import random as draw
from nbflow.ops._build import ArrayLike, as_tensor, convert
from nbflow.ops.conv import IntsLike, PaddingLike
from nbflow.ops.windows import channels_of, check_layout, many
from nbflow.spec import format_shape, kind_of, normalize_axis
from nbflow.variable import Variable

Activation = Callable[..., Tensor]
# (shape, dtype) -> tensor
Initializer = Callable[[tuple[int, ...], np.dtype[Any]], Tensor]


def dense(
    x: ArrayLike,
    units: int,
    activation: Activation | None = None,
    use_bias: bool = True,
    initializer: Initializer | None = None,
    *,
    name: str | None = None,
) -> Tensor:
    """activation(x @ weights + bias): (…, features) → (…, units). Raises ShapeError when features is not known."""
    tensor = _floating(x, "dense")
    with _layer(tensor, name, "dense"):
        features = _known(tensor, -1, "dense")
        units = _count(units, "units")
        weights = _weights("weights", (features, units), tensor.dtype, features, units, initializer)
        y = matmul(tensor, weights)
        if use_bias:
            y = y + _zeros("bias", (units,), tensor.dtype)
        return _activated(y, activation)


def conv2d(
    x: ArrayLike,
    filters: int,
    kernel_size: IntsLike,
    strides: IntsLike = 1,
    padding: PaddingLike = "SAME",
    activation: Activation | None = None,
    use_bias: bool = True,
    data_format: str = "NHWC",
    dilation: IntsLike = 1,
    groups: int = 1,
    initializer: Initializer | None = None,
    *,
    name: str | None = None,
) -> Tensor:
    """Convolution of images with `filters` filters, plus a bias for each. See nf.nn.conv2d for the other arguments.

    Raises ShapeError when the number of channels is not known.
    """
    tensor = _floating(x, "conv2d")
    with _layer(tensor, name, "conv2d"):
        channels = channels_of(tensor.shape, check_layout(data_format, 2))
        if channels is None:
            raise ShapeError(f"conv2d needs the number of channels of {tensor.name}, {format_shape(tensor.shape)}")
        if groups < 1 or channels % groups:
            raise ShapeError(f"{channels} channels do not divide into {groups} groups")
        kh, kw = many(kernel_size, 2, "kernel_size")
        shape = (kh, kw, channels // groups, _count(filters, "filters"))
        fans = (kh * kw * shape[2], kh * kw * filters // groups)
        weights = _weights("weights", shape, tensor.dtype, *fans, initializer)
        y = nn.conv2d(tensor, weights, strides, padding, data_format, dilation, groups)
        if use_bias:
            bias = _zeros("bias", (filters,), tensor.dtype)
            y = y + (bias if data_format == "NHWC" else reshape(bias, (filters, 1, 1)))
        return _activated(y, activation)


def embedding(
    ids: ArrayLike,
    size: int,
    dim: int,
    dtype: Any = "float32",
    initializer: Initializer | None = None,
    *,
    name: str | None = None,
) -> Tensor:
    """Rows of a table of `size` vectors of `dim` numbers: ids (…) → (…, dim)."""
    numbers = convert(ids)
    if kind_of(numbers.dtype) not in "iu":
        raise DTypeError(f"embedding takes integer ids, {numbers.name} is {numbers.dtype}", where=numbers.node.where)
    with _layer(numbers, name, "embedding"):
        shape = (_count(size, "size"), _count(dim, "dim"))
        table = _variable("weights", shape, np.dtype(dtype), initializer or _embedding_normal)
        return nn.embedding_lookup(table, numbers)


def batch_norm(
    x: ArrayLike,
    training: bool | Tensor = True,
    momentum: float = 0.99,
    epsilon: float = 1e-5,
    axis: int = -1,
    center: bool = True,
    scale: bool = True,
    *,
    name: str | None = None,
) -> Tensor:
    """Batch normalisation with learnt scale and offset, and moving averages of mean and variance.

    - `training`: True normalises with the batch's moments and moves the averages; False uses the averages; a boolean
      scalar tensor decides at run time.
    - `momentum`: average = momentum · average + (1 - momentum) · batch.
    - `axis`: the channels, 1 for NCHW images; their number must be known.
    """
    tensor = _floating(x, "batch_norm")
    with _layer(tensor, name, "batch_norm"):
        channels = _known(tensor, axis, "batch_norm")
        shape = (channels,)
        gamma = _variable("scale", shape, tensor.dtype, _ones) if scale else None
        beta = _zeros("offset", shape, tensor.dtype) if center else None
        mean = _variable("moving_mean", shape, tensor.dtype, _no, trainable=False)
        variance = _variable("moving_variance", shape, tensor.dtype, _ones, trainable=False)
        decision = as_tensor(training)
        if decision is None and not training:
            return nn.batch_norm(tensor, gamma, beta, mean, variance, axis, epsilon)
        channel = normalize_axis(axis, len(tensor.shape or ()))
        others = [a for a in range(len(tensor.shape or ())) if a != channel]
        batch_mean, batch_variance = nn.moments(tensor, others)
        step = convert(1.0 - momentum, like=tensor)
        if decision is not None:
            step = where(decision, step, 0.0)
        moved = [
            average.assign_add((now - average) * step)
            for average, now in ((mean, batch_mean), (variance, batch_variance))
        ]
        if decision is not None:
            batch_mean = where(decision, batch_mean, mean)
            batch_variance = where(decision, batch_variance, variance)
        y = nn.batch_norm(tensor, gamma, beta, batch_mean, batch_variance, axis, epsilon)
        with graph_for([tensor]).control_dependencies(moved):
            return identity(y)


def layer_norm(
    x: ArrayLike,
    epsilon: float = 1e-5,
    center: bool = True,
    scale: bool = True,
    *,
    name: str | None = None,
) -> Tensor:
    """Layer normalisation over the last dimension, with learnt scale and offset."""
    tensor = _floating(x, "layer_norm")
    with _layer(tensor, name, "layer_norm"):
        shape = (_known(tensor, -1, "layer_norm"),)
        gamma = _variable("scale", shape, tensor.dtype, _ones) if scale else None
        beta = _zeros("offset", shape, tensor.dtype) if center else None
        return nn.layer_norm(tensor, gamma, beta, epsilon=epsilon)


def lstm(
    x: ArrayLike,
    units: int,
    return_sequences: bool = True,
    reverse: bool = False,
    initializer: Initializer | None = None,
    *,
    name: str | None = None,
) -> Tensor:
    """Long short-term memory over (n, time, features): (n, time, units), or the last step's (n, units).

    `time` must be known: the graph holds a copy of the cell for each step. The forget gate's bias starts at 1
    (Jozefowicz et al., ICML 2015). See nf.nn.lstm for the formulas.
    """
    tensor = _floating(x, "lstm")
    with _layer(tensor, name, "lstm"):
        weights, recurrent = _recurrent(tensor, "lstm", _count(units, "units"), 4, initializer)
        bias = _variable("bias", (4 * units,), tensor.dtype, _forget_ones)
        outputs, (last, _) = nn.lstm(tensor, weights, recurrent, bias, reverse=reverse)
        return outputs if return_sequences else last


def gru(
    x: ArrayLike,
    units: int,
    return_sequences: bool = True,
    reverse: bool = False,
    initializer: Initializer | None = None,
    *,
    name: str | None = None,
) -> Tensor:
    """Gated recurrent units over (n, time, features): (n, time, units), or the last step's (n, units).

    `time` must be known: the graph holds a copy of the cell for each step. See nf.nn.gru for the formulas.
    """
    tensor = _floating(x, "gru")
    with _layer(tensor, name, "gru"):
        weights, recurrent = _recurrent(tensor, "gru", _count(units, "units"), 3, initializer)
        bias, inner = (_zeros(what, (3 * units,), tensor.dtype) for what in ("bias", "recurrent_bias"))
        outputs, last = nn.gru(tensor, weights, recurrent, bias, inner, reverse=reverse)
        return outputs if return_sequences else last


def _recurrent(
    x: Tensor, layer: str, units: int, gates: int, initializer: Initializer | None
) -> tuple[Variable, Variable]:
    """The weights of the inputs and of the state."""
    features = _known(x, -1, layer)
    weights = _weights("weights", (features, gates * units), x.dtype, features, units, initializer)
    return weights, _weights("recurrent", (units, gates * units), x.dtype, units, units, initializer)


def multi_head_attention(
    query: ArrayLike,
    heads: int,
    key: ArrayLike | None = None,
    value: ArrayLike | None = None,
    depth: int | None = None,
    mask: ArrayLike | None = None,
    causal: bool = False,
    *,
    name: str | None = None,
) -> Tensor:
    """Attention in `heads` projected subspaces of `depth` numbers, projected back to the size of the query.

    - query (batch, queries, features), key and value (batch, keys, …); the query itself when left out.
    - `mask`: boolean, broadcasts against (batch, heads, queries, keys).
    - `depth`: features / heads when left out.

    Vaswani et al., arXiv 1706.03762, section 3.2.2.
    """
    asked = _floating(query, "multi_head_attention")
    keys = asked if key is None else convert(key)
    values = keys if value is None else convert(value)
    with _layer(asked, name, "multi_head_attention"):
        features = _known(asked, -1, "multi_head_attention")
        if depth is None:
            if features % heads:
                raise ShapeError(f"{features} features do not divide into {heads} heads; give depth=")
            depth = features // heads
        q, k, v = (
            _split_heads(dense(tensor, heads * depth, name=what), heads, depth)
            for what, tensor in (("query", asked), ("key", keys), ("value", values))
        )
        seen = permute_dims(nn.attention(q, k, v, mask, causal), (0, 2, 1, 3))
        length = shape_of(asked)[1] if (asked.shape or (None, None))[1] is None else (asked.shape or ())[1]
        return dense(reshape(seen, (-1, length, heads * depth)), features, name="output")


def _split_heads(x: Tensor, heads: int, depth: int) -> Tensor:
    """(batch, time, heads · depth) → (batch, heads, time, depth)."""
    if x.spec.rank != 3:
        raise ShapeError(f"multi_head_attention takes (batch, time, features), not {format_shape(x.shape)}")
    time = shape_of(x)[1] if (x.shape or (None, None))[1] is None else (x.shape or ())[1]
    return permute_dims(reshape(x, (-1, time, heads, depth)), (0, 2, 1, 3))


# --- initial values --------------------------------------------------------------------------------------------------


def glorot_uniform(fan_in: int, fan_out: int) -> Initializer:
    """Uniform in ±√(6 / (fan_in + fan_out)). Glorot and Bengio, AISTATS 2010, equation 16."""
    limit = math.sqrt(6 / max(fan_in + fan_out, 1))

    def make(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
        return draw.uniform(shape, -limit, limit, dtype)

    return make


def _embedding_normal(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
    return draw.normal(shape, 0.0, shape[1] ** -0.5, dtype)


def _forget_ones(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
    """1 in the second quarter, the forget gate; else 0."""
    quarter = shape[0] // 4
    return convert(np.repeat([0, 1, 0, 0], quarter).astype(dtype))


def _no(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
    return zeros(shape, dtype=dtype)


def _ones(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
    return ones(shape, dtype=dtype)


# --- what all layers do ----------------------------------------------------------------------------------------------


@contextmanager
def _layer(x: Tensor, name: str | None, default: str) -> Iterator[None]:
    graph = graph_for([x])
    with graph.as_default(), graph.absolute_scope(graph.scoped(name) if name else graph.unique(default)):
        yield


def _variable(
    name: str, shape: tuple[int, ...], dtype: np.dtype[Any], initializer: Initializer, *, trainable: bool = True
) -> Variable:
    graph = get_graph()
    # The initial value belongs to no step, so to no dependency around the layer.
    with graph.control_dependencies(None), graph.name_scope(name):
        initial = initializer(shape, dtype)
    return Variable(initial, name=name, trainable=trainable)


def _weights(
    name: str, shape: tuple[int, ...], dtype: np.dtype[Any], fan_in: int, fan_out: int, initializer: Initializer | None
) -> Variable:
    return _variable(name, shape, dtype, initializer or glorot_uniform(fan_in, fan_out))


def _zeros(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Variable:
    return _variable(name, shape, dtype, _no)


def _floating(x: ArrayLike, layer: str) -> Tensor:
    tensor = convert(x)
    if kind_of(tensor.dtype) != "f":
        raise DTypeError(
            f"{layer} takes floating numbers, {tensor.name} is {tensor.dtype}; use nf.astype first",
            where=tensor.node.where,
        )
    return tensor


def _known(x: Tensor, axis: int, layer: str) -> int:
    """The length of dimension `axis`, which the layer's variables depend on."""
    size = x.shape[normalize_axis(axis, len(x.shape))] if x.shape else None
    if size is None:
        raise ShapeError(
            f"{layer} needs to know dimension {axis} of {x.name}, {format_shape(x.shape)}; "
            "give the placeholder its size, or reshape to it",
            where=x.node.where,
        )
    return size


def _count(value: int, what: str) -> int:
    if not isinstance(value, (int, np.integer)) or value < 1:
        raise GraphError(f"{what} is a positive integer, not {value!r}")
    return int(value)


def _activated(y: Tensor, activation: Activation | None) -> Tensor:
    return y if activation is None else activation(y)
