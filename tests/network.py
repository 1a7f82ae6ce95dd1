"""Hosts on one machine: network namespaces on a bridge, whose links can be cut, delayed and made lossy. Needs root and
Linux. This kernel may have no netem, so delay and loss are made by a process that passes packets on, late or never.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import os
import random
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from types import TracebackType
from typing import Any

NET = "10.203.0"
RUN = "/var/run/netns"
# What makes a packet that a relay reads larger than a wire's, or its checksum somebody else's work.
_OFFLOADS = (0x17, 0x19, 0x1F, 0x24, 0x2C)  # ETHTOOL_STXCSUM, SSG, STSO, SGSO, SGRO
_SIOCETHTOOL = 0x8946
_OUTGOING = 4


def missing() -> str:
    """Why there can be no hosts here; empty when there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need root on Linux"
    absent = [tool for tool in ("ip", "nsenter") if shutil.which(tool) is None]
    if absent:
        return f"{' and '.join(absent)} is not installed (iproute2, util-linux)"
    name = f"nbf{os.getpid()}try"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"network namespaces cannot be made here: {made.stderr.strip()}"
    veth = ["ip", "-n", name, "link", "add", "end0", "type", "veth", "peer", "name", "end1"]
    found = subprocess.run(veth, capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "del", name], check=False)
    return f"virtual links cannot be made here: {found.stderr.strip()}" if found.returncode else ""


class Hosts:
    """`count` hosts, numbered from 1, and the switch between them, number 0, which has an address too."""

    def __init__(self, count: int) -> None:
        self._names = [f"nbf{os.getpid()}-{n}" for n in range(count + 1)]
        self._relays: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Hosts:
        try:
            for number, name in enumerate(self._names):
                _ip("netns", "add", name)
                self._ip(number, "link", "set", "lo", "up")
            self._ip(0, "link", "add", "br0", "type", "bridge")
            self._ip(0, "addr", "add", f"{self.address(0)}/24", "dev", "br0")
            self._ip(0, "link", "set", "br0", "up")
            for number, name in enumerate(self._names[1:], 1):
                link = ("link", "add", f"p{number}", "type", "veth", "peer", "name", "eth0", "netns", name)
                self._ip(0, *link)
                self._ip(0, "link", "set", f"p{number}", "master", "br0", "up")
                self._ip(number, "addr", "add", f"{self.address(number)}/24", "dev", "eth0")
                self._ip(number, "link", "set", "eth0", "up")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for relay in self._relays:
            relay.terminate()
            relay.wait(10)
        for name in self._names:
            if os.path.exists(f"{RUN}/{name}"):
                _ip("netns", "del", name)

    def address(self, number: int) -> str:
        return f"{NET}.{number or 254}"

    def start(self, number: int, *command: str, **options: Any) -> subprocess.Popen[Any]:
        """A process on a host."""
        return subprocess.Popen(["nsenter", f"--net={RUN}/{self._names[number]}", *command], **options)

    def cut(self, number: int) -> None:
        self._ip(0, "link", "set", f"p{number}", "down")

    def heal(self, number: int) -> None:
        self._ip(0, "link", "set", f"p{number}", "up")

    def impair(self, number: int, *, delay_ms: float, loss: float) -> None:
        """All packets to and from a host come later, and this part of them never."""
        self._ip(0, "link", "set", f"p{number}", "nomaster")
        self._ip(0, "link", "add", f"q{number}", "type", "veth", "peer", "name", f"r{number}")
        self._ip(0, "link", "set", f"q{number}", "master", "br0", "up")
        self._ip(0, "link", "set", f"r{number}", "up")
        for host, devices in ((number, ("eth0",)), (0, (f"p{number}", f"q{number}", f"r{number}", "br0"))):
            self.start(host, sys.executable, __file__, "plain", *devices).wait(10)
        command = (sys.executable, __file__, "relay", f"p{number}", f"r{number}", str(delay_ms), str(loss))
        relay = self.start(0, *command, stdout=subprocess.PIPE)
        assert relay.stdout is not None
        relay.stdout.readline()
        relay.stdout.close()
        self._relays.append(relay)

    def _ip(self, number: int, *words: str) -> None:
        _ip("-n", self._names[number], *words)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def plain(*devices: str) -> None:
    """Switches the devices' offloads off."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for device in devices:
            for command in _OFFLOADS:
                value = (ctypes.c_uint32 * 2)(command, 0)
                with contextlib.suppress(OSError):  # a device without this one
                    fcntl.ioctl(control, _SIOCETHTOOL, struct.pack("16sP", device.encode(), ctypes.addressof(value)))


def relay(one: str, other: str, delay_s: float, loss: float) -> None:
    """Passes packets between two devices until it is terminated."""
    ends = []
    for device in (one, other):
        end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        end.bind((device, 3))
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**23)
        ends.append(end)
    target = {ends[0]: ends[1], ends[1]: ends[0]}
    late: list[tuple[float, int, socket.socket, bytes]] = []
    draws, count = random.Random(0), 0
    print("ready", flush=True)
    while True:
        wait = max(0.0, late[0][0] - time.monotonic()) if late else None
        for end in select.select(ends, [], [], wait)[0]:
            for _ in range(64):
                try:
                    packet, address = end.recvfrom(2**16)
                except BlockingIOError:
                    break
                if address[2] == _OUTGOING or draws.random() < loss:
                    continue
                count += 1
                heapq.heappush(late, (time.monotonic() + delay_s, count, target[end], packet))
        while late and late[0][0] <= time.monotonic():
            _, _, end, packet = heapq.heappop(late)
            with contextlib.suppress(OSError):  # the link is down, or its queue is full: as on a wire
                end.send(packet)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if sys.argv[1] == "plain":
        plain(*sys.argv[2:])
    else:
        relay(sys.argv[2], sys.argv[3], float(sys.argv[4]) / 1e3, float(sys.argv[5]))
