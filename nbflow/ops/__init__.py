"""The ops, a file a family. This page lists what `nf.<name>` offers of them, in the order of the families."""

from __future__ import annotations

from nbflow.graph import TENSOR_METHODS
from nbflow.ops.creation import (
    arange,
    constant,
    eye,
    full,
    full_like,
    group,
    identity,
    linspace,
    ones,
    ones_like,
    placeholder,
    stop_gradient,
    zeros,
    zeros_like,
)
from nbflow.ops.shape import broadcast_to, reshape, shape_of

TENSOR_METHODS.update(reshape=reshape)
