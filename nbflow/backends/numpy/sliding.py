"""Where windows lie on arrays: what convolution and pooling share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from nbflow.ops.windows import Ints, Padding, Pair, output_size, pads
from nbflow.spec import kind_of

Array = np.ndarray[Any, np.dtype[Any]]
Slices = tuple[slice, ...]

_FLOAT32 = np.dtype(np.float32)


def wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """What sums are made in: float32 for floats of 16 bits, else the dtype itself."""
    return _FLOAT32 if dtype.itemsize == 2 and kind_of(dtype) == "f" else dtype


@dataclass(frozen=True, slots=True)
class Windows:
    """Where the windows lie on places of `size`, which are the dimensions of an array from `first` on.

    `pads` are added, of which `spare` behind are only there for a last window that reaches beyond; `offset` places at
    the front are skipped, which stand for negative padding; `count` windows fit.
    """

    size: Ints
    kernel: Ints
    strides: Ints
    dilation: Ints
    pads: tuple[Pair, ...]
    spare: Ints
    offset: Ints
    count: Ints
    first: int

    @classmethod
    def of(
        cls,
        size: Sequence[int],
        kernel: Sequence[int],
        strides: Ints,
        padding: Padding,
        dilation: Ints,
        ceil: bool = False,
        first: int = 1,
    ) -> Windows:
        found: list[Pair] = []
        count: list[int] = []
        spare: list[int] = []
        for axis, (s, k, step, d) in enumerate(zip(size, kernel, strides, dilation, strict=True)):
            number = output_size(padding, axis, s, k, step, d, ceil) or 0
            before, after = pads(padding, axis, s, k, step, d)
            spare.append(max((number - 1) * step + (k - 1) * d + 1 - s - before - after, 0))
            found.append((before, after + spare[-1]))
            count.append(number)
        offset = tuple(max(-before, 0) for before, _ in found)
        added = tuple((max(before, 0), max(after, 0)) for before, after in found)
        return cls(tuple(size), tuple(kernel), strides, dilation, added, tuple(spare), offset, tuple(count), first)

    @property
    def is_padded(self) -> bool:
        return any(side != (0, 0) for side in self.pads)

    @property
    def padded(self) -> Ints:
        return tuple(s + before + after for s, (before, after) in zip(self.size, self.pads, strict=True))

    @property
    def is_pointwise(self) -> bool:
        """True when each place is one window, of itself alone."""
        return self.count == self.size and all(k == 1 for k in self.kernel) and not self.is_padded

    def shape(self, x: Array, places: Ints) -> Ints:
        """The shape of `x` with other places."""
        return (*x.shape[: self.first], *places, *x.shape[self.first + len(places) :])

    def pad(self, x: Array, value: Any = 0) -> Array:
        """`x` with a border of `value`; `x` itself when there is none."""
        if not self.is_padded:
            return x
        shape = self.shape(x, self.padded)
        made = np.zeros(shape, x.dtype) if value == 0 else np.full(shape, value, x.dtype)
        made[self.inner] = x
        return made

    @property
    def inner(self) -> Slices:
        """Where the places lie in the padded array."""
        sides = [slice(before, before + s) for s, (before, _) in zip(self.size, self.pads, strict=True)]
        return (*[slice(None)] * self.first, *sides)

    def taps(self) -> Iterator[tuple[Ints, Slices]]:
        """(place in the window, slices) for each: the slices pick, of the padded array, what all windows have there."""
        lead = [slice(None)] * self.first
        for at in product(*(range(k) for k in self.kernel)):
            starts = [o + i * d for o, i, d in zip(self.offset, at, self.dilation, strict=True)]
            ends = [s + (c - 1) * step + 1 for s, c, step in zip(starts, self.count, self.strides, strict=True)]
            yield at, (*lead, *(slice(*limits) for limits in zip(starts, ends, self.strides, strict=True)))

    def unfold(self, x: Array) -> Array:
        """A view of padded `x` (n, *places, c) as (n, *count, *kernel, c)."""
        n, *_, c = x.shape
        whole = x[(slice(None), *(slice(o, None) for o in self.offset))]
        per, *steps, last = whole.strides
        windows = [s * step for s, step in zip(steps, self.strides, strict=True)]
        taps = [s * d for s, d in zip(steps, self.dilation, strict=True)]
        return np.lib.stride_tricks.as_strided(
            whole, (n, *self.count, *self.kernel, c), (per, *windows, *taps, last), writeable=False
        )

    def unfold_first(self, x: Array) -> Array:
        """A view of padded `x` (n, c, *places) as (n, c, *kernel, *count)."""
        whole = x[(slice(None), slice(None), *(slice(o, None) for o in self.offset))]
        per, last, *steps = whole.strides
        windows = [s * step for s, step in zip(steps, self.strides, strict=True)]
        taps = [s * d for s, d in zip(steps, self.dilation, strict=True)]
        return np.lib.stride_tricks.as_strided(
            whole, (*x.shape[:2], *self.kernel, *self.count), (per, last, *taps, *windows), writeable=False
        )

    def coverage(self, border: bool, dtype: np.dtype[Any]) -> Array:
        """How many places each window covers, of shape `count` and dimensions of 1 after; with `border`, padding too.

        What a last window has beyond the padding never counts. A window that covers nothing counts 1.
        """
        made = np.ones((), np.int64)
        for s, k, step, d, (before, after), spare, offset, count in zip(
            self.size,
            self.kernel,
            self.strides,
            self.dilation,
            self.pads,
            self.spare,
            self.offset,
            self.count,
            strict=True,
        ):
            at = np.arange(count)[:, None] * step + np.arange(k) * d - before + offset
            low, high = (-before, s + after - spare) if border else (0, s)
            made = np.multiply.outer(made, ((at >= low) & (at < high)).sum(axis=1))
        return np.maximum(made, 1).astype(dtype)


def lowest(dtype: np.dtype[Any]) -> Any:
    """What no number is below."""
    return -np.inf if kind_of(dtype) == "f" else np.iinfo(dtype).min
