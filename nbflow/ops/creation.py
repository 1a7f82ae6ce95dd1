"""Where values come from, and how they pass on unchanged: constants, placeholders, filled tensors, identity, group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from nbflow import op
from nbflow.errors import DTypeError, ShapeError
from nbflow.graph import Node, Tensor, ToTensor, as_node, graph_for
from nbflow.op import Attrs
from nbflow.ops._build import (
    DEFAULT_COMPLEX,
    DEFAULT_FLOAT,
    DEFAULT_INT,
    ArrayLike,
    DeviceLike,
    as_tensor,
    build,
    build_node,
    constant_value,
    convert,
    placing,
    same_infer,
    unary,
)
from nbflow.ops.shape import ShapeLike, shape_argument, shape_infer, shape_like
from nbflow.spec import DTypeLike, TensorSpec, as_dtype, as_shape, kind_of, spec_of

Grads = Sequence[Tensor | None]


# --- constant, placeholder -------------------------------------------------------------------------------------------


def _constant_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    return [spec_of(attrs["value"])]


op.define(
    "constant",
    infer=_constant_infer,
    gradient=None,
    cost=op.free_cost,
    doc="A value known when the graph is built. attrs: value (read-only ndarray).",
)


def constant(value: ArrayLike, dtype: DTypeLike = None, *, name: str | None = None) -> Tensor:
    """A tensor of a numpy array, a Python scalar or nested lists of numbers.

    Numpy arrays keep their dtype; Python ints become int64, floats float32, unless `dtype` says otherwise. The value is
    copied. Raises DTypeError for anything that is not numbers or booleans.
    """
    if as_tensor(value) is not None:
        raise DTypeError(f"{value!r} is a tensor already; nf.identity gives it another name")
    return build("constant", (), {"value": constant_value(value, dtype)}, name=name)


def _placeholder_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    return [TensorSpec(attrs["shape"], attrs["dtype"])]


op.define(
    "placeholder",
    infer=_placeholder_infer,
    gradient=None,
    cost=op.free_cost,
    doc="A value that must be fed. attrs: dtype, shape (None: any rank; None inside: any length).",
)


def placeholder(dtype: DTypeLike, shape: Any = None, *, name: str | None = None) -> Tensor:
    """A tensor whose value comes with each run: `nf.run(y, {x: array})`.

    `shape` may hold None for dimensions that differ from run to run; None as a whole means any rank.
    """
    return build("placeholder", (), {"dtype": as_dtype(dtype), "shape": as_shape(shape)}, name=name)


# --- identity, stop_gradient, group ----------------------------------------------------------------------------------


def _identity_gradient(node: Node, grads: Grads) -> Grads:
    return [grads[0]]


op.define(
    "identity",
    infer=same_infer,
    gradient=_identity_gradient,
    cost=op.free_cost,
    alias=True,
    doc="The same value: a place for a name, a device or control inputs.",
)
op.define(
    "stop_gradient",
    infer=same_infer,
    gradient=None,
    cost=op.free_cost,
    alias=True,
    doc="The same value, through which no gradient flows.",
)
op.define(
    "group",
    infer=lambda inputs, attrs: [],
    gradient=None,
    cost=op.free_cost,
    doc="Nothing, after its control inputs. No outputs.",
)


def identity(x: ArrayLike, /, *, name: str | None = None) -> Tensor:
    """The same value under another name, on another device, or after other ops."""
    return unary("identity", x, name=name)


def stop_gradient(x: ArrayLike, /, *, name: str | None = None) -> Tensor:
    """The same value; gradients treat it as a constant."""
    return unary("stop_gradient", x, name=name)


def group(*ops: Node | Tensor | ToTensor, name: str | None = None) -> Node:
    """An op that is done when all of `ops` (ops, tensors or variables) are."""
    nodes = [as_node(o) for o in ops]
    return build_node("group", (), name=name, control_inputs=nodes, graph=graph_for(nodes))


# --- filled tensors --------------------------------------------------------------------------------------------------


def _full_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    return [TensorSpec(shape_infer(inputs, attrs), attrs["dtype"])]


op.define(
    "full",
    infer=_full_infer,
    gradient=None,
    out=True,
    doc="One value everywhere. inputs: none, or the shape (int64 vector). attrs: value (number), dtype, shape.",
)


@placing
def full(
    shape: ShapeLike,
    fill_value: ArrayLike,
    *,
    dtype: DTypeLike = None,
    device: DeviceLike = None,
    name: str | None = None,
) -> Tensor:
    """`fill_value` everywhere. `shape`: ints, or ints and integer tensors, or an integer vector.

    `fill_value` is a number; a scalar tensor goes through `nf.broadcast_to`. The dtype is float32, int64 or bool after
    the kind of `fill_value` unless given.
    """
    if as_tensor(fill_value) is not None or isinstance(fill_value, np.ndarray):
        scalar = convert(fill_value, dtype)
        attr, extra = shape_argument(shape)
        return build("broadcast_to", (scalar, *extra), {"shape": attr}, name=name)
    value = constant_value(fill_value, dtype)
    if kind_of(value.dtype) == "c":
        return full(shape, value, name=name)  # attributes hold no complex numbers
    attr, extra = shape_argument(shape)
    return build("full", extra, {"value": value.item(), "dtype": value.dtype, "shape": attr}, name=name)


@placing
def zeros(shape: ShapeLike, *, dtype: DTypeLike = None, device: DeviceLike = None, name: str | None = None) -> Tensor:
    """Zeros; float32 unless `dtype` is given."""
    return full(shape, 0, dtype=DEFAULT_FLOAT if dtype is None else dtype, name=name)


@placing
def ones(shape: ShapeLike, *, dtype: DTypeLike = None, device: DeviceLike = None, name: str | None = None) -> Tensor:
    """Ones; float32 unless `dtype` is given."""
    return full(shape, 1, dtype=DEFAULT_FLOAT if dtype is None else dtype, name=name)


@placing
def full_like(
    x: ArrayLike, /, fill_value: Any, *, dtype: DTypeLike = None, device: DeviceLike = None, name: str | None = None
) -> Tensor:
    """`fill_value`, a number, in the shape of `x` (known only at run time, if need be) and its dtype unless given."""
    tensor = convert(x)
    value = constant_value(fill_value, tensor.dtype if dtype is None else dtype)
    attr, extra = shape_like(tensor)
    if kind_of(value.dtype) == "c":
        scalar = build("constant", (), {"value": value}, graph=graph_for([tensor]))
        return build("broadcast_to", (scalar, *extra), {"shape": attr}, name=name)
    attrs = {"value": value.item(), "dtype": value.dtype, "shape": attr}
    return build("full", extra, attrs, name=name, graph=graph_for([tensor]))


@placing
def zeros_like(
    x: ArrayLike, /, *, dtype: DTypeLike = None, device: DeviceLike = None, name: str | None = None
) -> Tensor:
    """Zeros in the shape of `x`."""
    return full_like(x, 0, dtype=dtype, name=name)


@placing
def ones_like(
    x: ArrayLike, /, *, dtype: DTypeLike = None, device: DeviceLike = None, name: str | None = None
) -> Tensor:
    """Ones in the shape of `x`."""
    return full_like(x, 1, dtype=dtype, name=name)


# --- ranges ----------------------------------------------------------------------------------------------------------


def _arange_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    if inputs:
        if inputs[0].shape not in ((), None) or kind_of(inputs[0].dtype) not in "iu":
            raise ShapeError(f"the end of a range is an integer scalar, not {inputs[0]}")
        return [TensorSpec((None,), attrs["dtype"])]
    start, stop, step = attrs["start"], attrs["stop"], attrs["step"]
    if step == 0:
        raise ShapeError("the step of a range is not zero")
    return [TensorSpec((max(0, math.ceil((stop - start) / step)),), attrs["dtype"])]


op.define(
    "arange",
    infer=_arange_infer,
    gradient=None,
    doc="Evenly spaced numbers. inputs: none, or the end (integer scalar). attrs: start, stop, step, dtype.",
)


@placing
def arange(
    start: Any,
    /,
    stop: Any = None,
    step: Any = 1,
    *,
    dtype: DTypeLike = None,
    device: DeviceLike = None,
    name: str | None = None,
) -> Tensor:
    """`start`, `start + step`, … up to, not including, `stop`; `arange(n)` counts from 0.

    Numbers, except that `stop` may be an integer scalar tensor (then: `start` is an int and `step` is 1).
    """
    first, end = (0, start) if stop is None else (start, stop)
    end_tensor = as_tensor(end)
    if end_tensor is not None:
        if step != 1 or as_tensor(first) is not None:
            raise ShapeError("a range that ends at a tensor starts at an int and has step 1")
        wanted = DEFAULT_INT if dtype is None else as_dtype(dtype)
        attrs = {"start": int(first), "stop": None, "step": 1, "dtype": wanted}
        return build("arange", (end_tensor,), attrs, name=name)
    numbers = [n.item() if isinstance(n, np.generic) else n for n in (first, end, step)]
    floating = any(isinstance(n, float) for n in numbers)
    wanted = as_dtype(dtype) if dtype is not None else (DEFAULT_FLOAT if floating else DEFAULT_INT)
    attrs = dict(zip(("start", "stop", "step"), numbers, strict=True)) | {"dtype": wanted}
    return build("arange", (), attrs, name=name)


@placing
def linspace(
    start: complex,
    stop: complex,
    /,
    num: int,
    *,
    dtype: DTypeLike = None,
    endpoint: bool = True,
    device: DeviceLike = None,
    name: str | None = None,
) -> Tensor:
    """`num` evenly spaced numbers from `start` to `stop`, the latter included unless `endpoint` is false."""
    default = DEFAULT_COMPLEX if isinstance(start, complex) or isinstance(stop, complex) else DEFAULT_FLOAT
    value = np.linspace(start, stop, num, endpoint=endpoint, dtype=default if dtype is None else as_dtype(dtype))
    return constant(value, name=name)


def _eye_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    return [TensorSpec((attrs["rows"], attrs["columns"]), attrs["dtype"])]


op.define(
    "eye",
    infer=_eye_infer,
    gradient=None,
    out=True,
    doc="Ones on diagonal k, zeros elsewhere. attrs: rows, columns, k, dtype.",
)


@placing
def eye(
    n_rows: int,
    n_cols: int | None = None,
    /,
    *,
    k: int = 0,
    dtype: DTypeLike = None,
    device: DeviceLike = None,
    name: str | None = None,
) -> Tensor:
    """Ones on the `k`-th diagonal of an (n_rows, n_cols) matrix of zeros; float32 unless `dtype` is given."""
    attrs = {
        "rows": int(n_rows),
        "columns": int(n_rows if n_cols is None else n_cols),
        "k": int(k),
        "dtype": DEFAULT_FLOAT if dtype is None else as_dtype(dtype),
    }
    return build("eye", (), attrs, name=name)
