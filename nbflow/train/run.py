"""The handle of a training run, and how one is started. The loop itself is `nbflow.loop`, on the workers."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nbflow import errors
from nbflow.current import current_session
from nbflow.device import parse_device
from nbflow.errors import GraphError, NbflowError, RunError, WorkerLost
from nbflow.events import Emitter, Event, Listener, Log, Metric, RunState, WorkerState
from nbflow.graph import Node, Tensor, as_node
from nbflow.parallel import DataParallel, strategy_of
from nbflow.session import Prepared, Session
from nbflow.structure import Leaf, flatten
from nbflow.train.display import Display, open_display
from nbflow.transport import Loop, LoopAction, MetricSource

log = logging.getLogger("nbflow.train")

ENDED = ("done", "stopped", "failed")
# How long `stop` and an interrupt wait until the loops have said that they ended.
STOP_S = 10.0
# How often whoever waits for a run looks whether the workers that lead it are still there.
WATCH_S = 2.0


@dataclass(frozen=True, slots=True)
class _Member:
    """One loop of a run and the task that leads it.

    `weight`: how many global steps one of its steps counts for. `plans` keeps what it runs registered.
    """

    loop: Loop
    leader: str
    weight: int
    plans: tuple[Prepared, ...]


class Run:
    """A training run: its progress, its curves, and the ways to stop it. Made by `nf.train.run`."""

    def __init__(self, run_id: str, session: Session, members: Sequence[_Member], names: Sequence[str]) -> None:
        self.id = run_id
        self.metric_names = tuple(names)
        self.steps = sum(m.loop.steps for m in members)
        self.status = "starting"
        self.detail = ""
        self.error: NbflowError | None = None
        self.started_s = time.time()
        self.events: list[Event] = []
        self._session = session
        self._members = members
        self._emitter = Emitter()
        self._lock = threading.RLock()
        self._done = threading.Event()
        self._states: dict[str, RunState] = {}
        self._values: dict[str, dict[int, dict[str, float]]] = {name: {} for name in names}
        self._removers: list[Callable[[], None]] = []

    # --- what it did -----------------------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Steps that are done, over all replicas."""
        with self._lock:
            return sum(s.step for s in self._states.values())

    @property
    def history(self) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
        """Metric name -> float64 array of its values, one a report, and `step` -> their steps.

        With asynchronous replicas a value is the mean over the replicas that reported that step.
        """
        with self._lock:
            steps = sorted({s for series in self._values.values() for s in series})
            out = {"step": np.array(steps, dtype=np.float64)}
            for name, series in self._values.items():
                means = [np.mean(list(series[s].values())) if s in series else np.nan for s in steps]
                out[name] = np.array(means, dtype=np.float64)
            return out

    def __repr__(self) -> str:
        last = ", ".join(f"{k} {v[-1]:.4g}" for k, v in self.history.items() if k != "step" and len(v))
        text = f"<Run {self.status}, step {self.step} of {self.steps}" + (f", {last}" if last else "") + ">"
        return text + (f" {self.detail}" if self.detail else "")

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Calls `listener` with each Metric and RunState of this run, from other threads; returns what ends it."""
        return self._emitter.add(listener)

    # --- controlling it --------------------------------------------------------------------------------------------

    def stop(self, timeout: float | None = STOP_S) -> None:
        """Stops after the steps in flight, and waits up to `timeout` seconds until that has happened."""
        self._control("stop")
        self._done.wait(timeout)

    def pause(self) -> None:
        """Pauses after the steps in flight; `resume` goes on."""
        self._control("pause")

    def resume(self) -> None:
        """Goes on after `pause`."""
        self._control("resume")

    def request_stop(self) -> None:
        """Asks to stop and returns at once; for buttons."""
        threading.Thread(target=self._control, args=("stop",), name="nbflow-stop", daemon=True).start()

    def wait(self, timeout: float | None = None) -> Run:
        """Waits until the run has ended. Raises TimeoutError after `timeout` seconds, and the run's error if it
        failed. An interrupt leaves the run going."""
        if not self._watch(timeout):
            raise TimeoutError(f"the run is still {self.status} after {timeout} s (step {self.step} of {self.steps})")
        if self.error is not None:
            raise self.error
        return self

    def _watch(self, timeout: float | None = None) -> bool:
        """Waits for the end, and looks now and then whether there is anybody left to tell it. False: `timeout`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._done.is_set():
            left = WATCH_S if deadline is None else min(WATCH_S, deadline - time.monotonic())
            if left <= 0:
                return False
            if not self._done.wait(left):
                self._check_leaders()
        return True

    def _check_leaders(self) -> None:
        try:
            transports = self._session.transports
        except NbflowError as error:
            self._fail(error)
            return
        for member in self._members:
            if member.leader not in transports:
                message = f"{member.leader}, which ran the training loop, has left the cluster"
                self._fail(WorkerLost(message, worker=member.leader))

    def _control(self, action: LoopAction) -> None:
        transports = self._session.transports
        for member in self._members:
            if member.leader not in transports:
                continue
            try:
                transports[member.leader].control_loop(member.loop.id, action)
            except NbflowError as error:
                log.warning("%s could not be asked to %s: %s", member.leader, action, error)

    def _interrupt(self) -> None:
        """Cancels the steps in flight on every worker and waits until the loops have ended."""
        self._control("cancel")
        self._done.wait(STOP_S)

    def _how_it_ended(self) -> str:
        """For people, after an interrupt."""
        tasks = ", ".join(sorted({task for m in self._members for task in m.loop.step}))
        if not self._done.is_set():
            return f"no word within {STOP_S:g} s that it was cancelled, from {tasks}"
        return f"cancelled on {tasks}; {self.status} at step {self.step} of {self.steps}"

    # --- what arrives ----------------------------------------------------------------------------------------------

    def _start(self) -> None:
        transports = self._session.transports
        tasks = {task for m in self._members for task in m.loop.step}
        for task in sorted(tasks):
            self._removers.append(transports[task].listen(self._on_event))
        for member in self._members:
            transports[member.leader].start_loop(member.loop)

    def _on_event(self, event: Event) -> None:
        match event:
            case Metric(run=self.id):
                self._on_metric(event)
            case RunState(run=self.id):
                self._on_state(event)
            case Log(level="progress") if self.status not in ENDED:
                # What takes long before a step can begin, such as filling a shuffle buffer; the next report follows.
                self._say(self.status, event.message)
            case WorkerState(state="lost"):
                self._fail(WorkerLost(event.detail or f"{event.worker} was lost", worker=event.worker))

    def _on_metric(self, event: Metric) -> None:
        scaled = replace(event, step=event.step * self._members[0].weight)
        with self._lock:
            self.events.append(scaled)
            self._values.setdefault(event.name, {}).setdefault(scaled.step, {})[event.replica] = event.value
        self._emitter.emit(scaled)

    def _on_state(self, event: RunState) -> None:
        detail = event.detail
        with self._lock:
            self._states[event.loop] = event
            states = list(self._states.values())
            if self.status in ENDED:
                return
        if event.status == "failed":
            self._fail(_as_error(detail))
            return
        if len(states) == len(self._members) and all(s.status in ENDED for s in states):
            stopped = any(s.status == "stopped" for s in states)
            self._end("stopped" if stopped else "done", next((s.detail for s in states if s.detail), ""))
        elif event.status not in ENDED:
            self._say(event.status, detail)

    def _fail(self, error: NbflowError) -> None:
        with self._lock:
            if self.status in ENDED:
                return
            self.error = error
        self._end("failed", f"{type(error).__name__}: {error}")
        if len(self._members) > 1:
            self.request_stop()

    def _say(self, status: str, detail: str) -> None:
        with self._lock:
            self.status, self.detail = status, detail
            state = RunState(self.id, status, self.step, self.steps, time.time(), detail)
            self.events.append(state)
        self._emitter.emit(state)

    def _end(self, status: str, detail: str) -> None:
        self._say(status, detail)
        self._members = [replace(m, plans=()) for m in self._members]  # the workers may free them
        self._done.set()
        for remove in self._removers:
            remove()


def _as_error(text: str) -> NbflowError:
    """The error that a loop reported as `Type: message`."""
    name, _, message = text.partition(": ")
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, NbflowError):
        return kind(message)
    return RunError(text)


def run(
    step: Node,
    steps: int = 1000,
    metrics: Mapping[str, Any] | None = None,
    every: int = 10,
    *,
    background: bool = False,
    show: bool = True,
    stop_on_nan: bool = False,
    checkpoint: str | None = None,
) -> Run:
    """Runs `step` (from `optimizer.minimize`) `steps` times, on the workers.

    Every `every` steps, and at the last, `metrics` (name -> scalar tensor) are computed in the same step and sent
    back. `background=True` returns at once; otherwise the call waits, and an interrupt cancels the run on all workers.
    `stop_on_nan`: a metric that is NaN or infinite ends the run. `show`: live curves in a notebook, a progress bar
    elsewhere. Under asynchronous DataParallel `steps` counts the updates of all replicas together.

    Raises GraphError for a step that updates nothing or a metric that is not a scalar, and the run's own error.
    """
    if checkpoint is not None:
        raise GraphError("checkpoint=: checkpoints are not supported yet; leave it out")
    if steps < 1 or every < 1:
        raise GraphError(f"steps and every are at least 1, not {steps} and {every}")
    session = current_session()
    wanted = _metric_tensors(metrics or {})
    run_id = uuid.uuid4().hex[:12]
    members = _plan_loops(session, as_node(step), wanted, run_id, steps, every, stop_on_nan)
    made = Run(run_id, session, members, list(wanted))
    display = open_display(made) if show else None
    if background:
        made._start()
        threading.Thread(target=_follow, args=(made, display), name="nbflow-follow", daemon=True).start()
        return made
    try:
        made._start()
        made._watch()
    except BaseException as error:
        made._interrupt()
        error.add_note(made._how_it_ended())
        raise
    finally:
        if display is not None:
            display.finish()
    if made.error is not None:
        raise made.error
    return made


def _follow(made: Run, display: Display | None) -> None:
    """Watches over a run in the background."""
    made._watch()
    if display is not None:
        display.finish()


def _metric_tensors(metrics: Mapping[str, Any]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, value in metrics.items():
        leaves, _ = flatten(value)
        if len(leaves) != 1 or not isinstance(leaves[0], Tensor):
            raise GraphError(f"metric {name!r} is not a tensor: {value!r}")
        tensor = leaves[0]
        if tensor.spec.rank not in (0, None):
            message = f"metric {name!r} is not a scalar but {tensor.spec}; take its nf.mean"
            raise GraphError(message, where=tensor.node.where)
        found[name] = tensor
    return found


def _plan_loops(
    session: Session,
    step: Node,
    metrics: Mapping[str, Tensor],
    run_id: str,
    steps: int,
    every: int,
    stop_on_nan: bool,
) -> list[_Member]:
    """One loop for synchronous training, one a replica for asynchronous."""
    strategy = strategy_of(step)
    replicas = 1
    asynchronous = bool(strategy) and not DataParallel.from_attrs(strategy).sync
    if asynchronous:
        available = [i.spec for i in session.cluster.devices()]
        replicas = max(1, len(DataParallel.from_attrs(strategy).replica_devices(available)))
    members = []
    for index in range(min(replicas, steps)):
        chosen = index if asynchronous else None
        plain = session.prepare([step], {}, replica=chosen)
        leaves: list[Leaf] = [step, *metrics.values()]
        report = session.prepare(leaves, {}, replica=chosen) if metrics else plain
        members.append(
            _member(
                plain,
                report,
                list(metrics),
                Loop(
                    id=f"{run_id}-{index}",
                    run=run_id,
                    step=plain.bundle_ids,
                    report=report.bundle_ids,
                    metrics=(),
                    first=1,
                    steps=steps // replicas + (index < steps % replicas),
                    every=max(1, every // replicas),
                    stop_on_nan=stop_on_nan,
                    replica=f"replica_{index}" if asynchronous and replicas > 1 else "",
                ),
                replicas,
                index,
            )
        )
    session.last = report
    return members


def _member(plain: Prepared, report: Prepared, names: Sequence[str], loop: Loop, replicas: int, index: int) -> _Member:
    sources = [s for s in report.sources[1:] if s is not None]
    metrics = tuple(MetricSource(n, s.task, s.name) for n, s in zip(names, sources, strict=True))
    tasks = [parse_device(d).task_name for d in plain.replicas]
    leader = tasks[min(index, len(tasks) - 1)] if tasks else next(iter(plain.bundles))
    if leader not in plain.bundles:
        leader = next(iter(plain.bundles))
    return _Member(replace(loop, metrics=metrics), leader, replicas, (plain, report))
