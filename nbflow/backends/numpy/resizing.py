"""Resizing on numpy arrays, one dimension after the other: which places of the input make each of the result."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from nbflow.backends.base import Table
from nbflow.backends.numpy.sliding import Array, wide
from nbflow.errors import OpError

TABLE = Table()

# Up to this many places for each of the result, a sum of slices moves less than a product of matrices.
_FEW = 4


@dataclass(frozen=True, slots=True)
class Along:
    """One dimension: `size` places become `count`."""

    size: int
    count: int
    scale: float
    roi: tuple[float, float]


@dataclass(frozen=True, slots=True, eq=False)
class Taps:
    """For each place of the result, places of the input and their weights, both (count, taps); and what is beyond."""

    index: Array
    weight: Array
    beyond: Array

    def matrix(self, size: int, dtype: np.dtype[Any]) -> Array:
        """(count, size), the weights where they belong."""
        made = np.zeros((len(self.index), size), np.float64)
        np.add.at(made, (np.arange(len(self.index))[:, None], self.index), self.weight)
        return made.astype(dtype)


def coordinates_of(along: Along, mode: str) -> Array:
    """Where in the input each place of the result lies (float64)."""
    size, count, scale, (start, end) = along.size, along.count, along.scale, along.roi
    at = np.arange(count, dtype=np.float64)
    exact = size * scale  # `count` before it was rounded down
    if mode == "asymmetric":
        return at / scale
    if mode == "align_corners":
        # The exact length, as in ONNX: with a scale that does not divide, the last places do not quite meet.
        return at * (size - 1) / (exact - 1) if exact > 1 else np.zeros_like(at)
    if mode == "tf_crop_and_resize":
        if exact > 1:
            return start * (size - 1) + at * (end - start) * (size - 1) / (exact - 1)
        return np.full_like(at, (start + end) * (size - 1) / 2)
    middle = (at + 0.5) / scale - 0.5
    if mode == "pytorch_half_pixel" and count <= 1:
        return np.zeros_like(at)
    if mode == "half_pixel_symmetric":
        return middle + size / 2 * (1 - count / exact)
    return middle


def _cubic(d: Array, a: float) -> Array:
    """Keys' kernel at distance |d|."""
    d = np.abs(d)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def _nearest(at: Array, rounding: str) -> Array:
    if rounding == "round_prefer_floor":
        return np.ceil(at - 0.5)
    if rounding == "round_prefer_ceil":
        return np.floor(at + 0.5)
    return np.floor(at) if rounding == "floor" else np.ceil(at)


@lru_cache(maxsize=256)
def taps(
    along: Along, method: str, mode: str, rounding: str, cubic: float, exclude_outside: bool, antialias: bool
) -> Taps:
    """Which places make each of the result, and with what weights."""
    at = coordinates_of(along, mode)
    last = along.size - 1
    beyond = (at < 0) | (at > last) if mode == "tf_crop_and_resize" else np.zeros(at.shape, bool)
    if method == "nearest":
        index = np.clip(_nearest(at, rounding), 0, last).astype(np.intp)[:, None]
        return Taps(index, np.ones(index.shape), beyond)
    stretch = min(along.scale, 1.0) if antialias else 1.0
    reach = int(np.ceil((1 if method == "linear" else 2) / stretch))
    whole = np.floor(at)
    index = whole[:, None] + np.arange(1 - reach, reach + 1)
    distance = (index - at[:, None]) * stretch
    weight = np.clip(1 - np.abs(distance), 0, 1) if method == "linear" else _cubic(distance, cubic)
    if exclude_outside:
        weight = np.where((index >= 0) & (index <= last), weight, 0.0)
    if exclude_outside or antialias:
        weight = weight / weight.sum(axis=1, keepdims=True)
    return Taps(np.clip(index, 0, last).astype(np.intp), weight, beyond)


def _plans(
    shape: tuple[int, ...], given: dict[str, Array], attrs: dict[str, Any], how: dict[str, Any]
) -> list[tuple[int, Along, Taps]]:
    """(dimension, sizes, taps) for each dimension to be resized."""
    axes = attrs["axes"]
    sizes, scales, roi = (given.get(what, attrs[what]) for what in ("sizes", "scales", "roi"))
    found = []
    for number, axis in enumerate(axes):
        size = shape[axis]
        scale = float(scales[number]) if scales is not None else float(sizes[number]) / max(size, 1)
        count = int(sizes[number]) if sizes is not None else int(np.floor(size * scale))
        if size < 1 or count < 0 or not scale > 0:
            raise OpError(f"resize: dimension {axis} of {shape} cannot be resized to {count} places by scale {scale}")
        bounds = (0.0, 1.0) if roi is None else (float(roi[number]), float(roi[number + len(axes)]))
        along = Along(size, count, scale, bounds)
        found.append((axis, along, taps(along, **how)))
    return found


def _split(attrs: dict[str, Any]) -> dict[str, Any]:
    """The attributes that `taps` takes."""
    return {
        "method": attrs["method"],
        "mode": attrs["coordinates"],
        "rounding": attrs["rounding"],
        "cubic": attrs["cubic"],
        "exclude_outside": attrs["exclude_outside"],
        "antialias": attrs["antialias"],
    }


def _ahead(vector: Array, axis: int, rank: int) -> Array:
    return vector.reshape([-1 if a == axis else 1 for a in range(rank)])


def _along(matrix: Array, x: Array, axis: int) -> Array:
    """matrix · x along a dimension."""
    return np.moveaxis(np.matmul(matrix, np.moveaxis(x, axis, -2)), -2, axis) if axis != x.ndim - 1 else x @ matrix.T


@TABLE.implements("resize")
def resize(x: Array, *inputs: Array, given: tuple[str, ...], **attrs: Any) -> Array:
    made = x
    plans = _plans(x.shape, dict(zip(given, inputs, strict=True)), attrs, _split(attrs))
    for axis, along, found in plans:
        index = found.index
        if attrs["method"] == "nearest":
            made = np.take(made, index[:, 0], axis=axis)
            continue
        made = made.astype(wide(x.dtype), copy=False)
        if index.shape[1] > _FEW:
            made = _along(found.matrix(along.size, made.dtype), made, axis)
            continue
        factors = found.weight.astype(made.dtype)
        total = np.zeros((*made.shape[:axis], along.count, *made.shape[axis + 1 :]), made.dtype)
        for tap in range(index.shape[1]):
            total += np.take(made, index[:, tap], axis=axis) * _ahead(factors[:, tap], axis, made.ndim)
        made = total
    for axis, _, found in plans:
        if found.beyond.any():
            made = np.where(_ahead(found.beyond, axis, made.ndim), made.dtype.type(attrs["outside"]), made)
    return np.array(made, x.dtype, order="C", copy=None if made is not x else True)


@TABLE.implements("resize_grad")
def resize_grad(dy: Array, *inputs: Array, given: tuple[str, ...], shape: Any, **attrs: Any) -> Array:
    """The transpose: each place of the result hands its gradient to those it was made from."""
    vector = inputs[len(given)] if len(inputs) > len(given) else shape
    sizes = tuple(int(d) for d in vector)
    made = dy.astype(wide(dy.dtype), copy=False)
    plans = _plans(sizes, dict(zip(given, inputs, strict=False)), attrs, _split(attrs))
    for axis, _, found in plans:
        if found.beyond.any():
            made = np.where(_ahead(found.beyond, axis, made.ndim), made.dtype.type(0), made)
    for axis, along, found in plans:
        made = _along(found.matrix(along.size, made.dtype).T, made, axis)
    return np.array(made, dy.dtype, order="C", copy=None if made is not dy else True)
