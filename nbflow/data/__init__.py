"""`nf.data`: datasets whose iterators are ops.

    batch = nf.data.from_arrays({"x": X, "y": Y}).shuffle(10_000, seed=0).repeat().batch(128).prefetch(2).next()

A `Dataset` is a description; each method gives a new one. `next()` adds one op, `iterator_next`, whose state is the
position. Nothing else here touches the graph.
"""

from __future__ import annotations

import builtins
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nbflow.data.files import read
from nbflow.data.pipeline import FOREVER, Stage, Stages, cardinality, check
from nbflow.errors import DataError
from nbflow.graph import Tensor, get_graph
from nbflow.ops._build import build_node
from nbflow.spec import KINDS, kind_of

__all__ = ["Dataset", "from_arrays", "from_files", "zip"]

Array = np.ndarray[Any, np.dtype[Any]]
Tensors = dict[str, Tensor]
MapFunction = Callable[[Tensors], Mapping[str, Tensor]]


@dataclass(frozen=True, slots=True)
class Dataset:
    """Rows of equally long arrays, and what happens to them on the way to the model. Made by `from_arrays`."""

    names: tuple[str, ...]
    arrays: tuple[Array, ...]
    stages: Stages = ()
    maps: tuple[MapFunction, ...] = ()

    def shuffle(self, buffer: int, seed: int | None = None) -> Dataset:
        """Elements in random order, another one in each epoch.

        A `buffer` of all rows or more gives a permutation, a smaller one a window of that many elements from which the
        next is drawn. `seed` None: from the graph's seed. The order is the same on every worker.
        """
        _positive(buffer, "shuffle", "buffer")
        # A text marks a seed to be derived; `next` puts the op's name there.
        return self._with(("shuffle", int(buffer), "" if seed is None else int(seed)))

    def repeat(self, count: int | None = None) -> Dataset:
        """Goes through what comes before `count` times, for ever when None."""
        if count is not None:
            _positive(count, "repeat", "count")
        return self._with(("repeat", FOREVER if count is None else int(count)))

    def take(self, n: int) -> Dataset:
        """The first `n` elements: rows, or batches after `batch`."""
        _positive(n, "take", "n")
        return self._with(("take", int(n)))

    def skip(self, n: int) -> Dataset:
        """All but the first `n` elements: rows, or batches after `batch`."""
        if n < 0:
            raise DataError(f"skip(n): n is not negative, got {n}")
        return self._with(("skip", int(n)))

    def batch(self, n: int, drop_remainder: bool = False) -> Dataset:
        """Batches of `n` rows, the global batch: data-parallel replicas get consecutive parts of it.

        The last one of an epoch may be shorter, unless `drop_remainder`; after `repeat` epochs run into each other.
        """
        _positive(n, "batch", "n")
        if self._is_batched:
            raise DataError("the dataset is batched already; nbflow batches once")
        return self._with(("batch", int(n), bool(drop_remainder)))

    def map(self, fn: MapFunction) -> Dataset:
        """Applies `fn` to the dict of tensors of each batch, as ops of the graph. Raises DataError before `batch`."""
        if not self._is_batched:
            raise DataError(
                "map works on batches, as ops of the graph: put .batch(n) before .map(fn). "
                "To change rows one by one, change the arrays before from_arrays"
            )
        return replace(self, maps=(*self.maps, fn))

    def prefetch(self, n: int) -> Dataset:
        """Keeps up to `n` batches ready, made by a thread beside the training step."""
        _positive(n, "prefetch", "n")
        return self._with(("prefetch", int(n)))

    @property
    def cardinality(self) -> int | None:
        """How many elements come out: rows, or batches after `batch`; None when there is no end."""
        count = cardinality(len(self.arrays[0]), self.stages)
        return None if count == FOREVER else count

    def next(self, name: str | None = None) -> Tensors:
        """The next batch in each step: one tensor a component, (rows, …), by name.

        Any of them may be fed; when all that are used are fed, the dataset stays where it is. Running past the end
        raises EndOfData. Raises DataError when the dataset is not batched or has no elements.
        """
        check(len(self.arrays[0]), self.stages)
        graph = get_graph()
        stages = _named_seeds(self.stages, graph.scoped(name) if name else f"iterator over {', '.join(self.names)}")
        node = build_node(
            "iterator_next",
            (),
            {
                "arrays": self.arrays,
                "names": self.names,
                "stages": stages,
                "fingerprint": _fingerprint(self.names, self.arrays),
                "shard": (0, 1),
                "deal": (0, 1),
            },
            name=name,
            graph=graph,
        )
        batch: Tensors = dict(builtins.zip(self.names, node.outputs[:-1], strict=True))
        for fn in self.maps:
            batch = _mapped(fn, batch)
        return batch

    @property
    def _is_batched(self) -> bool:
        return any(stage[0] == "batch" for stage in self.stages)

    def _with(self, stage: Stage) -> Dataset:
        return replace(self, stages=(*self.stages, stage))

    def __repr__(self) -> str:
        parts = ", ".join(
            f"{n}: {a.dtype.name}{list(a.shape[1:])}" for n, a in builtins.zip(self.names, self.arrays, strict=True)
        )
        steps = "".join(f".{s[0]}({', '.join(str(a) for a in s[1:])})" for s in self.stages)
        return f"<Dataset of {len(self.arrays[0])} rows, {parts}{' ' + steps if steps else ''}>"


def from_arrays(arrays: Mapping[str, Any] | Any) -> Dataset:
    """A dataset of the rows of arrays of equal length, by name; a single array is called `x`.

    The arrays are not copied: leave them as they are afterwards. Raises DataError for lengths that differ, scalars, and
    anything but numbers and booleans.
    """
    given = dict(arrays) if isinstance(arrays, Mapping) else {"x": arrays}
    if not given:
        raise DataError("from_arrays got no arrays; give it for example {'x': X, 'y': Y}")
    made = {str(name): _checked(str(name), value) for name, value in given.items()}
    lengths = {name: len(array) for name, array in made.items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise DataError(f"the arrays differ in their number of rows ({said}); give all the same")
    return Dataset(tuple(made), tuple(made.values()))


def from_files(pattern: str | Sequence[str]) -> Dataset:
    """The rows of `.npz` and `.npy` files, one after the other: `nf.data.from_files("shard-*.npz")`.

    - `pattern`: a glob pattern, or a list of paths. Files that match come in the order of their names.

    An array of an npz file has its name there, that of an npy file is called `x`. One npy file is mapped, not read:
    pages come into memory as their rows are used; several files are joined in memory. Raises DataError when nothing
    matches, for files that cannot be read, and for names, shapes or dtypes that differ from file to file.
    """
    return from_arrays(read(pattern))


def zip(**datasets: Dataset) -> Dataset:
    """Rows side by side: `nf.data.zip(image=images, label=labels)`, from datasets without stages and of equal length.

    The only array of a dataset takes the dataset's name; of several, `image` of `left` becomes `left/image`. Raises
    DataError for datasets that were shuffled, batched or cut already: do that after zip.
    """
    if not datasets:
        raise DataError("zip got no datasets; give it for example image=images, label=labels")
    made: dict[str, Array] = {}
    for name, dataset in datasets.items():
        if dataset.stages or dataset.maps:
            raise DataError(f"zip takes datasets as from_arrays makes them, {name!r} is {dataset!r}; zip them first")
        for inner, array in builtins.zip(dataset.names, dataset.arrays, strict=True):
            made[name if len(dataset.names) == 1 else f"{name}/{inner}"] = array
    return from_arrays(made)


def _checked(name: str, value: Any) -> Array:
    array = np.asarray(value)
    if kind_of(array.dtype) not in KINDS:
        raise DataError(f"array {name!r} has dtype {array.dtype}: datasets hold numbers and booleans; encode it first")
    if array.ndim == 0:
        raise DataError(f"array {name!r} is a single number; a dataset needs rows")
    # A read-only view in native byte order and row-major, in which gathering rows is one copy each.
    view = np.ascontiguousarray(array, array.dtype.newbyteorder("=")).view()
    view.flags.writeable = False
    return view


def _positive(value: int, method: str, argument: str) -> None:
    if value < 1:
        raise DataError(f"{method}({argument}): {argument} is at least 1, got {value}")


def _named_seeds(stages: Stages, name: str) -> Stages:
    """Seeds left out become a text. All replicas of an iterator must draw alike, so it may not be their own names."""
    return tuple((*s[:2], name) if s[0] == "shuffle" and s[2] == "" else s for s in stages)


def _fingerprint(names: tuple[str, ...], arrays: tuple[Array, ...]) -> str:
    """A digest of the content: an iterator whose dataset changed under it starts anew."""
    mark = hashlib.blake2b(digest_size=16)
    for name, array in builtins.zip(names, arrays, strict=True):
        mark.update(f"{name}|{array.dtype.name}|{array.shape}|".encode())
        mark.update(array.reshape(-1).view(np.uint8).data)  # of bytes: numpy gives no buffer of bfloat16
    return mark.hexdigest()


def _mapped(fn: MapFunction, batch: Tensors) -> Tensors:
    made = fn(batch)
    if not isinstance(made, Mapping) or not all(isinstance(t, Tensor) for t in made.values()):
        raise DataError(f"the function given to map must return a dict of tensors, it returned {type(made).__name__}")
    return {str(name): tensor for name, tensor in made.items()}
