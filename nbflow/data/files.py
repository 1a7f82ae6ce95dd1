"""Arrays from `.npz` and `.npy` files for `nf.data.from_files`."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nbflow.errors import DataError

Array = np.ndarray[Any, np.dtype[Any]]


def read(pattern: str | Sequence[str]) -> dict[str, Array]:
    """The arrays of all files, joined along their rows. Raises DataError as `from_files` says."""
    paths = sorted(glob.glob(pattern)) if isinstance(pattern, str) else [str(p) for p in pattern]
    if not paths:
        raise DataError(f"no file matches {pattern!r} (from {Path.cwd()})")
    parts = [_arrays(path) for path in paths]
    first = parts[0]
    for path, part in zip(paths[1:], parts[1:], strict=True):
        if _kinds(part) != _kinds(first):
            raise DataError(f"{path} holds {_kinds(part)}, but {paths[0]} holds {_kinds(first)}; files must be alike")
    if len(parts) == 1:
        return first
    return {name: np.concatenate([part[name] for part in parts]) for name in first}


def _arrays(path: str) -> dict[str, Array]:
    suffix = Path(path).suffix
    if suffix not in (".npz", ".npy"):
        raise DataError(f"{path} is no .npz or .npy file; read it yourself and give nf.data.from_arrays the arrays")
    try:
        if suffix == ".npy":
            found = {"x": np.load(path, mmap_mode="r", allow_pickle=False)}
        else:
            with np.load(path, allow_pickle=False) as archive:
                found = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    for name, array in found.items():
        if array.ndim == 0:
            raise DataError(f"array {name!r} of {path} is a single number; a dataset needs rows")
    return found


def _kinds(arrays: dict[str, Array]) -> dict[str, str]:
    return {name: f"{a.dtype.name}{list(a.shape[1:])}" for name, a in sorted(arrays.items())}
