"""Boxes on numpy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from nbflow.backends.base import Table
from nbflow.backends.numpy.sliding import Array, wide
from nbflow.errors import OpError
from nbflow.ops.windows import is_channels_first

TABLE = Table()


def _corners(boxes: Array, centred: bool) -> Array:
    """(m, 4): top, left, bottom, right."""
    if centred:
        x, y, w, h = boxes.T
        return np.stack([y - h / 2, x - w / 2, y + h / 2, x + w / 2], axis=1)
    return np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], axis=1)


def _kept(corners: Array, scores: Array, limit: int, overlap: float, score: float) -> list[int]:
    """The numbers of the boxes of one class that stay, best first; of equal scores the first."""
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] > score]
    areas = (corners[:, 2:] - corners[:, :2]).prod(axis=1)
    kept: list[int] = []
    while order.size and len(kept) < limit:
        best, order = int(order[0]), order[1:]
        kept.append(best)
        others = corners[order]
        low, high = np.maximum(corners[best, :2], others[:, :2]), np.minimum(corners[best, 2:], others[:, 2:])
        common = np.maximum(high - low, 0).prod(axis=1)
        # A box without area overlaps nothing: no division by 0.
        order = order[common <= overlap * (areas[best] + areas[order] - common)]
    return kept


@TABLE.implements("non_max_suppression")
def non_max_suppression(
    boxes: Array, scores: Array, limit: Array, overlap: Array, score: Array, *, centred: bool
) -> Array:
    found = []
    most, part, lowest = int(limit.reshape(())), float(overlap.reshape(())), float(score.reshape(()))
    for image in range(boxes.shape[0]):
        corners = _corners(boxes[image].astype(np.float64), centred)
        for label in range(scores.shape[1]):
            for box in _kept(corners, scores[image, label].astype(np.float64), most, part, lowest):
                found.append((image, label, box))
    return np.array(found, np.int64).reshape(-1, 3)


# --- what is inside --------------------------------------------------------------------------------------------------


class _Line:
    """The samples of all boxes along one dimension of `size` pixels, in `bins`."""

    def __init__(self, low: Array, high: Array, size: int, bins: int, sampling: int, half_pixel: bool) -> None:
        length = high - low if half_pixel else np.maximum(high - low, 1.0)
        self.size, self.bins = size, bins
        self.low, self.step = low, length / bins
        self.counts = np.full(len(low), sampling) if sampling else np.ceil(length / bins).astype(int)

    def samples(self, box: int) -> tuple[Array, Array, Array, Array]:
        """(pixels below, weights of them, pixels above, weights), each (bins, samples)."""
        count = max(int(self.counts[box]), 0)
        inner = (np.arange(count) + 0.5) / max(count, 1)
        at = self.low[box] + (np.arange(self.bins)[:, None] + inner) * self.step[box]
        there = (at >= -1) & (at <= self.size)
        at = np.clip(at, 0, self.size - 1)
        below = np.minimum(np.floor(at).astype(int), self.size - 1)
        above = np.minimum(below + 1, self.size - 1)
        part = at - below
        return below, (1 - part) * there, above, part * there

    def matrix(self, dtype: np.dtype[Any]) -> Array:
        """(boxes, bins, size): the mean of each bin's samples as weights of pixels."""
        made = np.zeros((len(self.low), self.bins, self.size))
        rows = np.arange(self.bins)[:, None]
        for box in range(len(self.low)):
            below, first, above, second = self.samples(box)
            np.add.at(made[box], (rows, below), first / max(below.shape[1], 1))
            np.add.at(made[box], (rows, above), second / max(below.shape[1], 1))
        return made.astype(dtype)


def _lines(boxes: Array, places: tuple[int, int], attrs: dict[str, Any]) -> tuple[_Line, _Line]:
    scaled = boxes.astype(np.float64) * attrs["scale"] - (0.5 if attrs["half_pixel"] else 0.0)
    left, top, right, bottom = scaled.reshape(-1, 4).T
    (h, w), (rows, columns) = places, attrs["size"]
    more = (attrs["sampling"], attrs["half_pixel"])
    return _Line(top, bottom, h, rows, *more), _Line(left, right, w, columns, *more)


def _checked(ids: Array, n: int) -> Array:
    if ids.size and not (ids.min() >= 0 and ids.max() < n):
        raise OpError(f"roi_align: boxes are of the images {ids.min()} to {ids.max()}, but there are 0 to {n - 1}")
    return ids


@TABLE.implements("roi_align")
def roi_align(x: Array, boxes: Array, ids: Array, *, data_format: str, **attrs: Any) -> Array:
    first = is_channels_first(data_format)
    image = np.moveaxis(x, 1, -1) if first else x
    n, h, w, c = image.shape
    rows, columns = _lines(boxes, (h, w), attrs)
    _checked(ids, n)
    if attrs["mode"] == "avg":
        dtype = wide(x.dtype)
        high, across = rows.matrix(dtype), columns.matrix(dtype)
        made = np.empty((len(ids), *attrs["size"], c), dtype)
        for box, number in enumerate(ids):
            tall = np.tensordot(high[box], image[number], axes=(1, 0))
            made[box] = np.moveaxis(np.tensordot(across[box], tall, axes=(1, 1)), 0, 1)
    else:
        made = np.stack([_largest(image[i], rows, columns, box) for box, i in enumerate(ids)] or
                        [np.zeros((*attrs["size"], c))])[: len(ids)]  # fmt: skip
    return np.ascontiguousarray(np.moveaxis(made, -1, 1) if first else made, x.dtype)


def _largest(image: Array, rows: _Line, columns: _Line, box: int) -> Array:
    """(bins, bins, channels): the largest weighted pixel of all samples in each bin."""
    y0, v0, y1, v1 = rows.samples(box)
    x0, w0, x1, w1 = columns.samples(box)
    if not y0.size or not x0.size:
        return np.zeros((rows.bins, columns.bins, image.shape[-1]))
    corners = []
    for y, v in ((y0, v0), (y1, v1)):
        for x, w in ((x0, w0), (x1, w1)):
            # (row bin, row sample, column bin, column sample, channel)
            picked = image[y[:, :, None, None], x[None, None]]
            corners.append(picked * (v[:, :, None, None] * w[None, None])[..., None])
    made: Array = np.maximum.reduce(corners).max(axis=(1, 3))
    return made


@TABLE.implements("roi_align_grad")
def roi_align_grad(
    dy: Array, boxes: Array, ids: Array, vector: Array | None = None, *, data_format: str, shape: Any, **attrs: Any
) -> Array:
    sizes = tuple(int(d) for d in (shape if vector is None else vector))
    first = is_channels_first(data_format)
    n, h, w, c = (sizes[0], *sizes[2:], sizes[1]) if first else sizes
    grad = np.moveaxis(dy, 1, -1) if first else dy
    rows, columns = _lines(boxes, (h, w), attrs)
    dtype = wide(dy.dtype)
    high, across = rows.matrix(dtype), columns.matrix(dtype)
    made = np.zeros((n, h, w, c), dtype)
    for box, number in enumerate(_checked(ids, n)):
        tall = np.tensordot(high[box], grad[box], axes=(0, 0))
        made[number] += np.moveaxis(np.tensordot(across[box], tall, axes=(0, 1)), 0, 1)
    return np.ascontiguousarray(np.moveaxis(made, -1, 1) if first else made, dy.dtype)
