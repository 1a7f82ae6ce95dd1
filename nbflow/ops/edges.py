"""What a tensor looks like on its way to another device."""

from __future__ import annotations

from collections.abc import Sequence

from nbflow import op
from nbflow.errors import DTypeError, GraphError
from nbflow.graph import Node, Tensor
from nbflow.op import Attrs
from nbflow.ops._build import ArrayLike, build, convert, same_infer
from nbflow.spec import TensorSpec, kind_of

Grads = Sequence[Tensor | None]

# What float32 and float64 can be on the way.
COMPRESSED = ("bfloat16", "float16")


def _gradient(node: Node, grads: Grads) -> Grads:
    # The gradient travels back over the same edge.
    return [None if g is None else compressed(g, str(node.attrs["dtype"])) for g in grads]


def _infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    if attrs["dtype"] not in COMPRESSED:
        raise GraphError(f"tensors cannot travel as {attrs['dtype']!r}; choose one of {', '.join(COMPRESSED)}")
    if kind_of(inputs[0].dtype) != "f":
        raise DTypeError(f"only floats can travel in 16 bits, not {inputs[0].dtype}")
    return same_infer(inputs, attrs)


op.define(
    "compressed",
    infer=_infer,
    gradient=_gradient,
    cost=op.free_cost,
    alias=True,
    doc="The same value, which travels to other devices in 16 bits.",
)


def compressed(x: ArrayLike, dtype: str = "bfloat16", /, *, name: str | None = None) -> Tensor:
    """`x`, which travels to other devices as `dtype`: bfloat16 or float16. So does its gradient, back.

    On the device where `x` is nothing changes; those that receive it get its rounded values, in the dtype of `x`.
    bfloat16 keeps the range of float32 and 8 bits of precision (a relative error of at most 2^-9 each); float16 keeps
    11 bits (2^-12), and what is beyond 65504 becomes infinite. Floats of 16 bits or fewer travel as they are. Raises
    DTypeError for what is no float, and GraphError for another `dtype`.
    """
    return build("compressed", (convert(x),), {"dtype": dtype}, name=name)
