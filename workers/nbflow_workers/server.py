"""The worker's gRPC service: a thin shell over sessions and their executors.

Handler threads never run steps, so health, cancelling and describing always answer.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import psutil
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from nbflow import op as ops
from nbflow import wire
from nbflow.compile import PLAN_OPS
from nbflow.errors import NbflowError, Rejected, VersionMismatch, WorkerLost
from nbflow.transport import LoopAction, Moved, Outbox, Transport, WorkerInfo
from nbflow_workers import rpc, security, status
from nbflow_workers.channel import Link
from nbflow_workers.client import GrpcTransport
from nbflow_workers.dataplane import shm
from nbflow_workers.dataplane.base import DataPlane, Endpoint, SessionKey
from nbflow_workers.pipe import HOST_KEY
from nbflow_workers.proto import worker_pb2 as pb
from nbflow_workers.session import BlobStore, Counters, EventStream, Session, StepExecutor, StepStream

log = logging.getLogger("nbflow.worker")

# Streams hold a thread each; the rest of the pool is for calls that end soon, so these always find one.
THREADS = 96
MAX_STREAMS = 64
MAX_SESSIONS = 64
MAX_BLOB_BYTES = 16 * 2**30
# A session nobody has used for this long, without a stream, is forgotten with its state.
SESSION_LEASE_S = 3600.0

MakeExecutor = Callable[[WorkerInfo, str, Outbox, Callable[[str], Transport]], StepExecutor]


@dataclass(slots=True)
class Config:
    """What a worker is. `wire_version` differs from the real one only in tests."""

    info: WorkerInfo
    token: security.Token
    make_executor: MakeExecutor
    dataplane: DataPlane
    shm_prefix: str
    tls: security.ServerTls | None = None
    wire_version: int = wire.WIRE_VERSION
    session_lease_s: float = SESSION_LEASE_S
    stop: threading.Event = field(default_factory=threading.Event)


def _answers(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turns what a method raises into a status, for the caller alone."""

    def call(self: Service, request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return function(self, request, context)
        except NbflowError as error:
            problem: BaseException = error
        except Exception as error:
            log.exception("%s failed", function.__name__)
            problem = error
        return status.abort(context, problem)

    return call


class Service:
    """The methods of `rpc.METHODS`."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._sessions: dict[str, Session] = {}
        self._peers: dict[str, tuple[dict[str, pb.Peer], bytes]] = {}
        self._blobs = BlobStore()
        self._counters = Counters()
        self._streams = threading.BoundedSemaphore(MAX_STREAMS)
        self._process = psutil.Process()
        self._process.cpu_percent(None)  # the first reading has nothing to compare with
        self.last_call_s = time.monotonic()

    # --- the worker -----------------------------------------------------------------------------------------------

    def seen(self, _metadata: Any) -> None:
        """Somebody with the token called: the worker's lease starts anew."""
        self.last_call_s = time.monotonic()

    @_answers
    def describe(self, request: pb.DescribeRequest, context: grpc.ServicerContext) -> pb.DescribeReply:
        info, endpoint = self._config.info, self._config.dataplane.endpoint
        self._check_version(request.wire_version)
        return pb.DescribeReply(
            wire_version=self._config.wire_version,
            job=info.job,
            task=info.task,
            incarnation=info.incarnation,
            pid=info.pid or 0,
            devices=[
                pb.DeviceInfo(
                    device=str(d.spec),
                    description=d.description,
                    memory_bytes=d.memory_bytes,
                    flops=d.flops,
                    cores=d.cores,
                    threads=d.threads,
                )
                for d in info.devices
            ],
            versions=dict(info.versions),
            allow_python=info.allow_python,
            data=pb.DataEndpoint(address=endpoint.address, public_key=endpoint.public_key, host_id=endpoint.host_id),
            host_id=endpoint.host_id,
            memory_bytes=self._process.memory_info().rss,
            cpu_percent=self._process.cpu_percent(None),
            sessions=len(self._sessions),
            running_steps=self._counters.running,
            steps_done=self._counters.done,
        )

    def _check_version(self, version: int) -> None:
        task, mine = self._config.info.task_name, self._config.wire_version
        if version != mine:
            raise VersionMismatch(
                f"{task} speaks wire version {mine}, and was called in version {version}; "
                "install the same nbflow on both sides",
                worker=task,
            )

    @_answers
    def shutdown(self, request: pb.Empty, context: grpc.ServicerContext) -> pb.Empty:
        self._config.stop.set()
        return pb.Empty()

    # --- sessions -------------------------------------------------------------------------------------------------

    @_answers
    def open_session(self, request: pb.OpenSessionRequest, context: grpc.ServicerContext) -> pb.OpenSessionReply:
        info = self._config.info
        self._check_version(request.wire_version)
        if request.incarnation != info.incarnation:
            raise Rejected(
                f"{info.task_name} was started again since it was asked who it is; attach to it anew",
                worker=info.task_name,
            )
        if not request.session or len(request.session) > 200 or len(request.secret) < 16:
            raise Rejected("a session needs an id of at most 200 characters and a secret of at least 16 bytes")
        peers = {p.task: p for p in request.peers}
        endpoints = {t: Endpoint(p.data.address, p.data.public_key, p.data.host_id) for t, p in peers.items()}
        with self._lock:
            session = self._sessions.get(request.session)
            if session is not None and session.secret != request.secret:
                raise Rejected(f"session {request.session} is somebody else's; choose another id")
            if session is None and len(self._sessions) >= MAX_SESSIONS:
                raise Rejected(f"{info.task_name} has {MAX_SESSIONS} sessions already; close some")
            before = self._peers.get(request.session, ({}, b""))[0]
            self._peers[request.session] = (peers, request.ca)
            if session is None:
                session = self._sessions[request.session] = self._make_session(request, endpoints)
                return pb.OpenSessionReply(life=session.life)
        self._config.dataplane.open(SessionKey(session.id, session.secret), session.executor, endpoints)
        # Loops may be using the others.
        session.forget_peers([task for task, peer in before.items() if peers.get(task) != peer])
        return pb.OpenSessionReply(life=session.life)

    def _make_session(self, request: pb.OpenSessionRequest, endpoints: Mapping[str, Endpoint]) -> Session:
        session_id = request.session
        session = Session(session_id, request.secret, lambda task: self._connect(session_id, task))
        inbox = _LateInbox(session)
        outbox = self._config.dataplane.open(SessionKey(session_id, request.secret), inbox, endpoints)
        session.executor = self._config.make_executor(self._config.info, session_id, outbox, session.peer)
        return session

    def _connect(self, session_id: str, task: str) -> GrpcTransport:
        peers, ca = self._peers.get(session_id, ({}, b""))
        peer = peers.get(task)
        if peer is None:
            raise WorkerLost(
                f"{task} is not part of session {session_id}: it has gone, or has not come yet", worker=task
            )
        link = Link(peer.address, self._config.token, ca=ca, name=task)
        job, _, number = task.removeprefix("/job:").partition("/task:")
        info = WorkerInfo(job, int(number), peer.address, peer.incarnation, None, ())
        return GrpcTransport(
            link,
            info,
            session_id,
            worker_host=peer.data.host_id,
            driver=self._config.info.task_name,
            owns_session=False,
            owns_link=True,
        )

    @_answers
    def close_session(self, request: pb.Empty, context: grpc.ServicerContext) -> pb.Empty:
        with self._lock:
            session = self._sessions.pop(_metadata(context, rpc.SESSION_KEY), None)
        if session is not None:
            self._end(session)
        return pb.Empty()

    def _end(self, session: Session) -> None:
        session.close()
        self._config.dataplane.close_session(session.id)
        with self._lock:
            self._peers.pop(session.id, None)
            sessions = dict(self._sessions)
        self._blobs.keep(sessions)

    def expire(self) -> None:
        """Forgets sessions whose lease is over. A stream or a running loop is use, with or without a client."""
        now = time.monotonic()
        lease = self._config.session_lease_s
        with self._lock:
            for session in self._sessions.values():
                if session.streams or session.executor.looping:
                    session.last_used_s = now
            over = [s for s in self._sessions.values() if now - s.last_used_s > lease]
            for session in over:
                del self._sessions[session.id]
        for session in over:
            log.info("session %s was not used for %g s and is forgotten", session.id, lease)
            self._end(session)

    @property
    def sessions(self) -> int:
        """How many sessions have not ended."""
        with self._lock:
            return len(self._sessions)

    @property
    def working(self) -> bool:
        """Whether a loop is led from here, or somebody holds a stream: a peer that leads one does."""
        with self._lock:
            return any(s.streams or s.executor.looping for s in self._sessions.values())

    def close(self) -> None:
        """Ends all sessions."""
        with self._lock:
            sessions, self._sessions = list(self._sessions.values()), {}
        for session in sessions:
            self._end(session)

    def _session(self, context: grpc.ServicerContext) -> Session:
        session_id, info = _metadata(context, rpc.SESSION_KEY), self._config.info
        meant = _metadata(context, rpc.INCARNATION_KEY)
        if meant and meant != info.incarnation:
            raise WorkerLost(
                f"{info.task_name} was started again: what it held, variables too, is gone", worker=info.task_name
            )
        with self._lock:
            session = self._sessions.get(session_id)
        if session is None:
            raise Rejected(
                f"session {session_id[:60]!r} is not open on {info.task_name}: "
                "it was closed, or its lease is over; open it again",
                worker=info.task_name,
            )
        session.last_used_s = time.monotonic()
        return session

    # --- plans ----------------------------------------------------------------------------------------------------

    @_answers
    def register(self, request: pb.RegisterRequest, context: grpc.ServicerContext) -> pb.RegisterReply:
        session = self._session(context)
        envelope = wire.open_envelope(request.bundle)
        if envelope.WhichOneof("value") != "bundle":
            raise Rejected("something else than a bundle was sent to be registered")
        wanted = dict(wire.blobs_of(envelope))
        # Noted first: from now on another session's end does not free them.
        session.blobs[envelope.bundle.id] = frozenset(wanted)
        missing = [digest for digest in wanted if self._blobs.find(digest) is None]
        if missing:
            return pb.RegisterReply(missing=missing)
        bundle = wire.decode_bundle(envelope.bundle, wire.blob_reader(self._blobs.find), knows=_knows)
        session.executor.register(bundle)
        return pb.RegisterReply()

    @_answers
    def put_blob(self, request: Iterable[pb.BlobChunk], context: grpc.ServicerContext) -> pb.Empty:
        session = self._session(context)
        buffer, filled, digest = np.empty(0, np.uint8), 0, ""
        mark = hashlib.sha256()
        for chunk in request:
            if not digest:
                digest = chunk.digest
                if chunk.nbytes > MAX_BLOB_BYTES or digest not in session.wanted_blobs():
                    raise Rejected(f"a constant of {chunk.nbytes} bytes that no plan asked for was sent")
                buffer = np.empty(chunk.nbytes, np.uint8)
            if filled + len(chunk.data) > len(buffer):
                raise Rejected(f"more than the announced {len(buffer)} bytes of a constant were sent")
            buffer[filled : filled + len(chunk.data)] = np.frombuffer(chunk.data, np.uint8)
            filled += len(chunk.data)
            mark.update(chunk.data)
        if filled != len(buffer) or mark.hexdigest() != digest:
            raise Rejected(f"a constant was damaged on its way: {filled} of {len(buffer)} bytes, or another digest")
        # Constants are shared by plans and sessions: nobody may write to them.
        buffer.flags.writeable = False
        self._blobs.add(digest, buffer.data)
        return pb.Empty()

    @_answers
    def drop_state(self, request: pb.DropStateRequest, context: grpc.ServicerContext) -> pb.Empty:
        self._session(context).executor.drop_state(list(request.keys))
        return pb.Empty()

    @_answers
    def unregister(self, request: pb.UnregisterRequest, context: grpc.ServicerContext) -> pb.Empty:
        session = self._session(context)
        session.executor.unregister(list(request.bundles))
        for bundle in request.bundles:
            session.blobs.pop(bundle, None)
        with self._lock:
            sessions = dict(self._sessions)
        self._blobs.keep(sessions)
        return pb.Empty()

    # --- loops ----------------------------------------------------------------------------------------------------

    @_answers
    def start_loop(self, request: pb.StartLoopRequest, context: grpc.ServicerContext) -> pb.Empty:
        self._session(context).executor.start_loop(wire.decode_loop(request.loop))
        return pb.Empty()

    @_answers
    def control_loop(self, request: pb.ControlLoopRequest, context: grpc.ServicerContext) -> pb.Empty:
        action = _ACTIONS.get(request.action)
        if action is None:
            raise Rejected(f"a loop cannot be asked to {request.action[:40]!r}; it can {', '.join(_ACTIONS)}")
        self._session(context).executor.control_loop(request.loop_id, action)
        return pb.Empty()

    @_answers
    def runs(self, request: pb.Empty, context: grpc.ServicerContext) -> pb.RunsReply:
        task = self._config.info.task_name
        with self._lock:
            sessions = list(self._sessions.values())
        reply = pb.RunsReply()
        for entry in (e for s in sessions for e in s.executor.runs.entries(s.id, task)):
            states = [wire.encode_event(state) for state in entry.states]
            reply.runs.add(
                run=entry.run, session=entry.session, about=entry.about, since_s=entry.since_s, states=states
            )
        return reply

    @_answers
    def read_run(self, request: pb.ReadRunRequest, context: grpc.ServicerContext) -> pb.ReadRunReply:
        page = self._session(context).executor.read_run(request.run, request.after)
        return pb.ReadRunReply(events=[wire.encode_event(e) for e in page.events], next=page.next, more=page.more)

    @_answers
    def look_at_folder(self, request: pb.LookAtFolderRequest, context: grpc.ServicerContext) -> pb.LookAtFolderReply:
        found = self._session(context).executor.look_at_folder(request.folder, request.mark)
        return pb.LookAtFolderReply(is_shared=found.is_shared, newest=found.newest)

    # --- streams --------------------------------------------------------------------------------------------------

    def steps(self, request: Iterable[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        host = _metadata(context, HOST_KEY)
        mine = self._config.dataplane.endpoint.host_id

        def make(session: Session) -> StepStream:
            driver = _metadata(context, rpc.DRIVER_KEY)
            session.take_over(driver)
            pool = shm.Pool(self._config.shm_prefix) if mine and host == mine else None
            return StepStream(session, context, self._counters, pool, driver)

        yield from self._stream(context, make, lambda stream: stream.replies(request))

    def events(self, request: pb.Empty, context: grpc.ServicerContext) -> Iterator[pb.EventReply]:
        yield from self._stream(context, lambda session: EventStream(session, context), lambda stream: stream.replies())

    def _stream(
        self, context: grpc.ServicerContext, make: Callable[[Session], Any], run: Callable[[Any], Iterator[Any]]
    ) -> Iterator[Any]:
        if not self._streams.acquire(blocking=False):
            status.abort(context, Rejected(f"{MAX_STREAMS} streams are open already; close a session"))
        problem: NbflowError | None = None
        try:
            session = self._session(context)
            stream = make(session)
            session.add(stream)
            try:
                yield from run(stream)
            finally:
                session.remove(stream)
            problem = getattr(stream, "error", None)
        except NbflowError as error:
            problem = error
        finally:
            self._streams.release()
        if problem is not None:
            status.abort(context, problem)


def _knows(op: str) -> bool:
    return op in PLAN_OPS or ops.is_registered(op)


_ACTIONS: dict[str, LoopAction] = {
    "stop": "stop",
    "pause": "pause",
    "resume": "resume",
    "cancel": "cancel",
    "save": "save",
    "abandon": "abandon",
}


class _LateInbox:
    """The executor's inbox, before the executor exists: it needs the outbox, which needs an inbox."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def deliver(self, step_id: str, key: str, value: Any, moved: Moved | None = None) -> None:
        self._session.executor.deliver(step_id, key, value, moved)

    def fail(self, step_id: str, error: NbflowError) -> None:
        self._session.executor.fail(step_id, error)


def _metadata(context: grpc.ServicerContext, key: str) -> str:
    value = dict(context.invocation_metadata()).get(key, "")
    return value if isinstance(value, str) else ""


class Server:
    """A service that listens. `address` is HOST:PORT; port 0 takes a free one. Raises Rejected when it is taken."""

    def __init__(self, config: Config, address: str) -> None:
        host, port = security.split_address(address)
        security.check_listen(host, config.token, config.tls)
        self.service = Service(config)
        self._health = health.HealthServicer()
        self._server = grpc.server(
            ThreadPoolExecutor(THREADS, thread_name_prefix="nbflow-grpc"),
            interceptors=[security.TokenInterceptor(config.token, self.service.seen)],
            options=rpc.SERVER_OPTIONS,
            maximum_concurrent_rpcs=4 * THREADS,
        )
        self._server.add_generic_rpc_handlers((rpc.handlers(self.service),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        shown = f"[{host}]" if ":" in host else host
        try:
            if config.tls is None:
                bound = self._server.add_insecure_port(f"{shown}:{port}")
            else:
                bound = self._server.add_secure_port(f"{shown}:{port}", config.tls.credentials())
        except RuntimeError as error:
            raise Rejected(f"cannot listen on {address}: the port is taken, or the address is not here") from error
        self.address = f"{shown}:{bound}"

    def start(self) -> None:
        self._server.start()
        for name in ("", rpc.SERVICE):
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    def stop(self, grace_s: float = 0.3) -> None:
        """Ends sessions, then calls, then the server, within about `grace_s` and the executors' own limit."""
        self._health.enter_graceful_shutdown()
        self.service.close()
        self._server.stop(grace_s).wait(grace_s + 5.0)
