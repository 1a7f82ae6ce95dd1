"""Ops on variables: the handle, reading, assigning, and the updates of optimizers.

A variable is three nodes: `variable` (its handle, named as the user said), `initialize` (writes the initial value when
there is none yet) and `read_variable` (handle → value). Everything that touches the state is colocated with the handle.
None of these ops is differentiable: gradients are taken with respect to the tensor that `read_variable` gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nbflow import op
from nbflow.errors import DTypeError, ShapeError
from nbflow.op import Attrs, Cost
from nbflow.spec import Shape, TensorSpec, format_shape, kind_of, shape_accepts

INT64 = np.dtype(np.int64)

# Which input of an update op is the gradient. Data parallelism copies what is upstream of it to each replica.
GRADIENT_INPUT: dict[str, int] = {
    "apply_sgd": 2,
    "apply_momentum": 3,
    "apply_adam": 5,
    "apply_rmsprop": 3,
    "apply_rmsprop_momentum": 4,
    "apply_rmsprop_centered": 5,
    "apply_adagrad": 3,
    "apply_lion": 3,
    "apply_lamb": 5,
    "apply_lars": 3,
    "gradient_join": 0,
    "sparse_join": 0,
}


# --- shape rules -----------------------------------------------------------------------------------------------------


def _variable_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    return [TensorSpec(attrs["shape"], attrs["dtype"], resource=True)]


def handle_of(inputs: Sequence[TensorSpec]) -> TensorSpec:
    """The first input. Raises DTypeError unless it is the handle of a variable."""
    if not inputs or not inputs[0].resource:
        got = str(inputs[0]) if inputs else "nothing"
        raise DTypeError(f"the first input is the handle of a variable, not {got}; use variable.handle")
    return inputs[0]


def _check_value(handle: TensorSpec, value: TensorSpec, what: str) -> None:
    if value.resource:
        raise DTypeError(f"the {what} is a value, not a handle; read the variable first")
    if value.dtype != handle.dtype:
        raise DTypeError(f"the variable holds {handle.dtype}, the {what} is {value.dtype}; use nf.astype first")
    if not shape_accepts(handle.shape, value.shape):
        raise ShapeError(
            f"the variable has shape {format_shape(handle.shape)}, the {what} {format_shape(value.shape)}; "
            "they must be equal (nothing is broadcast)"
        )


def _read_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    handle = handle_of(inputs)
    return [TensorSpec(handle.shape, handle.dtype)]


def _initialize_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    _check_value(handle_of(inputs), inputs[1], "initial value")
    return []


def _assign_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    handle = handle_of(inputs)
    _check_value(handle, inputs[1], "value")
    return [TensorSpec(handle.shape, handle.dtype)]


def _apply_infer(slots: int, *, iterations: bool = False, kinds: str = "f") -> op.ShapeRule:
    def infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
        check_apply(inputs, slots, iterations, kinds)
        return []

    return infer


def check_apply(inputs: Sequence[TensorSpec], slots: int, iterations: bool, kinds: str = "f") -> None:
    """Raises unless these are (handle, slot handles, [iterations], learning rate, gradient, [gate]).

    Where there is a gate, a boolean scalar, the update is made only if it is true.
    """
    counted = slots + 3 + iterations
    handle = handle_of(inputs)
    if kind_of(handle.dtype) not in kinds:
        hint = "; SGD can" if kind_of(handle.dtype) == "c" else ""
        raise DTypeError(f"this update takes variables of floating dtype, not {handle.dtype}{hint}")
    for slot in inputs[1 : slots + 1]:
        if not slot.resource or slot.shape != handle.shape or slot.dtype != handle.dtype:
            raise ShapeError(f"a slot is a variable like its own, {handle}, not {slot}")
    if len(inputs) > counted and (kind_of(inputs[-1].dtype) != "b" or inputs[-1].shape not in ((), None)):
        raise DTypeError(f"the gate of an update is a boolean scalar, not {inputs[-1]}")
    scalars = list(inputs[slots + 1 : counted - 1])
    if iterations:
        count = scalars.pop(0)
        if count.dtype != INT64 or count.shape not in ((), None):
            raise DTypeError(f"the step count is an int64 scalar, not {count}")
    (rate,) = scalars
    if rate.shape not in ((), None):
        raise ShapeError(f"the learning rate is a scalar, not {rate}")
    if rate.dtype != handle.dtype:
        raise DTypeError(f"the learning rate is {rate.dtype}, the variable {handle.dtype}")
    _check_value(handle, inputs[counted - 1], "gradient")


def _join_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    """The gradient comes first: what a view shares is its first input's memory."""
    handle = handle_of(inputs[1:])
    _check_value(handle, inputs[0], "gradient")
    return [TensorSpec(handle.shape, handle.dtype)]


# --- costs -----------------------------------------------------------------------------------------------------------


def _write_cost(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], attrs: Attrs) -> Cost:
    return Cost(0.0, 2 * op.nbytes_of(inputs[:1]))


def _apply_cost(flops: int) -> op.CostRule:
    """`flops` an element; value and slots are read and written, the gradient (as large as the value) read."""

    def cost(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], attrs: Attrs) -> Cost:
        handles = [s for s in inputs if s.resource]
        return Cost(flops * op.size_of(inputs[0]), 2 * op.nbytes_of(handles) + op.nbytes_of(inputs[:1]))

    return cost


# --- declarations ----------------------------------------------------------------------------------------------------

op.define(
    "variable",
    infer=_variable_infer,
    gradient=None,
    cost=op.free_cost,
    stateful=True,
    doc="The handle of a variable. attrs: shape, dtype, trainable.",
)
op.define(
    "initialize",
    infer=_initialize_infer,
    gradient=None,
    cost=_write_cost,
    stateful=True,
    doc="(handle, value): sets a variable that has no value yet to a copy of `value`. attrs: variable (its name).",
)
op.define(
    "read_variable",
    infer=_read_infer,
    gradient=None,
    cost=op.free_cost,
    stateful=True,
    alias=True,
    doc="handle → the variable's value. Raises OpError when it has none. attrs: variable (its name).",
)
for _name, _doc in (
    ("assign", "(handle, value) → the value: sets the variable."),
    ("assign_add", "(handle, value) → the sum: adds to the variable in place."),
    ("assign_sub", "(handle, value) → the difference: subtracts from the variable in place."),
):
    op.define(
        _name,
        infer=_assign_infer,
        gradient=None,
        cost=op.elementwise_cost,
        stateful=True,
        doc=f"{_doc} The result is a copy. attrs: variable (its name), shape.",
    )
op.define(
    "apply_sgd",
    infer=_apply_infer(0, kinds="fc"),
    gradient=None,
    cost=_apply_cost(2),
    stateful=True,
    doc="(handle, lr, gradient g): w -= lr · (g + weight_decay · w). attrs: variable, weight_decay.",
)
op.define(
    "apply_momentum",
    infer=_apply_infer(1, kinds="fc"),
    gradient=None,
    cost=_apply_cost(4),
    stateful=True,
    doc="(handle, m, lr, gradient g): m = momentum · m + g; w -= lr · m, or with nesterov lr · (momentum · m + g). "
    "g includes weight_decay · w. attrs: variable, momentum, nesterov, weight_decay.",
)
op.define(
    "apply_adam",
    infer=_apply_infer(2, iterations=True),
    gradient=None,
    cost=_apply_cost(12),
    stateful=True,
    doc="(handle, m, v, iterations, lr, gradient): Algorithm 1 of Kingma and Ba, arXiv 1412.6980, as step "
    "iterations + 1; weight_decay is decoupled (Loshchilov and Hutter, arXiv 1711.05101). "
    "attrs: variable, beta1, beta2, epsilon, weight_decay.",
)
op.define(
    "apply_rmsprop",
    infer=_apply_infer(1),
    gradient=None,
    cost=_apply_cost(8),
    stateful=True,
    doc="(handle, v, lr, gradient g): v = rho · v + (1 - rho) · g²; w -= lr · g / (√v + epsilon). "
    "attrs: variable, rho, epsilon.",
)
op.define(
    "apply_adagrad",
    infer=_apply_infer(1),
    gradient=None,
    cost=_apply_cost(6),
    stateful=True,
    doc="(handle, sum, lr, gradient g): sum += g²; w -= lr · g / (√sum + epsilon). attrs: variable, epsilon.",
)


for _name, _slots, _flops, _doc in (
    (
        "apply_rmsprop_momentum",
        2,
        10,
        "(handle, v, m, lr, gradient g): v = rho · v + (1 - rho) · g²; m = momentum · m + lr · g / (√v + epsilon); "
        "w -= m. attrs: variable, rho, momentum, epsilon.",
    ),
    (
        "apply_rmsprop_centered",
        3,
        14,
        "(handle, v, mean, m, lr, gradient g): as apply_rmsprop_momentum, and mean = rho · mean + (1 - rho) · g, with "
        "√(v - mean² + epsilon) in place of √v + epsilon (Graves, arXiv 1308.0850, equations 38 to 45). "
        "attrs: variable, rho, momentum, epsilon.",
    ),
    (
        "apply_lion",
        1,
        8,
        "(handle, m, lr, gradient g): w -= lr · (sign(beta1 · m + (1 - beta1) · g) + weight_decay · w); "
        "m = beta2 · m + (1 - beta2) · g. Chen et al., arXiv 2302.06675. attrs: variable, beta1, beta2, weight_decay.",
    ),
    (
        "apply_lars",
        1,
        8,
        "(handle, m, lr, gradient g): m = momentum · m + lr · ratio · (g + weight_decay · w); w -= m, with ratio = "
        "trust · ‖w‖ / (‖g‖ + weight_decay · ‖w‖ + epsilon), or 1 where ‖w‖ or ‖g‖ is 0. You et al., arXiv 1708.03888. "
        "attrs: variable, momentum, trust, epsilon, weight_decay.",
    ),
):
    op.define(_name, infer=_apply_infer(_slots), gradient=None, cost=_apply_cost(_flops), stateful=True, doc=_doc)
op.define(
    "apply_lamb",
    infer=_apply_infer(2, iterations=True),
    gradient=None,
    cost=_apply_cost(24),
    stateful=True,
    doc="(handle, m, v, iterations, lr, gradient): u = the direction of Adam + weight_decay · w; "
    "w -= lr · (‖w‖ / ‖u‖) · u, the ratio 1 where a norm is 0. Algorithm 2 of You et al., arXiv 1904.00962. "
    "attrs: variable, beta1, beta2, epsilon, weight_decay.",
)
op.define(
    "gradient_join",
    infer=_join_infer,
    gradient=None,
    cost=op.free_cost,
    stateful=True,
    alias=True,
    doc="(gradient, handle) → the gradient. Where data parallelism joins the replicas' gradients, when more is done "
    "with them than one update: clipping, sums over steps. attrs: variable (its name).",
)


def checked_shape(shape: Shape, what: str) -> tuple[int, ...]:
    """A static shape. Raises ShapeError when a dimension is unknown."""
    if shape is None or any(d is None for d in shape):
        raise ShapeError(f"{what} needs a static shape, got {format_shape(shape)}")
    return tuple(int(d) for d in shape if d is not None)


def variable_attrs(shape: tuple[int, ...], dtype: np.dtype[Any], trainable: bool) -> dict[str, Any]:
    """Attributes of a `variable` node."""
    return {"shape": shape, "dtype": dtype, "trainable": trainable}
