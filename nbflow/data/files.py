"""Files as a dataset's source: what `from_files` finds in them, and the stage that reads them."""

from __future__ import annotations

import glob
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nbflow.data import arrow, formats
from nbflow.data.blocks import Columns, length
from nbflow.data.stages import Epoch, Stage, State
from nbflow.errors import DataError
from nbflow.spec import TensorSpec, as_dtype

# What is read at once, whatever is asked for: large enough for any disk, small beside any memory.
_READ_BYTES = 8 << 20
_UNKNOWN_ROWS = -1


class Reader(Protocol):
    """One open file. `rows` is None when unknown."""

    rows: int | None

    def read(self, start: int, count: int) -> Columns | None: ...
    def close(self) -> None: ...


def find(pattern: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    """Absolute paths, sorted where `pattern` is one. Raises DataError when nothing matches."""
    if isinstance(pattern, (str, os.PathLike)):
        paths = sorted(glob.glob(os.path.expanduser(os.fspath(pattern))))
    else:
        paths = [os.path.expanduser(os.fspath(p)) for p in pattern]
    if not paths:
        raise DataError(f"no file matches {pattern!r} (from {Path.cwd()})")
    return [os.path.abspath(p) for p in paths]


def sources(paths: Sequence[str], columns: Sequence[str] | Mapping[str, Any] | None) -> list[tuple[Any, ...]]:
    """A source (see `describe.py`) for each file. Raises DataError for files that cannot be read or are not alike."""
    dtypes = {n: as_dtype(d) for n, d in columns.items() if d is not None} if isinstance(columns, Mapping) else {}
    each = [_described(path, None if columns is None else list(columns), dtypes) for path in paths]
    first = each[0][0]
    made = []
    for path, (parts, rows) in zip(paths, each, strict=True):
        if parts != first:
            raise DataError(f"{path} holds {_said(parts)}, but {paths[0]} holds {_said(first)}; files must be alike")
        count = -2 if rows is None else rows
        shapes, kinds = tuple(s.shape for s in first.values()), tuple(s.dtype for s in first.values())
        known = (_UNKNOWN_ROWS if rows is None else rows,)
        made.append(("files", (path,), tuple(first), shapes, kinds, count, known))
    return made


def joined(each: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    """One source that reads the files of several, one after the other."""
    first = each[0]
    rows = tuple(s[6][0] for s in each)
    count = -2 if _UNKNOWN_ROWS in rows else sum(rows)
    return ("files", tuple(s[1][0] for s in each), *first[2:5], count, rows)


def _described(
    path: str, columns: Sequence[str] | None, dtypes: Mapping[str, np.dtype[Any]]
) -> tuple[dict[str, TensorSpec], int | None]:
    suffix = Path(path).suffix.lower()
    if suffix in arrow.SUFFIXES:
        return arrow.described(path, columns, dtypes)
    if suffix not in formats.FORMATS:
        known = ", ".join([*formats.FORMATS, *arrow.SUFFIXES])
        raise DataError(f"{path}: files are {known}; read it yourself and give nf.data.from_arrays the arrays")
    found = formats.columns_of(path)
    missing = [n for n in columns or () if n not in found]
    if missing or not found:
        raise DataError(f"{path} has no array {missing[0] if missing else 'at all'!r}; it has {', '.join(found)}")
    chosen = {n: found[n] for n in columns or found}
    scalars = [n for n, c in chosen.items() if c.is_scalar]
    if scalars:
        raise DataError(f"array {scalars[0]!r} of {path} is a single number; a dataset needs rows")
    rows = {n: c.rows for n, c in chosen.items()}
    other = [n for n, d in dtypes.items() if d != chosen[n].dtype]
    if other:
        raise DataError(
            f"array {other[0]!r} of {path} is {chosen[other[0]].dtype}, not {dtypes[other[0]]}; columns of parquet and "
            "csv files are cast when they are read, arrays with .map"
        )
    if len(set(rows.values())) > 1:
        said = ", ".join(f"{n}: {count}" for n, count in rows.items())
        raise DataError(f"the arrays of {path} differ in their number of rows ({said}); choose with columns=[…]")
    return {n: TensorSpec(c.shape, c.dtype) for n, c in chosen.items()}, next(iter(rows.values()))


def _said(parts: dict[str, TensorSpec]) -> str:
    return ", ".join(f"{n}: {s}" for n, s in parts.items())


class Files(Stage):
    """The rows of files, one file after the other, never more than a few MB of one at once."""

    def __init__(
        self,
        paths: Sequence[str],
        names: Sequence[str],
        specs: Sequence[TensorSpec],
        rows: Sequence[int],
        report: Callable[[str, int, int], None],
    ) -> None:
        super().__init__()
        self._paths, self._names, self._specs, self._rows = paths, names, specs, rows
        self._report = report
        row_bytes = sum(s.dtype.itemsize * math.prod(d or 1 for d in s.shape or ()) for s in specs)
        self._most = max(1, _READ_BYTES // max(1, row_bytes))
        self._number = self._at = 0
        self._reader: Reader | None = None

    def restart(self, epoch: Epoch) -> None:
        self._close()
        self._number = self._at = 0

    def next(self, limit: int) -> Columns | None:
        while self._number < len(self._paths):
            reader = self._reader or self._open()
            block = reader.read(self._at, min(limit, self._most))
            if block is not None:
                self._at += length(block)
                name = os.path.basename(self._paths[self._number])
                self._report(f"reading rows of {name}", self._at, reader.rows or 0)
                return block
            self._close()
            self._number, self._at = self._number + 1, 0
        return None

    def _open(self) -> Reader:
        path = self._paths[self._number]
        if not os.path.exists(path):
            raise DataError(
                f"{path} is not on this machine: the worker that holds the iterator reads the files itself; "
                "put them where all workers find them, or feed the dataset through a queue with nf.feed"
            )
        made: Reader
        if Path(path).suffix.lower() in arrow.SUFFIXES:
            made = arrow.ArrowReader(path, self._names, self._specs)
        else:
            made = formats.ArrayReader(path, self._names)
        wanted = self._rows[self._number]
        if wanted not in (_UNKNOWN_ROWS, made.rows):
            made.close()
            raise DataError(f"{path} had {wanted} rows when the dataset was made, it has {made.rows}; make it anew")
        self._reader = made
        return made

    def _close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def save(self) -> State:
        return {"file": self._number, "row": self._at}

    def load(self, state: State) -> None:
        self._close()
        self._number, self._at = state["file"], state["row"]

    def close(self) -> None:
        self._close()
