"""Some rows of variables on numpy arrays: scatter updates, and optimizers on sparse gradients.

A sparse update takes the rows out, makes the dense update on them, and puts them back: one arithmetic for both. So it
costs what the gradient has rows, not what the variable has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nbflow.backends.base import Context, Implementation, Table
from nbflow.backends.numpy import state
from nbflow.backends.numpy.state import current_value
from nbflow.state import Cell

TABLE = Table()

Array = np.ndarray[Any, Any]


def _positions(indices: Array, length: int) -> Array:
    """Row numbers from 0 on. Raises IndexError for those out of range."""
    if indices.size and (indices.min() < -length or indices.max() >= length):
        raise IndexError(f"row numbers from {indices.min()} to {indices.max()} for {length} rows")
    return np.where(indices < 0, indices + length, indices).astype(np.intp)


def _grouped(indices: Array, values: Array, length: int) -> tuple[Array, Array, Array]:
    """An order that puts equal row numbers together, where each group starts in it, and each group's number."""
    if len(indices) != len(values):
        raise ValueError(f"{len(indices)} row numbers for {len(values)} rows of values")
    positions = _positions(indices, length)
    order = np.argsort(positions, kind="stable")
    ordered = positions[order]
    first = np.ones(len(ordered), bool)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    starts = np.flatnonzero(first)
    return order, starts, ordered[starts]


def _reduced(ufunc: np.ufunc, values: Array, order: Array, starts: Array) -> Array:
    # np.take copies whole rows, which is ten times as fast as indexing with an array.
    ordered = np.take(values, order, axis=0)
    if len(starts) == len(order):
        return ordered
    made: Array = ufunc.reduceat(ordered, starts, axis=0, dtype=values.dtype)
    return made


@TABLE.implements("deduplicate")
def deduplicate(values: Array, indices: Array, *, length: int) -> tuple[Array, Array, Array]:
    order, starts, rows = _grouped(indices, values, length)
    sums = _reduced(np.add, values, order, starts)
    place = np.empty(len(order), np.int64)
    marks = np.zeros(len(order), np.int64)
    marks[starts[1:]] = 1
    place[order] = np.cumsum(marks)
    return sums, rows.astype(np.int64), place


@TABLE.implements("sparse_join")
def sparse_join(ctx: Context, part_of: Array, cell: Cell, *, variable: str, part: str) -> Array:
    return part_of


# --- scatter updates -------------------------------------------------------------------------------------------------


def _scatter(ctx: Context, cell: Cell, indices: Array, values: Array, variable: str, ufunc: Any, again: Any) -> None:
    with cell.lock:
        kept = current_value(cell, variable)
        order, starts, rows = _grouped(indices, values, kept.shape[0])
        kept[rows] = ufunc(np.take(kept, rows, axis=0), _reduced(again, values, order, starts))


def _define_scatter(how: str, ufunc: np.ufunc, again: np.ufunc) -> None:
    @TABLE.implements(f"variable_scatter_{how}")
    def scatter(ctx: Context, cell: Cell, indices: Array, values: Array, *, variable: str) -> tuple[()]:
        _scatter(ctx, cell, indices, values, variable, ufunc, again)
        return ()


for _how, _ufunc, _again in (
    ("add", np.add, np.add),
    ("sub", np.subtract, np.add),
    ("mul", np.multiply, np.multiply),
    ("min", np.minimum, np.minimum),
    ("max", np.maximum, np.maximum),
):
    _define_scatter(_how, _ufunc, _again)


@TABLE.implements("variable_scatter_assign")
def scatter_assign(ctx: Context, cell: Cell, indices: Array, values: Array, *, variable: str) -> tuple[()]:
    with cell.lock:
        kept = current_value(cell, variable)
        order, starts, rows = _grouped(indices, values, kept.shape[0])
        last = np.append(starts[1:], len(order))[: len(starts)] - 1
        kept[rows] = values[order[last]]
    return ()


# --- optimizers ------------------------------------------------------------------------------------------------------


def _lazy(dense: Callable[..., tuple[()]]) -> Implementation:
    """`dense`, an update of a variable and its slots, on the rows that a sparse gradient has."""

    def update(ctx: Context, *inputs: Any, variable: str, **attrs: Any) -> tuple[()]:
        cells = [i for i in inputs if isinstance(i, Cell)]
        rest = list(inputs[len(cells) :])
        gate = rest.pop() if rest[-1].dtype.kind == "b" else None
        *scalars, values, indices = rest
        if gate is not None and not gate:
            return ()
        with cells[0].lock:
            kept = [current_value(cell, variable) for cell in cells]
            order, starts, rows = _grouped(indices, values, kept[0].shape[0])
            parts = [Cell() for _ in cells]
            for part, whole in zip(parts, kept, strict=True):
                part.value = np.take(whole, rows, axis=0)
            dense(ctx, *parts, *scalars, _reduced(np.add, values, order, starts), variable=variable, **attrs)
            for part, whole in zip(parts, kept, strict=True):
                whole[rows] = part.value
        return ()

    return update


for _name, _dense in (
    ("apply_sgd", state.apply_sgd),
    ("apply_momentum", state.apply_momentum),
    ("apply_adagrad", state.apply_adagrad),
    ("apply_adam", state.apply_adam),
):
    TABLE.implements(f"{_name}_sparse")(_lazy(_dense))
