"""The data plane of a worker process: its sessions, and which way leads to which peer.

Peers on one host are reached by `local`, others by `zmq`. Credit, grants and refusals are sent by a thread of their
own: whoever finds that one is due may be a thread that must not wait, or a finalizer.
"""

from __future__ import annotations

import hmac
import logging
import threading
import time
from collections.abc import Callable, Mapping
from queue import Empty, SimpleQueue
from typing import Any

import zmq

from nbflow.errors import NbflowError
from nbflow.transport import Inbox
from nbflow_workers.dataplane import segments
from nbflow_workers.dataplane.arrivals import Arrivals
from nbflow_workers.dataplane.base import Endpoint, SessionKey, host_id
from nbflow_workers.dataplane.credit import WINDOW_BYTES, Account
from nbflow_workers.dataplane.local import LocalLink, LocalListener
from nbflow_workers.dataplane.memory import Buffers
from nbflow_workers.dataplane.outbox import Link, PeerOutbox
from nbflow_workers.dataplane.zmq import ZmqLink, ZmqListener
from nbflow_workers.proto import worker_pb2 as pb
from nbflow_workers.security import is_loopback

log = logging.getLogger("nbflow.dataplane")

# How often transfers that stand still are looked for.
LOOK_AT_TRANSFERS_S = 5.0


class PeerDataPlane:
    """Implements `DataPlane`.

    `listen_host`: an address of this machine. `use_shm`: peers on this host are reached by shared memory; without it by
    TCP, like all others. `encrypt`: whether TCP is encrypted; None: beyond loopback. `window_bytes`: how much may be
    under way to one peer of one session.
    """

    def __init__(
        self,
        listen_host: str = "127.0.0.1",
        *,
        port: int = 0,
        use_shm: bool = True,
        encrypt: bool | None = None,
        window_bytes: int = WINDOW_BYTES,
    ) -> None:
        self._context = zmq.Context(io_threads=1)
        self._window_bytes = window_bytes
        self._lock = threading.Lock()
        self._sessions: dict[str, _Session] = {}
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self.buffers = Buffers()
        keys = zmq.curve_keypair()
        self.public_key = keys[0]
        encrypted = not is_loopback(listen_host) if encrypt is None else encrypt
        self._tcp = ZmqListener(self._context, listen_host, port, keys if encrypted else None, self._find)
        shares = use_shm and segments.available()
        self._endpoint = Endpoint(self._tcp.address, self.public_key, host_id() if shares else "")
        self._local = LocalListener(self._endpoint, self._find) if shares else None
        self._thread = threading.Thread(target=self._reply, name="nbflow-replies", daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> Endpoint:
        return self._endpoint

    def open(self, session: SessionKey, inbox: Inbox, peers: Mapping[str, Endpoint]) -> PeerOutbox:
        task = next((t for t, e in peers.items() if e.public_key == self.public_key), "")
        with self._lock:
            found = self._sessions.get(session.id)
            if found is None:
                outbox = PeerOutbox(
                    session,
                    task,
                    peers,
                    lambda *way: self._connect(session, task, *way),
                    lambda to, message: self._jobs.put(lambda: outbox.control(to, message)),
                    lambda step_id, error: self._fail(session.id, step_id, error),
                    window_bytes=self._window_bytes,
                )
                self._sessions[session.id] = _Session(self, session, inbox, outbox, peers)
                return outbox
        for arrivals in found.update(session, inbox, peers):
            self._forget(arrivals)
        return found.outbox

    def close_session(self, session_id: str) -> None:
        with self._lock:
            session = self._sessions.pop(session_id, None)
        if session is not None:
            session.outbox.close()
            for arrivals in session.close():
                self._forget(arrivals)

    def close(self) -> None:
        with self._lock:
            sessions = list(self._sessions)
        for session in sessions:
            self.close_session(session)
        if self._local is not None:
            self._local.close()
        self._tcp.close()
        self._jobs.put(None)
        self._thread.join(5.0)
        self._context.term()

    def held(self) -> int:
        """Bytes of tensors that came and are not gone yet."""
        with self._lock:
            return sum(s.held() for s in self._sessions.values())

    # --- inside ---------------------------------------------------------------------------------------------------

    def _connect(
        self, session: SessionKey, source: str, task: str, endpoint: Endpoint, is_gone: Callable[[], bool]
    ) -> Link:
        hello = pb.DataHello(session=session.id, source=source, secret=session.secret)
        if endpoint.host_id and endpoint.host_id == self._endpoint.host_id:
            return LocalLink(task, endpoint, hello, is_gone)
        return ZmqLink(self._context, task, endpoint, hello, is_gone)

    def _fail(self, session_id: str, step_id: str, error: NbflowError) -> None:
        with self._lock:
            session = self._sessions.get(session_id)
        if session is not None:
            session.inbox.fail(step_id, error)

    def _find(self, session_id: str, source: str, secret: bytes) -> Arrivals | None:
        with self._lock:
            session = self._sessions.get(session_id)
        if session is None or not hmac.compare_digest(session.key.secret, secret):
            return None
        return session.arrivals_of(source, self._endpoint.host_id)

    def _forget(self, arrivals: Arrivals) -> None:
        arrivals.cut()
        if self._local is not None:
            self._local.forget(arrivals)

    def later(self, job: Callable[[], None]) -> None:
        """Has `job` done by the thread that may wait. Safe in finalizers."""
        self._jobs.put(job)

    def _reply(self) -> None:
        next_look = time.monotonic() + LOOK_AT_TRANSFERS_S
        while True:
            now = time.monotonic()
            try:
                job = self._jobs.get(timeout=next_look - now) if now < next_look else self._look
            except Empty:
                job = self._look
            if job == self._look:
                next_look = time.monotonic() + LOOK_AT_TRANSFERS_S
            if job is None:
                return
            try:
                job()
            except Exception:
                log.exception("a peer could not be told something")

    def _look(self) -> None:
        with self._lock:
            sessions = list(self._sessions.values())
        for session in sessions:
            session.look(time.monotonic())


class _Session:
    """A session of this process."""

    def __init__(
        self, plane: PeerDataPlane, key: SessionKey, inbox: Inbox, outbox: PeerOutbox, peers: Mapping[str, Endpoint]
    ) -> None:
        self.key = key
        self.inbox = inbox
        self.outbox = outbox
        self._plane = plane
        self._peers = dict(peers)
        self._lock = threading.Lock()
        self._arrivals: dict[str, Arrivals] = {}
        outbox.on_end(self._end)

    def update(self, key: SessionKey, inbox: Inbox, peers: Mapping[str, Endpoint]) -> list[Arrivals]:
        """Takes a new set of peers; the arrivals of those that left."""
        with self._lock:
            left = [t for t, e in self._peers.items() if peers.get(t) != e]
            self.key, self.inbox, self._peers = key, inbox, dict(peers)
            gone = [self._arrivals.pop(t) for t in left if t in self._arrivals]
        self.outbox.update(peers)
        return gone

    def arrivals_of(self, source: str, host: str) -> Arrivals | None:
        """What `source` sends; None when it is no peer."""
        with self._lock:
            found = self._arrivals.get(source)
            endpoint = self._peers.get(source)
            if found is None and endpoint is not None:
                account = Account(lambda _: self._plane.later(tell))
                tell = self._teller(source, account)
                found = self._arrivals[source] = Arrivals(
                    source,
                    lambda: self.inbox,
                    account,
                    self._plane.buffers,
                    self._hear,
                    self._tell,
                    one_clock=bool(host) and endpoint.host_id == host,
                    here=self.outbox.task,
                )
            return found

    def _teller(self, source: str, account: Account) -> Callable[[], None]:
        def tell() -> None:
            credit = account.settle()
            if credit:
                account.impatient = False
                self.outbox.control(source, pb.DataMessage(credit=credit))

        return tell

    def _hear(self, source: str, message: Any) -> None:
        if message.stalled:
            account = self._arrivals[source].account
            account.impatient = True
            keys = list(message.stalled)
            self._plane.later(lambda: self.outbox.stalled(source, keys, account))
        self.outbox.hear(source, message)

    def _tell(self, source: str, message: Any) -> None:
        self._plane.later(lambda: self.outbox.control(source, message))

    def _end(self, step_id: str) -> None:
        for arrivals in list(self._arrivals.values()):
            if arrivals.transfers:
                arrivals.end(step_id)

    def look(self, now_s: float) -> None:
        for arrivals in list(self._arrivals.values()):
            if arrivals.transfers:
                arrivals.look(now_s)

    def held(self) -> int:
        return sum(a.account.held() for a in list(self._arrivals.values()))

    def close(self) -> list[Arrivals]:
        with self._lock:
            found = list(self._arrivals.values())
            self._arrivals = {}
            self._peers = {}
        return found
