"""Rows of `nf.image`, by their definitions; resizing is compared with ONNX's reference in `test_image.py`."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from typing import Any

import numpy as np

import nbflow as nf
from nbflow.ops._build import build
from nbflow.testing.cases.case import Case, f, i

A = np.ndarray[Any, Any]

OPS: list[Case] = []


def row(op: str, make: Callable[..., Any], inputs: Any, expect: Callable[..., Any] | None, **more: Any) -> None:
    OPS.append(Case(op, make, tuple(inputs), expect, **more))


def first(x: A) -> A:
    """NHWC to NCHW."""
    return np.moveaxis(x, -1, 1)


# --- resizing --------------------------------------------------------------------------------------------------------

_TWICE = np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])  # bilinear, half pixels, from 2 places to 4
row("resize", lambda x: nf.image.resize(x, (4, 4)), [f(2, 2, 2, 3)],
    lambda x: np.einsum("ai,bj,nijc->nabc", _TWICE, _TWICE, x), differentiable=2)  # fmt: skip
row("resize", lambda x: nf.image.resize(x, (4, 4), data_format="NCHW"), [f(2, 3, 2, 2)],
    lambda x: np.einsum("ai,bj,ncij->ncab", _TWICE, _TWICE, x), differentiable=2)  # fmt: skip
row("resize", lambda x: nf.image.resize(x, (2, 1), antialias=True), [f(1, 4, 2, 1)],
    # A triangle of twice the width: 1/8, 3/8, 3/8, 1/8 and the places beyond the edge repeat the last.
    lambda x: np.einsum("ai,nijc->nac", [[4 / 8, 3 / 8, 1 / 8, 0], [0, 1 / 8, 3 / 8, 4 / 8]], x)[:, :, None] / 2,
    differentiable=2)  # fmt: skip
row("resize", lambda x: nf.image.resize(x, (4, 6), "nearest"), [f(1, 2, 3, 2)],
    lambda x: x.repeat(2, 1).repeat(2, 2), differentiable=2)  # fmt: skip
row("resize", lambda x: nf.image.resize(x, (4, 6), "nearest"), [i(1, 2, 3, 2, dtype="uint8", low=0)],
    lambda x: x.repeat(2, 1).repeat(2, 2))  # fmt: skip
row("resize", lambda x, s: nf.image.resize(x, s, "nearest"), [f(1, 2, 3, 2), np.array([4, 6])],
    lambda x, s: x.repeat(2, 1).repeat(2, 2), differentiable=2, note="a size known at run time only")  # fmt: skip
row("resize", lambda x, s: nf.image.resample(x, (1,), scales=s), [f(1, 2), np.array([2.5], "float32")],
    lambda x, s: np.stack([x @ [1, 0], x @ [0.9, 0.1], x @ [0.5, 0.5], x @ [0.1, 0.9], x @ [0, 1]], 1),
    rtol=1e-6)  # fmt: skip
row("resize", lambda x: nf.image.resample(x, (0,), (3,), roi=(0.5, 1.5), coordinates="tf_crop_and_resize", outside=7.0),
    [f(3, 2)], lambda x: np.stack([x[1], x[2], [7, 7]]), differentiable=2)  # fmt: skip
row("resize", lambda x: nf.image.resize(x, (5, 3), "bicubic", cubic=-0.5), [f(1, 3, 4, 2)], None, differentiable=2,
    note="value in test_image.py")  # fmt: skip
row("resize", lambda x: nf.image.resize(x, (3, 3), "bilinear", coordinates="align_corners"),
    [f(1, 5, 2, 1, dtype="float16")],
    lambda x: np.stack([x[:, ::2, 0], (x[:, ::2, 0] + x[:, ::2, 1].astype("f4")) / 2, x[:, ::2, 1]], 2).astype("f2"),
    rtol=1e-3)  # fmt: skip
_HOW = {"axes": (0,), "sizes": (4,), "scales": None, "roi": None, "given": (), "method": "linear",
        "coordinates": "half_pixel", "rounding": "floor", "cubic": -0.75, "exclude_outside": False,
        "antialias": False, "outside": 0.0}  # fmt: skip
row("resize_grad", lambda g: build("resize_grad", (g,), {**_HOW, "shape": (2, 3)}), [f(4, 3)],
    lambda g: _TWICE.T @ g, differentiable=2)  # fmt: skip

# --- cutting, padding, turning ---------------------------------------------------------------------------------------

_X = f(2, 4, 5, 3)
row("getitem", lambda x: nf.image.crop(x, 1, 2, 3, 2), [_X], lambda x: x[:, 1:4, 2:4], differentiable=1)
row("getitem", lambda x: nf.image.crop(x, 1, 2, 3, 2, "NCHW"), [first(_X)], lambda x: x[:, :, 1:4, 2:4])
row("getitem", lambda x: nf.image.central_crop(x, (2, 2)), [_X], lambda x: x[:, 1:3, 1:3], dynamic=False)
row("getitem", lambda x: nf.image.central_crop(x, 0.5), [_X], lambda x: x[:, 1:3, 1:3], dynamic=False)
row("pad", lambda x: nf.image.pad_to(x, (6, 8), value=1.5), [_X],
    lambda x: np.pad(x, ((0, 0), (1, 1), (1, 2), (0, 0)), constant_values=1.5), dynamic=False)  # fmt: skip
row("pad", lambda x: nf.image.pad_to(x, (6, 8), "NCHW", top=0, left=3), [first(_X)],
    lambda x: np.pad(x, ((0, 0), (0, 0), (0, 2), (3, 0))), dynamic=False)  # fmt: skip
row("pad", lambda x: nf.image.crop_or_pad(x, (2, 7)), [_X],
    lambda x: np.pad(x[:, 1:3], ((0, 0), (0, 0), (1, 1), (0, 0))), dynamic=False)  # fmt: skip
row("flip", nf.image.flip_left_right, [_X], lambda x: x[:, :, ::-1], differentiable=1)
row("flip", lambda x: nf.image.flip_up_down(x, "NCHW"), [first(_X)], lambda x: x[:, :, ::-1])
row("flip", lambda x: nf.image.random_flip_left_right(x, 1.0), [_X], lambda x: x[:, :, ::-1])
row("flip", lambda x: nf.image.random_flip_up_down(x, 0.0), [_X], lambda x: x)
for _k in (-1, 0, 1, 2, 3):
    row("identity" if _k == 0 else "flip", lambda x, k=_k: nf.image.rot90(x, k), [_X],
        lambda x, k=_k: np.rot90(x, k, (1, 2)))  # fmt: skip
row("take_along_axis", lambda x: nf.image.random_crop(x, (4, 5)), [_X], lambda x: x, unranked=False)

# --- places and channels ---------------------------------------------------------------------------------------------

_BLOCKS = np.arange(32.0).reshape(1, 4, 4, 2)


def _deep(x: A) -> A:
    return np.concatenate([x[:, a::2, b::2] for a in (0, 1) for b in (0, 1)], -1)


row("permute_dims", lambda x: nf.image.space_to_depth(x, 2), [_BLOCKS], _deep, differentiable=1)
row("permute_dims", lambda x: nf.image.space_to_depth(x, 2, "NCHW"), [first(_BLOCKS)],
    lambda x: first(_deep(_BLOCKS)))  # fmt: skip
row("permute_dims", lambda x: nf.image.depth_to_space(x, 2), [_deep(_BLOCKS)], lambda x: _BLOCKS, differentiable=1)
row("permute_dims", lambda x: nf.image.depth_to_space(x, 2, "NCHW"), [first(_deep(_BLOCKS))],
    lambda x: first(_BLOCKS))  # fmt: skip
for _layout in ("NHWC", "NCHW"):
    _crd = _deep(_BLOCKS).reshape(1, 2, 2, 4, 2).swapaxes(3, 4).reshape(1, 2, 2, 8)
    row("permute_dims", lambda x, d=_layout: nf.image.depth_to_space(x, 2, d, "CRD"),
        [_crd if _layout == "NHWC" else first(_crd)],
        lambda x, d=_layout: _BLOCKS if d == "NHWC" else first(_BLOCKS))  # fmt: skip

# --- colours ---------------------------------------------------------------------------------------------------------

_RGB = f(2, 2, 3, 3, low=0.05, high=0.95)
_PLAIN = np.array([[[0.5, 0.5, 0.5], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]]])


def _each(convert: Callable[..., Any]) -> Callable[[A], A]:
    return lambda x: np.apply_along_axis(lambda pixel: np.array(convert(*pixel)), -1, x)


def _turned(x: A, change: Callable[[A], A]) -> A:
    return _each(colorsys.hsv_to_rgb)(change(_each(colorsys.rgb_to_hsv)(x)))


for _pixels, _order in ((_RGB, 2), (_PLAIN, 0)):
    row("remainder", nf.image.rgb_to_hsv, [_pixels], _each(colorsys.rgb_to_hsv), differentiable=_order)
    row("clip", nf.image.hsv_to_rgb, [_pixels], _each(colorsys.hsv_to_rgb), differentiable=_order)
row("isfinite", lambda x: nf.all(nf.isfinite(nf.gradients(nf.image.rgb_to_hsv(x), [x])[0])), [_PLAIN],
    lambda x: np.array(True))  # fmt: skip
row("matmul", nf.image.rgb_to_grayscale, [_RGB], lambda x: x @ [[0.299], [0.587], [0.114]], differentiable=1)
row("concat", nf.image.grayscale_to_rgb, [_RGB[..., :1]], lambda x: x.repeat(3, -1), differentiable=1)
row("add", lambda x: nf.image.adjust_brightness(x, 0.2), [_RGB], lambda x: x + 0.2)
row("mean", lambda x: nf.image.adjust_contrast(x, 0.7), [_RGB],
    lambda x: (x - x.mean((1, 2), keepdims=True)) * 0.7 + x.mean((1, 2), keepdims=True), differentiable=2)  # fmt: skip
row("pow", lambda x: nf.image.adjust_gamma(x, 1.7, 0.8), [_RGB], lambda x: 0.8 * x**1.7, differentiable=2)
row("clip", lambda x: nf.image.adjust_saturation(x, 0.3), [_RGB], lambda x: _turned(x, lambda h: h * [1, 0.3, 1]),
    differentiable=1)  # fmt: skip
row("clip", lambda x: nf.image.adjust_hue(x, 0.4), [_RGB], lambda x: _turned(x, lambda h: h + np.array([0.4, 0, 0])),
    differentiable=1)  # fmt: skip
row("sqrt", nf.image.per_image_standardization, [_RGB],
    lambda x: (x - x.mean((1, 2, 3), keepdims=True)) / np.maximum(x.std((1, 2, 3), keepdims=True), 18**-0.5),
    differentiable=2,
    dynamic=False)  # fmt: skip
row("sqrt", nf.image.per_image_standardization, [np.ones((1, 2, 2, 1))], np.zeros_like, dynamic=False)
