"""The curves of a training run: traits for what is saved, messages for what streams.

Threads: `set_status`, `add_points`, `mark`, `flush` and `finish` belong to one thread at a time, a `Bridge`'s while it
is open. Stop and pause arrive on whichever thread the kernel handles comms, so their callbacks must be thread-safe.
"""

from __future__ import annotations

import logging
import pathlib
import threading
import uuid
from array import array
from collections.abc import Callable, Iterable
from typing import Any

import anywidget
import traitlets

from nbflow_widgets import picture
from nbflow_widgets.bundle import Bundle, Metadata, static_bundle, widget_bundle
from nbflow_widgets.series import Key, Points

log = logging.getLogger("nbflow.widgets")

_STATIC = pathlib.Path(__file__).parent / "static"
# A chart is under a thousand pixels wide; a saved notebook need not carry more than two points for each.
SAVED_POINTS = 2000
# What a view that missed the start of a run gets.
_BACKFILL_POINTS = 20_000
OVER = ("done", "stopped", "failed")


class CurvesView(anywidget.AnyWidget):
    """Live curves with progress, Stop and Pause. Without a `Bridge`, each change is sent at once."""

    _esm = _STATIC / "curves.js"
    _css = _STATIC / "curves.css"

    # Names the model to its browser code, which sees several objects for it.
    uid = traitlets.Unicode().tag(sync=True)
    title = traitlets.Unicode().tag(sync=True)
    run_status = traitlets.Dict().tag(sync=True)
    snapshot = traitlets.Dict().tag(sync=True)
    smoothing = traitlets.Float(0.0, min=0.0, max=0.99).tag(sync=True)
    log_scale = traitlets.Bool(False).tag(sync=True)
    can_pause = traitlets.Bool(False).tag(sync=True)
    height = traitlets.Int(200, min=80).tag(sync=True)

    def __init__(self, title: str = "", **traits: Any) -> None:
        self._status = _status("starting", 0, 0, "", 0.0, -1.0)
        self._series: dict[Key, Points] = {}
        self._sent: dict[Key, int] = {}
        self._marks: list[tuple[int, str]] = []
        self._stop: list[Callable[[], None]] = []
        self._pause: list[Callable[[], None]] = []
        self._changed = False
        # Set by the comm's thread, read by the sender's.
        self._backfill = threading.Event()
        self._watched = False
        # A bridge collects changes and flushes them at its own pace.
        self.deferred = False
        super().__init__(uid=uuid.uuid4().hex, title=title, run_status=dict(self._status), **traits)
        self.on_msg(self._message)

    # --- what the run tells ---------------------------------------------------------------------

    def set_status(
        self, status: str, step: int = 0, steps: int = 0, detail: str = "", rate: float = 0.0, eta_s: float = -1.0
    ) -> None:
        """`rate` in steps a second, 0 when unknown; `eta_s` seconds left, negative when unknown."""
        self._status = _status(status, step, steps, detail, rate, eta_s)
        self._touch()

    def add_points(self, metric: str, replica: str, steps: Iterable[float], values: Iterable[float]) -> None:
        """Appends to one curve; `replica` is empty for the mean over replicas."""
        self._series.setdefault((metric, replica), Points()).extend(steps, values)
        self._touch()

    def mark(self, step: int, text: str) -> None:
        """Notes an incident at a step: a vertical line with a few words, those of all that happened there."""
        last = self._marks[-1] if self._marks else None
        if last is not None and last[0] == int(step):
            if text not in last[1]:
                self._marks[-1] = (int(step), f"{last[1]}, {text}")
        else:
            self._marks.append((int(step), text))
        self._touch()

    def finish(self) -> None:
        """Writes everything into the saved state, so that a notebook opened without a kernel shows the curves."""
        self.flush()
        parts = {key: points.thinned(SAVED_POINTS) for key, points in self._series.items()}
        with self.hold_sync():
            self.run_status = dict(self._status)
            self.snapshot = {
                "series": self._headers(parts),
                "marks": self._mark_records(),
                "steps": b"".join(points.steps.tobytes() for points in parts.values()),
                "values": b"".join(points.values.tobytes() for points in parts.values()),
            }

    # --- what the reader does -------------------------------------------------------------------

    def on_stop(self, callback: Callable[[], None]) -> None:
        """Called when Stop is pressed, on the thread that handles comms: it must not touch the user's names."""
        self._stop.append(callback)

    def on_pause(self, callback: Callable[[], None]) -> None:
        """Called when Pause or Resume is pressed (see `on_stop`); shows the button."""
        self._pause.append(callback)
        self.can_pause = True

    # --- sending --------------------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        """Something is waiting for `flush`."""
        return self._changed or self._backfill.is_set()

    def flush(self, *, whole: bool = False) -> None:
        """Sends what is new in one message; everything when `whole`, or when a view asked for it."""
        if self._backfill.is_set():
            self._backfill.clear()
            whole = True
        if not (self._changed or whole):
            return
        self._changed = False
        if whole:
            parts = {key: points.thinned(_BACKFILL_POINTS) for key, points in self._series.items()}
        else:
            fresh = {key: self._sent.get(key, 0) for key in self._series}
            parts = {key: points.since(fresh[key]) for key, points in self._series.items() if len(points) > fresh[key]}
        content = {
            "type": "points",
            "series": self._headers(parts),
            "marks": self._mark_records(),
            "status": self._status,
            "whole": whole,
        }
        buffers = [
            b"".join(points.steps.tobytes() for points in parts.values()),
            b"".join(points.values.tobytes() for points in parts.values()),
        ]
        self._sent = {key: len(points) for key, points in self._series.items()}
        self.send(content, buffers=buffers)
        if self._status["status"] != self.run_status["status"]:
            self.run_status = dict(self._status)

    # --- showing --------------------------------------------------------------------------------

    @property
    def watched(self) -> bool:
        """Whether some front end draws these curves: it has asked for their points."""
        return self._watched

    def png(self) -> bytes:
        curves = {key: points.thinned(SAVED_POINTS) for key, points in self._series.items()}
        plain = {key: (points.steps, points.values) for key, points in curves.items()}
        return picture.curves_png(self.title, self._status, plain, self._marks, log_scale=self.log_scale)

    def static_bundle(self) -> tuple[Bundle, Metadata]:
        """(data, metadata) with the PNG and the text, without the widget."""
        return static_bundle(self)

    def __str__(self) -> str:
        """`running · step 120 of 2000 · 85.2 steps/s · loss 0.31, accuracy 0.91`."""
        status = self._status
        parts = [self.title, status["status"]]
        parts.append(f"step {status['step']}" + (f" of {status['steps']}" if status["steps"] else ""))
        if status["rate"] > 0:
            parts.append(f"{status['rate']:.3g} steps/s")
        last: dict[str, float] = {}
        for (metric, replica), points in self._series.items():
            if points.values and (replica == "" or metric not in last):
                last[metric] = points.values[-1]
        parts.append(", ".join(f"{metric} {value:.4g}" for metric, value in last.items()))
        parts.append(status["detail"])
        return " · ".join(part for part in parts if part)

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[Bundle, Metadata]:
        return widget_bundle(self, self.model_id)

    # --- inside ---------------------------------------------------------------------------------

    def _touch(self) -> None:
        self._changed = True
        if not self.deferred:
            self.flush()

    def _headers(self, parts: dict[Key, Points]) -> list[dict[str, Any]]:
        """`from`: the index of a part's first point among all, counted from the end of what this part reaches."""
        return [
            {"metric": key[0], "replica": key[1], "n": len(points), "from": len(self._series[key]) - len(points)}
            for key, points in parts.items()
        ]

    def _mark_records(self) -> list[dict[str, Any]]:
        return [{"step": step, "text": text} for step, text in self._marks]

    def _message(self, _: object, content: dict[str, Any], buffers: list[memoryview]) -> None:
        kind = content.get("type")
        if kind == "backfill":
            self._watched = True
            self._backfill.set()
            if not self.deferred:
                self.flush()
        elif kind in ("stop", "pause"):
            for callback in self._stop if kind == "stop" else self._pause:
                try:
                    callback()
                except Exception:
                    # Widgets lose what a message handler raises; the log keeps it.
                    log.exception("a %s callback raised", kind)
        else:
            log.warning("the curves view sent a message of unknown type %r", kind)


def _status(status: str, step: int, steps: int, detail: str, rate: float, eta_s: float) -> dict[str, Any]:
    return {
        "status": status,
        "step": int(step),
        "steps": int(steps),
        "detail": detail,
        "rate": float(rate),
        "eta_s": float(eta_s),
    }


# Buffers are read by browsers, which are little-endian, as float64 and float32.
assert array("d").itemsize == 8
assert array("f").itemsize == 4
