"""What needs a GPU: `pytest tests/gpu`. Without one each test is skipped, with what to install as the reason."""

from __future__ import annotations

import pytest

from nbflow.backends import cupy


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    why = cupy.missing()
    for item in items:
        if "tests/gpu" not in item.path.as_posix():
            continue
        item.add_marker(pytest.mark.gpu)
        if why:
            item.add_marker(pytest.mark.skip(reason=f"no GPU: {why}"))
