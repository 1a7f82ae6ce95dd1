"""How `x[key]` is read: ints, slices, None and '...' as one view, then index tensors and masks as one gather.

The rules are numpy's ("Advanced indexing"): index tensors broadcast together, a mask stands for the indices of its true
elements, and the dimensions that they give stand in their place, or first when a slice separates them.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any

import numpy as np

from nbflow.errors import DTypeError, ShapeError
from nbflow.graph import Tensor
from nbflow.ops._build import (
    INT64,
    ArrayLike,
    as_tensor,
    build,
    build_node,
    convert,
    known_rank,
    require_kind,
    require_scalar,
)
from nbflow.ops.casting import astype
from nbflow.ops.dynamic import slice_dynamic
from nbflow.ops.gathering import gather_nd
from nbflow.ops.indexing import take
from nbflow.ops.manipulation import expand_dims, moveaxis
from nbflow.ops.sets import nonzero
from nbflow.ops.shape import shape_of
from nbflow.spec import format_shape, kind_of, shape_accepts

_FULL = (None, None, None)


def getitem(x: ArrayLike, key: Any, /, *, name: str | None = None) -> Tensor:
    """`x[key]`: ints, slices, None and Ellipsis; integer tensors (or lists of ints), and boolean masks, as in numpy.

    A mask of rank k picks from k dimensions; how many elements is known only at run time, as with slices whose bounds
    are integer scalar tensors. All have gradients.
    """
    tensor = convert(x)
    items = [_item(item) for item in (key if isinstance(key, tuple) else (key,))]
    if sum(isinstance(item, str) and item == "..." for item in items) > 1:
        raise ShapeError("an index has at most one '...'")
    if any(isinstance(item, slice) for item in items):
        tensor, items = _cut(tensor, items)
    if not any(isinstance(item, Tensor) for item in items):
        return build("getitem", (tensor,), {"index": tuple(items)}, name=name)
    return _gathered(tensor, items, name)


def _item(item: Any) -> Any:
    """An entry of the attribute `index` of the op getitem, or a tensor."""
    if item is None:
        return "newaxis"
    if isinstance(item, types.EllipsisType):
        return "..."
    if isinstance(item, slice) and any(as_tensor(v) is not None for v in (item.start, item.stop, item.step)):
        return item
    if isinstance(item, slice):
        return tuple(None if v is None else _int(v) for v in (item.start, item.stop, item.step))
    tensor = as_tensor(item)
    if tensor is None and isinstance(item, (list, np.ndarray)):
        # Without elements a list has no dtype; as an index it picks nothing.
        tensor = convert(np.zeros(0, INT64) if isinstance(item, list) and not item else item)
    if tensor is None:
        return _int(item)
    require_kind(tensor.spec, "iub", "an index is an integer tensor or a boolean mask")
    return tensor


def _int(value: Any) -> int:
    if isinstance(value, (bool, np.bool_)):
        raise DTypeError("a boolean is not an index; use nf.where, or a mask with the shape of what it picks from")
    try:
        return int(value.__index__())
    except AttributeError:
        raise DTypeError(
            f"an index is an int, a slice, None, '...', an integer tensor or a mask, not {value!r}"
        ) from None


def _width(item: Any) -> int:
    """How many dimensions an entry gives to the view that is gathered from."""
    if isinstance(item, Tensor):
        return known_rank(item.spec, "a mask") if kind_of(item.dtype) == "b" else 1
    return 0 if isinstance(item, int) else 1


# Beyond every length: what a bound left out stands for.
_FAR = 2**62


def _cut(x: Tensor, items: list[Any]) -> tuple[Tensor, list[Any]]:
    """`x` cut where bounds of slices are tensors, and the rest of the index, which takes those dimensions whole."""
    left: list[Any] = []
    split = next((n for n, item in enumerate(items) if isinstance(item, str) and item == "..."), len(items))
    for n, item in enumerate(items):
        if not isinstance(item, slice):
            left.append(item)
            continue
        before, after = items[:n], items[n:]
        axis = sum(_spent(i) for i in before) if n < split else -sum(_spent(i) for i in after)
        backwards = as_tensor(item.step) is None and item.step is not None and _int(item.step) < 0
        if as_tensor(item.step) is not None and (item.start is None or item.stop is None):
            raise ShapeError("a slice whose step is a tensor needs both bounds: they depend on the step's sign")
        start = item.start if item.start is not None else _FAR if backwards else 0
        stop = item.stop if item.stop is not None else -_FAR if backwards else _FAR
        bounds = [_bound(v) for v in (start, stop, 1 if item.step is None else item.step)]
        x = slice_dynamic(x, *bounds, axes=(axis,))
        left.append(_FULL)
    return x, left


def _spent(item: Any) -> int:
    """How many dimensions of the tensor an entry is about."""
    if isinstance(item, Tensor):
        return _width(item)
    return 0 if isinstance(item, str) else 1


def _bound(value: Any) -> Tensor:
    tensor = as_tensor(value)
    if tensor is None:
        return convert(np.array([_int(value)], INT64))
    require_kind(tensor.spec, "iu", "the bound of a slice is an integer scalar")
    require_scalar(tensor.spec, "the bound of a slice")
    return expand_dims(astype(tensor, INT64), 0)


def _gathered(x: Tensor, items: Sequence[Any], name: str | None) -> Tensor:
    view: list[Any] = []  # the index of a view that leaves whole the dimensions which tensors pick from
    places: list[int] = []  # where they are in it; counted from the end after '...'
    split = next((n for n, item in enumerate(items) if isinstance(item, str) and item == "..."), len(items))
    for n, item in enumerate(items):
        if isinstance(item, Tensor):
            before = sum(_width(i) for i in items[:n])
            places.append(before if n < split else -sum(_width(i) for i in items[n:]))
            view.extend([_FULL] * _width(item))
        else:
            view.append(item)
    if any(item != _FULL for item in view):
        x = build("getitem", (x,), {"index": tuple(view)})
    tensors = [item for item in items if isinstance(item, Tensor)]
    indices: list[Tensor] = []
    dims: list[int] = []
    for tensor, place in zip(tensors, places, strict=True):
        found = _mask_indices(x, tensor, place) if kind_of(tensor.dtype) == "b" else (tensor,)
        indices.extend(found)
        dims.extend(range(place, place + len(found)))
    if _separated(items):
        x = moveaxis(x, dims, range(len(dims)))
        dims = list(range(len(dims)))
    if len(indices) == 1:
        return take(x, indices[0], axis=dims[0], name=name)
    return gather_nd(x, indices, dims[0], name=name)


def _separated(items: Sequence[Any]) -> bool:
    """Whether something stands between index tensors; an int beside them counts as one, as in numpy."""
    picking = [n for n, item in enumerate(items) if isinstance(item, (Tensor, int))]
    return picking[-1] - picking[0] >= len(picking)


def _mask_indices(x: Tensor, mask: Tensor, place: int) -> tuple[Tensor, ...]:
    """The indices of what is true in `mask`, which has the shape of the dimensions of `x` from `place` on."""
    rank = known_rank(mask.spec, "a mask")
    if rank == 0:
        raise ShapeError("a mask of one boolean has no dimensions to pick from; use nf.where")
    part = slice(place, place + rank or None)
    if x.shape is not None and mask.shape is not None:
        wanted = x.shape[part]
        if not shape_accepts(wanted, mask.shape):
            raise ShapeError(f"a mask of {format_shape(mask.shape)} does not fit dimensions of {format_shape(wanted)}")
        if None not in wanted and None not in mask.shape:
            return nonzero(mask)
    return build_node("nonzero", (mask, shape_of(x)[part])).outputs
