"""What shows a run while it goes: live curves in a notebook (an entry point), a progress bar elsewhere."""

from __future__ import annotations

import builtins
import sys
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Protocol

from tqdm import tqdm

from nbflow.events import Event, Metric, RunState

if TYPE_CHECKING:
    from nbflow.train.run import Run


class Display(Protocol):
    """Something that shows a run. `finish` is called once, when the run has ended."""

    def finish(self) -> None: ...


class ProgressBar:
    """A tqdm bar with the last metrics, and what the run is busy with before it can step."""

    def __init__(self, run: Run) -> None:
        self._bar = tqdm(total=run.steps, unit="step", file=sys.stderr, dynamic_ncols=True)
        self._last: dict[str, float] = {}
        self._remove = run.listen(self._on_event)
        self._run = run

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Metric):
            self._last[event.name] = event.value
        elif isinstance(event, RunState):
            self._bar.update(event.step - self._bar.n)
            self._bar.set_description(event.detail, refresh=bool(event.detail))
            self._bar.set_postfix({k: f"{v:.4g}" for k, v in self._last.items()}, refresh=False)

    def finish(self) -> None:
        self._remove()
        self._bar.update(self._run.step - self._bar.n)
        self._bar.set_postfix({k: f"{v:.4g}" for k, v in self._last.items()})
        self._bar.close()


def in_notebook() -> bool:
    """True when a Jupyter kernel runs this process."""
    get_ipython = getattr(builtins, "get_ipython", None) or getattr(sys.modules.get("IPython"), "get_ipython", None)
    shell = get_ipython() if get_ipython is not None else None
    return shell is not None and getattr(shell, "kernel", None) is not None


def open_display(run: Run) -> Display:
    """The display for `run`: that of the entry point `nbflow.notebook: run` in a notebook, else a progress bar."""
    if in_notebook():
        for entry in entry_points(group="nbflow.notebook", name="run"):
            display: Display = entry.load()(run)
            return display
    return ProgressBar(run)
