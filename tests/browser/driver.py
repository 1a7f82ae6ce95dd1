"""JupyterLab and a browser, driven as a person would: a server, a page, and the notebook that is open in it.

Reading order: `LabServer` (a process and what it starts), `Watch` (what went wrong in the page), `LabPage` (the
application), `Notebook` (one document). Also used by `scripts/screenshot.py`.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from playwright.sync_api import BrowserContext, Locator, Page, sync_playwright

from nbflow_kernel.install import install

# Generous: two cores that build, test and train at the same time are slow to start a server.
DEADLINE_S = 90.0
LIGHT, DARK = "JupyterLab Light", "JupyterLab Dark"
# Every process that a server starts inherits this variable; that is how they are found when their parents are gone.
MARK = "NBFLOW_TEST_LAB"
_SERVER = ["--no-browser", "--ip=127.0.0.1", "--port=0", "--allow-root", "--LabApp.expose_app_in_browser=True"]
_ARGUMENTS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Whatever asks for a name other than this machine's fails at once.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
]


class LabServer:
    """JupyterLab on a free port of loopback, with folders, settings and a token of its own under `home`."""

    def __init__(self, home: Path, root: Path) -> None:
        self.root = root
        self.token = secrets.token_hex(16)
        self.url = ""
        self._mark = secrets.token_hex(16)
        self._lines: list[str] = []
        self._up = threading.Event()
        root.mkdir(parents=True, exist_ok=True)
        # The kernelspec of this very checkout, wherever the environment keeps another one.
        install(prefix=str(home / "prefix"))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *_SERVER, f"--ServerApp.root_dir={root}"],
            env=self._environment(home),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, name="lab-log", daemon=True)
        self._reader.start()
        if not self._up.wait(DEADLINE_S) or not self.url:
            self.stop()
            raise TimeoutError(f"JupyterLab was not up within {DEADLINE_S:g} s; it said:\n{self.log}")

    @property
    def log(self) -> str:
        return "".join(self._lines)

    def _environment(self, home: Path) -> dict[str, str]:
        folders = {
            "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
            "JUPYTERLAB_SETTINGS_DIR": "settings",
            "JUPYTER_DATA_DIR": "data",
            "JUPYTER_RUNTIME_DIR": "runtime",
            "JUPYTER_CONFIG_DIR": "config",
            "IPYTHONDIR": "ipython",
        }
        for name in folders.values():
            (home / name).mkdir(parents=True, exist_ok=True)
        kept = {k: v for k, v in os.environ.items() if k not in ("NBFLOW_NONINTERACTIVE", "JUPYTER_PATH")}
        # Answers whether to show Jupyter's news: nothing is to be fetched, and nothing to cover the page.
        notifications = home / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
        notifications.parent.mkdir(parents=True, exist_ok=True)
        notifications.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))
        path = {"JUPYTER_PATH": str(home / "prefix" / "share" / "jupyter")}
        made = {variable: str(home / name) for variable, name in folders.items()}
        return {**kept, **made, **path, "JUPYTER_TOKEN": self.token, MARK: self._mark}

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._lines.append(line)
            found = re.search(r"(http://127\.0\.0\.1:\d+)/lab", line)
            if found and not self.url:
                self.url = found[1]
                self._up.set()
        self._up.set()

    def api(self, method: str, path: str) -> Any:
        """The JSON that the server's API answers, None where it answers nothing."""
        request = urllib.request.Request(f"{self.url}/api/{path}", method=method)
        request.add_header("Authorization", f"token {self.token}")
        with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def processes(self) -> list[psutil.Process]:
        """The server, its kernels and their workers: whatever lives and was started by this server."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self._mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def end_kernels(self, patience_s: float = 30.0) -> list[str]:
        """Ends every kernel by the server's API; returns what still lives after that, apart from the server."""
        for session in self.api("GET", "sessions"):
            self.api("DELETE", f"sessions/{session['id']}")
        others = [p for p in self.processes() if p.pid != self._process.pid]
        _, alive = psutil.wait_procs(others, timeout=patience_s)
        return [f"{p.pid} {' '.join(p.cmdline())}" for p in alive if p.is_running()]

    def stop(self) -> None:
        """Ends the server and whatever it started and left, each by its pid."""
        started = self.processes()
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(20)
        _, alive = psutil.wait_procs(started, timeout=10)
        for process in {*alive, *self.processes()}:
            process.kill()
        self._reader.join(timeout=10)
        if self._process.stderr is not None:
            self._process.stderr.close()


@dataclass
class Watch:
    """What a page did that it should not: errors, and requests to anywhere but this machine."""

    errors: list[str] = field(default_factory=list)
    external: list[str] = field(default_factory=list)

    def attach(self, context: BrowserContext) -> None:
        context.on("console", lambda m: self.errors.append(f"console: {m.text}") if m.type == "error" else None)
        context.on("weberror", lambda e: self.errors.append(f"page: {e.error}"))
        context.on("request", lambda r: self._note(r.url))

    def watch_sockets(self, page: Page) -> None:
        page.on("websocket", lambda socket: self._note(socket.url))

    def _note(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("data", "blob", "file") and parts.hostname not in ("127.0.0.1", "localhost"):
            self.external.append(url)


@contextmanager
def browser(width: int = 1280, height: int = 950, scale: float = 1.0) -> Iterator[tuple[BrowserContext, Watch]]:
    """Headless Chromium, as installed on this machine."""
    watch = Watch()
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=_ARGUMENTS)
        context = chromium.new_context(viewport={"width": width, "height": height}, device_scale_factor=scale)
        context.set_default_timeout(DEADLINE_S * 1000)
        watch.attach(context)
        try:
            yield context, watch
        finally:
            context.close()
            chromium.close()


class LabPage:
    """JupyterLab in one browser page."""

    def __init__(self, server: LabServer, context: BrowserContext, watch: Watch) -> None:
        self.server = server
        self.page = context.new_page()
        watch.watch_sockets(self.page)
        self.page.goto(f"{server.url}/lab?token={server.token}")
        self.page.wait_for_function("() => window.jupyterapp !== undefined")
        self.page.evaluate("() => window.jupyterapp.restored")

    def command(self, name: str, **arguments: Any) -> None:
        """Runs a command of JupyterLab to its end."""
        self.page.evaluate("async ([n, a]) => { await window.jupyterapp.commands.execute(n, a) }", [name, arguments])

    def start(self, name: str, **arguments: Any) -> None:
        """Starts a command and does not wait: running cells end when the cells end."""
        self.page.evaluate("([n, a]) => { window.jupyterapp.commands.execute(n, a) }", [name, arguments])

    def open(self, path: str) -> Notebook:
        """Opens a notebook below the server's root, and waits until its kernel is ready."""
        self.command("docmanager:open", path=path, factory="Notebook")
        notebook = Notebook(self, path)
        notebook.wait_until_idle()
        return notebook

    def close(self, notebook: Notebook) -> None:
        """Ends a notebook's kernel and closes its tab; what is not saved is lost."""
        self.page.evaluate(f"() => {{ {_PANEL}.context.model.dirty = false }}")
        for session in self.server.api("GET", "sessions"):
            if session["path"] == notebook.path:
                self.server.api("DELETE", f"sessions/{session['id']}")
        self.command("application:close")
        self.page.wait_for_function(f"path => {_PANEL}?.context?.path !== path", arg=notebook.path)

    def theme(self, name: str) -> None:
        if self.page.evaluate("() => document.body.dataset.jpThemeName") == name:
            return
        self.command("apputils:change-theme", theme=name)
        self.page.wait_for_function("name => document.body.dataset.jpThemeName === name", arg=name)
        # It covers the page while the style sheets change.
        self.page.wait_for_selector("#jupyterlab-splash", state="detached")

    def settle(self) -> None:
        """Waits until what was asked for is painted: fonts, and two frames after the last layout."""
        self.page.evaluate(
            "async () => { await document.fonts.ready;"
            " for (let i = 0; i < 3; i++) await new Promise(done => requestAnimationFrame(done)) }"
        )


# The notebook panel in front, as JavaScript.
_PANEL = "window.jupyterapp.shell.currentWidget"


class Notebook:
    """The notebook in front. Cells are named by their ids, which JupyterLab keeps as they are in the file."""

    def __init__(self, lab: LabPage, path: str) -> None:
        self.lab = lab
        self.page = lab.page
        self.path = path
        self.page.wait_for_function(f"path => {_PANEL}?.context?.path === path && {_PANEL}.context.isReady", arg=path)

    # --- the kernel --------------------------------------------------------------------------------------------------

    @property
    def kernel_status(self) -> str:
        return str(self.page.evaluate(f"() => {_PANEL}.sessionContext.session?.kernel?.status ?? 'none'"))

    def wait_until_idle(self) -> None:
        self.page.wait_for_function(f"() => {_PANEL}.sessionContext.session?.kernel?.status === 'idle'")

    def interrupt(self) -> None:
        self.lab.command("notebook:interrupt-kernel")

    # --- cells -------------------------------------------------------------------------------------------------------

    def index(self, cell: str) -> int:
        found = self.page.evaluate(f"id => {_PANEL}.content.widgets.findIndex(w => w.model.id === id)", cell)
        assert found >= 0, f"{self.path} has no cell {cell!r}"
        return int(found)

    def select(self, cell: str) -> None:
        """Makes `cell` the active one and brings it into view; off-screen cells are not in the page at all."""
        self.page.evaluate(
            f"async i => {{ const nb = {_PANEL}.content; nb.deselectAll(); nb.activeCellIndex = i;"
            f" nb.mode = 'command'; await nb.scrollToItem(i, 'start') }}",
            self.index(cell),
        )

    def show_from(self, cell: str) -> None:
        """Brings the top of `cell` to the top of the window, whichever cell is the active one."""
        self.page.evaluate(f"async i => {{ await {_PANEL}.content.scrollToItem(i, 'start') }}", self.index(cell))

    def ask(self, cell: str, expression: str) -> Any:
        """The value of a JavaScript `expression` of the cell's widget `w`."""
        where = self.index(cell)
        return self.page.evaluate(f"i => {{ const w = {_PANEL}.content.widgets[i]; return {expression} }}", where)

    def source(self, cell: str) -> str:
        return str(self.ask(cell, "w.model.sharedModel.getSource()"))

    def write(self, cell: str, source: str) -> None:
        """Replaces a cell's text."""
        where = [self.index(cell), source]
        self.page.evaluate(f"([i, s]) => {_PANEL}.content.widgets[i].model.sharedModel.setSource(s)", where)

    def append(self, cell: str, source: str) -> None:
        """Adds a code cell at the end, under the id `cell`."""
        self.page.evaluate(
            f"([id, source]) => {{ const nb = {_PANEL}.content; const cells = nb.model.sharedModel;"
            f" cells.insertCell(cells.cells.length, {{cell_type: 'code', id, source, metadata: {{}}, outputs: []}}) }}",
            [cell, source],
        )
        self.page.wait_for_function(f"id => {_PANEL}.content.widgets.some(w => w.model.id === id)", arg=cell)

    def start(self, cell: str) -> None:
        """Sends one cell to the kernel."""
        self.select(cell)
        self.lab.start("notebook:run-cell")
        self.wait_running(cell, started=True)

    def run(self, cell: str) -> None:
        """Runs one cell and waits for its end."""
        self.select(cell)
        self.lab.command("notebook:run-cell")

    def run_from(self, cell: str) -> None:
        """Runs `cell` and all below it, and waits for the last one."""
        self.select(cell)
        self.lab.command("notebook:run-all-below")

    def start_all(self) -> None:
        self.lab.start("notebook:run-all-cells")

    def busy(self, cell: str) -> bool:
        """Whether it runs or waits for its turn: the prompt is `[*]`."""
        return "*" in self.ask(cell, "w.inputArea.promptNode.textContent")

    def wait_running(self, cell: str, *, started: bool) -> None:
        self.page.wait_for_function(
            f"([i, want]) => ({_PANEL}.content.widgets[i].inputArea.promptNode.textContent.includes('*')) === want",
            arg=[self.index(cell), started],
        )

    def wait_done(self, cell: str) -> None:
        """Waits until `cell` has run: its prompt shows a number."""
        self.page.wait_for_function(
            f"i => /\\d/.test({_PANEL}.content.widgets[i].inputArea.promptNode.textContent)", arg=self.index(cell)
        )

    def outputs(self, cell: str) -> list[dict[str, Any]]:
        """A cell's outputs, as they will be saved."""
        found: list[dict[str, Any]] = self.ask(cell, "w.model.outputs.toJSON()")
        return found

    def text(self, cell: str) -> str:
        """Everything a cell has printed, shown as text, or raised."""
        return "\n".join(text_of(output) for output in self.outputs(cell))

    def show(self, cell: str, selector: str = ".jp-OutputArea-output") -> Locator:
        """Brings `cell` into view and returns what is `selector` there."""
        self.select(cell)
        found = self.cell(cell).locator(selector).first
        found.wait_for(state="attached")
        found.scroll_into_view_if_needed()
        return found

    def cell(self, cell: str) -> Locator:
        return self.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell").nth(self._drawn(cell))

    def _drawn(self, cell: str) -> int:
        """The place of a cell among those that are in the page."""
        return int(
            self.page.evaluate(
                f"i => [...document.querySelectorAll('.jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell')]"
                f".indexOf({_PANEL}.content.widgets[i].node)",
                self.index(cell),
            )
        )

    # --- the file ----------------------------------------------------------------------------------------------------

    def save(self) -> dict[str, Any]:
        """Saves as the reader does, and returns what is in the file then."""
        self.lab.command("docmanager:save")
        self.page.wait_for_function(f"() => !{_PANEL}.context.model.dirty")
        saved: dict[str, Any] = json.loads((self.lab.server.root / self.path).read_text())
        return saved


def text_of(output: dict[str, Any]) -> str:
    """The words of one output."""
    if output["output_type"] == "stream":
        return joined(output["text"])
    if output["output_type"] == "error":
        return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(output["traceback"]))
    return joined(output["data"].get("text/plain", ""))


def joined(text: str | list[str]) -> str:
    """A multi-line text of a notebook, which files keep as a list."""
    return text if isinstance(text, str) else "".join(text)


def wait_for(found: Any, what: str, timeout_s: float = DEADLINE_S) -> None:
    """Waits until `found()` is true. Raises TimeoutError with `what` was waited for."""
    deadline = time.monotonic() + timeout_s
    tick = threading.Event()
    while not found():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_s:g} s")
        tick.wait(0.1)
