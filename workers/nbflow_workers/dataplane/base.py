"""What a data plane is: a worker's way to send tensors to its peers, and where they arrive."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from nbflow.transport import HostArray, Inbox, Outbox

# How long `send` waits for a peer that takes nothing before it counts as lost. Below the promise of 5 s.
SEND_TIMEOUT_S = 4.0
# How often a waiting `send` looks whether the peer, or the step, has been given up meanwhile.
LOOK_S = 0.1


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a worker takes tensors. `host_id` is the same for processes that see each other's shared memory."""

    address: str
    public_key: bytes
    host_id: str


@dataclass(frozen=True, slots=True)
class SessionKey:
    """A session on the data plane. `secret` stands on every message, and is never shown."""

    id: str
    secret: bytes

    def __repr__(self) -> str:
        return f"SessionKey({self.id!r}, secret=…)"


class DataPlane(Protocol):
    """All sessions of one process."""

    @property
    def endpoint(self) -> Endpoint:
        """Where peers send to."""
        ...

    def open(self, session: SessionKey, inbox: Inbox, peers: Mapping[str, Endpoint]) -> Outbox:
        """Joins a session: what arrives for it goes to `inbox`. Opening it again replaces its peers."""
        ...

    def close_session(self, session_id: str) -> None:
        """Frees what the session holds; what arrives for it later is dropped."""
        ...

    def close(self) -> None:
        """Frees everything and ends the threads. Safe to call twice."""
        ...


# (session id, source task, secret) -> that peer's arrivals; None for who may not send.
FindArrivals = Callable[[str, str, bytes], Any]


def host_id() -> str:
    """Names the set of processes that can share memory: one boot, one network, one /dev/shm, one user."""
    parts = [str(os.getuid())]
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            parts.append(file.read().strip())
        # Containers on one machine share the boot id, but not these.
        parts.append(str(os.stat("/dev/shm").st_dev))
        parts.append(str(os.stat("/proc/self/ns/net").st_ino))
    except OSError:
        # Without /dev/shm nobody shares anything: a name that no other process has.
        parts.append(os.urandom(16).hex())
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:32]


__all__ = ["DataPlane", "Endpoint", "HostArray", "Inbox", "Outbox", "SessionKey", "host_id"]
