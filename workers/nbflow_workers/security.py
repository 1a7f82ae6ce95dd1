"""Who may talk to a worker: tokens, the interceptor that asks for them, TLS, and where a worker may listen.

A token is always required. It comes from the environment (`NBFLOW_TOKEN`) or a file that only its user can read, never
from the command line, where every user of the machine sees it. Beyond loopback a worker listens only with TLS.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
import secrets
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from nbflow.errors import Rejected, Unauthenticated
from nbflow_workers import status
from nbflow_workers.rpc import TOKEN_KEY

TOKEN_VARIABLE = "NBFLOW_TOKEN"
# Shorter ones could be guessed by trying.
MIN_TOKEN_CHARS = 16
# The name in every minted certificate; clients check this one, so that addresses may change.
TLS_NAME = "nbflow-worker"
# A probe of an orchestrator has no token, and learns nothing but that the process answers.
OPEN_METHODS = frozenset({"/grpc.health.v1.Health/Check"})


class Token:
    """A secret that never shows itself: not in a repr, not in a message, not in a log."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        if len(text) < MIN_TOKEN_CHARS or not text.isascii() or not text.isprintable() or " " in text:
            raise Unauthenticated(
                f"a token has at least {MIN_TOKEN_CHARS} printable ASCII characters without spaces; "
                f"make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
            )
        self._text = text

    def __repr__(self) -> str:
        return "Token(…)"

    def reveal(self) -> str:
        """The text, for the environment of a process and for files of mode 0600."""
        return self._text

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What a call carries."""
        return ((TOKEN_KEY, f"Bearer {self._text}"),)

    def matches(self, header: str) -> bool:
        """True for the right `authorization` header; takes the same time for every wrong one."""
        return hmac.compare_digest(header.encode(), f"Bearer {self._text}".encode())


def new_token() -> Token:
    """A fresh token of 256 bits."""
    return Token(secrets.token_urlsafe(32))


def token_from(given: str | Token | None = None, file: str | Path | None = None) -> Token | None:
    """The token given, or in `file` (mode 0600), or in the environment; None without any. Raises Unauthenticated."""
    if isinstance(given, Token):
        return given
    if given is not None:
        return Token(given)
    if file is not None:
        return Token(read_private(file).strip())
    text = os.environ.get(TOKEN_VARIABLE)
    return Token(text) if text else None


def read_private(path: str | Path) -> str:
    """The text of a file that only this user can read. Raises Unauthenticated when others can."""
    with open(path, encoding="utf-8") as file:
        mode = os.fstat(file.fileno()).st_mode
        if stat.S_IMODE(mode) & 0o077:
            raise Unauthenticated(f"others can read the secrets in {path}: run chmod 600 {path}")
        return file.read()


def write_private(path: str | Path, text: str) -> None:
    """Writes a file of mode 0600, aside and renamed, so that nobody ever sees half of it or reads it."""
    target = Path(path)
    aside = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(aside, target)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


@dataclass(frozen=True, slots=True)
class ServerTls:
    """A worker's certificate chain and key, PEM."""

    certificate: bytes
    key: bytes = field(repr=False)

    def credentials(self) -> grpc.ServerCredentials:
        return grpc.ssl_server_credentials([(self.key, self.certificate)])


def split_address(address: str) -> tuple[str, int]:
    """('gpu1', 7077) from 'gpu1:7077'; '[::1]:7077' for IPv6. Raises Rejected."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 <= int(port) < 2**16:
        raise Rejected(f"not an address: {address!r}; write HOST:PORT, such as gpu1:7077 or [::1]:7077")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """True for addresses that other machines cannot reach."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_listen(host: str, token: Token | None, tls: ServerTls | None) -> Token:
    """The token of a worker about to listen on `host`. Raises Rejected when that would not be safe."""
    if token is None:
        raise Rejected(
            f"a worker needs a token: set {TOKEN_VARIABLE}, or give --token-file FILE (mode 0600), "
            "or --spec-out FILE to have one made and written there"
        )
    if not is_loopback(host) and tls is None:
        raise Rejected(
            f"listening on {host}, where other machines can connect, needs TLS: give --tls-cert and --tls-key, "
            "or --spec-out FILE to have a certificate made and written there"
        )
    return token


class TokenInterceptor(grpc.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stubs only
    """Refuses every call without the token, whatever its arity, but for those in OPEN_METHODS.

    `seen` is called for every call that passed, with its metadata.
    """

    def __init__(self, token: Token, seen: Callable[[Sequence[tuple[str, str | bytes]]], None]) -> None:
        self._token = token
        self._seen = seen

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        handler = continuation(details)
        if handler is None or details.method in OPEN_METHODS:
            return handler
        header = next((v for k, v in details.invocation_metadata if k == TOKEN_KEY), "")
        if isinstance(header, str) and self._token.matches(header):
            self._seen(details.invocation_metadata)
            return handler
        reason = "the token is wrong" if header else "no token was sent"
        return _refusal(
            handler, Unauthenticated(f"{reason}; give the worker's own, from its spec file or NBFLOW_TOKEN")
        )


def _refusal(handler: Any, error: Unauthenticated) -> Any:
    """A handler that refuses, of the arity of `handler`: gRPC would fail in its own way on another one."""

    def refuse(_request: Any, context: grpc.ServicerContext) -> Any:
        status.abort(context, error)

    kinds = ("stream" if handler.request_streaming else "unary", "stream" if handler.response_streaming else "unary")
    make = getattr(grpc, "{}_{}_rpc_method_handler".format(*kinds))
    return make(
        refuse, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer
    )
