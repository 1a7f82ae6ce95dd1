"""The training loop. It runs on a worker, its leader, and drives all tasks that take part, without the notebook."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from nbflow.driver import Driver, Pending
from nbflow.errors import Cancelled, CheckpointError, DataError, EndOfData, NbflowError
from nbflow.events import Event, Metric, RunState, Saved
from nbflow.saving import newest, write_step
from nbflow.transport import Evaluation, HostArray, Loop, LoopAction, Saving, Transport

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
        self._save = False
        self.flying: deque[Pending] = deque()  # the loop's steps in flight

    def apply(self, action: LoopAction) -> None:
        """Asks the loop to stop, pause, resume or save; "cancel" also cancels the steps in flight, and waits for the
        acknowledgements."""
        with self._wake:
            self._stop = self._stop or action in ("stop", "cancel")
            self._cancelled = self._cancelled or action == "cancel"
            self._save = self._save or action == "save"
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

    @property
    def is_to_save(self) -> bool:
        return self._save

    def begin_saving(self) -> None:
        """What was asked for is about to be done."""
        self._save = False

    def wait_while_paused(self, timeout_s: float) -> None:
        """Returns when the loop is no longer paused, or is to save, or after `timeout_s`."""
        with self._wake:
            self._wake.wait_for(lambda: self._save or not self.paused, timeout_s)


def run_loop(
    loop: Loop,
    transports: Mapping[str, Transport],
    emit: Callable[[Event], None],
    control: LoopControl,
    folder: Callable[[str], Path] = Path,
) -> None:
    """Runs `loop` to its end, emitting Metric, RunState and Saved events. Never raises: a failure is the last RunState.

    `folder`: where to save, from what the loop asks for; raises Rejected where it may not.
    """
    _Runner(loop, Driver(transports, loop.id), emit, control, folder).run()


class _Runner:
    def __init__(
        self,
        loop: Loop,
        driver: Driver,
        emit: Callable[[Event], None],
        control: LoopControl,
        folder: Callable[[str], Path],
    ) -> None:
        self.loop = loop
        self.folder = folder
        self.driver = driver
        self.emit = emit
        self.control = control
        self.flying = control.flying
        self.last_done = loop.first - 1
        self.not_finite = ""  # the first metric that was NaN or infinite, for people
        self._due = 0  # the step in flight after which no other begins before it is looked at; 0: none
        self._saved = loop.first - 1 if loop.first > 1 else -1  # the step of the last checkpoint
        self._said = 0.0
        self._left = False

    def run(self) -> None:
        try:
            self._say("running")
            ended = ("done", self._until_the_end())
            self._leave()
            # What a stop leaves is kept, but not when it is there because of what is no number.
            halted = self.control.cancelled or (self.control.stopped and self.not_finite)
            if self._saved != self.last_done and not halted:
                self._save()
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
        """Runs what ends the loop, once: before the last step's values are looked at, for it may change them."""
        if not self.loop.finish or self._left:
            return
        self._left = True
        try:
            self.driver.start(self.loop.finish, self.last_done).wait()
        except NbflowError as error:
            log.warning("loop %s could not say that it has ended: %s", self.loop.id, error)

    def _until_the_end(self) -> str:
        try:
            return self._steps()
        except EndOfData as error:
            self._drain()
            return f"the data ended after step {self.last_done}: {error.message}"

    def _steps(self) -> str:
        loop = self.loop
        last = loop.first + loop.steps - 1
        number = loop.first
        while number <= last or self.flying:
            if self.control.is_to_save and not self.flying:
                self._save()
            if self.control.paused and not self.flying:
                self._rest()
            halted = self.control.stopped or self.control.paused or self.control.is_to_save
            if number <= last and not halted and not self._due and len(self.flying) < AHEAD:
                report = number % loop.every == 0 or number == last
                self.flying.append(self.driver.start(loop.report if report else loop.step, number))
                if self._is_due(number):
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
            if pending.number == self._due:
                self._look_at(pending.number)
                self._due = 0
            if self.not_finite and loop.stop_on_nan:
                self.control.apply("stop")
                self._drain()
        return self.not_finite

    def _is_due(self, number: int) -> bool:
        """Whether something is done after step `number`, before the next."""
        loop = self.loop
        evaluates = loop.evaluation is not None and loop.evaluation.is_due(number)
        return evaluates or (loop.saving is not None and loop.saving.is_due(number))

    def _look_at(self, number: int) -> None:
        evaluation, saving = self.loop.evaluation, self.loop.saving
        if number == self.loop.first + self.loop.steps - 1:
            self._leave()
        if evaluation is not None and evaluation.is_due(number):
            self._evaluate(evaluation, number)
        if saving is not None and saving.is_due(number) and not (self.not_finite and self.loop.stop_on_nan):
            self._save()

    def _rest(self) -> None:
        """Waits while the loop is paused; saves meanwhile, when asked."""
        while self.control.paused:
            self._say("paused")
            while self.control.paused and not self.control.is_to_save:
                self.control.wait_while_paused(STATE_EVERY_S)
            if self.control.is_to_save:
                self._save()
        self._say("running")

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

    def _save(self) -> None:
        """A checkpoint of what the last step left, unless that is the last one. A stop waits for it, "cancel" does
        not."""
        self.control.begin_saving()
        saving = self.loop.saving
        if saving is None:
            return
        number = self.last_done
        folder = self.folder(saving.folder)
        if number != self._saved:
            self._say("running", "saving")
            try:
                write_step(folder, number, [number], self._shards(saving), json.loads(saving.about))
            except CheckpointError as error:
                last = newest(folder)
                kept = "there is none before it" if last is None else f"{last.name} is the last one"
                raise CheckpointError(f"no checkpoint of step {number}: {error.message}; {kept}") from error
            self._saved = number
        made = folder / f"step-{number:08d}"
        self.emit(Saved(self.loop.run, number, str(made), time.time(), self.loop.id))

    def _shards(self, saving: Saving) -> Iterator[dict[str, HostArray]]:
        """The values that are saved, as they are now."""
        for shard in saving.shards:
            pending = self.driver.start(shard.plan, 0)
            self.flying.append(pending)
            fetches, _ = pending.wait()
            self.flying.popleft()
            if time.monotonic() - self._said > STATE_EVERY_S:
                self._say("running", "saving")
            yield {value.name: fetches[value.fetch] for value in shard.values}

    def _drain(self) -> None:
        """Waits for the steps in flight; their errors follow from the one that is being reported."""
        while self.flying:
            pending = self.flying.popleft()
            pending.cancel("the loop ended")

    def _say(self, status: str, detail: str = "") -> None:
        self._said = time.monotonic()
        steps = self.loop.first + self.loop.steps - 1
        self.emit(RunState(self.loop.run, status, self.last_done, steps, time.time(), detail, self.loop.id))
