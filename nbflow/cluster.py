"""`nf.cluster.local` and `nf.cluster.attach`: the doors to `nbflow_workers`, which this package never imports."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from nbflow.errors import WorkerError


def _call(name: str, /, *args: Any, **kwargs: Any) -> Any:
    for entry in entry_points(group="nbflow.cluster", name=name):
        return entry.load()(*args, **kwargs)
    raise WorkerError(f"nf.cluster.{name} needs nbflow_workers, which is not installed; run: pip install nbflow")


def local(workers: int = 2, ps: int = 0, **options: Any) -> Any:
    """Starts worker processes on this machine; see `nbflow_workers.local`."""
    return _call("local", workers, ps, **options)


def attach(addresses: Any = None, **options: Any) -> Any:
    """Attaches to workers that run already; see `nbflow_workers.attach`."""
    return _call("attach", addresses, **options)
