"""The cases of ONNX's official suite: those that ship as files in the wheel of 1.20.0, and those that the installed
package makes in the process."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, OptionalProto, SequenceProto, TensorProto, TypeProto, numpy_helper

ROOT = Path(__file__).resolve().parent.parent.parent
WHEEL = "1.20.0"  # the last one whose node cases are files
FILES = ROOT / "test-output" / f"onnx-{WHEEL}"
HOW = f"run scripts/onnx-suite --fetch, which gets the wheel of onnx {WHEEL} into {FILES.relative_to(ROOT)}"
KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")


@dataclass(frozen=True)
class SuiteCase:
    """One case: a model and data sets, each inputs and the outputs to expect."""

    kind: str  # "files" kinds: node, simple, …; "in-process" for those of the installed package
    name: str
    folder: Path | None = None
    made: Any = None  # a TestCase of onnx
    rtol: float = 1e-3
    atol: float = 1e-7

    @property
    def id(self) -> str:
        return f"{self.kind}/{self.name}"

    def model(self) -> ModelProto:
        if self.folder is None:
            found: ModelProto = self.made.model
            return found
        return onnx.load(self.folder / "model.onnx")

    def data(self, model: ModelProto) -> Iterator[tuple[list[Any], list[Any]]]:
        if self.folder is None:
            for inputs, outputs in self.made.data_sets:
                yield [_plain(i) for i in inputs], [_plain(o) for o in outputs]
            return
        for folder in sorted(self.folder.glob("test_data_set_*")):
            weights = {t.name for t in model.graph.initializer}
            inputs = [i for i in model.graph.input if i.name not in weights]
            yield (
                _values(folder, "input", [i.type for i in inputs]),
                _values(folder, "output", [o.type for o in model.graph.output]),
            )


def _plain(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else value


def _values(folder: Path, what: str, types: list[TypeProto]) -> list[Any]:
    count = len(list(folder.glob(f"{what}_*.pb")))
    assert count == len(types), folder
    return [value_of((folder / f"{what}_{n}.pb").read_bytes(), kind) for n, kind in enumerate(types)]


def value_of(data: bytes, kind: TypeProto) -> Any:
    """An array, a list of arrays, or None, from the bytes of a file."""
    which = kind.WhichOneof("value")
    if which == "sequence_type":
        return numpy_helper.to_list(SequenceProto.FromString(data))
    if which == "optional_type":
        return numpy_helper.to_optional(OptionalProto.FromString(data))
    return numpy_helper.to_array(TensorProto.FromString(data))


def fetch() -> Path:
    """Downloads and unpacks the wheel unless that was done; returns the folder with the cases."""
    if not FILES.exists():
        into = FILES.parent
        into.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-q", "-d", str(into)]
        subprocess.run([*pip, f"onnx=={WHEEL}"], check=True, timeout=300)
        (wheel,) = into.glob(f"onnx-{WHEEL}-*.whl")
        partial = into / f"onnx-{WHEEL}.partial"
        with zipfile.ZipFile(wheel) as archive:
            wanted = [n for n in archive.namelist() if n.startswith("onnx/backend/test/data/")]
            archive.extractall(partial, wanted)
        os.replace(partial, FILES)
    return FILES / "onnx" / "backend" / "test" / "data"


def file_cases() -> list[SuiteCase]:
    """The cases of the wheel of 1.20.0, which must have been fetched."""
    data = FILES / "onnx" / "backend" / "test" / "data"
    return [
        SuiteCase(kind, folder.name, folder)
        for kind in KINDS
        for folder in sorted((data / kind).iterdir())
        if (folder / "model.onnx").exists()
    ]


@functools.cache
def in_process_cases() -> tuple[SuiteCase, ...]:
    """The node cases of the installed package."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = load_model_tests(kind="node")
    return tuple(
        SuiteCase("in-process", case.name, made=case, rtol=case.rtol, atol=case.atol)
        for case in sorted(found, key=lambda c: c.name)
    )
