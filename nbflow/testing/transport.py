"""What every `Transport` promises, as a suite: `check_transport(make)` runs it over a cluster of any kind.

Plans are written by hand here, so that only the transport and the executor behind it are looked at.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import numpy as np

from nbflow.errors import Cancelled, DeadlineExceeded, NbflowError, OpError, Rejected
from nbflow.events import Event, Metric, RunState
from nbflow.plan import Bundle, Constant, Feed, Fetch, Instruction, Plan
from nbflow.spec import spec
from nbflow.testing.transfers import TRANSFER_CHECKS
from nbflow.transport import Cluster, HostArray, Loop, MetricSource, StepCommand, StepResult, Transport

T = TypeVar("T")

# Every wait below ends after this long, with an error that says for what.
WAIT_S = 30.0
FIRST, SECOND = "/job:worker/task:0", "/job:worker/task:1"


class TransportCheckError(AssertionError):
    """A transport does not keep a promise."""


@dataclass(frozen=True, slots=True)
class _Case:
    """One cluster with a session of its own."""

    cluster: Cluster
    session: str
    doors: Mapping[str, Transport]

    def run(self, bundle: Bundle, feeds: Mapping[str, HostArray] | None = None, **options: Any) -> StepResult:
        door = self.doors[bundle.task]
        door.register(bundle)
        return wait(door.start(command(bundle, feeds, **options)))

    # --- for `transfers`: two tasks in one step ---

    @property
    def tasks(self) -> tuple[str, str]:
        return FIRST, SECOND

    def expect(self, condition: bool, message: str) -> None:
        _expect(condition, message)

    def _start(
        self, sender: Bundle, receiver: Bundle, feeds: Mapping[str, HostArray], **options: Any
    ) -> tuple[Future[StepResult], Future[StepResult]]:
        step_id = uuid.uuid4().hex
        for bundle in (sender, receiver):
            self.doors[bundle.task].register(bundle)
        second = self.doors[receiver.task].start(command(receiver, step_id=step_id, **options))
        return self.doors[sender.task].start(command(sender, feeds, step_id=step_id, **options)), second

    def both(self, sender: Bundle, receiver: Bundle, feeds: Mapping[str, HostArray], **options: Any) -> StepResult:
        """One step of both; the receiver's result."""
        first, second = self._start(sender, receiver, feeds, **options)
        wait(first)
        return wait(second)

    def both_fail(self, sender: Bundle, receiver: Bundle, feeds: Mapping[str, HostArray]) -> BaseException | None:
        """One step of both; the receiver's error."""
        first, second = self._start(sender, receiver, feeds)
        first.exception(WAIT_S)
        return second.exception(WAIT_S)

    def cancelled(
        self, sender: Bundle, receiver: Bundle, feeds: Mapping[str, HostArray], *, receiver_starts: bool
    ) -> BaseException | None:
        """A step that is cancelled while it runs; the error of one that ended otherwise than cancelled, or done."""
        step_id = uuid.uuid4().hex
        for bundle in (sender, receiver):
            self.doors[bundle.task].register(bundle)
        futures = [self.doors[sender.task].start(command(sender, feeds, step_id=step_id))]
        if receiver_starts:
            futures.append(self.doors[receiver.task].start(command(receiver, step_id=step_id)))
        for task in self.tasks:
            wait(self.doors[task].cancel(step_id, "the check says so"))
        errors = [f.exception(WAIT_S) for f in futures]
        return next((e for e in errors if e is not None and not isinstance(e, Cancelled)), None)


def check_transport(make: Callable[[], AbstractContextManager[Cluster]]) -> None:
    """Runs every check over `make()`: a cluster with at least the tasks /job:worker/task:0 and 1.

    Raises TransportCheckError, naming the promise that was broken, or whatever the transport raised.
    """
    with make() as cluster:
        for check in CHECKS:
            session = f"check-{uuid.uuid4().hex[:12]}"
            doors = cluster.connect(session)
            try:
                check(_Case(cluster, session, doors))
            except TransportCheckError as error:
                raise TransportCheckError(f"{check.__name__.removeprefix('_')}: {error}") from error
            finally:
                for door in doors.values():
                    door.close()


# --- plans -----------------------------------------------------------------------------------------------------------


def wait(future: Future[T]) -> T:
    """The future's result, or its error; a hanging one is a broken promise."""
    try:
        return future.result(WAIT_S)
    except TimeoutError:
        raise TransportCheckError(f"no answer within {WAIT_S:g} s") from None


def command(
    bundle: Bundle,
    feeds: Mapping[str, HostArray] | None = None,
    *,
    step_id: str = "",
    lane: str = "main",
    deadline_s: float = WAIT_S,
    trace: bool = False,
) -> StepCommand:
    return StepCommand(bundle.id, lane, step_id or uuid.uuid4().hex, 0, feeds or {}, trace, deadline_s)


def add_bundle(task: str, shape: tuple[int, ...], value: float = 1.0) -> Bundle:
    """`y = x + value`, float32: feed `x`, fetch `y`; `value` is a constant of the same shape."""
    plan = Plan(
        f"{task}/cpu:0",
        (Instruction("y", "add", (0, 1), (2,), {}),),
        3,
        constants=(Constant(1, np.full(shape, value, np.float32)),),
        feeds=(Feed("x", 0, spec("float32", [None] * len(shape))),),
        fetches=(Fetch("y", 2, True),),
    )
    return Bundle(uuid.uuid4().hex, task, (plan,))


def pair(source: str, destination: str, rank: int) -> tuple[Bundle, Bundle]:
    """`source` feeds `x` and sends it; `destination` receives it, and fetches `y = x + x`."""
    key = "x->y"
    sender = Plan(
        f"{source}/cpu:0",
        (Instruction("send", "send", (0,), (), {"key": key, "destination": f"{destination}/cpu:0"}),),
        1,
        feeds=(Feed("x", 0, spec("float32", [None] * rank)),),
    )
    receiver = Plan(
        f"{destination}/cpu:0",
        (
            Instruction("recv", "recv", (), (0,), {"key": key, "source": f"{source}/cpu:0"}),
            Instruction("y", "add", (0, 0), (1,), {}, after=(0,)),
        ),
        2,
        fetches=(Fetch("y", 1, True),),
    )
    return Bundle(uuid.uuid4().hex, source, (sender,)), Bundle(uuid.uuid4().hex, destination, (receiver,))


def _expect(condition: bool, promise: str) -> None:
    if not condition:
        raise TransportCheckError(promise)


def _fails(future: Future[Any], kind: type[NbflowError]) -> NbflowError:
    error = future.exception(WAIT_S)
    _expect(isinstance(error, kind), f"expected {kind.__name__}, got {error!r}")
    assert isinstance(error, NbflowError)
    return error


# --- the promises ----------------------------------------------------------------------------------------------------


def _describes_its_worker(case: _Case) -> None:
    for task, door in case.doors.items():
        _expect(door.worker.task_name == task, f"{task} says it is {door.worker.task_name}")
        _expect(bool(door.worker.incarnation), f"{task} has no incarnation")
    _expect({FIRST, SECOND} <= set(case.doors), f"the suite needs {FIRST} and {SECOND}, got {sorted(case.doors)}")
    known = {d.spec.task_name for d in case.cluster.devices()}
    _expect(known == set(case.doors), f"devices() shows {sorted(known)}, connect() gave {sorted(case.doors)}")


def _runs_a_step(case: _Case) -> None:
    # From nothing to beyond every threshold: rank 0, no elements, inline, just at 64 KiB, several frames.
    for shape in [(), (0, 3), (2, 3), (128, 128), (3, 1024, 1024)]:
        x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        result = case.run(add_bundle(FIRST, shape), {"x": x})
        np.testing.assert_array_equal(result.fetches["y"], x + 1)
        _expect(result.fetches["y"].shape == shape, f"a fetch of shape {shape} came as {result.fetches['y'].shape}")


def _registers_twice(case: _Case) -> None:
    bundle = add_bundle(FIRST, (2,))
    for _ in range(2):
        case.doors[FIRST].register(bundle)
    np.testing.assert_array_equal(case.run(bundle, {"x": np.zeros(2, np.float32)}).fetches["y"], [1, 1])


def _moves_large_constants(case: _Case) -> None:
    x = np.zeros((400, 400), np.float32)
    for bundle in (add_bundle(FIRST, (400, 400), 2.0), add_bundle(FIRST, (400, 400), 2.0)):
        np.testing.assert_array_equal(case.run(bundle, {"x": x}).fetches["y"], x + 2)


def _moves_tensors_between_workers(case: _Case) -> None:
    for shape in [(), (0,), (5,), (200, 200), (5, 1024, 1024)]:
        for source, destination in ((FIRST, SECOND), (SECOND, FIRST)):
            sender, receiver = pair(source, destination, len(shape))
            for bundle in (sender, receiver):
                case.doors[bundle.task].register(bundle)
            for turn in range(3):
                x = np.random.default_rng(turn).random(shape, np.float32)
                step_id = uuid.uuid4().hex
                # The receiver first, then the sender, and the other way round: neither may wait for the other.
                both = [(receiver, {}), (sender, {"x": x})]
                futures = [
                    case.doors[b.task].start(command(b, f, step_id=step_id))
                    for b, f in (both if turn % 2 else both[::-1])
                ]
                results = [wait(f) for f in futures]
                fetched = next(r.fetches["y"] for r in results if r.fetches)
                np.testing.assert_array_equal(fetched, x + x)


def _keeps_the_order_of_a_lane(case: _Case) -> None:
    """Steps of one lane end in the order they were started, and many may be under way."""
    bundle = add_bundle(FIRST, (4,))
    door = case.doors[FIRST]
    door.register(bundle)
    ended: SimpleQueue[int] = SimpleQueue()

    def note(number: int) -> Callable[[Future[StepResult]], None]:
        return lambda _: ended.put(number)

    futures = []
    for number in range(50):
        future = door.start(command(bundle, {"x": np.full(4, number, np.float32)}))
        future.add_done_callback(note(number))
        futures.append(future)
    for number, future in enumerate(futures):
        np.testing.assert_array_equal(wait(future).fetches["y"], np.full(4, number + 1))
    _expect([ended.get(timeout=WAIT_S) for _ in futures] == list(range(50)), "steps of a lane ended out of order")


def _cancels_a_waiting_step(case: _Case) -> None:
    _, receiver = pair(FIRST, SECOND, 1)
    door = case.doors[SECOND]
    door.register(receiver)
    asked = command(receiver)
    running = door.start(asked)
    wait(door.cancel(asked.step_id, "the check says so"))
    _expect("the check says so" in str(_fails(running, Cancelled)), "the reason of a cancellation was lost")
    # Another lane's, and this lane's next step, still run.
    after = add_bundle(SECOND, (2,))
    np.testing.assert_array_equal(case.run(after, {"x": np.zeros(2, np.float32)}).fetches["y"], [1, 1])


def _cancels_before_it_starts(case: _Case) -> None:
    bundle = add_bundle(FIRST, (2,))
    door = case.doors[FIRST]
    door.register(bundle)
    asked = command(bundle, {"x": np.zeros(2, np.float32)})
    wait(door.cancel(asked.step_id, "never mind"))
    _fails(door.start(asked), Cancelled)


def _ends_at_the_deadline(case: _Case) -> None:
    _, receiver = pair(FIRST, SECOND, 1)
    door = case.doors[SECOND]
    door.register(receiver)
    _fails(door.start(command(receiver, deadline_s=0.2)), DeadlineExceeded)


def _refuses_what_it_cannot_run(case: _Case) -> None:
    door = case.doors[FIRST]
    unknown = Bundle(
        uuid.uuid4().hex, FIRST, (Plan(f"{FIRST}/cpu:0", (Instruction("a", "no_such_op", (), (), {}),), 0),)
    )
    try:
        door.register(unknown)
    except Rejected as error:
        _expect("no_such_op" in str(error), f"the refusal does not name the op: {error}")
    else:
        raise TransportCheckError("a plan with an op that nobody has was registered")
    _fails(door.start(command(add_bundle(FIRST, (2,)))), Rejected)
    bundle = add_bundle(FIRST, (2,))
    door.register(bundle)
    _fails(door.start(command(bundle, {"x": np.zeros((2, 2, 2), np.float32)})), NbflowError)
    _fails(door.start(command(bundle, {})), NbflowError)
    np.testing.assert_array_equal(case.run(bundle, {"x": np.zeros(2, np.float32)}).fetches["y"], [1, 1])


def _says_which_op_failed(case: _Case) -> None:
    # Shapes that an implementation refuses: the plan is well formed.
    result = _fails(
        _started(case, add_bundle(FIRST, (3,)), {"x": np.zeros(2, np.float32)}),
        OpError,
    )
    assert isinstance(result, OpError)
    _expect(result.op == "y", f"the error of op 'y' names {result.op!r}")
    _expect(bool(result.device), "the error of an op does not say where it ran")


def _started(case: _Case, bundle: Bundle, feeds: Mapping[str, HostArray]) -> Future[StepResult]:
    case.doors[bundle.task].register(bundle)
    return case.doors[bundle.task].start(command(bundle, feeds))


def _loop(steps: int, bundle: Bundle, **changes: Any) -> Loop:
    values: dict[str, Any] = {
        "id": uuid.uuid4().hex,
        "run": "check",
        "step": {bundle.task: bundle.id},
        "report": {bundle.task: bundle.id},
        "metrics": (MetricSource("one", bundle.task, "y"),),
        "first": 1,
        "steps": steps,
        "every": 2,
    }
    return Loop(**{**values, **changes})


def constant_bundle(task: str) -> Bundle:
    """No feeds; fetch `y` is the scalar 1 + 1."""
    one = np.ones((), np.float32)
    plan = Plan(
        f"{task}/cpu:0",
        (Instruction("y", "add", (0, 0), (1,), {}),),
        2,
        constants=(Constant(0, one),),
        fetches=(Fetch("y", 1, True),),
    )
    return Bundle(uuid.uuid4().hex, task, (plan,))


def _events_until(queue: SimpleQueue[Event], statuses: Sequence[str]) -> list[Event]:
    events: list[Event] = []
    with contextlib.suppress(Empty):
        while not (events and isinstance(events[-1], RunState) and events[-1].status in statuses):
            events.append(queue.get(timeout=WAIT_S))
        return events
    raise TransportCheckError(f"no RunState in {list(statuses)} within {WAIT_S:g} s; got {events[-3:]}")


_OVER = ("done", "stopped", "failed")


def _drives_a_loop(case: _Case) -> None:
    """A loop led by one worker, over a task of another one, sends its metrics back."""
    leader, bundle = case.doors[FIRST], constant_bundle(SECOND)
    case.doors[SECOND].register(bundle)
    queue: SimpleQueue[Event] = SimpleQueue()
    remove = leader.listen(queue.put)
    leader.start_loop(_loop(10, bundle))
    events = _events_until(queue, _OVER)
    remove()
    state = events[-1]
    assert isinstance(state, RunState)
    _expect(state.status == "done", f"a loop ended as {state.status}: {state.detail}")
    metrics = [(e.step, e.value) for e in events if isinstance(e, Metric) and e.name == "one"]
    _expect(metrics == [(n, 2.0) for n in (2, 4, 6, 8, 10)], f"the loop's metrics were {metrics}")


def _stops_a_loop(case: _Case) -> None:
    leader, bundle = case.doors[FIRST], constant_bundle(FIRST)
    leader.register(bundle)
    queue: SimpleQueue[Event] = SimpleQueue()
    remove = leader.listen(queue.put)
    loop = _loop(100_000_000, bundle, every=1000)
    leader.start_loop(loop)
    leader.control_loop(loop.id, "stop")
    state = _events_until(queue, _OVER)[-1]
    remove()
    assert isinstance(state, RunState)
    _expect(state.status == "stopped", f"a stopped loop ended as {state.status}: {state.detail}")
    leader.control_loop("no such loop", "stop")


def _abandons_a_lane(case: _Case) -> None:
    """What waits in it ends, on a worker that does not lead it too; nothing of it runs again; other lanes are left."""
    _, receiver = pair(FIRST, SECOND, 1)
    door, lane = case.doors[SECOND], uuid.uuid4().hex
    door.register(receiver)
    running = door.start(command(receiver, step_id=f"{lane}/0", lane=lane))
    queued = door.start(command(receiver, step_id=f"{lane}/1", lane=lane))
    other = command(receiver)
    waiting = door.start(other)
    door.control_loop(lane, "abandon")
    for future in (running, queued, door.start(command(receiver, step_id=f"{lane}/2", lane=lane))):
        _fails(future, Cancelled)
    _expect(not waiting.done(), "a step of another lane ended with an abandoned one")
    wait(door.cancel(other.step_id, "the check says so"))
    leader, bundle = case.doors[FIRST], constant_bundle(SECOND)
    door.register(bundle)
    queue: SimpleQueue[Event] = SimpleQueue()
    remove = leader.listen(queue.put)
    loop = _loop(100_000_000, bundle, every=1000)
    leader.start_loop(loop)
    door.control_loop(loop.id, "abandon")
    leader.control_loop(loop.id, "abandon")
    _events_until(queue, _OVER)
    remove()


def _forgets_listeners(case: _Case) -> None:
    leader, bundle = case.doors[FIRST], constant_bundle(FIRST)
    leader.register(bundle)
    dead: SimpleQueue[Event] = SimpleQueue()
    queue: SimpleQueue[Event] = SimpleQueue()
    leader.listen(dead.put)()
    remove = leader.listen(queue.put)
    leader.start_loop(_loop(4, bundle))
    _events_until(queue, _OVER)
    remove()
    _expect(dead.empty(), "a listener that was removed was called")


def _drops_state_that_is_not_there(case: _Case) -> None:
    case.doors[FIRST].drop_state(["no such variable:0"])


def _closes_twice(case: _Case) -> None:
    for door in case.doors.values():
        door.close()
        door.close()
    bundle = add_bundle(FIRST, (2,))
    _fails(case.doors[FIRST].start(command(bundle, {"x": np.zeros(2, np.float32)})), NbflowError)


CHECKS: tuple[Callable[[_Case], None], ...] = (
    _describes_its_worker,
    _runs_a_step,
    _registers_twice,
    _moves_large_constants,
    _moves_tensors_between_workers,
    *TRANSFER_CHECKS,
    _keeps_the_order_of_a_lane,
    _cancels_a_waiting_step,
    _cancels_before_it_starts,
    _ends_at_the_deadline,
    _refuses_what_it_cannot_run,
    _says_which_op_failed,
    _drives_a_loop,
    _stops_a_loop,
    _abandons_a_lane,
    _forgets_listeners,
    _drops_state_that_is_not_there,
    _closes_twice,
)
