"""Tokens, files with secrets, where a worker may listen, and who gets in."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509

from nbflow.errors import Rejected, Unauthenticated
from nbflow_workers import certificates, rpc, security, spec, status
from nbflow_workers.security import Token, TokenInterceptor

GOOD = "correct-horse-battery-staple"


def test_a_token_does_not_show_itself() -> None:
    token = Token(GOOD)
    shown = [repr(token), str(token), f"{token}", repr([token]), repr(spec.Spec("n", token, b"", ()))]
    assert not [s for s in shown if GOOD in s]
    assert not hasattr(token, "__dict__")  # nor to anything that prints attributes
    assert token.reveal() == GOOD


@pytest.mark.parametrize(
    "text", ["", "short", "has a space in the middle", "ünïcödé-ünïcödé-ünïcödé", "a" * 15, "new\nline" * 4]
)
def test_weak_tokens_are_refused_without_showing_them(text: str) -> None:
    with pytest.raises(Unauthenticated) as caught:
        Token(text)
    assert not text or text not in str(caught.value)


def test_new_tokens_differ() -> None:
    assert len({security.new_token().reveal() for _ in range(20)}) == 20


def test_only_the_right_header_matches() -> None:
    token = Token(GOOD)
    assert token.matches(f"Bearer {GOOD}")
    for wrong in ("", GOOD, f"bearer {GOOD}", f"Bearer {GOOD} ", f"Bearer {GOOD[:-1]}", "Bearer ü"):
        assert not token.matches(wrong)


def test_where_a_token_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(security.TOKEN_VARIABLE, raising=False)
    assert security.token_from() is None
    monkeypatch.setenv(security.TOKEN_VARIABLE, GOOD)
    path = tmp_path / "token"
    security.write_private(path, GOOD[::-1] + "\n")
    found = [security.token_from(), security.token_from(file=path), security.token_from("x" * 20, path)]
    assert [t.reveal() for t in found if t is not None] == [GOOD, GOOD[::-1], "x" * 20]


def test_secrets_are_files_that_only_the_user_reads(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("an older one, open to all")
    path.chmod(0o644)
    with pytest.raises(Unauthenticated, match="chmod 600"):
        security.read_private(path)
    security.write_private(path, "new")
    assert path.stat().st_mode & 0o777 == 0o600
    assert security.read_private(path) == "new"
    assert os.listdir(tmp_path) == ["secret"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("gpu1:7077", ("gpu1", 7077)), ("127.0.0.1:0", ("127.0.0.1", 0)), ("[::1]:80", ("::1", 80))],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert security.split_address(text) == expected


@pytest.mark.parametrize("text", ["", "gpu1", "gpu1:", ":80", "gpu1:99999", "gpu1:-1", "gpu1:x"])
def test_what_is_not_an_address(text: str) -> None:
    with pytest.raises(Rejected, match="HOST:PORT"):
        security.split_address(text)


def test_where_a_worker_may_listen() -> None:
    token, tls = Token(GOOD), security.ServerTls(b"certificate", b"key")
    for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8"):
        assert security.check_listen(host, token, None) is token
    for host in ("0.0.0.0", "::", "10.0.0.1", "gpu1"):
        assert security.check_listen(host, token, tls) is token
        with pytest.raises(Rejected, match="needs TLS"):
            security.check_listen(host, token, None)
    for host in ("127.0.0.1", "0.0.0.0"):
        with pytest.raises(Rejected, match="needs a token"):
            security.check_listen(host, None, tls)
    assert b"key" not in repr(tls).encode().replace(b"key=", b"")


def test_minted_certificates_carry_the_fixed_name() -> None:
    made = certificates.mint(("gpu1", "10.0.0.7"))
    names = x509.load_pem_x509_certificate(made.certificate).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert names.value.get_values_for_type(x509.DNSName) == [security.TLS_NAME, "gpu1"]
    assert [str(a) for a in names.value.get_values_for_type(x509.IPAddress)] == ["10.0.0.7"]
    assert made.credentials() is not None


@pytest.mark.parametrize("method", list(rpc.METHODS.values()), ids=lambda m: m.name)
def test_a_refusal_has_the_arity_of_its_method(method: rpc.Method) -> None:
    """Every method, without a token, with a wrong one, and with the right one."""
    kinds = ("stream" if method.request_stream else "unary", "stream" if method.reply_stream else "unary")
    real = getattr(grpc, "{}_{}_rpc_method_handler".format(*kinds))(lambda request, context: "answer")
    seen: list[Any] = []
    interceptor = TokenInterceptor(Token(GOOD), seen.append)

    class Details:
        def __init__(self, *metadata: tuple[str, str]) -> None:
            self.method = method.path
            self.invocation_metadata = metadata

    def asked(*metadata: tuple[str, str]) -> Any:
        return interceptor.intercept_service(lambda _details: real, Details(*metadata))

    assert asked((rpc.TOKEN_KEY, f"Bearer {GOOD}")) is real
    assert len(seen) == 1
    for metadata in ((), ((rpc.TOKEN_KEY, f"Bearer {GOOD[::-1]}"),)):
        handler = asked(*metadata)
        assert (handler.request_streaming, handler.response_streaming) == (method.request_stream, method.reply_stream)
        refuse: Callable[..., Any] = getattr(handler, "_".join(kinds))
        context = Context()
        refuse(None, context)
        assert context.code is grpc.StatusCode.UNAUTHENTICATED
        assert GOOD not in context.details
    assert len(seen) == 1


class Context:
    """What `status.abort` needs of a ServicerContext."""

    code: Any = None
    details = ""

    def set_trailing_metadata(self, trailers: Any) -> None:
        assert trailers[0][0] == status.TRAILER

    def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.code, self.details = code, details


def test_cluster_files(tmp_path: Path) -> None:
    path = tmp_path / "cluster.json"
    saved = spec.Spec("mine", Token(GOOD), b"pem", (spec.Entry("worker", 0, "gpu1:7077"), spec.Entry("ps", 0, "b:1")))
    saved.save(path)
    loaded = spec.load(path)
    assert (loaded.name, loaded.ca, loaded.workers) == (saved.name, saved.ca, saved.workers)
    assert loaded.token.reveal() == GOOD
    data = json.loads(path.read_text())
    for damaged in ("{", "[]", json.dumps({**data, "schema": "other"}), json.dumps({**data, "workers": [{}]})):
        security.write_private(path, damaged)
        with pytest.raises(Rejected):
            spec.load(path)
