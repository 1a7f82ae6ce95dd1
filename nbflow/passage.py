"""How a program's tensors go to other devices and come from them: what `program` binds `send` and `recv` to.

Three things that a plan decides ahead. A small tensor that another one for the same task follows at once is held back
to travel with it. A large one may be read where it lies until it is sent, so whatever changes that memory waits for it:
the plan says who that is. And an edge may have 16 bits on the way (`compress`), which costs accuracy, not shape.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from nbflow import op as ops
from nbflow.device import parse_device
from nbflow.errors import Rejected
from nbflow.events import TensorMoved
from nbflow.plan import Instruction
from nbflow.spec import as_dtype, kind_of
from nbflow.transport import HostArray, Moved, Sending

# How often a wait for a tensor's memory looks whether the step should end.
LOOK_S = 0.1
# Instructions that take no time: a tensor may be held back while they run.
_QUICK = ("send", "recv", "constant", "read_variable", "variable")


Runner = Callable[[Any], None]


class Token(Protocol):
    """What of a step's token is used here."""

    def check(self) -> None: ...


def is_quick(instruction: Instruction) -> bool:
    """Whether it takes no time worth speaking of: it moves or looks at values, and computes none."""
    if instruction.op in _QUICK:
        return True
    return instruction.op != "copy" and not instruction.bodies and ops.get(instruction.op).alias


def followed(instructions: Sequence[Instruction]) -> frozenset[int]:
    """The sends that another one to the same task follows, with nothing between that takes time."""
    found = set()
    following: dict[str, int] = {}  # task -> the next send to it
    for index in range(len(instructions) - 1, -1, -1):
        instruction = instructions[index]
        if instruction.op == "send":
            task = destination_of(instruction)
            if task in following:
                found.add(index)
            following[task] = index
        elif not is_quick(instruction):
            following.clear()
    return frozenset(found)


def destination_of(send: Instruction) -> str:
    """The task that a send goes to."""
    return parse_device(str(send.attrs["destination"])).task_name


def settle(sending: Sending, token: Token) -> None:
    """Waits until a tensor's memory may change. Raises what ends the step."""
    while not sending.wait(LOOK_S):
        token.check()


def after_sends(instruction: Instruction, sends: frozenset[int], runner: Runner) -> Runner:
    """`runner`, once the large tensors that it must not change under way are sent."""
    awaited = [i for i in instruction.after if i in sends]
    if not awaited:
        return runner

    def run(run: Any) -> None:
        if run.sending:
            for index in awaited:
                sending = run.sending.pop(index, None)
                if sending is not None:
                    settle(sending, run.token)
        runner(run)

    return run


# --- 16 bits on the way ----------------------------------------------------------------------------------------------


def compress(value: HostArray, dtype_name: str, *, measured: bool = False) -> tuple[HostArray, float]:
    """`value` as it travels: float32 and float64 in 16 bits, rounded to nearest; all else as it is. And, if it is to be
    measured, what that cost (`error_of`).

    In float16 what is beyond 65504 becomes infinite; bfloat16 has the range of float32 and 8 bits of precision.
    """
    if kind_of(value.dtype) != "f" or value.dtype.itemsize <= 2:
        return value, 0.0
    compressed = value.astype(as_dtype(dtype_name))
    return compressed, error_of(value, compressed) if measured else 0.0


def decompress(value: HostArray, dtype: np.dtype[Any] | None, compressed: str, key: str) -> HostArray:
    """`value` as the plan expects it. Raises Rejected when what came has another dtype."""
    if dtype is None or value.dtype == dtype:
        return value
    if compressed and value.dtype == as_dtype(compressed):
        return value.astype(dtype)
    raise Rejected(f"{key} should be {dtype}, but {value.dtype} came: the two ends of this edge have different plans")


def error_of(value: HostArray, compressed: HostArray) -> float:
    """What compressing cost: the largest difference of an element, as a part of the largest finite value."""
    if value.size == 0 or value.dtype == compressed.dtype:
        return 0.0
    finite = np.isfinite(value)
    largest = float(np.max(np.abs(value), where=finite, initial=0.0))
    if largest == 0.0:
        return 0.0
    with np.errstate(all="ignore"):
        difference = np.abs(compressed.astype(value.dtype) - value)
    return float(np.max(difference, where=finite, initial=0.0)) / largest


def record(
    key: str, source: str, destination: str, nbytes: int, moved: Moved | None, waited_s: float, compressed: str
) -> TensorMoved:
    """What a trace says of a tensor that came."""
    if moved is None:
        return TensorMoved(key, source, destination, nbytes, time.monotonic(), 0.0, waited_s, "", compressed)
    took = moved.end_s - moved.start_s
    return TensorMoved(
        key, source, destination, nbytes, moved.start_s, took, waited_s, moved.via, compressed, moved.error
    )
