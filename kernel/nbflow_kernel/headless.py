"""Running a notebook from top to bottom without a browser, telling a terminal what happens."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

import nbformat
from jupyter_client.kernelspec import NoSuchKernel
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from traitlets.config import Config

from nbflow_kernel.progress import PROGRESS_KEY

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
# Without a terminal every progress line stays; one in five seconds reads well in a log.
LOG_INTERVAL_S = 5.0


# Where the kernel and the client can encrypt what passes between them, they do.
_CONFIG = Config({"KernelManager": {"transport_encryption": "auto"}})


class CellError(Exception):
    """A cell raised, took too long, or its kernel died; the message says which cell and why."""


class Console:
    """Lines, and a progress line that is overwritten in a terminal and repeated now and then in a log."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._open = False
        self._last = ""
        self._said_s = -LOG_INTERVAL_S

    def line(self, text: str) -> None:
        self.end()
        print(text, file=self._stream, flush=True)

    def progress(self, text: str) -> None:
        self._last = text
        if self._stream.isatty():
            self._stream.write(f"\r{text}\x1b[K")
            self._stream.flush()
            self._open = True
        elif time.monotonic() - self._said_s >= LOG_INTERVAL_S:
            print(text, file=self._stream, flush=True)
            self._said_s = time.monotonic()
            self._last = ""

    def end(self) -> None:
        """Ends the progress line, if one is open."""
        if self._open:
            self._stream.write("\n")
        elif self._last:  # the last word on a progress line is worth a line of the log
            print(self._last, file=self._stream)
        self._open, self._last = False, ""


class _Client(NotebookClient):
    """Tells the console about streams and progress as they come."""

    def __init__(self, notebook: Any, console: Console, **options: Any) -> None:
        super().__init__(notebook, **options)
        self._console = console
        self._rest = ""

    def process_message(self, msg: Any, cell: Any, cell_index: int) -> Any:
        content = msg["content"]
        if msg["msg_type"] == "stream":
            *lines, self._rest = (self._rest + content["text"]).split("\n")
            for line in lines:
                self._console.line(f"  {_ANSI.sub('', line)}")
        elif msg["msg_type"] in ("display_data", "update_display_data"):
            if PROGRESS_KEY in (content.get("transient") or {}):
                self._console.progress(f"  {content['data']['text/plain']}")
        elif msg["msg_type"] == "execute_result":
            text = content["data"].get("text/plain", "")
            if text.count("\n") < 3:
                self._console.line(f"  {text}")
        return super().process_message(msg, cell, cell_index)


def read(notebook: Path) -> Any:
    """The notebook in a file. Raises OSError, ValueError for a file that is no notebook."""
    try:
        return nbformat.read(notebook, as_version=4)
    except (nbformat.reader.NotJSONError, nbformat.ValidationError) as error:
        raise ValueError(f"{notebook} is not a notebook: {str(error).splitlines()[0]}") from None


def run(
    notebook: Path,
    *,
    output: Path | None = None,
    parameters: Mapping[str, Any] | None = None,
    kernel: str | None = None,
    timeout_s: float = 3600.0,
    console: Console | None = None,
    on_cell: Callable[[int, str], None] | None = None,
) -> Any:
    """Executes `notebook` in its own folder and returns it, with outputs; saves it to `output` when given.

    `parameters` are set in a cell after the one tagged `parameters`, else before the first. What was done is saved even
    when a cell fails. `timeout_s` is per cell. `on_cell(index, source)` is called before each. Raises CellError,
    OSError, ValueError (not a notebook, no such kernel).
    """
    document = read(notebook)
    if parameters:
        _inject(document, parameters)
    console = console or Console()

    def started(cell: Any, cell_index: int) -> None:
        if on_cell is not None and cell.cell_type == "code":
            on_cell(cell_index, cell.source)

    client = _Client(
        document,
        console,
        timeout=timeout_s,
        kernel_name=kernel or document.metadata.get("kernelspec", {}).get("name", "nbflow"),
        resources={"metadata": {"path": str(notebook.resolve().parent)}},
        on_cell_start=started,
        config=_CONFIG,
    )
    try:
        client.execute()
    except CellExecutionError as error:
        raise CellError(_failure(document, error)) from None
    except (CellTimeoutError, DeadKernelError) as error:
        raise CellError(f"{notebook}: {error}") from None
    except NoSuchKernel as error:
        raise ValueError(f"no kernel is called {error.name!r}; `nbflow install` installs nbflow's") from None
    finally:
        if output is not None:
            output.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(document, output)
    console.end()
    return document


def _inject(document: Any, parameters: Mapping[str, Any]) -> None:
    lines = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    made = nbformat.v4.new_code_cell(lines, metadata={"tags": ["injected-parameters"]})
    tagged = [i for i, c in enumerate(document.cells) if "parameters" in c.metadata.get("tags", ())]
    document.cells.insert(tagged[0] + 1 if tagged else 0, made)


def _failure(document: Any, error: CellExecutionError) -> str:
    failed = [
        (number, cell, out)
        for number, cell in enumerate(document.cells, 1)
        if cell.cell_type == "code"
        for out in cell.outputs
        if out.output_type == "error"
    ]
    if not failed:
        return f"a cell failed: {error.ename}: {error.evalue}"
    number, cell, out = failed[-1]
    source = "\n".join(f"    {line}" for line in cell.source.splitlines()[:6])
    trace = "\n".join(_ANSI.sub("", "\n".join(out.traceback)).splitlines()[-12:])
    return f"cell {number} failed:\n{source}\n{trace}"
