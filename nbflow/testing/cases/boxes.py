"""Rows of boxes, grids and patches, by loops; ONNX's own cases run in the suite of `nf.onnx`. See `case.py`."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, floor
from typing import Any

import numpy as np

import nbflow as nf
from nbflow.ops._build import build
from nbflow.testing.cases.case import Case, f
from nbflow.testing.cases.windows import first, windows

A = np.ndarray[Any, Any]

OPS: list[Case] = []


def row(op: str, make: Callable[..., Any], inputs: Any, expect: Callable[..., Any] | None, **more: Any) -> None:
    OPS.append(Case(op, make, tuple(inputs), expect, **more))


# --- patches ---------------------------------------------------------------------------------------------------------

# (places, window, strides, pads, dilation)
PATCHES: list[tuple[Any, ...]] = [
    ((5,), (2,), (2,), ((1, 0),), (1,)),
    ((4, 3), (2, 2), (1, 2), ((0, 0), (1, 0)), (2, 1)),
    ((2, 3, 2), (1, 2, 2), (1, 1, 1), ((0, 0), (0, 0), (0, 0)), (1, 1, 1)),
]


def _matrix(size: Any, how: Any) -> A:
    """(places, counts · taps): what unfold takes, of one example and channel."""
    count = int(np.prod(size))
    each = np.eye(count).reshape(count, *size, 1)
    return windows(each, *how)[1].reshape(count, -1)


for _size, *_how in PATCHES:
    _n = len(_size)
    _x = f(2, *_size, 3)
    _layout = {1: "NCW", 2: "NCHW", 3: "NCDHW"}[_n]

    def _columns(x: A, how: Any = tuple(_how)) -> A:
        found = windows(x, *how)[1]
        return found.reshape(*found.shape[:-2], -1)

    def _rows(x: A, how: Any = tuple(_how)) -> A:
        found = windows(np.moveaxis(x, 1, -1), *how)[1]
        flat = found.reshape(x.shape[0], -1, *found.shape[-2:])  # (n, counts, taps, channels)
        return flat.transpose(0, 3, 2, 1).reshape(x.shape[0], -1, flat.shape[1])

    row(
        "unfold",
        lambda x, h=_how, d=_layout: nf.image.unfold(x, *h[:3], d[0] + d[2:] + "C", h[3]),
        [_x],
        _columns,
        differentiable=2,
    )
    row("unfold", lambda x, h=_how, d=_layout: nf.image.unfold(x, *h[:3], d, h[3]), [first(_x)], _rows,
        differentiable=1)  # fmt: skip
    row("fold", lambda x, s=_size, h=_how: nf.image.fold(x, s, *h[:3], None, h[3]), [_columns(_x)],
        lambda x, s=_size, h=_how: np.stack([
            np.stack([_matrix(s, h) @ x[n].reshape(-1, 3)[:, c] for c in range(3)], -1).reshape(*s, 3)
            for n in range(2)]), differentiable=2)  # fmt: skip
    row("fold", lambda x, s=_size, h=_how, d=_layout: nf.image.fold(x, s, *h[:3], d, h[3]), [_rows(first(_x))],
        lambda x, s=_size, h=_how, y=_x: first(np.stack([
            np.stack([_matrix(s, h) @ windows(y[n:n + 1], *h)[1].reshape(-1, 3)[:, c] for c in range(3)], -1)
            .reshape(*s, 3) for n in range(2)])))  # fmt: skip

# --- grids -----------------------------------------------------------------------------------------------------------


def _pixel(x: A, y: int, z: int, outside: str) -> A:
    h, w, c = x.shape
    if outside == "zeros" and not (0 <= y < h and 0 <= z < w):
        return np.zeros(c)
    return x[min(max(y, 0), h - 1), min(max(z, 0), w - 1)]


def _sampled(x: A, grid: A, outside: str, align: bool) -> A:
    """Bilinear, one place at a time: (n, h, w, c) and (n, oh, ow, 2)."""
    made = np.zeros((*grid.shape[:3], x.shape[3]))
    for n, i, j in np.ndindex(grid.shape[:3]):
        at = []
        for g, s in zip(grid[n, i, j][::-1], x.shape[1:3], strict=True):
            p = (g + 1) / 2 * (s - 1) if align else ((g + 1) * s - 1) / 2
            at.append(min(max(p, 0), s - 1) if outside == "border" else p)
        (y, z), (top, left) = at, (floor(at[0]), floor(at[1]))
        for a in (0, 1):
            for b in (0, 1):
                weight = (1 - abs(y - top - a)) * (1 - abs(z - left - b))
                made[n, i, j] += weight * _pixel(x[n], top + a, left + b, outside)
    return made


_IMAGE, _GRID = f(2, 3, 4, 2), f(2, 2, 3, 2, low=-1.2, high=1.2)
_SMALL = [_IMAGE[:1, :, :3, :1], _GRID[:1, :, :2]]  # what gradients are checked on
for _outside in ("zeros", "border"):
    for _align in (False, True):
        row("take", lambda x, g, o=_outside, a=_align: nf.image.grid_sample(x, g, "bilinear", o, a, "NHWC"), _SMALL,
            lambda x, g, o=_outside, a=_align: _sampled(x, g, o, a), differentiable=2)  # fmt: skip
row("take", lambda x, g: nf.image.grid_sample(x, g, data_format="NCHW"), [first(_IMAGE), _GRID],
    lambda x, g: first(_sampled(np.moveaxis(x, 1, -1), g, "zeros", False)))  # fmt: skip
for _method, _outside in (("bicubic", "border"), ("bicubic", "zeros"), ("bilinear", "reflection")):
    row("take", lambda x, g, m=_method, o=_outside: nf.image.grid_sample(x, g, m, o, False, "NHWC"), _SMALL, None,
        differentiable=2 if _method == "bilinear" else 1, note="value in ONNX's cases")  # fmt: skip
row("take", lambda x, g: nf.image.grid_sample(x, g, "nearest", "zeros", True, "NHWC"), [_IMAGE[:1], _GRID[:1]],
    lambda x, g: np.array([[[_pixel(x[0], round((q + 1) * 1.0), round((p + 1) * 1.5), "zeros") for p, q in r]
                            for r in g[0]]]))  # fmt: skip
row("take", lambda x, g: nf.image.grid_sample(x, g, "bilinear", "zeros", True, "NDHWC"),
    [f(1, 2, 2, 2, 1), np.zeros((1, 1, 1, 1, 3))],
    lambda x, g: x.mean((1, 2, 3), keepdims=True), differentiable=1)  # fmt: skip
_SHIFT = np.array([[[1, 0, 0.5], [0, -1, 0.25]]])
row("matmul", lambda t: nf.image.affine_grid(t, (2, 3)), [_SHIFT],
    lambda t: np.array([[[[x + 0.5, -y + 0.25] for x in (-2 / 3, 0, 2 / 3)] for y in (-0.5, 0.5)]]),
    differentiable=2)  # fmt: skip
row("matmul", lambda t: nf.image.affine_grid(t, (2, 1, 3), align_corners=True), [np.eye(3, 4)[None]],
    lambda t: np.array([[[[[x, -1.0, z] for x in (-1, 0, 1)]] for z in (-1, 1)]]))  # fmt: skip


def _cropped(x: A, boxes: A, ids: A, value: float) -> A:
    made = np.full((len(ids), 3, 2, x.shape[3]), value)
    for m, (t, left, b, r) in enumerate(boxes):
        for i, y in enumerate(np.linspace(t, b, 3) * (x.shape[1] - 1)):
            for j, z in enumerate(np.linspace(left, r, 2) * (x.shape[2] - 1)):
                if 0 <= y <= x.shape[1] - 1 and 0 <= z <= x.shape[2] - 1:
                    p, q = min(floor(y), x.shape[1] - 2), min(floor(z), x.shape[2] - 2)
                    v, w = np.array([p + 1 - y, y - p]), np.array([q + 1 - z, z - q])
                    made[m, i, j] = np.einsum("a,b,abc->c", v, w, x[ids[m], p : p + 2, q : q + 2])
    return made


_CUTS = np.array([[0.1, 0.2, 0.85, 0.9], [0.9, -0.4, 0.3, 0.6], [0.15, 0.1, 1.3, 0.7]])
row("take", lambda x, e, n: nf.image.crop_and_resize(x, e, n, (3, 2), value=-1.0), [_IMAGE, _CUTS, np.array([1, 0, 1])],
    lambda x, e, n: _cropped(x, e, n, -1.0))  # fmt: skip
row("take", lambda x, e, n: nf.image.crop_and_resize(x, e, n, (3, 2)),
    [_IMAGE[:1, :, :3, :1], _CUTS[:2], np.array([0, 0])],
    lambda x, e, n: _cropped(x, e, n, 0.0), differentiable=2)  # fmt: skip
row("take", lambda x, e, n: nf.image.crop_and_resize(x, e, n, (3, 2), data_format="NCHW"),
    [first(_IMAGE), _CUTS, np.array([1, 0, 1])],
    lambda x, e, n: first(_cropped(np.moveaxis(x, 1, -1), e, n, 0.0)))  # fmt: skip

# --- boxes -----------------------------------------------------------------------------------------------------------


def _plain_nms(boxes: A, scores: A, limit: int, overlap: float, lowest: float) -> list[int]:
    left = [n for n in np.argsort(-scores, kind="stable") if scores[n] > lowest]
    kept: list[int] = []
    for n in left:
        if len(kept) == limit:
            break
        if all(_overlap(boxes[n], boxes[k]) <= overlap for k in kept):
            kept.append(int(n))
    return kept


def _overlap(a: A, b: A) -> float:
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    common = float(np.prod(np.maximum(high - low, 0)))
    return common / float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - common)


_TOPS = f(2, 12, 2, low=0, high=3)
_BOXES = np.concatenate([_TOPS, _TOPS + f(2, 12, 2, low=0.5, high=2, seed=1)], -1)
_SCORES = f(2, 3, 12, low=0, high=1)
row("non_max_suppression", lambda b, s: nf.image.non_max_suppression(b, s, 5, 0.3, 0.2), [_BOXES, _SCORES],
    lambda b, s: np.array([[n, c, k] for n in range(2) for c in range(3)
                           for k in _plain_nms(b[n], s[n, c], 5, 0.3, 0.2)]), unranked=False)  # fmt: skip
row("non_max_suppression", lambda b, s, n: nf.image.non_max_suppression(b, s, n, 0.4), [_BOXES[0], _SCORES[0, 0], 3],
    lambda b, s, n: np.array(_plain_nms(b, s, 3, 0.4, -1)), unranked=False)  # fmt: skip
row("non_max_suppression", lambda b, s: nf.image.non_max_suppression(b, s, 9, centred=True),
    [np.concatenate([(_BOXES[0, :, :2] + _BOXES[0, :, 2:])[:, ::-1] / 2,
                     (_BOXES[0, :, 2:] - _BOXES[0, :, :2])[:, ::-1]], 1), _SCORES[0, 0]],
    lambda b, s: np.array(_plain_nms(_BOXES[0], s, 9, 0.5, -1)), unranked=False)  # fmt: skip
row("non_max_suppression", lambda b, s: nf.image.non_max_suppression(b, s, 9, 0.5, 2.0), [_BOXES, _SCORES],
    lambda b, s: np.zeros((0, 3), int), unranked=False)  # fmt: skip


def _aligned(x: A, boxes: A, ids: A, sampling: int, scale: float, half: bool) -> A:
    """The mean of samples, one at a time; bins of 2 by 3."""
    made = np.zeros((len(ids), 2, 3, x.shape[3]))
    for m, box in enumerate(boxes * scale - (0.5 if half else 0)):
        left, top, right, bottom = box
        height, width = bottom - top, right - left
        if not half:
            height, width = max(height, 1.0), max(width, 1.0)
        rows, columns = (sampling or ceil(height / 2)), (sampling or ceil(width / 3))
        for i, j, a, b in np.ndindex(2, 3, rows, columns):
            y, z = top + (i + (a + 0.5) / rows) * height / 2, left + (j + (b + 0.5) / columns) * width / 3
            if -1 <= y <= x.shape[1] and -1 <= z <= x.shape[2]:
                y, z = min(max(y, 0), x.shape[1] - 1), min(max(z, 0), x.shape[2] - 1)
                p, q = min(floor(y), x.shape[1] - 2), min(floor(z), x.shape[2] - 2)
                v, w = np.array([p + 1 - y, y - p]), np.array([q + 1 - z, z - q])
                pixels = np.einsum("a,b,abc->c", v, w, x[ids[m], p : p + 2, q : q + 2])
                made[m, i, j] += pixels / (rows * columns)
    return made


_ROIS, _OF = np.array([[0.5, 0.3, 6.2, 5.1], [-3.0, 2.0, 4.0, 9.0], [2.0, 2.0, 2.5, 2.4]]), np.array([1, 0, 0])
for _sampling, _half in ((2, True), (0, True), (0, False)):
    _how = (_sampling, 0.5, _half)
    row("roi_align", lambda x, b, n, h=_how: nf.image.roi_align(x, nf.constant(_ROIS), n, (2, 3), *h),
        [_IMAGE, _ROIS, _OF], lambda x, b, n, h=_how: _aligned(x, _ROIS, n, *h), differentiable=2,
        note="boxes as they are: no gradient goes to them")  # fmt: skip
row("roi_align", lambda x, b, n: nf.image.roi_align(x, b, n, (2, 3), 2, data_format="NCHW"),
    [first(_IMAGE), _ROIS, _OF],
    lambda x, b, n: first(_aligned(np.moveaxis(x, 1, -1), b, n, 2, 1.0, True)))  # fmt: skip
row("roi_align", lambda x, b, n: nf.image.roi_align(x, b, n, 1, 1, half_pixel=False, mode="max"),
    [np.arange(1.0, 5).reshape(1, 2, 2, 1), np.array([[0.0, 0, 1, 1]]), np.array([0])],
    lambda x, b, n: np.ones((1, 1, 1, 1)), note="a quarter of the largest pixel, 4")  # fmt: skip
_GRAD = {"size": (2, 3), "sampling": 2, "scale": 1.0, "half_pixel": True, "mode": "avg", "data_format": "NHWC"}
row("roi_align_grad",
    lambda g: build("roi_align_grad", (g, nf.constant(_ROIS), nf.constant(_OF)), {**_GRAD, "shape": (2, 3, 4, 1)}),
    [f(3, 2, 3, 1)],
    lambda g: np.array([(_aligned(e, _ROIS, _OF, 2, 1.0, True) * g).sum()
                        for e in np.eye(24).reshape(24, 2, 3, 4, 1)]).reshape(2, 3, 4, 1),
    differentiable=2)  # fmt: skip
