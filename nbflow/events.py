"""What happened, as frozen values. Listeners see events and nothing else, and can never hurt a run.

Times are seconds: `wall_s` since the epoch, `start_s` and `duration_s` on the clock of the process that measured.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

log = logging.getLogger("nbflow.events")


@dataclass(frozen=True, slots=True)
class StepStarted:
    """A step was handed to its workers."""

    step: int
    wall_s: float


@dataclass(frozen=True, slots=True)
class StepFinished:
    """A step ended on all its workers; `error` is empty when it succeeded."""

    step: int
    wall_s: float
    duration_s: float
    error: str = ""


@dataclass(frozen=True, slots=True)
class NodeFinished:
    """One op ran, on `device`. Sent only while tracing."""

    node: str
    device: str
    start_s: float
    duration_s: float
    nbytes: int = 0


@dataclass(frozen=True, slots=True)
class OpTimes:
    """What each op of a bundle took in a step that was looked at (`nbflow.executor.LOOK_EVERY`): for the profile of
    measured times. `nodes` and `seconds` belong together."""

    bundle: str
    nodes: tuple[str, ...]
    seconds: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class TensorMoved:
    """A tensor crossed from one device to another: `nbytes` on the way, `via` shared memory, tcp or memory.

    It was handed over at `start_s` and was there after `duration_s`; across hosts, whose clocks differ, both count from
    the first bytes that came. `waited_s`: how long the receiver had nothing else to do. `compress`: the dtype on the
    way where it is another one, and `error` what that cost: the largest difference, as a part of the largest value.
    """

    key: str
    source: str
    destination: str
    nbytes: int
    start_s: float
    duration_s: float
    waited_s: float = 0.0
    via: str = ""
    compress: str = ""
    error: float = 0.0


@dataclass(frozen=True, slots=True)
class Metric:
    """One value of one metric of a training run. `replica` is empty for the mean over replicas."""

    run: str
    name: str
    step: int
    value: float
    wall_s: float
    replica: str = ""


@dataclass(frozen=True, slots=True)
class RunState:
    """A training run changed its status (see `nf.train.run`). `step` steps of `steps` are done.

    `loop` names the loop that says so, where a run has one per replica; empty for the run as a whole.
    """

    run: str
    status: str
    step: int
    steps: int
    wall_s: float
    detail: str = ""
    loop: str = ""


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint of a training run after `step` is whole, in `folder` of the machine of whoever wrote it. `loop`
    names the loop that did."""

    run: str
    step: int
    folder: str
    wall_s: float
    loop: str = ""


@dataclass(frozen=True, slots=True)
class WorkerState:
    """A worker changed state: joining, ready, busy, suspect, lost or left."""

    worker: str
    state: str
    address: str
    wall_s: float
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Log:
    """A line a worker wants people to see."""

    worker: str
    level: str
    message: str
    wall_s: float


Event = (
    StepStarted | StepFinished | NodeFinished | OpTimes | TensorMoved | Metric | RunState | Saved | WorkerState | Log
)
Listener = Callable[[Event], None]

EVENT_TYPES: tuple[type, ...] = (
    StepStarted,
    StepFinished,
    NodeFinished,
    OpTimes,
    TensorMoved,
    Metric,
    RunState,
    Saved,
    WorkerState,
    Log,
)


class Emitter:
    """Delivers events to listeners in order. A listener that raises is removed and logged; the run goes on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: list[Listener] = []

    def add(self, listener: Listener) -> Callable[[], None]:
        """Adds a listener; returns the function that removes it (safe to call twice)."""
        with self._lock:
            self._listeners.append(listener)

        def remove() -> None:
            with self._lock:
                if listener in self._listeners:
                    self._listeners.remove(listener)

        return remove

    def emit(self, event: Event) -> None:
        with self._lock:
            listeners = tuple(self._listeners)
        for listener in listeners:
            try:
                listener(event)
            except Exception:
                log.exception("a listener raised on %s and was removed", type(event).__name__)
                with self._lock:
                    if listener in self._listeners:
                        self._listeners.remove(listener)
