"""A channel to one worker: calls that answer with what was asked, or the error that it stands for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc

from nbflow import wire
from nbflow.errors import WorkerLost
from nbflow.events import RunState
from nbflow.transport import (
    RunEntry,
)
from nbflow_workers import rpc, status
from nbflow_workers.proto import worker_pb2 as pb
from nbflow_workers.security import TLS_NAME, Token


class Link:
    """A channel to one worker, with the token on every call. `ca` (PEM) for TLS, empty for none."""

    def __init__(self, address: str, token: Token, *, ca: bytes = b"", name: str = "") -> None:
        self.address = address
        self.token = token
        self.ca = ca
        # What errors call the worker; the address until its name is known.
        self.name = name or address
        options = list(rpc.CLIENT_OPTIONS)
        if ca:
            options.append(("grpc.ssl_target_name_override", TLS_NAME))
            self._channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(ca), options)
        else:
            self._channel = grpc.insecure_channel(address, options)
        self._callables = rpc.callables(self._channel)
        self._closed = False

    def __repr__(self) -> str:
        return f"Link({self.address!r}, token=…)"

    def metadata(self, session: str = "", incarnation: str = "") -> tuple[tuple[str, str], ...]:
        """What a call carries. `incarnation`: refused by a worker that was started since."""
        pairs = ((rpc.SESSION_KEY, session), (rpc.INCARNATION_KEY, incarnation))
        return (*self.token.metadata(), *((k, v) for k, v in pairs if v))

    def call(
        self, method: str, request: Any, *, timeout_s: float, doing: str, session: str = "", incarnation: str = ""
    ) -> Any:
        """One call. Raises the error the worker answered with, or WorkerLost, Unauthenticated, Rejected."""
        try:
            return self._callables[method](request, timeout=timeout_s, metadata=self.metadata(session, incarnation))
        except grpc.RpcError as error:
            raise status.from_rpc(error, worker=self.name, doing=doing) from None
        except ValueError:
            if not self._closed:
                raise
            raise WorkerLost(f"the way to {self.name} was closed here, while {doing}", worker=self.name) from None

    def stream(self, method: str, requests: Any, metadata: Sequence[tuple[str, str]]) -> Any:
        """An open stream; ends with the channel at the latest."""
        return self._callables[method](requests, metadata=tuple(metadata))

    def describe(self, *, timeout_s: float, version: int = wire.WIRE_VERSION) -> pb.DescribeReply:
        """Who the worker is. Raises VersionMismatch and all that `call` does."""
        reply: pb.DescribeReply = self.call(
            "Describe", pb.DescribeRequest(wire_version=version), timeout_s=timeout_s, doing="asking who it is"
        )
        wire.check_version(reply.wire_version, mine=version, worker=self.name)
        return reply

    def runs(self, *, timeout_s: float) -> list[RunEntry]:
        """The training runs that the worker knows, of all sessions."""
        reply: pb.RunsReply = self.call("Runs", pb.Empty(), timeout_s=timeout_s, doing="listing its runs")
        task = self.name.partition(" ")[0]
        found = []
        for entry in reply.runs:
            states = tuple(s for s in map(wire.decode_event, entry.states) if isinstance(s, RunState))
            found.append(RunEntry(entry.run, entry.session, task, entry.about, entry.since_s, states))
        return found

    def shutdown(self, *, timeout_s: float) -> None:
        """Asks the worker to end: what runs there gets its time to stop."""
        self.call("Shutdown", pb.Empty(), timeout_s=timeout_s, doing="ending it")

    def close(self) -> None:
        self._closed = True
        self._channel.close()
