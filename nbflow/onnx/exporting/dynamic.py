"""Ops whose bounds and places are tensors, as ONNX nodes: most of them came from ONNX."""

from __future__ import annotations

import numpy as np

from nbflow.onnx.exporting.indexing import indices, sortable
from nbflow.onnx.exporting.writer import INT64, Rules, Site
from nbflow.spec import kind_of

RULES = Rules()


def _vectors(s: Site, names: tuple[str, ...], first: int) -> list[str]:
    """Integer vectors as int64."""
    return [s.cast(name, s.specs[first + n].dtype, INT64) for n, name in enumerate(names)]


# --- slices, paddings, ranges ----------------------------------------------------------------------------------------


@RULES.writes("slice_dynamic")
def _slice(s: Site, x: str, *bounds: str) -> str:
    starts, stops, steps = _vectors(s, bounds, 1)
    return s.add("Slice", x, starts, stops, s.ints(*s.attrs["axes"]), steps)


@RULES.writes("slice_dynamic_grad")
def _slice_grad(s: Site, values: str, *bounds: str) -> str:
    """Elements are numbered, the numbers are sliced, and tell where the values go."""
    shape, starts, stops, steps = _vectors(s, bounds, 1)
    count = s.add("ReduceProd", shape, keepdims=1)
    numbers = s.add("Reshape", s.range(count), shape, allowzero=1)
    places = s.reshape(s.add("Slice", numbers, starts, stops, s.ints(*s.attrs["axes"]), steps), [-1])
    zeros = s.add("ConstantOfShape", count, value=np.zeros(1, s.out.dtype))
    return s.add(
        "Reshape", s.add("ScatterElements", zeros, places, s.reshape(values, [-1]), axis=0), shape, allowzero=1
    )


@RULES.writes("pad_dynamic")
def _pad(s: Site, x: str, widths: str, value: str) -> str:
    return s.add("Pad", x, *_vectors(s, (widths,), 1), s.cast(value, s.specs[2].dtype, s.out.dtype))


@RULES.writes("pad_places")
def _pad_places(s: Site, length: str, widths: str) -> str:
    (ends,) = _vectors(s, (widths,), 1)
    numbers = s.add("Range", s.const(0, INT64), s.cast(length, s.specs[0].dtype, INT64), s.const(1, INT64))
    return s.add("Pad", numbers, ends, mode=s.attrs["mode"])


@RULES.writes("range_dynamic")
def _range(s: Site, start: str, stop: str, step: str) -> str:
    dtype = s.out.dtype
    if kind_of(dtype) == "f":
        wide = dtype if dtype.itemsize >= np.dtype(np.float32).itemsize else np.dtype(np.float32)
    else:
        wide = INT64
    return s.cast(s.add("Range", *[s.cast(v, dtype, wide) for v in (start, stop, step)]), wide, dtype)


@RULES.writes("broadcast_dims")
def _broadcast_dims(s: Site, *shapes: str) -> str:
    ranks = [spec.shape[0] if spec.shape else None for spec in s.specs]
    known = [r for r in ranks if r is not None]
    if len(known) < len(ranks):
        s.fail("the sizes of the shapes that broadcast are unknown")
    made = ""
    for vector, rank in zip(_vectors(s, shapes, 0), known, strict=True):
        missing = max(known) - rank
        full = s.add("Concat", s.ints(*[1] * missing), vector, axis=0) if missing else vector
        made = s.add("Where", s.add("Equal", full, s.ints(1)), made, full) if made else full
    return made


@RULES.writes("crop_to")
def _crop_to(s: Site, x: str, sizes: str) -> str:
    (ends,) = _vectors(s, (sizes,), 1)
    return s.add("Slice", x, s.add("ConstantOfShape", s.shape(ends), value=np.zeros(1, INT64)), ends)


@RULES.writes("pad_to")
def _pad_to(s: Site, x: str, sizes: str) -> str:
    (ends,) = _vectors(s, (sizes,), 1)
    behind = s.add("Sub", ends, s.shape(x))
    before = s.add("ConstantOfShape", s.shape(ends), value=np.zeros(1, INT64))
    return s.add("Pad", x, s.add("Concat", before, behind, axis=0), s.const(0, s.out.dtype))


# --- elements at places ----------------------------------------------------------------------------------------------


@RULES.writes("gather_elements")
def _gather_elements(s: Site, x: str, ids: str) -> str:
    return s.add("GatherElements", x, indices(s, ids, 1), axis=s.attrs["axis"])


def _reduction(s: Site) -> dict[str, str]:
    return {} if s.attrs["reduction"] == "none" else {"reduction": s.attrs["reduction"]}


@RULES.writes("scatter_elements")
def _scatter_elements(s: Site, x: str, ids: str, updates: str) -> str:
    return s.add("ScatterElements", x, indices(s, ids, 1), updates, axis=s.attrs["axis"], **_reduction(s))


@RULES.writes("scatter_nd")
def _scatter_nd(s: Site, x: str, ids: str, updates: str) -> str:
    return s.add("ScatterND", x, s.cast(ids, s.specs[1].dtype, INT64), updates, **_reduction(s))


@RULES.writes("unique_slices")
def _unique_slices(s: Site, x: str) -> list[str]:
    dtype, axis = s.specs[0].dtype, s.attrs["axis"]
    more = {} if axis is None else {"axis": axis}
    wide = s.cast(x, dtype, sortable(dtype))
    values, *others = s.add_many("Unique", wide, outputs=4, sorted=int(s.attrs["ascending"]), **more)
    return [s.cast(values, sortable(dtype), dtype), *others]


# --- products of gradients, bits -------------------------------------------------------------------------------------


@RULES.writes("gated_multiply", "gated_divide")
def _gated(s: Site, x: str, y: str) -> str:
    x, y = (s.cast(v, spec.dtype, s.out.dtype) for v, spec in zip((x, y), s.specs, strict=True))
    zero = s.const(0, s.out.dtype)
    nothing = s.add("Equal", x, zero)
    if s.node.op == "gated_divide":
        return s.add("Where", nothing, zero, s.add("Div", x, y))
    return s.add("Where", s.add("Or", nothing, s.add("Equal", y, zero)), zero, s.add("Mul", x, y))


@RULES.writes("bitcast")
def _bitcast(s: Site, x: str) -> str:
    return s.add("BitCast", x, to=s.out.dtype)
