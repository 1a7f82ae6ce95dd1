"""Convolution the other way, which makes images larger: the gradient of a convolution for its images, as an op."""

from __future__ import annotations

from collections.abc import Sequence

from nbflow.errors import GraphError, ShapeError
from nbflow.graph import Tensor
from nbflow.ops._build import ArrayLike, build, convert
from nbflow.ops.conv import IntsLike, PaddingLike, conv_attrs
from nbflow.ops.nn import op_scope
from nbflow.ops.shape import shape_argument, shape_of
from nbflow.ops.windows import Ints, Padding, check_layout, is_channels_first, laid_out, layout_of, many, places_of
from nbflow.spec import format_shape


def conv_transpose(
    x: ArrayLike,
    w: ArrayLike,
    strides: IntsLike = 1,
    padding: PaddingLike = "SAME",
    data_format: str | None = None,
    dilation: IntsLike = 1,
    groups: int = 1,
    output_size: IntsLike | None = None,
    output_padding: IntsLike = 0,
    *,
    name: str | None = None,
) -> Tensor:
    """conv the other way: (n, *places, channels) → (n, *larger, outputs). Dumoulin and Visin, arXiv 1603.07285.

    - w: (*kernel, outputs / groups, channels): the filters of the conv, from `outputs` to `channels`, whose gradient
      for its images this is.
    - `output_size`: the places of the result. When left out size · stride with "SAME", else the smallest that conv
      makes into the places of x, and `output_padding` more behind.

    Raises ShapeError when the filters' shape is not known, GraphError for an output_padding beside "SAME" or an
    output_size.
    """
    image = convert(x)
    filters = convert(w, like=image)
    layout, n = layout_of(data_format, (image.spec.rank, filters.spec.rank), "conv_transpose")
    if filters.shape is None or len(filters.shape) != n + 2 or None in filters.shape:
        raise ShapeError(
            f"conv_transpose needs filters (*kernel, outputs / groups, channels) of known shape and {n + 2} "
            f"dimensions, got {format_shape(filters.shape)}"
        )
    *kernel, depth, _ = (int(d or 0) for d in filters.shape)
    attrs = conv_attrs(layout, n, strides, padding, dilation, groups)
    more = _added(output_padding, n)
    if any(more) and (output_size is not None or str(attrs["padding"]).startswith("SAME")):
        raise GraphError("output_padding goes with explicit or VALID padding, and without an output_size")
    with op_scope(name, "conv_transpose", image):
        found = shape_of(image)
        first = 2 if is_channels_first(layout) else 1
        known = [found[first + a] if p is None else p for a, p in enumerate(places_of(image.shape, layout))]
        if output_size is None:
            sizes = [_grown(s, k, a, attrs["padding"], attrs["strides"], attrs["dilation"]) + more[a]
                     for a, (s, k) in enumerate(zip(known, kernel, strict=True))]  # fmt: skip
        else:
            sizes = list(many(output_size, n, "output_size"))
        if any(more):
            # Beyond what the windows cover: for the convolution, places taken away again.
            sides = ((0, 0),) * n if attrs["padding"] == "VALID" else attrs["padding"]
            attrs["padding"] = tuple((before, after - m) for (before, after), m in zip(sides, more, strict=True))
        batch = found[0] if image.shape is None or image.shape[0] is None else image.shape[0]
        shape, vector = shape_argument(laid_out(batch, sizes, depth * attrs["groups"], layout))
        return build("conv_input_grad", (image, filters, *vector), {**attrs, "shape": shape})


def _added(output_padding: IntsLike, n: int) -> Ints:
    """`output_padding` as n ints. Raises GraphError for negative ones."""
    found = (output_padding,) * n if isinstance(output_padding, int) else tuple(int(v) for v in output_padding)
    if len(found) != n or min(found) < 0:
        raise GraphError(f"output_padding is an integer of 0 or more, or {n} of them, not {output_padding!r}")
    return found


def _grown(
    size: int | Tensor, kernel: int, axis: int, padding: Padding, strides: Sequence[int], dilation: Sequence[int]
) -> int | Tensor:
    if isinstance(padding, str) and padding != "VALID":
        return size * strides[axis]
    cut = 0 if isinstance(padding, str) else padding[axis][0] + padding[axis][1]
    return (size - 1) * strides[axis] + (kernel - 1) * dilation[axis] + 1 - cut


def conv_transpose1d(
    x: ArrayLike,
    w: ArrayLike,
    strides: IntsLike = 1,
    padding: PaddingLike = "SAME",
    data_format: str = "NWC",
    dilation: IntsLike = 1,
    groups: int = 1,
    output_size: IntsLike | None = None,
    output_padding: IntsLike = 0,
    *,
    name: str | None = None,
) -> Tensor:
    """conv_transpose of sequences: (n, width, channels) and filters (kw, outputs / groups, channels)."""
    layout = check_layout(data_format, 1)
    return conv_transpose(x, w, strides, padding, layout, dilation, groups, output_size, output_padding, name=name)


def conv_transpose2d(
    x: ArrayLike,
    w: ArrayLike,
    strides: IntsLike = 1,
    padding: PaddingLike = "SAME",
    data_format: str = "NHWC",
    dilation: IntsLike = 1,
    groups: int = 1,
    output_size: IntsLike | None = None,
    output_padding: IntsLike = 0,
    *,
    name: str | None = None,
) -> Tensor:
    """conv_transpose of images: (n, h, w, channels) and filters (kh, kw, outputs / groups, channels)."""
    layout = check_layout(data_format, 2)
    return conv_transpose(x, w, strides, padding, layout, dilation, groups, output_size, output_padding, name=name)


def conv_transpose3d(
    x: ArrayLike,
    w: ArrayLike,
    strides: IntsLike = 1,
    padding: PaddingLike = "SAME",
    data_format: str = "NDHWC",
    dilation: IntsLike = 1,
    groups: int = 1,
    output_size: IntsLike | None = None,
    output_padding: IntsLike = 0,
    *,
    name: str | None = None,
) -> Tensor:
    """conv_transpose of volumes: (n, d, h, w, channels) and filters (kd, kh, kw, outputs / groups, channels)."""
    layout = check_layout(data_format, 3)
    return conv_transpose(x, w, strides, padding, layout, dilation, groups, output_size, output_padding, name=name)
