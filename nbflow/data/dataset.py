"""`Dataset`: a description that methods extend, and the ways out of it: `next()` for graphs, `for` for Python."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nbflow.data.blocks import Array
from nbflow.data.build import Environment
from nbflow.data.describe import Tree, chain, check, components, count, fingerprint, is_batched, said, walk
from nbflow.data.iterator import DataIterator
from nbflow.data.program import MapFunction, tensors_of, traced
from nbflow.data.stages import FOREVER
from nbflow.errors import DataError, EndOfData, NbflowError
from nbflow.graph import Tensor, get_graph
from nbflow.ops._build import build_node
from nbflow.spec import Shape, TensorSpec, as_shape, format_shape

Tensors = dict[str, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Elements, each a dict of arrays by name, and what happens to them on the way to the model.

    Made by `nf.data.from_arrays` and its like; every method gives a new dataset and runs nothing. `tree` describes it
    (see `describe.py`); `maps` are the functions that come last, which `next()` adds to the graph.
    """

    tree: Tree
    maps: tuple[MapFunction, ...] = ()

    # --- stages ---------------------------------------------------------------------------------------------------

    def shuffle(self, buffer: int, seed: int | None = None, *, reshuffle: bool = True) -> Dataset:
        """Elements in random order, another one in each epoch unless `reshuffle` is False.

        A `buffer` of all elements or more gives a permutation, a smaller one a window of that many elements from which
        the next is drawn. `seed` None: from the graph's seed. The order is the same on every worker.
        """
        _at_least(1, buffer, "shuffle", "buffer")
        return self._then("shuffle", int(buffer), "" if seed is None else int(seed), bool(reshuffle))

    def repeat(self, count: int | None = None) -> Dataset:
        """Goes through what comes before `count` times, for ever when None."""
        if count is not None:
            _at_least(1, count, "repeat", "count")
        return self._then("repeat", FOREVER if count is None else int(count))

    def take(self, n: int) -> Dataset:
        """The first `n` elements: rows, or batches after `batch`."""
        _at_least(1, n, "take", "n")
        return self._then("take", int(n))

    def skip(self, n: int) -> Dataset:
        """All but the first `n` elements: rows, or batches after `batch`."""
        if n < 0:
            raise DataError(f"skip(n): n is not negative, got {n}")
        return self._then("skip", int(n))

    def shard(self, count: int, index: int) -> Dataset:
        """Every `count`-th element, from the `index`-th on. `DataParallel` does this by itself."""
        if not 0 <= index < count:
            raise DataError(f"shard(count, index): 0 <= index < count, got count {count}, index {index}")
        return self._then("shard", int(count), int(index))

    def batch(self, n: int, drop_remainder: bool = False) -> Dataset:
        """Batches of `n` elements, the global batch: data-parallel replicas get consecutive parts of it.

        The last one of an epoch may be shorter, unless `drop_remainder`; after `repeat` epochs run into each other.
        Elements that differ in shape raise DataError when they are read; `padded_batch` takes them.
        """
        _at_least(1, n, "batch", "n")
        return self._then("batch", int(n), bool(drop_remainder))

    def padded_batch(
        self,
        n: int,
        shapes: Mapping[str, Any] | None = None,
        values: Mapping[str, Any] | None = None,
        drop_remainder: bool = False,
    ) -> Dataset:
        """As `batch`, for elements that differ in shape: each is padded at its ends.

        - `shapes`: component -> what its elements become; None for a dimension, or a component left out: as large as
          the largest of the batch, where the dimension is not known.
        - `values`: component -> what it is padded with, 0 when left out.

        Raises DataError for unknown names and ranks, and, when it is read, for an element larger than its shape.
        """
        _at_least(1, n, "padded_batch", "n")
        parts = components(self._settled().tree)
        for given in (shapes or {}, values or {}):
            wrong = sorted(set(given) - {name for name, _ in parts})
            if wrong:
                raise DataError(f"padded_batch names {wrong[0]!r}; the components are {', '.join(n for n, _ in parts)}")
        targets = tuple(_target(name, spec, (shapes or {}).get(name)) for name, spec in parts)
        fills = tuple(np.asarray((values or {}).get(name, 0), spec.dtype).item() for name, spec in parts)
        return self._then("padded_batch", int(n), bool(drop_remainder), targets, fills)

    def unbatch(self) -> Dataset:
        """The rows of batches as elements of their own."""
        return _checked(self._then("unbatch"))

    def enumerate(self, start: int = 0) -> Dataset:
        """A first component `index`, int64, that counts the elements from `start`."""
        if any(name == "index" for name, _ in self._components()):
            raise DataError("enumerate adds a component 'index', which the dataset has already")
        return self._then("enumerate", int(start))

    def map(self, fn: MapFunction, parallel: int = 0) -> Dataset:
        """`fn` of each element: from a dict of tensors to a dict of tensors, made of ops.

        As the last stage (or before `prefetch` only) it becomes part of the graph, where it may use variables and is
        differentiated. Elsewhere, or with `parallel` threads, it runs where the dataset does, on one element at a
        time: a row before `batch`, a batch after. What random ops draw depends on the element alone, never on threads.
        Raises DataError when `fn` returns anything but tensors.
        """
        if parallel < 0:
            raise DataError(f"map(fn, parallel): parallel is not negative, got {parallel}")
        if not parallel:
            return replace(self, maps=(*self.maps, fn))
        return _mapped(self._settled(), fn, parallel)

    def filter(self, predicate: Callable[[Tensors], Any]) -> Dataset:
        """The elements of which `predicate` (ops on a dict of tensors) gives true, a boolean scalar."""
        settled = self._settled()
        program, (made, *others) = traced(predicate, components(settled.tree), "filter")
        if others or made[1].dtype != np.bool_ or made[1].shape not in ((), None):
            raise DataError(f"the function given to filter returns one boolean scalar, it returned {said((made,))}")
        return settled._then("filter", program)

    def cache(self, path: str | os.PathLike[str] = "") -> Dataset:
        """Keeps the elements when they are read first, and gives the same ones from then on.

        `path`: a folder, on the machine of the worker that reads, instead of memory; a later session finds it again.
        Put it before `shuffle`, or every epoch has one order. Raises DataError, when it is read, for a folder that
        holds another dataset, and for elements that differ in shape in files.
        """
        settled = self._settled()
        where = os.path.abspath(os.path.expanduser(os.fspath(path))) if path else ""
        return settled._then("cache", where, fingerprint(settled.tree))

    def prefetch(self, n: int) -> Dataset:
        """Keeps up to `n` elements ready, made by a thread beside the training step."""
        _at_least(1, n, "prefetch", "n")
        return replace(self, tree=("prefetch", self.tree, int(n)))

    # --- what is known --------------------------------------------------------------------------------------------

    @property
    def element_spec(self) -> dict[str, TensorSpec]:
        """Name -> shape and dtype of each component of an element. A dimension that may vary is None."""
        return dict(self._components())

    @property
    def cardinality(self) -> int | None:
        """How many elements come out: rows, or batches after `batch`; None when there is no end, or nobody knows."""
        found = count(self.tree)
        return None if found < 0 else found

    def __repr__(self) -> str:
        source = next(t for t in walk(self.tree) if not chain(t))
        rows = count(source)
        what = f"{rows} rows" if rows >= 0 else "elements"
        steps = chain(self.tree) + ".map(…)" * len(self.maps)
        try:
            parts = said(self._components())
        except NbflowError:  # a function that needs the graph around it, or is wrong: `next` says so
            parts = said(components(self.tree)) + " before map"
        return f"<Dataset of {what}, {parts}{' ' + steps if steps else ''}>"

    # --- ways out -------------------------------------------------------------------------------------------------

    def next(self, name: str | None = None) -> Tensors:
        """The next element in each step: one tensor a component, by name; rows come first where it is batched.

        Any of them may be fed; when all that are used are fed, the dataset stays where it is. Running past the end
        raises EndOfData. Raises DataError when the dataset has no elements.
        """
        check(self.tree)
        parts = components(self.tree)
        graph = get_graph()
        handle = build_node("iterator", (), {"shared": ""}, name=f"{name}/iterator" if name else None, graph=graph)
        node = build_node(
            "iterator_next",
            handle.outputs,
            {
                "tree": self.tree,
                "dtypes": tuple(spec.dtype for _, spec in parts),
                # The rows of a batch stay unknown: the last one may be short, and each replica gets its part of it.
                "shapes": tuple(_open(spec.shape) if is_batched(self.tree) else spec.shape for _, spec in parts),
                "fingerprint": fingerprint(self.tree),
                "shard": (0, 1),
                "deal": (0, 1),
            },
            name=name,
            graph=graph,
        )
        found: Tensors = dict(zip((n for n, _ in parts), node.outputs[:-1], strict=True))
        for fn in self.maps:
            found = tensors_of(fn(found), "map")
        return found

    def __iter__(self) -> Iterator[dict[str, Array]]:
        """The elements as dicts of numpy arrays, from the beginning: Python's own loop, without a graph."""
        settled = self._settled()
        names = [name for name, _ in components(settled.tree)]
        if count(settled.tree) == 0:
            return
        iterator = DataIterator(settled.tree, Environment(name="iterator", seed=get_graph().seed))
        try:
            while True:
                try:
                    *arrays, _ = iterator.next()
                except EndOfData:
                    return
                yield dict(zip(names, arrays, strict=True))
        finally:
            iterator.close()

    # --- inside ---------------------------------------------------------------------------------------------------

    def _components(self) -> Any:
        return components(self._settled().tree)

    def _settled(self) -> Dataset:
        """The same, with the functions that came last as stages."""
        made = Dataset(self.tree)
        for fn in self.maps:
            made = _mapped(made, fn, 0)
        return made

    def _then(self, kind: str, *arguments: Any) -> Dataset:
        return Dataset((kind, self._settled().tree, *arguments))


def _mapped(dataset: Dataset, fn: MapFunction, threads: int) -> Dataset:
    program, made = traced(fn, components(dataset.tree), "map")
    described = (tuple(n for n, _ in made), tuple(s.shape for _, s in made), tuple(s.dtype for _, s in made))
    return Dataset(("map", dataset.tree, program, described, int(threads)))


def _checked(dataset: Dataset) -> Dataset:
    """`dataset`, once its components have been looked at: errors belong to the line that made it."""
    components(dataset.tree)
    return dataset


def _open(shape: Shape) -> Shape:
    return (None, *shape[1:]) if shape else shape


def _target(name: str, spec: TensorSpec, asked: Any) -> Shape:
    if spec.shape is None:
        raise DataError(f"padded_batch needs the rank of {name!r}, which nobody knows; declare its shape at the source")
    shape = spec.shape if asked is None else as_shape(asked)
    if shape is None or len(shape) != len(spec.shape):
        raise DataError(f"padded_batch: elements of {name!r} have shape {format_shape(spec.shape)}, not {asked!r}")
    return shape


def _at_least(least: int, value: int, method: str, argument: str) -> None:
    if value < least:
        raise DataError(f"{method}({argument}): {argument} is at least {least}, got {value}")


def together(datasets: Sequence[Dataset], kind: str, *arguments: Any) -> Dataset:
    """One dataset of several. Raises DataError when they do not fit together."""
    if not datasets:
        raise DataError(f"{kind} got no datasets")
    return _checked(Dataset((kind, tuple(d._settled().tree for d in datasets), *arguments)))
