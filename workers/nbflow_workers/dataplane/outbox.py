"""The sending side of a session: one peer a task, credit, and messages that hold whatever is small and due."""

from __future__ import annotations

import contextlib
import copy
import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from nbflow import codec
from nbflow.errors import NbflowError, WorkerLost
from nbflow.rendezvous import REMEMBERED
from nbflow.transport import HostArray, Sending
from nbflow_workers.dataplane.base import LOOK_S, SEND_TIMEOUT_S, Endpoint, SessionKey
from nbflow_workers.dataplane.credit import WINDOW_BYTES, Account, Window, charge
from nbflow_workers.proto import worker_pb2 as pb

log = logging.getLogger("nbflow.dataplane")

# A message that has grown to this is sent, whatever else is to come.
BATCH_BYTES = 128 * 1024
# A tensor that waits for credit says so again after this long.
TELL_AGAIN_S = 1.0
# How long credit and the like wait for a peer that takes nothing.
CONTROL_TIMEOUT_S = 0.5


class Link(Protocol):
    """A way to a peer."""

    via: str

    def post(self, message: pb.DataMessage, patience_s: float = ...) -> None: ...
    def large(self, message: pb.DataMessage, value: HostArray) -> Sending | None: ...
    def end_step(self) -> None: ...
    def close(self) -> None: ...


@dataclass(slots=True, eq=False)
class _Peer:
    """A task. `lock` guards what is held and the window; `sending` is held by the thread that makes messages."""

    task: str
    endpoint: Endpoint
    window: Window
    changed: threading.Condition = field(default_factory=threading.Condition)
    sending: threading.Lock = field(default_factory=threading.Lock)
    link: Link | None = None
    held: list[pb.DataTensor] = field(default_factory=list)  # small tensors that go with the next message
    held_bytes: int = 0
    blocked: dict[tuple[str, str], bool] = field(default_factory=dict)  # what waits for credit -> it was granted
    gone: bool = False


# (task, endpoint, is_gone) -> the way there. Raises WorkerLost.
Connect = Callable[[str, Endpoint, Callable[[], bool]], Link]


class PeerOutbox:
    """Implements `Outbox` for one session. `reply(task, message)` sends from another thread. `fail(step_id, error)`: a
    tensor of that step, which had left its program, could not be sent."""

    def __init__(
        self,
        session: SessionKey,
        task: str,
        peers: Mapping[str, Endpoint],
        connect: Connect,
        reply: Callable[[str, pb.DataMessage], None],
        fail: Callable[[str, NbflowError], None],
        *,
        window_bytes: int = WINDOW_BYTES,
    ) -> None:
        self._session = session
        self.task = task
        self._connect = connect
        self._reply = reply
        self._fail = fail
        self._window_bytes = window_bytes
        self._lock = threading.Lock()
        self._peers = {t: self._new(t, e) for t, e in peers.items()}
        self._closed = False
        self._waiting: Counter[str] = Counter()  # steps with programs that have nothing to do -> how many
        self._aborted: OrderedDict[str, BaseException] = OrderedDict()
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._stalled: dict[str, dict[tuple[str, str], None]] = {}  # step -> (task, key) held back over there
        self._on_end: Callable[[str], None] = _nothing

    def _new(self, task: str, endpoint: Endpoint) -> _Peer:
        return _Peer(task, endpoint, Window(self._window_bytes))

    def on_end(self, listener: Callable[[str], None]) -> None:
        """Calls `listener` with each step that ends."""
        self._on_end = listener

    def update(self, peers: Mapping[str, Endpoint]) -> None:
        """Takes a new set of peers; links to those that stayed are kept."""
        with self._lock:
            old = self._peers
            same = {t: old[t] for t, e in peers.items() if t in old and old[t].endpoint == e}
            self._peers = {t: same.get(t) or self._new(t, e) for t, e in peers.items()}
            gone = [peer for task, peer in old.items() if task not in same]
        for peer in gone:
            _leave(peer)

    # --- Outbox ---------------------------------------------------------------------------------------------------

    def send(
        self, task: str, step_id: str, key: str, value: HostArray, *, more: bool = False, error: float = 0.0
    ) -> Sending | None:
        with self._lock:
            peer = None if self._closed else self._peers.get(task)
            aborted = self._aborted.get(step_id)
        if peer is None:
            raise WorkerLost(f"{task} is not part of session {self._session.id}", worker=task)
        if aborted is not None:
            raise copy.copy(aborted)
        value = np.asarray(value)
        dtype, counted = codec.encode_dtype(value.dtype), charge(value.nbytes)
        with peer.changed:
            fits = peer.window.take(counted)
        if not fits:
            self._wait_for_credit(peer, step_id, key, counted)
        item = pb.DataTensor(step_id=step_id, key=key, sent_s=time.monotonic(), error=error)
        if value.nbytes < codec.INLINE_LIMIT_BYTES:
            codec.encode_array(value, to=item.tensor)
            with peer.changed:
                peer.held.append(item)
                peer.held_bytes += counted
                if more and peer.held_bytes < BATCH_BYTES:
                    return None
            self._flush(peer)
            return None
        item.tensor.dtype = dtype
        item.tensor.shape.extend(value.shape)
        message = self._message(_taken(peer))
        message.tensors.append(item)
        with self._failing(peer, message):
            return self._link(peer).large(message, value)

    def flush(self) -> None:
        """Sends what `more` held back."""
        for peer in list(self._peers.values()):
            if peer.held:
                # Whoever comes here may be another step's program: those whose tensors are lost are told.
                with contextlib.suppress(WorkerLost):
                    self._flush(peer)

    def waiting(self, step_id: str, is_waiting: bool) -> None:
        if is_waiting:
            self.flush()
        with self._lock:
            self._waiting[step_id] += 1 if is_waiting else -1
            if self._waiting[step_id] <= 0:
                del self._waiting[step_id]
            stalled = self._stalled.pop(step_id, ()) if is_waiting and self._stalled else ()
        self._grant(step_id, stalled)

    def abort(self, step_id: str, error: BaseException) -> None:
        with self._lock:
            # A copy: an error that is raised gets a traceback, whose frames keep the tensors of the step.
            _remember(self._aborted, step_id, copy.copy(error))
            peers = list(self._peers.values())
        for peer in peers:
            with peer.changed:
                peer.changed.notify_all()

    def end(self, step_id: str) -> None:
        with self._lock:
            _remember(self._ended, step_id, None)
            self._waiting.pop(step_id, None)
            stalled = self._stalled.pop(step_id, ())
            peers = list(self._peers.values())
        self._grant(step_id, stalled)
        for peer in peers:
            if peer.held:
                _drop_held(peer, step_id)
            if peer.link is not None:
                peer.link.end_step()
        self._on_end(step_id)

    # --- credit ---------------------------------------------------------------------------------------------------

    def _wait_for_credit(self, peer: _Peer, step_id: str, key: str, counted: int) -> None:
        """Waits for room in the peer's window, or until the peer grants this tensor."""
        ticket = (step_id, key)
        self.waiting(step_id, True)
        with peer.changed:
            peer.blocked[ticket] = False
        try:
            while True:
                # Before the peer is told: credit that comes from now on is its answer, and it tells nothing more.
                news = peer.window.news
                stalled = pb.DataKey(step_id=step_id, key=key, nbytes=counted)
                told = pb.DataMessage(session=self._session.id, source=self.task, stalled=[stalled])
                self._send(peer, told)
                if self._has_credit(peer, ticket, counted, news):
                    return
        finally:
            self.waiting(step_id, False)
            with peer.changed:
                peer.blocked.pop(ticket, None)

    def _has_credit(self, peer: _Peer, ticket: tuple[str, str], counted: int, news: int) -> bool:
        """Waits for news. False: there was some, and not enough, or none for long: the peer must be told again that
        this waits, and telling it finds out whether it is still there."""
        end = time.monotonic() + TELL_AGAIN_S
        with peer.changed:
            while True:
                error = self._aborted.get(ticket[0])
                if error is not None:
                    raise copy.copy(error)
                if peer.gone:
                    raise WorkerLost(f"{peer.task} left the session while a tensor waited for it", worker=peer.task)
                if peer.window.take(counted, granted=peer.blocked.get(ticket, False)):
                    return True
                if peer.window.news != news or time.monotonic() > end:
                    return False
                peer.changed.wait(LOOK_S)

    def hear(self, task: str, message: pb.DataMessage) -> None:
        """What a peer says. Never waits."""
        with self._lock:
            peer = self._peers.get(task)
        if peer is None:
            return
        if message.credit or message.granted:
            with peer.changed:
                peer.window.give(message.credit)
                for key in message.granted:
                    if (key.step_id, key.key) in peer.blocked:
                        peer.blocked[key.step_id, key.key] = True
                peer.changed.notify_all()

    def stalled(self, task: str, keys: list[pb.DataKey], account: Account) -> None:
        """A peer holds tensors back: credit, if there is some; else leave, if the step can do nothing else here."""
        credit = account.settle()
        if credit:
            account.impatient = False
            self.control(task, pb.DataMessage(credit=credit))
            return
        for key in keys:
            with self._lock:
                due = key.step_id in self._waiting or key.step_id in self._ended or key.step_id in self._aborted
                if not due:
                    self._stalled.setdefault(key.step_id, {})[task, key.key] = None
            if due:
                self._grant(key.step_id, [(task, key.key)])

    def _grant(self, step_id: str, stalled: Iterable[tuple[str, str]]) -> None:
        for task, key in stalled:
            self._reply(task, pb.DataMessage(granted=[pb.DataKey(step_id=step_id, key=key)]))

    # --- messages -------------------------------------------------------------------------------------------------

    def _message(self, tensors: list[pb.DataTensor]) -> pb.DataMessage:
        return pb.DataMessage(session=self._session.id, source=self.task, tensors=tensors)

    def _flush(self, peer: _Peer) -> None:
        # Who comes while another one sends finds that its tensor went along with the next message.
        with peer.sending:
            tensors = _taken(peer)
            if tensors:
                self._send(peer, self._message(tensors))

    def control(self, task: str, message: pb.DataMessage) -> None:
        """Sends a message without tensors, in this thread. A peer that does not take it soon is not told: it is dead,
        and others wait for what this thread has to tell them."""
        with self._lock:
            peer = None if self._closed else self._peers.get(task)
        if peer is None:
            return
        message.session, message.source = self._session.id, self.task
        try:
            self._send(peer, message, patience_s=CONTROL_TIMEOUT_S)
        except WorkerLost as error:
            log.info("%s", error)

    def _send(self, peer: _Peer, message: pb.DataMessage, *, patience_s: float = SEND_TIMEOUT_S) -> None:
        with self._failing(peer, message):
            self._link(peer).post(message, patience_s)

    @contextlib.contextmanager
    def _failing(self, peer: _Peer, message: pb.DataMessage) -> Iterator[None]:
        """Around sending `message`: when that fails, the steps of its tensors do. The next one tries another link."""
        link = peer.link
        try:
            yield
        except WorkerLost as error:
            self._drop(peer, peer.link if link is None else link)
            for step_id in {t.step_id for t in message.tensors}:
                self._fail(step_id, error)
            raise

    def _link(self, peer: _Peer) -> Link:
        with peer.changed:
            if peer.link is None:
                if self._closed or peer.gone:
                    raise WorkerLost(f"session {self._session.id} is closed", worker=peer.task)
                peer.link = self._connect(peer.task, peer.endpoint, lambda: peer.gone)
            return peer.link

    def _drop(self, peer: _Peer, link: Link | None) -> None:
        with peer.changed:
            if peer.link is link:
                peer.link = None
                peer.window = Window(self._window_bytes)
        if link is not None:
            link.close()

    def close(self) -> None:
        """Closes all links; sends under way end within LOOK_S."""
        with self._lock:
            self._closed = True
            peers, self._peers = self._peers, {}
        for peer in peers.values():
            _leave(peer)

    def in_flight(self) -> dict[str, int]:
        """Bytes under way to each task, as far as it has said."""
        return {task: peer.window.used for task, peer in list(self._peers.items())}


def _nothing(step_id: str) -> None:
    """Nobody listens."""


def _taken(peer: _Peer) -> list[pb.DataTensor]:
    with peer.changed:
        held, peer.held, peer.held_bytes = peer.held, [], 0
    return held


def _drop_held(peer: _Peer, step_id: str) -> None:
    with peer.changed:
        for item in peer.held:
            if item.step_id == step_id:
                counted = charge(len(item.tensor.data))
                peer.held_bytes -= counted
                peer.window.give(counted)
        peer.held = [t for t in peer.held if t.step_id != step_id]


def _remember(kept: OrderedDict[str, Any], step_id: str, value: object) -> None:
    kept[step_id] = value
    while len(kept) > REMEMBERED:
        kept.popitem(last=False)


def _leave(peer: _Peer) -> None:
    peer.gone = True
    with peer.changed:
        link, peer.link = peer.link, None
        peer.changed.notify_all()
    if link is not None:
        link.close()
