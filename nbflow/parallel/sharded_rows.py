"""Row numbers of a variable in pieces: which piece each belongs to, and what is looked up, put together in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nbflow.graph import Tensor
from nbflow.ops import argsort, astype, logical_and, logical_or, nonzero, reshape, take, where
from nbflow.ops._build import INT64, static_shape
from nbflow.ops.joining import concat
from nbflow.ops.shape import shape_of


@dataclass(frozen=True, slots=True)
class Rows:
    """Row numbers, by piece. `local`: those within each piece, in order. `places`: where each stood among all, counted
    along the flattened numbers."""

    local: list[Tensor]
    places: list[Tensor]

    def of(self, values: Tensor) -> list[Tensor]:
        """`values` (n, …), the i-th for the i-th number, by piece."""
        return [take(values, place, axis=0) for place in self.places]


def divide(ids: Tensor, sizes: Sequence[int]) -> Rows:
    """`ids`, of any shape, by pieces of `sizes` rows. Negative ones count from the end; one that is out of range
    goes to the last piece, which it is out of range for, too."""
    rows = sum(sizes)
    flat = astype(reshape(ids, (-1,)), INT64)
    flat = where(flat < 0, flat + rows, flat)
    local: list[Tensor] = []
    places: list[Tensor] = []
    start = 0
    for number, size in enumerate(sizes):
        if number < len(sizes) - 1:
            mine = logical_and(flat >= start, flat < start + size)
        else:
            mine = logical_or(flat >= start, flat < 0)
        (place,) = nonzero(mine)
        places.append(place)
        local.append(take(flat, place, axis=0) - start)
        start += size
    return Rows(local, places)


def look_up(pieces: Sequence[Tensor], rows: Rows, ids: Tensor) -> Tensor:
    """The rows `ids` of the variable whose pieces are read as `pieces`. A piece gives the rows it has."""
    found = concat([take(p, n, axis=0) for p, n in zip(pieces, rows.local, strict=True)], axis=0)
    ordered = take(found, argsort(concat(rows.places, axis=0)), axis=0)
    if ids.ndim == 1:
        return ordered
    rest = static_shape(pieces[0].shape)
    assert rest is not None  # variables have static shapes
    rest, known = rest[1:], static_shape(ids.shape)
    if known is not None:
        return reshape(ordered, (*known, *rest))
    dims, rank = shape_of(ids), len(ids.shape or ())
    return reshape(ordered, (*[dims[n] for n in range(rank)], *rest))
