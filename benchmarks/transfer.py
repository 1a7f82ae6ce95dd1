"""How fast does a tensor go from one worker to another?

Worker processes on this machine: two that share memory, two that are told not to and use ZeroMQ over TCP, and two that
encrypt it too, as between hosts (but on loopback). A step reads a variable on worker 0 and takes its first element on
worker 1, so that the whole tensor moves, once; it is started from Python, and the figures include what any step costs,
which "nothing" shows: a step that involves both workers and moves no tensor. "There and back" is a scalar that goes to
the other worker and returns.

Beside it, between two plain processes: a TCP connection into a buffer that is kept, one copy into shared memory, and
raw bytes in one unary gRPC call; all acknowledged by one byte. And a copy within one process.
"""

from __future__ import annotations

import mmap
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any

import common  # first: it names the threads
import grpc
import numpy as np

import nbflow as nf
from nbflow.transport import Cluster
from nbflow_workers.launchers.local import LocalLauncher

SIZES = {"1 MB": 10**6, "16 MB": 16 * 10**6, "100 MB": 10**8}
DEADLINE_S = 60.0
SHARED_MEMORY, TCP, CURVE = "nbflow, shared memory", "nbflow, ZeroMQ tcp", "nbflow, ZeroMQ tcp, encrypted"
SOCKET, MEMORY, GRPC, COPY = "TCP socket", "copy to shared memory", "gRPC bytes", "copy"
WAYS: dict[str, tuple[str, ...]] = {SHARED_MEMORY: (), TCP: ("--no-shm",), CURVE: ("--no-shm", "--encrypt")}
W0, W1 = "/job:worker/task:0", "/job:worker/task:1"
# Files here are memory (Linux).
SHARED = "/dev/shm"


def by_nbflow(cluster: Cluster, build: Callable[[], Any], expected: Any) -> common.Steps:
    graph = nf.Graph()
    with graph.as_default():
        fetch = build()
    session = nf.Session(cluster, graph)

    def steps(k: int) -> None:
        for _ in range(k):
            if session.run(fetch) != expected:
                raise ValueError("worker 1 did not get what worker 0 sent")

    return steps


def one_way(nbytes: int) -> Callable[[], nf.Tensor]:
    def build() -> nf.Tensor:
        with nf.device(W0):
            tensor = nf.Variable(nf.full((nbytes // 4,), 7.0), name="x").read()
        with nf.device(W1):
            return tensor[0]

    return build


def there_and_back() -> nf.Tensor:
    with nf.device(W0):
        there = nf.Variable(7.0, name="x").read()
    with nf.device(W1):
        back = there * 2.0
    with nf.device(W0):
        return back / 2.0


def nothing() -> list[nf.Tensor]:
    made = []
    for number, device in enumerate((W0, W1)):
        with nf.device(device):
            made.append(nf.Variable(7.0, name=f"x{number}").read())
    return made


def a_copy(nbytes: int) -> common.Steps:
    source, target = np.full(nbytes // 4, 7.0, np.float32), np.zeros(nbytes // 4, np.float32)

    def steps(k: int) -> None:
        for _ in range(k):
            np.copyto(target, source)

    return steps


class GrpcPeer:
    """A process (this file with `--receive`) that takes bytes in one unary call, without protobuf."""

    def __init__(self, nbytes: int) -> None:
        self.data = np.full(nbytes // 4, 7.0, np.float32).tobytes()
        command = [sys.executable, __file__, "--receive", GRPC, "-", "0"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        address = f"127.0.0.1:{int(self.process.stdout.readline())}"
        self.channel = grpc.insecure_channel(address, options=[("grpc.max_send_message_length", -1)])
        self.call = self.channel.unary_unary("/bench/Take", None, None)

    def steps(self, k: int) -> None:
        for _ in range(k):
            if self.call(self.data, timeout=DEADLINE_S) != b"!":
                raise ValueError("gRPC: the other end did not get what was sent")

    def close(self) -> None:
        self.channel.close()
        self.process.communicate(timeout=DEADLINE_S)


def serve_grpc() -> None:
    """Prints its port, and takes calls until standard input ends."""

    def take(request: bytes, context: grpc.ServicerContext) -> bytes:
        return b"!" if np.frombuffer(request, np.float32, 1)[0] == 7.0 else b"?"

    server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.max_receive_message_length", -1)])
    handler = grpc.unary_unary_rpc_method_handler(take)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench", {"Take": handler}),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    sys.stdin.read()
    server.stop(None).wait()


class Peer:
    """The other end: a process (this file with `--receive`) that takes what comes and acknowledges it."""

    def __init__(self, kind: str, nbytes: int) -> None:
        self.kind = kind
        self.value = np.full(nbytes // 4, 7.0, np.float32)
        self.file = tempfile.NamedTemporaryFile(dir=SHARED)  # noqa: SIM115  # closed in `close`
        self.file.truncate(nbytes)
        self.shared = np.frombuffer(mmap.mmap(self.file.fileno(), nbytes), np.float32)
        with closing(socket.create_server(("127.0.0.1", 0))) as server:
            server.settimeout(DEADLINE_S)
            command = [sys.executable, __file__, "--receive", kind, self.file.name, str(server.getsockname()[1])]
            self.process = subprocess.Popen(command)
            self.connection = server.accept()[0]
        self.connection.settimeout(DEADLINE_S)
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def steps(self, k: int) -> None:
        for _ in range(k):
            if self.kind == SOCKET:
                self.connection.sendall(self.value.data.cast("B"))
            else:
                np.copyto(self.shared, self.value)
                self.connection.sendall(b"!")
            if self.connection.recv(1) != b"!":
                raise ValueError(f"{self.kind}: the other end did not get what was sent")

    def close(self) -> None:
        self.connection.close()
        self.process.wait(DEADLINE_S)
        self.file.close()


def receive(kind: str, path: str, port: int) -> None:
    """Takes and acknowledges tensors until the connection ends."""
    with open(path, "rb") as file:
        shared = np.frombuffer(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ), np.float32)
    kept = np.empty_like(shared)
    value, wanted = (kept, kept.nbytes) if kind == SOCKET else (shared, 1)
    view = kept.data.cast("B")
    with closing(socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)) as connection:
        connection.settimeout(None)  # how long the sender takes between two is its own affair
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            got = 0
            while got < wanted:
                count = connection.recv_into(view[got:wanted])
                if count == 0:
                    return
                got += count
            connection.sendall(b"!" if value[0] == 7.0 else b"?")


def main() -> int:
    parser = common.arguments(__doc__)
    parser.add_argument("--receive", nargs=3, metavar=("KIND", "FILE", "PORT"), help="used by the benchmark itself")
    options = parser.parse_args()
    if options.receive:
        kind, path, port = options.receive
        if kind == GRPC:
            serve_grpc()
        else:
            receive(kind, path, int(port))
        return 0
    report = common.Report("How fast does a tensor go from one worker to another?", ["numpy", "grpcio", "pyzmq"])
    report.begin()
    rounds = common.rounds(options)
    with ExitStack() as clusters:
        made = {
            way: clusters.enter_context(nf.cluster.local(workers=2, launcher=LocalLauncher(flags=flags)))
            for way, flags in WAYS.items()
        }
        for name, build, expected in (
            ("nothing", nothing, [7.0, 7.0]),
            ("a scalar there", one_way(4), 7.0),
            ("a scalar there and back", there_and_back, 7.0),
        ):
            sides = {way: by_nbflow(cluster, build, expected) for way, cluster in made.items()}
            report.add(common.measure(name, sides, rounds=rounds), SHARED_MEMORY, unit="ms")
        for name, nbytes in SIZES.items():
            with ExitStack() as stack:
                sides = {way: by_nbflow(cluster, one_way(nbytes), 7.0) for way, cluster in made.items()}
                for kind in (SOCKET, MEMORY):
                    sides[kind] = stack.enter_context(closing(Peer(kind, nbytes))).steps
                sides[GRPC] = stack.enter_context(closing(GrpcPeer(nbytes))).steps
                sides[COPY] = a_copy(nbytes)
                measured = common.measure(name, sides, rounds=rounds)
            if nbytes <= 10**6:
                report.add(measured, SHARED_MEMORY, unit="ms")
            if nbytes >= 10**6:
                report.add(measured, SHARED_MEMORY, unit="GB/s", per=nbytes)
                report.compare(measured, GRPC, TCP, unit="GB/s", per=nbytes)
    if not options.quick:
        report.write("transfer")
    return 0


if __name__ == "__main__":
    sys.exit(main())
