"""Makes the README's pictures in docs/images/: examples/mnist.ipynb in JupyterLab, after training.

Needs Chromium (`apt-get install chromium`) and `make dev`. Usage: .venv/bin/python scripts/screenshot.py [FOLDER]
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from playwright.sync_api import Locator

ROOT = Path(__file__).resolve().parent.parent
# A script's own folder is on the path, not the project's.
sys.path.insert(0, str(ROOT))

from tests.browser.driver import LIGHT, LabPage, LabServer, Notebook, browser  # noqa: E402

# Twice what a README is wide, so that it is sharp on all screens.
WIDTH, HEIGHT, SCALE = 1200, 1600, 2.0
LIMIT_BYTES = 400_000
# What notebook.png shows: from the top of the first of these cells to the end of the last one.
FIRST, LAST = "model", "test"
OPEN = ("replica_*/", "replica_0/")
# What reason.png shows.
ASKED = ("hidden/", "hidden/weights/", "hidden/weights")


def main(target: Path) -> int:
    with TemporaryDirectory(prefix="nbflow-screenshot-") as folder:
        root = Path(folder) / "notebooks"
        shutil.copytree(ROOT / "examples", root)
        server = LabServer(Path(folder) / "lab", root)
        try:
            with browser(WIDTH, HEIGHT, SCALE) as (context, watch):
                made = pictures(LabPage(server, context, watch))
                if watch.errors or watch.external:
                    print(
                        "the page made errors or asked other machines:", watch.errors, watch.external, file=sys.stderr
                    )
                    return 1
        finally:
            server.stop()
    target.mkdir(parents=True, exist_ok=True)
    for name, data in made.items():
        (target / name).write_bytes(data)
        print(f"{target / name}: {len(data) / 1000:.0f} kB")
        if len(data) > LIMIT_BYTES:
            print(f"more than {LIMIT_BYTES / 1000:.0f} kB: crop it, or show less", file=sys.stderr)
            return 1
    return 0


def pictures(lab: LabPage) -> dict[str, bytes]:
    """Runs the notebook and returns the PNGs by their names."""
    lab.theme(LIGHT)
    lab.command("application:toggle-left-area")
    notebook = lab.open("mnist.ipynb")
    notebook.start_all()
    notebook.wait_done("placement")
    graph = notebook.show("step", ".nbflow-graph[data-ready]")
    for scope in OPEN:
        press(notebook, graph, scope, twice=True)
    for _ in range(2):  # nothing selected, then nothing focused
        lab.page.keyboard.press("Escape")
    whole = cells(notebook)

    graph = notebook.show("step", ".nbflow-graph[data-ready]")
    graph.get_by_role("button", name="Close all scopes").click()
    lab.settle()
    for name in ASKED:
        press(notebook, graph, name, twice=name.endswith("/"))
    return {"notebook.png": whole, "reason.png": smaller(graph.screenshot())}


def cells(notebook: Notebook) -> bytes:
    """The cells from `FIRST` to `LAST`."""
    # The toolbar of the active cell would cover its code: let that be one outside the picture.
    notebook.select("placement")
    notebook.show_from(FIRST)
    notebook.lab.settle()
    top, end = (notebook.cell(cell).bounding_box() for cell in (FIRST, LAST))
    assert top is not None
    assert end is not None
    clip = {"x": top["x"], "y": top["y"], "width": top["width"], "height": end["y"] + end["height"] - top["y"]}
    assert clip["y"] >= 0, "the first cell is above the window"
    assert clip["y"] + clip["height"] <= HEIGHT - 40, f"the cells need {clip['y'] + clip['height']:.0f} pixels"
    return smaller(notebook.page.screenshot(clip=clip))


def press(notebook: Notebook, graph: Locator, name: str, *, twice: bool) -> None:
    """Clicks a box of the graph: twice opens a scope, once selects."""
    at = graph.locator(f'[role=treeitem][data-id="{name}"]').bounding_box()
    assert at is not None, f"{name} is not drawn"
    mouse = notebook.page.mouse
    (mouse.dblclick if twice else mouse.click)(at["x"] + at["width"] / 2, at["y"] + min(12, at["height"] / 2))
    notebook.lab.settle()


def smaller(png: bytes) -> bytes:
    """The same picture with a palette: a screen full of text has few colours."""
    image = Image.open(io.BytesIO(png)).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return out.getvalue()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images"))
