"""How fast does a tensor go from one worker to another?

Two worker processes on this machine. A step reads a variable on worker 0 and takes its first element on worker 1, so
that the whole tensor moves, once; it is started from Python, and the figures include what any step costs (4 bytes show
it). Beside it, between two plain processes: a TCP connection into a buffer that is kept, and one copy into shared
memory, both acknowledged by one byte.
"""

from __future__ import annotations

import mmap
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack, closing

import common  # first: it names the threads
import numpy as np

import nbflow as nf
from nbflow.transport import Cluster

SIZES = {"4 B": 4, "1 MB": 1 << 20, "16 MB": 16 << 20, "100 MB": 100 << 20}
DEADLINE_S = 60.0
SOCKET, MEMORY = "TCP socket", "shared memory"
# Files here are memory (Linux).
SHARED = "/dev/shm"


def by_nbflow(cluster: Cluster, nbytes: int) -> common.Steps:
    graph = nf.Graph()
    with graph.as_default():
        with nf.device("/job:worker/task:0"):
            tensor = nf.Variable(nf.full((nbytes // 4,), 7.0), name="x").read()
        with nf.device("/job:worker/task:1"):
            first = tensor[0]
    session = nf.Session(cluster, graph)

    def steps(k: int) -> None:
        for _ in range(k):
            if session.run(first) != 7.0:
                raise ValueError("worker 1 did not get what worker 0 sent")

    return steps


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
        receive(kind, path, int(port))
        return 0
    report = common.Report("How fast does a tensor go from one worker to another?", ["numpy", "grpcio", "pyzmq"])
    report.begin()
    with nf.cluster.local(workers=2) as cluster:
        for name, nbytes in SIZES.items():
            with ExitStack() as stack:
                sides = {"nbflow": by_nbflow(cluster, nbytes)}
                for kind in (SOCKET, MEMORY):
                    sides[kind] = stack.enter_context(closing(Peer(kind, nbytes))).steps
                measured = common.measure(name, sides, rounds=common.rounds(options))
            if nbytes < 1000:
                report.add(measured, "nbflow")
            else:
                report.add(measured, "nbflow", unit="GB/s", per=nbytes)
    if not options.quick:
        report.write("transfer")
    return 0


if __name__ == "__main__":
    sys.exit(main())
