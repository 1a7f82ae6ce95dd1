"""Putting a dataset into a queue, from the process where it can be read."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Any

from nbflow.current import current_session
from nbflow.data.dataset import Dataset
from nbflow.data.queues import Queue
from nbflow.errors import DataError, NbflowError
from nbflow.graph import Node, Tensor
from nbflow.ops import placeholder
from nbflow.session import Session
from nbflow.spec import TensorSpec

log = logging.getLogger("nbflow.feeding")

# How long `stop` waits for the thread: the step it is in ends as soon as the queue is closed.
STOP_S = 10.0


class Feeding:
    """A thread that puts the elements of a dataset into a queue, and closes it at the end. Made by `nf.feed`.

    `count` elements are in so far; `error` is what ended it early, None otherwise.
    """

    def __init__(self, session: Session, dataset: Dataset, queue: Queue) -> None:
        self.count = 0
        self.error: NbflowError | None = None
        self._session = session
        self._dataset = dataset
        self._queue = queue
        # The graph is built here, by the caller's thread; the feeding thread only runs it.
        self._inputs = _inputs(dataset, queue)
        self._put = queue.enqueue(_element(queue, self._inputs))
        self._end, self._end_now = queue.close(), queue.close(cancel_pending_enqueues=True)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"nbflow-feed-{queue.name}", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        state = "going" if self._thread.is_alive() else f"failed: {self.error}" if self.error else "over"
        return f"<Feeding of {self._queue.name}: {self.count} elements, {state}>"

    def wait(self, timeout: float | None = None) -> None:
        """Waits until all is in. Raises TimeoutError after `timeout` seconds, and what the dataset or a step raised."""
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise TimeoutError(f"{self._queue.name} is still being fed after {timeout} s, {self.count} elements are in")
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        """Ends it now: the queue is closed, what is in it comes out. Raises DataError when the dataset does not end."""
        self._stopping.set()
        if self._thread.is_alive():
            self._close(self._end_now)
        self._thread.join(STOP_S)
        if self._thread.is_alive():
            raise DataError(f"the dataset that feeds {self._queue.name} did not give way within {STOP_S:g} s")

    def _run(self) -> None:
        try:
            for element in self._dataset:
                if self._stopping.is_set():
                    return
                self._session.run(self._put, {tensor: element[name] for name, tensor in self._inputs.items()})
                self.count += 1
        except NbflowError as error:
            if not self._stopping.is_set():
                self.error = error
        except Exception as error:
            # A generator is anybody's code; whoever waits must hear of it, and the consumers must end.
            log.exception("the dataset that feeds %s failed", self._queue.name)
            self.error = DataError(
                f"the dataset that feeds {self._queue.name!r} failed: {type(error).__name__}: {error}"
            )
        finally:
            self._close(self._end)

    def _close(self, how: Node) -> None:
        try:
            self._session.run(how)
        except NbflowError as error:
            log.info("queue %s could not be closed: %s", self._queue.name, error)  # its session is gone


def feed(queue: Queue, dataset: Dataset, session: Session | None = None) -> Feeding:
    """Puts the elements of `dataset` into `queue`, from a thread of this process, and closes it at the end.

    This is how what only this process can read, such as a generator, reaches workers: each element is a step with its
    values fed, and waits while the queue is full. The components of the dataset and of the queue have the same names;
    where each has one, names do not matter. Raises DataError when they do not fit.
    """
    return Feeding(session or current_session(), dataset, queue)


def _inputs(dataset: Dataset, queue: Queue) -> dict[str, Tensor]:
    """A placeholder for each component of the dataset, by its name there."""
    parts = dataset.element_spec
    wanted = queue.element_spec
    names = sorted(wanted) if isinstance(wanted, dict) else ["one"] if isinstance(wanted, TensorSpec) else None
    if names is None or len(names) != len(parts) or (len(parts) > 1 and names != sorted(parts)):
        raise DataError(
            f"queue {queue.name!r} takes {wanted}, the dataset gives {parts}; make the queue with "
            "nf.queue(capacity, dataset.element_spec)"
        )
    return {name: placeholder(spec.dtype, spec.shape) for name, spec in parts.items()}


def _element(queue: Queue, inputs: Mapping[str, Tensor]) -> Any:
    if not isinstance(queue.element_spec, dict):
        return next(iter(inputs.values()))
    names = list(queue.element_spec)
    return {names[0]: next(iter(inputs.values()))} if len(names) == 1 else dict(inputs)
