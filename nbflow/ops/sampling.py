"""Values of images at places between pixels: grids, affine maps, crops of boxes. Made of other ops.

Places are differentiable as well as images, but for the nearest pixel. Of 16 bits both are computed in float32: in
bfloat16 there is no place between the pixels 256 and 258, nor a pixel 257.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from nbflow.errors import GraphError, ShapeError
from nbflow.graph import Tensor
from nbflow.ops._build import ArrayLike, convert, require_kind
from nbflow.ops.casting import astype
from nbflow.ops.comparison import clip, greater_equal, less_equal, logical_and, minimum, where
from nbflow.ops.composed import meshgrid
from nbflow.ops.creation import arange, ones_like
from nbflow.ops.elementwise import abs, floor, remainder, round
from nbflow.ops.indexing import take
from nbflow.ops.joining import stack
from nbflow.ops.linalg import matmul
from nbflow.ops.manipulation import expand_dims, matrix_transpose, moveaxis
from nbflow.ops.nn import op_scope
from nbflow.ops.shape import reshape, shape_of
from nbflow.ops.windows import check_layout, is_channels_first, layout_of
from nbflow.spec import format_shape

Size = int | Tensor

_METHODS = ("nearest", "bilinear", "bicubic")
_OUTSIDE = ("zeros", "border", "reflection")
_CUBIC = -0.75


def _dims(x: Tensor, rank: int, what: str) -> list[Size]:
    """All dimensions, those not known found when the op runs. Raises ShapeError for another rank."""
    if x.spec.rank not in (rank, None):
        raise ShapeError(f"{what} takes {rank} dimensions, not {x.name} {format_shape(x.shape)}", where=x.node.where)
    if x.shape is None or None in x.shape:
        found = shape_of(x)
        return [found[n] if d is None else d for n, d in enumerate(x.shape or (None,) * rank)]
    return [d for d in x.shape if d is not None]


def _product(sizes: Sequence[Size]) -> Size:
    total: Size = 1
    for size in sizes:
        total = size * total
    return total


# --- the core --------------------------------------------------------------------------------------------------------


class _Places:
    """Values of `images` (n, *places, channels) at coordinates in pixels, each (m, count), `rows` (m,) of them."""

    def __init__(self, images: Tensor, sizes: Sequence[Size], rows: Tensor, outside: str, align: bool) -> None:
        self.sizes = sizes[1:-1]
        self.flat = reshape(images, (-1, sizes[-1]))
        self.base = expand_dims(rows, axis=-1) * _product(self.sizes)
        self.outside = outside
        self.align = align

    def settled(self, at: Tensor, size: Size) -> Tensor:
        """Coordinates that are outside, moved inside as `outside` says."""
        top = _like(size, at) - 1.0
        if self.outside == "border":
            return minimum(clip(at, 0.0), top)
        if self.outside == "reflection":
            low = 0.0 if self.align else -0.5
            span = top - 2.0 * low
            # Two spans are one period: forth, and back.
            away = remainder(at - low, where(span > 0, span * 2.0, 1.0))
            return clip(minimum(away, span * 2.0 - away) + low, 0.0)
        return at

    def at(self, coordinates: Sequence[Tensor], method: str) -> Tensor:
        """(m, count, channels), of 16 bits in float32."""
        if method == "nearest":
            coordinates = [round(c) for c in coordinates]
        coordinates = [self.settled(c, s) for c, s in zip(coordinates, self.sizes, strict=True)]
        if method == "nearest":
            return self.picked([round(c) for c in coordinates], None)
        taps = (0, 1) if method == "bilinear" else (-1, 0, 1, 2)
        weigh = _linear if method == "bilinear" else _cubic
        whole = [floor(c) for c in coordinates]
        parts = [[weigh(c - w, tap) for tap in taps] for c, w in zip(coordinates, whole, strict=True)]
        total: Tensor | None = None
        for corner in product(range(len(taps)), repeat=len(whole)):
            weight = parts[0][corner[0]]
            for axis, tap in enumerate(corner[1:], 1):
                weight = weight * parts[axis][tap]
            value = self.picked([w + float(taps[tap]) for w, tap in zip(whole, corner, strict=True)], weight)
            total = value if total is None else total + value
        assert total is not None  # there is at least one corner
        return total

    def picked(self, places: Sequence[Tensor], weight: Tensor | None) -> Tensor:
        """The pixels at whole coordinates times `weight`; those outside count as `outside` says."""
        index: Tensor | None = None
        inside: Tensor | None = None
        for place, size in zip(places, self.sizes, strict=True):
            top = _like(size, place) - 1.0
            if self.outside == "zeros":
                here = logical_and(greater_equal(place, 0.0), less_equal(place, top))
                inside = here if inside is None else logical_and(inside, here)
            settled = round(minimum(clip(self.settled(place, size), 0.0), top))
            number = astype(settled, "int64")
            index = number if index is None else index * size + number
        assert index is not None  # there is at least one dimension
        values = _wide(take(self.flat, index + self.base, axis=0))
        if inside is not None:
            weight = astype(inside, values.dtype) if weight is None else where(inside, weight, 0.0)
        return values if weight is None else values * expand_dims(astype(weight, values.dtype), axis=-1)


def _wide(x: Tensor) -> Tensor:
    """`x` in float32 at least."""
    return astype(x, "float32") if x.dtype.itemsize < 4 else x


def _like(size: Size, like: Tensor) -> Tensor:
    """A dimension as a number of the dtype of `like`."""
    return astype(size, like.dtype) if isinstance(size, Tensor) else convert(float(size), like=like)


def _linear(t: Tensor, tap: int) -> Tensor:
    return t if tap else 1.0 - t


def _cubic(t: Tensor, tap: int) -> Tensor:
    """Keys' kernel (IEEE Trans. ASSP 29, 1981) at the distance of `tap` from t in [0, 1)."""
    a = _CUBIC
    d = abs(t - float(tap))
    if tap in (0, 1):
        return ((d * (a + 2) - (a + 3)) * d * d) + 1.0
    return ((d * a - 5 * a) * d + 8 * a) * d - 4 * a


# --- grids -----------------------------------------------------------------------------------------------------------


def grid_sample(
    images: ArrayLike,
    grid: ArrayLike,
    method: str = "bilinear",
    outside: str = "zeros",
    align_corners: bool = False,
    data_format: str | None = None,
    *,
    name: str | None = None,
) -> Tensor:
    """Images at the places of a grid: (n, *places, channels) and (n, *out, d) → (n, *out, channels).

    - `grid`: floating, d = 2 numbers for images (x, y) and 3 for volumes (x, y, z), from -1 to 1: the edges of the
      image, or with `align_corners` the middles of its outer pixels.
    - `method`: "nearest", "bilinear" (of volumes too) or "bicubic". `outside`: what is beyond: "zeros", "border" (the
      nearest pixel) or "reflection".

    Jaderberg et al., arXiv 1506.02025. Raises ShapeError for ranks that do not fit.
    """
    _one_of("method", method, _METHODS)
    _one_of("outside", outside, _OUTSIDE)
    image, places = convert(images), convert(grid)
    layout, n = layout_of(data_format, (image.spec.rank, places.spec.rank), "grid_sample")
    require_kind(image.spec, "f", "images are floating")
    require_kind(places.spec, "f", "a grid holds floating numbers")
    if places.shape is not None and places.shape[-1:] not in ((n,), (None,)):
        raise ShapeError(f"a grid for {layout} has {n} numbers in its last dimension, not {format_shape(places.shape)}")
    with op_scope(name, "grid_sample", image):
        if is_channels_first(layout):
            image = moveaxis(image, 1, -1) if image.spec.rank is not None else _last(image, n)
        sizes, out = _dims(image, n + 2, "grid_sample"), _dims(places, n + 2, "a grid")
        flat = _wide(reshape(places, (out[0], -1, n)))
        core = _Places(image, sizes, arange(out[0]), outside, align_corners)
        coordinates = []
        for axis, size in enumerate(sizes[1:-1]):
            at, whole = flat[..., n - 1 - axis], _like(size, flat)
            coordinates.append((at + 1.0) * 0.5 * (whole - 1.0) if align_corners else ((at + 1.0) * whole - 1.0) * 0.5)
        made = astype(reshape(core.at(coordinates, method), (*out[:-1], sizes[-1])), image.dtype)
        return moveaxis(made, -1, 1) if is_channels_first(layout) else made


def _last(x: Tensor, n: int) -> Tensor:
    return moveaxis(reshape(x, [shape_of(x)[a] for a in range(n + 2)]), 1, -1)


def affine_grid(
    theta: ArrayLike, size: Sequence[ArrayLike], align_corners: bool = False, *, name: str | None = None
) -> Tensor:
    """The grid for grid_sample of an affine map: (n, d, d + 1) → (n, *size, d), d = 2 or 3.

    `size`: (height, width) or (depth, height, width), integers or integer scalars; the map takes places of the result,
    (x, y, 1) from -1 to 1, to places of the image. Jaderberg et al., arXiv 1506.02025, equation 1.
    """
    matrix = convert(theta)
    n = len(size)
    if n not in (2, 3) or (matrix.shape is not None and matrix.shape[1:] not in ((n, n + 1), (None, None))):
        raise ShapeError(
            f"affine_grid takes maps (n, d, d + 1) and d sizes, not {format_shape(matrix.shape)} and {n} sizes"
        )
    require_kind(matrix.spec, "f", "maps are floating")
    with op_scope(name, "affine_grid", matrix):
        wanted: list[Size] = [s if isinstance(s, int) else convert(s) for s in size]
        wide = _wide(matrix)
        lines = []
        for extent in reversed(wanted):
            at = astype(arange(extent), wide.dtype)
            whole = _like(extent, at)
            lines.append(at * 2.0 / clip(whole - 1.0, 1.0) - 1.0 if align_corners else (at * 2.0 + 1.0) / whole - 1.0)
        parts = [reshape(part, (-1,)) for part in meshgrid(*reversed(lines), indexing="ij")]
        points = stack([*reversed(parts), ones_like(parts[0])], axis=-1)
        return astype(reshape(matmul(points, matrix_transpose(wide)), (-1, *wanted, n)), matrix.dtype)


def crop_and_resize(
    images: ArrayLike,
    boxes: ArrayLike,
    box_ids: ArrayLike,
    size: Sequence[int],
    method: str = "bilinear",
    value: float = 0.0,
    data_format: str = "NHWC",
    *,
    name: str | None = None,
) -> Tensor:
    """Boxes of images, each resized to `size` (height, width): (number of boxes, height, width, channels).

    - `boxes`: (m, 4) floating: top, left, bottom, right; 0 is the first pixel, 1 the last. A box may be turned round.
    - `box_ids`: (m,) integers, the image of each box. `value`: what is outside of the image.
    - `method`: "bilinear" or "nearest".

    Differentiable for images and, with "bilinear", for boxes.
    """
    _one_of("method", method, _METHODS[:2])
    check_layout(data_format, 2)
    image, edges = convert(images), convert(boxes)
    height, width = (int(s) for s in size)
    if min(height, width) < 1 or (edges.shape is not None and edges.shape[1:] not in ((4,), (None,))):
        raise ShapeError(f"crop_and_resize takes boxes (m, 4) and a positive size, not {edges.spec} and {tuple(size)}")
    require_kind(image.spec, "f", "images are floating")
    with op_scope(name, "crop_and_resize", image):
        if is_channels_first(data_format):
            image = moveaxis(image, 1, -1) if image.spec.rank is not None else _last(image, 2)
        sizes, edges = _dims(image, 4, "crop_and_resize"), _wide(edges)
        lines = []
        for axis, count in enumerate((height, width)):
            start, end = edges[:, axis : axis + 1], edges[:, axis + 2 : axis + 3]
            top = _like(sizes[axis + 1], edges) - 1.0
            if count == 1:
                lines.append((start + end) * 0.5 * top)
            else:
                steps = astype(arange(count), edges.dtype) / float(count - 1)
                lines.append((start + (end - start) * steps) * top)
        rows = expand_dims(lines[0], axis=2) + expand_dims(lines[1], axis=1) * 0.0
        columns = expand_dims(lines[0], axis=2) * 0.0 + expand_dims(lines[1], axis=1)
        at = [reshape(c, (-1, height * width)) for c in (rows, columns)]
        made = _Places(image, sizes, astype(convert(box_ids), "int64"), "border", True).at(at, method)
        inside = ones_like(at[0]) > 0.0
        for c, whole in zip(at, sizes[1:3], strict=True):
            inside = logical_and(inside, logical_and(greater_equal(c, 0.0), less_equal(c, _like(whole, c) - 1.0)))
        made = astype(where(expand_dims(inside, axis=-1), made, value), image.dtype)
        made = reshape(made, (-1, height, width, sizes[-1]))
        return moveaxis(made, -1, 1) if is_channels_first(data_format) else made


def _one_of(what: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise GraphError(f"{what} is one of {', '.join(allowed)}, not {value!r}")
