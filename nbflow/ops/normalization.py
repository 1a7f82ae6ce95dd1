"""Normalisation within each example: by groups of channels, by channel, by the root mean square, by near channels."""

from __future__ import annotations

from collections.abc import Sequence

from nbflow.errors import GraphError, ShapeError
from nbflow.graph import Tensor
from nbflow.ops._build import ArrayLike, convert
from nbflow.ops.comparison import greater, where
from nbflow.ops.elementwise import abs, pow, rsqrt, square
from nbflow.ops.manipulation import moveaxis
from nbflow.ops.nn import along, moments, op_scope
from nbflow.ops.pooling import avg_pool
from nbflow.ops.reduction import mean, sum
from nbflow.ops.shape import reshape, reshape_like, shape_of
from nbflow.spec import format_shape, normalize_axes, normalize_axis


def rms_norm(
    x: ArrayLike,
    /,
    scale: ArrayLike | None = None,
    axis: int | Sequence[int] = -1,
    epsilon: float = 1e-6,
    *,
    name: str | None = None,
) -> Tensor:
    """x / √(mean(x²) + epsilon) · scale, over `axis` of each example. Zhang and Sennrich, arXiv 1910.07467."""
    tensor = convert(x)
    if tensor.spec.rank is not None:
        normalize_axes(axis, tensor.spec.rank)
    with op_scope(name, "rms_norm", tensor):
        made = tensor * rsqrt(mean(square(tensor), axis=axis, keepdims=True) + epsilon)
        return made if scale is None else made * convert(scale, like=tensor)


def instance_norm(
    x: ArrayLike,
    /,
    scale: ArrayLike | None = None,
    offset: ArrayLike | None = None,
    axis: int = -1,
    epsilon: float = 1e-5,
    *,
    name: str | None = None,
) -> Tensor:
    """Each channel of each example to mean 0 and variance 1, then · scale + offset. Ulyanov et al., arXiv 1607.08022.

    - x: (n, …, channels), or channels at `axis`, with at least one dimension besides.
    - `scale`, `offset`: one number a channel.
    """
    tensor = convert(x)
    rank, channel = _checked(tensor, axis, "instance_norm")
    with op_scope(name, "instance_norm", tensor):
        middle, spread = moments(tensor, [a for a in range(1, rank) if a != channel], keepdims=True)
        return _scaled((tensor - middle) * rsqrt(spread + epsilon), scale, offset, channel, rank)


def group_norm(
    x: ArrayLike,
    groups: int,
    scale: ArrayLike | None = None,
    offset: ArrayLike | None = None,
    axis: int = -1,
    epsilon: float = 1e-5,
    *,
    name: str | None = None,
) -> Tensor:
    """Each of `groups` groups of channels of each example to mean 0 and variance 1, then · scale + offset.

    - x: (n, …, channels), or channels at `axis`; their number must be known and divide into the groups.
    - `scale`, `offset`: one number a channel.

    Wu and He, arXiv 1803.08494. Raises ShapeError for channels that do not divide.
    """
    tensor = convert(x)
    rank, channel = _checked(tensor, axis, "group_norm")
    channels = (tensor.shape or ())[channel]
    if channels is None or groups < 1 or channels % groups:
        raise ShapeError(
            f"group_norm divides a known number of channels into groups: {tensor.name} {format_shape(tensor.shape)} "
            f"has {channels} along axis {axis}, {groups} groups are asked for"
        )
    with op_scope(name, "group_norm", tensor):
        # Dimensions that are not known now are looked up when the op runs.
        found = None if tensor.spec.is_static else shape_of(tensor)
        sizes: list[Tensor | int] = []
        for number, size in enumerate(tensor.shape or ()):
            if size is not None:
                sizes.append(size)
            elif found is not None:
                sizes.append(found[number])
        split = [*sizes[:channel], groups, channels // groups, *sizes[channel + 1 :]]
        parts = reshape(tensor, split)
        middle, spread = moments(parts, [a for a in range(1, rank + 1) if a != channel], keepdims=True)
        made = reshape((parts - middle) * rsqrt(spread + epsilon), sizes)
        return _scaled(made, scale, offset, channel, rank)


def local_response_norm(
    x: ArrayLike,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    bias: float = 1.0,
    axis: int = -1,
    *,
    name: str | None = None,
) -> Tensor:
    """x / (bias + alpha / size · Σ x²)^beta, the sum over the `size` channels around each. Krizhevsky et al., 2012.

    - `size`: (size - 1) // 2 channels before and the rest behind, as many as there are.
    - `axis`: the channels, 1 for NCHW images.

    Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep Convolutional Neural Networks", section 3.3.
    """
    if size < 1:
        raise GraphError(f"the size of local_response_norm is a positive integer, not {size!r}")
    tensor = convert(x)
    _, channel = _checked(tensor, axis, "local_response_norm")
    before = (size - 1) // 2
    with op_scope(name, "local_response_norm", tensor):
        last = moveaxis(tensor, channel, -1)
        channels = shape_of(last)[-1] if last.shape is None or last.shape[-1] is None else last.shape[-1]
        squares = reshape(square(last), (-1, channels, 1))
        # A stride of 1 over a padding that fills the window gives one sum a channel.
        sums = avg_pool(squares, size, 1, ((before, size - 1 - before),), "NWC", count="one")
        near = moveaxis(reshape_like(sums, last), -1, channel)
        return tensor * pow(near * (alpha / size) + bias, -beta)


def lp_normalize(x: ArrayLike, /, p: float = 2.0, axis: int = -1, *, name: str | None = None) -> Tensor:
    """x / (Σ |x|ᵖ)^(1/p) along `axis`; where the sum is 0, so is the result."""
    if not p > 0:
        raise GraphError(f"the p of lp_normalize is positive, not {p}")
    tensor = convert(x)
    with op_scope(name, "lp_normalize", tensor):
        size = sum(abs(tensor) if p == 1 else pow(abs(tensor), float(p)), axis=axis, keepdims=True)
        some = greater(size, 0)
        # The inner choice keeps infinite slopes out of the gradient.
        return where(some, tensor / pow(where(some, size, 1.0), 1.0 / p), 0.0)


def _checked(x: Tensor, axis: int, what: str) -> tuple[int, int]:
    """(rank, channel axis)."""
    if x.shape is None or len(x.shape) < 2:
        raise ShapeError(f"{what} takes (n, …, channels), not {x.name} {format_shape(x.shape)}", where=x.node.where)
    channel = normalize_axis(axis, len(x.shape))
    if channel == 0:
        raise ShapeError(f"the channels of {what} are not at axis 0, where the examples are", where=x.node.where)
    return len(x.shape), channel


def _scaled(x: Tensor, scale: ArrayLike | None, offset: ArrayLike | None, channel: int, rank: int) -> Tensor:
    made = x if scale is None else x * along(convert(scale, like=x), channel, rank)
    return made if offset is None else made + along(convert(offset, like=x), channel, rank)
