"""Events → widgets. One pump thread owns all sends: comms and traits are not thread-safe, runs are full of threads."""

from __future__ import annotations

import logging
import queue
import re
import threading
import time
from collections.abc import Callable

from nbflow.events import Event, Log, Metric, RunState, WorkerState
from nbflow_widgets.curves_view import CurvesView
from nbflow_widgets.scopes import short_device
from nbflow_widgets.series import Key, Progress

log = logging.getLogger("nbflow.widgets")

# At most ten messages a second a widget: Jupyter's server drops floods, and nobody sees more.
INTERVAL_S = 0.1
# A page that loads late misses messages, and cannot ask while a stock kernel runs a cell: everything is sent again
# in the first seconds and then now and then.
_WARM_UP_S = 3.0
_RESEND_S = 10.0

# An incident of more characters would hide the curve.
_INCIDENT = 40


class Bridge:
    """A listener (`run.listen(bridge)`) that draws what it hears on a CurvesView.

    `run`: only this run's events; empty for all. Events of any thread are welcome and cost a queue's put. `close`
    delivers what is left and joins the thread; it is safe to call twice, and `with Bridge(view):` calls it.
    """

    def __init__(self, curves: CurvesView | None = None, *, run: str = "", interval_s: float = INTERVAL_S) -> None:
        self._curves = curves
        self._run = run
        self._interval_s = interval_s
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._tasks: dict[str, Callable[[], None]] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._progress = Progress()
        self._status = "starting"
        self._detail = ""
        self._started_s = self._sent_s = time.monotonic()
        if curves is not None:
            curves.deferred = True
        self._thread = threading.Thread(target=self._pump, name="nbflow-widgets", daemon=True)
        self._thread.start()

    def __call__(self, event: Event) -> None:
        """Takes an event; never blocks. What comes after `close` is dropped."""
        if not self._closing.is_set():
            self._events.put(event)

    def submit(self, key: str, task: Callable[[], None]) -> None:
        """Runs `task` on the pump thread at its next turn; a newer task of the same key takes its place.

        For other widgets: `bridge.submit("cluster", lambda: view.set_workers(records))`.
        """
        with self._lock:
            self._tasks[key] = task

    def close(self, timeout_s: float = 5.0) -> bool:
        """Delivers what is left and ends the thread. False when it did not end within `timeout_s`."""
        self._closing.set()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            log.warning(
                "the widgets' thread did not end within %.1f s; the front end may miss the last values", timeout_s
            )
            return False
        if self._curves is not None:
            self._curves.deferred = False
        return True

    def __enter__(self) -> Bridge:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the pump's thread ----------------------------------------------------------------------

    def _pump(self) -> None:
        while not self._closing.wait(self._interval_s):
            self._turn()
        self._turn()

    def _turn(self) -> None:
        try:
            with self._lock:
                tasks, self._tasks = self._tasks, {}
            for task in tasks.values():
                task()
            if self._curves is not None:
                self._draw(self._curves)
        except Exception:
            # A widget that cannot be drawn must not end the others, nor hurt the run.
            log.exception("drawing on a widget failed")

    def _draw(self, curves: CurvesView) -> None:
        points: dict[Key, tuple[list[float], list[float]]] = {}
        changed = False
        while True:
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                break
            changed |= self._take(curves, event, points)
        for (metric, replica), (steps, values) in points.items():
            curves.add_points(metric, replica, steps, values)
        if changed:
            at = self._progress
            curves.set_status(self._status, at.step, at.steps, self._detail, at.rate, at.eta_s)
        if curves.pending:
            now = time.monotonic()
            whole = now - self._started_s < _WARM_UP_S or now - self._sent_s > _RESEND_S
            if whole:
                self._sent_s = now
            curves.flush(whole=whole)

    def _take(self, curves: CurvesView, event: Event, points: dict[Key, tuple[list[float], list[float]]]) -> bool:
        """Sorts one event in; True when the status line changes."""
        if isinstance(event, Metric) and self._run in ("", event.run):
            steps, values = points.setdefault((event.name, event.replica), ([], []))
            steps.append(event.step)
            values.append(event.value)
            if event.step > self._progress.step:
                self._progress.update(event.step, event.wall_s)
            return True
        if isinstance(event, RunState) and self._run in ("", event.run):
            if event.status == "recovering" and self._status != "recovering":
                curves.mark(event.step, _incident(event.detail))
            self._progress.steps = event.steps
            self._progress.update(event.step, event.wall_s)
            self._status, self._detail = event.status, event.detail
            return True
        if isinstance(event, WorkerState) and event.state == "lost":
            curves.mark(self._progress.step, f"{short_device(event.worker)} lost")
        elif isinstance(event, Log) and event.level in ("warning", "error"):
            self._detail = f"{short_device(event.worker)}: {event.message}" if event.worker else event.message
            return True
        return False


def _incident(detail: str) -> str:
    """What is written beside the line where a run recovers: who came or went, where `detail` says so in a few words."""
    short = re.sub(r"/job:[^,\s]+", lambda found: short_device(found.group()).removesuffix("/cpu:0"), detail)
    return short if detail.startswith("/job:") and len(short) <= _INCIDENT else "recovering"
