"""Numeric trouble on demand: which op made the first NaN or infinity of a step, and from what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from nbflow.backends.base import Backend
from nbflow.errors import RunError
from nbflow.plan import Instruction
from nbflow.spec import kind_of


class Slots(Protocol):
    """A run of a program, in so far as it is looked at here."""

    slots: list[Any]


def checked(instruction: Instruction, runner: Callable[[Any], None], backend: Backend) -> Callable[[Slots], None]:
    """`runner`, followed by a look at what it made. Raises RunError at the first value that is not finite, unless an
    input was not finite either: then another op made it, or the user fed it."""

    def look(run: Slots) -> None:
        inputs = [run.slots[slot] for slot in instruction.inputs]
        runner(run)
        for slot in instruction.outputs:
            bad = _not_finite(backend, run.slots[slot])
            if bad:
                ranges = "; ".join(f"input {n}: {_range(backend, v)}" for n, v in enumerate(inputs)) or "no inputs"
                raise RunError(f"it made {bad} from finite values ({ranges})")

    def look_if_inputs_are_finite(run: Slots) -> None:
        if any(_not_finite(backend, run.slots[slot]) for slot in instruction.inputs):
            runner(run)
        else:
            look(run)

    return look_if_inputs_are_finite


def _host(backend: Backend, value: Any) -> np.ndarray[Any, Any] | None:
    """A floating array on the host, None for anything else."""
    if not hasattr(value, "dtype"):
        return None  # the handle of a variable
    host = np.asarray(backend.to_host(value))
    return host if kind_of(host.dtype) in "fc" else None


def _not_finite(backend: Backend, value: Any) -> str:
    host = _host(backend, value)
    if host is None or bool(np.isfinite(host).all()):
        return ""
    nans = int(np.isnan(host).sum())
    infinities = int(np.isinf(host).sum())
    parts = [f"{count} {name}" for count, name in ((nans, "NaN"), (infinities, "Inf")) if count]
    return f"{' and '.join(parts)} among {host.size} values"


def _range(backend: Backend, value: Any) -> str:
    if not hasattr(value, "dtype"):
        return "a variable"
    host = np.asarray(backend.to_host(value))
    what = f"{host.dtype.name}{list(host.shape)}"
    if host.size == 0 or kind_of(host.dtype) == "c":
        return what
    return f"{what} in [{host.min():.6g}, {host.max():.6g}]"
