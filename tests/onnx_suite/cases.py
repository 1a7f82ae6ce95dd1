"""The cases of ONNX's official suite: those that ship as files in the wheel of 1.20.0, and those that the installed
package makes in the process."""

from __future__ import annotations

import functools
import json
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

    kind: str  # node, simple, …: files of the wheel; in-process, light: those of the installed package
    name: str
    folder: Path | None = None
    made: Any = None  # a TestCase of onnx
    light: Path | None = None  # a model without weights
    rtol: float = 1e-3
    atol: float = 1e-7

    @property
    def id(self) -> str:
        return f"{self.kind}/{self.name}"

    def model(self) -> ModelProto:
        if self.made is not None:
            found: ModelProto = self.made.model
            return found
        return onnx.load(self.light or self._in("model.onnx"))

    def data(self, model: ModelProto) -> Iterator[tuple[list[Any], list[Any]]]:
        if self.light is not None:
            yield _light_data(self.light, model)
            return
        if self.made is not None:
            for inputs, outputs in self.made.data_sets:
                yield [_plain(i) for i in inputs], [_plain(o) for o in outputs]
            return
        for folder in sorted(self._in().glob("test_data_set_*")):
            weights = {t.name for t in model.graph.initializer}
            inputs = [i for i in model.graph.input if i.name not in weights]
            yield (
                _values(folder, "input", [i.type for i in inputs]),
                _values(folder, "output", [o.type for o in model.graph.output]),
            )

    def _in(self, *parts: str) -> Path:
        assert self.folder is not None, self.id
        return self.folder.joinpath(*parts)


def _light_data(path: Path, model: ModelProto) -> tuple[list[Any], list[Any]]:
    """The input that ONNX's runner makes for such a model, and the output that is stored beside it."""
    weights = {t.name for t in model.graph.initializer}
    (given,) = [i for i in model.graph.input if i.name not in weights]
    shape = [d.dim_value or 1 for d in given.type.tensor_type.shape.dim]
    count = int(np.prod(shape))
    value = (np.arange(count).reshape(shape) / count).astype(np.float32)
    expected = path.with_name(f"{path.stem}_output_0.pb").read_bytes()
    return [value], [numpy_helper.to_array(TensorProto.FromString(expected))]


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


def light_cases() -> list[SuiteCase]:
    """The models without weights that the installed package brings: their weights are made by nodes."""
    data = Path(onnx.__file__).parent / "backend" / "test" / "data"
    found = []
    for folder in sorted((data / "real").iterdir()):
        about = json.loads((folder / "data.json").read_text())
        light = data / "light" / Path(about["url"]).name
        if light.exists():
            found.append(SuiteCase("light", folder.name, light=light, rtol=about["rtol"], atol=about["atol"]))
    return found


def every_case() -> list[SuiteCase]:
    """All of them; those of the wheel where it was fetched."""
    files = file_cases() if FILES.exists() else []
    return [*files, *light_cases(), *in_process_cases()]
