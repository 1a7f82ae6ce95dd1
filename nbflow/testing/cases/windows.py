"""Rows of convolution and pooling over one, two and three dimensions, by their definitions in loops; see `case.py`."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np

import nbflow as nf
from nbflow.ops._build import build
from nbflow.testing.cases.case import Case, f, i

A = np.ndarray[Any, Any]

OPS: list[Case] = []


def row(op: str, make: Callable[..., Any], inputs: Any, expect: Callable[..., Any] | None, **more: Any) -> None:
    OPS.append(Case(op, make, tuple(inputs), expect, **more))


# --- the definitions, one window at a time ---------------------------------------------------------------------------


def same(size: int, kernel: int, stride: int, dilation: int, lower: bool = False) -> tuple[int, int]:
    """The padding of SAME: ceil(size / stride) windows, the odd place behind."""
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return (total - total // 2, total // 2) if lower else (total // 2, total - total // 2)


def windows(x: A, kernel: Any, strides: Any, pads: Any, dilation: Any, ceil: bool = False) -> tuple[Any, A, A]:
    """(counts, every window as (n, *counts, taps, c), where it holds places of x and not padding), channels last."""
    n, *size, c = x.shape
    counts, rooms = [], []
    for s, k, step, d, (before, after) in zip(size, kernel, strides, dilation, pads, strict=True):
        room = s + before + after - (k - 1) * d - 1
        count = room // step + 1
        if ceil and count * step < s + before and room % step:
            count += 1
        counts.append(count)
        rooms.append((before, max(after, (count - 1) * step + (k - 1) * d + 1 - s - before)))
    padded = np.pad(x, ((0, 0), *rooms, (0, 0)))
    real = np.pad(np.ones((1, *size, 1), bool), ((0, 0), *rooms, (0, 0)))
    found = np.zeros((n, *counts, int(np.prod(kernel)), c), x.dtype)
    inside = np.zeros((1, *counts, int(np.prod(kernel)), 1), bool)
    for at in product(*map(range, counts)):
        for number, tap in enumerate(product(*map(range, kernel))):
            place = tuple(a * s + t * d for a, s, t, d in zip(at, strides, tap, dilation, strict=True))
            found[(slice(None), *at, number)] = padded[(slice(None), *place)]
            inside[(slice(None), *at, number)] = real[(slice(None), *place)]
    return counts, found, inside


def plain_conv(x: A, w: A, strides: Any, pads: Any, dilation: Any, groups: int) -> A:
    *kernel, depth, outputs = w.shape
    counts, found, _ = windows(x, kernel, strides, pads, dilation)
    made = np.zeros((x.shape[0], *counts, outputs))
    each = outputs // groups
    for o in range(outputs):
        g = o // each
        made[..., o] = (found[..., g * depth : (g + 1) * depth] * w[..., o].reshape(-1, depth)).sum((-1, -2))
    return made


def plain_pool(x: A, reduce: str, kernel: Any, strides: Any, pads: Any, dilation: Any, ceil: bool = False) -> A:
    _, found, inside = windows(x, kernel, strides, pads, dilation, ceil)
    if reduce == "max":
        return np.where(inside, found, -np.inf).max(-2)
    total = np.where(inside, found, 0).sum(-2)
    return total if reduce == "one" else total / inside.sum(-2)


def first(x: A) -> A:
    """The channels put first."""
    return np.moveaxis(x, -1, 1)


# --- convolution -----------------------------------------------------------------------------------------------------

# (places, kernel, channels / groups, outputs, strides, pads, dilation, groups)
CONVS: list[tuple[Any, ...]] = [
    ((7,), (3,), 2, 3, (1,), ((2, 0),), (1,), 1),
    ((8,), (3,), 2, 4, (2,), ((1, 2),), (2,), 2),
    ((5, 4), (3, 2), 2, 3, (2, 1), ((1, 0), (0, 1)), (1, 2), 1),
    ((4, 3), (1, 1), 2, 3, (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    ((4, 3), (1, 1), 2, 3, (2, 1), ((0, 0), (0, 0)), (1, 1), 1),
    ((3, 4, 3), (2, 2, 2), 1, 2, (1, 2, 1), ((0, 0), (1, 0), (0, 1)), (1, 1, 2), 1),
    ((3, 3, 2), (2, 1, 2), 1, 4, (1, 1, 1), ((0, 1), (0, 0), (0, 0)), (1, 1, 1), 2),
]
for _size, _kernel, _depth, _outputs, _strides, _pads, _dilation, _groups in CONVS:
    _x, _w = f(2, *_size, _depth * _groups), f(*_kernel, _depth, _outputs)
    _how = (_strides, _pads, _dilation, _groups)
    _layouts = {1: ("NWC", "NCW"), 2: ("NHWC", "NCHW"), 3: ("NDHWC", "NCDHW")}[len(_size)]
    row("conv", lambda x, w, a=_how, d=_layouts[0]: nf.nn.conv(x, w, a[0], a[1], d, a[2], a[3]), [_x, _w],
        lambda x, w, a=_how: plain_conv(x, w, *a), differentiable=2)  # fmt: skip
    row("conv", lambda x, w, a=_how, d=_layouts[1]: nf.nn.conv(x, w, a[0], a[1], d, a[2], a[3]), [first(_x), _w],
        lambda x, w, a=_how: first(plain_conv(np.moveaxis(x, 1, -1), w, *a)), differentiable=1)  # fmt: skip

for _padding in ("SAME", "SAME_LOWER"):
    row("conv", lambda x, w, p=_padding: nf.nn.conv1d(x, w, 2, p), [f(1, 7, 2), f(4, 2, 1)],
        lambda x, w, p=_padding: plain_conv(x, w, (2,), [same(7, 4, 2, 1, p != "SAME")], (1,), 1))  # fmt: skip
row("conv", lambda x, w: nf.nn.conv3d(x, w, padding="VALID"), [f(1, 3, 3, 2, 1), f(2, 2, 2, 1, 1)],
    lambda x, w: plain_conv(x, w, (1, 1, 1), [(0, 0)] * 3, (1, 1, 1), 1))  # fmt: skip
row("conv", lambda x, w: nf.nn.depthwise_conv(x, w, padding="VALID", data_format="NWC"), [f(2, 5, 3), f(2, 1, 6)],
    lambda x, w: plain_conv(x, w, (1,), [(0, 0)], (1,), 3), differentiable=2, dynamic=False,
    note="the number of channels must be known")  # fmt: skip
row("conv", lambda x, w: nf.nn.conv2d(x, w, padding="VALID"),
    [f(1, 3, 3, 2, dtype="float16"), f(2, 2, 2, 1, dtype="float16")],
    lambda x, w: plain_conv(x.astype("f4"), w.astype("f4"), (1, 1), [(0, 0)] * 2, (1, 1), 1).astype("float16"),
    rtol=2e-3)  # fmt: skip

# --- transposed convolution ------------------------------------------------------------------------------------------


def plain_transpose(x: A, w: A, strides: Any, pads: Any, dilation: Any, groups: int, more: Any) -> A:
    """Every place of x adds its multiple of the filters to the result."""
    n, *size, channels = x.shape
    *kernel, depth, _ = w.shape
    whole = [
        (s - 1) * t + (k - 1) * d + 1 + m for s, t, k, d, m in zip(size, strides, kernel, dilation, more, strict=True)
    ]
    made = np.zeros((n, *whole, depth * groups))
    each = channels // groups
    for at in product(*map(range, size)):
        for tap in product(*map(range, kernel)):
            place = tuple(a * s + t * d for a, s, t, d in zip(at, strides, tap, dilation, strict=True))
            for c in range(channels):
                g = c // each
                made[(slice(None), *place, slice(g * depth, (g + 1) * depth))] += (
                    x[(slice(None), *at, slice(c, c + 1))] * w[(*tap, slice(None), c)]
                )
    cut = [slice(before, s - after) for s, (before, after) in zip(whole, pads, strict=True)]
    return made[(slice(None), *cut)]


# (places, kernel, outputs / groups, channels, strides, pads, dilation, groups, output padding)
TRANSPOSED: list[tuple[Any, ...]] = [
    ((4,), (3,), 2, 2, (2,), ((1, 0),), (1,), 1, (0,)),
    ((3,), (2,), 1, 2, (1,), ((0, 0),), (2,), 1, (1,)),
    ((3, 2), (3, 2), 1, 4, (2, 3), ((1, 1), (0, 0)), (1, 1), 2, (1, 2)),
    ((2, 2), (2, 3), 2, 1, (3, 1), ((0, 0), (0, 1)), (1, 2), 1, (0, 0)),
    ((2, 2, 2), (2, 1, 2), 1, 1, (1, 2, 2), ((0, 0), (0, 0), (1, 0)), (1, 1, 1), 1, (0, 1, 1)),
]
for _size, _kernel, _depth, _channels, _strides, _pads, _dilation, _groups, _more in TRANSPOSED:
    _how = (_strides, _pads, _dilation, _groups, _more)
    row("conv_input_grad",
        lambda x, w, a=_how: nf.nn.conv_transpose(x, w, a[0], a[1], None, a[2], a[3], output_padding=a[4]),
        [f(2, *_size, _channels), f(*_kernel, _depth, _channels)],
        lambda x, w, a=_how: plain_transpose(x, w, *a), differentiable=2, dynamic=False,
        note="the filters must be known; unknown sizes in test_nn_more.py")  # fmt: skip

# --- pooling ---------------------------------------------------------------------------------------------------------

# (places, kernel, strides, pads, dilation, ceil)
POOLS: list[tuple[Any, ...]] = [
    ((7,), (3,), (2,), ((0, 0),), (1,), False),
    ((6,), (2,), (3,), ((1, 0),), (1,), True),
    ((6,), (3,), (2,), ((1, 1),), (2,), True),
    ((5, 4), (2, 3), (2, 2), ((1, 0), (1, 1)), (1, 1), False),
    ((5, 6), (3, 3), (2, 2), ((0, 0), (1, 0)), (1, 1), True),
    ((6, 5), (2, 2), (1, 2), ((0, 1), (0, 0)), (2, 3), False),
    ((3, 4, 3), (2, 2, 3), (1, 2, 1), ((0, 0), (1, 0), (1, 1)), (1, 1, 1), False),
]
for _size, _kernel, _strides, _pads, _dilation, _ceil in POOLS:
    _how = (_kernel, _strides, _pads, _dilation, _ceil)
    _x = f(2, *_size, 2)
    _layout = {1: "NCW", 2: "NCHW", 3: "NCDHW"}[len(_size)]
    row("max_pool", lambda x, a=_how, d=_layout[0] + _layout[2:] + "C": nf.nn.max_pool(x, *a[:3], d, *a[3:]), [_x],
        lambda x, a=_how: plain_pool(x, "max", *a), differentiable=2)  # fmt: skip
    row("max_pool", lambda x, a=_how, d=_layout: nf.nn.max_pool(x, *a[:3], d, *a[3:]), [first(_x)],
        lambda x, a=_how: first(plain_pool(np.moveaxis(x, 1, -1), "max", *a)), differentiable=1)  # fmt: skip
    for _count in ("inside", "one"):
        row("avg_pool",
            lambda x, a=_how, c=_count, d=_layout: nf.nn.avg_pool(x, *a[:3], d, *a[3:], count=c), [first(_x)],
            lambda x, a=_how, c=_count: first(plain_pool(np.moveaxis(x, 1, -1), c, *a)), differentiable=2)  # fmt: skip
row("avg_pool", lambda x: nf.nn.avg_pool1d(x, 3, 2, (1, 1), ceil=True, count="padded"), [f(2, 6, 2)],
    # The windows start at places -1, 1, 3 and 5; the last covers place 5 and the padding 6, and 7 does not exist.
    lambda x: np.stack([x[:, :2].sum(1) / 3, x[:, 1:4].sum(1) / 3, x[:, 3:6].sum(1) / 3, x[:, 5] / 2], 1),
    differentiable=2)  # fmt: skip
row("avg_pool", lambda x: nf.nn.avg_pool3d(x, 2), [f(1, 2, 2, 2, 3, dtype="float16")],
    lambda x: x.astype("f4").mean((1, 2, 3), keepdims=True).astype("float16"))  # fmt: skip
row("max_pool", lambda x: nf.nn.max_pool1d(x, 2, data_format="NCW"), [i(2, 1, 6, dtype="uint8", low=0)],
    lambda x: x.reshape(2, 1, 3, 2).max(-1))  # fmt: skip
row("max_pool", lambda x: nf.nn.max_pool3d(x, 2, padding="SAME"), [f(1, 1, 1, 2, 1)],
    lambda x: x.max(3, keepdims=True))  # fmt: skip
row("avg_pool", lambda x: nf.nn.lp_pool(x, 2, 3.0, data_format="NWC"), [f(2, 4, 1, low=0.5)],
    lambda x: (x.reshape(2, 2, 2, 1) ** 3).sum(2) ** (1 / 3), differentiable=2)  # fmt: skip
row("sqrt", lambda x: nf.nn.global_lp_pool(x, 2.0, "NCW"), [f(2, 3, 4)],
    lambda x: np.sqrt((x**2).sum(2)), differentiable=2, unranked=False)  # fmt: skip

# --- where the maxima are --------------------------------------------------------------------------------------------

_SOME = np.array([[1, 5, 2, 2], [0, 3, 9, 4], [7, 7, 1, 0], [7, 0, 2, 6.0]]).reshape(1, 4, 4, 1)
_WHERE = np.array([[1, 6], [8, 15]])
row("max_pool_argmax", lambda x: nf.nn.max_pool_with_argmax(x, 2, data_format="NHWC"), [_SOME],
    lambda x: [np.array([[5.0, 9], [7, 6]]).reshape(1, 2, 2, 1), _WHERE.reshape(1, 2, 2, 1)])  # fmt: skip
row("max_pool_argmax", lambda x: nf.nn.max_pool_with_argmax(x, 2, data_format="NCHW")[1],
    [np.concatenate([_SOME, _SOME], -1).transpose(0, 3, 1, 2)],
    lambda x: np.stack([_WHERE, _WHERE])[None])  # fmt: skip
row("max_pool_argmax", lambda x: nf.nn.max_pool_with_argmax(x, 2, 2, (1, 1), "NWC")[1],
    [np.array([-np.inf, 3, np.nan, 1]).reshape(1, 4, 1)], lambda x: np.array([0, 2, 3]).reshape(1, 3, 1))  # fmt: skip
_TO = np.array([[1, 6], [8, 15]]).reshape(1, 2, 2, 1)
row("max_unpool", lambda x, n: nf.nn.max_unpool(x, n, 2, data_format="NHWC"), [f(1, 2, 2, 1), _TO],
    lambda x, n: (np.eye(16)[n.ravel()].T @ x.ravel()).reshape(1, 4, 4, 1), differentiable=2)  # fmt: skip
row("max_unpool", lambda x, n: nf.nn.max_unpool(x, n, 2, data_format="NCHW", output_size=(4, 5)),
    [f(1, 1, 2, 2), _TO.reshape(1, 1, 2, 2)],
    lambda x, n: (np.eye(20)[n.ravel()].T @ x.ravel()).reshape(1, 1, 4, 5), differentiable=2)  # fmt: skip
row("max_unpool", lambda x, n: nf.nn.max_unpool(x, n, 3, 2, (1, 0), "NWC"), [f(1, 2, 1), np.zeros((1, 2, 1), int)],
    lambda x, n: np.array([x[0, 1, 0], 0, 0, 0]).reshape(1, 4, 1),
    note="the last of repeated indices stays")  # fmt: skip
row("max_unpool_grad", lambda g, n: build("max_unpool_grad", (g, n), {"data_format": "NWC"}),
    [f(2, 5, 1), np.array([[4, 0], [1, 1]])[..., None]], lambda g, n: np.take_along_axis(g, n, 1),
    note="the transpose of max_unpool, whose rows check its gradient")  # fmt: skip
