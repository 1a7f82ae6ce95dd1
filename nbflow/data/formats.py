"""Files of arrays, read a run of rows at a time: npy, npz and safetensors.

What is in a file is known from its headers. Rows are read from where they stand, into memory of their own: a file may
be larger than memory, and than the address space. Only compressed members of an npz file have no such place; they are
unpacked from their beginning, which is what reading them in order does anyway.

The formats: numpy.lib.format 1.0 and 2.0; ZIP (PKWARE APPNOTE 6.3); safetensors (8 bytes of length, JSON, data).
"""

from __future__ import annotations

import io
import json
import math
import os
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from nbflow.data.blocks import Array, Columns
from nbflow.errors import DataError, DTypeError
from nbflow.spec import BFLOAT16, as_dtype

# A safetensors header of more than this is damage or an attack (the format's own limit).
_MAX_HEADER_BYTES = 100_000_000
_SKIP_BYTES = 1 << 20

_SAFETENSORS = {
    "BOOL": np.dtype(np.bool_),
    "BF16": BFLOAT16,
    **{f"F{b}": np.dtype(f"float{b}") for b in (16, 32, 64)},
    **{f"I{b}": np.dtype(f"int{b}") for b in (8, 16, 32, 64)},
    **{f"U{b}": np.dtype(f"uint{b}") for b in (8, 16, 32, 64)},
}


class Column(Protocol):
    """One array of a file. `dtype` is native; `rows` counts along the first axis."""

    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def rows(self) -> int: ...
    @property
    def is_scalar(self) -> bool: ...
    def read(self, file: IO[bytes], start: int, stop: int) -> Array:
        """Rows `start` … `stop - 1`, from the file opened unbuffered."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class PlacedColumn:
    """An array that stands at `offset`, in row-major order. `stored` is its dtype there, of any byte order."""

    offset: int
    stored: np.dtype[Any]
    whole: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        return as_dtype(self.stored)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.whole[1:]

    @property
    def rows(self) -> int:
        return self.whole[0] if self.whole else 1

    @property
    def is_scalar(self) -> bool:
        return not self.whole

    def read(self, file: IO[bytes], start: int, stop: int) -> Array:
        made = np.empty((stop - start, *self.shape), self.stored)
        view = made.reshape(-1).view(np.uint8).data
        file.seek(self.offset + start * math.prod(self.shape) * self.stored.itemsize)
        _read_into(file, view)
        return made.astype(self.dtype, copy=False)

    def close(self) -> None:
        """Nothing is kept."""


class PackedColumn:
    """A compressed member of an npz file. Reading goes forward; reading back starts anew."""

    def __init__(self, path: str, member: str, stored: np.dtype[Any], whole: tuple[int, ...]) -> None:
        self._path, self._member = path, member
        self._stored, self._whole = stored, whole
        self._archive: zipfile.ZipFile | None = None
        self._stream: IO[bytes] | None = None
        self._at = 0

    @property
    def dtype(self) -> np.dtype[Any]:
        return as_dtype(self._stored)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._whole[1:]

    @property
    def rows(self) -> int:
        return self._whole[0] if self._whole else 1

    @property
    def is_scalar(self) -> bool:
        return not self._whole

    def read(self, file: IO[bytes], start: int, stop: int) -> Array:
        row_bytes = math.prod(self.shape) * self._stored.itemsize
        if self._stream is None or start < self._at:
            self.close()
            self._archive = zipfile.ZipFile(self._path)
            self._stream = self._archive.open(self._member)
            _npy_header(self._stream)
            self._at = 0
        missing = (start - self._at) * row_bytes
        while missing:
            skipped = len(self._stream.read(min(missing, _SKIP_BYTES)))
            if not skipped:
                raise EOFError("the data end early")
            missing -= skipped
        made = np.empty((stop - start, *self.shape), self._stored)
        _read_into(self._stream, made.reshape(-1).view(np.uint8).data)
        self._at = stop
        return made.astype(self.dtype, copy=False)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        if self._archive is not None:
            self._archive.close()
        self._stream = self._archive = None


def _read_into(file: IO[bytes], view: memoryview) -> None:
    done = 0
    while done < len(view):
        data = file.read(min(len(view) - done, 1 << 24))
        if not data:
            raise EOFError(f"the data end early: {len(view) - done} bytes are missing")
        view[done : done + len(data)] = data
        done += len(data)


# --- what is in a file -----------------------------------------------------------------------------------------------


def _npy_header(file: IO[bytes]) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """dtype and shape; the file is then at the data."""
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"it is of version {version} of the npy format; 1.0 and 2.0 are read")
    shape, fortran, dtype = readers[version](file)
    if fortran and len(shape) > 1:
        raise ValueError("its array is in column-major order, in which a row has no place; save it with order='C'")
    return dtype, shape


def _npy(path: str) -> dict[str, Column]:
    with open(path, "rb") as file:
        dtype, shape = _npy_header(file)
        return {"x": PlacedColumn(file.tell(), dtype, shape)}


def _npz(path: str) -> dict[str, Column]:
    found: dict[str, Column] = {}
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            with archive.open(info) as member:
                dtype, shape = _npy_header(member)
                header_bytes = member.tell()
            if info.compress_type != zipfile.ZIP_STORED:
                found[name] = PackedColumn(path, info.filename, dtype, shape)
                continue
            # The local header repeats the name, with an extra field of a length of its own.
            file.seek(info.header_offset + 26)
            name_bytes, extra_bytes = struct.unpack("<HH", file.read(4))
            start = info.header_offset + 30 + name_bytes + extra_bytes
            found[name] = PlacedColumn(start + header_bytes, dtype, shape)
    return found


def _safetensors(path: str) -> dict[str, Column]:
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        (header_bytes,) = struct.unpack("<Q", file.read(8))
        if header_bytes > min(_MAX_HEADER_BYTES, size - 8):
            raise ValueError("its header reaches beyond its end")
        header = json.loads(file.read(header_bytes))
    found: dict[str, Column] = {}
    for name, entry in sorted(header.items()):
        if name == "__metadata__":
            continue
        dtype = _SAFETENSORS.get(entry["dtype"])
        if dtype is None:
            raise ValueError(f"its tensor {name!r} is {entry['dtype']}, which no device computes with")
        shape = tuple(entry["shape"])
        start, stop = entry["data_offsets"]
        if stop - start != math.prod(shape) * dtype.itemsize or not 0 <= start <= stop <= size - 8 - header_bytes:
            raise ValueError(f"its tensor {name!r} does not fit its place")
        found[name] = PlacedColumn(8 + header_bytes + start, dtype.newbyteorder("<"), shape)
    return found


FORMATS: dict[str, Callable[[str], dict[str, Column]]] = {".npy": _npy, ".npz": _npz, ".safetensors": _safetensors}


def columns_of(path: str) -> dict[str, Column]:
    """The arrays of a file, by name. Raises DataError for one that cannot be read or has arrays of different length."""
    try:
        found = FORMATS[Path(path).suffix.lower()](path)
        for column in found.values():
            as_dtype(column.dtype)
    except DTypeError as error:
        raise DataError(f"{path} cannot be read: {error.message}") from error
    except (OSError, ValueError, EOFError, KeyError, TypeError, struct.error, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return found


class ArrayReader:
    """Rows of some columns of one file."""

    def __init__(self, path: str, names: Sequence[str]) -> None:
        self._path = path
        columns = columns_of(path)
        missing = [n for n in names if n not in columns]
        if missing:
            raise DataError(f"{path} has no array {missing[0]!r} any more")
        self._columns: Mapping[str, Column] = {n: columns[n] for n in names}
        self._file = io.FileIO(path)
        self.rows: int | None = min(c.rows for c in self._columns.values())

    def read(self, start: int, count: int) -> Columns | None:
        """At most `count` rows from `start` on; None at the end. Raises DataError for damage."""
        assert self.rows is not None
        stop = min(start + count, self.rows)
        if stop <= start:
            return None
        try:
            return tuple(c.read(self._file, start, stop) for c in self._columns.values())
        except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
            raise DataError(f"{self._path} cannot be read at row {start}: {error}") from error

    def close(self) -> None:
        self._file.close()
        for column in self._columns.values():
            column.close()
