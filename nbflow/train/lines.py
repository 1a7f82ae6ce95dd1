"""How a run hears its workers: it listens to each of them, and reads what they kept for whoever missed it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping

from nbflow.errors import NbflowError
from nbflow.events import Listener
from nbflow.transport import LoopAction, Transport

log = logging.getLogger("nbflow.train")


class Lines:
    """The workers that run `run` listens to; what they say goes to `hear`. Not safe from several threads at once."""

    def __init__(self, run: str, hear: Listener) -> None:
        self._run = run
        self._hear = hear
        self._heard: dict[str, Transport] = {}  # task -> the way on which it is listened to
        self._marks: dict[tuple[str, str], int] = {}  # leader, its life -> where to read on
        self._removers: list[Callable[[], None]] = []

    def listen(self, transports: Mapping[str, Transport], tasks: Iterable[str]) -> None:
        """Listens to those of `tasks` that are there."""
        for task in sorted(set(tasks) & set(transports)):
            if self._heard.get(task) is not transports[task]:
                self._heard[task] = transports[task]
                self._removers.append(transports[task].listen(self._hear))

    def read(self, transports: Mapping[str, Transport], leaders: Iterable[str]) -> None:
        """Hears what those of `leaders` that are there said since `mark`, or ever.

        Raises Rejected when one has forgotten the run.
        """
        for leader in sorted(set(leaders) & set(transports)):
            self._read(transports[leader], leader, self._hear)

    def mark(self, transports: Mapping[str, Transport], leaders: Iterable[str]) -> None:
        """What those of `leaders` that are there said so far is not read again."""
        for leader in sorted(set(leaders) & set(transports)):
            with contextlib.suppress(NbflowError):  # gone, or new: nothing to leave out
                key = (leader, transports[leader].life)
                self._marks[key] = self._read(transports[leader], leader, lambda event: None)

    def _read(self, transport: Transport, leader: str, hear: Listener) -> int:
        after, more = self._marks.get((leader, transport.life), 0), True
        while more:
            page = transport.read_run(self._run, after)
            for event in page.events:
                hear(event)
            after, more = page.next, page.more
        return after

    def send(self, transports: Mapping[str, Transport], loops: Iterable[tuple[str, str]], action: LoopAction) -> None:
        """Asks `loops`, (leader, id) each, whose leaders are there, to do something."""
        for leader, loop_id in loops:
            if leader not in transports:
                continue
            try:
                transports[leader].control_loop(loop_id, action)
            except NbflowError as error:
                log.warning("%s could not be asked to %s: %s", leader, action, error)

    def close(self) -> None:
        """Hears nothing more."""
        for remove in self._removers:
            remove()
