"""The handle of a training run, which `start` makes. The loop itself is `nbflow.loop`, on the workers."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from nbflow.errors import GraphError, NbflowError, RunError, WorkerLost
from nbflow.events import Event, Listener, Log, Metric, RunState, Saved, WorkerState
from nbflow.prepare import Prepared
from nbflow.train.keeping import Keeper
from nbflow.train.planning import Member
from nbflow.train.record import Curve, Record, error_from
from nbflow.train.returning import Absent
from nbflow.transport import Cluster, HostArray, Loop, LoopAction, Transport

log = logging.getLogger("nbflow.train")

ENDED = ("done", "stopped", "failed")
# How long `stop` and an interrupt wait until the loops have said that they ended.
STOP_S = 10.0
# How often whoever waits for a run looks whether the workers that lead it are still there.
WATCH_S = 2.0
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
    process. `saved_by`: the worker that saves it.
    """

    def __init__(
        self,
        run_id: str,
        session: Door,
        members: Sequence[Member],
        names: Sequence[str],
        keeper: Keeper | None = None,
        *,
        evaluated: Sequence[str] = (),
        adopted: bool = False,
        saved_by: str = "",
    ) -> None:
        self.id = run_id
        self.saved_by = saved_by
        self.metric_names = (*names, *evaluated)
        self.steps = sum(m.last for m in members if m.counts)
        self.status = "starting"
        self.detail = ""
        self.error: NbflowError | None = None
        self.started_s = time.time()
        self.record = Record(self.metric_names)
        self._evaluated = frozenset(evaluated)
        self._session = session
        self._absent = Absent(run_id, session)
        self._heard: dict[str, Transport] = {}  # task -> the way on which it is listened to
        self._members = members
        self._progress = [m.loop.first - 1 for m in members]  # steps done, a member
        self._loops: dict[str, tuple[int, Loop]] = {}  # what runs now: loop id -> member, loop
        self._adopted = adopted
        self._stretch = 0
        self._keeper = keeper
        self._turn = threading.Event()  # a stretch has ended, or the run
        self._resting = False  # paused between two stretches
        self._saves: list[Path] = []
        self._saved_step = -1
        self._saved_s = 0.0  # when a worker did
        self._lost: set[str] = set()  # workers that the run goes on without
        self._asked: set[LoopAction] = set()
        self._lock = threading.RLock()
        self._done = threading.Event()
        self._states: dict[str, RunState] = {}
        self._removers: list[Callable[[], None]] = []

    # --- what it did -----------------------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Steps that are done, over all replicas."""
        with self._lock:
            return sum(self._counted())

    def _counted(self) -> list[int]:
        """The steps done by each member whose steps count."""
        return [done for done, m in zip(self._progress, self._members, strict=True) if m.counts]

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
        if self._keeper is None and not self._saves and not self.saved_by:
            raise GraphError("the run was started without checkpoint=…, so it has nowhere to save")
        before = len(self._saves)
        deadline = time.monotonic() + timeout
        stretch = -1
        while len(self._saves) == before and not self._done.is_set():
            if self._resting:
                self._turn.set()
            elif stretch != self._stretch:
                stretch = self._stretch
                # By the client: the end of a stretch, from which the next one goes on.
                self._send("save" if self.saved_by else "stop")
            if time.monotonic() > deadline:
                raise TimeoutError(f"no checkpoint was made within {timeout} s (step {self.step} of {self.steps})")
            self._done.wait(POLL_S)
        if self.error is not None:
            raise self.error
        if not self._saves:
            raise GraphError(f"the run has ended and saved nothing ({self.detail or self.status})")
        return self._saves[-1]

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
            self._lose(self._members[0].leader, error)
            return
        except NbflowError as error:
            self._fail(error)
            return
        for leader in {m.leader for m in self._members}:
            if leader not in transports:
                message = f"{leader}, which ran the training loop, has left the cluster"
                self._lose(leader, WorkerLost(message, worker=leader))

    def _control(self, action: LoopAction) -> None:
        with self._lock:  # noted first: a stretch that begins right now looks here
            self._asked.add(action)
            if action in ("pause", "resume"):
                self._asked.discard("resume" if action == "pause" else "pause")
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
            loops = [
                (self._members[index].leader, loop.id)
                for index, loop in self._loops.values()
                if everyone or self._members[index].counts
            ]
        for leader, loop_id in loops:
            if leader not in transports:
                continue
            try:
                transports[leader].control_loop(loop_id, action)
            except NbflowError as error:
                log.warning("%s could not be asked to %s: %s", leader, action, error)

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
        if self._keeper is not None:
            threading.Thread(target=self._keep, name="nbflow-checkpoints", daemon=True).start()
        self._begin_stretch()

    def take_up(self) -> None:
        """Hears what a run says from now on, and reads what it said before: when it is adopted, and when workers that
        could not be reached are there again. Raises Rejected when its workers have forgotten it."""
        transports = self._session.transports
        leaders = sorted({m.leader for m in self._members if m.leader in transports})
        with self._lock:
            if self._adopted and not self._loops:
                self._loops = {m.loop.id: (index, m.loop) for index, m in enumerate(self._members)}
        self._listen()
        for leader in leaders:
            after, more = 0, True
            while more:
                page = transports[leader].read_run(self.id, after)
                for event in page.events:
                    self._on_event(event)
                after, more = page.next, page.more

    def _listen(self) -> None:
        """Listens to all who take part, and are there."""
        transports = self._session.transports
        for task in sorted({task for m in self._members for task in m.loop.step} & set(transports)):
            if self._heard.get(task) is not transports[task]:
                self._heard[task] = transports[task]
                self._removers.append(transports[task].listen(self._on_event))

    def _is_mine(self, loop_id: str) -> bool:
        """Whether this is a loop that runs now, or, of an adopted run, a later stretch of one. The lock is held."""
        if loop_id in self._loops or not self._adopted:
            return loop_id in self._loops
        base, _, stretch = loop_id.partition(".")
        for known, (index, loop) in list(self._loops.items()):
            if known.partition(".")[0] == base and int(stretch or 0) > int(known.partition(".")[2] or -1):
                del self._loops[known]
                self._loops[loop_id] = (index, replace(loop, id=loop_id))
                return True
        return False

    def _begin_stretch(self) -> None:
        """Starts the loops: to their ends, or where there are checkpoints to the next one."""
        transports = self._session.transports
        with self._lock:
            self._states = {}
            self._loops = {}
            for index, member in enumerate(self._members):
                done = self._progress[index]
                if done < member.last and member.leader not in self._lost:
                    loop = self._next_loop(member, done)
                    self._loops[loop.id] = (index, loop)
            self._stretch += 1
            begun = list(self._loops.values())
        if not any(self._members[index].counts for index, _ in begun):
            self._end("done", f"it had made its {self.steps} steps before")
            return
        for member in self._members:
            if member.opening is not None:
                self._session.look(member.opening)
        for index, loop in begun:
            transports[self._members[index].leader].start_loop(loop)
        for action in ("cancel", "stop", "pause"):
            if action in self._asked:
                self._send(action)

    def _next_loop(self, member: Member, done: int) -> Loop:
        if self._keeper is None:
            return member.loop
        end = self._keeper.stretch_end(done, member.last, member.weight) if member.counts else member.last
        # A loop's id names its lane and its steps, which workers remember: never used twice.
        return replace(member.loop, id=f"{member.loop.id}.{self._stretch}", first=done + 1, steps=end - done)

    def _keep(self) -> None:
        """Saves between the stretches, until the run has ended."""
        try:
            while True:
                self._turn.wait()
                self._turn.clear()
                if self.status in ENDED or self._keeper is None:
                    return
                self._between(self._keeper)
        except NbflowError as error:
            self._fail(error)
        except Exception as error:
            log.exception("a checkpoint could not be made")
            self._fail(RunError(f"a checkpoint could not be made: {type(error).__name__}: {error}"))

    def _between(self, keeper: Keeper) -> None:
        with self._lock:
            loops = {k: v for k, v in self._loops.items() if self._members[v[0]].counts}
            states = {k: s for k, s in self._states.items() if k in loops}
        detail = next((s.detail for s in states.values() if s.detail), "")
        halted = any(s.status == "stopped" and s.detail for s in states.values())  # not a number: nothing to keep
        # What an interrupt cancelled may have been half made.
        if not halted and "cancel" not in self._asked:
            self._say("running", "saving")
            self._save(keeper)
        early = any(
            s.status == "done" and s.step < loops[k][1].first + loops[k][1].steps - 1 for k, s in states.items()
        )
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

    def _save(self, keeper: Keeper) -> None:
        known = bool(self._saves) and self._saved_step == self.step
        self._saves.append(self._saves[-1] if known else keeper.save(self.step, self._counted()))
        self._saved_step = self.step

    def _on_event(self, event: Event) -> None:
        match event:
            case Metric(run=self.id):
                self._on_metric(event)
            case RunState(run=self.id):
                self._on_state(event)
            case Saved(run=self.id):
                if event.wall_s > self._saved_s:  # else heard, and read again
                    self._saved_s = event.wall_s
                    self._saves.append(Path(event.folder))
                    self.record.add_state(event)
            case Log(level="progress") if self.status not in ENDED:
                # What takes long before a step can begin, such as filling a shuffle buffer; the next report follows.
                self._say(self.status, event.message)
            case WorkerState(state="lost"):
                self._lose(event.worker, WorkerLost(event.detail or f"{event.worker} was lost", worker=event.worker))

    def _lose(self, worker: str, error: WorkerLost) -> None:
        """Goes on without `worker` where the run can, and fails where it cannot."""
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
            for loop_id in [k for k, (index, _) in self._loops.items() if self._members[index].leader == worker]:
                del self._loops[loop_id]
                self._states.pop(loop_id, None)
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
        detail = event.detail
        with self._lock:
            if self.status in ENDED or not self._is_mine(event.loop):
                return
            before = self._states.get(event.loop)
            if before is not None and before.wall_s > event.wall_s:
                return  # read after what was heard
            self._states[event.loop] = event
            index = self._loops[event.loop][0]
            self._progress[index] = max(self._progress[index], event.step)
            member = self._members[index]
            # Nobody waits for the end of a loop that only gives to others: it may be stuck.
            loops = [k for k, (number, _) in self._loops.items() if self._members[number].counts]
            states = [self._states[k] for k in loops if k in self._states]
        if event.status == "failed":
            error = error_from(detail)
            if isinstance(error, WorkerLost) and not member.counts:
                self._lose(member.leader, error)
            else:
                self._fail(error)
            return
        if not member.counts:
            return
        if len(states) == len(loops) and all(s.status in ENDED for s in states):
            if self._keeper is not None:
                self._turn.set()
                return
            stopped = any(s.status == "stopped" for s in states)
            self._end("stopped" if stopped else "done", next((s.detail for s in states if s.detail), ""))
        elif event.status not in ENDED:
            self._say(event.status, detail)

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
        # The workers may free them, but those of loops that nobody waits for: they have still to say goodbye.
        self._members = [replace(m, plans=() if m.counts else m.plans, opening=None) for m in self._members]
        self._keeper = None
        self._done.set()
        self._turn.set()
        for remove in self._removers:
            remove()
