"""examples/distributed.ipynb: runs from top to bottom, and what it tells is so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "distributed.ipynb"

pytestmark = [pytest.mark.kernel, pytest.mark.cluster, pytest.mark.timeout(300)]


def texts(notebook: Any, cell_id: str) -> str:
    outputs = next(c.outputs for c in notebook.cells if c.id == cell_id)
    return "\n".join(o.get("text", o.get("data", {}).get("text/plain", "")) for o in outputs)


def pictures(notebook: Any, cell_id: str) -> int:
    outputs = next(c.outputs for c in notebook.cells if c.id == cell_id)
    return sum("image/png" in o.get("data", {}) for o in outputs)


def check(notebook: Any) -> None:
    for cell in ("model", "train-everyone", "train-backup", "elastic", "simulate", "simulate-large"):
        assert pictures(notebook, cell) == 1, cell
    for cell in ("train-everyone", "train-backup"):
        assert "done · step 150 of 150" in texts(notebook, cell)
    assert "variables are spread over the ps tasks" in texts(notebook, "placement")
    everyone, backup = (float(t) for t in re.findall(r"last loss ([\d.]+)", texts(notebook, "compare")))
    assert everyone < 0.8
    assert backup < 0.8
    assert "18 transfers" in texts(notebook, "timeline")
    changes = re.findall(r"going on after step \d+ with (\d) replicas: (.*)", texts(notebook, "elastic"))
    assert changes == [
        ("2", "/job:worker/task:2 left"),
        ("4", "/job:worker/task:2, /job:worker/task:3 joined"),
    ]
    assert re.search(r"^ +100 +32 ", texts(notebook, "simulate-large"), re.MULTILINE)


def test_the_notebook_runs() -> None:
    notebook = nbformat.read(EXAMPLE, as_version=4)
    NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(EXAMPLE.parent)}}).execute()
    check(notebook)


def test_the_outputs_that_are_stored_with_it() -> None:
    check(nbformat.read(EXAMPLE, as_version=4))
