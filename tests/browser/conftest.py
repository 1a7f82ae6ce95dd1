"""One JupyterLab and one browser page for the tests of a module, and a folder for what they saw.

Not for the whole session: Playwright keeps an event loop running, and other tests run their own.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page

from tests.browser.driver import LabPage, LabServer, Watch, browser

ROOT = Path(__file__).resolve().parents[2]
SCREENS = ROOT / "test-output" / "screens"


def _missing() -> str:
    """Why the browser tests cannot run here, and how to change that; empty when they can."""
    if shutil.which("chromium") is None:
        return "Chromium is not installed; on Debian and Ubuntu: apt-get install chromium"
    if importlib.util.find_spec("jupyterlab") is None:
        return "JupyterLab is not installed; `make dev` does it"
    return ""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    """JupyterLab; afterwards nothing of what it started may live."""
    if _missing():
        pytest.skip(_missing())
    home = tmp_path_factory.mktemp("lab")
    lab = LabServer(home, home / "notebooks")
    try:
        yield lab
    finally:
        lab.stop()


@pytest.fixture(scope="module")
def _page(server: LabServer) -> Iterator[tuple[LabPage, Watch]]:
    with browser() as (context, watch):
        lab = LabPage(server, context, watch)
        # The notebook gets the width it has on a wider screen.
        lab.command("application:toggle-left-area")
        yield lab, watch


@pytest.fixture
def lab(_page: tuple[LabPage, Watch]) -> Iterator[LabPage]:
    """The page. It fails the test when the page made an error, or asked anything of another machine."""
    page, watch = _page
    watch.errors.clear()
    watch.external.clear()
    yield page
    assert watch.errors == []
    assert watch.external == []


@pytest.fixture
def mnist(lab: LabPage) -> Callable[[str], str]:
    """Copies examples/mnist.ipynb and its data into a new folder of the server; returns its path there."""

    def copy(folder: str) -> str:
        shutil.copytree(ROOT / "examples" / "data", lab.server.root / folder / "data")
        shutil.copy(ROOT / "examples" / "mnist.ipynb", lab.server.root / folder / "mnist.ipynb")
        return f"{folder}/mnist.ipynb"

    return copy


@pytest.fixture
def screen(request: pytest.FixtureRequest, lab: LabPage) -> Callable[..., Path]:
    """Takes pictures for people to look at, numbered in the order they were taken, in test-output/screens/."""
    test = re.sub(r"\W+", "-", request.node.name.removeprefix("test_"))
    taken = 0
    SCREENS.mkdir(parents=True, exist_ok=True)
    for old in SCREENS.glob(f"{test}-*.png"):
        old.unlink()

    def take(name: str, page: Page | None = None) -> Path:
        nonlocal taken
        taken += 1
        path = SCREENS / f"{test}-{taken:02d}-{name}.png"
        lab.settle()
        (page or lab.page).screenshot(path=path)
        return path

    return take
