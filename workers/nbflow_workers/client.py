"""The way to a worker over gRPC: `Link` makes calls, `GrpcTransport` is a worker within one session."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

import grpc

from nbflow import wire
from nbflow.errors import NbflowError, Rejected, WorkerError, WorkerLost
from nbflow.events import Emitter, Listener, RunState, WorkerState
from nbflow.plan import Bundle
from nbflow.proto import wire_pb2
from nbflow.transport import (
    FolderInfo,
    HostArray,
    Loop,
    LoopAction,
    RunEntry,
    RunPage,
    StepCommand,
    StepResult,
    WorkerInfo,
)
from nbflow_workers import protocol, rpc, status
from nbflow_workers.dataplane import shm
from nbflow_workers.dataplane.base import host_id
from nbflow_workers.frames import CHUNK_BYTES, Incoming, Outgoing, bytes_of
from nbflow_workers.proto import worker_pb2 as pb
from nbflow_workers.security import TLS_NAME, Token

log = logging.getLogger("nbflow.client")

HOST_KEY = "nbflow-host"
# Who drives steps, where no task does.
NOTEBOOK = "client"
CLOSE_TIMEOUT_S = 10.0
LISTEN_TIMEOUT_S = 10.0
# `on_lost` asks the worker once more, and takes at most about half of this.
LOST_WAIT_S = 5.0
_HOST_ID = host_id() if shm.available() else ""
_PREFIX = shm.new_prefix()


class Link:
    """A channel to one worker, with the token on every call. `ca` (PEM) for TLS, empty for none."""

    def __init__(self, address: str, token: Token, *, ca: bytes = b"", name: str = "") -> None:
        self.address = address
        self.token = token
        self.ca = ca
        # What errors call the worker; the address until its name is known.
        self.name = name or address
        options = list(rpc.CLIENT_OPTIONS)
        if ca:
            options.append(("grpc.ssl_target_name_override", TLS_NAME))
            self._channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(ca), options)
        else:
            self._channel = grpc.insecure_channel(address, options)
        self._callables = rpc.callables(self._channel)
        self._closed = False

    def __repr__(self) -> str:
        return f"Link({self.address!r}, token=…)"

    def metadata(self, session: str = "", incarnation: str = "") -> tuple[tuple[str, str], ...]:
        """What a call carries. `incarnation`: refused by a worker that was started since."""
        pairs = ((rpc.SESSION_KEY, session), (rpc.INCARNATION_KEY, incarnation))
        return (*self.token.metadata(), *((k, v) for k, v in pairs if v))

    def call(
        self, method: str, request: Any, *, timeout_s: float, doing: str, session: str = "", incarnation: str = ""
    ) -> Any:
        """One call. Raises the error the worker answered with, or WorkerLost, Unauthenticated, Rejected."""
        try:
            return self._callables[method](request, timeout=timeout_s, metadata=self.metadata(session, incarnation))
        except grpc.RpcError as error:
            raise status.from_rpc(error, worker=self.name, doing=doing) from None
        except ValueError:
            if not self._closed:
                raise
            raise WorkerLost(f"the way to {self.name} was closed here, while {doing}", worker=self.name) from None

    def stream(self, method: str, requests: Any, metadata: Sequence[tuple[str, str]]) -> Any:
        """An open stream; ends with the channel at the latest."""
        return self._callables[method](requests, metadata=tuple(metadata))

    def describe(self, *, timeout_s: float, version: int = wire.WIRE_VERSION) -> pb.DescribeReply:
        """Who the worker is. Raises VersionMismatch and all that `call` does."""
        reply: pb.DescribeReply = self.call(
            "Describe", pb.DescribeRequest(wire_version=version), timeout_s=timeout_s, doing="asking who it is"
        )
        wire.check_version(reply.wire_version, mine=version, worker=self.name)
        return reply

    def runs(self, *, timeout_s: float) -> list[RunEntry]:
        """The training runs that the worker knows, of all sessions."""
        reply: pb.RunsReply = self.call("Runs", pb.Empty(), timeout_s=timeout_s, doing="listing its runs")
        task = self.name.partition(" ")[0]
        found = []
        for entry in reply.runs:
            states = tuple(s for s in map(wire.decode_event, entry.states) if isinstance(s, RunState))
            found.append(RunEntry(entry.run, entry.session, task, entry.about, entry.since_s, states))
        return found

    def shutdown(self, *, timeout_s: float) -> None:
        """Asks the worker to end: what runs there gets its time to stop."""
        self.call("Shutdown", pb.Empty(), timeout_s=timeout_s, doing="ending it")

    def close(self) -> None:
        self._closed = True
        self._channel.close()


class GrpcTransport:
    """Implements `nbflow.transport.Transport` for a session that is open on the worker.

    `on_lost` is called when the connection breaks, before anything that waits for the worker fails.
    `life`: see `Transport`; empty where nobody asks for it. `driver`: the task that drives steps, or NOTEBOOK.
    `worker_host`: the worker's `host_id`; where it is also ours, large feeds and fetches take shared memory.
    `owns_session`: closing ends the session there (a worker's transports to its peers do not). `owns_link`: closing
    closes the link too.
    """

    def __init__(
        self,
        link: Link,
        info: WorkerInfo,
        session: str,
        *,
        life: str = "",
        driver: str = NOTEBOOK,
        worker_host: str = "",
        owns_session: bool = True,
        owns_link: bool = False,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self._link = link
        self._info = info
        self._session = session
        self._life = life
        self._owns_session = owns_session
        self._owns_link = owns_link
        self._on_lost = on_lost
        self._registered: set[str] = set()
        self._events = Emitter()
        self._events_call: Any = None
        self._lock = threading.Lock()
        metadata = (*link.metadata(session, info.incarnation), (rpc.DRIVER_KEY, driver))
        self._steps = _StepPipe(link, metadata, info.task_name, worker_host, self._broke)
        self._closed = False
        self._lost = False
        self._lost_told = threading.Event()

    def __repr__(self) -> str:
        return f"<GrpcTransport to {self._info.task_name} at {self._link.address}>"

    @property
    def worker(self) -> WorkerInfo:
        return self._info

    @property
    def life(self) -> str:
        return self._life

    @property
    def usable(self) -> bool:
        """False when it was closed, or its connection broke."""
        return not (self._closed or self._lost) and self._steps.state in ("new", "opening", "open")

    def answers(self, *, timeout_s: float) -> bool:
        """Whether the worker answers over this connection now, and its streams have not broken by then."""
        try:
            self._link.describe(timeout_s=timeout_s)
        except NbflowError as error:
            log.info("%s does not answer: %s", self, error)
            return False
        return self.usable

    def register(self, bundle: Bundle, *, timeout_s: float = 60.0) -> None:
        with self._lock:
            if bundle.id in self._registered:
                return
        blobs = wire.Blobs()
        request = pb.RegisterRequest(bundle=wire.dumps(bundle, blobs.put))
        deadline = time.monotonic() + timeout_s
        missing: Sequence[str] = ()
        for _ in range(2):
            left = max(0.1, deadline - time.monotonic())
            missing = self._call("Register", request, timeout_s=left, doing="registering a plan").missing
            if not missing:
                with self._lock:
                    self._registered.add(bundle.id)
                return
            for digest in missing:
                if digest not in blobs.arrays:
                    break
                left = max(0.1, deadline - time.monotonic())
                chunks = _blob_chunks(digest, blobs.arrays[digest])
                self._call("PutBlob", chunks, timeout_s=left, doing="sending a constant")
        raise Rejected(f"{self._info.task_name} keeps asking for constants it was sent: {list(missing)[:3]}")

    def start(self, command: StepCommand) -> Future[StepResult]:
        return self._steps.start(command)

    def cancel(self, step_id: str, reason: str) -> Future[None]:
        return self._steps.cancel(step_id, reason)

    def drop_state(self, keys: Sequence[str], *, timeout_s: float = 10.0) -> None:
        self._call("DropState", pb.DropStateRequest(keys=keys), timeout_s=timeout_s, doing="freeing state")

    def unregister(self, bundles: Sequence[str], *, timeout_s: float = 10.0) -> None:
        with self._lock:
            self._registered.difference_update(bundles)
        request = pb.UnregisterRequest(bundles=bundles)
        self._call("Unregister", request, timeout_s=timeout_s, doing="freeing plans")

    def start_loop(self, loop: Loop, *, timeout_s: float = 30.0) -> None:
        request = pb.StartLoopRequest(loop=wire.encode_loop(loop))
        self._call("StartLoop", request, timeout_s=timeout_s, doing="starting a loop")

    def control_loop(self, loop_id: str, action: LoopAction, *, timeout_s: float = 10.0) -> None:
        request = pb.ControlLoopRequest(loop_id=loop_id, action=action)
        self._call("ControlLoop", request, timeout_s=timeout_s, doing=f"asking a loop to {action}")

    def listen(self, listener: Listener) -> Callable[[], None]:
        remove = self._events.add(listener)
        try:
            self._subscribe()
        except NbflowError:
            remove()
            raise
        return remove

    def read_run(self, run: str, after: int = 0, *, timeout_s: float = 10.0) -> RunPage:
        request = pb.ReadRunRequest(run=run, after=after)
        reply = self._call("ReadRun", request, timeout_s=timeout_s, doing="reading a run")
        return RunPage(tuple(wire.decode_event(e) for e in reply.events), reply.next, reply.more)

    def look_at_folder(self, folder: str, mark: str, *, timeout_s: float = 10.0) -> FolderInfo:
        request = pb.LookAtFolderRequest(folder=folder, mark=mark)
        reply = self._call("LookAtFolder", request, timeout_s=timeout_s, doing="looking at a folder")
        return FolderInfo(reply.is_shared, reply.newest)

    def close(self, *, keep_session: bool = False) -> None:
        """Ends the connection, and the session on the worker unless `keep_session`."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            events, self._events_call = self._events_call, None
        reachable = self._steps.state != "lost"
        self._steps.close()
        if events is not None:
            events.cancel()
        if self._owns_session and reachable and not keep_session:
            try:
                self._call("CloseSession", pb.Empty(), timeout_s=CLOSE_TIMEOUT_S, doing="closing the session")
            except NbflowError as error:
                # Its state goes with the process, or with the session's lease.
                log.info("session %s could not be closed: %s", self._session, error)
        if self._owns_link:
            self._link.close()

    # --- inside ---------------------------------------------------------------------------------------------------

    def _call(self, method: str, request: Any, *, timeout_s: float, doing: str) -> Any:
        incarnation = self._info.incarnation
        try:
            return self._link.call(
                method, request, timeout_s=timeout_s, doing=doing, session=self._session, incarnation=incarnation
            )
        except WorkerLost:
            if not self._closed:  # whoever sees this error, and runs again, finds a cluster that knows
                self._on_lost()
            raise

    def _broke(self) -> None:
        """A stream broke: the other one ends too, so that who listens knows, and a new connection takes the place of
        both. Returns when `on_lost` has, whichever stream it was called for."""
        with self._lock:
            first, self._lost = not self._lost, True
            events = self._events_call
        if first:
            try:
                self._on_lost()
            finally:
                self._lost_told.set()
        else:
            self._lost_told.wait(LOST_WAIT_S)
        if events is not None:
            events.cancel()

    def _subscribe(self) -> None:
        with self._lock:
            if self._events_call is not None or self._closed:
                return
            metadata = self._link.metadata(self._session, self._info.incarnation)
            call = self._events_call = self._link.stream("Events", pb.Empty(), metadata)
        ready: Future[None] = Future()
        threading.Thread(
            target=self._read_events, args=(call, ready), name=f"nbflow-events-{self._info.task}", daemon=True
        ).start()
        try:
            ready.result(LISTEN_TIMEOUT_S)
        except TimeoutError:
            call.cancel()
            raise WorkerLost(
                f"{self._info.task_name} sent no events within {LISTEN_TIMEOUT_S:g} s", worker=self._info.task_name
            ) from None

    def _read_events(self, call: Any, ready: Future[None]) -> None:
        problem = f"{self._info.task_name} ({self._link.address}) ended its events"
        try:
            for reply in call:
                if not ready.done():
                    ready.set_result(None)
                for event in reply.events:
                    self._events.emit(wire.decode_event(event))
        except grpc.RpcError as error:
            found = status.from_rpc(error, worker=self._info.task_name, doing="sending events")
            details = error.details() if isinstance(error, grpc.Call) else str(error)
            problem = f"{self._info.task_name} ({self._link.address}) was lost ({details})"
            if not ready.done():
                ready.set_exception(found)
        except NbflowError as error:
            problem = f"{self._info.task_name} sent a damaged event: {error}"
            log.exception("%s sent a damaged event", self._info.task_name)
        with self._lock:
            closed = self._closed and not self._lost
            if self._events_call is call:
                self._events_call = None
        if not ready.done():
            ready.set_exception(WorkerLost(problem, worker=self._info.task_name))
        elif not closed:
            self._broke()
            # Listeners wait for more, such as the end of a loop: this is all that will come.
            self._events.emit(WorkerState(self._info.task_name, "lost", self._link.address, time.time(), problem))


def _blob_chunks(digest: str, value: HostArray) -> Iterator[pb.BlobChunk]:
    view = bytes_of(value)
    for start in range(0, max(1, len(view)), CHUNK_BYTES):
        data = bytes(view[start : start + CHUNK_BYTES])
        yield pb.BlobChunk(digest=digest if start == 0 else "", nbytes=len(view) if start == 0 else 0, data=data)


class _StepPipe:
    """The client's side of `Steps`. The stream is opened with the first command and lives as long as the session."""

    def __init__(
        self,
        link: Link,
        metadata: Sequence[tuple[str, str]],
        task: str,
        worker_host: str,
        on_lost: Callable[[], None],
    ) -> None:
        self._link = link
        self._metadata = metadata
        self._task = task
        self._on_lost = on_lost
        self._lock = threading.Lock()
        self._out: SimpleQueue[Iterator[bytes] | None] = SimpleQueue()
        self._steps: dict[str, Future[StepResult]] = {}
        self._cancels: dict[str, list[Future[None]]] = {}
        self._call: Any = None
        self._pool = shm.Pool(_PREFIX) if _HOST_ID and worker_host == _HOST_ID else None
        self._segments = shm.Reader()
        self._incoming = Incoming(pb.FromWorker)
        self._thread: threading.Thread | None = None
        self._reason: NbflowError | None = None
        self.state: protocol.State = "new"

    def start(self, command: StepCommand) -> Future[StepResult]:
        future: Future[StepResult] = Future()
        # So that nobody can cancel the future under us: `Transport.cancel` is the way.
        future.set_running_or_notify_cancel()
        outgoing, message = Outgoing(), pb.ToWorker()

        def put(tensor: wire_pb2.Tensor, value: HostArray) -> None:
            # The worker copies out of a segment before it starts the step; only peers on this host can.
            if self._pool is None or not self._pool.put(tensor, value):
                outgoing.put(tensor, value)

        wire.encode_command(command, message.run, put)
        with self._lock:
            problem = self._open()
            if problem is None and command.step_id in self._steps:
                problem = Rejected(f"step {command.step_id} is already running", worker=self._task)
            if problem is None:
                self._steps[command.step_id] = future
                self._out.put(outgoing.frames(message))
        if problem is not None:
            future.set_exception(problem)
        return future

    def cancel(self, step_id: str, reason: str) -> Future[None]:
        future: Future[None] = Future()
        future.set_running_or_notify_cancel()
        message = pb.ToWorker(cancel=pb.Cancel(step_id=step_id, reason=reason))
        with self._lock:
            problem = self._open()
            if problem is None:
                self._cancels.setdefault(step_id, []).append(future)
                self._out.put(Outgoing().frames(message))
        if problem is not None:
            future.set_exception(problem)
        return future

    def close(self) -> None:
        """Ends the stream; steps still running fail. Returns when its threads have ended."""
        with self._lock:
            self.state = protocol.after(self.state, "close")
            call, thread = self._call, self._thread
        self._out.put(None)
        if call is not None:
            call.cancel()
        if thread is not None and thread is not threading.current_thread():
            thread.join(CLOSE_TIMEOUT_S)
        with self._lock:
            if self.state == "closing":
                self.state = protocol.after(self.state, "closed")
        if self._pool is not None:
            self._pool.close()
        self._segments.close()

    # --- inside ---------------------------------------------------------------------------------------------------

    def _open(self) -> NbflowError | None:
        """Opens the stream when it is new; why it cannot be used otherwise. The lock is held."""
        if self.state == "new":
            self.state = protocol.after(self.state, "open")
            metadata = (*self._metadata, (HOST_KEY, _HOST_ID))
            self._call = self._link.stream("Steps", self._requests(), metadata)
            self._thread = threading.Thread(target=self._read, name=f"nbflow-steps{self._task}", daemon=True)
            self._thread.start()
            self.state = protocol.after(self.state, "opened")
        if self.state in protocol.USABLE:
            return None
        if self._reason is not None:
            return self._reason
        return WorkerLost(f"the session with {self._task} is closed", worker=self._task)

    def _requests(self) -> Iterator[bytes]:
        while True:
            item = self._out.get()  # ended by the None of `close` or `_end`
            if item is None:
                return
            yield from item

    def _read(self) -> None:
        reason: NbflowError
        try:
            for frame in self._call:
                message = self._incoming.feed(frame)
                if message is not None:
                    self._handle(message)
                    self._incoming.end_message()
            reason = WorkerLost(self._text("ended the session"), worker=self._task)
        except grpc.RpcError as error:
            reason = status.from_rpc(error, worker=self._task, doing="running steps")
            if isinstance(reason, WorkerLost):
                details = error.details() if isinstance(error, grpc.Call) else str(error)
                reason = WorkerLost(self._text(f"was lost ({details})"), worker=self._task)
        except NbflowError as error:
            reason = self._refused(error)
        except Exception as error:
            # Whatever it is, nothing more is read: those who wait must not do so for ever.
            log.exception("what %s sent cannot be taken", self._task)
            reason = self._refused(WorkerError(repr(error)))
        self._end(reason)

    def _refused(self, error: NbflowError) -> NbflowError:
        return Rejected(f"{self._task} sent what cannot be taken: {error.message}", worker=self._task)

    def _text(self, what: str) -> str:
        with self._lock:
            running = ", ".join(list(self._steps)[:3])
        return f"{self._task} ({self._link.address}) {what}" + (f", while running {running}" if running else "")

    def _end(self, reason: NbflowError) -> None:
        if self.state != "closing":
            self._on_lost()
        with self._lock:
            self.state = protocol.after(self.state, "broke")
            self._reason = reason
            steps, self._steps = self._steps, {}
            cancels, self._cancels = self._cancels, {}
        self._out.put(None)
        for future in steps.values():
            future.set_exception(reason)
        for waiting in cancels.values():
            for acknowledgement in waiting:
                acknowledgement.set_exception(reason)

    def _handle(self, message: pb.FromWorker) -> None:
        kind = message.WhichOneof("kind")
        if kind == "done":
            future = self._take(message.done.step_id)
            try:
                result = wire.decode_result(message.done, self._get)
            except NbflowError as error:
                if future is not None:
                    future.set_exception(self._refused(error))
                return
            if future is not None:
                future.set_result(result)
        elif kind == "failed":
            future = self._take(message.failed.step_id)
            if future is not None:
                future.set_exception(self._error(message.failed.error))
        elif kind == "cancelled":
            with self._lock:
                waiting = self._cancels.pop(message.cancelled.step_id, [])
            for acknowledgement in waiting:
                acknowledgement.set_result(None)
        else:
            raise Rejected("a frame that says nothing")

    def _take(self, step_id: str) -> Future[StepResult] | None:
        with self._lock:
            return self._steps.pop(step_id, None)

    def _get(self, tensor: wire_pb2.Tensor) -> HostArray:
        if tensor.WhichOneof("content") == "segment":
            return self._segments.get(tensor)
        return self._incoming.get(tensor)

    def _error(self, message: wire_pb2.Error) -> NbflowError:
        error = wire.decode_error(message)
        if getattr(error, "worker", None) == "":
            error.worker = self._task  # type: ignore[attr-defined]  # RunError and WorkerError have it
        return error
