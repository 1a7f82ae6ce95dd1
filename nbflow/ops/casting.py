"""A tensor in another dtype."""

from __future__ import annotations

from collections.abc import Sequence

from nbflow import op
from nbflow.errors import DTypeError
from nbflow.graph import Node, Tensor
from nbflow.op import Attrs
from nbflow.ops._build import ArrayLike, DeviceLike, build, convert, placing
from nbflow.ops._complex import fitted
from nbflow.ops._elementwise import Grads
from nbflow.spec import DTypeLike, TensorSpec, as_dtype, kind_of


def _astype_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    if kind_of(inputs[0].dtype) == "c" and kind_of(attrs["dtype"]) != "c":
        raise DTypeError(f"casting {inputs[0].dtype} to {attrs['dtype']} would drop the imaginary part")
    return [TensorSpec(inputs[0].shape, attrs["dtype"])]


def _astype_gradient(node: Node, grads: Grads) -> Grads:
    (grad,) = grads
    assert grad is not None  # the only output
    return [fitted(grad, node.inputs[0]) if kind_of(node.inputs[0].dtype) in "fc" else None]


op.define(
    "astype",
    infer=_astype_infer,
    gradient=_astype_gradient,
    out=True,
    elementwise=True,
    doc="x in another dtype; floats to integers truncate. attrs: dtype.",
)


@placing
def astype(
    x: ArrayLike, dtype: DTypeLike, /, *, copy: bool = True, device: DeviceLike = None, name: str | None = None
) -> Tensor:
    """`x` in another dtype; `x` itself when it has it already. Floats become integers by truncation.

    `copy` is the standard's and changes nothing: the value of a tensor never does.
    """
    tensor = convert(x)
    wanted = as_dtype(dtype)
    if tensor.dtype == wanted and name is None:
        return tensor
    return build("astype", (tensor,), {"dtype": wanted}, name=name)
