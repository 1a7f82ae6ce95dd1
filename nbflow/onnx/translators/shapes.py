"""Operators about shapes: constants, shapes as values, reshaping, joining, cutting, padding, triangles, ranges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from nbflow import ops
from nbflow.errors import DTypeError, GraphError
from nbflow.graph import Tensor
from nbflow.onnx.registry import Call, translates
from nbflow.onnx.translators.elementwise import dims, flattened, number
from nbflow.ops._build import INT64, build, build_node
from nbflow.spec import as_dtype, broadcast_shapes, normalize_axis

# --- constants -------------------------------------------------------------------------------------------------------


@translates("Constant")
def _constant(c: Call) -> Any:
    for name in ("value_int", "value_ints"):
        if name in c.attrs:
            return ops.constant(np.array(c.attrs[name], np.int64))
    for name in ("value_float", "value_floats"):
        if name in c.attrs:
            return ops.constant(np.array(c.attrs[name], np.float32))
    value = c.attrs.get("value", c.attrs.get("sparse_value"))
    if value is None or np.asarray(value).dtype.kind in "OUS":
        raise DTypeError(f"{c.what} holds strings; tensors hold numbers and booleans")
    return ops.constant(value)


@translates("ConstantOfShape")
def _constant_of_shape(c: Call) -> Any:
    value = np.asarray(c.attrs.get("value", np.zeros(1, np.float32))).reshape(())
    return ops.broadcast_to(ops.constant(value), _shape(c, 0))


def _shape(c: Call, index: int) -> Any:
    """A shape given as input `index`: ints where they are known, else the tensor."""
    known = c.static(index)
    return c[index] if known is None else [int(d) for d in known]


@translates("EyeLike")
def _eye_like(c: Call) -> Any:
    code = c.attrs.get("dtype")
    dtype = c[0].dtype if code is None else as_dtype(helper.tensor_dtype_to_np_dtype(code))
    rows, columns = dims(c[0])
    diagonal = ops.expand_dims(ops.arange(rows, dtype=INT64), axis=1) + number(c.attrs["k"], ops.arange(1))
    return ops.astype(ops.equal(diagonal, ops.arange(columns, dtype=INT64)), dtype)


@translates("Range")
def _range(c: Call) -> Any:
    values = [c.static(n) for n in range(3)]
    if any(v is None for v in values):
        return ops.range_dynamic(*(ops.reshape(t, ()) for t in c.tensors))
    return ops.range_dynamic(*(ops.constant(np.asarray(v).reshape(())) for v in values))


# --- shapes as values ------------------------------------------------------------------------------------------------


@translates("Shape")
def _shape_of(c: Call) -> Any:
    start, end = c.attr("start", 0), c.attr("end")
    shape = c[0].shape
    if shape is not None and None not in shape:
        return ops.constant(np.array(shape[start:end], np.int64))
    found = ops.shape_of(c[0])
    return found if (start, end) == (0, None) else found[start:end]


# --- reshaping -------------------------------------------------------------------------------------------------------


@translates("Reshape")
def _reshape(c: Call) -> Any:
    x = c[0]
    wanted = c.attrs.get("shape") if len(c) < 2 else c.static(1)
    if wanted is None:
        return _reshape_at_run_time(c)
    sizes = [int(d) for d in wanted]
    if 0 in sizes and not c.attr("allowzero", 0):
        own = dims(x)
        sizes = [own[n] if d == 0 else d for n, d in enumerate(sizes)]
    return ops.reshape(x, sizes)


def _reshape_at_run_time(c: Call) -> Tensor:
    """A 0 stands for the input's own dimension."""
    x, shape = c[0], c[1]
    if c.attr("allowzero", 0):
        return ops.reshape(x, shape)
    rank = shape.shape[0] if shape.shape else None
    if rank is None:
        return ops.reshape(x, shape)
    # The input's dimensions, ones behind them where it has fewer than the result.
    own = ops.concat([ops.shape_of(x)[:rank], ops.constant(np.ones(max(rank - c.rank(), 0), np.int64))])
    return ops.reshape(x, ops.where(ops.equal(shape, 0), own, shape))


@translates("Flatten")
def _flatten(c: Call) -> Any:
    axis = c.attrs["axis"]
    return flattened(c[0], axis + c.rank() if axis < 0 else axis)


@translates("Squeeze")
def _squeeze(c: Call) -> Any:
    axes = c.ints(1, "axes")
    if axes is None:
        shape = c[0].shape
        if shape is None or None in shape:
            raise c.needs(c[0], "the shape")
        axes = tuple(n for n, d in enumerate(shape) if d == 1)
    return ops.squeeze(c[0], axes)


@translates("Unsqueeze")
def _unsqueeze(c: Call) -> Any:
    return ops.expand_dims(c[0], axis=c.ints(1, "axes") or ())


@translates("Transpose")
def _transpose(c: Call) -> Any:
    return ops.permute_dims(c[0], c.attrs.get("perm") or tuple(reversed(range(c.rank()))))


@translates("Expand")
def _expand(c: Call) -> Any:
    x = c[0]
    if x.spec.is_static and c.static(1) is not None:
        return ops.broadcast_to(x, broadcast_shapes(x.shape, tuple(int(d) for d in c.known(1))))
    return ops.broadcast_to(x, ops.broadcast_dims(ops.shape_of(x), c[1]))


@translates("Tile", since=6)
def _tile(c: Call) -> Any:
    x, known = c[0], c.static(1)
    if known is not None:
        return ops.tile(x, tuple(int(n) for n in known))
    # Each dimension beside its repetitions: (1, d) broadcast to (n, d), then one dimension again.
    rank, repeats = c.rank(), c[1]
    own = ops.shape_of(x)
    ones = ops.ones_like(own)
    apart = ops.reshape(ops.stack([ones, own], axis=1), (2 * rank,))
    wide = ops.reshape(ops.stack([repeats, own], axis=1), (2 * rank,))
    return ops.reshape(ops.broadcast_to(ops.reshape(x, apart), wide), own * repeats)


@translates("DepthToSpace")
def _depth_to_space(c: Call) -> Any:
    x, size = c[0], c.attrs["blocksize"]
    n, depth, height, width = dims(x)
    inner = depth // (size * size) if isinstance(depth, int) else ops.floor_divide(depth, size * size)
    if c.attr("mode", "DCR") == "DCR":
        parts = ops.permute_dims(ops.reshape(x, [n, size, size, inner, height, width]), (0, 3, 4, 1, 5, 2))
    else:
        parts = ops.permute_dims(ops.reshape(x, [n, inner, size, size, height, width]), (0, 1, 4, 2, 5, 3))
    return ops.reshape(parts, [n, inner, height * size, width * size])


@translates("SpaceToDepth")
def _space_to_depth(c: Call) -> Any:
    x, size = c[0], c.attrs["blocksize"]
    n, depth, height, width = dims(x)
    rows, columns = (d // size if isinstance(d, int) else ops.floor_divide(d, size) for d in (height, width))
    order = (0, 3, 5, 1, 2, 4) if c.attr("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    parts = ops.permute_dims(ops.reshape(x, [n, depth, rows, size, columns, size]), order)
    return ops.reshape(parts, [n, depth * size * size, rows, columns])


# --- joining and cutting ---------------------------------------------------------------------------------------------


@translates("Concat")
def _concat(c: Call) -> Any:
    return ops.concat(c.tensors, axis=c.attr("axis", 1))


@translates("Split")
def _split(c: Call) -> Any:
    axis, count = c.attr("axis", 0), c.outputs
    known = c.attrs.get("split")
    if known is None and c.get(1) is not None:
        known = c.static(1)
        if known is None:
            return build_node("split", (c[0], c[1]), {"sizes": (None,) * count, "axis": axis}).outputs
    if known is not None:
        return ops.split(c[0], [int(n) for n in known], axis=axis)
    length = (c[0].shape or (None,) * c.rank())[axis]
    if length is None or length % count == 0:
        return ops.split(c[0], count, axis=axis)
    part = -(-length // count)  # the last part is smaller
    return ops.split(c[0], [part] * (count - 1) + [length - part * (count - 1)], axis=axis)


@translates("Slice", since=10)
def _slice(c: Call) -> Any:
    given = [c.static(n) if c.get(n) is not None else None for n in (1, 2, 4)]
    count = (c[1].shape or (None,))[0]
    axes = c.ints(3)
    if axes is None:
        if count is None:
            raise c.needs(c[1], "the number of bounds")
        axes = tuple(range(count))
    if given[0] is None or given[1] is None or (given[2] is None and c.get(4) is not None):
        places = [normalize_axis(a, c.rank()) for a in axes]
        return ops.slice_dynamic(c[0], c[1], c[2], c.get(4), axes=places)
    steps = [1] * len(axes) if given[2] is None else given[2]
    return _cut(c[0], axes, given[0], given[1], steps)


@translates("Slice")
def _slice_fixed(c: Call) -> Any:
    starts, ends = c.attrs["starts"], c.attrs["ends"]
    return _cut(c[0], c.attrs.get("axes") or range(len(starts)), starts, ends, [1] * len(starts))


def _cut(x: Tensor, axes: Sequence[int], starts: Any, ends: Any, steps: Any) -> Tensor:
    rank = x.spec.rank
    if rank is None:
        raise GraphError(f"a slice of {x.name} needs its rank, which the model does not say")
    key = [slice(None)] * rank
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        # Below the beginning is the beginning, which Python writes as None when it counts down.
        lowest = -(1 << 31)
        key[normalize_axis(int(axis), rank)] = slice(
            int(start), None if step < 0 and (end < lowest or _below(x, axis, end)) else int(end), int(step)
        )
    return x[tuple(key)]


def _below(x: Tensor, axis: int, end: int) -> bool:
    length = None if x.shape is None else x.shape[axis]
    return length is not None and end < -length


# --- padding ---------------------------------------------------------------------------------------------------------


@translates("Pad")
def _pad(c: Call) -> Any:
    mode, x, rank = c.attr("mode", "constant"), c[0], c.rank()
    if c.opset < 11:
        value: Tensor = number(c.attr("value", 0.0), x)
        widths: Any = np.array(c.attrs.get("pads", c.attrs.get("paddings")), np.int64)
    else:
        given = c.get(2)
        value = number(0, x) if given is None else ops.reshape(given, ())
        known = c.static(1)
        widths = c[1] if known is None else known
    axes = c.ints(3)
    if axes is not None:
        widths = _for_all(widths, [normalize_axis(a, rank) for a in axes], rank)
    if mode == "constant":
        return _pad_constant(c, x, widths, value)
    for axis, size in enumerate(dims(x)):
        if isinstance(widths, np.ndarray):
            if not (widths[axis] or widths[rank + axis]):
                continue
            pair: Any = ops.constant(widths[[axis, rank + axis]])
        else:
            pair = ops.take(widths, ops.constant(np.array([axis, rank + axis])), axis=0)
        length = size if isinstance(size, Tensor) else ops.constant(np.int64(size))
        x = ops.take(x, ops.pad_places(length, pair, mode), axis=axis)
    return ops.identity(x) if x is c[0] else x


def _for_all(widths: Any, axes: Sequence[int], rank: int) -> Any:
    """Widths for `axes` as widths for all dimensions."""
    if isinstance(widths, np.ndarray):
        full = np.zeros(2 * rank, np.int64)
        full[list(axes) + [rank + a for a in axes]] = widths
        return full
    places = [*axes, *(rank + a for a in axes)]
    parts = ops.unstack(widths, num=len(places))
    zero = number(0, parts[0])
    return ops.stack([parts[places.index(n)] if n in places else zero for n in range(2 * rank)])


def _pad_constant(c: Call, x: Tensor, widths: Any, value: Tensor) -> Tensor:
    rank = c.rank()
    known = c.statics.value(value)
    if not isinstance(widths, np.ndarray) or known is None:
        return ops.pad_dynamic(x, widths, value)
    pairs = list(zip(widths[:rank].tolist(), widths[rank:].tolist(), strict=True))
    if any(w < 0 for pair in pairs for w in pair):
        x = x[tuple(slice(max(-before, 0), -max(-after, 0) or None) for before, after in pairs)]
        pairs = [(max(before, 0), max(after, 0)) for before, after in pairs]
    return build("pad", (x,), {"widths": tuple(pairs), "value": known.item()})


@translates("CenterCropPad")
def _center_crop_pad(c: Call) -> Any:
    x, rank = c[0], c.rank()
    axes = [normalize_axis(a, rank) for a in c.attrs.get("axes") or range(rank)]
    wanted = [int(n) for n in c.known(1)]
    key, widths = [slice(None)] * rank, [(0, 0)] * rank
    for axis, size in zip(axes, wanted, strict=True):
        own = (x.shape or ())[axis]
        if own is None:
            raise c.needs(x, f"dimension {axis}")
        if own > size:
            first = (own - size) // 2
            key[axis] = slice(first, first + size)
        else:
            before = (size - own) // 2
            widths[axis] = (before, size - own - before)
    return ops.pad(x[tuple(key)], widths)


# --- triangles -------------------------------------------------------------------------------------------------------


@translates("Trilu")
def _trilu(c: Call) -> Any:
    x, upper = c[0], c.attr("upper", 1)
    known = np.zeros((), np.int64) if c.get(1) is None else c.static(1)
    if known is not None:
        return (ops.triu if upper else ops.tril)(x, k=int(known.item()))
    rows, columns = dims(x)[-2:]
    offset = ops.arange(columns, dtype=INT64) - ops.expand_dims(ops.arange(rows, dtype=INT64), axis=1)
    k = ops.astype(ops.reshape(c[1], ()), INT64)
    kept = ops.greater_equal(offset, k) if upper else ops.less_equal(offset, k)
    return ops.where(kept, x, number(0, x))


# --- windows, which are constants of a length ------------------------------------------------------------------------

# (a0, a1, a2) of a0 - a1 cos(2πn/N) + a2 cos(4πn/N)
_WINDOWS = {
    "HannWindow": (0.5, 0.5, 0.0),
    "HammingWindow": (25 / 46, 21 / 46, 0.0),
    "BlackmanWindow": (0.42, 0.5, 0.08),
}


@translates("HannWindow", "HammingWindow", "BlackmanWindow", since=17)
def _window(c: Call) -> Any:
    dtype = as_dtype(helper.tensor_dtype_to_np_dtype(c.attr("output_datatype", TensorProto.FLOAT)))
    size = ops.reshape(c[0], ())
    a0, a1, a2 = _WINDOWS[c.proto.op_type]
    places = ops.astype(ops.arange(ops.astype(size, INT64), dtype=INT64), "float64")
    length = ops.astype(size, "float64") - (0.0 if c.attr("periodic", 1) else 1.0)
    angle = places * (2 * np.pi) / length
    return ops.astype(a0 - a1 * ops.cos(angle) + a2 * ops.cos(angle * 2.0), dtype)
