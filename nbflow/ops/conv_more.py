"""Convolution and pooling of other forms, made from the two-dimensional ones: 1-D, transposed, global."""

from __future__ import annotations

from collections.abc import Sequence

from nbflow.errors import GraphError, ShapeError
from nbflow.graph import Tensor
from nbflow.ops._build import ArrayLike, build, convert
from nbflow.ops.conv import PaddingLike, PairLike, conv2d
from nbflow.ops.manipulation import expand_dims, squeeze
from nbflow.ops.nn import op_scope
from nbflow.ops.reduction import max, mean
from nbflow.ops.shape import shape_argument, shape_of
from nbflow.ops.windows import Padding, check_layout, check_padding, pair, to_nhwc
from nbflow.spec import format_shape

_LAYOUTS_1D = {"NWC": "NHWC", "NCW": "NCHW"}


def conv1d(
    x: ArrayLike,
    w: ArrayLike,
    stride: int = 1,
    padding: str | Sequence[int] = "SAME",
    data_format: str = "NWC",
    dilation: int = 1,
    groups: int = 1,
    *,
    name: str | None = None,
) -> Tensor:
    """The correlation of sequences with filters: (n, width, channels) and (kw, channels / groups, outputs).

    `padding`: "SAME", "VALID" or (left, right), so (kw - 1, 0) is causal. `data_format`: "NWC" or "NCW". The rest as in
    conv2d, of which it is the case of height 1.
    """
    if data_format not in _LAYOUTS_1D:
        raise GraphError(f"data_format is 'NWC' or 'NCW', not {data_format!r}")
    series = convert(x)
    filters = convert(w, like=series)
    if series.spec.rank not in (3, None) or filters.spec.rank not in (3, None):
        raise ShapeError(
            f"conv1d takes sequences and filters of three dimensions, not {format_shape(series.shape)} and "
            f"{format_shape(filters.shape)}"
        )
    height = 1 if data_format == "NWC" else 2
    sides: PaddingLike = padding if isinstance(padding, str) else ((0, 0), tuple(padding))
    with op_scope(name, "conv1d", series):
        made = conv2d(
            expand_dims(series, axis=height),
            expand_dims(filters, axis=0),
            (1, stride),
            sides,
            _LAYOUTS_1D[data_format],
            (1, dilation),
            groups,
        )
        return squeeze(made, axis=height)


def conv_transpose2d(
    x: ArrayLike,
    w: ArrayLike,
    strides: PairLike = 1,
    padding: PaddingLike = "SAME",
    data_format: str = "NHWC",
    dilation: PairLike = 1,
    groups: int = 1,
    output_size: Sequence[int] | None = None,
    *,
    name: str | None = None,
) -> Tensor:
    """conv2d the other way, which makes images larger: (n, h, w, channels) → (n, h', w', outputs).

    The filters, (kh, kw, outputs / groups, channels), are those of the conv2d, from `outputs` to
    `channels`, whose gradient for its images this is.
    `output_size` (height, width): when left out size · stride with "SAME", else the smallest that conv2d makes into
    the size of x. Raises ShapeError when heights and widths are not known and no output_size is given.
    """
    image = convert(x)
    filters = convert(w, like=image)
    layout = check_layout(data_format)
    n, height, width, _ = to_nhwc(image.shape, layout)
    if filters.shape is None or len(filters.shape) != 4 or None in filters.shape:
        raise ShapeError(f"conv_transpose2d needs filters of known shape, got {format_shape(filters.shape)}")
    kh, kw, depth, _ = (int(d or 0) for d in filters.shape)
    step, spread, sides = pair(strides, "strides"), pair(dilation, "dilation"), check_padding(padding)
    if output_size is None:
        if height is None or width is None:
            raise ShapeError(f"conv_transpose2d needs height and width of {image.name}, or an output_size")
        sizes = [_grown(s, k, axis, sides, step, spread) for axis, (s, k) in enumerate(((height, kh), (width, kw)))]
    else:
        sizes = list(pair(output_size, "output_size"))
    with op_scope(name, "conv_transpose2d", image):
        rows: int | Tensor = shape_of(image)[0] if n is None else n
        outputs = depth * groups
        wanted = [rows, *sizes, outputs] if layout == "NHWC" else [rows, outputs, *sizes]
        shape, vector = shape_argument(wanted)
        attrs = {
            "strides": step,
            "padding": sides,
            "data_format": layout,
            "dilation": spread,
            "groups": int(groups),
            "shape": shape,
        }
        return build("conv2d_input_grad", (image, filters, *vector), attrs)


def _grown(size: int, kernel: int, axis: int, padding: Padding, strides: Sequence[int], dilation: Sequence[int]) -> int:
    if padding == "SAME":
        return size * strides[axis]
    cut = 0 if isinstance(padding, str) else padding[axis][0] + padding[axis][1]
    return (size - 1) * strides[axis] + (kernel - 1) * dilation[axis] + 1 - cut


def global_avg_pool(
    x: ArrayLike, data_format: str = "NHWC", keepdims: bool = False, *, name: str | None = None
) -> Tensor:
    """The mean of each channel over all places of an example: (n, …, c) → (n, c); from "NC…" the same."""
    tensor = convert(x)
    return mean(tensor, axis=_places(tensor, data_format), keepdims=keepdims, name=name)


def global_max_pool(
    x: ArrayLike, data_format: str = "NHWC", keepdims: bool = False, *, name: str | None = None
) -> Tensor:
    """The maximum of each channel over all places of an example; see global_avg_pool."""
    tensor = convert(x)
    return max(tensor, axis=_places(tensor, data_format), keepdims=keepdims, name=name)


def _places(x: Tensor, data_format: str) -> list[int]:
    rank = x.spec.rank
    if rank is None or rank < 3 or rank != len(data_format):
        raise ShapeError(
            f"global pooling of {data_format} takes {len(data_format)} dimensions, not {format_shape(x.shape)}"
        )
    return list(range(2, rank)) if data_format.startswith("NC") else list(range(1, rank - 1))
