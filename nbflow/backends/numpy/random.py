"""Random numbers from counters: Philox4x64-10, the same bits on every device.

J. K. Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011. The 128-bit key is the first half of
SHA-256("seed|name of the op"); the 256-bit counter is (block, attempt, step, 0), low word first, so two steps, or two
attempts of one step, never share a block. numpy adds one to the counter before the first block.

How bits become numbers is specified in `docs/random.md`.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np

from nbflow.backends.base import Context, Table
from nbflow.spec import is_half

TABLE = Table()

Floats = np.ndarray[Any, np.dtype[Any]]
Words = np.ndarray[Any, np.dtype[np.uint64]]
Shape = tuple[int, ...]

# Attempts of the truncated normal: each keeps 95 % of the draws, so 64 failing has a probability below 1e-80.
_ATTEMPTS = 64


def stream_key(seed: int, name: str) -> Words:
    """The 128-bit Philox key of a stream, as two uint64."""
    return np.frombuffer(hashlib.sha256(f"{seed}|{name}".encode()).digest()[:16], "<u8").astype(np.uint64)


def words(ctx: Context, count: int, attempt: int = 0) -> Words:
    """`count` random 64-bit words of this op in this step."""
    return philox(stream_key(ctx.seed, ctx.name), np.array([0, attempt, ctx.step, 0], np.uint64), count)


def philox(key: Words, counter: Words, count: int) -> Words:
    """`count` words of Philox4x64-10, four for each of the counters after `counter`."""
    made: Words = np.random.Philox(key=key, counter=counter).random_raw(count)
    return made


def _count(shape: Shape) -> int:
    total = 1
    for dim in shape:
        total *= dim
    return total


def uniforms(ctx: Context, count: int, dtype: np.dtype[Any], attempt: int = 0) -> Floats:
    """`count` floats in [0, 1) of `dtype` (float32 or float64; others are rounded from float32)."""
    if dtype == np.float64:
        return (words(ctx, count, attempt) >> np.uint64(11)) * np.float64(2.0**-53)
    halves = words(ctx, (count + 1) // 2, attempt).astype("<u8", copy=False).view("<u4")[:count]
    return (halves >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def normals(ctx: Context, count: int, dtype: np.dtype[Any], attempt: int = 0) -> Floats:
    """`count` standard normals, float64 for float64 and float32 otherwise."""
    pairs = (count + 1) // 2
    drawn = uniforms(ctx, 2 * pairs, dtype, attempt)
    one = drawn.dtype.type(1)
    radius = np.sqrt(np.log(one - drawn[:pairs]) * drawn.dtype.type(-2))  # 1 - u is never 0
    angle = drawn[pairs:] * drawn.dtype.type(2 * np.pi)
    out = np.empty(2 * pairs, drawn.dtype)
    np.multiply(radius, np.cos(angle), out=out[:pairs])
    np.multiply(radius, np.sin(angle), out=out[pairs:])
    return out[:count]


def _scaled(values: Floats, scale: float, shift: float, dtype: np.dtype[Any], shape: Shape) -> Floats:
    values *= values.dtype.type(scale)
    values += values.dtype.type(shift)
    return values.astype(dtype, copy=False).reshape(shape)


@TABLE.implements("random_uniform")
def random_uniform(ctx: Context, *, shape: Shape, minval: float, maxval: float, dtype: np.dtype[Any]) -> Floats:
    values = _scaled(uniforms(ctx, _count(shape), dtype), maxval - minval, minval, dtype, shape)
    # u * (b - a) + a may round up to b; the interval is half open.
    np.minimum(values, np.nextafter(dtype.type(maxval), dtype.type(minval)), out=values)
    return values


@TABLE.implements("random_uniform_like")
def random_uniform_like(ctx: Context, x: Floats, *, dtype: np.dtype[Any]) -> Floats:
    values = uniforms(ctx, x.size, dtype).astype(dtype, copy=False).reshape(x.shape)
    if is_half(dtype):  # numbers just below 1 are rounded to it
        np.minimum(values, np.nextafter(dtype.type(1), dtype.type(0)), out=values)
    return values


@TABLE.implements("random_normal")
def random_normal(ctx: Context, *, shape: Shape, mean: float, stddev: float, dtype: np.dtype[Any]) -> Floats:
    return _scaled(normals(ctx, _count(shape), dtype), stddev, mean, dtype, shape)


@TABLE.implements("random_normal_like")
def random_normal_like(ctx: Context, x: Floats, *, mean: float, stddev: float, dtype: np.dtype[Any]) -> Floats:
    return _scaled(normals(ctx, x.size, dtype), stddev, mean, dtype, x.shape)


@TABLE.implements("random_truncated_normal")
def random_truncated_normal(ctx: Context, *, shape: Shape, mean: float, stddev: float, dtype: np.dtype[Any]) -> Floats:
    """Draws beyond two standard deviations are drawn again, each time with the next attempt's counter."""
    values = normals(ctx, _count(shape), dtype)
    outside = np.flatnonzero(np.abs(values) > 2)
    for attempt in range(1, _ATTEMPTS):
        if not outside.size:
            break
        values[outside] = normals(ctx, outside.size, dtype, attempt)
        outside = outside[np.abs(values[outside]) > 2]
    np.clip(values, -2, 2, out=values)
    return _scaled(values, stddev, mean, dtype, shape)


@TABLE.implements("random_integers")
def random_integers(ctx: Context, *, shape: Shape, low: int, high: int, dtype: np.dtype[Any]) -> Floats:
    """low + word mod (high - low): the bias is below (high - low) / 2**64."""
    drawn = words(ctx, _count(shape))
    if high - low < 2**64:
        drawn %= np.uint64(high - low)
    return (drawn.astype(np.int64) + np.int64(low)).astype(dtype, copy=False).reshape(shape)


@TABLE.implements("random_bernoulli")
def random_bernoulli(ctx: Context, *, shape: Shape, p: float, dtype: np.dtype[Any]) -> Floats:
    drawn = uniforms(ctx, _count(shape), np.dtype(np.float64)) < p
    return drawn.astype(dtype, copy=False).reshape(shape)


@TABLE.implements("random_permutation")
def random_permutation(ctx: Context, *, n: int) -> Floats:
    """The order that sorts n random words."""
    return np.argsort(words(ctx, n), kind="stable").astype(np.int64, copy=False)


@TABLE.implements("random_gamma")
def random_gamma(ctx: Context, *, shape: Shape, alpha: float, dtype: np.dtype[Any]) -> Floats:
    """d (1 + c x)^3 for a normal x, accepted by comparing with a uniform; d = alpha - 1/3, c = 1 / sqrt(9 d).

    Attempt n takes its normals from counter 2n and its uniforms from 2n + 1. Below 1, the number for alpha + 1 is
    multiplied by u^(1 / alpha), u from the counter after the last attempt.
    """
    count = _count(shape)
    d = (alpha if alpha >= 1 else alpha + 1) - 1 / 3
    c = 1 / math.sqrt(9 * d)
    made = np.full(count, d, np.float64)
    left = np.arange(count)
    for attempt in range(_ATTEMPTS):
        if not left.size:
            break
        x = normals(ctx, left.size, np.dtype(np.float64), 2 * attempt)
        u = uniforms(ctx, left.size, np.dtype(np.float64), 2 * attempt + 1)
        v = (1 + c * x) ** 3
        with np.errstate(divide="ignore", invalid="ignore"):
            accepted = (v > 0) & (np.log(u) < x * x / 2 + d * (1 - v + np.log(v)))
        made[left[accepted]] = d * v[accepted]
        left = left[~accepted]
    if alpha < 1:
        made *= (1 - uniforms(ctx, count, np.dtype(np.float64), 2 * _ATTEMPTS)) ** (1 / alpha)
    return made.astype(dtype, copy=False).reshape(shape)
