"""What a data plane is: a worker's way to send tensors to its peers, and where they arrive."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from nbflow.transport import HostArray, Inbox, Outbox


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


def host_id() -> str:
    """Names the set of processes that can open each other's segments: one boot, one /dev/shm, one user."""
    parts = [str(os.getuid())]
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            parts.append(file.read().strip())
        # Containers on one machine share the boot id, but not the file system below /dev/shm.
        parts.append(str(os.stat("/dev/shm").st_dev))
    except OSError:
        # Without /dev/shm nobody shares anything: a name that no other process has.
        parts.append(os.urandom(16).hex())
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:32]


__all__ = ["DataPlane", "Endpoint", "HostArray", "Inbox", "Outbox", "SessionKey", "host_id"]
