"""Dense layers and embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np

from nbflow import nn
from nbflow.errors import DTypeError
from nbflow.graph import Tensor
from nbflow.layers.common import (
    Activation,
    Initializer,
    activated,
    count,
    embedding_normal,
    floating,
    known,
    layer_scope,
    variable,
    weight_variable,
    zeros_variable,
)
from nbflow.ops import matmul
from nbflow.ops._build import ArrayLike, convert
from nbflow.spec import kind_of


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
    tensor = floating(x, "dense")
    with layer_scope(tensor, name, "dense"):
        features = known(tensor, -1, "dense")
        units = count(units, "units")
        weights = weight_variable("weights", (features, units), tensor.dtype, features, units, initializer)
        y = matmul(tensor, weights)
        if use_bias:
            y = y + zeros_variable("bias", (units,), tensor.dtype)
        return activated(y, activation)


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
    with layer_scope(numbers, name, "embedding"):
        shape = (count(size, "size"), count(dim, "dim"))
        table = variable("weights", shape, np.dtype(dtype), initializer or embedding_normal)
        return nn.embedding_lookup(table, numbers)
