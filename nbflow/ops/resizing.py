"""Resizing along any dimensions by interpolation: linear in the values, so its gradient is its transpose.

What is interpolated where is ONNX's `Resize` (operator set 19): each place of the result has a coordinate in the
input, and takes the nearest value, or a mean of those around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nbflow import op
from nbflow.errors import DTypeError, GraphError, ShapeError
from nbflow.graph import Node, Tensor
from nbflow.op import Attrs, Cost
from nbflow.ops._build import ArrayLike, as_tensor, build, convert, int_tuple, known_rank, require_kind
from nbflow.ops.shape import shape_infer, shape_like
from nbflow.spec import Dim, TensorSpec, format_shape, kind_of, normalize_axis

Grads = Sequence[Tensor | None]

METHODS = ("nearest", "linear", "cubic")
COORDINATES = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_crop_and_resize",
)
ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


def _only(grads: Grads) -> Tensor:
    (grad,) = grads
    assert grad is not None  # the only output of the op
    return grad


# --- ops -------------------------------------------------------------------------------------------------------------
#
# `sizes`, `scales` and `roi` are attributes where they are known and inputs where they are not; the attribute `given`
# names the inputs in order.


def _resized(dim: Dim, size: int | None, scale: float | None) -> Dim:
    if size is not None:
        return size
    return None if dim is None or scale is None else int(np.floor(dim * scale))


def _check(x: TensorSpec, given: Sequence[TensorSpec], attrs: Attrs) -> None:
    require_kind(x, "f" if attrs["method"] != "nearest" else "biufc", f"{attrs['method']} interpolation takes floats")
    for what, spec in zip(attrs["given"], given, strict=True):
        require_kind(
            spec, "iu" if what == "sizes" else "f", f"{what} are {'integers' if what == 'sizes' else 'floats'}"
        )
        count = len(attrs["axes"]) * (2 if what == "roi" else 1)
        if spec.shape is not None and (len(spec.shape) != 1 or spec.shape[0] not in (None, count)):
            raise ShapeError(f"{what} for the dimensions {attrs['axes']} have shape ({count},), not {spec}")


def _infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    x, *given = inputs
    _check(x, given, attrs)
    if x.shape is None:
        return [TensorSpec(None, x.dtype)]
    dims = list(x.shape)
    for number, axis in enumerate(attrs["axes"]):
        if axis >= len(dims):
            raise ShapeError(f"dimension {axis} is to be resized, and {format_shape(x.shape)} has {len(dims)}")
        size = attrs["sizes"] and attrs["sizes"][number]
        scale = attrs["scales"] and attrs["scales"][number]
        if dims[axis] == 0:
            raise ShapeError(f"dimension {axis} of {format_shape(x.shape)} is empty and cannot be resized")
        dims[axis] = None if "sizes" in attrs["given"] else _resized(dims[axis], size, scale)
    return [TensorSpec(tuple(dims), x.dtype)]


def _gradient(node: Node, grads: Grads) -> Grads:
    x, *given = node.inputs
    shape, vector = shape_like(x)
    attrs = {**node.attrs, "shape": shape}
    return [build("resize_grad", (_only(grads), *given, *vector), attrs), *[None for _ in given]]


def _grad_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    return [TensorSpec(shape_infer(inputs[1 + len(attrs["given"]) :], attrs), inputs[0].dtype)]


def _grad_gradient(node: Node, grads: Grads) -> Grads:
    _, *more = node.inputs
    attrs = {k: v for k, v in node.attrs.items() if k != "shape"}
    given = more[: len(attrs["given"])]
    # What stands outside does not depend on the input, so it is not in the slope.
    back = build("resize", (_only(grads), *given), {**attrs, "outside": 0.0})
    return [back, *[None for _ in more]]


def _cost(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], attrs: Attrs) -> Cost:
    taps = {"nearest": 0, "linear": 3, "cubic": 7}[attrs["method"]]
    work = max(op.size_of(inputs[0]), op.size_of(outputs[0])) * taps * len(attrs["axes"])
    return Cost(work, op.nbytes_of(inputs) + op.nbytes_of(outputs))


_ATTRS = (
    "attrs: axes, sizes, scales, roi (known ones), given (the names of those that are inputs), method, coordinates, "
    "rounding, cubic, exclude_outside, antialias, outside"
)
op.define(
    "resize",
    infer=_infer,
    gradient=_gradient,
    cost=_cost,
    doc=f"Interpolated along dimensions. inputs: x, and of sizes, scales and roi those that are not known. {_ATTRS}.",
)
op.define(
    "resize_grad",
    infer=_grad_infer,
    gradient=_grad_gradient,
    cost=_cost,
    doc=f"The transpose of resize. inputs: dy, those of resize, the shape of x unless known. {_ATTRS}, shape.",
)


# --- functions -------------------------------------------------------------------------------------------------------


def resample(
    x: ArrayLike,
    axes: Sequence[int],
    sizes: ArrayLike | None = None,
    scales: ArrayLike | None = None,
    roi: ArrayLike | None = None,
    method: str = "linear",
    coordinates: str = "half_pixel",
    rounding: str = "round_prefer_floor",
    cubic: float = -0.75,
    exclude_outside: bool = False,
    antialias: bool = False,
    outside: float = 0.0,
    *,
    name: str | None = None,
) -> Tensor:
    """`x` resized along `axes` by interpolation, to `sizes` or by `scales` (floor(size · scale) places).

    - `sizes`, `scales`: one for each of `axes`, known or vectors. With both, sizes are made and scales map coordinates.
    - `method`: "nearest", "linear", or "cubic" with the coefficient `cubic` (Keys, IEEE Trans. ASSP 29, 1981).
    - `coordinates`: where in the input place i of the result lies. "half_pixel": (i + 1/2) / scale - 1/2;
      "asymmetric": i / scale; "align_corners": first and last places on each other; "pytorch_half_pixel": 0 where the
      result has one place; "half_pixel_symmetric": around the centre; "tf_crop_and_resize": between the bounds `roi`
      (starts, then ends, 1 at the last place), and `outside` is the value beyond the input.
    - `rounding`: which is nearest: "round_prefer_floor", "round_prefer_ceil", "floor" or "ceil".
    - `exclude_outside`: places beyond the input have no weight; else the last ones repeat.
    - `antialias`: a smaller result is a mean over all places that fall together, by the stretched kernel.

    Integers and booleans can be resized by "nearest" only. Raises GraphError for arguments that have no meaning.
    """
    tensor = convert(x)
    wanted = int_tuple(axes, "axes")
    places = wanted if all(a >= 0 for a in wanted) else _from_front(tensor, wanted)
    _one_of("method", method, METHODS)
    _one_of("coordinates", coordinates, COORDINATES)
    _one_of("rounding", rounding, ROUNDINGS)
    if sizes is None and scales is None:
        raise GraphError("resample takes sizes or scales, and neither is given")
    if (roi is None) == (coordinates == "tf_crop_and_resize"):
        raise GraphError("a roi goes with coordinates 'tf_crop_and_resize', and those with a roi")
    known: dict[str, tuple[Any, ...] | None] = {}
    given: dict[str, Tensor] = {}
    for what, value in (("sizes", sizes), ("scales", scales), ("roi", roi)):
        known[what] = None
        if value is not None and _is_known(value):
            known[what] = _numbers(what, value, len(places) * (2 if what == "roi" else 1))
        elif value is not None:
            given[what] = convert(value)
    attrs = {
        "axes": places,
        **known,
        "given": tuple(given),
        "method": method,
        "coordinates": coordinates,
        "rounding": rounding,
        "cubic": float(cubic),
        "exclude_outside": bool(exclude_outside),
        "antialias": bool(antialias),
        "outside": float(outside),
    }
    return build("resize", (tensor, *given.values()), attrs, name=name)


def _one_of(what: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise GraphError(f"{what} is one of {', '.join(allowed)}, not {value!r}")


def _from_front(x: Tensor, axes: Sequence[int]) -> tuple[int, ...]:
    rank = known_rank(x.spec, "resizing dimensions counted from the end")
    return tuple(normalize_axis(a, rank) for a in axes)


def _is_known(value: Any) -> bool:
    items = value if isinstance(value, (list, tuple)) else [value]
    return all(as_tensor(item) is None for item in items)


def _numbers(what: str, value: Any, count: int) -> tuple[Any, ...]:
    """Checked numbers. Raises GraphError for another count, and for sizes and scales that are not positive."""
    array = np.asarray(value)
    if array.shape != (count,) or kind_of(array.dtype) not in "iuf":
        raise GraphError(f"{what} are {count} numbers, not {value!r}")
    if what != "roi" and not np.all(array > 0):
        raise GraphError(f"{what} are positive, not {value!r}")
    if what == "sizes":
        if kind_of(array.dtype) == "f":
            raise DTypeError(f"sizes are integers, not {value!r}")
        return tuple(int(v) for v in array)
    return tuple(float(v) for v in array)
