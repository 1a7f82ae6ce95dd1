"""nbflow's errors ↔ gRPC's statuses."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from nbflow import errors
from nbflow.errors import NbflowError, Rejected, RunError, WorkerError, WorkerLost
from nbflow_workers import status

ERRORS = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, NbflowError)]


class Failed(grpc.RpcError, grpc.Call):  # type: ignore[misc]  # gRPC's own errors are both, too
    """A failed call, as gRPC hands it over."""

    def __init__(self, code: grpc.StatusCode, details: str, trailers: Any = ()) -> None:
        self._code, self._details, self._trailers = code, details, trailers

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> Any:
        return self._trailers

    def initial_metadata(self) -> Any:
        return ()

    def is_active(self) -> bool:
        return False

    def time_remaining(self) -> float | None:
        return None

    def cancel(self) -> bool:
        return False

    def add_callback(self, callback: Any) -> bool:
        return False


class Context:
    """What `abort` needs of a ServicerContext."""

    def __init__(self) -> None:
        self.trailers: Any = ()
        self.code: Any = None
        self.details = ""

    def set_trailing_metadata(self, trailers: Any) -> None:
        self.trailers = trailers

    def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.code, self.details = code, details


def test_every_error_has_a_code_and_every_code_a_meaning() -> None:
    assert set(status.CODES) == set(ERRORS)
    assert set(status.MEANINGS) == set(grpc.StatusCode) - {grpc.StatusCode.OK}
    assert grpc.StatusCode.OK not in status.CODES.values()


@pytest.mark.parametrize("kind", ERRORS)
def test_every_error_arrives_as_itself(kind: type[NbflowError]) -> None:
    context = Context()
    status.abort(context, kind("what", where="In[1]"))  # type: ignore[arg-type]  # the fake has what is used
    assert context.code is status.CODES[kind]
    back = status.from_rpc(
        Failed(context.code, context.details, context.trailers), worker="/job:worker/task:0", doing="testing"
    )
    assert type(back) is kind
    assert (back.message, back.where) == ("what", "In[1]")
    if isinstance(back, RunError | WorkerError):
        assert back.worker == "/job:worker/task:0"


def test_long_messages_fit_into_the_trailer() -> None:
    context = Context()
    status.abort(context, Rejected("ü" * 100_000, where="x" * 100_000))  # type: ignore[arg-type]
    assert sum(len(value) for _, value in context.trailers) < 8000
    assert len(context.details) <= 1000


def test_foreign_errors_are_internal() -> None:
    context = Context()
    status.abort(context, KeyError("x"))  # type: ignore[arg-type]
    assert context.code is grpc.StatusCode.INTERNAL
    assert "KeyError" in context.details


@pytest.mark.parametrize("code", [c for c in grpc.StatusCode if c is not grpc.StatusCode.OK])
def test_bare_statuses_name_the_worker_and_what_was_done(code: grpc.StatusCode) -> None:
    error = status.from_rpc(Failed(code, "because\nof this"), worker="/job:ps/task:0", doing="registering")
    assert type(error) is status.MEANINGS[code]
    assert "/job:ps/task:0" in str(error)
    assert "registering" in str(error)
    assert "because" in str(error)


def test_what_is_not_even_a_call_is_a_lost_worker() -> None:
    assert isinstance(status.from_rpc(grpc.RpcError("channel closed"), worker="w", doing="d"), WorkerLost)


def test_a_damaged_trailer_is_refused() -> None:
    with pytest.raises(Rejected):
        status.from_rpc(Failed(grpc.StatusCode.INTERNAL, "", ((status.TRAILER, b"\xff\xff"),)), worker="w", doing="d")
