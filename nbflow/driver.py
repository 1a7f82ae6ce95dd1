"""One step over many workers: start it everywhere, gather what comes back, and cancel it everywhere when it fails.

`Session.run` uses it in the notebook and `loop.run_loop` on a worker; the code is the same.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from dataclasses import dataclass, field

from nbflow.errors import Cancelled, DeadlineExceeded, NbflowError, WorkerError, WorkerLost
from nbflow.events import Event
from nbflow.transport import HostArray, StepCommand, StepResult, Transport

# A worker acknowledges a cancelled step within this time, or is reported as not answering.
CANCEL_S = 5.0
# Beyond a step's own deadline, how long its workers may take to say that it passed.
GRACE_S = 5.0


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """What a worker answered when a step was cancelled; `error` is empty when it acknowledged."""

    task: str
    error: str = ""


@dataclass(slots=True)
class Pending:
    """A step in flight."""

    step_id: str
    number: int
    transports: Mapping[str, Transport]
    futures: Mapping[str, Future[StepResult]]
    deadline: float
    acknowledgements: tuple[Acknowledgement, ...] = field(default=())

    def wait(self) -> tuple[dict[str, HostArray], list[Event]]:
        """All fetches and trace events. On a failure, or an interrupt, the step is cancelled on every worker first.

        Raises the step's error; of several, the first that is not a consequence of the cancellation.
        """
        try:
            left = max(0.0, self.deadline - time.monotonic()) + GRACE_S
            failed, open_ = _outcome(tuple(self.futures.values()), left)
        except BaseException:
            self.cancel("interrupted")
            raise
        if failed or open_:
            self.cancel(f"step {self.number} failed on another worker" if failed else "the deadline passed")
            raise self._root_error()
        fetches: dict[str, HostArray] = {}
        events: list[Event] = []
        for future in self.futures.values():
            result = future.result()
            fetches.update(result.fetches)
            events.extend(result.events)
        return fetches, events

    def cancel(self, reason: str) -> tuple[Acknowledgement, ...]:
        """Cancels the step on all its workers and waits, up to CANCEL_S, until each acknowledged."""
        acks: dict[str, Future[None] | str] = {}
        for task, transport in self.transports.items():
            try:
                acks[task] = transport.cancel(self.step_id, reason)
            except WorkerError as error:
                acks[task] = str(error)
        wait([a for a in acks.values() if isinstance(a, Future)], timeout=CANCEL_S)
        self.acknowledgements = tuple(_acknowledged(task, ack) for task, ack in acks.items())
        return self.acknowledgements

    def _root_error(self) -> BaseException:
        # Workers that were cancelled because of the first failure report in a moment; the failure itself is there.
        wait(self.futures.values(), timeout=CANCEL_S)
        errors = [(t, f.exception() if f.done() else None) for t, f in self.futures.items()]
        found = [e for _, e in errors if e is not None]
        for kind in (WorkerLost, NbflowError):
            for error in found:
                if isinstance(error, kind) and not isinstance(error, Cancelled):
                    return error
        if found:
            return found[0]
        silent = ", ".join(t for t, f in self.futures.items() if not f.done())
        return DeadlineExceeded(f"step {self.number} was not finished by its deadline; no word from {silent}")


def _outcome(futures: Sequence[Future[StepResult]], timeout_s: float) -> tuple[bool, bool]:
    """Waits until all are done or one has failed. Whether one has failed; whether one is not done."""
    if len(futures) == 1:  # one worker is the usual case, and asking it costs a fifth of asking a set
        try:
            return futures[0].exception(timeout_s) is not None, False
        except TimeoutError:
            return False, True
    done, open_ = wait(futures, timeout=timeout_s, return_when=FIRST_EXCEPTION)
    return any(f.exception() is not None for f in done), bool(open_)


def _acknowledged(task: str, ack: Future[None] | str) -> Acknowledgement:
    if isinstance(ack, str):
        return Acknowledgement(task, ack)
    if not ack.done():
        return Acknowledgement(task, f"no acknowledgement within {CANCEL_S:g} s")
    error = ack.exception()
    return Acknowledgement(task, "" if error is None else str(error))


class Driver:
    """Starts steps of registered bundles in one lane."""

    def __init__(self, transports: Mapping[str, Transport], lane: str) -> None:
        self.transports = transports
        self.lane = lane
        self._count = itertools.count()

    def start(
        self,
        bundles: Mapping[str, str],
        number: int,
        feeds: Mapping[str, Mapping[str, HostArray]] | None = None,
        *,
        trace: bool = False,
        check_numerics: bool = False,
        deadline_s: float = 3600.0,
    ) -> Pending:
        """Sends one step's commands. `bundles`: task -> bundle id; `feeds`: task -> feed name -> value.

        Must be called from one thread at a time: the lane's order is the order of these calls.
        """
        step_id = f"{self.lane}/{next(self._count)}"
        futures: dict[str, Future[StepResult]] = {}
        for task, bundle in bundles.items():
            command = StepCommand(
                bundle,
                self.lane,
                step_id,
                number,
                (feeds or {}).get(task, {}),
                trace=trace,
                check_numerics=check_numerics,
                deadline_s=deadline_s,
            )
            try:
                futures[task] = self.transports[task].start(command)
            except WorkerError as error:
                failed: Future[StepResult] = Future()
                failed.set_exception(error)
                futures[task] = failed
        used = {task: self.transports[task] for task in bundles}
        return Pending(step_id, number, used, futures, time.monotonic() + deadline_s)
