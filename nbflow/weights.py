"""Arrays on disk: safetensors shards and a manifest in one folder, which a crash at any moment leaves readable.

A shard is a safetensors file (https://huggingface.co/docs/safetensors, "Format"): eight bytes with the length of a JSON
header, the header, then the bytes of all tensors. Its SHA-256 is worked out while it is written. The manifest names the
shards, so that the folder changes in one moment: shards are written under fresh names, made durable, and only then is
the manifest replaced. What the old manifest named is removed after that.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nbflow.errors import CheckpointError
from nbflow.spec import BFLOAT16, format_shape

Array = np.ndarray[Any, np.dtype[Any]]

MANIFEST = "manifest.json"
SUFFIX = ".safetensors"
# Large enough that a model is a handful of files, small enough to hold one in memory beside the model.
SHARD_BYTES = 1_000_000_000
# The format's own limit for a header.
_MAX_HEADER_BYTES = 100_000_000
_METADATA = "__metadata__"
_MAX_RANK = 64
_READ_BYTES = 1 << 20
# A shard that no manifest names was left by a crash, or belongs to somebody who is writing right now: for an hour.
_ORPHAN_S = 3600.0

_KINDS = {
    "BOOL": np.dtype(np.bool_),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "I16": np.dtype(np.int16),
    "U16": np.dtype(np.uint16),
    "I32": np.dtype(np.int32),
    "U32": np.dtype(np.uint32),
    "I64": np.dtype(np.int64),
    "U64": np.dtype(np.uint64),
    "F16": np.dtype(np.float16),
    "BF16": BFLOAT16,
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "C64": np.dtype(np.complex64),
}
_CODES = {dtype: code for code, dtype in _KINDS.items()}
_DTYPES = {dtype.name: dtype for dtype in (*_CODES, np.dtype(np.complex128))}


# --- one file --------------------------------------------------------------------------------------------------------


def write_shard(path: Path, arrays: Mapping[str, Array]) -> tuple[str, int]:
    """Writes a safetensors file that must not exist yet, durably; its SHA-256 (hex) and its size in bytes.

    complex128, which the format has not, becomes float64 with a last dimension of 2. Raises CheckpointError for a dtype
    that cannot be written.
    """
    if _METADATA in arrays:
        raise CheckpointError(f"no tensor can be called {_METADATA!r}: safetensors files use the name for themselves")
    # Wide elements first: then every tensor is aligned to its element's size, and can be used where it lies.
    stored = {name: _storable(name, value) for name, value in arrays.items()}
    ordered = sorted(stored.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    header: dict[str, Any] = {}
    end = 0
    for name, value in ordered:
        header[name] = {
            "dtype": _CODES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [end, end + value.nbytes],
        }
        end += value.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    mark = hashlib.sha256()
    with path.open("xb") as file:
        head: tuple[bytes | memoryview, ...] = (len(text).to_bytes(8, "little"), text)
        for piece in itertools.chain(head, (_raw(value) for _, value in ordered)):
            mark.update(piece)
            file.write(piece)
        file.flush()
        _make_durable(file.fileno())
    return mark.hexdigest(), 8 + len(text) + end


def _storable(name: str, value: Array) -> Array:
    if value.dtype == np.complex128:
        value = np.ascontiguousarray(value).reshape(value.shape)[..., None].view(np.float64)
    if value.dtype not in _CODES:
        raise CheckpointError(f"{name!r} is {value.dtype}, which cannot be saved; saved are {', '.join(_DTYPES)}")
    return value


def _raw(value: Array) -> memoryview:
    flat = np.ascontiguousarray(value).reshape(-1)
    if sys.byteorder == "big":
        flat = flat.byteswap()
    return flat.view(np.uint8).data


def _make_durable(descriptor: int) -> None:
    os.fsync(descriptor)


def _make_folder_durable(folder: Path) -> None:
    if os.name != "posix":
        return  # elsewhere a folder cannot be opened, and its entries are durable with the file
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _make_durable(descriptor)
    finally:
        os.close(descriptor)


def read_shard(path: Path) -> dict[str, Array]:
    """The tensors of a safetensors file, as read-only arrays over the mapped file.

    Raises CheckpointError for a file that is none, or is damaged as far as its header shows.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(_MAX_HEADER_BYTES, size - 8):
                raise CheckpointError(f"{path} is damaged: it is no safetensors file, or was cut off")
            header = json.loads(file.read(length))
        data = np.memmap(path, np.uint8, "r", offset=8 + length) if size > 8 + length else np.empty(0, np.uint8)
        return {name: _tensor(entry, data, f"{path}: {name!r}") for name, entry in header.items() if name != _METADATA}
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: its header does not make sense ({error})") from error


def _tensor(entry: Mapping[str, Any], data: Array, what: str) -> Array:
    dtype = _KINDS[entry["dtype"]]
    shape = tuple(int(d) for d in entry["shape"])
    begin, end = (int(offset) for offset in entry["data_offsets"])
    fits = len(shape) <= _MAX_RANK and all(d >= 0 for d in shape) and 0 <= begin <= end <= data.nbytes
    if not fits or math.prod(shape) * dtype.itemsize != end - begin:
        raise CheckpointError(f"{what} is damaged: {dtype}{format_shape(shape)} does not fit its {end - begin} bytes")
    found = np.asarray(data)[begin:end].view(dtype).reshape(shape)
    return found.byteswap() if sys.byteorder == "big" else found


# --- a folder --------------------------------------------------------------------------------------------------------


class FolderWriter:
    """Writes shards into `folder`, then a manifest that names them; until `commit` the folder is what it was.

    With `with`: what was written is removed again when the block does not reach `commit`.
    """

    def __init__(self, folder: Path, stem: str) -> None:
        self.folder = folder
        self._stem = f"{stem}-{uuid.uuid4().hex[:8]}"
        self._shards: list[dict[str, Any]] = []
        self._table: dict[str, dict[str, Any]] = {}
        self._committed = False
        try:
            self._is_new = not folder.exists()
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"{folder} cannot be written: {error.strerror or error}") from error

    def add(self, arrays: Mapping[str, Array]) -> None:
        """One more shard. Raises CheckpointError when it cannot be written (the disk is full, say)."""
        name = f"{self._stem}-{len(self._shards) + 1:05d}{SUFFIX}"
        self._shards.append({"file": name})
        try:
            digest, size = write_shard(self.folder / name, arrays)
        except OSError as error:
            raise CheckpointError(f"{self.folder / name} cannot be written: {error.strerror or error}") from error
        self._shards[-1].update(sha256=digest, bytes=size)
        for tensor, value in arrays.items():
            self._table[tensor] = {"dtype": value.dtype.name, "shape": list(value.shape), "file": name}

    def add_file(self, name: str, data: bytes) -> dict[str, Any]:
        """One more file, under a fresh name that ends in `name`; what the manifest should say of it."""
        entry: dict[str, Any] = {
            "file": f"{self._stem}-{name}",
            "sha256": hashlib.sha256(data).hexdigest(),
            "bytes": len(data),
        }
        self._shards.append(entry)
        self._write(self.folder / entry["file"], data, "xb")
        return entry

    def commit(self, manifest: Mapping[str, Any]) -> None:
        """Makes what was written the content of the folder. `manifest`: what else it should say, as JSON values."""
        before = _named_files(self.folder)
        whole = {**manifest, "tensors": self._table, "files": self._shards}
        whole["sha256"] = _manifest_digest(whole)
        aside = self.folder / f"{self._stem}-{MANIFEST}"
        try:
            self._write(aside, json.dumps(whole, indent=1, ensure_ascii=False).encode(), "xb")
            _make_folder_durable(self.folder)  # the shards' names, before anything names them
            aside.replace(self.folder / MANIFEST)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        self._committed = True
        _make_folder_durable(self.folder)
        if self._is_new:
            _make_folder_durable(self.folder.parent)
        self._clean(before)

    def _write(self, path: Path, data: bytes, mode: str) -> None:
        try:
            with path.open(mode) as file:
                file.write(data)
                file.flush()
                _make_durable(file.fileno())
        except OSError as error:
            raise CheckpointError(f"{path} cannot be written: {error.strerror or error}") from error

    def _clean(self, before: set[str]) -> None:
        mine = {entry["file"] for entry in self._shards}
        old = time.time() - _ORPHAN_S
        orphans = {path.name for path in self.folder.glob(f"{self._stem.split('-')[0]}-*") if _modified(path) < old}
        for name in (before | orphans) - mine:
            (self.folder / name).unlink(missing_ok=True)

    def __enter__(self) -> FolderWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        if not self._committed:
            for entry in self._shards:
                (self.folder / entry["file"]).unlink(missing_ok=True)
            if self._is_new:
                with contextlib.suppress(OSError):  # somebody else writes there too
                    self.folder.rmdir()


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # somebody else cleaned up first
        return time.time()


def _named_files(folder: Path) -> set[str]:
    try:
        return {str(entry["file"]) for entry in Folder(folder).files}
    except CheckpointError:
        return set()  # nothing there yet, or not ours to clean up


def _manifest_digest(manifest: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a folder: what the manifest says of it."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    file: str

    def __str__(self) -> str:
        return f"{self.dtype.name} {format_shape(self.shape)}"


class Folder:
    """A folder as its manifest describes it. Raises CheckpointError when there is none, or it is damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            text = (path / MANIFEST).read_bytes()
        except FileNotFoundError:
            raise CheckpointError(f"{path} holds nothing that was saved: it has no {MANIFEST}") from None
        except OSError as error:
            raise CheckpointError(f"{path / MANIFEST} cannot be read: {error.strerror or error}") from error
        try:
            self.manifest: dict[str, Any] = json.loads(text)
            if self.manifest["sha256"] != _manifest_digest(self.manifest):
                raise CheckpointError(f"{path / MANIFEST} is damaged: its digest does not fit")
            self.files: list[dict[str, Any]] = [_checked_file(entry) for entry in self.manifest["files"]]
            self.tensors = {name: _checked_entry(entry) for name, entry in self.manifest["tensors"].items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{path / MANIFEST} is damaged: {type(error).__name__}: {error}") from error

    def expect(self, kind: str, version: int) -> None:
        """Raises CheckpointError unless the folder is of format `kind`, in a version up to `version`."""
        found, number = self.manifest.get("format"), self.manifest.get("version")
        if found != kind:
            raise CheckpointError(f"{self.path} is of format {found!r}, not {kind!r}")
        if not isinstance(number, int) or number > version:
            writer = self.manifest.get("nbflow", "unknown")
            raise CheckpointError(
                f"{self.path} was written by nbflow {writer} in version {number} of its format; this nbflow reads up "
                f"to version {version}: upgrade nbflow"
            )

    def verify(self, name: str) -> Path:
        """The path of one of the files, whose digest was compared. Raises CheckpointError for a damaged one."""
        entry = next((e for e in self.files if e["file"] == name), None)
        if entry is None:
            raise CheckpointError(f"{self.path / MANIFEST} is damaged: it has no file {name!r}")
        path = self.path / name
        mark = hashlib.sha256()
        try:
            with path.open("rb") as file:
                while piece := file.read(_READ_BYTES):
                    mark.update(piece)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
        if mark.hexdigest() != entry["sha256"]:
            raise CheckpointError(f"{path} is damaged: it has another SHA-256 than when it was written")
        return path

    def read(self, names: Iterable[str] | None = None) -> Iterator[dict[str, Array]]:
        """The tensors `names` (all when left out), file by file, as read-only arrays; every file is verified first."""
        wanted: dict[str, list[str]] = {}
        for name in self.tensors if names is None else names:
            wanted.setdefault(self.tensors[name].file, []).append(name)
        for file, members in sorted(wanted.items()):
            found = read_shard(self.verify(file))
            yield {name: self._as_announced(name, found) for name in members}

    def _as_announced(self, name: str, found: Mapping[str, Array]) -> Array:
        stored = self.tensors[name]
        value = found.get(name)
        if value is not None and stored.dtype == np.complex128 and value.dtype == np.float64:
            value = value.view(np.complex128).reshape(value.shape[:-1])
        if value is None or value.dtype != stored.dtype or value.shape != stored.shape:
            got = "nothing" if value is None else f"{value.dtype.name} {format_shape(value.shape)}"
            raise CheckpointError(f"{self.path / stored.file} holds {got} for {name!r}, the manifest says {stored}")
        return value


def _checked_file(entry: Mapping[str, Any]) -> dict[str, Any]:
    name = entry["file"]
    if not isinstance(name, str) or not name or "/" in name or "\\" in name or name.startswith("."):
        raise ValueError(f"not the name of a file beside it: {name!r}")
    return {"file": name, "sha256": str(entry["sha256"]), "bytes": int(entry["bytes"])}


def _checked_entry(entry: Mapping[str, Any]) -> Stored:
    return Stored(_DTYPES[entry["dtype"]], tuple(int(d) for d in entry["shape"]), str(entry["file"]))


def in_shards(sizes: Mapping[str, int], limit: int = SHARD_BYTES) -> list[list[str]]:
    """Names in groups of at most `limit` bytes (one name may exceed it alone), in the order given. `sizes`: bytes."""
    groups: list[list[str]] = []
    left = 0
    for name, size in sizes.items():
        if not groups or size > left:
            groups.append([])
            left = limit
        groups[-1].append(name)
        left -= size
    return groups
