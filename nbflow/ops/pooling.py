"""Pooling over one, two or three dimensions, forward and backward.

The layouts and paddings are those of convolution (`windows.py`). Where a window holds its maximum several times, the
first in row-major order counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Protocol

from nbflow import op
from nbflow.errors import DTypeError, GraphError
from nbflow.graph import Node, Tensor
from nbflow.op import Attrs, Cost
from nbflow.ops._build import INT64, ArrayLike, build, convert, named, require_kind
from nbflow.ops.conv import IntsLike, PaddingLike, floating, ranked
from nbflow.ops.elementwise import abs, pow
from nbflow.ops.nn import op_scope
from nbflow.ops.shape import shape_infer, shape_like
from nbflow.ops.windows import (
    LAYOUTS,
    channels_of,
    check_layout,
    check_padding,
    layout_of,
    many,
    window_output,
)
from nbflow.spec import TensorSpec, kind_of

Grads = Sequence[Tensor | None]

# What the sum of a window is divided by.
_COUNTS = ("inside", "padded", "one")


def _only(grads: Grads) -> Tensor:
    (grad,) = grads
    assert grad is not None  # the only output of the op
    return grad


# --- rules -----------------------------------------------------------------------------------------------------------


def _pool_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    x = inputs[0]
    if kind_of(x.dtype) not in "iuf":
        raise DTypeError(f"pooling takes real numbers, not {x.dtype}")
    channels = channels_of(x.shape, attrs["data_format"])
    return [TensorSpec(window_output(x.shape, attrs["window"], channels, attrs), x.dtype)]


def _argmax_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    return [TensorSpec(_pool_infer(inputs, attrs)[0].shape, INT64)]


def _average_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    floating(inputs[0])
    return _pool_infer(inputs, attrs)


def _cost(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], attrs: Attrs) -> Cost:
    small = min(op.size_of(s) for s in (inputs[0], outputs[0]))
    return Cost(prod(attrs["window"]) * small, op.nbytes_of(inputs) + op.nbytes_of(outputs))


def _max_gradient(node: Node, grads: Grads) -> Grads:
    return [build("max_pool_grad", (_only(grads), node.inputs[0], node.outputs[0]), node.attrs)]


def _max_grad_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    return [TensorSpec(ranked(inputs[1].shape, attrs), inputs[0].dtype)]


def _max_grad_gradient(node: Node, grads: Grads) -> Grads:
    """Linear in dy; which place is the maximum does not change with x, but for ties."""
    return [build("max_pool_pick", (_only(grads), *node.inputs[1:]), node.attrs), None, None]


def _max_pick_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    return [TensorSpec(ranked(inputs[2].shape, attrs), inputs[0].dtype)]


def _max_pick_gradient(node: Node, grads: Grads) -> Grads:
    return [build("max_pool_grad", (_only(grads), *node.inputs[1:]), node.attrs), None, None]


def _average_gradient(node: Node, grads: Grads) -> Grads:
    shape, vector = shape_like(node.inputs[0])
    return [build("avg_pool_grad", (_only(grads), *vector), {**node.attrs, "shape": shape})]


def _average_grad_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    require_kind(inputs[0], "f", "averages are of floating point numbers")
    return [TensorSpec(ranked(shape_infer(inputs[1:], attrs), attrs), inputs[0].dtype)]


def _average_grad_gradient(node: Node, grads: Grads) -> Grads:
    attrs = {k: a for k, a in node.attrs.items() if k != "shape"}
    return [build("avg_pool", (_only(grads),), attrs), *[None for _ in node.inputs[1:]]]


_ATTRS = "attrs: window, strides, padding, data_format, dilation, ceil"

op.define(
    "max_pool",
    infer=_pool_infer,
    gradient=_max_gradient,
    cost=_cost,
    out=True,
    doc=f"The maximum of each window, over 1, 2 or 3 dimensions. {_ATTRS}.",
)
op.define(
    "max_pool_argmax",
    infer=_argmax_infer,
    gradient=None,
    cost=_cost,
    doc="Where each window's first maximum is: its row-major number among the places of its example and channel "
    f"(int64). {_ATTRS}.",
)
op.define(
    "max_pool_grad",
    infer=_max_grad_infer,
    gradient=_max_grad_gradient,
    cost=_cost,
    doc=f"(dy, x, y = max_pool(x)) → each dy where its window's first maximum is. {_ATTRS}.",
)
op.define(
    "max_pool_pick",
    infer=_max_pick_infer,
    gradient=_max_pick_gradient,
    cost=_cost,
    doc=f"(v, x, y = max_pool(x)) → v where each window's first maximum is: max_pool_grad, transposed. {_ATTRS}.",
)
op.define(
    "avg_pool",
    infer=_average_infer,
    gradient=_average_gradient,
    cost=_cost,
    out=True,
    doc="The sum of each window divided by: the places it covers (count 'inside'), those and the padding ('padded'), "
    f"or one ('one'). {_ATTRS}, count.",
)
op.define(
    "avg_pool_grad",
    infer=_average_grad_infer,
    gradient=_average_grad_gradient,
    cost=_cost,
    doc=f"(dy[, shape of the images]) → dy in equal parts to the places averaged. {_ATTRS}, count, shape.",
)


# --- functions of any number of dimensions ---------------------------------------------------------------------------


def _attrs(
    x: Tensor,
    window: IntsLike,
    strides: IntsLike | None,
    padding: PaddingLike,
    data_format: str | None,
    dilation: IntsLike,
    ceil: bool,
) -> dict[str, Any]:
    layout, n = layout_of(data_format, (x.spec.rank,), "pooling")
    size = many(window, n, "window")
    spread = many(dilation, n, "dilation")
    checked = check_padding(padding, n)
    if isinstance(checked, tuple):
        for sides, k, d in zip(checked, size, spread, strict=True):
            if sides[0] > (k - 1) * d or sides[1] > (k - 1) * d:
                raise GraphError(
                    f"padding {checked} is as large as the window {size}: some windows would hold no place"
                )
    return {
        "window": size,
        "strides": size if strides is None else many(strides, n, "strides"),
        "padding": checked,
        "data_format": layout,
        "dilation": spread,
        "ceil": bool(ceil),
    }


def max_pool(
    x: ArrayLike,
    window: IntsLike,
    strides: IntsLike | None = None,
    padding: PaddingLike = "VALID",
    data_format: str | None = None,
    dilation: IntsLike = 1,
    ceil: bool = False,
    *,
    name: str | None = None,
) -> Tensor:
    """The maximum of each window of (n, *places, channels); `strides` default to the window.

    `ceil`: a last window that reaches beyond the end counts too. See conv for `padding` and `data_format`.
    """
    tensor = convert(x)
    return build(
        "max_pool", (tensor,), _attrs(tensor, window, strides, padding, data_format, dilation, ceil), name=name
    )


def max_pool_with_argmax(
    x: ArrayLike,
    window: IntsLike,
    strides: IntsLike | None = None,
    padding: PaddingLike = "VALID",
    data_format: str | None = None,
    dilation: IntsLike = 1,
    ceil: bool = False,
    *,
    name: str | None = None,
) -> tuple[Tensor, Tensor]:
    """max_pool, and where each maximum is: its row-major number among the places of its example and channel, int64.

    These are the indices that max_unpool takes. With the channels first, ONNX's are (example · channels + channel) ·
    places more.
    """
    tensor = convert(x)
    attrs = _attrs(tensor, window, strides, padding, data_format, dilation, ceil)
    with op_scope(name, "max_pool_with_argmax", tensor):
        return build("max_pool", (tensor,), attrs), build("max_pool_argmax", (tensor,), attrs)


def avg_pool(
    x: ArrayLike,
    window: IntsLike,
    strides: IntsLike | None = None,
    padding: PaddingLike = "VALID",
    data_format: str | None = None,
    dilation: IntsLike = 1,
    ceil: bool = False,
    count: str = "inside",
    *,
    name: str | None = None,
) -> Tensor:
    """The mean of each window of (n, *places, channels); `strides` default to the window.

    `count`: what the sum is divided by. "inside": the places in the window; "padded": padding counts as well; "one":
    nothing, the result is the sum. The other arguments are those of max_pool.
    """
    if count not in _COUNTS:
        raise GraphError(f"count is 'inside', 'padded' or 'one', not {count!r}")
    tensor = convert(x)
    attrs = _attrs(tensor, window, strides, padding, data_format, dilation, ceil)
    return build("avg_pool", (tensor,), {**attrs, "count": count}, name=name)


def lp_pool(
    x: ArrayLike,
    window: IntsLike,
    p: float = 2.0,
    strides: IntsLike | None = None,
    padding: PaddingLike = "VALID",
    data_format: str | None = None,
    dilation: IntsLike = 1,
    ceil: bool = False,
    *,
    name: str | None = None,
) -> Tensor:
    """(Σ |x|ᵖ)^(1/p) of each window. Its gradient is infinite where a whole window is 0 and p is above 1."""
    if not p > 0:
        raise GraphError(f"the p of lp_pool is positive, not {p}")
    tensor = convert(x)
    with op_scope(name, "lp_pool", tensor):
        total = avg_pool(pow(abs(tensor), float(p)), window, strides, padding, data_format, dilation, ceil, "one")
        return pow(total, 1.0 / p)


# --- functions of one, two and three dimensions ----------------------------------------------------------------------


class MaxPool(Protocol):
    """max_pool of one of the numbers of dimensions."""

    def __call__(
        self,
        x: ArrayLike,
        window: IntsLike,
        strides: IntsLike | None = None,
        padding: PaddingLike = "VALID",
        data_format: str = ...,
        dilation: IntsLike = 1,
        ceil: bool = False,
        *,
        name: str | None = None,
    ) -> Tensor: ...


class AvgPool(Protocol):
    """avg_pool of one of the numbers of dimensions."""

    def __call__(
        self,
        x: ArrayLike,
        window: IntsLike,
        strides: IntsLike | None = None,
        padding: PaddingLike = "VALID",
        data_format: str = ...,
        dilation: IntsLike = 1,
        ceil: bool = False,
        count: str = "inside",
        *,
        name: str | None = None,
    ) -> Tensor: ...


_DEFAULTS = {1: "NWC", 2: "NHWC", 3: "NDHWC"}


def _doc(what: str, n: int) -> str:
    noun, (last, first) = {1: "sequences", 2: "images", 3: "volumes"}[n], LAYOUTS[n]
    return f"nf.nn.{what} of {noun}, which are {last} unless `data_format` says {first}."


def _max_of(n: int) -> MaxPool:
    def pool(
        x: ArrayLike,
        window: IntsLike,
        strides: IntsLike | None = None,
        padding: PaddingLike = "VALID",
        data_format: str = _DEFAULTS[n],
        dilation: IntsLike = 1,
        ceil: bool = False,
        *,
        name: str | None = None,
    ) -> Tensor:
        return max_pool(x, window, strides, padding, check_layout(data_format, n), dilation, ceil, name=name)

    made: MaxPool = named(pool, f"max_pool{n}d", _doc("max_pool", n), __name__)
    return made


def _avg_of(n: int) -> AvgPool:
    def pool(
        x: ArrayLike,
        window: IntsLike,
        strides: IntsLike | None = None,
        padding: PaddingLike = "VALID",
        data_format: str = _DEFAULTS[n],
        dilation: IntsLike = 1,
        ceil: bool = False,
        count: str = "inside",
        *,
        name: str | None = None,
    ) -> Tensor:
        return avg_pool(x, window, strides, padding, check_layout(data_format, n), dilation, ceil, count, name=name)

    made: AvgPool = named(pool, f"avg_pool{n}d", _doc("avg_pool", n), __name__)
    return made


max_pool1d, max_pool2d, max_pool3d = (_max_of(n) for n in (1, 2, 3))
avg_pool1d, avg_pool2d, avg_pool3d = (_avg_of(n) for n in (1, 2, 3))
