"""Dataset pipelines as streams of row numbers: pure functions of (stages, seed), no arrays and no threads.

A pipeline is a tuple of stages, each `(kind, *arguments)`:

    ("shuffle", buffer, seed)        seed: an integer, or a text that is mixed with the graph's seed
    ("repeat", count)                -1: for ever
    ("take", n)  ("skip", n)
    ("batch", n, drop_remainder)     exactly one; stages after it work on whole batches
    ("prefetch", n)                  batches kept ready

Rows flow as blocks, int64 arrays of any length, so that numpy does the work; batches flow one by one. Each pass over
the source is an *epoch*, a tuple with one number for each `repeat` around it; shuffles draw raw Philox words keyed with
seed and epoch, so that any worker, with any numpy, makes the same order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from nbflow.errors import DataError

Stage = tuple[str | int, ...]
Stages = tuple[Stage, ...]
Rows = np.ndarray[Any, np.dtype[np.int64]]
Epoch = tuple[int, ...]

FOREVER = -1
# Rows of one source block: large enough that Python's part does not count, small enough to start at once.
_BLOCK = 1 << 16
# Random slots drawn at once by a windowed shuffle.
_DRAWS = 1 << 12


def cardinality(rows: int, stages: Stages) -> int:
    """Elements that come out for `rows` rows; FOREVER when there is no end."""
    count = rows
    for stage in stages:
        kind, args = stage[0], [int(a) for a in stage[1:] if not isinstance(a, str)]
        if kind == "repeat":
            count = FOREVER if args[0] == FOREVER and count else count * args[0] if count > 0 else count
        elif kind == "take":
            count = args[0] if count == FOREVER else min(count, args[0])
        elif kind == "skip":
            count = count if count == FOREVER else max(count - args[0], 0)
        elif kind == "batch" and count != FOREVER:
            count = count // args[0] if args[1] else -(-count // args[0])
    return count


def check(rows: int, stages: Stages) -> None:
    """Raises DataError when the pipeline has no batch stage, or would give nothing, or would look for ever."""
    kinds = [stage[0] for stage in stages]
    if kinds.count("batch") != 1:
        raise DataError(f"a dataset needs .batch(n) exactly once before .next(); it has {kinds.count('batch')}")
    for end, stage in enumerate(stages, 1):
        if cardinality(rows, stages[:end]) == 0:
            said = ", ".join(str(a) for a in stage[1:])
            raise DataError(
                f"the dataset has no elements after .{stage[0]}({said}): it starts with {rows} rows; "
                "give it more rows, or a smaller batch or skip"
            )


def batches(rows: int, stages: Stages, seed: int) -> Iterator[Rows]:
    """The row numbers of each batch, in order. `seed`: the graph's."""
    at = next(i for i, stage in enumerate(stages) if stage[0] == "batch")
    return _stream(rows, stages, len(stages), at, seed, ())


def _stream(rows: int, stages: Stages, end: int, batch_at: int, seed: int, epoch: Epoch) -> Iterator[Rows]:
    """What comes out of `stages[:end]` in `epoch`: blocks of rows up to `batch_at`, batches from there."""
    if end == 0:
        for start in range(0, rows, _BLOCK):
            yield np.arange(start, min(start + _BLOCK, rows), dtype=np.int64)
        return
    kind, *args = stages[end - 1]
    single = end - 1 > batch_at  # works on batches, one element each

    def source(inner: Epoch) -> Iterator[Rows]:
        return _stream(rows, stages, end - 1, batch_at, seed, inner)

    if kind == "repeat":
        number = 0
        while args[0] == FOREVER or number < int(args[0]):
            yield from source((*epoch, number))
            number += 1
    elif kind == "shuffle":
        draws = np.random.Philox(key=_key(seed, args[1], end, epoch))
        yield from _shuffled(source(epoch), int(args[0]), draws, single=single)
    elif kind == "take":
        yield from _taken(source(epoch), int(args[0]), single=single)
    elif kind == "skip":
        yield from _skipped(source(epoch), int(args[0]), single=single)
    elif kind == "batch":
        yield from _batched(source(epoch), int(args[0]), bool(args[1]))
    elif kind == "prefetch":
        yield from source(epoch)
    else:
        raise DataError(f"a dataset has no stage {kind!r}; this worker may be older than the notebook")


def _key(seed: int, stage_seed: int | str, end: int, epoch: Epoch) -> Any:
    """The Philox key of one shuffle in one epoch; a text seed is mixed with the graph's."""
    text = f"{seed}|{stage_seed}" if isinstance(stage_seed, str) else str(stage_seed)
    digest = hashlib.sha256(f"{text}|{end}|{epoch}".encode()).digest()
    return np.frombuffer(digest[:16], "<u8").astype(np.uint64)


def _batched(blocks: Iterator[Rows], size: int, drop_remainder: bool) -> Iterator[Rows]:
    kept: list[Rows] = []
    count = 0
    for block in blocks:
        start = 0
        while count + len(block) - start >= size:
            stop = start + size - count
            yield np.concatenate([*kept, block[start:stop]])
            kept, count, start = [], 0, stop
        if start < len(block):
            kept.append(block[start:])
            count += len(block) - start
    if count and not drop_remainder:
        yield np.concatenate(kept)


def _taken(items: Iterator[Rows], n: int, *, single: bool) -> Iterator[Rows]:
    left = n
    while left > 0:
        item = next(items, None)
        if item is None:
            return
        if single:
            left -= 1
            yield item
        else:
            yield item[:left]
            left -= len(item[:left])


def _skipped(items: Iterator[Rows], n: int, *, single: bool) -> Iterator[Rows]:
    left = n
    for item in items:
        size = 1 if single else len(item)
        if left >= size:
            left -= size
            continue
        yield item if single or not left else item[left:]
        left = 0


def _shuffled(items: Iterator[Rows], buffer: int, draws: np.random.Philox, *, single: bool) -> Iterator[Rows]:
    """A permutation when everything fits into `buffer`, otherwise a window of `buffer` elements that slides along."""
    window: list[Any] = []
    for item in items:
        new = [item] if single else item.tolist()
        room = buffer - len(window)
        window += new[:room]
        if len(new) > room:
            yield from _slide(window, new[room:], draws, single=single)
    order = np.argsort(draws.random_raw(len(window)), kind="stable").tolist()
    if single:
        yield from (window[i] for i in order)
    elif window:
        yield np.array(window, np.int64)[order]


def _slide(window: list[Any], new: list[Any], draws: np.random.Philox, *, single: bool) -> Iterator[Rows]:
    """Each new element takes the place of a random one of the window, which goes out."""
    for start in range(0, len(new), _DRAWS):
        part = new[start : start + _DRAWS]
        out = []
        for slot, element in zip((draws.random_raw(len(part)) % len(window)).tolist(), part, strict=True):
            out.append(window[slot])
            window[slot] = element
        if single:
            yield from out
        else:
            yield np.array(out, np.int64)


def part_of(rows: Rows, shard: tuple[int, int]) -> Rows:
    """The `shard[0]`-th of `shard[1]` consecutive parts, by numpy.array_split's rule: the first ones are longer."""
    index, count = shard
    size, longer = divmod(len(rows), count)
    start = index * size + min(index, longer)
    return rows[start : start + size + (1 if index < longer else 0)]
