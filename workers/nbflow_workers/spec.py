"""Cluster files: who the workers are, and the secrets to reach them. Mode 0600, like a Jupyter connection file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nbflow.errors import Rejected
from nbflow_workers import security
from nbflow_workers.security import Token

SCHEMA = "nbflow.cluster.v1"


@dataclass(frozen=True, slots=True)
class Entry:
    """One worker."""

    job: str
    task: int
    address: str


@dataclass(frozen=True, slots=True)
class Spec:
    """A cluster. `ca` is PEM: the certificates to trust, several joined; empty for workers without TLS."""

    name: str
    token: Token
    ca: bytes = field(repr=False)
    workers: tuple[Entry, ...]

    def save(self, path: str | Path) -> None:
        """Writes the file, which only this user can read."""
        data = {
            "schema": SCHEMA,
            "name": self.name,
            "token": self.token.reveal(),
            "ca": self.ca.decode(),
            "workers": [{"job": w.job, "task": w.task, "address": w.address} for w in self.workers],
        }
        security.write_private(path, json.dumps(data, indent=2) + "\n")


def load(path: str | Path) -> Spec:
    """Reads a cluster file. Raises Rejected when it is not one, Unauthenticated when others can read it."""
    text = security.read_private(path)
    try:
        data: Any = json.loads(text)
        if data["schema"] != SCHEMA:
            raise Rejected(f"{path} has schema {data['schema']!r}; this nbflow reads {SCHEMA!r}")
        workers = tuple(Entry(str(w["job"]), int(w["task"]), str(w["address"])) for w in data["workers"])
        return Spec(str(data["name"]), Token(str(data["token"])), str(data.get("ca", "")).encode(), workers)
    except (ValueError, KeyError, TypeError) as error:
        raise Rejected(f"{path} is not a cluster file: {type(error).__name__}: {error}") from None
