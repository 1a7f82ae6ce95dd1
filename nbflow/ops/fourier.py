"""Discrete Fourier transforms, as in the array API's `fft` extension; sizes, dimensions and scaling as in numpy.

The transforms are linear, so a gradient is the transposed transform, conjugated: that of `fftn` is `ifftn` without its
scaling, of what was cut or padded the part that was used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nbflow import op
from nbflow.errors import DTypeError, ShapeError
from nbflow.graph import Node, Tensor
from nbflow.op import Attrs, Cost, GradientRule
from nbflow.ops._build import (
    DEFAULT_FLOAT,
    ArrayLike,
    DeviceLike,
    axis_attr,
    build,
    convert,
    int_tuple,
    known_rank,
    placing,
    require_kind,
    same_infer,
)
from nbflow.ops._complex import fitted
from nbflow.ops.creation import constant
from nbflow.ops.manipulation import pad
from nbflow.ops.numbers import conj
from nbflow.spec import Dim, DTypeLike, TensorSpec, as_dtype, format_shape, normalize_axes, normalize_axis

Grads = Sequence[Tensor | None]
Axes = int | Sequence[int] | None

# --- the ops ---------------------------------------------------------------------------------------------------------
#
# Each transforms the dimensions `axes` (None: all, or as many of the last as there are sizes), cut or padded with zeros
# to the sizes `s` (None: as they are). The last of them is the one that a real transform halves.

# numpy's scaling: by nothing forwards and 1/n backwards; both by 1/sqrt(n); by 1/n forwards. Hermitian transforms are
# the real ones the other way round.
_NORMS = {"backward": "forward", "ortho": "ortho", "forward": "backward"}


def _axes(rank: int, attrs: Attrs) -> list[int]:
    axes, sizes = attrs["axes"], attrs["s"]
    if axes is None:
        axes = range(rank) if sizes is None else range(-len(sizes), 0)
    found = [normalize_axis(a, rank) for a in axes]
    normalize_axes(found, rank)  # none twice
    if not found:
        raise ShapeError("a Fourier transform needs at least one dimension")
    return found


def _transformed(spec: TensorSpec, attrs: Attrs, real_input: bool, real_output: bool) -> list[Dim] | None:
    if spec.shape is None:
        return None
    dims = list(spec.shape)
    axes = _axes(len(dims), attrs)
    last = axes[-1]
    if attrs["s"] is not None:
        for axis, size in zip(axes, attrs["s"], strict=True):
            dims[axis] = size
    elif real_output:
        half = dims[last]
        dims[last] = None if half is None else 2 * (half - 1)
    if any(dims[a] is not None and dims[a] < 1 for a in axes):  # type: ignore[operator]  # mypy forgets the first half
        raise ShapeError(f"a Fourier transform of {format_shape(spec.shape)} over axes {axes} would have no points")
    whole = dims[last]
    if real_input:
        dims[last] = None if whole is None else whole // 2 + 1
    return dims


def _define(
    name: str, doc: str, gradient: GradientRule, *, real_input: bool = False, real_output: bool = False
) -> None:
    def infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
        (spec,) = inputs
        kinds, words = ("f", "real floating point numbers") if real_input else ("fc", "floating point numbers")
        require_kind(spec, kinds, f"{name} takes {words}")
        bits = np.result_type(spec.dtype, np.complex64).itemsize
        if bits > 16 or spec.dtype.itemsize < 4:
            raise DTypeError(f"{name} takes single and double precision, not {spec.dtype}; use nf.astype first")
        dims = _transformed(spec, attrs, real_input, real_output)
        dtype = as_dtype(f"f{bits // 2}" if real_output else f"c{bits}")
        return [TensorSpec(None if dims is None else tuple(dims), dtype)]

    op.define(
        name,
        infer=infer,
        gradient=gradient,
        cost=_cost,
        doc=f"{doc} attrs: s (sizes, or None), axes (or None), norm ('backward', 'ortho', 'forward').",
    )


def _cost(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], attrs: Attrs) -> Cost:
    size = max(op.size_of(s) for s in (*inputs, *outputs))
    return Cost(5 * size * max(1.0, float(np.log2(size + 1))), op.nbytes_of(inputs) + op.nbytes_of(outputs))


def _transposed(name: str, grad: Tensor, attrs: Attrs, rank: int | None) -> Tensor:
    """Transform `name` of the gradient over the same dimensions, at the lengths they have, with the scaling left."""
    axes = attrs["axes"] if rank is None else tuple(_axes(rank, attrs))
    return build(name, (grad,), {"s": None, "axes": axes, "norm": _NORMS[attrs["norm"]]})


def _whole_gradient(inverse: str) -> GradientRule:
    def gradient(node: Node, grads: Grads) -> Grads:
        (grad,) = grads
        assert grad is not None  # the only output
        x = node.inputs[0]
        back = _transposed(inverse, grad, node.attrs, _rank_of(node))
        return [fitted(_uncut(back, x, node.attrs), x)]

    return gradient


def _rfftn_gradient(node: Node, grads: Grads) -> Grads:
    # The frequencies that are not given are not there: zeros, up to the length of what was transformed.
    (grad,) = grads
    assert grad is not None  # the only output
    x, rank = node.inputs[0], _rank_of(node)
    rank = known_rank(x.spec, "the gradient of rfftn") if rank is None else rank
    last = _axes(rank, node.attrs)[-1]
    points = node.attrs["s"][-1] if node.attrs["s"] is not None else _known(x, last, "rfftn")
    missing = points - (points // 2 + 1)
    widths = tuple((0, missing if n == last else 0) for n in range(rank))
    back = _transposed("ifftn", pad(grad, widths), node.attrs, rank)
    return [fitted(_uncut(back, x, node.attrs), x)]


def _irfftn_gradient(node: Node, grads: Grads) -> Grads:
    # Every frequency but the first (and the middle one) also stands for its mirror image.
    (grad,) = grads
    assert grad is not None  # the only output
    x, y = node.inputs[0], node.outputs[0]
    rank = known_rank(x.spec, "the gradient of irfftn")
    last = _axes(rank, node.attrs)[-1]
    points = _known(y, last, "irfftn")
    counts = np.full(points // 2 + 1, 2.0)
    counts[0] = 1
    if points % 2 == 0:
        counts[-1] = 1
    back = _transposed("rfftn", grad, node.attrs, rank)
    weights = constant(counts.reshape(-1, *[1] * (rank - 1 - last)), y.dtype)
    return [_uncut(back * weights, x, {**node.attrs, "halved": last})]


def _rank_of(node: Node) -> int | None:
    return None if node.inputs[0].shape is None else len(node.inputs[0].shape)


def _known(x: Tensor, axis: int, what: str) -> int:
    dim = None if x.shape is None else x.shape[axis]
    if dim is None:
        raise ShapeError(
            f"the gradient of {what} needs to know dimension {axis} of {x!r}; give the placeholder a shape, or the "
            "transform its size"
        )
    return dim


def _uncut(grad: Tensor, x: Tensor, attrs: Attrs) -> Tensor:
    """The gradient for `x` from that for `x` cut or padded to the transform's sizes."""
    if attrs["s"] is None:
        return grad
    rank = known_rank(x.spec, "the gradient of a Fourier transform of given sizes")
    axes = _axes(rank, attrs)
    cut: list[tuple[Any, Any, Any]] = [(None, None, None)] * rank
    widths = [(0, 0)] * rank
    for axis, size in zip(axes, attrs["s"], strict=True):
        used = size // 2 + 1 if attrs.get("halved") == axis else size
        here = _known(x, axis, "a Fourier transform of given sizes")
        cut[axis] = (None, min(used, here), None)
        widths[axis] = (0, max(here - used, 0))
    made = build("getitem", (grad,), {"index": tuple(cut)})
    return pad(made, widths) if any(w for pair in widths for w in pair) else made


_define("fftn", "The Fourier transform over dimensions.", _whole_gradient("ifftn"))
_define("ifftn", "The inverse Fourier transform over dimensions.", _whole_gradient("fftn"))
_define("rfftn", "The Fourier transform of real numbers, without the redundant half.", _rfftn_gradient, real_input=True)
_define("irfftn", "The inverse of rfftn; real numbers.", _irfftn_gradient, real_output=True)


def _build(name: str, x: Tensor, sizes: Any, axes: Axes, norm: str, label: str | None) -> Tensor:
    if norm not in _NORMS:
        raise ShapeError(f"norm is 'backward', 'ortho' or 'forward', not {norm!r}")
    dims = None if axes is None else int_tuple(axes, "axes")
    s = None if sizes is None else int_tuple(sizes, "s")
    if s is not None and dims is not None and len(s) != len(dims):
        raise ShapeError(f"sizes {s} and axes {dims} differ in length")
    return build(name, (x,), {"s": s, "axes": dims, "norm": norm}, name=label)


# --- over one dimension ----------------------------------------------------------------------------------------------


def fft(
    x: ArrayLike, /, *, n: int | None = None, axis: int = -1, norm: str = "backward", name: str | None = None
) -> Tensor:
    """The Fourier transform along `axis`, cut or padded with zeros to `n` points. complex64 or complex128.

    `norm`: 'backward' scales the inverse by 1/n, 'forward' this one, 'ortho' both by 1/sqrt(n).
    """
    return _build("fftn", convert(x), n, axis, norm, name)


def ifft(
    x: ArrayLike, /, *, n: int | None = None, axis: int = -1, norm: str = "backward", name: str | None = None
) -> Tensor:
    """The inverse of `fft`."""
    return _build("ifftn", convert(x), n, axis, norm, name)


def rfft(
    x: ArrayLike, /, *, n: int | None = None, axis: int = -1, norm: str = "backward", name: str | None = None
) -> Tensor:
    """The Fourier transform of real numbers along `axis`: the n // 2 + 1 frequencies that are not negative."""
    return _build("rfftn", convert(x), n, axis, norm, name)


def irfft(
    x: ArrayLike, /, *, n: int | None = None, axis: int = -1, norm: str = "backward", name: str | None = None
) -> Tensor:
    """The inverse of `rfft`: `n` real numbers, 2 (m - 1) of m frequencies unless given."""
    return _build("irfftn", convert(x), n, axis, norm, name)


def hfft(
    x: ArrayLike, /, *, n: int | None = None, axis: int = -1, norm: str = "backward", name: str | None = None
) -> Tensor:
    """The Fourier transform, real, of a signal whose second half mirrors its first one, `x`, conjugated."""
    if norm not in _NORMS:
        raise ShapeError(f"norm is 'backward', 'ortho' or 'forward', not {norm!r}")
    return irfft(conj(x), n=n, axis=axis, norm=_NORMS[norm], name=name)


def ihfft(
    x: ArrayLike, /, *, n: int | None = None, axis: int = -1, norm: str = "backward", name: str | None = None
) -> Tensor:
    """The inverse of `hfft`."""
    if norm not in _NORMS:
        raise ShapeError(f"norm is 'backward', 'ortho' or 'forward', not {norm!r}")
    return conj(rfft(x, n=n, axis=axis, norm=_NORMS[norm]), name=name)


# --- over several ----------------------------------------------------------------------------------------------------


def fftn(
    x: ArrayLike,
    /,
    *,
    s: Sequence[int] | None = None,
    axes: Sequence[int] | None = None,
    norm: str = "backward",
    name: str | None = None,
) -> Tensor:
    """The Fourier transform over `axes` (None: all; the last ones where `s` is given), cut or padded to sizes `s`."""
    return _build("fftn", convert(x), s, axes, norm, name)


def ifftn(
    x: ArrayLike,
    /,
    *,
    s: Sequence[int] | None = None,
    axes: Sequence[int] | None = None,
    norm: str = "backward",
    name: str | None = None,
) -> Tensor:
    """The inverse of `fftn`."""
    return _build("ifftn", convert(x), s, axes, norm, name)


def rfftn(
    x: ArrayLike,
    /,
    *,
    s: Sequence[int] | None = None,
    axes: Sequence[int] | None = None,
    norm: str = "backward",
    name: str | None = None,
) -> Tensor:
    """The Fourier transform of real numbers over `axes`, of the last of which only n // 2 + 1 frequencies are kept."""
    return _build("rfftn", convert(x), s, axes, norm, name)


def irfftn(
    x: ArrayLike,
    /,
    *,
    s: Sequence[int] | None = None,
    axes: Sequence[int] | None = None,
    norm: str = "backward",
    name: str | None = None,
) -> Tensor:
    """The inverse of `rfftn`; real numbers. `s` tells whether the last dimension was even or odd."""
    return _build("irfftn", convert(x), s, axes, norm, name)


# --- frequencies and shifts ------------------------------------------------------------------------------------------


@placing
def fftfreq(
    n: int, /, *, d: float = 1.0, dtype: DTypeLike = None, device: DeviceLike = None, name: str | None = None
) -> Tensor:
    """The frequencies of the points of `fft`, in cycles per unit of the spacing `d`; float32 unless given."""
    return constant(np.fft.fftfreq(_points(n), d), DEFAULT_FLOAT if dtype is None else as_dtype(dtype), name=name)


@placing
def rfftfreq(
    n: int, /, *, d: float = 1.0, dtype: DTypeLike = None, device: DeviceLike = None, name: str | None = None
) -> Tensor:
    """The frequencies of the points of `rfft`, in cycles per unit of the spacing `d`; float32 unless given."""
    return constant(np.fft.rfftfreq(_points(n), d), DEFAULT_FLOAT if dtype is None else as_dtype(dtype), name=name)


def _points(n: int) -> int:
    if not isinstance(n, (int, np.integer)) or isinstance(n, bool) or n < 1:
        raise ShapeError(f"a number of points is a positive int, not {n!r}")
    return int(n)


def _shift_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    if inputs[0].shape is not None:
        normalize_axes(attrs["axes"], len(inputs[0].shape))
    return same_infer(inputs, attrs)


def _define_shift(name: str, inverse: str, doc: str) -> None:
    def gradient(node: Node, grads: Grads) -> Grads:
        (grad,) = grads
        assert grad is not None  # the only output
        return [build(inverse, (grad,), node.attrs)]

    op.define(name, infer=_shift_infer, gradient=gradient, doc=f"{doc} attrs: axes (None: all).")


_define_shift("fftshift", "ifftshift", "Frequency 0 moved to the middle of dimensions.")
_define_shift("ifftshift", "fftshift", "Frequency 0 moved back to the front of dimensions.")


def fftshift(x: ArrayLike, /, *, axes: Axes = None, name: str | None = None) -> Tensor:
    """Frequency 0 moved from the front to the middle of `axes` (None: all)."""
    return build("fftshift", (convert(x),), {"axes": axis_attr(axes)}, name=name)


def ifftshift(x: ArrayLike, /, *, axes: Axes = None, name: str | None = None) -> Tensor:
    """The inverse of `fftshift`, which differs where a dimension is odd."""
    return build("ifftshift", (convert(x),), {"axes": axis_attr(axes)}, name=name)
