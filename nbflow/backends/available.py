"""The backends of this installation, by device type."""

from __future__ import annotations

from functools import cache, lru_cache
from importlib.metadata import entry_points

from nbflow.backends import cupy
from nbflow.backends.base import Backend
from nbflow.backends.cupy.ops import IMPLEMENTED
from nbflow.backends.null import NullBackend
from nbflow.backends.numpy import NumpyBackend

# Handled by the plan itself: their values are there before the first instruction runs.
BUILT_IN = ("constant", "placeholder")
# Run by programs on every backend (nbflow/flow.py).
CONTROL_FLOW = ("cond", "loop")


@lru_cache(maxsize=1)
def backends() -> dict[str, type[Backend]]:
    """Device type -> backend class: numpy for `cpu`, `null`, cupy for `gpu` where it can be used, and whatever the
    entry points `nbflow.backends` add."""
    found: dict[str, type[Backend]] = {"cpu": NumpyBackend, "null": NullBackend}
    if not cupy.missing():
        found["gpu"] = cupy.CupyBackend
    for entry in entry_points(group="nbflow.backends"):
        if entry.name not in found:
            found[entry.name] = entry.load()
    return found


@cache
def _table(device_type: str) -> frozenset[str]:
    if device_type == "gpu":  # a notebook places ops on GPUs of other machines, and need not have cupy for it
        return IMPLEMENTED
    backend = backends().get(device_type)
    return frozenset() if backend is None else frozenset(backend().table)


def supports(op: str, device_type: str) -> bool:
    """True when devices of that type can run `op`."""
    return op in BUILT_IN or op in CONTROL_FLOW or op in _table(device_type)
