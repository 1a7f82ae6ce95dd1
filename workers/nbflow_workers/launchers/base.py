"""What a launcher is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from nbflow_workers.security import Token

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Ask:
    """One worker to start. `devices` as in `nbflow worker --devices`."""

    job: str
    task: int
    devices: str = "auto"

    @property
    def task_name(self) -> str:
        return f"/job:{self.job}/task:{self.task}"


class Handle(Protocol):
    """One worker that a launcher started."""

    @property
    def ask(self) -> Ask: ...

    @property
    def address(self) -> str: ...

    @property
    def pid(self) -> int | None: ...

    def exit_text(self) -> str:
        """How it ended, for people; empty while it runs."""
        ...

    def wait(self, timeout_s: float) -> None:
        """Waits for it to end, up to `timeout_s`."""
        ...

    def logs(self, lines: int = 50) -> str:
        """The end of what it wrote."""
        ...

    def detach(self) -> None:
        """Lets it live on without us."""
        ...

    def stop(self, timeout_s: float = 5.0) -> None:
        """Ends it: asked first, killed when it does not listen. Safe to call twice."""
        ...


class Launcher(Protocol):
    """Starts workers."""

    def start(
        self, asks: Sequence[Ask], token: Token, *, timeout_s: float, progress: Progress | None = None
    ) -> list[Handle]:
        """Starts all, and returns when all are ready, or raises WorkerError with none left running."""
        ...
