"""How much memory a worker says it has: what it may take, not what the machine has."""

from __future__ import annotations

import resource
from pathlib import Path

import psutil
import pytest

from nbflow_workers.worker import memory_bytes

TOTAL = psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("says", "expected"),
    [("1000000\n", 1_000_000), ("max\n", TOTAL), (f"{2**63 - 4096}\n", TOTAL), ("", TOTAL), (None, TOTAL)],
    ids=["a limit", "version 2 without one", "version 1 without one", "empty", "no file"],
)
def test_a_container_may_take_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str | None, expected: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda what: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    path = tmp_path / "limit"
    if says is not None:
        path.write_text(says)
    assert memory_bytes([str(path)]) == expected


def test_a_shell_may_leave_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda what: (5_000_000, resource.RLIM_INFINITY))
    assert memory_bytes([]) == 5_000_000
