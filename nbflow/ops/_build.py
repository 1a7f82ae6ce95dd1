"""What every op family uses to make nodes: conversion of values to tensors, promotion, and common shape rules.

Promotion follows the array API standard 2024.12 ("Type Promotion Rules"): booleans, integers and floats do not mix by
themselves, and a Python scalar is weak: it takes the dtype of the tensor it meets.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol, TypeVar, cast

import numpy as np

from nbflow.device import DeviceSpec
from nbflow.errors import DTypeError, GraphError, ShapeError
from nbflow.graph import Graph, Node, Tensor, get_graph, graph_for
from nbflow.op import Attrs, ShapeRule
from nbflow.spec import (
    BFLOAT16,
    NARROW,
    DTypeLike,
    Shape,
    TensorSpec,
    as_dtype,
    broadcast_shapes,
    format_shape,
    kind_of,
    result_dtype,
)

DeviceLike = str | DeviceSpec | None
ArrayLike = Any  # Tensor, Variable, numpy array, Python scalar, or nested sequences of these

# Python floats without a tensor beside them become float32, as in every deep learning library: float64 constants would
# silently promote a whole float32 model. Numpy arrays keep their dtype.
DEFAULT_FLOAT = np.dtype(np.float32)
DEFAULT_COMPLEX = np.dtype(np.complex64)
DEFAULT_INT = np.dtype(np.int64)
BOOL = np.dtype(np.bool_)
INT64 = np.dtype(np.int64)


class Unary(Protocol):
    """A public function of one tensor."""

    def __call__(self, x: ArrayLike, /, *, name: str | None = None) -> Tensor: ...


class Binary(Protocol):
    """A public function of two tensors."""

    def __call__(self, x: ArrayLike, y: ArrayLike, /, *, name: str | None = None) -> Tensor: ...


# --- values to tensors -----------------------------------------------------------------------------------------------


def is_scalar(value: Any) -> bool:
    """True for Python's own numbers, which are weak; numpy's scalars have a dtype and are not."""
    return isinstance(value, (bool, int, float, complex)) and not isinstance(value, np.generic)


def convert(value: ArrayLike, dtype: DTypeLike = None, like: Tensor | None = None) -> Tensor:
    """`value` as a tensor: tensors and variables pass, everything else becomes a constant.

    A Python scalar takes the dtype of `like`. Raises DTypeError when `dtype` differs from that of a tensor, when a
    scalar's kind does not fit that of `like`, and for values that are not numbers.
    """
    found = as_tensor(value)
    if found is not None:
        if dtype is not None and as_dtype(dtype) != found.dtype:
            raise DTypeError(f"{found.name} is {found.dtype}, but {as_dtype(dtype)} is wanted; use nf.astype first")
        return found
    if dtype is None and like is not None and is_scalar(value):
        dtype = _weak_dtype(value, like)
    graph = None if like is None else graph_for([like])
    if isinstance(value, (list, tuple)) and any(as_tensor(leaf) is not None for leaf in _leaves(value)):
        parts = [convert(item, dtype) for item in value]
        return build("stack", parts, {"axis": 0})
    return build("constant", (), {"value": constant_value(value, dtype)}, graph=graph)


def as_tensor(value: Any) -> Tensor | None:
    """The tensor that `value` is or stands for (a Variable), None for anything else."""
    if isinstance(value, Tensor):
        return value
    to_tensor = getattr(value, "to_tensor", None)
    if to_tensor is None or isinstance(value, type):
        return None
    tensor: Tensor = to_tensor()
    return tensor


def convert_all(values: Sequence[ArrayLike]) -> list[Tensor]:
    """Each value as a tensor; Python scalars take the dtype of the first value that is not one."""
    tensors = [as_tensor(v) for v in values]
    beside = next((t for t in tensors if t is not None), None)  # whose graph the constants go to
    for n, value in enumerate(values):
        if tensors[n] is None and not is_scalar(value):
            tensors[n] = convert(value, like=beside)
    like = next((t for t in tensors if t is not None), None)
    return [convert(v, like=like) if t is None else t for v, t in zip(values, tensors, strict=True)]


def convert_promoted(values: Sequence[ArrayLike]) -> list[Tensor]:
    """`convert_all` for operands whose dtypes promote. bfloat16 beside another dtype is cast by a node of its own:
    numpy casts the rest while it computes, but knows nothing of this pair or that."""
    tensors = convert_all(values)
    dtypes = {t.dtype for t in tensors}
    if BFLOAT16 not in dtypes or len(dtypes) == 1:
        return tensors
    wanted = promote(*(t.dtype for t in tensors))
    return [t if t.dtype == wanted else build("astype", (t,), {"dtype": wanted}) for t in tensors]


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


# Beside a Python complex number, as the standard asks.
_COMPLEX_OF: dict[np.dtype[Any], np.dtype[Any]] = {
    np.dtype(np.float32): DEFAULT_COMPLEX,
    np.dtype(np.float64): np.dtype(np.complex128),
}


def _weak_dtype(value: Any, like: Tensor) -> np.dtype[Any]:
    kind = kind_of(like.dtype)
    fits = {"bool": "b", "int": "iufc", "float": "fc", "complex": "c"}[type(value).__name__]
    if isinstance(value, complex) and like.dtype in _COMPLEX_OF:
        return _COMPLEX_OF[like.dtype]
    if kind not in fits:
        raise DTypeError(
            f"the Python {type(value).__name__} {value!r} does not fit {like.name}, which is {like.dtype}; "
            f"use nf.astype on the tensor first"
        )
    return like.dtype


def constant_value(value: Any, dtype: DTypeLike) -> np.ndarray[Any, Any]:
    """A read-only copy, so that changing the array later does not change the graph."""
    wanted = None if dtype is None else as_dtype(dtype)
    try:
        array = np.array(value, dtype=wanted)
    except (OverflowError, ValueError, TypeError) as error:
        raise DTypeError(f"cannot make a tensor of {type(value).__name__} {value!r:.80}: {error}") from None
    if wanted is None:
        wanted = _default_dtype(value, as_dtype(array.dtype))
    array = np.array(array, dtype=wanted, copy=None if array.base is None else True)
    array.flags.writeable = False
    return array


def _default_dtype(value: Any, found: np.dtype[Any]) -> np.dtype[Any]:
    if not is_scalar(value) and not isinstance(value, (list, tuple)):
        return found
    if isinstance(value, (list, tuple)) and any(isinstance(v, (np.generic, np.ndarray)) for v in _leaves(value)):
        return found
    return {"f": DEFAULT_FLOAT, "c": DEFAULT_COMPLEX}.get(kind_of(found), found)


# --- nodes -----------------------------------------------------------------------------------------------------------


def build_node(
    op: str,
    inputs: Sequence[Tensor] = (),
    attrs: Mapping[str, Any] | None = None,
    *,
    name: str | None = None,
    control_inputs: Sequence[Node] = (),
    graph: Graph | None = None,
) -> Node:
    """One node, in the graph of its inputs (or `graph`, or the current one)."""
    if graph is None:
        graph = graph_for(inputs)
    return graph.add(op, inputs, attrs, name=name, control_inputs=control_inputs)


def build(
    op: str,
    inputs: Sequence[Tensor] = (),
    attrs: Mapping[str, Any] | None = None,
    *,
    name: str | None = None,
    graph: Graph | None = None,
) -> Tensor:
    """The only output of a new node."""
    outputs = build_node(op, inputs, attrs, name=name, graph=graph).outputs
    if len(outputs) != 1:
        raise GraphError(f"op {op!r} has {len(outputs)} outputs, not one")
    return outputs[0]


def unary(op: str, x: ArrayLike, attrs: Mapping[str, Any] | None = None, *, name: str | None = None) -> Tensor:
    """`op(x)`."""
    return build(op, (convert(x),), attrs, name=name)


def binary(op: str, x: ArrayLike, y: ArrayLike, *, name: str | None = None) -> Tensor:
    """`op(x, y)`, in which a Python scalar takes the dtype of the other operand."""
    return build(op, convert_promoted((x, y)), name=name)


F = TypeVar("F", bound=Callable[..., Any])


def placing(function: F) -> F:
    """`function` with its argument `device`: what it makes asks for that device (see `nf.device`)."""

    @functools.wraps(function)
    def placed(*args: Any, device: DeviceLike = None, **more: Any) -> Any:
        if device is None:
            return function(*args, **more)
        with get_graph().device(device):
            return function(*args, **more)

    return cast(F, placed)


def named(function: Callable[..., Tensor], name: str, doc: str, module: str) -> Any:
    """`function` under a public name and docstring: families make their many alike functions in a loop of one line."""
    function.__name__ = function.__qualname__ = name
    function.__doc__ = doc
    function.__module__ = module
    return function


# --- dtypes ----------------------------------------------------------------------------------------------------------

_KIND_GROUP = {"b": "boolean", "i": "integer", "u": "integer", "f": "floating", "c": "floating"}


def promote(*dtypes: np.dtype[Any]) -> np.dtype[Any]:
    """The array API's promotion; `spec.result_dtype` says where bfloat16 stands. Raises DTypeError for booleans,
    integers and floats mixed with each other, and for uint64 with a signed integer."""
    if len(set(dtypes)) == 1:
        return dtypes[0]
    refuse_narrow(*dtypes)
    groups = {_KIND_GROUP[kind_of(d)] for d in dtypes}
    found = result_dtype(*dtypes)
    if len(groups) > 1 or _KIND_GROUP[kind_of(found)] not in groups:
        listed = " and ".join(dict.fromkeys(str(d) for d in dtypes))
        raise DTypeError(f"dtypes {listed} do not mix; use nf.astype on one of them")
    return found


def refuse_narrow(*dtypes: np.dtype[Any]) -> None:
    """Raises DTypeError for the formats of 8 bits and fewer, which are only kept and moved."""
    for dtype in dtypes:
        if dtype in NARROW:
            raise DTypeError(f"nothing computes with {dtype}; use nf.astype to make it a wider dtype first")


@lru_cache(maxsize=4096)
def ufunc_dtype(ufunc: np.ufunc, *dtypes: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of `ufunc`'s result. Raises DTypeError when it takes no such inputs.

    numpy would rather compute in another dtype than refuse: exp(int8) in float16, True ** True in int8. Here the
    dtype in which it computes is the promoted one.
    """
    refuse_narrow(*dtypes)
    wanted = promote(*dtypes)
    try:
        found = ufunc.resolve_dtypes((*[wanted] * len(dtypes), *[None] * ufunc.nout))
    except TypeError:
        found = ()
    if not found or any(d != wanted for d in found[: len(dtypes)]):
        listed = " and ".join(str(d) for d in dtypes)
        raise DTypeError(f"{ufunc.__name__} is not defined for {listed}; use nf.astype first")
    return as_dtype(found[-1])


def require_kind(spec: TensorSpec, kinds: str, what: str) -> None:
    """Raises DTypeError unless the dtype is of one of numpy's `kinds`; `what` completes the sentence."""
    if kind_of(spec.dtype) not in kinds:
        raise DTypeError(f"{what}, not {spec.dtype}; use nf.astype first")


# --- shape rules -----------------------------------------------------------------------------------------------------


def broadcast_infer(ufunc: np.ufunc) -> ShapeRule:
    """The rule of an elementwise op whose dtypes are those of `ufunc`."""

    def infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
        dtype = ufunc_dtype(ufunc, *(s.dtype for s in inputs))
        return [TensorSpec(broadcast_shapes(*(s.shape for s in inputs)), dtype)]

    return infer


def same_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    """The output is like the first input."""
    return [TensorSpec(inputs[0].shape, inputs[0].dtype)]


def known_rank(spec: TensorSpec, what: str) -> int:
    """The rank. Raises ShapeError when it is unknown and `what` cannot do without."""
    if spec.shape is None:
        raise ShapeError(f"{what} needs a tensor of known rank; give the placeholder a shape such as (None, None)")
    return len(spec.shape)


def static_shape(shape: Shape) -> tuple[int, ...] | None:
    """The shape when every dimension is known."""
    if shape is None or any(d is None for d in shape):
        return None
    return tuple(d for d in shape if d is not None)


def require_scalar(spec: TensorSpec, what: str) -> None:
    """Raises ShapeError unless the shape is `()` or unknown."""
    if spec.shape not in ((), None):
        raise ShapeError(f"{what} is a scalar, not {format_shape(spec.shape)}")


def int_tuple(value: Any, what: str) -> tuple[int, ...]:
    """A tuple of ints from an int or a sequence of ints."""
    items = (value,) if isinstance(value, (int, np.integer)) else tuple(value)
    try:
        return tuple(int(i.__index__()) for i in items)
    except AttributeError:
        raise ShapeError(f"{what} is an integer or integers, not {value!r}") from None


def axis_attr(axis: Any) -> int | tuple[int, ...] | None:
    """An `axis=` argument as an attribute. Raises ShapeError for anything but None, an int or ints."""
    if axis is None:
        return None
    if isinstance(axis, (int, np.integer)) and not isinstance(axis, bool):
        return int(axis)
    return int_tuple(axis, "axis")
