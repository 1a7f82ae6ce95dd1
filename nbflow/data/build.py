"""From a description to stages that run: one function a kind, in a table."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from nbflow.data.apply import Filter, Map, ParallelMap
from nbflow.data.caching import Cache, FileStore, MemoryStore, Store
from nbflow.data.combine import Concatenate, Interleave, Zip
from nbflow.data.describe import Tree, components, walk
from nbflow.data.files import Files
from nbflow.data.generate import Generated
from nbflow.data.program import bind
from nbflow.data.stages import (
    Batch,
    Enumerate,
    Repeat,
    Rows,
    Shard,
    Shuffle,
    Skip,
    Stage,
    Take,
    Unbatch,
    batching,
    padding,
    values,
)
from nbflow.errors import DataError, EndOfData

# People want to hear of what takes longer than this, and not more often.
REPORT_S = 1.0


@dataclass(slots=True)
class Environment:
    """What stages need of the place where they run.

    - `name` and `seed`: the iterator's and the graph's; shuffles without a seed, and random ops, draw with them.
    - `say`: shows people a line of progress.
    """

    name: str = ""
    seed: int = 0
    say: Callable[[str], None] = lambda text: None
    closing: threading.Event = field(default_factory=threading.Event)
    _said_s: float = field(default_factory=time.monotonic)

    def report(self, what: str, done: int, total: int) -> None:
        """Says now and then how far a long job is; `total` 0 when unknown. Ends it when the iterator closes."""
        if self.closing.is_set():
            raise EndOfData("the dataset's iterator was closed")
        now = time.monotonic()
        if now - self._said_s > REPORT_S:
            self._said_s = now
            of = f" of {total:,}" if total else ""
            self.say(f"dataset {self.name or 'iterator'}: {what}, {done:,}{of}")


def build(tree: Tree, environment: Environment) -> Stage:
    """The stages of `tree`. They must be restarted, or loaded, before use."""
    maker = _MAKERS.get(tree[0])
    if maker is None:
        raise DataError(f"a dataset has no stage {tree[0]!r}; this worker may be older than the notebook")
    return maker(tree, environment)


def works_long(tree: Tree) -> bool:
    """Whether making an element may take longer than a cancelled step should wait."""
    return any(stage[0] not in _QUICK for stage in walk(tree))


_QUICK = ("arrays", "shuffle", "repeat", "take", "skip", "shard", "batch", "prefetch", "unbatch", "enumerate", "zip")


def _shuffle(tree: Tree, env: Environment) -> Stage:
    _, child, buffer, seed, reshuffle = tree
    # Shuffles above each other draw differently with one seed, those beside each other alike.
    level = sum(t[0] == "shuffle" for t in walk(child))
    text = f"{env.seed}|{env.name}" if seed == "" else str(seed)
    return Shuffle(build(child, env), buffer, text, level=level, reshuffle=reshuffle, report=env.report)


def _batch(tree: Tree, env: Environment) -> Stage:
    child = build(tree[1], env)
    if any(t[0] == "batch" for t in walk(tree[1])):
        child = values(child)  # batches of batches: row numbers would nest where rows may differ in number
    names = [name for name, _ in components(tree[1])]
    return Batch(child, tree[2], tree[3], batching(names, child.table))


def _padded_batch(tree: Tree, env: Environment) -> Stage:
    _, child, n, drop, shapes, fills = tree
    names, specs = zip(*components(child), strict=True)
    targets = [type(s)(shape, s.dtype) for s, shape in zip(specs, shapes, strict=True)]
    return Batch(values(build(child, env)), n, drop, padding(names, targets, fills))


def _map(tree: Tree, env: Environment) -> Stage:
    _, child, program, _, threads = tree
    function = bind(program, env.name, env.seed)
    below = build(child, env)
    return ParallelMap(below, function, threads) if threads else Map(below, function)


def _files(tree: Tree, env: Environment) -> Stage:
    return Files(tree[1], tree[2], [s for _, s in components(tree)], tree[6], env.report)


def _cache(tree: Tree, env: Environment) -> Stage:
    _, child, path, fingerprint = tree
    names = [name for name, _ in components(child)]

    def make() -> Store:
        return FileStore(path, names, fingerprint) if path else MemoryStore()

    return Cache(build(child, env), make, env.report)


def _children(tree: Tree, env: Environment) -> list[Stage]:
    return [build(child, env) for child in tree[1]]


_MAKERS: dict[str, Callable[[Tree, Environment], Stage]] = {
    "arrays": lambda tree, env: Rows(tree[2]),
    "files": _files,
    "generator": lambda tree, env: Generated(tree[1], tree[2], [s for _, s in components(tree)]),
    "cache": _cache,
    "shuffle": _shuffle,
    "repeat": lambda tree, env: Repeat(build(tree[1], env), tree[2]),
    "take": lambda tree, env: Take(build(tree[1], env), tree[2]),
    "skip": lambda tree, env: Skip(build(tree[1], env), tree[2]),
    "shard": lambda tree, env: Shard(build(tree[1], env), tree[2], tree[3]),
    "batch": _batch,
    "padded_batch": _padded_batch,
    "unbatch": lambda tree, env: Unbatch(build(tree[1], env), [name for name, _ in components(tree[1])]),
    "enumerate": lambda tree, env: Enumerate(build(tree[1], env), tree[2]),
    "map": _map,
    "filter": lambda tree, env: Filter(build(tree[1], env), bind(tree[2], env.name, env.seed)),
    "prefetch": lambda tree, env: build(tree[1], env),  # the iterator does it, once for all
    "zip": lambda tree, env: Zip(_children(tree, env)),
    "concatenate": lambda tree, env: Concatenate(_children(tree, env)),
    "interleave": lambda tree, env: Interleave(_children(tree, env), tree[2], tree[3]),
}
