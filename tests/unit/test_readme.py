"""The README's first notebook is the one in examples/, and its pictures are of a size that a page can carry."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[2]


def test_the_first_notebook_is_the_example() -> None:
    notebook = json.loads((ROOT / "examples" / "mnist.ipynb").read_text())
    cells = ["".join(cell["source"]).strip() for cell in notebook["cells"] if cell["cell_type"] == "code"]
    (block,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert block.strip() == "\n\n".join(cells)


def test_the_status_table_is_up_to_date() -> None:
    script = ROOT / "scripts" / "status-table"
    made = subprocess.run([sys.executable, script, "--check"], check=False, capture_output=True, text=True, timeout=120)
    assert made.returncode == 0, made.stderr


def test_pictures_are_sharp_and_small() -> None:
    names = re.findall(r"!\[[^\]]+\]\((docs/images/[^)]+)\)", (ROOT / "README.md").read_text())
    assert names
    for name in names:
        path = ROOT / name
        assert path.stat().st_size < 400_000
        with Image.open(path) as image:
            assert image.width >= 1600, "twice what a page shows"
