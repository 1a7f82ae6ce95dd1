"""The training loop. It runs on a worker, its leader, and drives all tasks that take part, without the notebook."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping

from nbflow.driver import Driver, Pending
from nbflow.errors import Cancelled, DataError, EndOfData, NbflowError
from nbflow.events import Event, Metric, RunState
from nbflow.transport import Evaluation, HostArray, Loop, LoopAction, Transport

log = logging.getLogger("nbflow.loop")

# Steps sent ahead of the one that is waited for: hides the command's latency behind the work of the steps before it.
AHEAD = 4
# A running loop says where it is this often.
STATE_EVERY_S = 0.2


class LoopControl:
    """What others ask of a running loop. Safe from any thread."""

    def __init__(self) -> None:
        self._wake = threading.Condition()
        self._stop = False
        self._paused = False
        self._cancelled = False
        self.flying: deque[Pending] = deque()  # the loop's steps in flight

    def apply(self, action: LoopAction) -> None:
        """Asks the loop to stop, pause or resume; "cancel" also cancels the steps in flight, and waits for the
        acknowledgements."""
        with self._wake:
            self._stop = self._stop or action in ("stop", "cancel")
            self._cancelled = self._cancelled or action == "cancel"
            if action in ("pause", "resume"):
                self._paused = action == "pause"
            self._wake.notify_all()
        if action == "cancel":
            for pending in tuple(self.flying):
                pending.cancel("the run was interrupted")

    @property
    def stopped(self) -> bool:
        return self._stop

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    @property
    def paused(self) -> bool:
        return self._paused and not self._stop

    def wait_while_paused(self, timeout_s: float) -> None:
        """Returns when the loop is no longer paused, or after `timeout_s`."""
        with self._wake:
            self._wake.wait_for(lambda: not self.paused, timeout_s)


def run_loop(
    loop: Loop, transports: Mapping[str, Transport], emit: Callable[[Event], None], control: LoopControl
) -> None:
    """Runs `loop` to its end, emitting Metric and RunState events. Never raises: a failure is the last RunState."""
    _Runner(loop, Driver(transports, loop.id), emit, control).run()


class _Runner:
    def __init__(self, loop: Loop, driver: Driver, emit: Callable[[Event], None], control: LoopControl) -> None:
        self.loop = loop
        self.driver = driver
        self.emit = emit
        self.control = control
        self.flying = control.flying
        self.last_done = loop.first - 1
        self.not_finite = ""  # the first metric that was NaN or infinite, for people
        self._due = 0  # the step in flight after which no other begins before it is evaluated; 0: none
        self._said = 0.0

    def run(self) -> None:
        try:
            self._say("running")
            ended = ("done", self._steps())
        except EndOfData as error:
            self._drain()
            ended = ("done", f"the data ended after step {self.last_done}: {error.message}")
        except Exception as error:  # noqa: BLE001  # the loop's thread is the top of the stack: everything is reported
            self._drain()
            failed = ("failed", f"{type(error).__name__}: {error}")
            ended = ("done", "") if isinstance(error, Cancelled) and self.control.stopped else failed
        self._leave()
        status, detail = ended
        if status == "done" and self.control.stopped:
            status, detail = "stopped", self.not_finite
        self._say(status, detail)

    def _leave(self) -> None:
        if not self.loop.finish:
            return
        try:
            self.driver.start(self.loop.finish, self.last_done).wait()
        except NbflowError as error:
            log.warning("loop %s could not say that it has ended: %s", self.loop.id, error)

    def _steps(self) -> str:
        loop = self.loop
        last = loop.first + loop.steps - 1
        number = loop.first
        while number <= last or self.flying:
            if self.control.paused and not self.flying:
                self._say("paused")
                while self.control.paused:
                    self.control.wait_while_paused(STATE_EVERY_S)
                self._say("running")
            halted = self.control.stopped or self.control.paused
            if number <= last and not halted and not self._due and len(self.flying) < AHEAD:
                report = number % loop.every == 0 or number == last
                self.flying.append(self.driver.start(loop.report if report else loop.step, number))
                if loop.evaluation is not None and loop.evaluation.is_due(number):
                    self._due = number
                number += 1
                continue
            if not self.flying:
                if self.control.stopped:
                    return self.not_finite
                continue
            pending = self.flying[0]  # stays there while it is waited for, so that "cancel" reaches it
            self._finish(pending, last)
            self.flying.popleft()
            if loop.evaluation is not None and pending.number == self._due:
                self._evaluate(loop.evaluation, pending.number)
                self._due = 0
            if self.not_finite and loop.stop_on_nan:
                self.control.apply("stop")
                self._drain()
        return self.not_finite

    def _finish(self, pending: Pending, last: int) -> None:
        fetches, _ = pending.wait()
        self.last_done = pending.number
        if pending.number % self.loop.every == 0 or pending.number == last:
            self._report(fetches, pending.number, time.time())
        if time.monotonic() - self._said > STATE_EVERY_S:
            self._say("running", self.not_finite)

    def _report(self, fetches: Mapping[str, HostArray], number: int, now: float) -> None:
        for metric in self.loop.metrics:
            self._tell(metric.name, number, float(fetches[metric.fetch]), now, self.loop.replica)

    def _tell(self, name: str, number: int, value: float, now: float, replica: str) -> None:
        self.emit(Metric(self.loop.run, name, number, value, now, replica))
        if not math.isfinite(value) and not self.not_finite:
            self.not_finite = f"{name} is {value} since step {number}"

    def _evaluate(self, evaluation: Evaluation, number: int) -> None:
        """Evaluates what step `number` left. A stop waits for it, "cancel" does not."""
        sums = [0.0] * len(evaluation.metrics)
        for batch in range(evaluation.batches):
            if self.control.cancelled:
                return
            # A number of its own for each batch, so that random ops draw anew.
            pending = self.driver.start(evaluation.plan, number * evaluation.batches + batch)
            self.flying.append(pending)
            try:
                fetches, _ = pending.wait()
            except EndOfData as error:
                message = f"the evaluation after step {number}: the data ended at batch {batch + 1} of "
                raise DataError(f"{message}{evaluation.batches}; let it .repeat()") from error
            self.flying.popleft()
            sums = [s + float(fetches[m.fetch]) for s, m in zip(sums, evaluation.metrics, strict=True)]
            if time.monotonic() - self._said > STATE_EVERY_S:
                self._say("running", f"evaluating: batch {batch + 1} of {evaluation.batches}")
        now = time.time()
        for total, metric in zip(sums, evaluation.metrics, strict=True):
            self._tell(metric.name, number, total / evaluation.batches, now, "")

    def _drain(self) -> None:
        """Waits for the steps in flight; their errors follow from the one that is being reported."""
        while self.flying:
            pending = self.flying.popleft()
            pending.cancel("the loop ended")

    def _say(self, status: str, detail: str = "") -> None:
        self._said = time.monotonic()
        steps = self.loop.first + self.loop.steps - 1
        self.emit(RunState(self.loop.run, status, self.last_done, steps, time.time(), detail, self.loop.id))
