"""A worker within one session, over gRPC: `GrpcTransport`."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import grpc

from nbflow import wire
from nbflow.errors import NbflowError, Rejected, WorkerLost
from nbflow.events import Emitter, Listener, WorkerState
from nbflow.plan import Bundle
from nbflow.transport import (
    FolderInfo,
    HostArray,
    Loop,
    LoopAction,
    RunPage,
    StepCommand,
    StepResult,
    WorkerInfo,
)
from nbflow_workers import rpc, status
from nbflow_workers.channel import Link
from nbflow_workers.frames import CHUNK_BYTES, bytes_of
from nbflow_workers.pipe import StepPipe
from nbflow_workers.proto import worker_pb2 as pb

log = logging.getLogger("nbflow.client")

# Who drives steps, where no task does.
NOTEBOOK = "client"
CLOSE_TIMEOUT_S = 10.0
LISTEN_TIMEOUT_S = 10.0
# `on_lost` asks the worker once more, and takes at most about half of this.
LOST_WAIT_S = 5.0


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
        self._steps = StepPipe(link, metadata, info.task_name, worker_host, self._broke)
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
