"""A notebook as one page: nothing from the network, pictures without JavaScript, widgets with it."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import nbformat
import pytest
from click.testing import CliRunner

from nbflow_kernel import commands
from nbflow_kernel.export import export_document

WIDGET = "application/vnd.jupyter.widget-view+json"
STATE = "application/vnd.jupyter.widget-state+json"
PNG = base64.b64encode(b"\x89PNG not really").decode()
ESM = """
export default {
  initialize({ model }) { model.on("change:n", () => model.set("log", model.get("log") + 1)); },
  render({ model, el }) {
    model.set("n", model.get("n") + 1);
    model.save_changes();
    model.send({ type: "hello" });
    const bytes = model.get("deep").inner;
    el.textContent = `mounted n=${model.get("n")} log=${model.get("log")} byte=${bytes.getUint8(1)}`;
  },
};
"""


def notebook(*, esm: str = ESM, state: bool = True) -> Any:
    v4 = nbformat.v4
    view = {
        WIDGET: {"model_id": "m1", "version_major": 2, "version_minor": 0},
        "image/png": PNG,
        "text/plain": "a <view>",
    }
    made = v4.new_notebook(
        cells=[
            v4.new_markdown_cell("# Title with $x^2$"),
            v4.new_code_cell("show()", outputs=[v4.new_output("display_data", data=view)]),
            v4.new_code_cell("again()", outputs=[v4.new_output("display_data", data=view)]),
        ]
    )
    if state:
        buffers = [{"path": ["deep", "inner"], "encoding": "base64", "data": base64.b64encode(bytes([7, 9])).decode()}]
        model = {
            "model_name": "AnyModel",
            "model_module": "anywidget",
            "model_module_version": "~0.9",
            "state": {"_esm": esm, "_css": ".x { color: red }", "n": 1, "log": 0, "deep": {}},
            "buffers": buffers,
        }
        made.metadata["widgets"] = {STATE: {"version_major": 2, "version_minor": 0, "state": {"m1": model}}}
    return made


def page(tmp_path: Path, document: Any) -> str:
    return export_document(document, tmp_path / "deep" / "page.html", title="a title").read_text(encoding="utf-8")


def test_nothing_comes_from_the_network(tmp_path: Path) -> None:
    text = page(tmp_path, notebook())
    assert not re.findall(r"""<(?:script|link|img|iframe)[^>]+(?:src|href)=(?!["']?(?:data:|#))""", text)
    assert not re.findall(r"""(?:@import|url\()\s*["']?https?:""", text)
    for gone in ("require.min.js", "mathjax", "mermaid", "html-manager"):
        assert gone not in text.lower()
    assert "<title>a title</title>" in text


def test_the_picture_and_its_words_are_there(tmp_path: Path) -> None:
    text = page(tmp_path, notebook(state=False))
    assert text.count(f"data:image/png;base64,{PNG}") == 2
    assert 'alt="a &lt;view&gt;"' in text


def test_the_state_survives_html(tmp_path: Path) -> None:
    text = page(tmp_path, notebook(esm="export default {}; // </script><script>alert(1)</script>"))
    found = re.search(rf'<script type="{re.escape(STATE)}">(.*?)</script>', text, re.S)
    assert found is not None
    assert json.loads(found[1])["state"]["m1"]["state"]["_esm"].endswith("alert(1)</script>")


@pytest.mark.browser
@pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not installed")
@pytest.mark.parametrize("broken", [False, True])
def test_widgets_live_in_a_browser(tmp_path: Path, broken: bool) -> None:
    esm = "export default { render() { throw new Error('no'); } }" if broken else ESM
    page(tmp_path, notebook(esm=esm))
    command = [
        "chromium",
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=5000",
        "--dump-dom",
    ]
    command += [f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "deep" / "page.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    stills = re.findall(r'<div class="nbflow-still"( hidden="")?>', done.stdout)
    if broken:
        assert stills == ["", ""]
        return
    # Two views of one model: initialised once, and what one changes the other sees.
    assert re.findall(r"mounted n=(\d) log=(\d) byte=9", done.stdout) == [("2", "1"), ("3", "2")]
    assert stills == [' hidden=""', ' hidden=""']


def test_the_command(tmp_path: Path) -> None:
    source = tmp_path / "n.ipynb"
    nbformat.write(notebook(), source)
    result = CliRunner().invoke(commands.export, [str(source)])
    assert result.exit_code == 0, result.output
    assert "n.html" in result.output
    assert (tmp_path / "n.html").stat().st_size > 10_000
