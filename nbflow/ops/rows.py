"""Ops that change some rows of a variable: scatter updates, and the updates of optimizers for sparse gradients.

A row is a slice along the first dimension. Row numbers are integer vectors; negative ones count from the end, others
out of range are an error at run time and change nothing. None of these ops is differentiable: they change state.
"""

from __future__ import annotations

from collections.abc import Sequence

from nbflow import op
from nbflow.errors import DTypeError, ShapeError
from nbflow.graph import Node, Tensor
from nbflow.op import Attrs, Cost
from nbflow.ops._build import INT64, build_node, require_kind
from nbflow.ops.slices import IndexedSlices, check_slices
from nbflow.ops.state import check_apply, handle_of
from nbflow.spec import TensorSpec, format_shape, kind_of

# --- scatter updates -------------------------------------------------------------------------------------------------

# What happens to the rows, and the kinds of numbers for which it means something.
SCATTER_UPDATES: dict[str, tuple[str, str]] = {
    "assign": ("become the values; of a repeated row the last value stays", "biufc"),
    "add": ("grow by the values; those of a repeated row add up", "iufc"),
    "sub": ("shrink by the values; those of a repeated row add up", "iufc"),
    "mul": ("are multiplied by the values, a repeated row by each of its own", "iufc"),
    "min": ("become the lesser of themselves and the values", "iuf"),
    "max": ("become the greater of themselves and the values", "iuf"),
}


def _check_rows(handle: TensorSpec, indices: TensorSpec, values: TensorSpec) -> None:
    if not handle.shape:
        raise ShapeError("a scalar variable has no rows")
    if values.resource or values.dtype != handle.dtype:
        raise DTypeError(f"the variable holds {handle.dtype}, the values are {values.dtype}; use nf.astype first")
    check_slices(indices, values, handle.shape)


def _define_scatter(how: str, what: str, kinds: str) -> None:
    def infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
        handle = handle_of(inputs)
        if kind_of(handle.dtype) not in kinds:
            raise DTypeError(f"scatter_{how} is not defined for variables of {handle.dtype}")
        _check_rows(handle, inputs[1], inputs[2])
        return []

    op.define(
        f"variable_scatter_{how}",
        infer=infer,
        gradient=None,
        cost=_rows_cost,
        stateful=True,
        doc=f"(handle, row numbers (n,), values (n, …)): the rows {what}. In place. attrs: variable (its name).",
    )


def _rows_cost(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], attrs: Attrs) -> Cost:
    values = inputs[-1]
    return Cost(op.size_of(values), 3 * op.nbytes_of([values]))


for _how, (_what, _kinds) in SCATTER_UPDATES.items():
    _define_scatter(_how, _what, _kinds)

# --- sparse gradients ------------------------------------------------------------------------------------------------


def _join_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    spec, handle = inputs[0], handle_of(inputs[1:])
    if attrs["part"] == "indices":
        require_kind(spec, "iu", "the numbers of rows are integers")
        if spec.rank not in (1, None):
            raise ShapeError(f"the numbers of rows are a vector, not {format_shape(spec.shape)}")
    else:
        _check_rows(handle, TensorSpec((None,), INT64), spec)
    return [TensorSpec(None if spec.shape is None else (None, *spec.shape[1:]), spec.dtype)]


op.define(
    "sparse_join",
    infer=_join_infer,
    gradient=None,
    cost=op.free_cost,
    stateful=True,
    alias=True,
    doc="(values or row numbers of a sparse gradient, handle) → the same. Where data parallelism joins the replicas' "
    "rows. attrs: variable (its name), part ('values' or 'indices').",
)

# The updates that move only the rows that a gradient has, by the name of the one for dense gradients.
LAZY = {"apply_sgd": 0, "apply_momentum": 1, "apply_adagrad": 1, "apply_adam": 2}


def _define_lazy(dense: str, slots: int, *, iterations: bool = False) -> None:
    def infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
        handle = handle_of(inputs)
        at = slots + 2 + iterations
        _check_rows(handle, inputs[at + 1], inputs[at])
        # Apart from that it is the dense update, on a gradient like the variable.
        kinds = "fc" if dense in ("apply_sgd", "apply_momentum") else "f"
        whole = TensorSpec(handle.shape, handle.dtype)
        check_apply([*inputs[:at], whole, *inputs[at + 2 :]], slots, iterations, kinds)
        return []

    op.define(
        f"{dense}_sparse",
        infer=infer,
        gradient=None,
        cost=lambda inputs, outputs, attrs: _rows_cost(inputs[: slots + 3 + iterations], outputs, attrs),
        stateful=True,
        doc=f"{dense} on some rows: the values and row numbers of a sparse gradient stand for the gradient, and only "
        "these rows of variable and slots move. Repeated rows are added up first. attrs: as there.",
    )


for _dense, _slots in LAZY.items():
    _define_lazy(_dense, _slots, iterations=_dense == "apply_adam")


def sparse_join(gradient: IndexedSlices, handle: Tensor, variable: str) -> IndexedSlices:
    """`gradient`, in vector form, of the variable with `handle`, behind the point where replicas join."""
    parts: list[Node] = [
        build_node("sparse_join", (tensor, handle), {"variable": variable, "part": part})
        for part, tensor in (("values", gradient.values), ("indices", gradient.indices))
    ]
    return IndexedSlices(parts[0].outputs[0], parts[1].outputs[0], gradient.like)
