"""An nbflow error shown at the cell's line: what happened, to which op, where, and who made it.

The frames between the user's line and ours help nobody; `%tb` shows them all the same.
"""

from __future__ import annotations

import linecache
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

from nbflow.errors import NbflowError

RED, BOLD, PLAIN = "\x1b[31m", "\x1b[1m", "\x1b[0m"
_PLACE = re.compile(r"In\[(\d+)\].*?, line (\d+)")


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the user's code: where it is, for people, and its text (empty when unknown)."""

    where: str
    text: str


def user_line(tb: TracebackType | None, cell_label: Callable[[str], str]) -> Line | None:
    """The deepest line of `tb` that is the user's: in a cell, or in a module that is neither ours nor installed.

    `cell_label` maps a file name to `In[3]`, or to '' when the file is no cell.
    """
    found = None
    for frame, number in traceback.walk_tb(tb):
        path = frame.f_code.co_filename
        label = cell_label(path)
        if not label and _is_installed(path):
            continue
        text = linecache.getline(path, number, frame.f_globals).strip()
        found = Line(f"{label or os.path.basename(path)}, line {number}", text)
    return found


def _is_installed(path: str) -> bool:
    return path.startswith("<") or any(path.startswith(root) for root in _ROOTS)


def _roots() -> tuple[str, ...]:
    folders = {os.path.dirname(os.path.abspath(__file__))}
    for name in ("nbflow", "nbflow_workers", "nbflow_widgets"):
        module = sys.modules.get(name)
        if module is not None and module.__file__:
            folders.add(os.path.dirname(os.path.abspath(module.__file__)))
    folders.update(sysconfig.get_paths()[key] for key in ("stdlib", "platstdlib", "purelib", "platlib"))
    return tuple(folder + os.sep for folder in folders)


_ROOTS = _roots()


def describe(error: NbflowError, raised: Line | None, source: Callable[[str], str] = lambda where: "") -> list[str]:
    """The lines to show for `error`, in ANSI colours. `source` gives the text of a place such as `In[3], line 2`."""
    head = f"{RED}{type(error).__name__}{PLAIN}: {error.message}"
    rows: list[tuple[str, str, str]] = []
    op, device, worker = (getattr(error, name, "") for name in ("op", "device", "worker"))
    if op:
        rows.append(("op", op, ""))
    if device or worker:
        rows.append(("on", device or worker, ""))
    if error.where:
        rows.append(("made by", error.where, source(error.where)))
    if raised is not None and raised.where != error.where:
        rows.append(("raised at", raised.where, raised.text))
    elif raised is not None:
        rows[-1] = ("made by", raised.where, raised.text)
    cause = error.__cause__
    if cause is not None:
        rows.append(("because", f"{type(cause).__name__}: {cause}", ""))
    lines = [head]
    for name, value, text in rows:
        lines.append(f"  {name:<9} {BOLD}{value}{PLAIN}" + (f"   {text}" if text else ""))
    lines += [f"  {note}" for note in getattr(error, "__notes__", ())]
    # Not in grey: JupyterLab's cannot be read on the dark red of its dark theme.
    return [*lines, "  %tb shows the full traceback"]


class Acknowledged(Protocol):
    """What a worker answered when a step was cancelled (`nbflow.driver.Acknowledgement`)."""

    @property
    def task(self) -> str: ...

    @property
    def error(self) -> str: ...


def cancelled(answers: Sequence[Acknowledged]) -> list[str]:
    """`cancelled on /job:worker/task:0, /job:ps/task:0`, and a line for each worker that did not say so."""
    good = [a.task for a in answers if not a.error]
    lines = [f"cancelled on {', '.join(good)}"] if good else []
    return lines + [f"not confirmed by {a.task}: {a.error}" for a in answers if a.error]


# --- into IPython ----------------------------------------------------------------------------------------------------


def _cell_label(shell: Any) -> Callable[[str], str]:
    # IPython's compiler knows which execution a file name stands for; other shells name cells otherwise.
    names = getattr(shell.compile, "_filename_map", {})

    def label(path: str) -> str:
        count = names.get(path)
        return f"In[{count}]" if count is not None else ""

    return label


def _cell_source(shell: Any) -> Callable[[str], str]:
    def source(where: str) -> str:
        match = _PLACE.search(where)
        history = shell.history_manager.input_hist_raw if shell.history_manager else []
        if match is None or int(match[1]) >= len(history):
            return ""
        lines = history[int(match[1])].splitlines()
        return lines[int(match[2]) - 1].strip() if int(match[2]) <= len(lines) else ""

    return source


class Shower:
    """Shows nbflow's errors, and interrupts that cancelled a step, in short; all others as IPython does."""

    def __init__(self, acknowledged: Callable[[], Sequence[Acknowledged]]) -> None:
        self._acknowledged = acknowledged
        self._said: Sequence[Acknowledged] = ()

    def __call__(
        self,
        shell: Any,
        kind: type[BaseException],
        error: BaseException,
        tb: TracebackType | None,
        tb_offset: int | None = None,
    ) -> Sequence[str]:
        if isinstance(error, NbflowError):
            lines = describe(error, user_line(tb, _cell_label(shell)), _cell_source(shell))
        else:
            notes = [*self._cancelled(), *getattr(error, "__notes__", ())]
            if not notes:
                shell.showtraceback((kind, error, tb), tb_offset=tb_offset)
                return []
            lines = [f"{RED}{kind.__name__}{PLAIN}", *(f"  {note}" for note in notes)]
        # What `%tb` and debuggers read.
        sys.last_type, sys.last_value, sys.last_traceback = kind, error, tb
        shell._showtraceback(kind, error, lines)
        return lines

    def _cancelled(self) -> list[str]:
        """Who acknowledged the cancelled step; said once for each step."""
        found = self._acknowledged()
        if not found or found is self._said:
            return []
        self._said = found
        return cancelled(found)


def load(shell: Any, acknowledged: Callable[[], Sequence[Acknowledged]]) -> None:
    """Takes over the errors of nbflow, and interrupts. `acknowledged`: see `doors.acknowledged`."""
    shell.set_custom_exc((NbflowError, KeyboardInterrupt), Shower(acknowledged))


def unload(shell: Any) -> None:
    """Leaves all errors to IPython again."""
    shell.set_custom_exc((), None)
