"""The MNIST notebook in JupyterLab, used as a person would: looked at, clicked, stopped, edited, interrupted, saved."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pytest
from playwright.sync_api import Locator, Page

from nbflow_kernel.export import export
from tests.browser.driver import DARK, LIGHT, LabPage, Notebook, joined, wait_for

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

# No machine gets there before it is stopped: nothing here depends on how fast training is.
ENDLESS = 10_000_000
NAMES = "print([n for n in (str(getattr(n, 'name', n)) for n in nf.get_graph().nodes) if n.startswith('hidden')])"


class Screen(Protocol):
    """Takes a picture of the page, or of another one."""

    def __call__(self, name: str, page: Page | None = None) -> Path: ...


def test_mnist_notebook(lab: LabPage, mnist: Callable[[str], str], screen: Screen) -> None:
    lab.theme(LIGHT)
    notebook = lab.open(mnist("story"))
    finite = notebook.source("train")
    endless = finite.replace("steps=2000", f"steps={ENDLESS}")
    assert endless != finite
    notebook.write("train", endless)
    notebook.start_all()
    notebook.wait_done("step")
    the_graph_answers_clicks(notebook, screen)
    curves_grow_and_stop(notebook, screen)
    # What came after the stopped cell has run: the session is as usable as before.
    assert accuracy(notebook) > 0.1

    notebook.write("train", finite)
    notebook.run_from("train")
    curves = notebook.show("train", ".nbflow-curves[data-status=done]")
    assert curves.get_attribute("data-step") == "2000"
    assert "loss" not in printed(notebook, "train"), "the curves are drawn: a line of text only repeats them"
    screen("trained")
    assert accuracy(notebook) >= 0.93
    assert "/job:ps/task:0/cpu:0" in notebook.show("placement").inner_text()
    screen("placement")

    an_edited_cell_keeps_what_did_not_change(notebook, screen)
    an_interrupt_leaves_the_session_usable(notebook, endless, finite, screen)
    the_cluster_is_shown(notebook, screen)
    errors_and_stale_ops_say_what_to_do(notebook, screen)
    in_the_dark(lab, notebook, screen)
    the_saved_file_has_pictures(notebook)
    an_exported_page_needs_no_server(lab, notebook, screen)
    the_cluster_goes_down(lab, notebook)
    a_reopened_notebook_shows_what_it_showed(lab, notebook, screen)


def the_graph_answers_clicks(notebook: Notebook, screen: Screen) -> None:
    graph = notebook.show("step", ".nbflow-graph[data-ready]")
    assert int(graph.get_attribute("data-nodes") or 0) > 30
    assert item(graph, "replica_*/").count() == 1, "both replicas stand in one box"
    screen("graph")
    click(graph, "hidden/")
    press_sign(graph, "hidden/")
    assert "hidden/" in (graph.get_attribute("data-expanded") or "").split()
    click(graph, "hidden/weights/", twice=True)
    assert "hidden/weights/" in (graph.get_attribute("data-expanded") or "").split()
    click(graph, "hidden/weights")
    assert graph.get_attribute("data-selected") == "hidden/weights"
    told = told_by(graph)
    assert told["device"] == "/job:ps/task:0/cpu:0"
    assert "variables are spread over the ps tasks" in told["why"]
    assert told["output"] == "float32 [784, 128]"
    assert told["made by"] == "In[3], line 1"
    screen("graph-selected")


def curves_grow_and_stop(notebook: Notebook, screen: Screen) -> None:
    assert notebook.busy("train")
    curves = notebook.show("train", ".nbflow-curves[data-ready]")
    seen = [points(curves)]
    for _ in range(3):
        grown(curves, seen[-1])
        assert notebook.busy("train"), "the curves grew because the cell had ended"
        seen.append(points(curves))
    assert seen == sorted(set(seen))
    screen("curves-running")
    curves.locator(".nbflow-stop").click()
    notebook.wait_done("train")
    curves = notebook.show("train", ".nbflow-curves[data-status=stopped]")
    assert 0 < int(curves.get_attribute("data-step") or 0) < ENDLESS
    assert not notebook.busy("train")
    screen("curves-stopped")
    notebook.wait_done("placement")


def an_edited_cell_keeps_what_did_not_change(notebook: Notebook, screen: Screen) -> None:
    notebook.write("model", notebook.source("model").replace("128", "64"))
    notebook.run("model")
    said = notebook.text("model")
    assert "1 kept, 3 reset" in said, "the bias of the logits is what it was, the rest has other shapes"
    assert re.search(r"stale: In\[\d+\]", said)
    notebook.show("model")
    screen("edited")
    notebook.run_from("step")
    assert accuracy(notebook) >= 0.93
    graph = notebook.show("step", ".nbflow-graph[data-ready]")
    names = graph.locator("[role=treeitem]").evaluate_all("all => all.map(e => e.dataset.id)")
    assert "hidden/" in names
    notebook.append("names", NAMES)
    notebook.run("names")
    assert "'hidden/weights'" in notebook.text("names")
    assert not re.search(r"hidden[._]\d", notebook.text("names"))
    screen("edited-and-trained")


def an_interrupt_leaves_the_session_usable(notebook: Notebook, endless: str, finite: str, screen: Screen) -> None:
    notebook.write("train", endless)
    notebook.start("train")
    curves = notebook.show("train", ".nbflow-curves[data-status=running]")
    grown(curves, points(curves))
    notebook.interrupt()
    notebook.wait_done("train")
    notebook.show("train", ".nbflow-curves[data-status=stopped]")
    assert "KeyboardInterrupt" in notebook.text("train")
    screen("interrupted")
    notebook.run("test")
    assert accuracy(notebook) >= 0.93
    notebook.write("train", finite)
    notebook.run("train")
    notebook.show("train", ".nbflow-curves[data-status=done]")


def the_cluster_is_shown(notebook: Notebook, screen: Screen) -> None:
    notebook.append("status", "%cluster")
    notebook.run("status")
    view = notebook.show("status", ".nbflow-cluster[data-ready]")
    assert view.get_attribute("data-workers") == "3"
    states = view.locator("tr[data-state]").evaluate_all("all => all.map(r => r.dataset.state)")
    # What a worker did at its last heartbeat, a moment ago.
    assert len(states) == 3
    assert set(states) <= {"ready", "busy"}
    screen("cluster")


def errors_and_stale_ops_say_what_to_do(notebook: Notebook, screen: Screen) -> None:
    notebook.append("top", 'top = nf.mean(h @ nf.constant(np.ones((64, 2), "float32")), name="top")')
    notebook.run("top")
    notebook.append("mismatch", 'nf.matmul(h, nf.constant(np.ones((3, 4), "float32")), name="oops")')
    notebook.run("mismatch")
    said = notebook.text("mismatch")
    assert "ShapeError" in said
    assert "'oops'" in said
    assert "hidden/relu" in said
    notebook.show("mismatch")
    screen("mismatch")
    notebook.write("model", notebook.source("model").replace("64", "32"))
    notebook.run("model")
    notebook.append("stale", "nf.run(top)")
    notebook.run("stale")
    assert "StaleError" in notebook.text("stale")
    assert re.search(r"run In\[\d+\] again", notebook.text("stale"))
    notebook.append("all", "nf.show(nf.get_graph())")
    notebook.run("all")
    notebook.show("all", ".nbflow-graph[data-ready]")
    screen("stale")


def in_the_dark(lab: LabPage, notebook: Notebook, screen: Screen) -> None:
    lab.theme(DARK)
    for cell, selector, name in (
        ("step", ".nbflow-graph[data-ready]", "graph"),
        ("train", ".nbflow-curves[data-ready]", "curves"),
        ("status", ".nbflow-cluster[data-ready]", "cluster"),
        ("mismatch", ".jp-OutputArea-output", "mismatch"),
        ("all", ".nbflow-graph[data-ready]", "stale"),
    ):
        view = notebook.show(cell, selector)
        screen(f"dark-{name}")
        if "graph" in selector:
            assert darkness(view) > 0.8, "the canvas kept the light theme's background"
    lab.theme(LIGHT)


def the_saved_file_has_pictures(notebook: Notebook) -> None:
    saved = notebook.save()
    cells = {cell["id"]: cell for cell in saved["cells"]}
    for cell, word in (("step", "hidden: "), ("train", "done"), ("status", "worker:0")):
        (data,) = [o["data"] for o in cells[cell]["outputs"] if "image/png" in o.get("data", {})]
        assert set(data) == {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"}
        assert joined(data["image/png"]).startswith("iVBORw0KGgo"), "not a PNG"
        assert word in joined(data["text/plain"])


def the_cluster_goes_down(lab: LabPage, notebook: Notebook) -> None:
    def workers() -> list[str]:
        lines = [" ".join(p.cmdline()) for p in lab.server.processes()]
        return [line for line in lines if "nbflow_workers" in line]

    assert len(workers()) == 3
    notebook.append("down", "%cluster down")
    notebook.run("down")
    assert "is down" in notebook.text("down")
    wait_for(lambda: not workers(), "the workers end", timeout_s=15)


def a_reopened_notebook_shows_what_it_showed(lab: LabPage, notebook: Notebook, screen: Screen) -> None:
    notebook.save()
    lab.close(notebook)
    again = lab.open(notebook.path)
    graph = again.show("step", ".nbflow-graph[data-ready]")
    assert int(graph.get_attribute("data-nodes") or 0) > 30
    click(graph, "hidden/")
    assert graph.get_attribute("data-selected") == "hidden/"
    curves = again.show("train", ".nbflow-curves[data-status=done]")
    assert points(curves) == 400
    screen("reopened")
    lab.close(again)


def an_exported_page_needs_no_server(lab: LabPage, notebook: Notebook, screen: Screen) -> None:
    source = lab.server.root / notebook.path
    page = lab.page.context.new_page()
    page.goto(export(source, source.with_suffix(".html")).as_uri())
    graph = page.locator(".nbflow-graph[data-ready]").first
    graph.scroll_into_view_if_needed()
    click(graph, "hidden/", twice=True)
    assert "hidden/" in (graph.get_attribute("data-expanded") or "").split()
    screen("exported", page)
    curves = page.locator(".nbflow-curves[data-status=done]").first
    curves.scroll_into_view_if_needed()
    assert points(curves) == 400
    screen("exported-curves", page)
    page.close()


def test_stock_kernel(lab: LabPage, mnist: Callable[[str], str], screen: Screen) -> None:
    """The same notebook on IPython's own kernel, after `%load_ext nbflow`."""
    path = mnist("stock")
    rewrite(lab.server.root / path)
    notebook = lab.open(path)
    notebook.start_all()
    notebook.wait_done("placement")
    graph = notebook.show("step", ".nbflow-graph[data-ready]")
    assert int(graph.get_attribute("data-nodes") or 0) > 30
    screen("graph")
    curves = notebook.show("train", ".nbflow-curves[data-status=done]")
    assert points(curves) == 60, "two metrics, every 10 of 300 steps"
    screen("curves")
    assert accuracy(notebook) > 0.7
    the_cluster_goes_down(lab, notebook)


# --- helpers ---------------------------------------------------------------------------------------------------------


def rewrite(path: Path) -> None:
    """Makes the notebook one for a stock kernel, with fewer steps: what they give is the other test's matter."""
    text = path.read_text()
    text = text.replace('"name": "nbflow"', '"name": "python3"').replace("nbflow (Python 3)", "Python 3")
    text = text.replace("steps=2000", "steps=300").replace('"%cluster up', '"%load_ext nbflow\\n", "%cluster up')
    assert "%load_ext nbflow\\n" in text
    path.write_text(text)


def item(graph: Locator, name: str) -> Locator:
    """The entry of a node or scope in the tree that stands, unseen, over the drawing."""
    return graph.locator(f'[role=treeitem][data-id="{name}"]')


def box(graph: Locator, name: str) -> dict[str, float]:
    found = item(graph, name).bounding_box()
    assert found is not None, f"{name} is not drawn"
    return dict(found)


def click(graph: Locator, name: str, twice: bool = False) -> None:
    """Clicks into the upper part of a box on the canvas."""
    at = box(graph, name)
    mouse = graph.page.mouse
    (mouse.dblclick if twice else mouse.click)(at["x"] + at["width"] / 2, at["y"] + min(15, at["height"] / 2))
    settle(graph)


def press_sign(graph: Locator, name: str) -> None:
    """Clicks the + of a closed scope, which is 14 units from its right side and 13 from its top."""
    at = box(graph, name)
    scale = at["height"] / 46
    graph.page.mouse.click(at["x"] + at["width"] - 14 * scale, at["y"] + 13 * scale)
    settle(graph)


def settle(graph: Locator) -> None:
    graph.evaluate("async () => { for (let i = 0; i < 3; i++) await new Promise(r => requestAnimationFrame(r)) }")


def told_by(graph: Locator) -> dict[str, str]:
    """The rows of the details panel."""
    rows = graph.locator(".nbflow-details tr").evaluate_all(
        "all => all.map(r => [r.cells[0].textContent, r.cells[1].textContent])"
    )
    return dict(rows)


def points(curves: Locator) -> int:
    return int(curves.get_attribute("data-points") or 0)


def grown(curves: Locator, before: int) -> None:
    """Waits until there are more points than `before`."""
    curves.page.wait_for_function("([e, n]) => Number(e.dataset.points) > n", arg=[curves.element_handle(), before])


def accuracy(notebook: Notebook) -> float:
    """What the last cell but one returned."""
    found = re.search(r"array\(([\d.e-]+)", notebook.text("test"))
    assert found, f"no accuracy in {notebook.text('test')!r}"
    return float(found[1])


def printed(notebook: Notebook, cell: str) -> str:
    """Texts among a cell's outputs, without what stands in for pictures and widgets."""
    outputs: list[dict[str, Any]] = [o for o in notebook.outputs(cell) if "image/png" not in o.get("data", {})]
    return "\n".join(joined(o.get("text", "") or o.get("data", {}).get("text/plain", "")) for o in outputs)


def darkness(graph: Locator) -> float:
    """1 for a black corner of the drawing, 0 for a white one."""
    r, g, b = graph.locator("canvas").evaluate("c => [...c.getContext('2d').getImageData(2, 2, 1, 1).data.slice(0, 3)]")
    return 1 - (r + g + b) / (3 * 255)
