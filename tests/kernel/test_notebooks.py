"""Whole notebooks: the MNIST example headless, by other runners, exported; and `nbflow run`."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest
from click.testing import CliRunner
from nbclient import NotebookClient

from nbflow_kernel import commands, headless
from nbflow_kernel.export import export_document
from tests.kernel.conftest import Frontend

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "mnist.ipynb"
WIDGET = "application/vnd.jupyter.widget-view+json"

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]


def short(steps: int) -> Any:
    """The example with fewer steps."""
    notebook = nbformat.read(EXAMPLE, as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace("steps=2000", f"steps={steps}")
    return notebook


def outputs(notebook: Any, cell_id: str) -> list[Any]:
    return next(c.outputs for c in notebook.cells if c.id == cell_id)


def accuracy(notebook: Any) -> float:
    (result,) = [o for o in outputs(notebook, "test") if o.output_type == "execute_result"]
    return float(re.findall(r"[\d.]+", result.data["text/plain"])[0])


@pytest.mark.cluster
def test_mnist_by_nbclient_and_as_a_page(tmp_path: Path) -> None:
    notebook = nbformat.read(EXAMPLE, as_version=4)
    NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(EXAMPLE.parent)}}).execute()
    assert accuracy(notebook) >= 0.93
    graph = [o for o in outputs(notebook, "step") if WIDGET in o.get("data", {})]
    curves = [o for o in outputs(notebook, "train") if WIDGET in o.get("data", {})]
    assert len(graph) == len(curves) == 1
    for output in (*graph, *curves):
        assert {"image/png", "text/plain"} <= set(output.data)
        assert not {"text/html", "image/svg+xml"} & set(output.data)
    assert "done" in curves[0].data["text/plain"]
    assert any("100 %" in o.data["text/plain"] for o in outputs(notebook, "train") if "data" in o)
    page = export_document(notebook, tmp_path / "mnist.html", title="digits").read_text(encoding="utf-8")
    assert len(re.findall(r'class="nbflow-view', page)) == 2
    assert not re.findall(r"""<(?:script|link|img)[^>]+(?:src|href)=(?!["']?(?:data:|#))""", page)


@pytest.mark.cluster
def test_mnist_by_papermill(tmp_path: Path) -> None:
    nbformat.write(short(60), tmp_path / "in.ipynb")
    shutil.copytree(EXAMPLE.parent / "data", tmp_path / "data")
    done = papermill.execute_notebook(
        str(tmp_path / "in.ipynb"), str(tmp_path / "out.ipynb"), cwd=str(tmp_path), progress_bar=False
    )
    assert accuracy(done) > 0.3


@pytest.mark.cluster
def test_mnist_on_the_stock_kernel_without_a_front_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBFLOW_NONINTERACTIVE", "1")
    notebook = short(60)
    notebook.cells.insert(0, nbformat.v4.new_code_cell("%load_ext nbflow"))
    nbformat.write(notebook, tmp_path / "in.ipynb")
    shutil.copytree(EXAMPLE.parent / "data", tmp_path / "data")
    done = headless.run(tmp_path / "in.ipynb", kernel="python3", console=headless.Console(io.StringIO()))
    assert accuracy(done) > 0.3
    assert not any(WIDGET in o.get("data", {}) for o in outputs(done, "train"))
    assert any("image/png" in o.get("data", {}) for o in outputs(done, "train"))


@pytest.mark.cluster
def test_the_cluster_magic(kernel: Frontend, tmp_path: Path) -> None:
    up = kernel.run("%cluster up local -w 1 --ps 1 --name test")
    assert not up.error, up.text
    assert "/job:ps/task:0 is ready" in up.text
    assert "1 worker, 1 ps with 2 devices" in up.text
    again = kernel.run("%cluster up local -w 1 --ps 1 --name test")
    assert "reusing cluster 'test'" in again.text
    more = kernel.run("%cluster up local -w 2 --ps 1 --name test")
    assert "from 1 to 2 workers" in more.text
    table = kernel.run("%cluster ps").text
    assert table.count("/job:worker/task:") == 2
    assert "/job:worker/task:1/cpu:0" in kernel.run("%cluster devices").text
    assert WIDGET in str(kernel.run("%cluster").messages)
    saved = tmp_path / "cluster.json"
    assert not kernel.run(f"%cluster save {saved}").error
    token = kernel.run(f"import json; secret = json.load(open({str(saved)!r}))['token']")
    assert not token.error
    shown = kernel.run("%cluster").text + kernel.run("%cluster ps").text + kernel.run("nf.get_cluster()").text
    assert kernel.run(f"print(secret in {shown!r})").text.strip() == "False"
    down = kernel.run("%cluster down")
    assert "cluster 'test' is down" in down.text
    assert "no cluster" in kernel.run("%cluster").text
    nobody = kernel.run("%cluster attach 127.0.0.1:9 --token-env PATH --timeout 5")
    assert nobody.error == "WorkerLost"
    assert "refused" in nobody.text


def notebook_file(folder: Path, *cells: Any) -> Path:
    made = nbformat.v4.new_notebook(
        cells=list(cells), metadata={"kernelspec": {"name": "nbflow", "display_name": "n", "language": "python"}}
    )
    nbformat.write(made, folder / "n.ipynb")
    return folder / "n.ipynb"


def test_nbflow_run_with_parameters(tmp_path: Path) -> None:
    cells = [
        nbformat.v4.new_code_cell("rate = 1; name = 'x'", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("print(rate * 2, name)"),
    ]
    path = notebook_file(tmp_path, *cells)
    out = tmp_path / "made" / "out.ipynb"
    result = CliRunner().invoke(commands.run, [str(path), "-o", str(out), "-p", "rate=0.5", "-p", "name=größe"])
    assert result.exit_code == 0, result.output
    assert "1.0 größe" in result.output
    assert "injected-parameters" in out.read_text(encoding="utf-8")


def test_nbflow_run_says_which_cell_failed(tmp_path: Path) -> None:
    path = notebook_file(tmp_path, nbformat.v4.new_code_cell("1"), nbformat.v4.new_code_cell("print('so far')\n1 / 0"))
    out = tmp_path / "out.ipynb"
    result = CliRunner().invoke(commands.run, [str(path), "-o", str(out)])
    assert result.exit_code == 1
    assert "cell 2 failed" in result.output
    assert "ZeroDivisionError" in result.output
    assert "so far" in out.read_text(encoding="utf-8")


def test_nbflow_run_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    path = notebook_file(tmp_path)
    assert "NAME=VALUE" in CliRunner().invoke(commands.run, [str(path), "-p", "nonsense"]).output
    assert "no kernel is called 'nope'" in CliRunner().invoke(commands.run, [str(path), "--kernel", "nope"]).output
    path.write_text("not json")
    for command in (commands.run, commands.export):
        result = CliRunner().invoke(command, [str(path)])
        assert result.exit_code == 1
        assert "is not a notebook" in result.output
