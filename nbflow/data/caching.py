"""Elements kept after the first time: in memory, or in files that a later session finds again."""

from __future__ import annotations

import bisect
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from nbflow.data import blocks
from nbflow.data.blocks import OBJECT, Columns
from nbflow.data.stages import Epoch, Stage, State, values
from nbflow.errors import DataError
from nbflow.spec import as_dtype

# Elements that are asked for at once where they are only stored.
_BLOCK = 1 << 12
_VERSION = 1


class Store(Protocol):
    """Elements in the order in which they came. `complete`: there will be no more."""

    count: int
    complete: bool

    def add(self, block: Columns) -> None: ...
    def read(self, start: int, stop: int) -> Columns:
        """One or more elements from `start` on, none beyond `stop`."""
        ...

    def finish(self) -> None: ...
    def close(self) -> None: ...


class MemoryStore:
    """Elements in memory: as they came until all are there, then in one piece."""

    def __init__(self) -> None:
        self.count = 0
        self.complete = False
        self._blocks: list[Columns] = []
        self._starts: list[int] = []

    def add(self, block: Columns) -> None:
        self._blocks.append(block)
        self._starts.append(self.count)
        self.count += blocks.length(block)

    def read(self, start: int, stop: int) -> Columns:
        number = bisect.bisect_right(self._starts, start) - 1
        first = self._starts[number]
        return blocks.cut(self._blocks[number], start - first, stop - first)

    def finish(self) -> None:
        self.complete = True
        if len(self._blocks) > 1:
            self._blocks, self._starts = [blocks.join(self._blocks)], [0]

    def close(self) -> None:
        self._blocks = []


class FileStore:
    """Elements in a folder: `meta.json`, and one file a component with its rows, little-endian.

    They are written into a folder of their own beside it, which takes its name when all are there: a folder of that
    name is always whole. Raises DataError for the folder of another dataset.
    """

    def __init__(self, path: str, names: Sequence[str], fingerprint: str) -> None:
        self._path = path
        self._names = list(names)
        self._fingerprint = fingerprint
        self._files: list[BinaryIO] = []
        self._folder = ""  # while it is written
        self._layout: list[tuple[np.dtype, tuple[int, ...]]] = []
        self.count = 0
        self.complete = False
        if os.path.isdir(path):
            self._open()

    def _open(self) -> None:
        try:
            meta = json.loads(Path(self._path, "meta.json").read_text())
            if meta["version"] != _VERSION or meta["fingerprint"] != self._fingerprint:
                raise DataError(
                    f"{self._path} holds the elements of another dataset; delete it, or cache into another folder"
                )
            self._layout = [(as_dtype(d), tuple(s)) for d, s in meta["columns"]]
            self.count = meta["count"]
            self._files = [io.BufferedReader(io.FileIO(f"{self._path}/{i}.bin")) for i in range(len(self._layout))]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{self._path} is no cache of a dataset: {error}; delete it") from error
        self.complete = True

    def add(self, block: Columns) -> None:
        if not self._folder:
            self._begin(block)
        layout = [(c.dtype, c.shape[1:]) for c in block]
        if layout != self._layout or any(c.dtype == OBJECT for c in block):
            raise DataError("elements that differ in shape cannot be cached in files; use .cache() in memory")
        for file, column in zip(self._files, block, strict=True):
            file.write(column.astype(column.dtype.newbyteorder("<"), copy=False).tobytes())
        self.count += blocks.length(block)

    def _begin(self, block: Columns) -> None:
        parent = os.path.dirname(os.path.abspath(self._path))
        os.makedirs(parent, exist_ok=True)
        self._folder = tempfile.mkdtemp(prefix=f".{os.path.basename(self._path)}.", dir=parent)
        self._layout = [(c.dtype, c.shape[1:]) for c in block]
        self._files = [io.BufferedRandom(io.FileIO(f"{self._folder}/{i}.bin", "w+")) for i in range(len(block))]

    def read(self, start: int, stop: int) -> Columns:
        made = []
        for file, (dtype, shape) in zip(self._files, self._layout, strict=True):
            row = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            here = file.tell()
            file.seek(start * row)
            data = file.read((stop - start) * row)
            file.seek(here)
            if len(data) != (stop - start) * row:
                raise DataError(f"{self._path} is cut short; delete it")
            flat = np.frombuffer(data, dtype if dtype.itemsize == 1 else dtype.newbyteorder("<"))
            made.append(flat.astype(dtype).reshape(stop - start, *shape))
        return tuple(made)

    def finish(self) -> None:
        self.complete = True
        if not self._folder:
            return  # there was no element
        for file in self._files:
            file.flush()
        columns = [[d.name, list(s)] for d, s in self._layout]
        meta = {"version": _VERSION, "fingerprint": self._fingerprint, "count": self.count, "columns": columns}
        Path(self._folder, "meta.json").write_text(json.dumps(meta))
        try:
            os.rename(self._folder, self._path)
        except OSError:
            # Another process was first, with the same elements; what is open here stays readable.
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = ""

    def close(self) -> None:
        for file in self._files:
            file.close()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = ""


class Cache(Stage):
    """Its child once, then the same elements again. Where it stands is how many of them were kept and handed out;
    continuing reads the child anew that far."""

    def __init__(self, child: Stage, make: Callable[[], Store], report: Callable[[str, int, int], None]) -> None:
        super().__init__(values(child))
        self._store = make()
        self._report = report
        self._begun = False
        self._at = 0

    def restart(self, epoch: Epoch) -> None:
        self._at = 0
        if not self._begun:
            # Always as its first epoch: what is kept must not depend on when it was kept.
            self._begun = True
            self.children[0].restart(())

    def next(self, limit: int) -> Columns | None:
        if self._at >= self._store.count and not self._pull(limit):
            return None
        block = self._store.read(self._at, min(self._at + limit, self._store.count))
        self._at += blocks.length(block)
        return block

    def _pull(self, limit: int) -> bool:
        """Keeps up to `limit` more elements; False when there are no more."""
        block = None if self._store.complete else self.children[0].next(limit)
        if block is None:
            if not self._store.complete:
                self._store.finish()
            return False
        self._store.add(block)
        self._report("filling a cache", self._store.count, 0)
        return True

    def save(self) -> State:
        return {"at": self._at, "kept": self._store.count}

    def load(self, state: State) -> None:
        self.restart(())
        while self._store.count < state["kept"] and self._pull(min(_BLOCK, state["kept"] - self._store.count)):
            """Kept."""
        self._at = state["at"]

    def close(self) -> None:
        self._store.close()
        super().close()
