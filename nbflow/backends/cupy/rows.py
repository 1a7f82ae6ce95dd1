"""cupy: some rows of variables: scatter updates, and optimizers on sparse gradients.

How many rows a gradient has is read by the host, which waits for the GPU; a row number out of range raises here, as
that is known then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cupy as cp
import numpy as np

from nbflow.backends.base import Context, Implementation, Table
from nbflow.backends.cupy import state
from nbflow.backends.cupy.scattering import counted, scatter
from nbflow.backends.numpy.state import current_value
from nbflow.state import Cell

TABLE = Table()
A = Any


def _grouped(indices: A, values: A, length: int) -> tuple[A, A]:
    """The different row numbers, ascending, and the place of each index among them."""
    if len(indices) != len(values):
        raise ValueError(f"{len(indices)} row numbers for {len(values)} rows of values")
    if indices.size and (int(indices.min()) < -length or int(indices.max()) >= length):
        raise IndexError(f"row numbers from {int(indices.min())} to {int(indices.max())} for {length} rows")
    found, place = cp.unique(counted(indices, length), return_inverse=True)
    return found, place.reshape(-1).astype(np.int64, copy=False)


def _sums(values: A, place: A, count: int) -> A:
    made = cp.zeros((count, *values.shape[1:]), values.dtype)
    scatter(made, place, values)
    return made


@TABLE.implements("deduplicate")
def deduplicate(values: A, indices: A, *, length: int) -> tuple[A, A, A]:
    found, place = _grouped(indices, values, length)
    return _sums(values, place, len(found)), found, place


@TABLE.implements("sparse_join")
def sparse_join(ctx: Context, part_of: A, cell: Cell, *, variable: str, part: str) -> A:
    return part_of


# --- scatter updates -------------------------------------------------------------------------------------------------


def _define_scatter(how: str, combine: str) -> None:
    @TABLE.implements(f"variable_scatter_{how}")
    def scattered(ctx: Context, cell: Cell, indices: A, values: A, *, variable: str) -> tuple[()]:
        with cell.lock:
            kept = current_value(cell, variable)
            _grouped(indices, values, kept.shape[0])
            scatter(kept, counted(indices, kept.shape[0]), -values if how == "sub" else values, combine)
        return ()


for _how, _combine in {"add": "add", "sub": "add", "mul": "mul", "min": "min", "max": "max", "assign": "none"}.items():
    _define_scatter(_how, _combine)


# --- optimizers ------------------------------------------------------------------------------------------------------


def _lazy(dense: Callable[..., tuple[()]]) -> Implementation:
    """`dense`, an update of a variable and its slots, on the rows that a sparse gradient has."""

    def update(ctx: Context, *inputs: Any, variable: str, **attrs: Any) -> tuple[()]:
        cells = [i for i in inputs if isinstance(i, Cell)]
        rest = list(inputs[len(cells) :])
        gate = rest.pop() if rest[-1].dtype.kind == "b" else None
        *scalars, values, indices = rest
        if gate is not None and not bool(gate):
            return ()
        with cells[0].lock:
            kept = [current_value(cell, variable) for cell in cells]
            found, place = _grouped(indices, values, kept[0].shape[0])
            parts = [Cell() for _ in cells]
            for part, whole in zip(parts, kept, strict=True):
                part.value = cp.take(whole, found, axis=0)
            dense(ctx, *parts, *scalars, _sums(values, place, len(found)), variable=variable, **attrs)
            for part, whole in zip(parts, kept, strict=True):
                whole[found] = part.value
        return ()

    return update


for _name, _dense in (
    ("apply_sgd", state.apply_sgd),
    ("apply_momentum", state.apply_momentum),
    ("apply_adagrad", state.apply_adagrad),
    ("apply_adam", state.apply_adam),
):
    TABLE.implements(f"{_name}_sparse")(_lazy(_dense))
