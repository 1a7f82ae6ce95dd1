"""Normalisation with learnt scale and offset."""

from __future__ import annotations

from nbflow import nn
from nbflow.graph import Tensor, graph_for
from nbflow.layers.common import floating, known, layer_scope, no_value, ones_value, variable, zeros_variable
from nbflow.ops import identity, where
from nbflow.ops._build import ArrayLike, as_tensor, convert
from nbflow.spec import normalize_axis
from nbflow.variable import Variable


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
    tensor = floating(x, "batch_norm")
    with layer_scope(tensor, name, "batch_norm"):
        channels = known(tensor, axis, "batch_norm")
        shape = (channels,)
        gamma = variable("scale", shape, tensor.dtype, ones_value) if scale else None
        beta = zeros_variable("offset", shape, tensor.dtype) if center else None
        mean = variable("moving_mean", shape, tensor.dtype, no_value, trainable=False)
        variance = variable("moving_variance", shape, tensor.dtype, ones_value, trainable=False)
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
    tensor = floating(x, "layer_norm")
    with layer_scope(tensor, name, "layer_norm"):
        shape = (known(tensor, -1, "layer_norm"),)
        gamma = variable("scale", shape, tensor.dtype, ones_value) if scale else None
        beta = zeros_variable("offset", shape, tensor.dtype) if center else None
        return nn.layer_norm(tensor, gamma, beta, epsilon=epsilon)


def rms_norm(x: ArrayLike, epsilon: float = 1e-6, *, name: str | None = None) -> Tensor:
    """Normalisation by the root mean square over the last dimension, with learnt scale. See nf.nn.rms_norm."""
    tensor = floating(x, "rms_norm")
    with layer_scope(tensor, name, "rms_norm"):
        gamma = variable("scale", (known(tensor, -1, "rms_norm"),), tensor.dtype, ones_value)
        return nn.rms_norm(tensor, gamma, epsilon=epsilon)


def group_norm(x: ArrayLike, groups: int, axis: int = -1, epsilon: float = 1e-5, *, name: str | None = None) -> Tensor:
    """Normalisation of groups of channels of each example, with learnt scale and offset. See nf.nn.group_norm."""
    tensor = floating(x, "group_norm")
    with layer_scope(tensor, name, "group_norm"):
        gamma, beta = _scale_and_offset(tensor, axis, "group_norm")
        return nn.group_norm(tensor, groups, gamma, beta, axis, epsilon)


def instance_norm(x: ArrayLike, axis: int = -1, epsilon: float = 1e-5, *, name: str | None = None) -> Tensor:
    """Normalisation of each channel of each example, with learnt scale and offset. See nf.nn.instance_norm."""
    tensor = floating(x, "instance_norm")
    with layer_scope(tensor, name, "instance_norm"):
        gamma, beta = _scale_and_offset(tensor, axis, "instance_norm")
        return nn.instance_norm(tensor, gamma, beta, axis, epsilon)


def _scale_and_offset(x: Tensor, axis: int, layer: str) -> tuple[Variable, Variable]:
    shape = (known(x, axis, layer),)
    return variable("scale", shape, x.dtype, ones_value), zeros_variable("offset", shape, x.dtype)
