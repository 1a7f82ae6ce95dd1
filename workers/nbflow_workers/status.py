"""nbflow's errors ↔ gRPC's statuses: one table, and the only place where a gRPC error becomes one of ours.

A server sends the whole error in the trailer `nbflow-error-bin`; the status code is for other tools, and for failures
that never reached a server.
"""

from __future__ import annotations

from typing import Any

import grpc

from nbflow import errors, wire
from nbflow.errors import NbflowError
from nbflow.proto import wire_pb2

TRAILER = "nbflow-error-bin"
# gRPC refuses metadata beyond 8 KiB; a message that long says enough in its first part.
MAX_TRAILER_BYTES = 6000

Code = grpc.StatusCode

# Every class of nbflow.errors stands here; the nearest base is not used, so that a new class is a decision.
CODES: dict[type[NbflowError], Code] = {
    errors.NbflowError: Code.UNKNOWN,
    errors.GraphError: Code.INVALID_ARGUMENT,
    errors.ShapeError: Code.INVALID_ARGUMENT,
    errors.DTypeError: Code.INVALID_ARGUMENT,
    errors.NameInUseError: Code.ALREADY_EXISTS,
    errors.StaleError: Code.FAILED_PRECONDITION,
    errors.PlacementError: Code.FAILED_PRECONDITION,
    errors.RunError: Code.INTERNAL,
    errors.OpError: Code.INTERNAL,
    errors.Cancelled: Code.CANCELLED,
    errors.DeadlineExceeded: Code.DEADLINE_EXCEEDED,
    errors.WorkerError: Code.INTERNAL,
    errors.WorkerLost: Code.UNAVAILABLE,
    errors.Unauthenticated: Code.UNAUTHENTICATED,
    errors.VersionMismatch: Code.FAILED_PRECONDITION,
    errors.Rejected: Code.INVALID_ARGUMENT,
    errors.CheckpointError: Code.DATA_LOSS,
    errors.DataError: Code.INVALID_ARGUMENT,
    errors.EndOfData: Code.OUT_OF_RANGE,
}

# What a bare status means, when no error of ours came with it: the transport, a proxy or gRPC itself made it.
MEANINGS: dict[Code, type[NbflowError]] = {
    Code.CANCELLED: errors.WorkerLost,
    Code.UNKNOWN: errors.WorkerError,
    Code.INVALID_ARGUMENT: errors.Rejected,
    Code.DEADLINE_EXCEEDED: errors.WorkerLost,
    Code.NOT_FOUND: errors.Rejected,
    Code.ALREADY_EXISTS: errors.Rejected,
    Code.PERMISSION_DENIED: errors.Unauthenticated,
    Code.UNAUTHENTICATED: errors.Unauthenticated,
    Code.RESOURCE_EXHAUSTED: errors.Rejected,
    Code.FAILED_PRECONDITION: errors.Rejected,
    Code.ABORTED: errors.WorkerError,
    Code.OUT_OF_RANGE: errors.Rejected,
    Code.UNIMPLEMENTED: errors.VersionMismatch,
    Code.INTERNAL: errors.WorkerError,
    Code.UNAVAILABLE: errors.WorkerLost,
    Code.DATA_LOSS: errors.WorkerError,
}


def abort(context: grpc.ServicerContext, error: BaseException) -> Any:
    """Ends a call with `error`; never returns. What is not ours becomes INTERNAL, with its type and message."""
    message = wire.encode_error(error)
    message.message = message.message[: MAX_TRAILER_BYTES // 4]
    message.where = message.where[:400]
    code = CODES[type(error)] if isinstance(error, NbflowError) else Code.INTERNAL
    context.set_trailing_metadata(((TRAILER, message.SerializeToString()),))
    context.abort(code, message.message[:1000])


def from_rpc(error: grpc.RpcError, *, worker: str, doing: str) -> NbflowError:
    """Our error for a failed call to `worker`, made while `doing`."""
    if not isinstance(error, grpc.Call):
        return errors.WorkerLost(f"{worker} could not be reached while {doing}: {error}", worker=worker)
    for key, value in error.trailing_metadata() or ():
        if key == TRAILER and isinstance(value, bytes):
            found = wire.decode_error(wire.parse(wire_pb2.Error, value))
            if isinstance(found, errors.RunError | errors.WorkerError) and not found.worker:
                found.worker = worker
            return found
    code = error.code()
    meaning = MEANINGS.get(code, errors.WorkerError)
    reason = (error.details() or "no reason was given").splitlines()[0]
    text = f"{worker}, while {doing}: {code.name.lower().replace('_', ' ')}: {reason}"
    if issubclass(meaning, errors.WorkerError):
        return meaning(text, worker=worker)
    return meaning(text)
