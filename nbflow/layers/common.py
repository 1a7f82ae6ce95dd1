"""What all layers do: their scope, their variables, initial values, and checks of arguments."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from nbflow.errors import DTypeError, GraphError, ShapeError
from nbflow.graph import Tensor, get_graph, graph_for
from nbflow.ops import ones, zeros
from nbflow.ops import random as draw
from nbflow.ops._build import ArrayLike, convert
from nbflow.spec import format_shape, kind_of, normalize_axis
from nbflow.variable import Variable

Activation = Callable[..., Tensor]
# (shape, dtype) -> tensor
Initializer = Callable[[tuple[int, ...], np.dtype[Any]], Tensor]

# --- initial values --------------------------------------------------------------------------------------------------


def glorot_uniform(fan_in: int, fan_out: int) -> Initializer:
    """Uniform in ±√(6 / (fan_in + fan_out)). Glorot and Bengio, AISTATS 2010, equation 16."""
    limit = math.sqrt(6 / max(fan_in + fan_out, 1))

    def make(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
        return draw.uniform(shape, -limit, limit, dtype)

    return make


def embedding_normal(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
    return draw.normal(shape, 0.0, shape[1] ** -0.5, dtype)


def forget_ones(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
    """1 in the second quarter, the forget gate; else 0."""
    quarter = shape[0] // 4
    return convert(np.repeat([0, 1, 0, 0], quarter).astype(dtype))


def no_value(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
    return zeros(shape, dtype=dtype)


def ones_value(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
    return ones(shape, dtype=dtype)


# --- scopes, variables, checks ---------------------------------------------------------------------------------------


@contextmanager
def layer_scope(x: Tensor, name: str | None, default: str) -> Iterator[None]:
    graph = graph_for([x])
    with graph.as_default(), graph.absolute_scope(graph.scoped(name) if name else graph.unique(default)):
        yield


def variable(
    name: str, shape: tuple[int, ...], dtype: np.dtype[Any], initializer: Initializer, *, trainable: bool = True
) -> Variable:
    graph = get_graph()
    # The initial value belongs to no step, so to no dependency around the layer.
    with graph.control_dependencies(None), graph.name_scope(name):
        initial = initializer(shape, dtype)
    return Variable(initial, name=name, trainable=trainable)


def weight_variable(
    name: str, shape: tuple[int, ...], dtype: np.dtype[Any], fan_in: int, fan_out: int, initializer: Initializer | None
) -> Variable:
    return variable(name, shape, dtype, initializer or glorot_uniform(fan_in, fan_out))


def zeros_variable(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Variable:
    return variable(name, shape, dtype, no_value)


def floating(x: ArrayLike, layer: str) -> Tensor:
    tensor = convert(x)
    if kind_of(tensor.dtype) != "f":
        raise DTypeError(
            f"{layer} takes floating numbers, {tensor.name} is {tensor.dtype}; use nf.astype first",
            where=tensor.node.where,
        )
    return tensor


def known(x: Tensor, axis: int, layer: str) -> int:
    """The length of dimension `axis`, which the layer's variables depend on."""
    size = x.shape[normalize_axis(axis, len(x.shape))] if x.shape else None
    if size is None:
        raise ShapeError(
            f"{layer} needs to know dimension {axis} of {x.name}, {format_shape(x.shape)}; "
            "give the placeholder its size, or reshape to it",
            where=x.node.where,
        )
    return size


def count(value: int, what: str) -> int:
    if not isinstance(value, (int, np.integer)) or value < 1:
        raise GraphError(f"{what} is a positive integer, not {value!r}")
    return int(value)


def activated(y: Tensor, activation: Activation | None) -> Tensor:
    return y if activation is None else activation(y)
