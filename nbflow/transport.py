"""The door to a worker: what a driver may ask of it, whether it is this process or a machine far away.

`Transport` is the protocol, `nbflow_workers.client.GrpcTransport` the remote one; `nbflow.testing.check_transport`
is the conformance suite for both. Values on both sides are the frozen dataclasses of this module and of `plan`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from nbflow.device import DeviceSpec
from nbflow.errors import NbflowError
from nbflow.events import Event, Listener, RunState
from nbflow.plan import Bundle

if TYPE_CHECKING:
    from nbflow.runs import RunRecord

HostArray = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """One device of a worker. `memory_bytes` and `flops` (per second) are 0 when unknown.

    Devices of one `host` share its `cores`, of which an op takes up to `threads`; empty and 0 when unknown, or when the
    device has arithmetic of its own, as a GPU has.
    """

    spec: DeviceSpec
    description: str = ""
    memory_bytes: int = 0
    flops: float = 0.0
    host: str = ""
    cores: int = 0
    threads: int = 0


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """A way between two workers, or to the client, as it was measured: how long a small tensor takes to be there, and
    the bytes a second of a large one. `via`: shared memory or tcp."""

    latency_s: float
    bytes_per_s: float
    via: str = ""


# What the client is called among the ends of links.
CLIENT = "/job:client/task:0"
# By the names of both tasks, the smaller one first.
Links = Mapping[tuple[str, str], LinkInfo]


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """Who a worker says it is. `incarnation` is new each time the process starts; `pid` is None when unknown."""

    job: str
    task: int
    address: str
    incarnation: str
    pid: int | None
    devices: tuple[DeviceInfo, ...]
    versions: Mapping[str, str] = field(default_factory=dict)
    allow_python: bool = False

    @property
    def task_name(self) -> str:
        """`/job:worker/task:1`."""
        return f"/job:{self.job}/task:{self.task}"


@dataclass(frozen=True, slots=True)
class StepCommand:
    """Run one registered bundle once.

    `lane` orders steps: commands of one lane run one after the other on a worker, in the order in which they were
    sent, and lanes run beside each other. `step_id` is unique in the session and the same on all workers of a step;
    it is part of every rendezvous key. `number` is what random ops draw with. `deadline_s`: seconds from now after
    which the step fails with DeadlineExceeded. `check_numerics`: it fails at the first op that makes a NaN or infinity.
    """

    bundle: str
    lane: str
    step_id: str
    number: int
    feeds: Mapping[str, HostArray] = field(default_factory=dict)
    trace: bool = False
    deadline_s: float = 3600.0
    check_numerics: bool = False


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a worker sends back: its share of the fetches, and trace events when asked for."""

    step_id: str
    fetches: Mapping[str, HostArray]
    events: tuple[Event, ...] = ()


@dataclass(frozen=True, slots=True)
class MetricSource:
    """What is called `name`, a metric or a variable, is fetch `fetch` of task `task`."""

    name: str
    task: str
    fetch: str


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a loop evaluates between two of its steps, when none of them is in flight.

    `plan` maps task names to bundle ids. It runs `batches` times after each step whose number is a multiple of `every`,
    and after step `last`; the mean of each of `metrics` over the batches is told.
    """

    plan: Mapping[str, str]
    metrics: tuple[MetricSource, ...]
    every: int
    batches: int
    last: int

    def is_due(self, number: int) -> bool:
        return number % self.every == 0 or number == self.last


@dataclass(frozen=True, slots=True)
class SavedShard:
    """Some of what is saved, a file: `plan`, task -> bundle id, fetches `values`."""

    plan: Mapping[str, str]
    values: tuple[MetricSource, ...]


@dataclass(frozen=True, slots=True)
class Saving:
    """What a loop saves between two of its steps, when none of them is in flight, as `nbflow.saving` writes it.

    Below `folder`, a whole path on the leader's machine, after each step whose number is a multiple of `every` and
    after step `last`; where a stop leaves it, too, and when it is asked to. `about`: what the manifest says of the
    graph, the session and the iterators, as JSON.
    """

    folder: str
    shards: tuple[SavedShard, ...]
    every: int
    last: int
    about: str

    def is_due(self, number: int) -> bool:
        return number % self.every == 0 or number == self.last


@dataclass(frozen=True, slots=True)
class FolderInfo:
    """A folder as a worker sees it. `is_shared`: the client sees the same one. `newest`: the last checkpoint there."""

    is_shared: bool
    newest: str


@dataclass(frozen=True, slots=True)
class Loop:
    """A training loop, sent to one worker (its leader), which drives all tasks that take part.

    `step` and `report` map task names to bundle ids: `report` is the same step, with the metrics fetched, and runs
    when the step's number is a multiple of `every`. Steps `first` … `first + steps - 1` run in lane `id`.
    `replica` names the replica whose loop this is (empty for one loop over all replicas). `finish`, task -> bundle id,
    runs once when the loop has ended, however it did: it tells others not to wait for this one. `about` is kept by the
    leader for clients that come back (`nbflow.runs.About`). `evaluation`: what it evaluates on the way. `saving`: what
    it saves, and where.
    """

    id: str
    run: str
    step: Mapping[str, str]
    report: Mapping[str, str]
    metrics: tuple[MetricSource, ...]
    first: int
    steps: int
    every: int
    stop_on_nan: bool = False
    replica: str = ""
    finish: Mapping[str, str] = field(default_factory=dict)
    about: str = ""
    evaluation: Evaluation | None = None
    saving: Saving | None = None


@dataclass(frozen=True, slots=True)
class RunEntry:
    """What worker `task` knows of a run in session `session` whose loops it leads: the last state of each loop.

    `about` as the first of the loops gave it. `since_s`: when that began, in seconds since the epoch.
    """

    run: str
    session: str
    task: str
    about: str
    since_s: float
    states: tuple[RunState, ...]


@dataclass(frozen=True, slots=True)
class RunPage:
    """Some of the events of a run, in their order. `next` is where to read on; `more`: at once."""

    events: tuple[Event, ...]
    next: int
    more: bool = False


LoopAction = Literal["stop", "pause", "resume", "cancel", "save", "abandon"]


class Transport(Protocol):
    """One worker, within one session. Every method is safe from any thread.

    Errors: WorkerLost when the worker cannot be reached, Rejected for what it will not do; the future of a step fails
    with the step's own error (OpError, Cancelled, DeadlineExceeded, DataError).
    """

    @property
    def worker(self) -> WorkerInfo: ...

    @property
    def life(self) -> str:
        """Changes when what the session held on the worker is gone: the process is another one, or has forgotten it."""
        ...

    def register(self, bundle: Bundle, *, timeout_s: float = 60.0) -> None:
        """Hands over a bundle; large constants move once per worker, by content. Registering it again does nothing."""
        ...

    def start(self, command: StepCommand) -> Future[StepResult]:
        """Queues a step and returns at once."""
        ...

    def cancel(self, step_id: str, reason: str) -> Future[None]:
        """Cancels a step; done when the worker has acknowledged that it no longer runs. Unknown steps are fine: a
        command for a cancelled step that arrives later does not run."""
        ...

    def drop_state(self, keys: Sequence[str], *, timeout_s: float = 10.0) -> None:
        """Frees the state under `keys`."""
        ...

    def unregister(self, bundles: Sequence[str], *, timeout_s: float = 10.0) -> None:
        """Frees bundles and the constants that no other needs. Unknown ones are ignored."""
        ...

    def start_loop(self, loop: Loop, *, timeout_s: float = 30.0) -> None:
        """Makes this worker the leader of a loop. Its Metric, RunState and Saved events come to the listeners.

        Raises Rejected for a loop that saves where this worker may not write.
        """
        ...

    def control_loop(self, loop_id: str, action: LoopAction, *, timeout_s: float = 10.0) -> None:
        """Stops (after the steps in flight), pauses, resumes, or cancels (the steps in flight too) a loop; or has it
        save what it saves, now, which a Saved event follows.

        "abandon", on any worker of a loop: its steps here are cancelled, and none of it runs here ever again, whoever
        drives it; returns when none does, or after 5 s. Unknown loops are ignored otherwise.
        """
        ...

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Calls `listener` with each event of this worker; returns the function that ends it."""
        ...

    def read_run(self, run: str, after: int = 0, *, timeout_s: float = 10.0) -> RunPage:
        """What a run's loops on this worker said after the number `after` (0: from their start), as it is kept here.

        Raises Rejected for a run that is not, or no longer, known.
        """
        ...

    def look_at_folder(self, folder: str, mark: str, *, timeout_s: float = 10.0) -> FolderInfo:
        """Whether this worker may save below `folder`, a whole path on its machine, and what it finds there.

        `mark`: a file that the client has put there, by which both know whether they see one folder. Raises Rejected
        when it may not write there, CheckpointError when it cannot.
        """
        ...

    def close(self) -> None:
        """Ends this session on the worker and frees its state. The worker lives on."""
        ...


# Called with the tasks that are about to be sent away; what it returns is called when they are gone, or stay after all.
Leaving = Callable[[Sequence[str]], Callable[[], None]]


class Cluster(Protocol):
    """Workers that a Session can use."""

    @property
    def id(self) -> str:
        """Changes whenever the set of workers does: plans made for another id are not used."""
        ...

    def devices(self) -> Sequence[DeviceInfo]:
        """All devices, in a fixed order."""
        ...

    def links(self, *, measure: bool = True) -> Links:
        """The links that were measured. `measure`: those that were not yet are measured first, if they can be; it
        takes a moment once, and never fails."""
        ...

    def connect(self, session: str) -> Mapping[str, Transport]:
        """Opens session `session` on every worker: task name -> transport. Raises WorkerError."""
        ...

    def join(self, session: str) -> Mapping[str, Transport]:
        """The ways to a session that is open already, maybe another client's. Closing them leaves it as it is."""
        ...

    def runs(self) -> Sequence[RunRecord]:
        """The training runs that the workers know, in the order in which they began."""
        ...

    def ended(self, task: str) -> str:
        """How the process of a worker ended, for people; empty while it may only be cut off, or frozen."""
        ...

    def before_leaving(self, hook: Leaving) -> Callable[[], None]:
        """Has `hook` called before workers are sent away, in the thread that does so; returns what ends that."""
        ...


@dataclass(frozen=True, slots=True)
class Moved:
    """How a tensor came: `nbytes` on the way, from `start_s` until `end_s` on this process's monotonic clock.

    Where the sender's clock is another one, as on another host, it starts with the first bytes that came. `error` is
    what compressing it cost, where that was measured.
    """

    nbytes: int
    start_s: float
    end_s: float
    via: str
    error: float = 0.0


class Sending(Protocol):
    """A tensor that is being read where it lies."""

    def wait(self, timeout_s: float) -> bool:
        """Waits until its memory may change; False when it still must not."""
        ...


class Outbox(Protocol):
    """The data plane's sending side: where an executor puts tensors for other tasks, and says what its steps do.

    Every method is safe from any thread.
    """

    def send(
        self, task: str, step_id: str, key: str, value: HostArray, *, more: bool = False, error: float = 0.0
    ) -> Sending | None:
        """Sends without waiting for the receiver, unless it has more under way than the limit allows; then it waits.

        None: `value` may change now. `more`: another one for `task` follows at once, so a small one may go with it.
        `error` goes along, for traces.
        Raises WorkerLost when `task` cannot be reached, and the step's error when it is aborted meanwhile.
        """
        ...

    def flush(self) -> None:
        """Sends what `more` held back."""
        ...

    def waiting(self, step_id: str, is_waiting: bool) -> None:
        """A program of the step has nothing to do but wait, or no longer. While it waits, what peers hold back because
        of the limit comes. Sends what `more` held back."""
        ...

    def abort(self, step_id: str, error: BaseException) -> None:
        """The step failed: sends of it that wait raise `error`."""
        ...

    def end(self, step_id: str) -> None:
        """The step is over: nothing of it is kept."""
        ...


class Inbox(Protocol):
    """Where a data plane puts what arrives: a worker's executor."""

    def deliver(self, step_id: str, key: str, value: HostArray, moved: Moved | None = None) -> None:
        """Gives a tensor to step `step_id`, which may not have started yet, or may be over (then it is dropped).

        It may be read-only, and its memory is used again when the last view of it is gone.
        """
        ...

    def fail(self, step_id: str, error: NbflowError) -> None:
        """A tensor of the step was malformed, here or at a peer, or will not come."""
        ...
