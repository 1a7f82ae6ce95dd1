"""Datasets as values: trees of plain tuples that travel as an op's attribute.

A stage is `(kind, child or children, *arguments)`:

    ("arrays", names, arrays)
    ("files", paths, names, shapes, dtypes, rows in all, rows of each)      -2, -1: unknown
    ("generator", key, names, shapes, dtypes, -2)
    ("shuffle", child, buffer, seed, reshuffle)     seed: an integer; "" for one of the graph's seed and the op's name
    ("repeat", child, count)                        -1: for ever
    ("take", child, n)  ("skip", child, n)  ("shard", child, count, index)
    ("batch", child, n, drop_remainder)
    ("padded_batch", child, n, drop_remainder, shapes, values)
    ("unbatch", child)  ("enumerate", child, start)
    ("map", child, program, names, threads)         threads 0: none beside the reader's
    ("filter", child, program)
    ("cache", child, path, fingerprint)             "" for memory; of the child
    ("prefetch", child, n)
    ("zip", children, names)  ("concatenate", children)  ("interleave", children, cycle, block)

This module says what is known of a tree without running it: components, number of elements, identity.
"""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from nbflow.data.blocks import Array
from nbflow.data.program import Components
from nbflow.data.stages import FOREVER
from nbflow.errors import DataError
from nbflow.spec import TensorSpec, as_dtype, format_shape, merge_shapes, shape_accepts

Tree = tuple[Any, ...]

# A count that nobody knows before the end: after `filter`, of a generator.
UNKNOWN = -2
SOURCES = ("arrays", "files", "generator")
_MANY = ("zip", "concatenate", "interleave")


def children(tree: Tree) -> tuple[Tree, ...]:
    """The stages that `tree` reads."""
    if tree[0] in SOURCES:
        return ()
    return tree[1] if tree[0] in _MANY else (tree[1],)


def walk(tree: Tree) -> Iterator[Tree]:
    """`tree` and all below it."""
    yield tree
    for child in children(tree):
        yield from walk(child)


def is_batched(tree: Tree) -> bool:
    """Whether the first axis of an element counts rows, which may be split: as `batch` says, or as the source does."""

    def depth(stage: Tree) -> int:
        below = [depth(child) for child in children(stage)]
        change = {"batch": 1, "padded_batch": 1, "unbatch": -1}.get(stage[0], 0)
        return min(below, default=0) + change

    return depth(tree) > 0 or all(spec.shape is None or spec.shape[:1] == (None,) for _, spec in components(tree))


def draws_from_graph(tree: Tree) -> bool:
    """Whether the graph's seed and the iterator's name have a say in what comes out."""
    return any(stage[0] in ("map", "filter") or (stage[0] == "shuffle" and stage[3] == "") for stage in walk(tree))


def prefetched(tree: Tree) -> int:
    """How many elements to keep ready: what `prefetch` asks for at most, wherever it stands."""
    return max((int(t[2]) for t in walk(tree) if t[0] == "prefetch"), default=0)


# --- components ------------------------------------------------------------------------------------------------------


def components(tree: Tree) -> Components:
    """Name and spec of each component of an element. Raises DataError where children do not fit together."""
    kind = tree[0]
    if kind == "arrays":
        return tuple((n, TensorSpec(a.shape[1:], a.dtype)) for n, a in zip(tree[1], tree[2], strict=True))
    if kind in ("files", "generator"):
        return tuple((n, TensorSpec(s, d)) for n, s, d in zip(*tree[2:5], strict=True))
    if kind == "zip":
        return _zipped(tree)
    if kind in _MANY:
        return _common([components(c) for c in tree[1]], kind)
    below = components(tree[1])
    if kind == "batch":
        size = tree[2] if tree[3] or count(tree[1]) == FOREVER else None
        return tuple((n, _wrapped(s, size)) for n, s in below)
    if kind == "padded_batch":
        size = tree[2] if tree[3] or count(tree[1]) == FOREVER else None
        return tuple((n, _wrapped(TensorSpec(p, s.dtype), size)) for (n, s), p in zip(below, tree[4], strict=True))
    if kind == "unbatch":
        return tuple((n, _unwrapped(n, s)) for n, s in below)
    if kind == "enumerate":
        return (("index", TensorSpec((), np.dtype(np.int64))), *below)
    if kind == "map":
        return tuple((n, TensorSpec(s, as_dtype(d))) for n, s, d in zip(*tree[3], strict=True))
    return below


def _wrapped(spec: TensorSpec, size: int | None) -> TensorSpec:
    return TensorSpec(None if spec.shape is None else (size, *spec.shape), spec.dtype)


def _unwrapped(name: str, spec: TensorSpec) -> TensorSpec:
    if spec.shape == ():
        raise DataError(f"unbatch takes the first axis apart, but {name!r} is a scalar; put .batch(n) before it")
    return TensorSpec(None if spec.shape is None else spec.shape[1:], spec.dtype)


def _zipped(tree: Tree) -> Components:
    found: list[tuple[str, TensorSpec]] = []
    for name, child in zip(tree[2], tree[1], strict=True):
        inner = components(child)
        found += [(name if len(inner) == 1 else f"{name}/{part}", spec) for part, spec in inner]
    return tuple(found)


def _common(each: list[Components], what: str) -> Components:
    first = each[0]
    made = dict(first)
    for other in each[1:]:
        fits = [n for n, _ in other] == [n for n, _ in first] and all(
            s.dtype == made[n].dtype and (s.rank == made[n].rank or None in (s.rank, made[n].rank)) for n, s in other
        )
        if not fits:
            raise DataError(f"{what} needs datasets with the same components, got {said(first)} and {said(other)}")
        for name, spec in other:
            made[name] = TensorSpec(_either(made[name], spec), spec.dtype)
    return tuple(made.items())


def _either(a: TensorSpec, b: TensorSpec) -> Any:
    """The shape that holds for both."""
    if a.shape is None or b.shape is None:
        return None
    if shape_accepts(a.shape, b.shape) and None not in a.shape:
        return merge_shapes(a.shape, b.shape) if None not in b.shape else b.shape
    return tuple(x if x == y else None for x, y in zip(a.shape, b.shape, strict=True))


def said(parts: Components) -> str:
    """`x: float32(784,), y: int64()` for people."""
    return ", ".join(f"{n}: {s.dtype.name}{format_shape(s.shape)}" for n, s in parts)


# Stages that let elements through as they are.
_SAME_ROWS = ("repeat", "shuffle", "take", "skip", "shard", "filter", "cache", "prefetch")

# --- counting --------------------------------------------------------------------------------------------------------


def count(tree: Tree) -> int:
    """How many elements come out; FOREVER, or UNKNOWN."""
    kind = tree[0]
    if kind == "arrays":
        return len(tree[2][0])
    if kind in ("files", "generator"):
        return int(tree[5])
    below = [count(child) for child in children(tree)]
    rule = _COUNTS.get(kind)
    return below[0] if rule is None else rule(below, tree)


def _zip_count(below: list[int], tree: Tree) -> int:
    if UNKNOWN in below:
        return UNKNOWN
    return min((c for c in below if c != FOREVER), default=FOREVER)


def _sum_count(below: list[int], tree: Tree) -> int:
    if FOREVER in below:
        return FOREVER
    return UNKNOWN if UNKNOWN in below else sum(below)


def _repeat_count(below: list[int], tree: Tree) -> int:
    (n,) = below
    if n == 0:
        return 0
    if tree[2] == FOREVER or n == FOREVER:
        return FOREVER
    return UNKNOWN if n == UNKNOWN else n * int(tree[2])


def _take_count(below: list[int], tree: Tree) -> int:
    (n,) = below
    if n == UNKNOWN:
        return UNKNOWN
    return int(tree[2]) if n == FOREVER else min(n, tree[2])


def _batch_count(below: list[int], tree: Tree) -> int:
    (n,) = below
    return n if n < 0 else n // tree[2] if tree[3] else -(-n // tree[2])


def _unbatch_count(below: list[int], tree: Tree) -> int:
    sizes = {s.shape[0] for _, s in components(tree[1]) if s.shape}
    size = sizes.pop() if len(sizes) == 1 else None
    if below[0] == FOREVER and size != 0:
        return FOREVER
    inner = tree[1]
    if inner[0] == "batch" and not inner[3] and count(inner[1]) >= 0:
        return count(inner[1])
    return UNKNOWN if size is None or below[0] == UNKNOWN else below[0] * size


_COUNTS: dict[str, Callable[[list[int], Tree], int]] = {
    "zip": _zip_count,
    "concatenate": _sum_count,
    "interleave": _sum_count,
    "repeat": _repeat_count,
    "take": _take_count,
    "skip": lambda below, tree: below[0] if below[0] < 0 else max(below[0] - tree[2], 0),
    "shard": lambda below, tree: below[0] if below[0] < 0 else len(range(tree[3], below[0], tree[2])),
    "batch": _batch_count,
    "padded_batch": _batch_count,
    "unbatch": _unbatch_count,
    "filter": lambda below, tree: below[0] if below[0] in (0, FOREVER) else UNKNOWN,
}


def most_rows(tree: Tree) -> int | None:
    """How many rows an element has at most, where the stages say so; None where only the data knows."""
    kind = tree[0]
    if kind in ("batch", "padded_batch"):
        below = count(tree[1])
        return int(tree[2]) if below < 0 else min(int(tree[2]), below)
    if kind in _SAME_ROWS:
        return most_rows(tree[1])
    if kind == "map":  # what it makes of a batch may be of another size
        sizes = {s.shape[0] for _, s in components(tree) if s.shape} if is_batched(tree) else set()
        return sizes.pop() if len(sizes) == 1 else None
    return None


def check(tree: Tree) -> None:
    """Raises DataError when nothing would come out."""
    for child in children(tree):
        check(child)
    if count(tree) == 0:
        source = next(t for t in walk(tree) if t[0] in SOURCES)
        what = f"after {call(tree)}: it starts with {count(source)} rows" if children(tree) else "at all"
        raise DataError(f"the dataset has no elements {what}; give it more rows, or a smaller batch or skip")


# --- identity, and for people ----------------------------------------------------------------------------------------

_SHOWN = {
    "shuffle": 4,
    "repeat": 3,
    "take": 3,
    "skip": 3,
    "shard": 4,
    "batch": 4,
    "padded_batch": 4,
    "enumerate": 3,
    "cache": 3,
    "prefetch": 3,
    "interleave": 4,
}


def call(tree: Tree) -> str:
    """`.batch(128, False)`: the stage as a call."""
    if tree[0] in SOURCES:
        return str(tree[0])
    return f".{tree[0]}({', '.join(repr(a) for a in tree[2 : _SHOWN.get(tree[0], 2)] if a != '')})"


def chain(tree: Tree) -> str:
    """The calls that made `tree`, after its source."""
    if tree[0] in SOURCES:
        return ""
    return chain(children(tree)[0]) + call(tree)


_digests: dict[int, tuple[weakref.ref[Array], str]] = {}


def fingerprint(tree: Tree) -> str:
    """A digest of the description and of all that it holds: an iterator whose dataset changed starts anew."""
    mark = hashlib.blake2b(digest_size=16)

    def add(value: Any) -> None:
        if isinstance(value, np.ndarray):
            mark.update(_content(value).encode())
        elif isinstance(value, tuple):
            mark.update(b"(")
            if value and isinstance(value[0], str) and value[0] == "files":
                # Names, not folders: a training goes on on a machine where they are elsewhere.
                value = ("files", tuple(os.path.basename(p) for p in value[1]), *value[2:])
            for item in value:
                add(item)
            mark.update(b")")
        else:
            mark.update(f"{type(value).__name__}:{value!r};".encode())

    add(tree)
    return mark.hexdigest()


def _content(array: Array) -> str:
    """A digest of an array, worked out once: arrays of a dataset are not changed."""
    known = _digests.get(id(array))
    if known is not None and known[0]() is array:
        return known[1]
    mark = hashlib.blake2b(f"{array.dtype.str}|{array.shape}|".encode(), digest_size=16)
    # Bytes: the buffers of bfloat16 and the like have no format that hashlib knows.
    mark.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    found = mark.hexdigest()
    number = id(array)
    _digests[number] = (weakref.ref(array, lambda _: _digests.pop(number, None)), found)
    return found
