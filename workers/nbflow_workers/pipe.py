"""The client's side of `Steps`: commands go out, results and acknowledgements come in, over one stream."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

import grpc

from nbflow import wire
from nbflow.errors import NbflowError, Rejected, WorkerError, WorkerLost
from nbflow.proto import wire_pb2
from nbflow.transport import (
    HostArray,
    StepCommand,
    StepResult,
)
from nbflow_workers import protocol, status
from nbflow_workers.channel import Link
from nbflow_workers.dataplane import shm
from nbflow_workers.dataplane.base import host_id
from nbflow_workers.frames import Incoming, Outgoing
from nbflow_workers.proto import worker_pb2 as pb

log = logging.getLogger("nbflow.client")

HOST_KEY = "nbflow-host"
CLOSE_TIMEOUT_S = 10.0
_HOST_ID = host_id() if shm.available() else ""
_PREFIX = shm.new_prefix()


class StepPipe:
    """The stream is opened with the first command and lives as long as the session."""

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
