"""What the loops of a run told: its events and the values of its metrics."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from nbflow import errors
from nbflow.errors import NbflowError, RunError
from nbflow.events import Emitter, Event, Listener, Metric, RunState, Saved

Curve = np.ndarray[Any, np.dtype[np.float64]]


class Record:
    """Everything that happened in a run, in the order in which it was heard. Safe from any thread."""

    def __init__(self, names: Sequence[str]) -> None:
        self.events: list[Event] = []
        self._values: dict[str, dict[int, dict[str, float]]] = {name: {} for name in names}
        self._emitter = Emitter()
        self._lock = threading.Lock()

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Calls `listener` with all that is added from now on; returns what ends it."""
        return self._emitter.add(listener)

    def add_state(self, state: RunState | Saved) -> None:
        with self._lock:
            self.events.append(state)
        self._emitter.emit(state)

    def add_metric(self, event: Metric, weight: int) -> None:
        """A value that a loop reported, of whose steps each counts for `weight` of the run's."""
        scaled = replace(event, step=event.step * weight)
        with self._lock:
            known = self._values.setdefault(event.name, {}).setdefault(scaled.step, {})
            if known.get(event.replica) == event.value:
                return  # heard, and read again
            self.events.append(scaled)
            known[event.replica] = event.value
        self._emitter.emit(scaled)

    def history(self) -> dict[str, Curve]:
        """See `Run.history`."""
        with self._lock:
            steps = sorted({s for series in self._values.values() for s in series})
            out = {"step": np.array(steps, dtype=np.float64)}
            for name, series in self._values.items():
                means = [np.mean(list(series[s].values())) if s in series else np.nan for s in steps]
                out[name] = np.array(means, dtype=np.float64)
            return out


def error_from(text: str) -> NbflowError:
    """The error that a loop reported as `Type: message`."""
    name, _, message = text.partition(": ")
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, NbflowError):
        return kind(message)
    return RunError(text)
