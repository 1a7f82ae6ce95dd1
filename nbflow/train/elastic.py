"""Workers that come and go while a run goes on: who takes part, what has changed, and where the run goes on then.

A run changes hands between two steps. When a worker has come, or is about to be sent away, the loops stop after the
steps in flight; when one was lost, these are cancelled. Then the lanes of all loops are abandoned, so that nothing of
the past can happen any more; the workers that are left say how many steps were made (`parallel.whole`) and where their
data stand (`places`); values that would go with a worker are carried to others; and the loops are planned anew for the
workers that are there. Nothing is initialised again. Only values that were lost with a worker come from the last
checkpoint, with the steps since, or end the run.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from nbflow.device import DeviceSpec, parse_device
from nbflow.errors import GraphError, NbflowError, WorkerLost
from nbflow.graph import Node, Tensor
from nbflow.parallel import DataParallel, LocalSGD, read_strategy, strategy_of
from nbflow.parallel.whole import counter_name, counts
from nbflow.prepare import Prepared, state_key
from nbflow.rewrite import copy_nodes, new_like
from nbflow.session import Session
from nbflow.train.keeping import Keeper
from nbflow.train.places import Found, Places
from nbflow.train.planning import Member, Planned
from nbflow.transport import Transport

log = logging.getLogger("nbflow.train")

# How often a run looks whether workers have come or gone.
LOOK_S = 0.2
# A worker that a loop has lost is missed by the cluster within 5 s. Where it is not, it is tried again after so long.
DOUBT_S = 10.0
# So often in a row a run tries again without having made a step.
TRIES = 5
# Between two tries to go on with others: by then the cluster knows whom it has lost.
AGAIN_S = 1.0
# How long it waits for workers when there is none left, or for the one that has its variables.
WAIT_S = 60.0
# How long those who send workers away wait until the run has let go of them.
LET_GO_S = 60.0
# Holders of what only one plan uses, where they are not among the state that it needs.
_OWN = ("variable", "coordinator", "accumulator")


@dataclass(frozen=True, slots=True)
class Change:
    """A run went on after step `step` with `replicas` replicas, because these tasks had `left` and `joined` it.

    `wall_s`: when, in seconds since the epoch. `detail`: what else is to be known, such as steps that are made again.
    """

    wall_s: float
    step: int
    replicas: int
    left: tuple[str, ...]
    joined: tuple[str, ...]
    detail: str = ""

    def __str__(self) -> str:
        parts = [
            f"{', '.join(tasks)} {what}" for what, tasks in (("left", self.left), ("joined", self.joined)) if tasks
        ]
        text = f"going on after step {self.step} with {self.replicas} replica{'s' * (self.replicas != 1)}"
        return f"{text}: {'; '.join([*parts, *([self.detail] if self.detail else [])]) or 'tried again'}"


class Make(Protocol):
    """Plans the loops of a run for the workers that are there, from the steps that loops made before."""

    def __call__(self, done: Sequence[int]) -> Planned: ...


@dataclass(slots=True)
class _Before:
    """What the workers that are left knew when the loops had ended; found out once, whatever is tried after that."""

    made: int | None = None
    places: Found | None = None
    details: list[str] = field(default_factory=list)


class Elastic:
    """The membership of one run. `fetches`: what runs with `step`. `make`: plans its loops.
    `keeper`: of its checkpoints. Raises GraphError for a step whose strategy has no replicas, or has them nowhere."""

    def __init__(
        self,
        session: Session,
        step: Node,
        fetches: Sequence[Tensor],
        make: Make,
        keeper: Keeper | None,
    ) -> None:
        strategy = read_strategy(strategy_of(step))
        is_fixed = isinstance(strategy, DataParallel) and strategy.pipelines
        if is_fixed or not isinstance(strategy, DataParallel | LocalSGD):
            what = "none" if strategy is None else type(strategy).__name__ + " over pipelines" * bool(is_fixed)
            raise GraphError(
                f"elastic=True is for replicas that may be more or fewer: DataParallel and LocalSGD; the strategy of "
                f"{step.name!r} is {what}",
                where=step.where,
            )
        self.changes: list[Change] = []
        self._session = session
        self._step = step
        self._strategy: DataParallel | LocalSGD = strategy
        self._make = make
        self._keeper = keeper
        self._over = threading.Event()
        self._places = Places(session, step, fetches)
        self._lock = threading.Lock()
        self._leaving: set[str] = set()  # tasks that are about to be sent away
        self._let_go = threading.Event()
        self._missed: WorkerLost | None = None
        self._missed_s = 0.0
        self._tries = 0
        self._seen = ""  # the cluster's id when it was last looked at
        self._why = ""
        self._members: list[Member] = []
        self._replicas: list[DeviceSpec] = []
        self._lives: dict[str, str] = {}
        self._remove = session.cluster.before_leaving(self._send_away)
        if not self._there():
            have = ", ".join(str(i.spec) for i in session.cluster.devices())
            self.close()
            raise GraphError(
                f"elastic=True needs a worker to begin with: no device matches workers={strategy.workers!r} (there are "
                f"{have}); nf.set_cluster(…) first"
            )

    # --- what has changed -------------------------------------------------------------------------------------------

    def arm(self, members: Sequence[Member]) -> None:
        """These are the loops of the stretch that is about to begin."""
        self._seen = self._session.cluster.id
        transports = self._session.transports
        self._members = list(members)
        plans = [p for m in members for p in m.plans if p.replicas]
        self._replicas = [parse_device(d) for d in plans[0].replicas] if plans else self._there()
        tasks = {task for m in members for task in _tasks(m)} | {d.task_name for d in self._replicas}
        self._lives = {task: transports[task].life for task in tasks if task in transports}
        self._places.begin(self._replicas)
        with self._lock:
            self._missed, self._why = None, ""

    def look(self) -> str:
        """What has changed for the run, for people; empty while nothing has.

        Raises WorkerLost for a worker that is missed time and again.
        """
        with self._lock:
            missed, leaving = self._missed, bool(self._leaving)
        cluster_id = self._session.cluster.id
        if cluster_id != self._seen or missed is not None or leaving:
            self._why = self._find(cluster_id, missed)
        return self._why

    @property
    def gone(self) -> list[str]:
        """Tasks of the run that are not there, or not what they were."""
        try:
            now = {task: t.life for task, t in self._session.transports.items()}
        except WorkerLost as error:  # the cluster has yet to notice
            there = {i.spec.task_name for i in self._session.cluster.devices()} - {error.worker}
            return sorted(self._lives.keys() - there)
        return sorted(task for task, life in self._lives.items() if now.get(task) != life)

    def forgives(self, error: NbflowError) -> bool:
        """Whether a loop that ended by `error` does not end the run: a worker is missing, or may be."""
        if not isinstance(error, WorkerLost) and not self.gone:
            return False
        with self._lock:
            lost = error if isinstance(error, WorkerLost) else WorkerLost(error.message)
            self._missed, self._missed_s = self._missed or lost, time.monotonic()
        return True

    def _find(self, cluster_id: str, missed: WorkerLost | None) -> str:
        gone, there = self.gone, self._there()
        left = sorted({d.task_name for d in self._replicas} - {d.task_name for d in there} - set(gone))
        come = [str(d) for d in there if d not in self._replicas]
        if gone or left or come or there != self._replicas:
            self._tries = 0
            words = ((gone, "lost"), (left, "leaving"), (come, "joining"))
            return ", ".join(f"{', '.join(names)} {what}" for names, what in words if names) or "other devices"
        if missed is None:
            self._seen = cluster_id  # what changed is nothing to this run
            return ""
        if time.monotonic() - self._missed_s < DOUBT_S:
            return ""
        if self._tries >= TRIES:
            raise missed
        self._tries += 1
        return f"trying again after: {missed.message}"

    def _there(self) -> list[DeviceSpec]:
        """The devices of the replicas that the run may have now."""
        with self._lock:
            leaving = set(self._leaving)
        devices = [i.spec for i in self._session.cluster.devices()]
        return [d for d in self._strategy.replica_devices(devices) if d.task_name not in leaving]

    def _send_away(self, tasks: Sequence[str]) -> Callable[[], None]:
        """Waits until the run has let go of `tasks`; called by who sends them away."""

        def stay_or_gone() -> None:
            with self._lock:
                self._leaving.difference_update(tasks)

        if self._over.is_set() or not set(tasks) & {*self._lives, *(h.task_name for h in self._homes().values())}:
            return lambda: None
        with self._lock:
            self._leaving.update(tasks)
            self._let_go.clear()
        deadline = time.monotonic() + LET_GO_S
        while not self._let_go.wait(LOOK_S) and not self._over.is_set():
            if time.monotonic() > deadline:
                log.warning("the run did not let go of %s within %g s", ", ".join(tasks), LET_GO_S)
                break
        return stay_or_gone

    def wait_no_more(self) -> None:
        """The run is to end: nobody waits for workers any more."""
        self._over.set()

    def close(self) -> None:
        """The run is over."""
        self._over.set()
        self._remove()
        self._let_go.set()

    # --- going on -----------------------------------------------------------------------------------------------------

    def go_on(self, lanes: Sequence[str], counted: Sequence[int]) -> Planned:
        """The loops of the next stretch; the loops of `lanes` have ended, or will not be heard of again. `counted`: the
        steps that each loop that counts was heard to have made.

        Raises WorkerLost when there is no worker, or values are lost of which there is no checkpoint.
        """
        before, old = _Before(), self._replicas
        for left in reversed(range(TRIES)):
            try:
                planned = self._again(before, lanes, counted)
                self.arm(planned.members)
                break
            except _Final as error:
                raise WorkerLost(error.message, worker=error.worker) from error
            except WorkerLost as error:
                if not left or self._over.is_set():
                    raise
                log.info("a worker was lost while the run changed hands: %s", error)
                self._over.wait(AGAIN_S)
        self._note(old, planned.members, before.details)
        return planned

    def _again(self, before: _Before, lanes: Sequence[str], counted: Sequence[int]) -> Planned:
        self._wait(self._is_reachable, "no worker can be reached")
        self._abandon(lanes)
        if before.made is None:
            before.made = self._rescue(before.details)
        if before.made is None:
            before.made = self._count(counted, before.details)
        if before.places is None:
            before.places = self._places.find(self._replicas, before.made - self._first, in_step=self._in_step)
            if before.places.inexact and self._in_step:
                before.details.append(f"{', '.join(before.places.inexact)} could not be put just after the last step")
        self._release()
        self._wait(lambda: bool(self._there()), "there is no worker left for its replicas")
        done = [before.made]
        lost = self._lost_values()
        if lost:
            done = self._from_checkpoint(lost, before)
        else:
            self._places.put(before.places)
        self._bring_home()
        return self._make(done)

    # the past

    def _abandon(self, lanes: Sequence[str]) -> None:
        """Nothing of `lanes` happens any more, on any worker that can be reached."""
        transports = dict(self._session.transports)

        def tell(transport: Transport) -> None:
            for lane in lanes:
                try:
                    transport.control_loop(lane, "abandon")
                except NbflowError as error:
                    log.info("%s could not be told that the run goes on: %s", transport.worker.task_name, error)

        threads = [threading.Thread(target=tell, args=(t,), daemon=True) for t in transports.values()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _count(self, counted: Sequence[int], details: list[str]) -> int:
        """The steps that were made, of the whole run."""
        heard, first = sum(counted), self._first
        gone = self.gone
        if isinstance(self._strategy, LocalSGD):
            if gone and len(self._replicas) > 1:
                every = self._strategy.every
                kept = first + (heard - first) // every * every
                if kept < heard:
                    details.append(f"steps {kept + 1} to {heard}, after the last average, are made again")
                return kept
            return heard
        plan = self._counting_plan()
        if plan is None:
            return heard
        found = self._read_counter(plan, counter_name(self._step.name))
        if found is None:
            return heard
        begun, ended = found
        if begun > ended:
            details.append(f"step {first + begun} was cancelled while it updated variables; it counts as made")
        return first + begun

    def _read_counter(self, plan: Prepared, name: str) -> tuple[int, int] | None:
        """How many steps of the stretch began to update, and ended it, as this counter knows; None: it is lost."""
        try:
            graph, tensors = counts(self._session.graph, name, plan.placement[name].device)
            begun, ended = self._session.look(self._session.beside(graph, tensors))
        except NbflowError as error:
            log.info("the counter %s is lost: %s", name, error)
            return None
        return int(begun), int(ended)

    def _rescue(self, details: list[str]) -> int | None:
        """Where every replica of a ring has the variables, and the first one is lost, takes those of another: of those
        that are whole, the one that made most steps. How many these are; None where that is not so."""
        plan, name = self._counting_plan(), self._step.name
        gone = set(self.gone)
        ring = isinstance(self._strategy, DataParallel) and self._strategy.replicated
        if not ring or plan is None or self._replicas[0].task_name not in gone:
            return None
        left = [n for n, d in enumerate(self._replicas) if n and d.task_name not in gone]
        counters = {n: self._read_counter(plan, counter_name(name, n)) for n in left}
        whole = {n: found[1] for n, found in counters.items() if found is not None and found[0] == found[1]}
        if not whole:
            return None
        best = max(whole, key=lambda n: (whole[n], -n))
        names = self._session.names_of({key for m in self._members for p in m.plans for key in p.state})
        prefix = f"replica_{best}/"
        graph = new_like(self._session.graph)
        copies: dict[str, Node] = {}
        own = [plan.graph.nodes[prefix + n] for n in names if prefix + n in plan.graph.nodes.keys()]

        def there(old: Node, new: Node) -> None:
            new.device, new.colocate = self._replicas[best], ()

        copy_nodes(own, graph, {}, copies, change=there)
        reads = [graph.add("read_variable", c.outputs, {"variable": c.name}).outputs[0] for c in copies.values()]
        values = self._session.look(self._session.beside(graph, reads, has_values=True))
        self._session.give({n.removeprefix(prefix): v for n, v in zip(copies, values, strict=True)})
        details.append(f"with the variables of {self._replicas[best].task_name}")
        return self._first + whole[best]

    @property
    def _first(self) -> int:
        """The steps that were made before the stretch."""
        return sum(m.loop.first - 1 for m in self._members if m.counts)

    def _counting_plan(self) -> Prepared | None:
        """The plan that counts the steps it makes, where there is one."""
        name = counter_name(self._step.name)
        plans = (p for m in self._members for p in m.plans if name in p.placement)
        return next(plans, None)

    @property
    def _in_step(self) -> bool:
        """Whether all replicas read the same batches, in the same steps, which are counted."""
        return isinstance(self._strategy, DataParallel) and not self._strategy.separate

    # what is there

    def _is_reachable(self) -> bool:
        try:
            return bool(self._session.transports)
        except WorkerLost:
            return False

    def _homes(self) -> dict[str, DeviceSpec]:
        """Where the variables of the run live: state key -> device."""
        wanted = {key for m in self._members for p in m.plans for key in p.state}
        return {key: home for key, home in self._session.homes().items() if key in wanted}

    def _release(self) -> None:
        """Carries the values of workers that are about to go, and waits until they have."""
        with self._lock:
            leaving = set(self._leaving)
        if not leaving:
            return
        self._carry([key for key, home in self._homes().items() if home.task_name in leaving])
        self._let_go.set()
        deadline = time.monotonic() + LET_GO_S
        while time.monotonic() < deadline and not self._over.is_set():
            with self._lock:
                if not self._leaving & leaving:
                    return
            self._over.wait(LOOK_S)

    def _carry(self, keys: Sequence[str]) -> None:
        self._session.carry(self._session.names_of(keys))

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            if self._over.is_set():
                raise _Final(f"{what}, and the run was to end")
            if time.monotonic() > deadline:
                raise _Final(f"{what}, and none came within {WAIT_S:g} s")
            self._over.wait(LOOK_S)

    def _lost_values(self) -> list[str]:
        """Names of the run's variables whose values are gone; of a worker that may only be cut off, after a wait."""
        wanted = {key for m in self._members for p in m.plans for key in p.state}

        def missing() -> list[str]:
            return self._session.names_of(wanted, without_value=True)

        if missing():
            ended = [bool(self._session.cluster.ended(task)) for task in self.gone]
            deadline = time.monotonic() + (0.0 if all(ended) else WAIT_S)
            while missing() and time.monotonic() < deadline and not self._over.is_set():
                self._over.wait(LOOK_S)
        return missing()

    def _from_checkpoint(self, lost: Sequence[str], before: _Before) -> list[int]:
        names = ", ".join(lost[:5]) + (", …" if len(lost) > 5 else "")
        gone = ", ".join(self.gone) or "a worker"
        message = f"the values of {len(lost)} variables ({names}) were lost with {gone}"
        if self._keeper is None:
            raise _Final(
                f"{message}; a run with checkpoint=… goes on from the last one, and variables on a ps do not go with a "
                "worker",
                worker=gone,
            )
        done = self._keeper.begin(resume=True)
        if not done:
            raise _Final(f"{message}, and there is no checkpoint yet in {self._keeper.folder}", worker=gone)
        before.details.append(f"{message}; on from the checkpoint of step {sum(done)}")
        return done

    def _bring_home(self) -> None:
        """Drops what replicas had of their own, and where the first of them has the variables, brings them there."""
        own = {
            state_key(p.graph, n.name)
            for m in self._members
            for p in m.plans
            for n in p.graph.nodes.values()
            if n.op in _OWN and state_key(p.graph, n.name) not in p.state
        }
        self._session.drop_state(sorted(own))
        if isinstance(self._strategy, DataParallel) and self._strategy.replicated:
            first = self._there()[0]
            self._carry([key for key, home in self._homes().items() if home != first])

    def _note(self, old: Sequence[DeviceSpec], members: Sequence[Member], details: Sequence[str]) -> None:
        was, now = ({d.task_name for d in devices} for devices in (old, self._replicas))
        made = sum(m.loop.first - 1 for m in members if m.counts)
        left, joined = (tuple(sorted(tasks)) for tasks in (was - now, now - was))
        self.changes.append(Change(time.time(), made, len(self._replicas), left, joined, "; ".join(details)))


class _Final(WorkerLost):
    """Trying again would not help."""


def _tasks(member: Member) -> set[str]:
    loop = member.loop
    return {*loop.step, *loop.report, *loop.finish, member.leader}
