"""Threads around `step`: runs the plans of one session on one worker.

Commands of one lane run one after the other, on the lane's own thread; lanes run beside each other. Nothing else here
blocks, so cancelling and asking always work. An `Executor` is a complete `Transport`: within a process it is the door
itself, and a gRPC server only passes messages on to it.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from nbflow.backends.base import Backend
from nbflow.backends.null import NullBackend
from nbflow.backends.null.array import MARK, NullArray, describe, described
from nbflow.backends.null.clock import Link
from nbflow.device import parse_device
from nbflow.errors import Cancelled, NbflowError, Rejected, let_go
from nbflow.events import Emitter, Event, Listener, Log, OpTimes
from nbflow.loop import LoopControl, run_loop
from nbflow.machines import Machine
from nbflow.plan import Bundle
from nbflow.program import Program, StepToken
from nbflow.rendezvous import REMEMBERED, Rendezvous, lane_of
from nbflow.runs import RunBook, listening
from nbflow.saving import ANYWHERE, allowed, look
from nbflow.state import StateStore
from nbflow.transport import (
    FolderInfo,
    HostArray,
    Loop,
    LoopAction,
    Moved,
    Outbox,
    RunPage,
    Sending,
    StepCommand,
    StepResult,
    Transport,
    WorkerInfo,
)

log = logging.getLogger("nbflow.executor")

# A lane's thread ends after this long without a command; the next command starts another.
LANE_IDLE_S = 10.0
# Every so many steps of a bundle one is looked at, op by op, for the profile of measured times; the first of them when
# memory and caches are warm. benchmarks/looking.py says what that costs.
LOOK_EVERY = 100
LOOK_FIRST = 10
# How long `close` waits for a lane or loop whose step was cancelled.
CLOSE_S = 5.0


class _Lane:
    """One ordered queue of commands and the thread that runs them. `retire(lane)` says whether an idle lane may end;
    from then on nobody puts anything in."""

    def __init__(
        self,
        name: str,
        run: Callable[[StepCommand, Future[StepResult]], None],
        retire: Callable[[_Lane], bool],
    ) -> None:
        self.name = name
        self.queue: SimpleQueue[tuple[StepCommand, Future[StepResult]] | None] = SimpleQueue()
        self._run = run
        self._retire = retire
        self._thread = threading.Thread(target=self._loop, name=f"nbflow-lane-{name}", daemon=True)
        self._thread.start()

    def _loop(self) -> None:
        while True:
            try:
                item = self.queue.get(timeout=LANE_IDLE_S)
            except Empty:
                if self._retire(self):
                    return
                continue
            if item is None:
                return
            self._run(*item)

    def close(self, timeout_s: float) -> None:
        self.queue.put(None)
        self._thread.join(timeout_s)


class Executor:
    """One session on one worker. `peers(task)` gives the leader of a loop the way to another task of the session.

    `checkpoints`: the folder below which loops may save; None: nowhere.
    """

    def __init__(
        self,
        info: WorkerInfo,
        backends: Mapping[str, Backend],
        session: str,
        outbox: Outbox,
        *,
        peers: Callable[[str], Transport] | None = None,
        checkpoints: Path | None = ANYWHERE,
    ) -> None:
        self._info = info
        self._checkpoints = checkpoints
        self._backends = backends
        null = backends.get("null")
        self._null_link = null.link if isinstance(null, NullBackend) else Link(Machine())
        self._session = session
        self._life = uuid.uuid4().hex
        self._outbox = outbox
        self._peers = peers
        self._lock = threading.Lock()
        self._programs: dict[str, tuple[Program, ...]] = {}
        self._runs: dict[str, int] = {}  # bundle -> how often it ran
        self._lanes: dict[str, _Lane] = {}
        self._running: dict[str, tuple[StepToken, Future[None]]] = {}
        self._cancelled: OrderedDict[str, str] = OrderedDict()
        self._abandoned: OrderedDict[str, None] = OrderedDict()  # lanes
        self._loops: dict[str, tuple[LoopControl, threading.Thread]] = {}
        self._closed = False
        self.state = StateStore(self._say)
        self.rendezvous = Rendezvous(outbox)
        self.events = Emitter()
        self.runs = RunBook()

    # --- Transport ---------------------------------------------------------------------------------------------

    @property
    def worker(self) -> WorkerInfo:
        return self._info

    @property
    def life(self) -> str:
        return self._life

    def register(self, bundle: Bundle, *, timeout_s: float = 60.0) -> None:
        """Prepares the programs of a bundle. Raises Rejected for an op or device this worker does not have."""
        with self._lock:
            if bundle.id in self._programs:
                return
        task = self._info.task_name
        for plan in bundle.plans:
            if parse_device(plan.device).task_name != task:
                raise Rejected(f"a plan for {plan.device} was given to {task}", worker=task)
        programs = tuple(Program.bind(plan, self._backends, task) for plan in bundle.plans)
        with self._lock:
            self._programs.setdefault(bundle.id, programs)

    def start(self, command: StepCommand) -> Future[StepResult]:
        future: Future[StepResult] = Future()
        with self._lock:
            if self._closed:
                future.set_exception(Rejected(f"session {self._session} is closed", worker=self._info.task_name))
                return future
            lane = self._lanes.get(command.lane)
            if lane is None:
                lane = self._lanes[command.lane] = _Lane(command.lane, self._run_command, self._retire)
            lane.queue.put((command, future))
        return future

    def cancel(self, step_id: str, reason: str) -> Future[None]:
        done: Future[None] = Future()
        with self._lock:
            self._cancelled[step_id] = reason
            while len(self._cancelled) > REMEMBERED:
                self._cancelled.popitem(last=False)
            running = self._running.get(step_id)
        if running is None:
            self.rendezvous.end(step_id)
            done.set_result(None)
            return done
        token, ended = running
        token.error = Cancelled(reason, worker=self._info.task_name)
        self.rendezvous.abort(step_id, token.error)
        return ended

    def drop_state(self, keys: Sequence[str], *, timeout_s: float = 10.0) -> None:
        self.state.drop(keys)

    def unregister(self, bundles: Sequence[str], *, timeout_s: float = 10.0) -> None:
        with self._lock:
            for bundle in bundles:
                self._programs.pop(bundle, None)
                self._runs.pop(bundle, None)

    def start_loop(self, loop: Loop, *, timeout_s: float = 30.0) -> None:
        tasks = {*loop.step, *loop.report, *loop.finish, *(loop.evaluation.plan if loop.evaluation is not None else ())}
        if loop.saving is not None:
            self._folder(loop.saving.folder)
            tasks.update(*(shard.plan for shard in loop.saving.shards))
        transports = {task: self._peer(task) for task in tasks}
        control = LoopControl()
        thread = threading.Thread(
            target=self._run_loop,
            args=(loop, transports, control),
            name=f"nbflow-loop-{loop.id}",
            daemon=True,
        )
        with self._lock:
            if loop.id in self._loops:
                raise Rejected(f"loop {loop.id} is already running", worker=self._info.task_name)
            self._loops[loop.id] = (control, thread)
        self.runs.begin(loop)
        thread.start()

    def control_loop(self, loop_id: str, action: LoopAction, *, timeout_s: float = 10.0) -> None:
        if action == "abandon":
            self._abandon(loop_id)
            return
        with self._lock:
            found = self._loops.get(loop_id)
        if found is not None:
            found[0].apply(action)

    def listen(self, listener: Listener) -> Callable[[], None]:
        return self.events.add(listener)

    def read_run(self, run: str, after: int = 0, *, timeout_s: float = 10.0) -> RunPage:
        return self.runs.read(run, after)

    def look_at_folder(self, folder: str, mark: str, *, timeout_s: float = 10.0) -> FolderInfo:
        return FolderInfo(*look(self._folder(folder), mark))

    @property
    def looping(self) -> bool:
        """Whether a loop is led from here, paused ones included."""
        with self._lock:
            return bool(self._loops)

    def close(self) -> None:
        """Cancels what runs, waits for it up to CLOSE_S, and frees the session's state."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            loops = list(self._loops.values())
            lanes = list(self._lanes.values())
            running = list(self._running)
        for control, _ in loops:
            control.apply("stop")
        for step_id in running:
            self.cancel(step_id, "the session was closed")
        for _, thread in loops:
            if thread is not threading.current_thread():
                thread.join(CLOSE_S)
        for lane in lanes:
            lane.close(CLOSE_S)
        self.state.clear()

    # --- Inbox ---------------------------------------------------------------------------------------------------

    def deliver(self, step_id: str, key: str, value: HostArray, moved: Moved | None = None) -> None:
        if self._abandoned and lane_of(step_id) in self._abandoned:
            return
        if MARK not in key:
            self.rendezvous.deliver(step_id, key, value, moved)
            return
        plain, zeros, at = described(key)
        self._null_link.arrive(zeros.nbytes, at, lambda: self.rendezvous.deliver(step_id, plain, zeros))

    def fail(self, step_id: str, error: NbflowError) -> None:
        with self._lock:
            running = self._running.get(step_id)
        if running is not None:
            running[0].error = running[0].error or error
        self.rendezvous.abort(step_id, error)

    # --- inside ----------------------------------------------------------------------------------------------------

    def _say(self, text: str) -> None:
        self.events.emit(Log(self._info.task_name, "progress", text, time.time()))

    def _folder(self, folder: str) -> Path:
        """`folder`, where this worker may save there."""
        try:
            return allowed(self._checkpoints, folder)
        except Rejected as error:
            error.worker = error.worker or self._info.task_name
            raise

    def _peer(self, task: str) -> Transport:
        if task == self._info.task_name:
            return self
        if self._peers is None:
            raise Rejected(f"this worker cannot reach {task}", worker=self._info.task_name)
        return self._peers(task)

    def _abandon(self, lane: str) -> None:
        """Nothing of `lane` runs here from now on, nor is anything kept for it."""
        with self._lock:
            self._abandoned[lane] = None
            while len(self._abandoned) > REMEMBERED:
                self._abandoned.popitem(last=False)
            found = self._loops.get(lane)
            running = [step_id for step_id in self._running if lane_of(step_id) == lane]
        ends = [self.cancel(step_id, "its run goes on without it") for step_id in running]
        if found is not None:
            # Elsewhere: it waits until the others have acknowledged, and some of them may be gone.
            threading.Thread(target=found[0].apply, args=("cancel",), name="nbflow-abandon", daemon=True).start()
        wait(ends, timeout=CLOSE_S)
        self.rendezvous.end_all(lane)

    def _retire(self, lane: _Lane) -> bool:
        with self._lock:
            if not lane.queue.empty():
                return False
            self._lanes.pop(lane.name, None)
            return True

    def _run_loop(self, loop: Loop, transports: Mapping[str, Transport], control: LoopControl) -> None:
        run_loop(loop, transports, listening(self.runs, self.events.emit), control, self._folder)
        with self._lock:
            self._loops.pop(loop.id, None)

    def _run_command(self, command: StepCommand, future: Future[StepResult]) -> None:
        ended: Future[None] = Future()
        deadline = time.monotonic() + command.deadline_s
        token = StepToken(command.step_id, command.number, deadline, command.trace, command.check_numerics)
        with self._lock:
            reason = self._cancelled.get(command.step_id)
            if command.lane in self._abandoned:
                reason = "its run goes on without it"
            programs = self._programs.get(command.bundle)
            if reason is None and programs is not None:
                self._running[command.step_id] = (token, ended)
                runs = self._runs[command.bundle] = self._runs.get(command.bundle, 0) + 1
                if runs % LOOK_EVERY == LOOK_FIRST and not command.trace and not command.check_numerics:
                    token.times = []
        try:
            outcome = self._outcome(programs, command, token, reason)
        finally:
            # Freed before the future fires, so that "the step is over" also means "nothing of it is left".
            self.rendezvous.end(command.step_id)
            with self._lock:
                self._running.pop(command.step_id, None)
            ended.set_result(None)
        if isinstance(outcome, Exception):
            let_go(outcome)
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
            if token.times:
                self.events.emit(OpTimes(command.bundle, *map(tuple, zip(*token.times, strict=True))))

    def _outcome(
        self, programs: Sequence[Program] | None, command: StepCommand, token: StepToken, reason: str | None
    ) -> StepResult | Exception:
        try:
            if reason is not None:
                raise Cancelled(reason, worker=self._info.task_name)
            if programs is None:
                raise Rejected(f"bundle {command.bundle} is not registered here", worker=self._info.task_name)
            return self._run_programs(programs, command, token)
        except Exception as error:  # noqa: BLE001  # whatever a step raises belongs to whoever asked for it
            return error

    def _run_programs(self, programs: Sequence[Program], command: StepCommand, token: StepToken) -> StepResult:
        fetches: dict[str, HostArray] = {}
        events: list[Event] = []
        if len(programs) == 1:
            fetches.update(self._run_program(programs[0], command, token, events))
            return StepResult(command.step_id, fetches, tuple(events))
        results: SimpleQueue[dict[str, HostArray] | Exception] = SimpleQueue()

        def run(program: Program) -> None:
            try:
                results.put(self._run_program(program, command, token, events))
            except Exception as error:  # noqa: BLE001  # handed to the thread that waits for it
                results.put(error)

        threads = [threading.Thread(target=run, args=(p,), name=f"nbflow-{p.device}", daemon=True) for p in programs]
        for thread in threads:
            thread.start()
        errors: list[Exception] = []
        for _ in threads:
            result = results.get(timeout=max(1.0, token.deadline - time.monotonic() + CLOSE_S))
            if isinstance(result, Exception):
                errors.append(result)
            else:
                fetches.update(result)
        if errors:
            raise next((e for e in errors if not isinstance(e, Cancelled)), errors[0])
        return StepResult(command.step_id, fetches, tuple(events))

    def _run_program(
        self, program: Program, command: StepCommand, token: StepToken, events: list[Event]
    ) -> dict[str, HostArray]:
        try:
            return program.run(command.feeds, token, self.state, self.rendezvous, self._send, events)
        except Exception as error:
            token.error = token.error or (error if isinstance(error, NbflowError) else Cancelled(str(error)))
            self.rendezvous.abort(command.step_id, token.error)
            raise

    def _send(
        self, step_id: str, key: str, destination_task: str, value: Any, more: bool = False, error: float = 0.0
    ) -> Sending | None:
        if destination_task != self._info.task_name:
            if isinstance(value, NullArray):
                key, value = describe(key, value, self._null_link.leave(value.nbytes))
            return self._outbox.send(destination_task, step_id, key, value, more=more, error=error)
        start = time.monotonic()
        copied = value.copy()
        self.rendezvous.deliver(step_id, key, copied, Moved(value.nbytes, start, time.monotonic(), "memory", error))
        return None
