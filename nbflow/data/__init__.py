"""`nf.data`: datasets whose iterators are ops.

    batch = nf.data.from_arrays({"x": X, "y": Y}).shuffle(10_000, seed=0).repeat().batch(128).prefetch(2).next()

Reading order, which is the order in which elements pass:

    describe dataset program     what users build: a tree of tuples, methods that extend it, functions as graphs
    files formats arrow generate where elements come from, beside arrays
    build stages combine apply caching   the tree as stages that pull from each other, on the worker
    blocks                       what passes between them: runs of elements as arrays
    iterator snapshot state      the running dataset, where it stands as bytes, and the ops for that
    queues specs                 queues as ops; what people say an element is
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nbflow.data.blocks import Array
from nbflow.data.dataset import Dataset, together
from nbflow.data.describe import UNKNOWN, count
from nbflow.data.files import find, joined, sources
from nbflow.data.generate import GeneratorFunction, GeneratorKey
from nbflow.data.specs import described
from nbflow.data.state import position, restore_state, save_state
from nbflow.errors import DataError
from nbflow.spec import KINDS, kind_of

__all__ = [
    "Dataset",
    "concatenate",
    "from_arrays",
    "from_files",
    "from_generator",
    "interleave",
    "position",
    "restore_state",
    "save_state",
    "zip",
]


def from_arrays(arrays: Mapping[str, Any] | Any) -> Dataset:
    """A dataset of the rows of arrays of equal length, by name; a single array is called `x`.

    The arrays are not copied: leave them as they are afterwards. They move to a worker once, however many graphs use
    them. Raises DataError for lengths that differ, scalars, and anything but numbers and booleans.
    """
    given = dict(arrays) if isinstance(arrays, Mapping) else {"x": arrays}
    if not given:
        raise DataError("from_arrays got no arrays; give it for example {'x': X, 'y': Y}")
    made = {str(name): _checked(str(name), value) for name, value in given.items()}
    lengths = {name: len(array) for name, array in made.items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise DataError(f"the arrays differ in their number of rows ({said}); give all the same")
    return Dataset(("arrays", tuple(made), tuple(made.values())))


def from_files(
    pattern: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    columns: Sequence[str] | Mapping[str, Any] | None = None,
    interleave: int = 1,
) -> Dataset:
    """The rows of files, one file after the other: `nf.data.from_files("shard-*.npz")`.

    - `pattern`: a glob pattern, in the order of the names, or a list of paths. Files are npy, npz, safetensors, or,
      with pyarrow, parquet and csv, told by their suffix.
    - `columns`: which arrays or columns, all when None; for parquet and csv also name -> the dtype to read it as (a
      csv file says nothing of its types). The only array of an npy file is called `x`.
    - `interleave`: read from as many files in turn, a row of each.

    The worker that holds the iterator reads the files, a few MB at a time, from the same absolute paths: a dataset may
    be larger than memory. Raises DataError when nothing matches, for files that cannot be read, and for names, shapes
    or dtypes that differ from file to file.
    """
    if interleave < 1:
        raise DataError(f"from_files(interleave): at least 1 file at a time, got {interleave}")
    each = sources(find(pattern), columns)
    if interleave == 1 or len(each) == 1:
        return Dataset(joined(each))
    return Dataset(("interleave", tuple(each), int(interleave), 1))


def from_generator(fn: GeneratorFunction, spec: Any) -> Dataset:
    """What the iterator that `fn()` returns gives: dicts of arrays, or arrays where `spec` is one.

    - `spec`: of an element: a dict of `TensorSpec`s or (dtype, shape); or one, whose component is then called `x`.
      A dimension that varies is None.

    `fn` is called once an epoch. It runs in this process: on workers elsewhere its elements arrive through a queue
    (`nf.feed`), since code does not travel. Continuing from a saved place calls it again and leaves out what was read.
    Raises DataError, when it is read, for elements that are not what `spec` says.
    """
    if not callable(fn):
        raise DataError(f"from_generator takes a function that returns an iterator, not {type(fn).__name__}")
    names, specs, structure = described(spec, "generator")
    if structure is tuple:
        raise DataError("the components of a generator have names; give it a dict of specs")
    shapes, dtypes = tuple(s.shape for s in specs), tuple(s.dtype for s in specs)
    known = names if structure is dict else ("x",)
    return Dataset(("generator", GeneratorKey.of(fn), known, shapes, dtypes, UNKNOWN))


def zip(**datasets: Dataset) -> Dataset:
    """Elements side by side: `nf.data.zip(image=images, label=labels)`, as long as the shortest.

    The only component of a dataset takes the dataset's name; of several, `image` of `left` becomes `left/image`.
    Raises DataError when datasets without stages differ in their number of rows: mostly that is a mistake.
    """
    if not datasets:
        raise DataError("zip got no datasets; give it for example image=images, label=labels")
    rows = {name: count(d.tree) for name, d in datasets.items() if d.tree[0] == "arrays"}
    if len(set(rows.values())) > 1:
        said = ", ".join(f"{name}: {number}" for name, number in rows.items())
        raise DataError(f"the arrays differ in their number of rows ({said}); take(n) of the longer one is allowed")
    return together(tuple(datasets.values()), "zip", tuple(datasets))


def concatenate(*datasets: Dataset) -> Dataset:
    """One dataset after the other. Raises DataError when their components differ in name or dtype."""
    return together(datasets, "concatenate")


def interleave(datasets: Sequence[Dataset], cycle: int = 2, block: int = 1) -> Dataset:
    """`cycle` datasets at a time, `block` elements of each in turn; the next follows when one ends.

    Raises DataError when their components differ in name or dtype.
    """
    if cycle < 1 or block < 1:
        raise DataError(f"interleave(cycle, block): both are at least 1, got {cycle} and {block}")
    return together(tuple(datasets), "interleave", int(cycle), int(block))


def _checked(name: str, value: Any) -> Array:
    array = np.asarray(value)
    if kind_of(array.dtype) not in KINDS:
        raise DataError(f"array {name!r} has dtype {array.dtype}: datasets hold numbers and booleans; encode it first")
    if array.ndim == 0:
        raise DataError(f"array {name!r} is a single number; a dataset needs rows")
    # A read-only view in native byte order and row-major, in which gathering rows is one copy each.
    native = array.dtype if array.dtype.isnative else array.dtype.newbyteorder("=")
    view = np.ascontiguousarray(array, native).view()
    view.flags.writeable = False
    return view
