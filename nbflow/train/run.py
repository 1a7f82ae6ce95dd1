"""The handle of a training run, which `start` makes. The loop itself is `nbflow.loop`, on the workers."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from nbflow.errors import GraphError, NbflowError, RunError, WorkerLost
from nbflow.events import Event, Listener, Log, Metric, RunState, Saved, WorkerState
from nbflow.prepare import Prepared
from nbflow.train.elastic import LOOK_S, Change, Elastic
from nbflow.train.keeping import Saves
from nbflow.train.lines import Lines
from nbflow.train.loops import ENDED, Loops
from nbflow.train.planning import Member, Planned
from nbflow.train.record import Curve, Record, error_from
from nbflow.train.returning import Absent
from nbflow.transport import Cluster, HostArray, LoopAction, Transport

log = logging.getLogger("nbflow.train")

# How long `stop` and an interrupt wait until the loops have said that they ended.
STOP_S = 10.0
# How often whoever waits for a run looks whether the workers that lead it are still there.
WATCH_S = 2.0
# How long a loop that ends after the steps in flight is waited for, before it is looked who is missing.
HALT_S = 2.0
# How often whoever waits for a checkpoint looks whether it is there.
POLL_S = 0.02


class Door(Protocol):
    """What a run needs of a Session; for one that another process started, of a cluster."""

    @property
    def cluster(self) -> Cluster: ...
    @property
    def transports(self) -> Mapping[str, Transport]: ...
    def look(self, prepared: Prepared) -> list[HostArray]: ...


class Run:
    """A training run: its progress, its curves, and the ways to stop it. Made by `nf.train.run` and `nf.train.attach`.

    `names`: of metrics. `evaluated`: of what is evaluated on the way. `adopted`: it goes on already, started by another
    process. `elastic`: for one whose workers may come and go.
    """

    def __init__(
        self,
        run_id: str,
        session: Door,
        planned: Planned,
        names: Sequence[str],
        *,
        evaluated: Sequence[str] = (),
        adopted: bool = False,
        elastic: Elastic | None = None,
    ) -> None:
        self.id = run_id
        self.saved_by = planned.saved_by
        self.metric_names = (*names, *evaluated)
        self.steps = sum(m.last for m in planned.members if m.counts)
        self.status = "starting"
        self.detail = ""
        self.error: NbflowError | None = None
        self.started_s = time.time()
        self.record = Record(self.metric_names)
        self._evaluated = frozenset(evaluated)
        self._session = session
        self._absent = Absent(run_id, session)
        self._lines = Lines(run_id, self._on_event)
        self._loops = Loops(planned.members)
        self._elastic = elastic
        self._adopted = adopted
        self._keeper = planned.keeper
        self._turn = threading.Event()  # a stretch has ended, or the run
        self._resting = False  # paused between two stretches
        self._saves = Saves()
        self._lost: set[str] = set()  # workers that the run goes on without
        self._asked: set[LoopAction] = set()
        self._lock = threading.RLock()
        self._done = threading.Event()

    # --- what it did -----------------------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Steps that are done, over all replicas."""
        with self._lock:
            return sum(self._loops.counted)

    @property
    def _members(self) -> Sequence[Member]:
        return self._loops.members

    @property
    def history(self) -> dict[str, Curve]:
        """Metric name -> float64 array of its values, one a report, and `step` -> their steps.

        With asynchronous replicas a value is the mean over the replicas that reported that step.
        """
        return self.record.history()

    @property
    def events(self) -> list[Event]:
        """All that was heard, in that order."""
        return self.record.events

    @property
    def changes(self) -> list[Change]:
        """Each time that the run went on with other workers (`elastic=True`), in order."""
        return [] if self._elastic is None else list(self._elastic.changes)

    def __repr__(self) -> str:
        last = ", ".join(f"{k} {v[-1]:.4g}" for k, v in self.history.items() if k != "step" and len(v))
        text = f"<Run {self.status}, step {self.step} of {self.steps}" + (f", {last}" if last else "") + ">"
        return text + (f" {self.detail}" if self.detail else "")

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Calls `listener` with each Metric and RunState of this run, from other threads; returns what ends it."""
        return self.record.listen(listener)

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

    def checkpoint(self, timeout: float = 60.0) -> Path:
        """Saves now, between two steps, and returns the folder, which is on the machine of `saved_by` where a worker
        saves; the last one when the run has ended.

        Raises GraphError for a run without `checkpoint=`, TimeoutError after `timeout` seconds, the run's error when it
        fails meanwhile.
        """
        if self._keeper is None and not self._saves.folders and not self.saved_by:
            raise GraphError("the run was started without checkpoint=…, so it has nowhere to save")
        before = len(self._saves.folders)
        deadline = time.monotonic() + timeout
        stretch = -1
        while len(self._saves.folders) == before and not self._done.is_set():
            if self._resting:
                self._turn.set()
            elif stretch != self._loops.stretch:
                stretch = self._loops.stretch
                # By the client: the end of a stretch, from which the next one goes on.
                self._send("save" if self.saved_by else "stop")
            if time.monotonic() > deadline:
                raise TimeoutError(f"no checkpoint was made within {timeout} s (step {self.step} of {self.steps})")
            self._done.wait(POLL_S)
        if self.error is not None:
            raise self.error
        if not self._saves.folders:
            raise GraphError(f"the run has ended and saved nothing ({self.detail or self.status})")
        return self._saves.folders[-1]

    def request_stop(self) -> None:
        """Asks to stop and returns at once; for buttons."""
        threading.Thread(target=self._control, args=("stop",), name="nbflow-stop", daemon=True).start()

    def wait(self, timeout: float | None = None) -> Run:
        """Waits until the run has ended. Raises TimeoutError after `timeout` seconds, and the run's error if it
        failed. An interrupt leaves the run going."""
        if not self.watch(timeout):
            raise TimeoutError(f"the run is still {self.status} after {timeout} s (step {self.step} of {self.steps})")
        if self.error is not None:
            raise self.error
        return self

    def watch(self, timeout: float | None = None) -> bool:
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
        except WorkerLost as error:
            if self._elastic is None:
                self._lose(self._members[0].leader, error)
            return
        except NbflowError as error:
            self._fail(error)
            return
        for leader in {m.leader for m in self._members} if self._elastic is None else ():
            if leader not in transports:
                message = f"{leader}, which ran the training loop, has left the cluster"
                self._lose(leader, WorkerLost(message, worker=leader))

    def _control(self, action: LoopAction) -> None:
        with self._lock:  # noted first: a stretch that begins right now looks here
            self._asked.add(action)
            if action in ("pause", "resume"):
                self._asked.discard("resume" if action == "pause" else "pause")
        if self._elastic is not None and action in ("stop", "cancel"):
            self._elastic.wait_no_more()
        try:
            self._send(action)
        except WorkerLost as error:  # asked again when it can be reached
            log.warning("the workers could not be asked to %s yet: %s", action, error)
        if self._resting and action != "pause":
            self._turn.set()

    def _send(self, action: LoopAction, *, everyone: bool = False) -> None:
        """Asks the loops that count. Those that only give to them go on and end, or wait, with them: one that stopped
        first would leave a step without what it needs, for which the others would wait with it."""
        transports = self._session.transports
        everyone = everyone or action == "cancel" or self.status in ENDED
        with self._lock:
            loops = self._loops.running(everyone=everyone)
        self._lines.send(transports, loops, action)

    def interrupt(self) -> None:
        """Cancels the steps in flight on every worker and waits until the loops have ended."""
        self._control("cancel")
        self._done.wait(STOP_S)

    def how_it_ended(self) -> str:
        """For people, after an interrupt."""
        tasks = ", ".join(sorted({task for m in self._members for task in m.loop.step}))
        if not self._done.is_set():
            return f"no word within {STOP_S:g} s that it was cancelled, from {tasks}"
        return f"cancelled on {tasks}; {self.status} at step {self.step} of {self.steps}"

    # --- what arrives ----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Starts the loops. Called once, by `nf.train.run`."""
        self._listen()
        if self._elastic is not None:
            self._elastic.arm(self._members)
        if self._keeper is not None or self._elastic is not None:
            threading.Thread(target=self._keep, name="nbflow-between", daemon=True).start()
        self._begin_stretch()

    def take_up(self) -> None:
        """Hears what a run says from now on, and reads what it said before: when it is adopted, and when workers that
        could not be reached are there again. Raises Rejected when its workers have forgotten it."""
        transports = self._session.transports
        leaders = {m.leader for m in self._members}
        with self._lock:
            if self._adopted:
                self._loops.adopt()
        self._listen()
        self._lines.read(transports, leaders)

    def _listen(self) -> None:
        """Listens to all who take part, and are there."""
        self._lines.listen(self._session.transports, {task for m in self._members for task in m.loop.step})

    def _begin_stretch(self) -> None:
        """Starts the loops: to their ends, or where there are checkpoints to the next one."""
        transports = self._session.transports
        several = self._keeper is not None or self._elastic is not None
        with self._lock:
            begun = self._loops.begin(self._stretch_end if several else None, self._lost)
        if not any(member.counts for member, _ in begun):
            self._end("done", f"it had made its {self.steps} steps before")
            return
        for member in self._members:
            if member.opening is not None:
                self._session.look(member.opening)
        for member, loop in begun:
            transports[member.leader].start_loop(loop)
        for action in ("cancel", "stop", "pause"):
            if action in self._asked:
                self._send(action)

    def _stretch_end(self, member: Member, done: int) -> int:
        """Up to which step `member`, which has done so many, runs next."""
        return member.last if self._keeper is None else self._keeper.stretch_end(done, member.last, member.weight)

    def _keep(self) -> None:
        """Does what is to be done between the stretches, until the run has ended."""
        try:
            while True:
                turned = self._turn.wait(None if self._elastic is None else LOOK_S)
                self._turn.clear()
                if self.status in ENDED:
                    return
                try:
                    if self._elastic is not None and (why := self._elastic.look()):
                        self._change(self._elastic, why)
                    elif turned and (self._resting or self._is_over()):
                        self._between()
                except WorkerLost as error:
                    if self._elastic is None or not self._elastic.forgives(error):
                        raise
        except NbflowError as error:
            self._fail(error)
        except Exception as error:
            log.exception("a run could not go on between two steps")
            self._fail(RunError(f"the run could not go on between two steps: {type(error).__name__}: {error}"))

    def _is_over(self) -> bool:
        """Whether the stretch has ended, and not because a worker is missed."""
        with self._lock:
            failed = any(state.status == "failed" for _, state in self._loops.states)
            return self._loops.over and not failed

    # --- other workers ---------------------------------------------------------------------------------------------

    def _change(self, elastic: Elastic, why: str) -> None:
        """Goes on with the workers that are there now."""
        log.info("run %s changes hands: %s", self.id, why)
        self._say("recovering", why)
        lanes = self._halt(elastic)
        if not elastic.gone and self._is_over() and self._is_at_its_end():
            self._between()
            return
        try:
            planned = elastic.go_on(lanes, self._loops.counted)
        except WorkerLost as error:  # and nothing helps
            if {"stop", "cancel"} & self._asked:
                self._end("stopped", error.message)
            else:
                self._fail(error)
            return
        self._lines.mark(self._session.transports, {m.leader for m in self._members})
        with self._lock:
            self._loops.replace(planned.members)
            self._resting = False
            self._keeper, self.saved_by = planned.keeper, planned.saved_by
        self._listen()
        self._say("running", str(elastic.changes[-1]))
        self._begin_stretch()

    def _halt(self, elastic: Elastic) -> list[str]:
        """Ends the loops: after the steps in flight, or where a worker is missing at once. The ids of them all."""
        with self._lock:
            lanes = [loop_id for _, loop_id in self._loops.running(everyone=True)]
            gives = any(not m.counts for m in self._members)
        lost = bool(elastic.gone)
        if not lost or gives:  # those that lead a step with backups have what they need, or wait for the others
            self._send("stop")
        if not lost:
            while not self._wait_over(HALT_S) and not elastic.gone and not self._done.is_set():
                continue
        elif gives:
            self._wait_over(HALT_S)
        if not self._wait_over(0):
            with self._lock:
                for task in elastic.gone:
                    self._loops.drop(task)
            self._send("cancel", everyone=True)
            self._wait_over(STOP_S)
        elif gives:
            self._send("stop", everyone=True)
        return lanes

    def _wait_over(self, timeout_s: float) -> bool:
        """Waits until all loops that count have ended."""
        deadline = time.monotonic() + timeout_s
        while True:
            with self._lock:
                if self._loops.over:
                    return True
            if time.monotonic() >= deadline:
                return False
            self._done.wait(POLL_S)

    # --- between two stretches ---------------------------------------------------------------------------------------

    def _is_at_its_end(self) -> bool:
        with self._lock:
            early = self._loops.early
        return early or self.step >= self.steps or bool({"stop", "cancel"} & self._asked)

    def _between(self) -> None:
        with self._lock:
            detail, early = self._loops.detail, self._loops.early
            # Not a number: nothing to keep.
            halted = any(state.status == "stopped" and state.detail for _, state in self._loops.states)
        # What an interrupt cancelled may have been half made.
        if self._keeper is not None and not halted and "cancel" not in self._asked:
            self._say("running", "saving")
            self._saves.make(self._keeper, self.step, self._loops.counted)
        if halted or ({"stop", "cancel"} & self._asked and self.step < self.steps):
            self._end("stopped", detail)
        elif early or self.step >= self.steps:
            self._end("done", detail)
        else:
            with self._lock:
                self._resting = "pause" in self._asked
            if self._resting:
                self._say("paused", "")
            else:
                self._send("stop", everyone=True)  # one that is late would go on beside the next
                self._begin_stretch()

    def _on_event(self, event: Event) -> None:
        match event:
            case Metric(run=self.id):
                self._on_metric(event)
            case RunState(run=self.id):
                self._on_state(event)
            case Saved(run=self.id):
                if self._saves.hear(event):
                    self.record.add_state(event)
            case Log(level="progress") if self.status not in ENDED:
                # What takes long before a step can begin, such as filling a shuffle buffer; the next report follows.
                self._say(self.status, event.message)
            case WorkerState(state="lost"):
                self._lose(event.worker, WorkerLost(event.detail or f"{event.worker} was lost", worker=event.worker))

    def _lose(self, worker: str, error: WorkerLost) -> None:
        """Goes on without `worker` where the run can, and fails where it cannot."""
        if self._elastic is not None:
            self._turn.set()
            return
        with self._lock:
            if worker in self._lost:
                return
            needed = any(worker == m.leader or worker in m.loop.step for m in self._members if m.counts)
            givers = {m.leader for m in self._members if not m.counts}
            spare = max((m.spare for m in self._members), default=0)
            if needed or worker not in givers or len(self._lost) >= spare:
                self._miss(worker, error)
                return
            self._lost.add(worker)
            self._loops.drop(worker)
        self._say(self.status, f"going on without {worker}")

    def _miss(self, worker: str, error: WorkerLost) -> None:
        """`worker` cannot be reached, and may be there."""
        if self.status not in ENDED and self._absent.miss(worker, error):
            self._say("recovering", error.message)
            threading.Thread(target=self._return, name="nbflow-return", daemon=True).start()

    def _return(self) -> None:
        """Waits for the workers that cannot be reached, and goes on with them."""
        error = self._absent.wait(self.take_up, self._done)
        if error is not None:
            # What cannot be reached may go on, and be taken up later.
            self._fail(error, stop=self._absent.found_gone)
            return
        for action in ("cancel", "stop", "pause"):
            if action in self._asked:
                self._send(action)

    def _on_metric(self, event: Metric) -> None:
        first = self._members[0].loop
        is_evaluation = event.name in self._evaluated
        if not is_evaluation and event.step % first.every and all(event.step != m.last for m in self._members):
            return  # the end of a stretch, which is nobody's business
        self.record.add_metric(event, self._members[0].weight)

    def _on_state(self, event: RunState) -> None:
        with self._lock:
            if self.status in ENDED:
                return
            if self._adopted:
                self._loops.follow(event.loop)
            member = self._loops.note(event)
            over, states, detail = self._loops.over, self._loops.states, self._loops.detail
        if member is None:
            return
        if event.status == "failed":
            error = error_from(event.detail)
            if self._elastic is not None and self._elastic.forgives(error):
                self._turn.set()
            elif isinstance(error, WorkerLost) and not member.counts:
                self._lose(member.leader, error)
            else:
                self._fail(error)
        elif not member.counts:
            return
        elif not over:
            if event.status not in ENDED:
                self._say(event.status, event.detail)
        elif self._keeper is not None or self._elastic is not None:
            self._turn.set()
        else:
            self._end("stopped" if any(s.status == "stopped" for _, s in states) else "done", detail)

    def _fail(self, error: NbflowError, *, stop: bool = True) -> None:
        with self._lock:
            if self.status in ENDED:
                return
            self.error = error
        self._end("failed", f"{type(error).__name__}: {error}")
        if stop and len(self._members) > 1:
            self.request_stop()

    def _say(self, status: str, detail: str) -> None:
        with self._lock:
            self.status, self.detail = status, detail
            state = RunState(self.id, status, self.step, self.steps, time.time(), detail)
        self.record.add_state(state)

    def _end(self, status: str, detail: str) -> None:
        self._say(status, detail)
        self._loops.release()
        self._keeper = None
        self._done.set()
        if self._elastic is not None:
            self._elastic.close()
        self._turn.set()
        self._lines.close()
