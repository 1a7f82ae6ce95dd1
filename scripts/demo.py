"""`make demo`: runs examples/mnist.ipynb on two local workers and a ps, and leaves the notebook and an offline HTML."""

from __future__ import annotations

import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from nbflow_kernel import headless
from nbflow_kernel.export import export_document
from nbflow_kernel.install import install

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "demo-output"
WANTED = 0.93
# The stage that a cell begins, by its id.
STAGES = {
    "cluster": "cluster: two workers and a parameter server on this machine",
    "data": "data: 10,000 digits",
    "model": "model",
    "train": "training on the workers",
    "test": "accuracy on 2,000 digits that were held back",
}


def main() -> int:
    started_s = time.monotonic()
    console = headless.Console()
    if not (Path(sys.prefix) / "share" / "jupyter" / "kernels" / "nbflow" / "kernel.json").is_file():
        console.line("==> kernel")
        install(sys_prefix=True)
    # The notebook reads data/ beside itself, so it runs where it is; what it makes goes to demo-output/.
    notebook = ROOT / "examples" / "mnist.ipynb"
    shutil.rmtree(OUTPUT, ignore_errors=True)
    ids = [c.id for c in headless.read(notebook).cells]

    def on_cell(index: int, source: str) -> None:
        if ids[index] in STAGES:
            console.line(f"==> {STAGES[ids[index]]}")

    try:
        executed = headless.run(
            notebook, output=OUTPUT / "mnist.ipynb", kernel="nbflow", timeout_s=600, console=console, on_cell=on_cell
        )
    except (headless.CellError, OSError, ValueError) as error:
        console.line(f"\nthe demo failed: {error}")
        return 1
    html = export_document(executed, OUTPUT / "mnist.html", title="nbflow: handwritten digits")
    accuracy = _accuracy(executed)
    console.line(f"==> done in {time.monotonic() - started_s:.0f} s: accuracy {accuracy:.4f}")
    console.line(f"    the notebook   {OUTPUT / 'mnist.ipynb'}")
    console.line(f"    as a web page  {html}")
    if accuracy < WANTED:
        console.line(f"\nthe demo failed: the accuracy is below {WANTED}")
        return 1
    return 0


def _accuracy(notebook: Any) -> float:
    """What the cell `test` returned. Raises ValueError when it returned no number."""
    for cell in notebook.cells:
        if cell.id == "test":
            for output in cell.outputs:
                found = re.search(r"\d+(\.\d+)?(e-?\d+)?", output.get("data", {}).get("text/plain", ""))
                if found:
                    return float(found[0])
    raise ValueError("the cell `test` returned no accuracy")


if __name__ == "__main__":
    sys.exit(main())
