"""cupy: making arrays, shapes, and what moves values about without computing.

A shape that comes as a tensor is read by the host, which waits for the GPU: only graphs with unknown dimensions do so.
"""

from __future__ import annotations

from typing import Any

import cupy as cp
import numpy as np

from nbflow.backends.base import Context, Table
from nbflow.backends.numpy.dynamic import _key as _dynamic_key
from nbflow.backends.numpy.dynamic import _parts
from nbflow.backends.numpy.shape import target
from nbflow.errors import ShapeError
from nbflow.spec import NARROW, kind_of

TABLE = Table()
A = Any
Shape = tuple[int, ...] | None


@TABLE.implements("constant")
def _constant(*, value: Any) -> A:
    return cp.asarray(value)


@TABLE.implements("identity", "stop_gradient")
def _identity(x: A) -> A:
    return x


@TABLE.implements("compressed")
def _compressed(x: A, *, dtype: str) -> A:
    return x


@TABLE.implements("group")
def _group(*, strategy: Any = ()) -> tuple[()]:
    return ()


@TABLE.implements("checkpoint")
def _checkpoint(*inputs: A, outputs: int) -> A:
    return inputs[0]


@TABLE.implements("checkpoint_many")
def _checkpoint_many(*inputs: A, outputs: int) -> tuple[A, ...]:
    return tuple(x.copy() for x in inputs[:outputs])


@TABLE.implements("recompute_barrier")
def _recompute_barrier(ctx: Context, x: A) -> A:
    return x


@TABLE.implements("full")
def _full(vector: A | None = None, *, value: float, dtype: np.dtype[Any], shape: Shape, out: A | None = None) -> A:
    made = cp.empty(target(shape, vector), dtype) if out is None else out
    made.fill(made.dtype.type(value))
    return made


@TABLE.implements("arange")
def _arange(end: A | None = None, *, start: float, stop: float | None, step: float, dtype: np.dtype[Any]) -> A:
    if end is not None:
        return cp.arange(start, int(end), dtype=dtype)
    assert stop is not None  # held by nf.arange
    count = max(0, int(np.ceil((stop - start) / step)))
    return (start + step * cp.arange(count)).astype(dtype)


@TABLE.implements("eye")
def _eye(*, rows: int, columns: int, k: int, dtype: np.dtype[Any], out: A | None = None) -> A:
    made = cp.eye(rows, columns, k, dtype)
    if out is None:
        return made
    out[...] = made
    return out


@TABLE.implements("shape_of")
def _shape_of(x: A) -> A:
    return cp.asarray(np.array(x.shape, np.int64))


@TABLE.implements("reshape")
def _reshape(x: A, vector: A | None = None, *, shape: Shape) -> A:
    return x.reshape(target(shape, vector))


@TABLE.implements("broadcast_to")
def _broadcast_to(x: A, vector: A | None = None, *, shape: Shape) -> A:
    return cp.broadcast_to(x, target(shape, vector))


@TABLE.implements("permute_dims")
def _permute_dims(x: A, *, axes: tuple[int, ...]) -> A:
    return x.transpose(axes)


@TABLE.implements("matrix_transpose")
def _matrix_transpose(x: A) -> A:
    return x.swapaxes(-1, -2)


@TABLE.implements("expand_dims")
def _expand_dims(x: A, *, axis: tuple[int, ...]) -> A:
    return cp.expand_dims(x, axis)


@TABLE.implements("squeeze")
def _squeeze(x: A, *, axis: tuple[int, ...]) -> A:
    return cp.squeeze(x, axis)


@TABLE.implements("flip")
def _flip(x: A, *, axis: int | tuple[int, ...] | None) -> A:
    return cp.flip(x, axis)


@TABLE.implements("roll")
def _roll(x: A, *, shift: tuple[int, ...], axis: tuple[int, ...] | None) -> A:
    return cp.roll(x, shift if axis is not None else sum(shift), axis)


@TABLE.implements("tile")
def _tile(x: A, *, reps: tuple[int, ...]) -> A:
    return cp.tile(x, reps)


@TABLE.implements("repeat")
def _repeat(x: A, *, repeats: int, axis: int) -> A:
    return cp.repeat(x, repeats, axis)


@TABLE.implements("pad")
def _pad(x: A, *, widths: tuple[tuple[int, int], ...], value: float, out: A | None = None) -> A:
    if out is None:
        out = cp.empty([d + before + after for d, (before, after) in zip(x.shape, widths, strict=True)], x.dtype)
    out.fill(x.dtype.type(value))
    out[tuple(slice(before, before + d) for d, (before, _) in zip(x.shape, widths, strict=True))] = x
    return out


@TABLE.implements("triu")
def _triu(x: A, *, k: int) -> A:
    return cp.triu(x, k)


@TABLE.implements("tril")
def _tril(x: A, *, k: int) -> A:
    return cp.tril(x, k)


@TABLE.implements("concat")
def _concat(*values: A, axis: int, out: A | None = None) -> A:
    return cp.concatenate(values, axis, out=out)


@TABLE.implements("stack")
def _stack(*values: A, axis: int, out: A | None = None) -> A:
    return cp.stack(values, axis, out=out)


@TABLE.implements("unstack")
def _unstack(x: A, *, num: int, axis: int) -> tuple[A, ...]:
    if x.shape[axis] != num:
        raise ShapeError(f"dimension {axis} of {x.shape} does not have length {num}")
    return tuple(cp.moveaxis(x, axis, 0)[i, ...] for i in range(num))


@TABLE.implements("split")
def _split(x: A, vector: A | None = None, *, sizes: tuple[int | None, ...], axis: int) -> tuple[A, ...]:
    length = x.shape[axis]
    found = list(sizes) if vector is None else vector.tolist()
    if vector is None and None in sizes:
        if length % len(sizes):
            raise ShapeError(f"dimension {axis} of {x.shape} does not split into {len(sizes)} equal parts")
        found = [length // len(sizes)] * len(sizes)
    if sum(found) != length:
        raise ShapeError(f"parts of {found} do not add up to dimension {axis} of {x.shape}")
    return tuple(cp.split(x, np.cumsum(np.array(found[:-1], np.int64)).tolist(), axis))


@TABLE.implements("bitcast")
def _bitcast(x: A, *, dtype: np.dtype[Any]) -> A:
    if dtype in NARROW:
        raise ShapeError(f"tensors of {NARROW[dtype]} live on CPUs only")
    return cp.array(x, order="C").view(dtype)


# --- bounds that come as tensors -------------------------------------------------------------------------------------


@TABLE.implements("slice_dynamic")
def _slice(x: A, starts: A, stops: A, steps: A, *, axes: tuple[int, ...]) -> A:
    return x[_dynamic_key(x.ndim, starts, stops, steps, axes)].copy()


@TABLE.implements("slice_dynamic_grad")
def _slice_grad(values: A, shape: A, starts: A, stops: A, steps: A, *, axes: tuple[int, ...], rank: int | None) -> A:
    out = cp.zeros(tuple(shape.tolist()), values.dtype)
    out[_dynamic_key(out.ndim, starts, stops, steps, axes)] = values
    return out


@TABLE.implements("pad_dynamic")
def _pad_dynamic(x: A, widths: A, value: A) -> A:
    padded, inside, kept = _parts(widths, x.shape)
    out = cp.empty(padded, x.dtype)
    out[...] = value
    out[inside] = x[kept]
    return out


@TABLE.implements("pad_crop")
def _crop(values: A, widths: A, shape: A) -> A:
    _, inside, kept = _parts(widths, tuple(shape.tolist()))
    out = cp.zeros(tuple(shape.tolist()), values.dtype)
    out[kept] = values[inside]
    return out


@TABLE.implements("pad_places")
def _places(length: A, widths: A, *, mode: Any) -> A:
    before, after = widths.tolist()
    grown = np.pad(np.arange(int(length), dtype=np.int64), (max(before, 0), max(after, 0)), mode=mode)
    return cp.asarray(grown[max(-before, 0) : grown.size - max(-after, 0)])


@TABLE.implements("range_dynamic")
def _range(start: A, stop: A, step: A) -> A:
    count = max(int(np.ceil((float(stop) - float(start)) / float(step))), 0)
    return (start + cp.arange(count).astype(start.dtype) * step).astype(start.dtype)


@TABLE.implements("broadcast_dims")
def _broadcast(*shapes: A) -> A:
    return cp.asarray(np.array(np.broadcast_shapes(*(tuple(s.tolist()) for s in shapes)), np.int64))


@TABLE.implements("crop_to")
def _crop_to(x: A, sizes: A, *, shape: Any) -> A:
    return x[tuple(slice(n) for n in sizes.tolist())]


@TABLE.implements("pad_to")
def _pad_to(x: A, sizes: A, *, shape: Any) -> A:
    out = cp.zeros(sizes.tolist(), x.dtype)
    out[tuple(slice(n) for n in x.shape)] = x
    return out


# --- Fourier transforms ----------------------------------------------------------------------------------------------


def _define_transform(name: str) -> None:
    function = getattr(cp.fft, name)

    @TABLE.implements(name)
    def transform(x: A, *, s: tuple[int, ...] | None, axes: tuple[int, ...] | None, norm: str) -> A:
        if s is not None and axes is None:
            axes = tuple(range(-len(s), 0))
        if kind_of(x.dtype) not in "fc":
            x = x.astype(np.float64)
        return function(x, s=s, axes=axes, norm=norm)


for _name in ("fftn", "ifftn", "rfftn", "irfftn"):
    _define_transform(_name)


@TABLE.implements("fftshift")
def _fftshift(x: A, *, axes: int | tuple[int, ...] | None) -> A:
    return cp.fft.fftshift(x, axes)


@TABLE.implements("ifftshift")
def _ifftshift(x: A, *, axes: int | tuple[int, ...] | None) -> A:
    return cp.fft.ifftshift(x, axes)
