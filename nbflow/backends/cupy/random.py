"""cupy: random numbers from counters, the same bits as on a CPU. See `nbflow.backends.numpy.random`.

Uniforms are the same numbers; normals differ from a CPU's in the last place or two, as logarithm and cosine do.
"""

from __future__ import annotations

import math
from typing import Any

import cupy as cp
import numpy as np

from nbflow.backends.base import Context, Table
from nbflow.backends.numpy.random import _ATTEMPTS, _count, stream_key
from nbflow.spec import is_half

TABLE = Table()
A = Any
Shape = tuple[int, ...]

# Philox4x64-10: a thread makes one block, four words. The multipliers and the two steps of the key are the paper's.
_PHILOX = cp.ElementwiseKernel(
    "uint64 key0, uint64 key1, uint64 attempt, uint64 number",
    "raw uint64 words",
    """
    unsigned long long c0 = i + 1, c1 = attempt, c2 = number, c3 = 0, k0 = key0, k1 = key1;
    for (int round = 0; round < 10; ++round) {
        unsigned long long high0 = __umul64hi(0xD2E7470EE14C6C93ull, c0), low0 = 0xD2E7470EE14C6C93ull * c0;
        unsigned long long high1 = __umul64hi(0xCA5A826395121157ull, c2), low1 = 0xCA5A826395121157ull * c2;
        c0 = high1 ^ c1 ^ k0;
        c1 = low1;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += 0x9E3779B97F4A7C15ull;
        k1 += 0xBB67AE8584CAA73Bull;
    }
    words[4 * i] = c0;
    words[4 * i + 1] = c1;
    words[4 * i + 2] = c2;
    words[4 * i + 3] = c3;
    """,
    "nbflow_philox",
)


def words(ctx: Context, count: int, attempt: int = 0) -> A:
    """`count` random 64-bit words of this op in this step."""
    blocks = (count + 3) // 4
    made = cp.empty(4 * blocks, np.uint64)
    if blocks:
        key = stream_key(ctx.seed, ctx.name)
        _PHILOX(key[0], key[1], np.uint64(attempt), np.uint64(ctx.step), made, size=blocks)
    return made[:count]


def uniforms(ctx: Context, count: int, dtype: np.dtype[Any], attempt: int = 0) -> A:
    """`count` floats in [0, 1) of `dtype` (float32 or float64; others are rounded from float32)."""
    if dtype == np.float64:
        return (words(ctx, count, attempt) >> np.uint64(11)).astype(np.float64) * np.float64(2.0**-53)
    halves = words(ctx, (count + 1) // 2, attempt).view(np.uint32)[:count]
    return (halves >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def normals(ctx: Context, count: int, dtype: np.dtype[Any], attempt: int = 0) -> A:
    """`count` standard normals, float64 for float64 and float32 otherwise."""
    pairs = (count + 1) // 2
    drawn = uniforms(ctx, 2 * pairs, dtype, attempt)
    radius = cp.sqrt(cp.log(drawn.dtype.type(1) - drawn[:pairs]) * drawn.dtype.type(-2))
    angle = drawn[pairs:] * drawn.dtype.type(2 * np.pi)
    return cp.concatenate((radius * cp.cos(angle), radius * cp.sin(angle)))[:count]


def _scaled(values: A, scale: float, shift: float, dtype: np.dtype[Any], shape: Shape) -> A:
    made = values * values.dtype.type(scale) + values.dtype.type(shift)
    return made.astype(dtype, copy=False).reshape(shape)


def _below(values: A, top: Any) -> A:
    """`values` where they are at most `top`, a number of their dtype, else that."""
    return cp.where(values > top, top, values)


@TABLE.implements("random_uniform")
def random_uniform(ctx: Context, *, shape: Shape, minval: float, maxval: float, dtype: np.dtype[Any]) -> A:
    values = _scaled(uniforms(ctx, _count(shape), dtype), maxval - minval, minval, dtype, shape)
    # u * (b - a) + a may round up to b; the interval is half open.
    return _narrow_below(values, np.nextafter(dtype.type(maxval), dtype.type(minval)))


@TABLE.implements("random_uniform_like")
def random_uniform_like(ctx: Context, x: A, *, dtype: np.dtype[Any]) -> A:
    values = uniforms(ctx, x.size, dtype).astype(dtype, copy=False).reshape(x.shape)
    return _narrow_below(values, np.nextafter(dtype.type(1), dtype.type(0))) if is_half(dtype) else values


def _narrow_below(values: A, top: Any) -> A:
    if not is_half(values.dtype):
        return _below(values, top)
    return _below(values.astype(np.float32), np.float32(top)).astype(values.dtype)


@TABLE.implements("random_normal")
def random_normal(ctx: Context, *, shape: Shape, mean: float, stddev: float, dtype: np.dtype[Any]) -> A:
    return _scaled(normals(ctx, _count(shape), dtype), stddev, mean, dtype, shape)


@TABLE.implements("random_normal_like")
def random_normal_like(ctx: Context, x: A, *, mean: float, stddev: float, dtype: np.dtype[Any]) -> A:
    return _scaled(normals(ctx, x.size, dtype), stddev, mean, dtype, x.shape)


@TABLE.implements("random_truncated_normal")
def random_truncated_normal(ctx: Context, *, shape: Shape, mean: float, stddev: float, dtype: np.dtype[Any]) -> A:
    """Draws beyond two standard deviations are drawn again, each time with the next attempt's counter."""
    values = normals(ctx, _count(shape), dtype)
    outside = cp.flatnonzero(cp.abs(values) > 2)
    for attempt in range(1, _ATTEMPTS):
        if not outside.size:
            break
        values[outside] = normals(ctx, outside.size, dtype, attempt)
        outside = outside[cp.abs(values[outside]) > 2]
    return _scaled(cp.clip(values, -2, 2), stddev, mean, dtype, shape)


@TABLE.implements("random_integers")
def random_integers(ctx: Context, *, shape: Shape, low: int, high: int, dtype: np.dtype[Any]) -> A:
    """low + word mod (high - low): the bias is below (high - low) / 2**64."""
    drawn = words(ctx, _count(shape))
    if high - low < 2**64:
        drawn = drawn % np.uint64(high - low)
    return (drawn.astype(np.int64) + np.int64(low)).astype(dtype, copy=False).reshape(shape)


@TABLE.implements("random_bernoulli")
def random_bernoulli(ctx: Context, *, shape: Shape, p: float, dtype: np.dtype[Any]) -> A:
    drawn = uniforms(ctx, _count(shape), np.dtype(np.float64)) < p
    return drawn.astype(dtype, copy=False).reshape(shape)


@TABLE.implements("random_permutation")
def random_permutation(ctx: Context, *, n: int) -> A:
    """The order that sorts n random words."""
    return cp.argsort(words(ctx, n), kind="stable").astype(np.int64, copy=False)


@TABLE.implements("random_gamma")
def random_gamma(ctx: Context, *, shape: Shape, alpha: float, dtype: np.dtype[Any]) -> A:
    """The attempts, counters and formulas of the numpy backend."""
    count, double = _count(shape), np.dtype(np.float64)
    d = (alpha if alpha >= 1 else alpha + 1) - 1 / 3
    c = 1 / math.sqrt(9 * d)
    made = cp.full(count, d, double)
    left = cp.arange(count)
    for attempt in range(_ATTEMPTS):
        if not left.size:
            break
        x = normals(ctx, left.size, double, 2 * attempt)
        u = uniforms(ctx, left.size, double, 2 * attempt + 1)
        v = (1 + c * x) ** 3
        accepted = (v > 0) & (cp.log(u) < x * x / 2 + d * (1 - v + cp.log(v)))
        made[left[accepted]] = d * v[accepted]
        left = left[~accepted]
    if alpha < 1:
        made *= (1 - uniforms(ctx, count, double, 2 * _ATTEMPTS)) ** (1 / alpha)
    return made.astype(dtype, copy=False).reshape(shape)
