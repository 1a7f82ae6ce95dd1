"""What a notebook shows of a training run: curves while it goes, a line of progress, and a still picture at the end.

The line is a text display of its own, updated twice a second, for whoever does not draw the curves: headless runners,
which know it by `PROGRESS_KEY`, and plain terminals. Where the curves are drawn it would only repeat them: it is left
out. The curves are a widget fed by its bridge; their output is replaced once, at the end, by the same widget with the
final picture and text, so that a saved notebook shows them. Nothing waits for a front end.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from IPython import get_ipython
from IPython.display import publish_display_data

from nbflow.events import Event, Metric
from nbflow_kernel import progress
from nbflow_kernel.doors import is_static
from nbflow_widgets import Bridge, CurvesView

if TYPE_CHECKING:
    from nbflow.train import Run

# Two a second reads as live, and stays far below what a notebook server lets through.
INTERVAL_S = 0.5
# A front end that draws widgets asks for the first points within this time.
GRACE_S = 2.0
WIDGET = "application/vnd.jupyter.widget-view+json"

Publish = Callable[..., Any]


def display_run(run: Run) -> RunDisplay:
    """Starts to show `run` under the running cell. Call `finish()` when it has ended."""
    return RunDisplay(run)


class Output:
    """One output of a cell, replaced in place. `publish` has the signature of IPython's `publish_display_data`."""

    def __init__(self, publish: Publish) -> None:
        self._publish = publish
        self._id = uuid.uuid4().hex
        self._shown = False

    @property
    def shown(self) -> bool:
        return self._shown

    def put(
        self,
        data: Mapping[str, Any],
        metadata: Mapping[str, Any] | None = None,
        transient: Mapping[str, Any] | None = None,
    ) -> None:
        known = {"display_id": self._id, **(transient or {})}
        self._publish(dict(data), metadata=dict(metadata or {}), transient=known, update=self._shown)
        self._shown = True


class RunDisplay:
    """The display of one run. Its events arrive on other threads; one thread of its own writes the line."""

    def __init__(self, run: Run, publish: Publish = publish_display_data) -> None:
        self._run = run
        self._values: dict[str, float] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._started_s = time.monotonic()
        self._line, self._curves = Output(publish), Output(publish)
        self._view = CurvesView(title=", ".join(run.metric_names))
        self._view.on_stop(run.request_stop)
        self._view.on_pause(self._pause_or_resume)
        self._bridge = Bridge(self._view, run=run.id)
        self._removers = [run.listen(self._bridge), run.listen(self._on_event)]
        if is_static():
            self._say()
        else:
            # No picture yet: drawing an empty one would only delay the first step.
            data, _ = self._view._repr_mimebundle_()
            self._curves.put({WIDGET: data[WIDGET], "text/plain": str(self._view)})
        self._thread = threading.Thread(
            target=self._keep_saying, args=(_parent(),), name="nbflow-run-display", daemon=True
        )
        self._thread.start()

    def finish(self) -> None:
        """The last word: final progress, and the curves as picture and text."""
        self._over.set()
        self._thread.join(timeout=5)
        for remove in self._removers:
            remove()
        self._bridge.close()
        self._say()
        if is_static():
            self._curves.put(*self._view.static_bundle())
            self._view.close()
        else:
            self._view.finish()
            self._curves.put(*self._view._repr_mimebundle_())

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Metric):
            with self._lock:
                self._values[event.name] = event.value

    def _pause_or_resume(self) -> None:
        # Asking the workers may take seconds, and the thread that handles clicks has other clicks to handle.
        action = self._run.resume if self._run.status == "paused" else self._run.pause
        threading.Thread(target=action, name="nbflow-pause", daemon=True).start()

    def _keep_saying(self, parent: Any) -> None:
        shell = get_ipython()
        # Without this, output of a thread goes to whatever cell ran last.
        if parent is not None and hasattr(shell, "set_thread_parent"):
            shell.set_thread_parent(parent)
        wait_s = INTERVAL_S if self._line.shown else GRACE_S
        while not self._over.wait(wait_s):
            self._say()
            wait_s = INTERVAL_S

    def _say(self) -> None:
        run = self._run
        if self._view.watched and not self._line.shown:
            return
        with self._lock:
            values = dict(self._values)
        elapsed_s = time.monotonic() - self._started_s
        text = progress.line(run.step, run.steps, values, status=run.status, elapsed_s=elapsed_s)
        if run.detail:
            text = f"{text}\n{run.detail}"
        self._line.put({"text/plain": text}, transient={progress.PROGRESS_KEY: True})


def _parent() -> Any:
    shell = get_ipython()
    return shell.get_parent() if hasattr(shell, "get_parent") else None
