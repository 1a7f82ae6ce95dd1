"""The tables that scripts make: what they say of an op is what the op does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = [re.split(r"(?<!\\)\|", line)[1:-1] for line in (ROOT / "docs" / "ops.md").read_text().splitlines()]
OPS = {
    row[0].strip("` "): [cell.strip() for cell in row[1:]] for row in ROWS if len(row) == 7 and row[0].startswith(" `")
}


@pytest.mark.parametrize(
    ("op", "dtypes", "gradient", "onnx"),
    [
        ("add", "bool int uint float complex", "2", "Add"),
        ("argmax", "bool int uint float complex", "–", "Reshape ArgMax"),
        ("cholesky", "float32 float64 complex", "2", "–"),
        ("bitwise_and", "bool int uint", "–", "BitwiseAnd"),
        ("apply_adam", "float", "–", "–"),
        ("group", "–", "–", "–"),
    ],
)
def test_rows_of_the_list_of_ops(op: str, dtypes: str, gradient: str, onnx: str) -> None:
    assert OPS[op][:2] == [dtypes, gradient]
    assert OPS[op][4] == onnx


def test_every_op_runs_somewhere() -> None:
    assert [name for name, row in OPS.items() if "cpu" not in row[2] and name not in ("argument", "send", "recv")] == []


def test_the_status_table() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "status-table")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"| ops ([list](docs/ops.md)) | {len(OPS)} |" in done.stdout
    assert re.search(r"cases passed \| \d+ of \d+ \|", done.stdout)
