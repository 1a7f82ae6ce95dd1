"""Every exception that nbflow raises.

    NbflowError
      GraphError              the graph is wrong: found before anything runs
        ShapeError            shapes do not fit together
        DTypeError            dtypes do not fit together
        NameInUseError        another cell, or this one, already defines the name
        StaleError            an op depends on a cell that changed since
        PlacementError        no device satisfies what was asked
      RunError                a step failed
        OpError               an op's implementation raised
        Cancelled             the step was cancelled (interrupt, stop, a failing peer)
        DeadlineExceeded      a wait reached its deadline
      WorkerError             a worker, or the way to it, failed
        WorkerLost            died, froze or became unreachable
        Unauthenticated       wrong or missing token
        VersionMismatch       the worker speaks another version
        Rejected              the worker refused a request (malformed, too large, not allowed)
      CheckpointError         a checkpoint is missing, damaged or does not fit
      DataError               a dataset is malformed
        EndOfData             an iterator has no more elements

A `GraphError` is yours to fix in a cell; a `WorkerError` is the machine's; a `RunError` says which op, device
and cell it comes from.
"""

from __future__ import annotations

import contextlib
import os


class NbflowError(Exception):
    """Base of all errors raised by nbflow.

    `where` is the place in the user's code that made the op concerned, such as `In[3], line 2`; empty when unknown.
    """

    def __init__(self, message: str, *, where: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.where = where

    def __str__(self) -> str:
        return f"{self.message} (made by {self.where})" if self.where else self.message


class GraphError(NbflowError):
    """The graph is wrong."""


class ShapeError(GraphError):
    """Shapes do not fit together."""


class DTypeError(GraphError):
    """Dtypes do not fit together."""


class NameInUseError(GraphError):
    """The name is already defined, by another cell or twice in this one."""


class StaleError(GraphError):
    """An op depends on something that another cell has since replaced."""


class PlacementError(GraphError):
    """No device satisfies what was asked."""


class RunError(NbflowError):
    """A step failed.

    `op` is the node's name, `device` where it ran, `worker` the task's name; each empty when unknown.
    """

    def __init__(self, message: str, *, where: str = "", op: str = "", device: str = "", worker: str = "") -> None:
        super().__init__(message, where=where)
        self.op = op
        self.device = device
        self.worker = worker


class OpError(RunError):
    """An op's implementation raised."""


class Cancelled(RunError):
    """The step was cancelled."""


class DeadlineExceeded(RunError):
    """A wait reached its deadline."""


class WorkerError(NbflowError):
    """A worker failed. `worker` names it, such as `/job:worker/task:1`."""

    def __init__(self, message: str, *, where: str = "", worker: str = "") -> None:
        super().__init__(message, where=where)
        self.worker = worker


class WorkerLost(WorkerError):
    """A worker died, froze or became unreachable."""


class Unauthenticated(WorkerError):
    """The token is wrong or missing."""


class VersionMismatch(WorkerError):
    """The worker speaks another version."""


class Rejected(WorkerError):
    """The worker refused a request."""


class CheckpointError(NbflowError):
    """A checkpoint is missing, damaged or does not fit."""


class DataError(NbflowError):
    """A dataset is malformed."""


class EndOfData(DataError):
    """An iterator has no more elements."""


_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep


def let_go(error: BaseException) -> None:
    """Empties the frames of this package that `error` came through, and that have ended. They hold the tensors of a
    step, in a cycle that the garbage collector may find much later. Frames of other code stay, for a debugger."""
    todo: list[BaseException | None] = [error]
    seen: set[int] = set()
    while todo:
        found = todo.pop()
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        todo += [found.__cause__, found.__context__]
        trace = found.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename.startswith(_HERE):
                with contextlib.suppress(RuntimeError):  # it still runs
                    trace.tb_frame.clear()
            trace = trace.tb_next
