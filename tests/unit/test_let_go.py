"""What an error holds on to: not the tensors of the step that it ended."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nbflow import errors


class Large:
    """Stands for a tensor."""


@pytest.fixture
def uncollected() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def failing(file: Path) -> Any:
    """A function of a module at `file` that has a Large in its frame, and fails."""
    names: dict[str, Any] = {}
    text = (
        "def fail(note):\n    try:\n        made = note()\n        raise ValueError\n    except ValueError as error:\n"
    )
    exec(compile(text + "        raise RuntimeError from error\n", str(file), "exec"), names)
    return names["fail"]


@pytest.mark.parametrize("ours", [True, False])
def test_frames_of_the_package_let_go_and_all_others_stay(uncollected: None, ours: bool, tmp_path: Path) -> None:
    made: list[weakref.ref[Large]] = []

    def note() -> Large:
        value = Large()
        made.append(weakref.ref(value))
        return value

    folder = Path(errors.__file__).parent if ours else tmp_path
    try:
        failing(folder / "made.py")(note)
    except RuntimeError as error:
        kept = error
    assert made[0]() is not None
    errors.let_go(kept)
    assert (made[0]() is None) == ours
    assert kept.__traceback__ is not None
