"""How a run hears its workers: it listens to each of them, and reads what they kept for whoever missed it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from nbflow.events import Listener
from nbflow.transport import Transport


class Lines:
    """The workers that run `run` listens to; what they say goes to `hear`. Not safe from several threads at once."""

    def __init__(self, run: str, hear: Listener) -> None:
        self._run = run
        self._hear = hear
        self._heard: dict[str, Transport] = {}  # task -> the way on which it is listened to
        self._removers: list[Callable[[], None]] = []

    def listen(self, transports: Mapping[str, Transport], tasks: Iterable[str]) -> None:
        """Listens to those of `tasks` that are there."""
        for task in sorted(set(tasks) & set(transports)):
            if self._heard.get(task) is not transports[task]:
                self._heard[task] = transports[task]
                self._removers.append(transports[task].listen(self._hear))

    def read(self, transports: Mapping[str, Transport], leaders: Iterable[str]) -> None:
        """Hears what those of `leaders` that are there said before. Raises Rejected when one has forgotten the run."""
        for leader in sorted(set(leaders) & set(transports)):
            after, more = 0, True
            while more:
                page = transports[leader].read_run(self._run, after)
                for event in page.events:
                    self._hear(event)
                after, more = page.next, page.more

    def close(self) -> None:
        """Hears nothing more."""
        for remove in self._removers:
            remove()
