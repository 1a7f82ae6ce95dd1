"""What a notebook shows of a training run: curves while it goes, a line of progress, and a still picture at the end.

The line is a text display of its own, updated twice a second: cheap for a browser, readable for headless runners, which
know it by `PROGRESS_KEY`. The curves are a widget fed by its bridge; their output is replaced once, at the end, by the
same widget with the final picture and text, so that a saved notebook shows them. Nothing waits for a front end.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from IPython import get_ipython
from IPython.display import publish_display_data

from nbflow.events import Event, Metric
from nbflow_kernel import progress
from nbflow_widgets.curves_view import CurvesView

if TYPE_CHECKING:
    from nbflow.train import Run

# Two a second reads as live, and stays far below what a notebook server lets through.
INTERVAL_S = 0.5


def is_static() -> bool:
    """Whether no one will look while it runs: `NBFLOW_NONINTERACTIVE=1`. Then outputs hold pictures and text only."""
    return os.environ.get("NBFLOW_NONINTERACTIVE", "") not in ("", "0")


def display_run(run: Run) -> RunDisplay:
    """Starts to show `run` under the running cell. Call `finish()` when it has ended."""
    return RunDisplay(run)


class Output:
    """One output of a cell, replaced in place. `publish` has the signature of IPython's `publish_display_data`."""

    def __init__(self, publish: Callable[..., Any] = publish_display_data) -> None:
        self._publish = publish
        self._id = uuid.uuid4().hex
        self._shown = False

    def put(self, data: dict[str, Any], metadata: dict[str, Any] | None = None, **transient: Any) -> None:
        self._publish(
            data, metadata=metadata or {}, transient={"display_id": self._id, **transient}, update=self._shown
        )
        self._shown = True


class RunDisplay:
    """The display of one run. Its events arrive on other threads; one thread of its own sends."""

    def __init__(self, run: Run, publish: Callable[..., Any] = publish_display_data) -> None:
        self._run = run
        self._values: dict[str, float] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._started_s = time.monotonic()
        self._line, self._curves = Output(publish), Output(publish)
        self._view = CurvesView(run)
        self._remove = run.listen(self._on_event)
        if not is_static():
            self._curves.put(*self._view.bundle())
        self._say()
        self._thread = threading.Thread(
            target=self._send, args=(_shell_parent(),), name="nbflow-run-display", daemon=True
        )
        self._thread.start()

    def finish(self) -> None:
        """The last word: final progress, curves as picture and text. Never raises for what a front end does."""
        self._over.set()
        self._thread.join(timeout=5)
        self._remove()
        self._view.close_stream()
        self._say()
        self._curves.put(*(self._view.static() if is_static() else self._view.bundle()))

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Metric):
            with self._lock:
                self._values[event.name] = event.value

    def _send(self, parent: Any) -> None:
        shell = get_ipython()
        # Without this, output of a thread goes to whatever cell ran last.
        if parent is not None and hasattr(shell, "set_thread_parent"):
            shell.set_thread_parent(parent)
        while not self._over.wait(INTERVAL_S):
            self._say()

    def _say(self) -> None:
        run = self._run
        with self._lock:
            values = dict(self._values)
        elapsed_s = time.monotonic() - self._started_s
        text = progress.line(run.step, run.steps, values, status=run.status, elapsed_s=elapsed_s)
        if run.detail:
            text = f"{text}\n{run.detail}"
        self._line.put({"text/plain": text}, **{progress.PROGRESS_KEY: True})


def _shell_parent() -> Any:
    shell = get_ipython()
    return shell.get_parent() if hasattr(shell, "get_parent") else None
