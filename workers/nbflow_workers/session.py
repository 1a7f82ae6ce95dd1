"""A session on a worker: its executor, its peers, its streams. The servicer (`server.py`) only finds and calls it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import grpc

from nbflow import wire
from nbflow.errors import NbflowError, Rejected
from nbflow.events import Event, Listener, Log, Metric, RunState
from nbflow.plan import Bundle
from nbflow.proto import wire_pb2
from nbflow.runs import RunBook
from nbflow.transport import FolderInfo, HostArray, Inbox, Loop, LoopAction, RunPage, StepCommand, StepResult
from nbflow_workers.client import GrpcTransport
from nbflow_workers.dataplane import shm
from nbflow_workers.frames import Incoming, Outgoing
from nbflow_workers.proto import worker_pb2 as pb

log = logging.getLogger("nbflow.worker")

# Events waiting for one client. A client that reads none loses the oldest, and the run goes on.
MAX_EVENTS = 10_000
EVENT_BATCH = 1024
# Metrics and progress are sent together this often; people read no faster. Everything else is sent at once.
WINDOW_S = 0.1
# The level of the Log that stands for events which were left out: a run's are read from its worker's record.
GAP = "gap"
# A connection to a peer that does not answer within this time is made anew.
PEER_TIMEOUT_S = 5.0
# A stream's thread looks this often whether its client is still there.
LOOK_S = 5.0


class StepExecutor(Inbox, Protocol):
    """What a session needs of `nbflow.executor.Executor`."""

    def register(self, bundle: Bundle, *, timeout_s: float = 60.0) -> None: ...
    def start(self, command: StepCommand) -> Future[StepResult]: ...
    def cancel(self, step_id: str, reason: str) -> Future[None]: ...
    def drop_state(self, keys: list[str], *, timeout_s: float = 10.0) -> None: ...
    def start_loop(self, loop: Loop, *, timeout_s: float = 30.0) -> None: ...
    def unregister(self, bundles: Sequence[str], *, timeout_s: float = 10.0) -> None: ...
    def control_loop(self, loop_id: str, action: LoopAction, *, timeout_s: float = 10.0) -> None: ...
    def listen(self, listener: Listener) -> Callable[[], None]: ...
    def read_run(self, run: str, after: int = 0, *, timeout_s: float = 10.0) -> RunPage: ...
    def look_at_folder(self, folder: str, mark: str, *, timeout_s: float = 10.0) -> FolderInfo: ...
    @property
    def life(self) -> str: ...
    @property
    def looping(self) -> bool: ...
    @property
    def runs(self) -> RunBook: ...
    def close(self) -> None: ...


@dataclass(slots=True)
class Counters:
    """What the cluster view shows of one worker."""

    running: int = 0
    done: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def started(self) -> None:
        with self.lock:
            self.running += 1

    def finished(self, _future: Future[StepResult]) -> None:
        with self.lock:
            self.running -= 1
            self.done += 1


class Session:
    """One session. `connect(task)` makes the transport to a peer; it is made once."""

    def __init__(self, session_id: str, secret: bytes, connect: Callable[[str], GrpcTransport]) -> None:
        self.id = session_id
        self.secret = secret
        self.executor: StepExecutor
        self.streams: list[Stream] = []
        self.last_used_s = time.monotonic()
        self.blobs: dict[str, frozenset[str]] = {}  # bundle id -> digests of the constants it needs
        self._connect = connect
        self._peers: dict[str, GrpcTransport] = {}
        self._lock = threading.Lock()
        self._closed = False

    @property
    def life(self) -> str:
        """New whenever what the session held here is gone (`Transport.life`)."""
        return self.executor.life

    def wanted_blobs(self) -> set[str]:
        """Digests of the constants that the session's bundles need."""
        return set().union(*list(self.blobs.values()))

    def peer(self, task: str) -> GrpcTransport:
        """The way to another task of this session. Raises WorkerError.

        One that was used before is asked first: where a link was cut for some seconds, a connection may be dead and not
        know it yet, and what runs over it would be lost when it does.
        """
        with self._lock:
            found = self._peers.get(task)
        if found is not None and found.answers(timeout_s=PEER_TIMEOUT_S):
            return found
        with self._lock:
            made = self._peers.get(task)
            if made is None or made is found:
                made = self._peers[task] = self._connect(task)
        if found is not None and found is not made:
            found.close()
        return made

    def forget_peers(self, tasks: Iterable[str] | None = None) -> None:
        """Closes the connections to `tasks` (None: all), which changed; they are made anew when asked for."""
        with self._lock:
            gone = [self._peers.pop(t) for t in (list(self._peers) if tasks is None else tasks) if t in self._peers]
        for transport in gone:
            transport.close()

    def add(self, stream: Stream) -> None:
        with self._lock:
            if self._closed:
                raise Rejected(f"session {self.id} is closed")
            self.streams.append(stream)

    def take_over(self, driver: str) -> None:
        """`driver` opens a new stream of commands: an older one of its is cut off, whether that was noticed or not, and
        nobody waits for what it asked for."""
        with self._lock:
            old = [s for s in self.streams if driver and isinstance(s, StepStream) and s.driver == driver]
        for stream in old:
            stream.abandon()
            stream.close()

    def remove(self, stream: Stream) -> None:
        with self._lock:
            if stream in self.streams:
                self.streams.remove(stream)
            self.last_used_s = time.monotonic()

    def close(self) -> None:
        """Ends streams, steps and peers, and frees the state."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            streams = list(self.streams)
        for stream in streams:
            stream.close()
        self.executor.close()
        self.forget_peers()


class Stream(Protocol):
    """An open stream of a session."""

    def close(self) -> None:
        """Ends it soon; safe to call twice and from any thread."""
        ...


class StepStream:
    """The worker's side of `Steps`: commands in, results and acknowledgements out.

    Two threads: gRPC's handler thread sends (`replies`), one of ours reads (`_read`); neither runs steps.
    """

    def __init__(
        self,
        session: Session,
        context: grpc.ServicerContext,
        counters: Counters,
        pool: shm.Pool | None,
        driver: str = "",
    ) -> None:
        self.driver = driver
        self._session = session
        self._context = context
        self._counters = counters
        self._pool = pool
        self._reader = shm.Reader()
        self._out: SimpleQueue[Iterator[bytes] | None] = SimpleQueue()
        self._running: set[str] = set()
        self._lock = threading.Lock()
        self.error: NbflowError | None = None

    def replies(self, frames: Iterable[bytes]) -> Iterator[bytes]:
        """Frames to send, until either side ends the stream; `error` says why when that is the client's fault."""
        self._context.add_callback(self.close)
        thread = threading.Thread(target=self._read, args=(frames,), name="nbflow-steps", daemon=True)
        thread.start()
        try:
            while self._context.is_active():
                try:
                    item = self._out.get(timeout=LOOK_S)
                except Empty:
                    continue
                if item is None:
                    return
                yield from item
        finally:
            self.abandon()
            if self._pool is not None:
                self._pool.close()
            self._reader.close()

    def close(self) -> None:
        self._out.put(None)

    def abandon(self) -> None:
        """Whoever asked for what still runs is gone: cancels it."""
        with self._lock:
            running = list(self._running)
        for step_id in running:
            self._session.executor.cancel(step_id, "the driver of this step went away")

    def _read(self, frames: Iterable[bytes]) -> None:
        incoming = Incoming(pb.ToWorker)
        try:
            for frame in frames:
                message = incoming.feed(frame)
                if message is None:
                    continue
                if message.WhichOneof("kind") == "cancel":
                    self._cancel(message.cancel.step_id, message.cancel.reason)
                elif message.WhichOneof("kind") == "run":
                    self._start(message.run, incoming)
                else:
                    raise Rejected("a frame that asks for nothing was sent")
                incoming.end_message()
        except NbflowError as error:
            self.error = error
        except Exception as error:
            # gRPC raises a bare Exception into a reader whose call has ended; all else is ours to see.
            if self._context.is_active():
                log.exception("the stream of session %s failed", self._session.id)
                self.error = Rejected(f"the stream failed: {error}")
        finally:
            self.close()

    def _start(self, message: wire_pb2.StepCommand, incoming: Incoming) -> None:
        def get(tensor: wire_pb2.Tensor) -> HostArray:
            if tensor.WhichOneof("content") == "segment":
                return self._reader.get(tensor, copy=False)  # steps do not change what they are fed
            return incoming.get(tensor)

        step_id = message.step_id
        try:
            command = wire.decode_command(message, get)
            future = self._session.executor.start(command)
        except Exception as error:  # noqa: BLE001  # a command's failure belongs to its sender, and to no other
            self._fail(step_id, error)
            return
        with self._lock:
            self._running.add(step_id)
        self._counters.started()
        future.add_done_callback(self._counters.finished)
        future.add_done_callback(lambda f: self._finish(step_id, f))

    def _finish(self, step_id: str, future: Future[StepResult]) -> None:
        with self._lock:
            self._running.discard(step_id)
        error = future.exception()
        if error is not None:
            self._fail(step_id, error)
            return
        outgoing, reply = Outgoing(), pb.FromWorker()

        def put(tensor: wire_pb2.Tensor, value: HostArray) -> None:
            if self._pool is None or not self._pool.put(tensor, value):
                outgoing.put(tensor, value)

        try:
            wire.encode_result(future.result(), reply.done, put)
        except Exception as problem:  # noqa: BLE001  # no memory for it, too: whoever asked must hear of it
            self._fail(step_id, problem)
            return
        self._out.put(outgoing.frames(reply))

    def _fail(self, step_id: str, error: BaseException) -> None:
        reply = pb.FromWorker(failed=pb.StepFailed(step_id=step_id, error=wire.encode_error(error)))
        self._out.put(Outgoing().frames(reply))

    def _cancel(self, step_id: str, reason: str) -> None:
        def acknowledge(future: Future[None]) -> None:
            error = future.exception()
            reply = pb.FromWorker(cancelled=pb.CancelDone(step_id=step_id))
            if error is not None:
                reply.cancelled.error.CopyFrom(wire.encode_error(error))
            self._out.put(Outgoing().frames(reply))

        self._session.executor.cancel(step_id, reason).add_done_callback(acknowledge)


class EventStream:
    """Events of a session for one client, in batches."""

    def __init__(self, session: Session, context: grpc.ServicerContext) -> None:
        self._context = context
        self._events: deque[Event] = deque()
        self._wake = threading.Condition()
        self._urgent = self._closed = self._gap = False
        self._remove = session.executor.listen(self._put)
        context.add_callback(self.close)

    def _put(self, event: Event) -> None:
        with self._wake:
            if len(self._events) >= MAX_EVENTS:
                self._events.popleft()
                self._gap = True
            self._events.append(event)
            self._urgent = self._urgent or not _can_wait(event)
            # Whoever waits for the first of a batch, or for something urgent; not a thread woken for each event.
            if self._urgent or len(self._events) == 1:
                self._wake.notify()

    def close(self) -> None:
        with self._wake:
            self._closed = True
            self._wake.notify()

    def replies(self) -> Iterator[pb.EventReply]:
        """An empty reply first: from then on nothing is missed."""
        yield pb.EventReply()
        try:
            while self._context.is_active():
                batch = self._take()
                if batch:
                    yield pb.EventReply(events=[wire.encode_event(e) for e in batch])
                elif self._closed:
                    return
        finally:
            self._remove()

    def _take(self) -> list[Event]:
        """The next batch; nothing when none came for a while, or this is the end."""
        with self._wake:
            if self._wake.wait_for(lambda: self._events or self._closed, LOOK_S):
                self._wake.wait_for(lambda: self._urgent or self._closed, WINDOW_S)
            batch = [self._events.popleft() for _ in range(min(EVENT_BATCH, len(self._events)))]
            if not self._events:
                self._urgent = False
            if self._gap:
                self._gap = False
                batch.insert(0, Log("", GAP, "events were left out: the client read none", time.time()))
            return batch


def _can_wait(event: Event) -> bool:
    return isinstance(event, Metric) or (isinstance(event, RunState) and event.status == "running")


class BlobStore:
    """Constants of all sessions, by the SHA-256 of their bytes; freed with the last session that uses them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blobs: dict[str, Any] = {}

    def find(self, digest: str) -> Any | None:
        with self._lock:
            return self._blobs.get(digest)

    def add(self, digest: str, data: Any) -> None:
        with self._lock:
            self._blobs[digest] = data

    def keep(self, sessions: Mapping[str, Session]) -> None:
        """Frees what none of `sessions` uses."""
        used = set().union(*(s.wanted_blobs() for s in sessions.values()))
        with self._lock:
            for digest in set(self._blobs) - used:
                del self._blobs[digest]
