"""What every transport promises of the tensors that its workers send each other: checks for `check_transport`."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nbflow.errors import Cancelled, NbflowError
from nbflow.events import TensorMoved
from nbflow.plan import Bundle, Feed, Fetch, Instruction, Plan
from nbflow.spec import BFLOAT16, spec
from nbflow.transport import HostArray

Pair = tuple[Bundle, Bundle]
# From an empty array to several frames; one of each kind of number.
VALUES: tuple[HostArray, ...] = (
    np.zeros((0, 3), np.float32),
    np.array(True),
    np.arange(5, dtype=np.int8),
    np.arange(12, dtype=np.complex128).reshape(3, 4),
    np.linspace(0, 1, 9).astype(BFLOAT16),
    np.arange(70_000, dtype=np.uint16),
    np.arange(3_000_000, dtype=np.float64).reshape(3, 1000, 1000),
)


def many(tasks: tuple[str, str], values: Sequence[HostArray], *, compress: str = "") -> Pair:
    """Of `tasks`, (source, destination), the first feeds `x0`, `x1` … and sends them in this order; the second takes
    the last first, and fetches all as `y0`, `y1` …"""
    source, destination = tasks
    edge = {"compress": compress} if compress else {}
    sends = tuple(
        Instruction(f"send{n}", "send", (n,), (), {"key": f"k{n}", "destination": f"{destination}/cpu:0", **edge})
        for n in range(len(values))
    )
    feeds = tuple(Feed(f"x{n}", n, spec(v.dtype, list(v.shape))) for n, v in enumerate(values))
    backwards = range(len(values) - 1, -1, -1)
    recvs = tuple(
        Instruction(
            f"recv{n}",
            "recv",
            (),
            (n,),
            {"key": f"k{n}", "source": f"{source}/cpu:0", "dtype": values[n].dtype, **edge},
            after=(i - 1,) if i else (),
        )
        for i, n in enumerate(backwards)
    )
    fetches = tuple(Fetch(f"y{n}", n, True) for n in range(len(values)))
    return (
        Bundle(uuid.uuid4().hex, source, (Plan(f"{source}/cpu:0", sends, len(values), feeds=feeds),)),
        Bundle(uuid.uuid4().hex, destination, (Plan(f"{destination}/cpu:0", recvs, len(values), fetches=fetches),)),
    )


def feeds(values: Sequence[HostArray]) -> Mapping[str, HostArray]:
    return {f"x{n}": v for n, v in enumerate(values)}


def sends_every_kind_of_tensor(case: Any) -> None:
    """All dtypes and sizes in one step, taken in another order than they were sent in."""
    for values in (VALUES, VALUES[::-1]):
        sender, receiver = many(case.tasks, values)
        fetched = case.both(sender, receiver, feeds(values)).fetches
        for number, value in enumerate(values):
            got = fetched[f"y{number}"]
            np.testing.assert_array_equal(got, value)
            case.expect(got.dtype == value.dtype, f"{value.dtype} came as {got.dtype}")


def keeps_small_tensors_apart(case: Any) -> None:
    """Many small tensors of one step, which may travel together."""
    values = [np.full(n % 7, n, np.float32) for n in range(300)]
    sender, receiver = many(case.tasks, values)
    fetched = case.both(sender, receiver, feeds(values)).fetches
    for number, value in enumerate(values):
        np.testing.assert_array_equal(fetched[f"y{number}"], value)


def takes_more_than_may_be_under_way(case: Any) -> None:
    """The receiver wants the last first: all others are under way until then, whatever the limit."""
    values = [np.full(1_000_000, n, np.float32) for n in range(24)]
    sender, receiver = many(case.tasks, values)
    fetched = case.both(sender, receiver, feeds(values)).fetches
    for number in range(len(values)):
        case.expect(bool((fetched[f"y{number}"] == number).all()), f"tensor {number} of 24 came damaged")


def sends_16_bits(case: Any) -> None:
    """An edge with `compress` gives the rounded values in the tensor's own dtype."""
    value = np.linspace(-3, 3, 100_000, dtype=np.float32)
    for compress in ("bfloat16", "float16"):
        sender, receiver = many(case.tasks, [value], compress=compress)
        got = case.both(sender, receiver, feeds([value])).fetches["y0"]
        np.testing.assert_array_equal(got, value.astype(BFLOAT16 if compress == "bfloat16" else compress).astype("f4"))


def tells_of_transfers(case: Any) -> None:
    """A traced step has a record for each tensor that came."""
    values = [np.ones(n, np.float32) for n in (1, 100_000)]
    sender, receiver = many(case.tasks, values)
    result = case.both(sender, receiver, feeds(values), trace=True)
    moved = {e.key: e for e in result.events if isinstance(e, TensorMoved)}
    case.expect(set(moved) == {"k0", "k1"}, f"the trace tells of {sorted(moved)}")
    for number, value in enumerate(values):
        one = moved[f"k{number}"]
        case.expect(one.nbytes == value.nbytes, f"{value.nbytes} bytes were sent, the trace tells of {one.nbytes}")
        case.expect(one.duration_s >= 0 and one.waited_s >= 0, f"the trace has a negative time: {one}")
        ends = (one.source, one.destination)
        case.expect(ends == tuple(f"{t}/cpu:0" for t in case.tasks), f"the trace has other ends: {ends}")


def refuses_another_dtype(case: Any) -> None:
    """Two ends with different plans: the receiver's step fails, and the next one runs."""
    value = np.ones(3, np.float32)
    sender, receiver = many(case.tasks, [value])
    _, other = many(case.tasks, [value.astype(np.float64)])
    error = case.both_fail(sender, other, feeds([value]))
    case.expect(isinstance(error, NbflowError) and "float32 came" in str(error), f"the error does not say why: {error}")
    np.testing.assert_array_equal(case.both(sender, receiver, feeds([value])).fetches["y0"], value)


def frees_what_was_cancelled(case: Any) -> None:
    """Cancelled with tensors under way, before and after they came: what follows is not disturbed."""
    values = [np.zeros(n, np.float32) for n in (10, 500_000)]
    sender, receiver = many(case.tasks, values)
    for number in range(20):
        error = case.cancelled(sender, receiver, feeds(values), receiver_starts=bool(number % 2))
        case.expect(error is None or isinstance(error, Cancelled), f"a cancelled step failed with {error!r}")
    values = [v + 1 for v in values]
    fetched = case.both(sender, receiver, feeds(values)).fetches
    for number, value in enumerate(values):
        np.testing.assert_array_equal(fetched[f"y{number}"], value)


TRANSFER_CHECKS = (
    sends_every_kind_of_tensor,
    keeps_small_tensors_apart,
    takes_more_than_may_be_under_way,
    sends_16_bits,
    tells_of_transfers,
    refuses_another_dtype,
    frees_what_was_cancelled,
)
