"""Tensors in flight on one worker: what arrived before it was wanted, and who waits for what.

Keys are (step id, key). Abadi et al., "TensorFlow: Large-Scale Machine Learning on Heterogeneous Distributed Systems"
(2015), section 3.2.2, has the idea; here the producer pushes.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from nbflow.transport import Moved, Outbox

# How many ended steps are remembered, so that a tensor arriving late is dropped instead of kept for ever. Late means
# within the pipelining depth of the lanes, which is far below this.
REMEMBERED = 4096


def lane_of(step_id: str) -> str:
    """The lane of a step, as `driver.Driver` names them."""
    return step_id.rpartition("/")[0]


Arrival = tuple[str, Any, Moved | None]  # (key, value, how it came), or ("", exception, None) when it was aborted


@dataclass(slots=True)
class _Step:
    values: dict[str, tuple[Any, Moved | None]] = field(default_factory=dict)
    waiting: dict[str, SimpleQueue[Arrival]] = field(default_factory=dict)
    error: BaseException | None = None


class Rendezvous:
    """A mailbox per step. Safe from any thread; nothing here waits.

    `outbox` is told who waits, and which steps end or fail: what is under way depends on it.
    """

    def __init__(self, outbox: Outbox | None = None) -> None:
        self._outbox = outbox
        self._lock = threading.Lock()
        self._steps: dict[str, _Step] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()

    def deliver(self, step_id: str, key: str, value: Any, moved: Moved | None = None) -> None:
        """Takes what arrived; dropped when the step is over."""
        with self._lock:
            if step_id in self._ended:
                return
            step = self._steps.setdefault(step_id, _Step())
            queue = step.waiting.pop(key, None)
            if queue is None:
                step.values[key] = (value, moved)
                return
        queue.put((key, value, moved))

    def subscribe(self, step_id: str, keys: Iterable[str], queue: SimpleQueue[Arrival]) -> None:
        """Puts each of `keys` into `queue` when it is here, once; an abort puts ("", error, None)."""
        with self._lock:
            step = self._steps.setdefault(step_id, _Step())
            if step.error is not None:
                queue.put(("", step.error, None))
                return
            for key in keys:
                if key in step.values:
                    queue.put((key, *step.values.pop(key)))
                else:
                    step.waiting[key] = queue

    def waiting(self, step_id: str, is_waiting: bool) -> None:
        """A program of the step has nothing to do but wait for what it subscribed to; or no longer."""
        if self._outbox is not None:
            self._outbox.waiting(step_id, is_waiting)

    def flush(self) -> None:
        """What is about to run takes its time: what was held back to travel together goes now."""
        if self._outbox is not None:
            self._outbox.flush()

    def abort(self, step_id: str, error: BaseException) -> None:
        """Tells everyone who waits in this step, now or later, that it failed."""
        if self._outbox is not None:
            self._outbox.abort(step_id, error)
        with self._lock:
            if step_id in self._ended:
                return
            step = self._steps.setdefault(step_id, _Step())
            step.error = error
            queues = {id(q): q for q in step.waiting.values()}
            step.values.clear()
            step.waiting.clear()
        for queue in queues.values():
            queue.put(("", error, None))

    def end(self, step_id: str) -> None:
        """Forgets the step; later arrivals for it are dropped."""
        if self._outbox is not None:
            self._outbox.end(step_id)
        with self._lock:
            self._steps.pop(step_id, None)
            self._ended[step_id] = None
            while len(self._ended) > REMEMBERED:
                self._ended.popitem(last=False)

    def end_all(self, lane: str) -> None:
        """Forgets all steps of a lane."""
        with self._lock:
            ids = [step_id for step_id in self._steps if lane_of(step_id) == lane]
        for step_id in ids:
            self.end(step_id)

    def in_flight(self) -> int:
        """How many tensors wait to be taken. Zero between steps."""
        with self._lock:
            return sum(len(s.values) for s in self._steps.values())
