"""Random numbers. They are nbflow's: drawn from the graph's seed, the node's name and the step; `seed` is ignored."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper

from nbflow import ops
from nbflow import random as draw
from nbflow.graph import Tensor
from nbflow.onnx.registry import Call, translates
from nbflow.onnx.translators.elementwise import number
from nbflow.spec import as_dtype, kind_of


def _dtype(c: Call, like: Tensor | None = None) -> np.dtype[Any]:
    code = c.attrs.get("dtype")
    if code is not None:
        return as_dtype(helper.tensor_dtype_to_np_dtype(code))
    return np.dtype(np.float32) if like is None else like.dtype


def _shape(c: Call, x: Tensor) -> tuple[int, ...]:
    shape = x.shape
    if shape is None or None in shape:
        raise c.needs(x, "the shape")
    return tuple(int(d or 0) for d in shape)


@translates("RandomUniform")
def _uniform(c: Call) -> Any:
    return draw.uniform(c.attrs["shape"], c.attr("low", 0.0), c.attr("high", 1.0), _dtype(c))


@translates("RandomNormal")
def _normal(c: Call) -> Any:
    return draw.normal(c.attrs["shape"], c.attr("mean", 0.0), c.attr("scale", 1.0), _dtype(c))


@translates("RandomUniformLike")
def _uniform_like(c: Call) -> Any:
    low, high = c.attr("low", 0.0), c.attr("high", 1.0)
    return draw.uniform_like(c[0], _dtype(c, c[0])) * (high - low) + low


@translates("RandomNormalLike")
def _normal_like(c: Call) -> Any:
    return draw.normal_like(c[0], c.attr("mean", 0.0), c.attr("scale", 1.0), _dtype(c, c[0]))


@translates("Bernoulli", since=15)
def _bernoulli(c: Call) -> Any:
    drawn = draw.uniform_like(c[0], c[0].dtype)
    return ops.astype(ops.less(drawn, c[0]), _dtype(c, c[0]))


@translates("Multinomial", since=7)
def _multinomial(c: Call) -> Any:
    """Classes drawn from logarithms of probabilities: the greatest after adding Gumbel noise to each."""
    logits, count = c[0], c.attr("sample_size", 1)
    batch, classes = _shape(c, logits)
    drawn = draw.uniform((batch, count, classes), dtype=logits.dtype if kind_of(logits.dtype) == "f" else "float32")
    noise = ops.negative(ops.log(ops.negative(ops.log(ops.maximum(drawn, number(1e-20, drawn))))))
    code = c.attrs.get("dtype")
    wanted = np.dtype(np.int32) if code is None else as_dtype(helper.tensor_dtype_to_np_dtype(code))
    return ops.astype(ops.argmax(logits[:, None, :] + noise, axis=-1), wanted)
