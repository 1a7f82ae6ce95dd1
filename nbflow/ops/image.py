"""Images cut, padded, turned and mirrored, and resized to a height and a width.

Images are (n, height, width, channels), or (n, channels, height, width) with data_format "NCHW". What is random draws
for each image of the batch by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from nbflow.errors import GraphError, ShapeError
from nbflow.graph import Tensor
from nbflow.ops._build import ArrayLike, convert
from nbflow.ops.casting import astype
from nbflow.ops.comparison import less, where
from nbflow.ops.creation import arange, identity
from nbflow.ops.elementwise import floor
from nbflow.ops.indexing import take_along_axis
from nbflow.ops.manipulation import flip, pad, permute_dims
from nbflow.ops.nn import op_scope
from nbflow.ops.random import uniform_like
from nbflow.ops.resizing import resample
from nbflow.ops.shape import reshape, shape_of
from nbflow.ops.windows import check_layout, is_channels_first, places_of
from nbflow.spec import Dim, format_shape

_METHODS = {"nearest": "nearest", "bilinear": "linear", "bicubic": "cubic"}


def resize(
    images: ArrayLike,
    size: ArrayLike,
    method: str = "bilinear",
    antialias: bool = False,
    coordinates: str = "half_pixel",
    data_format: str = "NHWC",
    cubic: float = -0.75,
    exclude_outside: bool = False,
    *,
    name: str | None = None,
) -> Tensor:
    """Images resized to `size` (height, width), ints or an integer vector.

    - `method`: "nearest", "bilinear" or "bicubic" (with coefficient `cubic`; -0.5 is that of Pillow and TensorFlow).
    - `antialias`: a smaller image is a mean over what falls together; it matters from half the size on.
    - `coordinates`, `exclude_outside`: see resample, which resizes any dimensions.

    Differentiable but for "nearest" of integers. Raises ShapeError unless images have four dimensions.
    """
    if method not in _METHODS:
        raise GraphError(f"the method of resize is 'nearest', 'bilinear' or 'bicubic', not {method!r}")
    tensor = convert(images)
    height, width = _axes(tensor, data_format)
    return resample(
        tensor,
        (height, width),
        size,
        method=_METHODS[method],
        coordinates=coordinates,
        cubic=cubic,
        exclude_outside=exclude_outside,
        antialias=antialias,
        name=name,
    )


def _axes(images: Tensor, data_format: str) -> tuple[int, int]:
    """The dimensions of height and width."""
    places_of(images.shape, check_layout(data_format, 2))
    return (2, 3) if is_channels_first(data_format) else (1, 2)


def _sizes(images: Tensor, data_format: str, what: str) -> tuple[int, int]:
    """Height and width. Raises ShapeError where they are unknown."""
    height, width = places_of(images.shape, check_layout(data_format, 2))
    if height is None or width is None:
        raise ShapeError(
            f"{what} needs the height and width of {images.name}, {format_shape(images.shape)}", where=images.node.where
        )
    return height, width


def _cut(images: Tensor, data_format: str, rows: slice, columns: slice, name: str | None) -> Tensor:
    _axes(images, data_format)
    whole = slice(None)
    key = (whole, whole, rows, columns) if is_channels_first(data_format) else (whole, rows, columns, whole)
    with op_scope(name, "crop", images):
        return images[key]


def crop(
    images: ArrayLike,
    top: int,
    left: int,
    height: int,
    width: int,
    data_format: str = "NHWC",
    *,
    name: str | None = None,
) -> Tensor:
    """The part of `height` rows from `top` and `width` columns from `left`. Raises ShapeError where it is not inside.

    Where heights and widths are not known it is cut off at the edge.
    """
    tensor = convert(images)
    _axes(tensor, data_format)
    for start, size, whole, what in zip(
        (top, left), (height, width), places_of(tensor.shape, data_format), ("rows", "columns"), strict=True
    ):
        if start < 0 or size < 1 or (whole is not None and start + size > whole):
            raise ShapeError(
                f"{what} {start} to {start + size} are not inside images of {format_shape(tensor.shape)}, {data_format}"
            )
    return _cut(tensor, data_format, slice(top, top + height), slice(left, left + width), name)


def central_crop(
    images: ArrayLike, size: Sequence[int] | float, data_format: str = "NHWC", *, name: str | None = None
) -> Tensor:
    """The middle of `size` (height, width), or that fraction of both; the odd row is left off below.

    Raises ShapeError for unknown heights and widths, and where the images are smaller.
    """
    tensor = convert(images)
    whole = _sizes(tensor, data_format, "central_crop")
    if isinstance(size, (int, float)):
        if not 0 < size <= 1:
            raise GraphError(f"a fraction is above 0 and at most 1, not {size}; a size is (height, width)")
        wanted = [max(1, round(s * size)) for s in whole]
    else:
        wanted = [int(s) for s in size]
    top, left = ((s - w) // 2 for s, w in zip(whole, wanted, strict=True))
    return crop(tensor, top, left, wanted[0], wanted[1], data_format, name=name)


def random_crop(
    images: ArrayLike, size: Sequence[int], data_format: str = "NHWC", *, name: str | None = None
) -> Tensor:
    """A part of `size` (height, width) of each image, from a place drawn for each. Images smaller than it are an error
    at run time; known sizes are checked at once."""
    tensor = convert(images)
    height, width = (int(s) for s in size)
    for whole, wanted in zip(places_of(tensor.shape, check_layout(data_format, 2)), (height, width), strict=True):
        if wanted < 1 or (whole is not None and wanted > whole):
            raise ShapeError(f"a crop of {height} by {width} is not inside images of {format_shape(tensor.shape)}")
    with op_scope(name, "random_crop", tensor):
        found = shape_of(tensor)
        made = tensor
        for axis, wanted in zip(_axes(tensor, data_format), (height, width), strict=True):
            line = [1, 1, 1, 1]
            line[axis] = wanted
            room = astype(found[axis] - (wanted - 1), "float32")
            start = astype(floor(uniform_like(tensor[:, :1, :1, :1], "float32") * room), "int64")
            made = take_along_axis(made, start + reshape(arange(wanted), line), axis=axis)
        return made


def pad_to(
    images: ArrayLike,
    size: Sequence[int],
    data_format: str = "NHWC",
    top: int | None = None,
    left: int | None = None,
    value: float = 0,
    *,
    name: str | None = None,
) -> Tensor:
    """Images with a border of `value` up to `size` (height, width), at row `top` and column `left`, else in the middle.

    Raises ShapeError for unknown heights and widths, and where the images do not fit.
    """
    tensor = convert(images)
    whole = _sizes(tensor, data_format, "pad_to")
    sides = []
    for have, wanted, start in zip(whole, size, (top, left), strict=True):
        before = (int(wanted) - have) // 2 if start is None else start
        if before < 0 or have + before > wanted:
            raise ShapeError(f"images of {format_shape(tensor.shape)} do not fit into {tuple(size)} from {before} on")
        sides.append((before, int(wanted) - have - before))
    widths = [(0, 0), (0, 0), *sides] if is_channels_first(data_format) else [(0, 0), *sides, (0, 0)]
    return pad(tensor, widths, constant_values=value, name=name)


def crop_or_pad(
    images: ArrayLike, size: Sequence[int], data_format: str = "NHWC", value: float = 0, *, name: str | None = None
) -> Tensor:
    """The middle of each image, cut off or padded to `size` (height, width) in each direction as needed."""
    tensor = convert(images)
    whole = _sizes(tensor, data_format, "crop_or_pad")
    with op_scope(name, "crop_or_pad", tensor):
        kept = [min(have, int(wanted)) for have, wanted in zip(whole, size, strict=True)]
        return pad_to(central_crop(tensor, kept, data_format), size, data_format, value=value)


# --- mirrors and turns -----------------------------------------------------------------------------------------------


def flip_left_right(images: ArrayLike, data_format: str = "NHWC", *, name: str | None = None) -> Tensor:
    """Images mirrored: the last column first."""
    tensor = convert(images)
    return flip(tensor, axis=_axes(tensor, data_format)[1], name=name)


def flip_up_down(images: ArrayLike, data_format: str = "NHWC", *, name: str | None = None) -> Tensor:
    """Images upside down: the last row first."""
    tensor = convert(images)
    return flip(tensor, axis=_axes(tensor, data_format)[0], name=name)


def random_flip_left_right(
    images: ArrayLike, p: float = 0.5, data_format: str = "NHWC", *, name: str | None = None
) -> Tensor:
    """Each image mirrored with probability `p`."""
    return _flipped(images, p, data_format, 1, name)


def random_flip_up_down(
    images: ArrayLike, p: float = 0.5, data_format: str = "NHWC", *, name: str | None = None
) -> Tensor:
    """Each image upside down with probability `p`."""
    return _flipped(images, p, data_format, 0, name)


def _flipped(images: ArrayLike, p: float, data_format: str, which: int, name: str | None) -> Tensor:
    if not 0 <= p <= 1:
        raise GraphError(f"p is a probability, not {p}")
    tensor = convert(images)
    axis = _axes(tensor, data_format)[which]
    with op_scope(name, "random_flip", tensor):
        return where(less(uniform_like(tensor[:, :1, :1, :1], "float32"), p), flip(tensor, axis=axis), tensor)


def rot90(images: ArrayLike, k: int = 1, data_format: str = "NHWC", *, name: str | None = None) -> Tensor:
    """Images turned `k` times by a quarter, against the clock."""
    tensor = convert(images)
    height, width = _axes(tensor, data_format)
    turns = k % 4
    if turns == 0:
        return identity(tensor, name=name)
    if turns == 2:
        return flip(tensor, axis=(height, width), name=name)
    order = [0, 1, 2, 3]
    order[height], order[width] = width, height
    with op_scope(name, "rot90", tensor):
        return flip(permute_dims(tensor, order), axis=height if turns == 1 else width)


# --- places and channels ---------------------------------------------------------------------------------------------


def space_to_depth(images: ArrayLike, block: int, data_format: str = "NHWC", *, name: str | None = None) -> Tensor:
    """Blocks of `block` by `block` pixels become channels: (n, h, w, c) → (n, h / block, w / block, block² · c).

    In the new channels the row in the block comes first, then the column, then the old channel. Raises ShapeError
    where heights and widths do not divide.
    """
    tensor = convert(images)
    _check_block(block)
    for whole in places_of(tensor.shape, check_layout(data_format, 2)):
        if whole is not None and whole % block:
            raise ShapeError(f"images of {format_shape(tensor.shape)} do not divide into blocks of {block}")
    with op_scope(name, "space_to_depth", tensor):
        n, h, w, c = _dims(tensor, data_format)
        if is_channels_first(data_format):
            parts = reshape(tensor, (n, c, h // block, block, w // block, block))
            return reshape(permute_dims(parts, (0, 3, 5, 1, 2, 4)), (n, c * block**2, h // block, w // block))
        parts = reshape(tensor, (n, h // block, block, w // block, block, c))
        return reshape(permute_dims(parts, (0, 1, 3, 2, 4, 5)), (n, h // block, w // block, c * block**2))


def depth_to_space(
    images: ArrayLike, block: int, data_format: str = "NHWC", order: str = "DCR", *, name: str | None = None
) -> Tensor:
    """The way back from space_to_depth: (n, h, w, block² · c) → (n, h · block, w · block, c).

    `order`: of the channels. "DCR": row in the block, column, new channel, as space_to_depth makes them; "CRD": new
    channel first, as in Shi et al., arXiv 1609.05158. Raises ShapeError where the channels do not divide.
    """
    tensor = convert(images)
    _check_block(block)
    if order not in ("DCR", "CRD"):
        raise GraphError(f"the order of depth_to_space is 'DCR' or 'CRD', not {order!r}")
    with op_scope(name, "depth_to_space", tensor):
        n, h, w, c = _dims(tensor, data_format)
        if isinstance(c, int) and c % block**2:
            raise ShapeError(f"the channels of {format_shape(tensor.shape)} do not divide by {block} · {block}")
        depth = c // block**2
        deep = (block, block, depth) if order == "DCR" else (depth, block, block)
        if is_channels_first(data_format):
            parts = reshape(tensor, (n, *deep, h, w))
            back = (0, 3, 4, 1, 5, 2) if order == "DCR" else (0, 1, 4, 2, 5, 3)
            return reshape(permute_dims(parts, back), (n, depth, h * block, w * block))
        parts = reshape(tensor, (n, h, w, *deep))
        back = (0, 1, 3, 2, 4, 5) if order == "DCR" else (0, 1, 4, 2, 5, 3)
        return reshape(permute_dims(parts, back), (n, h * block, w * block, depth))


def _check_block(block: int) -> None:
    if not isinstance(block, int) or block < 1:
        raise GraphError(f"block is a positive integer, not {block!r}")


def _dims(images: Tensor, data_format: str) -> tuple[int | Tensor, int | Tensor, int | Tensor, int | Tensor]:
    """(n, h, w, c), of which those not known now are found when the op runs."""
    _axes(images, data_format)
    known: Sequence[Dim] = images.shape or (None,) * 4
    found = None if images.spec.is_static else shape_of(images)
    sizes: list[int | Tensor] = []
    for number, size in enumerate(known):
        if size is not None:
            sizes.append(size)
        elif found is not None:
            sizes.append(found[number])
    n, h, w, c = (sizes[a] for a in ((0, 2, 3, 1) if is_channels_first(data_format) else (0, 1, 2, 3)))
    return n, h, w, c
