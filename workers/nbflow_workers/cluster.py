"""Clusters: workers started here (`local`) or found running (`attach`), watched, and connected to sessions."""

from __future__ import annotations

import atexit
import itertools
import logging
import secrets
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nbflow import wire
from nbflow.errors import NbflowError, Rejected, Unauthenticated, VersionMismatch, WorkerError, WorkerLost
from nbflow.events import Emitter, Listener, WorkerState
from nbflow.runs import RunRecord, merge
from nbflow.transport import CLIENT, DeviceInfo, Leaving, LinkInfo, Links, RunEntry, Transport
from nbflow_workers import links, security
from nbflow_workers import spec as spec_file
from nbflow_workers.attach import ask_all, beside, may_be_there
from nbflow_workers.client import NOTEBOOK, GrpcTransport
from nbflow_workers.known import Worker, WorkerRecord, order
from nbflow_workers.launchers.base import Ask, Launcher, Progress
from nbflow_workers.launchers.local import LocalLauncher
from nbflow_workers.membership import Change, Membership
from nbflow_workers.proto import worker_pb2 as pb
from nbflow_workers.security import Token

log = logging.getLogger("nbflow.cluster")

HEARTBEAT_S = 1.0
HEARTBEAT_TIMEOUT_S = 2.0
# A round of heartbeats that took this much longer than its timeout says that this process was stalled, not the workers.
OWN_STALL_S = 0.5
# Between the end of a process's connections and its exit status.
EXIT_WAIT_S = 0.3
OPEN_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0
_numbers = itertools.count(1)


class Cluster:
    """Workers that a Session can use; implements `nbflow.transport.Cluster`. Closing ends those started here."""

    def __init__(
        self, workers: Sequence[Worker], token: Token, *, name: str, ca: bytes = b"", launcher: Launcher | None = None
    ) -> None:
        self.name = name
        self._token = token
        self._ca = ca
        self._launcher = launcher
        self._lock = threading.RLock()
        self._workers: dict[str, Worker] = {w.info.task_name: w for w in sorted(workers, key=order)}
        self._sessions: dict[str, bytes] = {}
        self._transports: dict[tuple[str, str], GrpcTransport] = {}
        self._membership = Membership()
        self._why: dict[str, str] = {}  # task -> how it came to the state it is in, of those that are lost
        self._events = Emitter()
        self._leaving: list[Leaving] = []
        self._generation = 0
        self._measuring = threading.RLock()
        self._links: dict[tuple[str, str], LinkInfo] = {}
        self._measured: dict[str, str] = {}  # task -> which incarnation of it the links are of
        self._measured_at = -1
        self._stop = threading.Event()
        self._closed = False
        now = time.monotonic()
        for task, worker in self._workers.items():
            self._membership.join(task, worker.info.incarnation, now)
            self._membership.answered(task, worker.info.incarnation, now)
        self._thread = threading.Thread(target=self._watch, name=f"nbflow-watch-{name}", daemon=True)
        self._thread.start()
        _open_clusters.add(self)

    # --- what a Session uses --------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """Changes whenever the set of usable workers does."""
        return f"{self.name}#{self._generation}"

    def devices(self) -> tuple[DeviceInfo, ...]:
        """The devices of all workers that are not lost, in a fixed order."""
        with self._lock:
            return tuple(d for w in self._alive() for d in w.info.devices)

    def links(self, *, measure: bool = True) -> Links:
        """What was measured of the ways between workers, and to this process. Measured when somebody asks first, and
        again when workers have come: about 50 ms a worker on one host, during which steps that run are slower."""
        with self._measuring:
            if measure and not self._closed and self._measured_at != self._generation:
                self._measured_at = self._generation
                with self._lock:
                    alive = {w.info.task_name: w for w in self._alive()}
                    fresh = {t: w.info.incarnation for t, w in alive.items()}
                    hosts = {t: w.data.host_id or w.info.address.rpartition(":")[0] for t, w in alive.items()}
                # Who was started anew may be elsewhere.
                stays = {CLIENT: "", **{t: i for t, i in fresh.items() if self._measured.get(t, i) == i}}
                self._links = {p: k for p, k in self._links.items() if p[0] in stays and p[1] in stays}
                self._links = links.measure(self, links.ends_of(self, hosts), self._links)
                self._measured = fresh
            return dict(self._links)

    def connect(self, session: str) -> dict[str, Transport]:
        """Opens session `session` on every worker that is not lost. Asking again gives what still stands, and opens
        the rest. Raises WorkerError."""
        with self._lock:
            self._check_open()
            workers = self._alive()
            lost_ones = [w for w in self._workers.values() if w not in workers]
            if not workers:
                lost = "".join(f"\n  {t} is {self._membership.state(t)}: {w}" for t, w in self._why.items())
                raise WorkerLost(f"cluster {self.name} has no worker left; start or attach some{lost}")
            secret = self._sessions.setdefault(session, secrets.token_bytes(32))
            # Sessions that were closed leave nothing here but their secret.
            broken = [t for t in self._transports.values() if not t.usable]
            self._transports = {k: t for k, t in self._transports.items() if t.usable}
        for transport in broken:
            transport.close(keep_session=True)
        # Loops may go on with those that only this process cannot reach: nobody is told to forget them.
        known = [*workers, *(w for w in lost_ones if not self.ended(w.info.task_name))]
        request = pb.OpenSessionRequest(
            wire_version=wire.WIRE_VERSION,
            session=session,
            secret=secret,
            ca=self._ca,
            peers=[
                pb.Peer(task=w.info.task_name, address=w.link.address, incarnation=w.info.incarnation, data=w.data)
                for w in known
            ],
        )

        def open_on(worker: Worker) -> tuple[str, GrpcTransport]:
            asked = pb.OpenSessionRequest()
            asked.CopyFrom(request)
            asked.incarnation = worker.info.incarnation
            try:
                reply = worker.link.call("OpenSession", asked, timeout_s=OPEN_TIMEOUT_S, doing="opening a session")
            except WorkerLost:
                self._broke(worker)
                raise
            return worker.info.task_name, self._transport(worker, session, reply.life)

        with ThreadPoolExecutor(min(16, len(workers)), thread_name_prefix="nbflow-open") as pool:
            return dict(pool.map(open_on, workers))

    def join(self, session: str) -> dict[str, Transport]:
        """The ways to a session that is open already, maybe another client's. Closing them leaves it as it is."""
        with self._lock:
            self._check_open()
            return {
                w.info.task_name: self._transport(w, session, owns=session in self._sessions) for w in self._alive()
            }

    def _transport(self, worker: Worker, session: str, life: str | None = None, *, owns: bool = True) -> GrpcTransport:
        key = (session, worker.info.task_name)
        with self._lock:
            found = self._transports.get(key)
            other = found is not None and life is not None and found.life != life
            if found is None or not found.usable or other or found.worker.incarnation != worker.info.incarnation:
                found = GrpcTransport(
                    worker.link,
                    worker.info,
                    session,
                    life=life or "",
                    worker_host=worker.data.host_id,
                    # Of a session that is somebody else's, the streams are theirs too.
                    driver=NOTEBOOK if owns else f"{NOTEBOOK} {uuid.uuid4().hex}",
                    owns_session=owns,
                    on_lost=lambda: self._broke(worker),
                )
                self._transports[key] = found
            return found

    def ended(self, task: str) -> str:
        """How the process of a worker ended; empty while it may only be cut off, or frozen."""
        with self._lock:
            worker = self._workers.get(task)
        if worker is None:
            return "it was sent away"
        if worker.handle is not None:
            return worker.handle.exit_text()
        return "" if may_be_there(worker.link.address) else "nothing listens at its address any more"

    # --- what people use ------------------------------------------------------------------------------------------

    def runs(self) -> list[RunRecord]:
        """The training runs that the workers know, of all sessions, in the order in which they began. A worker that
        does not answer is left out."""
        with self._lock:
            self._check_open()
            workers = self._alive()
        return merge(entry for found in beside(_runs_of, workers) for entry in found)

    def workers(self) -> list[WorkerRecord]:
        """All workers, lost ones included."""
        with self._lock:
            return [w.record(self._membership.state(t)) for t, w in self._workers.items()]

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Calls `listener` with a WorkerState whenever a worker's state changes; returns what ends it."""
        return self._events.add(listener)

    def logs(self, task: str, lines: int = 50) -> str:
        """The end of what a worker wrote. Raises Rejected for one that was not started here."""
        with self._lock:
            worker = self._workers.get(task)
        if worker is None or worker.handle is None:
            raise Rejected(f"{task} was not started by this cluster: its log is where it was started", worker=task)
        return worker.handle.logs(lines)

    def before_leaving(self, hook: Leaving) -> Callable[[], None]:
        """Has `hook` called, by `scale`, before workers are sent away; returns what ends that."""
        with self._lock:
            self._leaving.append(hook)
        return lambda: self._leaving.remove(hook) if hook in self._leaving else None

    def scale(self, workers: int, *, timeout_s: float = 60.0, progress: Progress | None = None) -> list[WorkerRecord]:
        """Starts or ends tasks of job worker until there are `workers`; the highest numbers go first."""
        if workers < 1:
            raise Rejected(f"a cluster needs at least one worker, not {workers}; use close() to end it")
        with self._lock:
            self._check_open()
            if self._launcher is None:
                raise Rejected(f"cluster {self.name} was attached to: start more workers there, and attach again")
            alive = {w.info.task for w in self._alive() if w.info.job == "worker"}
            have = sorted(w.info.task for w in self._workers.values() if w.info.job == "worker")
        gone = [f"/job:worker/task:{t}" for t in have if t >= workers or t not in alive]
        self._send_away(gone)
        asks = [Ask("worker", t) for t in range(workers) if t not in alive]
        if asks:
            made = _start(self._launcher, asks, self._token, timeout_s=timeout_s, progress=progress)
            now = time.monotonic()
            with self._lock:
                for worker in made:
                    task = worker.info.task_name
                    self._workers[task] = worker
                    self._note(self._membership.join(task, worker.info.incarnation, now))
                    self._note(self._membership.answered(task, worker.info.incarnation, now))
                self._workers = {w.info.task_name: w for w in sorted(self._workers.values(), key=order)}
                self._generation += 1
        return self.workers()

    def save(self, path: str | Path) -> None:
        """Writes the cluster file (mode 0600) that `attach(spec=path)` reads."""
        with self._lock:
            entries = tuple(spec_file.Entry(w.info.job, w.info.task, w.link.address) for w in self._workers.values())
        spec_file.Spec(self.name, self._token, self._ca, entries).save(path)

    def detach(self) -> None:
        """Leaves the workers alive, with their sessions, and forgets them. `save` first, to find them again."""
        self._end(keep=True)

    def close(self) -> None:
        """Ends the workers that were started here, and this cluster's sessions on all others. Safe to call twice."""
        self._end(keep=False)

    def shutdown(self) -> None:
        """Ends all workers, also those that others started, with all their sessions and runs; and closes.

        Raises WorkerError when one could not be told, after the others were.
        """
        with self._lock:
            self._check_open()
            others = [w for w in self._workers.values() if w.handle is None]
        untold = [error for error in beside(_shut_down, others) if error is not None]
        self.close()
        if untold:
            raise WorkerError("; ".join(e.message for e in untold))

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        counts: dict[str, int] = {}
        for record in self.workers():
            counts[record.job] = counts.get(record.job, 0) + 1
        plural = {job: job if job == "ps" or n == 1 else f"{job}s" for job, n in counts.items()}
        jobs = ", ".join(f"{n} {plural[job]}" for job, n in counts.items()) or "no workers"
        return f"<Cluster {self.name}: {jobs}{', closed' if self._closed else ''}>"

    # --- inside ---------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise Rejected(f"cluster {self.name} is closed; start or attach another")

    def _alive(self) -> list[Worker]:
        return [self._workers[t] for t in self._membership.alive(self._workers)]

    def _send_away(self, tasks: Sequence[str]) -> None:
        """Removes workers, after those who use them had their say."""
        with self._lock:
            hooks = list(self._leaving) if tasks else []
        afterwards: list[Callable[[], None]] = []
        try:
            afterwards.extend(hook(tasks) for hook in hooks)
            self._remove(tasks)
        finally:
            for call in afterwards:
                call()

    def _remove(self, tasks: Sequence[str]) -> None:
        with self._lock:
            removed = [self._workers.pop(t) for t in tasks if t in self._workers]
            transports = [self._transports.pop(k) for k in list(self._transports) if k[1] in tasks]
            for task in tasks:
                self._note(self._membership.leave(task))
            self._generation += bool(removed)
        for transport in transports:
            transport.close()
        for worker in removed:
            # First: a server that stops waits for those who are still connected.
            worker.link.close()
            if worker.handle is not None:
                worker.handle.stop(STOP_TIMEOUT_S)

    def _end(self, *, keep: bool) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            workers = list(self._workers.values())
            transports = list(self._transports.values())
            self._transports.clear()
        _open_clusters.discard(self)
        self._stop.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(HEARTBEAT_TIMEOUT_S + 2.0)
        started = [w.handle for w in workers if w.handle is not None]
        for transport in transports:
            transport.close(keep_session=keep or bool(started))
        for worker in workers:
            # First: a server that stops waits for those who are still connected.
            worker.link.close()
        beside(lambda h: h.detach() if keep else h.stop(STOP_TIMEOUT_S), started)
        for worker in workers:
            self._note(self._membership.leave(worker.info.task_name), worker)

    def _watch(self) -> None:
        """Heartbeats, until the cluster is closed."""
        while not self._stop.wait(HEARTBEAT_S):
            try:
                self._look()
            except Exception:
                # A heartbeat that failed must not be the last one.
                log.exception("a heartbeat failed")

    def _broke(self, worker: Worker) -> None:
        """A connection broke: finds out at once whether the worker is gone, so that whoever sees the error, and runs
        again, finds a cluster without it; or one that connects anew, to a worker that was only cut off."""
        if self._stop.is_set():
            return
        ended, task = "", worker.info.task_name
        if worker.handle is not None:
            # The kernel closes a dying process's sockets before it says that the process ended.
            worker.handle.wait(EXIT_WAIT_S)
            ended = worker.handle.exit_text()
        else:
            try:
                self._heard(worker, worker.link.describe(timeout_s=HEARTBEAT_TIMEOUT_S))
            except NbflowError as error:
                ended = f"its connection broke ({error.message})"
        with self._lock:
            if ended:
                self._note(self._membership.exited(task, ended), worker)
            elif worker.handle is None:
                self._note(self._membership.answered(task, worker.info.incarnation, time.monotonic()), worker)
            self._generation += 1

    def _look(self) -> None:
        """One heartbeat: asks every worker how it is."""
        with self._lock:
            workers = list(self._workers.values())
        for worker in workers:
            ended = worker.handle.exit_text() if worker.handle is not None else ""
            if ended:
                with self._lock:
                    self._note(self._membership.exited(worker.info.task_name, ended), worker)
        asked = [w for w in workers if w.handle is None or not w.handle.exit_text()]
        start = time.monotonic()
        if asked:
            with ThreadPoolExecutor(min(16, len(asked)), thread_name_prefix="nbflow-heartbeat") as pool:
                answers = list(pool.map(self._ask, asked))
        else:
            answers = []
        with self._lock:
            now = time.monotonic()
            # Only now: while one worker is waited for, the others, which have answered, must not grow silent.
            for worker, running in zip(asked, answers, strict=True):
                if running is not None:
                    info = worker.info
                    self._note(self._membership.answered(info.task_name, info.incarnation, now, busy=running), worker)
            if now - start > HEARTBEAT_TIMEOUT_S + OWN_STALL_S:
                self._membership.excuse(now - start - HEARTBEAT_TIMEOUT_S)
            self._note(self._membership.tick(now))

    def _ask(self, worker: Worker) -> bool | None:
        """Whether the worker runs steps; None when it does not answer."""
        start = time.monotonic()
        try:
            reply = worker.link.describe(timeout_s=HEARTBEAT_TIMEOUT_S)
        except NbflowError as error:
            log.debug("no answer from %s: %s", worker.info.task_name, error)
            if isinstance(error, VersionMismatch | Unauthenticated):
                # Another one than was attached to answers there: that says more than silence.
                with self._lock:
                    self._why[worker.info.task_name] = error.message
            return None
        worker.rtt_ms = (time.monotonic() - start) * 1000
        self._heard(worker, reply)
        return bool(reply.running_steps > 0)

    def _heard(self, worker: Worker, reply: pb.DescribeReply) -> None:
        """What a worker says of itself; it may be another process than before."""
        with self._lock:
            worker.last = reply
            if reply.incarnation != worker.info.incarnation:
                fresh = Worker.from_reply(worker.link, reply, worker.handle)
                worker.info, worker.data = fresh.info, fresh.data

    def _note(self, changes: Sequence[Change], worker: Worker | None = None) -> None:
        for change in changes:
            who = worker or self._workers.get(change.worker)
            address = who.link.address if who is not None else ""
            if "lost" in (change.old, change.new):
                self._generation += 1
            self._why.pop(change.worker, None)
            if change.new == "lost":
                self._why[change.worker] = change.detail
                log.warning("%s (%s) is lost: %s", change.worker, address, change.detail)
            self._events.emit(WorkerState(change.worker, change.new, address, time.time(), change.detail))


def _shut_down(worker: Worker) -> NbflowError | None:
    try:
        worker.link.shutdown(timeout_s=STOP_TIMEOUT_S)
    except NbflowError as error:
        return error
    return None


def _runs_of(worker: Worker) -> list[RunEntry]:
    try:
        return worker.link.runs(timeout_s=HEARTBEAT_TIMEOUT_S)
    except NbflowError as error:
        log.warning("%s was not asked for its runs: %s", worker.info.task_name, error)
        return []


_open_clusters: set[Cluster] = set()


@atexit.register
def _close_all() -> None:
    """The interpreter ends: what was started here ends with it."""
    for cluster in list(_open_clusters):
        cluster.close()


# --- making clusters --------------------------------------------------------------------------------------------------


def local(
    workers: int = 2,
    ps: int = 0,
    *,
    gpus: int = 0,
    devices: str = "auto",
    name: str | None = None,
    timeout_s: float = 60.0,
    progress: Progress | None = None,
    launcher: Launcher | None = None,
    keep: bool = False,
    lease_s: float | None = None,
) -> Cluster:
    """Starts `workers` tasks of job worker and `ps` of job ps as processes of this machine.

    The first `gpus` workers get one GPU each; the others, and the ps, have `devices`, as `nbflow worker --devices` has:
    `null@h100` for coordination without arithmetic. `progress` is called with a line as each starts and is ready.
    `keep`: when this process is killed, workers stay as long as they have a session, until its lease is over (`save`
    first, to find them again). `lease_s`: how long a session that nobody uses stays.
    Raises WorkerError, with what the process wrote, when one does not start within `timeout_s`; then none is left.
    """
    if workers < 1 or ps < 0 or not 0 <= gpus <= workers:
        raise Rejected(f"a cluster has at least one worker and at most a GPU each; asked: {workers=}, {ps=}, {gpus=}")
    asks = [Ask("worker", i, f"cpu,gpu:{i}" if i < gpus else devices) for i in range(workers)]
    asks += [Ask("ps", i, devices) for i in range(ps)]
    token = security.new_token()
    flags = () if lease_s is None else ("--lease", str(lease_s))
    used = launcher or LocalLauncher(outlive=keep, flags=flags)
    made = _start(used, asks, token, timeout_s=timeout_s, progress=progress)
    return Cluster(made, token, name=name or f"local-{next(_numbers)}", launcher=used)


def _start(
    launcher: Launcher, asks: Sequence[Ask], token: Token, *, timeout_s: float, progress: Progress | None
) -> list[Worker]:
    handles = launcher.start(asks, token, timeout_s=timeout_s, progress=progress)
    try:
        found = ask_all([h.address for h in handles], token, b"", timeout_s=10.0)
        return [Worker.from_reply(f.link, f.reply, h) for f, h in zip(found, handles, strict=True)]
    except BaseException:
        for handle in handles:
            handle.stop(STOP_TIMEOUT_S)
        raise


def attach(
    addresses: str | Sequence[str] | None = None,
    *,
    spec: str | Path | None = None,
    token: str | Token | None = None,
    ca: str | bytes | Path | None = None,
    name: str | None = None,
    timeout_s: float = 10.0,
) -> Cluster:
    """Attaches to workers that run: `["gpu1:7077", ...]`, or those of a cluster file.

    `token`: the workers' own; without it that of the file, or NBFLOW_TOKEN. `ca`: PEM text, or a path to it. All
    problems are collected in one WorkerError with a line per worker: refused, wrong token, other version, TLS, timeout.
    """
    wanted = [addresses] if isinstance(addresses, str) else list(addresses or ())
    trusted = _pem(ca)
    saved = spec_file.load(spec) if spec is not None else None
    secret = security.token_from(token) if token is not None or saved is None else saved.token
    if saved is not None:
        wanted += [w.address for w in saved.workers if w.address not in wanted]
        trusted = trusted or saved.ca
    if not wanted:
        raise Rejected("attach to what? give addresses, such as gpu1:7077, or spec=FILE")
    if secret is None:
        raise Rejected(f"attaching needs the workers' token: token=…, spec=FILE, or set {security.TOKEN_VARIABLE}")
    found = ask_all(wanted, secret, trusted, timeout_s=timeout_s)
    workers = [Worker.from_reply(f.link, f.reply) for f in found]
    title = name or (saved.name if saved is not None else f"attached-{next(_numbers)}")
    return Cluster(workers, secret, name=title, ca=trusted)


def _pem(ca: str | bytes | Path | None) -> bytes:
    if ca is None or isinstance(ca, bytes):
        return ca or b""
    if isinstance(ca, str) and "-----BEGIN" in ca:
        return ca.encode()
    return Path(ca).read_bytes()
