"""Normalisation and dropout."""

from __future__ import annotations

from typing import Any

import numpy as np

from nbflow import ops
from nbflow.graph import Tensor
from nbflow.onnx.registry import Call, translates
from nbflow.onnx.translators.elementwise import number
from nbflow.onnx.translators.windows import per_channel
from nbflow.ops.nn import dropout
from nbflow.ops.normalization import instance_norm, local_response_norm


@translates("BatchNormalization")
def _batch_norm(c: Call) -> Any:
    """In inference the running mean and variance of the file; in training those of the batch, and new running ones."""
    x, scale, offset, mean, variance = (c[n] for n in range(5))
    rank, dtype = c.rank(), c[0].dtype
    training = c.attr("training_mode", 0) if c.opset >= 14 else (c.opset < 7 and not c.attr("is_test", 0))
    outputs: list[Tensor | None] = []
    if training:
        axes = tuple(n for n in range(rank) if n != 1)
        momentum = c.attr("momentum", 0.9)
        middle = ops.mean(x, axis=axes)
        spread = ops.mean(ops.square(x - per_channel(middle, rank)), axis=axes)
        kept = [old * momentum + ops.astype(new, old.dtype) * (1 - momentum)
                for old, new in ((mean, middle), (variance, spread))]  # fmt: skip
        outputs = list(kept)
        mean, variance = middle, spread
    factor = ops.astype(scale, dtype) * ops.rsqrt(ops.astype(variance, dtype) + number(c.attr("epsilon", 1e-5), x))
    made = (x - per_channel(ops.astype(mean, dtype), rank)) * per_channel(factor, rank)
    return [made + per_channel(ops.astype(offset, dtype), rank), *outputs]


@translates("InstanceNormalization")
def _instance_norm(c: Call) -> Any:
    return instance_norm(c[0], c[1], c[2], axis=1, epsilon=c.attr("epsilon", 1e-5))


@translates("LRN")
def _lrn(c: Call) -> Any:
    return local_response_norm(c[0], c.attrs["size"], c.attr("alpha"), c.attr("beta"), c.attr("bias"), axis=1)


@translates("Dropout")
def _dropout(c: Call) -> Any:
    """Nothing is dropped in inference, which is how nearly all models are saved."""
    x = c[0]
    mask = ops.full_like(x, 1, dtype="bool" if c.opset >= 10 else x.dtype)
    training = c.static(2)
    rate = float(c.attr("ratio", 0.5)) if c.opset < 12 else (0.5 if c.get(1) is None else float(c.known(1)))
    if c.opset < 12:
        active = c.opset < 7 and not c.attr("is_test", 0)
    elif c.get(2) is None:
        active = False
    else:
        active = bool(c.known(2) if training is None else training)
    if not active or rate == 0:
        return ops.identity(x), mask
    # Kept elements are scaled by 1 / (1 - rate), the others are 0: dropping ones gives the mask.
    kept = dropout(ops.ones_like(x), rate)
    return x * kept, ops.not_equal(kept, number(np.zeros(()), x))
