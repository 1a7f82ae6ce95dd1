"""A worker process: what `nbflow worker` runs. Listens, says READY, and ends when told, orphaned or forgotten."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import json
import logging
import os
import platform
import resource
import signal
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from nbflow import wire
from nbflow.backends import cupy
from nbflow.backends.available import backends as installed_backends
from nbflow.backends.base import Backend
from nbflow.backends.null import NullBackend
from nbflow.device import DeviceSpec
from nbflow.errors import PlacementError, Rejected
from nbflow.executor import Executor
from nbflow.hardware import this_cpu
from nbflow.machines import parse_machine
from nbflow.transport import DeviceInfo, Outbox, Transport, WorkerInfo
from nbflow_workers import security, spec
from nbflow_workers.dataplane import shm
from nbflow_workers.dataplane.credit import WINDOW_BYTES
from nbflow_workers.dataplane.plane import PeerDataPlane
from nbflow_workers.server import SESSION_LEASE_S, Config, Server

log = logging.getLogger("nbflow.worker")

READY = "NBFLOW-READY "
# Tests start a worker of another version by this.
TEST_VERSION_VARIABLE = "NBFLOW_TEST_WIRE_VERSION"
# Where Linux says what a container may take, version 2 and version 1 of control groups.
CONTAINER_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
TICK_S = 0.25
# How often leases are looked at.
LEASE_TICK_S = 1.0


@dataclass(frozen=True, slots=True)
class Options:
    """The flags of `nbflow worker`. `keepalive_s`: end after this long without a call; 0: never.

    `orphan_s`: for workers of a launcher, whose standard input is a pipe from it: end this long after it closed, unless
    somebody calls; None: standard input is not looked at. `no_shm`: peers on this host are reached by TCP too.
    `encrypt`: what comes by TCP is encrypted on loopback too.
    `in_flight_mb`: how many MiB of tensors may be under way to one peer (docs/dataplane.md).
    `checkpoints`: the folder below which loops may save; None: nowhere.
    `lease_s`: a session that nobody uses is forgotten after this long. `outlive`: with `orphan_s`, sessions keep the
    worker after its launcher is gone, until the last has ended: by its client, or by its lease.
    """

    listen: str = "127.0.0.1:0"
    job: str = "worker"
    task: int = 0
    devices: str = "auto"
    keepalive_s: float = 0.0
    orphan_s: float | None = None
    outlive: bool = False
    lease_s: float = SESSION_LEASE_S
    no_shm: bool = False
    encrypt: bool = False
    in_flight_mb: int = WINDOW_BYTES // 2**20
    allow_python: bool = False
    checkpoints: Path | None = None
    spec_out: Path | None = None
    token_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    data_port: int = 0
    advertise: str = ""


def versions() -> dict[str, str]:
    """What runs here."""
    return {
        "nbflow": importlib.metadata.version("nbflow"),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "wire": str(wire.WIRE_VERSION),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def find_devices(asked: str, job: str, task: int) -> tuple[dict[str, Backend], tuple[DeviceInfo, ...]]:
    """Backends by device type (by `gpu:0` and so on for GPUs), and the devices: `auto`, which is the CPU and every GPU,
    or a list such as `cpu`, `cpu,gpu:0` or `null@h100`.

    A null device computes nothing, and takes the time of the machine that is described behind the `@`.

    Raises PlacementError for a device that is not here, naming what is missing.
    """
    installed = installed_backends()
    everything = ["cpu", *(f"gpu:{g.index}" for g in cupy.gpus())]
    wanted = everything if asked == "auto" else [d.strip() for d in asked.split(",") if d.strip()]
    backends: dict[str, Backend] = {}
    devices: list[DeviceInfo] = []
    for entry in wanted:
        name, _, machine = entry.partition("@")
        kind, _, index = name.partition(":")
        if kind == "null":
            if kind in backends or index not in ("", "0"):
                raise PlacementError(f"a worker has one null device, null:0; asked: {asked!r}")
            backends[kind] = NullBackend(machine)
        if kind == "gpu" and (not index or index.isdecimal()):
            backends[f"gpu:{int(index or 0)}"] = cupy.CupyBackend(int(index or 0))
        elif kind not in installed or index not in ("", "0"):
            raise PlacementError(
                f"this worker has no device {name!r}: backends installed here are {', '.join(sorted(installed))}"
            )
        elif kind not in backends:
            backends[kind] = installed[kind]()
        shared = ("", this_cpu().cores, this_cpu().threads) if kind == "cpu" else ()
        number = int(index or 0)
        devices.append(DeviceInfo(DeviceSpec(job, task, kind, number), *_describe(kind, machine, number), *shared))
    return backends, tuple(devices)


def _describe(kind: str, machine: str, index: int) -> tuple[str, int, float]:
    """For people; bytes of memory and flops a second, 0 where unknown."""
    if kind == "cpu":
        return str(this_cpu()), memory_bytes(), 0.0
    if kind == "null":
        return f"computes nothing, as {machine or 'in no time'}", 0, parse_machine(machine).flops
    if kind == "gpu":
        gpu = cupy.gpus()[index]
        return gpu.name, gpu.memory_bytes, gpu.flops
    return kind.upper(), 0, 0.0


def memory_bytes(limits: Sequence[str] = CONTAINER_LIMITS) -> int:
    """What this process may take: the machine's memory, or what its container or its shell leaves it of that. The
    placer then finds a full task before a step does."""
    found = [psutil.virtual_memory().total]
    for path in limits:
        with contextlib.suppress(OSError, ValueError):  # another version of control groups, or `max`: no limit
            found.append(int(Path(path).read_text()))
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        found.append(limit)
    return min(found)


def keep_freed_memory() -> None:
    """Tells glibc to keep what was freed: the first touch of fresh pages costs more than most ops on them."""
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    m_trim_threshold, m_top_pad, m_mmap_threshold = -1, -2, -3
    libc.mallopt(m_mmap_threshold, 2**30)
    libc.mallopt(m_trim_threshold, 2**31 - 1)
    libc.mallopt(m_top_pad, 64 * 2**20)


def run(options: Options) -> None:
    """Runs a worker until it is told to stop. Raises Rejected or Unauthenticated when it must not start."""
    host, _ = security.split_address(options.listen)
    token = security.token_from(file=options.token_file)
    # Plans and steps are other people's: they must not find the secret in the environment.
    os.environ.pop(security.TOKEN_VARIABLE, None)
    if token is None and options.spec_out is not None:
        token = security.new_token()
    tls = _tls(options, host)
    token = security.check_listen(host, token, tls)
    keep_freed_memory()
    incarnation = uuid.uuid4().hex
    backends, devices = find_devices(options.devices, options.job, options.task)
    prefix = shm.prefix_of(incarnation)
    dataplane = PeerDataPlane(
        host if host != "localhost" else "127.0.0.1",
        port=options.data_port,
        use_shm=not options.no_shm,
        encrypt=True if options.encrypt else None,
        window_bytes=options.in_flight_mb * 2**20,
    )
    info = WorkerInfo(
        options.job, options.task, options.listen, incarnation, os.getpid(), devices, versions(), options.allow_python
    )
    stop = threading.Event()

    def make_executor(info: WorkerInfo, session: str, outbox: Outbox, peers: Callable[[str], Transport]) -> Executor:
        return Executor(info, backends, session, outbox, peers=peers, checkpoints=options.checkpoints)

    version = int(os.environ.get(TEST_VERSION_VARIABLE, wire.WIRE_VERSION))
    config = Config(info, token, make_executor, dataplane, prefix, tls, version, options.lease_s, stop)
    try:
        server = Server(config, options.listen)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        server.start()
        address = _advertised(options, server.address)
        if options.spec_out is not None:
            ca = tls.certificate if tls is not None else b""
            spec.Spec(info.task_name, token, ca, (spec.Entry(info.job, info.task, address),)).save(options.spec_out)
        ready = {"address": address, "pid": os.getpid(), "incarnation": incarnation, "task": info.task_name}
        print(READY + json.dumps(ready), flush=True)
        try:
            _serve(server, options, stop)
        finally:
            server.stop()
    finally:
        dataplane.close()
        shm.remove_leftovers(prefix)


def _advertised(options: Options, bound: str) -> str:
    host, port = security.split_address(bound)
    if options.advertise:
        return f"{options.advertise}:{port}"
    return f"{platform.node()}:{port}" if host in ("0.0.0.0", "::") else bound


def _tls(options: Options, host: str) -> security.ServerTls | None:
    if (options.tls_cert is None) != (options.tls_key is None):
        raise Rejected("--tls-cert and --tls-key belong together: give both or neither")
    if options.tls_cert is not None and options.tls_key is not None:
        return security.ServerTls(options.tls_cert.read_bytes(), security.read_private(options.tls_key).encode())
    if security.is_loopback(host) or options.spec_out is None:
        return None
    # Loaded only where it is needed: it is the slowest import of a worker.
    from nbflow_workers import certificates

    return certificates.mint((host, platform.node()))


def _serve(server: Server, options: Options, stop: threading.Event) -> None:
    """Waits until told to stop, or until the leases are over."""
    orphaned = threading.Event()
    if options.orphan_s is not None:
        threading.Thread(target=_watch_stdin, args=(orphaned,), name="nbflow-stdin", daemon=True).start()
    orphan_since: float | None = None
    next_look = 0.0
    while not stop.wait(TICK_S):
        now = time.monotonic()
        if now < next_look:
            continue
        next_look = now + LEASE_TICK_S
        server.service.expire()
        kept = options.outlive and server.service.sessions > 0
        if orphaned.is_set() and (orphan_since is None or kept):
            orphan_since = now
        # A loop whose client is gone is no call, but work.
        idle = 0.0 if server.service.working else now - server.service.last_call_s
        if options.keepalive_s and idle > options.keepalive_s:
            log.warning("nobody called for %g s: this worker ends", options.keepalive_s)
            return
        alone = min(now - server.service.last_call_s, now - orphan_since) if orphan_since is not None else 0.0
        if options.orphan_s is not None and orphaned.is_set() and alone >= options.orphan_s:
            log.warning("the launcher is gone, and nobody called for %g s: this worker ends", options.orphan_s)
            return


def _watch_stdin(orphaned: threading.Event) -> None:
    """Standard input is a pipe from the launcher: its end means that the launcher is gone, however it went.

    A line `detach` first means that the launcher leaves on purpose, and the worker stays.
    """
    said = b""
    # Not through `sys.stdin`: the interpreter waits a second for its lock when it ends.
    while data := os.read(0, 4096):
        said = (said + data)[-64:]
        if b"detach\n" in said:
            return
    orphaned.set()


def ready_from(line: str) -> Mapping[str, str] | None:
    """What a READY line says; None for any other line."""
    if not line.startswith(READY):
        return None
    found: dict[str, str] = json.loads(line[len(READY) :])
    return found
