"""A plan bound to a backend, ready to run: what `executor` calls for each step."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from nbflow import calls, flow, memory, numerics, passage
from nbflow import op as ops
from nbflow.backends.base import Backend, Context
from nbflow.device import parse_device
from nbflow.errors import (
    Cancelled,
    DataError,
    DeadlineExceeded,
    GraphError,
    NbflowError,
    OpError,
    Rejected,
    RunError,
    ShapeError,
    WorkerError,
)
from nbflow.events import Event, NodeFinished
from nbflow.plan import Instruction, Plan
from nbflow.rendezvous import Arrival, Rendezvous
from nbflow.spec import spec_of
from nbflow.state import Cell, StateStore
from nbflow.step import StepMachine, Wiring
from nbflow.transport import HostArray, Moved, Sending

# (step id, key, destination task, host value, whether another follows at once, what compressing cost)
Send = Callable[..., Sending | None]


class StepToken:
    """What a running step looks at: its identity, its deadline, and the error that cancels it."""

    __slots__ = ("check_numerics", "deadline", "error", "number", "step_id", "times", "trace")

    def __init__(
        self, step_id: str, number: int, deadline: float, trace: bool = False, check_numerics: bool = False
    ) -> None:
        self.step_id = step_id
        self.number = number
        self.deadline = deadline
        self.trace = trace
        self.check_numerics = check_numerics
        self.error: NbflowError | None = None
        # Where what ops take is noted, in a step that is looked at: (node, seconds).
        self.times: list[tuple[str, float]] | None = None

    def check(self) -> None:
        """Raises what cancelled the step, or DeadlineExceeded."""
        if self.error is not None:
            raise self.error
        if time.monotonic() > self.deadline:
            raise DeadlineExceeded("the step ran past its deadline")


@dataclass(slots=True)
class _Run:
    """One step of one program."""

    slots: list[Any]
    buffers: list[Any]
    token: StepToken
    state: StateStore
    rendezvous: Rendezvous
    send: Send
    events: list[Event]
    arrivals: SimpleQueue[Arrival] = field(default_factory=SimpleQueue)
    # What arrived, by instruction, and is not used yet.
    arrived: dict[int, tuple[Any, Moved | None]] = field(default_factory=dict)
    # Tensors that are being read where they lie, by their send's instruction.
    sending: dict[int, Sending] = field(default_factory=dict)
    waited_s: float = 0.0  # for what comes next; only for traces
    # The iterations of the loops around a body, outermost first.
    frame: flow.Frame = ()


Runner = Callable[[_Run], None]


class Program:
    """A bound plan. `run` may be called from several threads at once: each run has its own slots and buffers.

    `body`: it is what a loop or branch of another program runs, by `open`, `call` and `close`.
    """

    def __init__(self, plan: Plan, backend: Backend, task: str, *, body: bool = False) -> None:
        self.plan = plan
        self._body = body
        self.device = plan.device
        self.task = task
        self._backend = backend
        self._wiring = Wiring.of(plan)
        self._recvs = {str(i.attrs["key"]): n for n, i in enumerate(plan.instructions) if i.op == "recv"}
        self._loose = calls.loose_slots(plan, body)
        self._arguments = tuple((int(f.name), f.slot) for f in plan.feeds) if body else ()
        self._results = tuple(f.slot for f in sorted(plan.fetches, key=lambda f: int(f.name))) if body else ()
        self._quick = frozenset(n for n, i in enumerate(plan.instructions) if passage.is_quick(i))
        self._followed = passage.followed(plan.instructions)
        sends = frozenset(n for n, i in enumerate(plan.instructions) if i.op == "send")
        self._runners = tuple(passage.after_sends(i, sends, self._bind(n, i)) for n, i in enumerate(plan.instructions))
        self._timed = tuple(self._with_time(i, r) for i, r in zip(plan.instructions, self._runners, strict=True))
        self._frees = tuple(i.frees for i in plan.instructions)
        self._blank = [None] * plan.slots
        for constant in plan.constants:
            value = constant.value
            self._blank[constant.slot] = backend.asarray(value)
        self._frames: list[list[Any]] = []  # buffers of finished runs, for the next ones

    @staticmethod
    def bind(plan: Plan, backends: Mapping[str, Backend], task: str) -> Program:
        """Raises Rejected when the plan asks for a device or op that is not here."""
        spec = parse_device(plan.device)
        # Of GPUs there may be several, each with a backend of its own.
        backend = backends.get(f"{spec.type}:{spec.index}") or backends.get(spec.type or "cpu")
        if backend is None:
            raise Rejected(f"{task} has no {spec.type} device", worker=task)
        try:
            return Program(plan, backend, task)
        except GraphError as error:
            raise Rejected(error.message, worker=task) from error

    def run(
        self,
        feeds: Mapping[str, HostArray],
        token: StepToken,
        state: StateStore,
        rendezvous: Rendezvous,
        send: Send,
        events: list[Event],
    ) -> dict[str, HostArray]:
        """Runs one step and returns the fetches as host arrays that nothing overwrites later."""
        try:
            buffers = self._frames.pop()
        except IndexError:  # the first run, or as many at once as never before
            buffers = self._new_buffers(state)
        run = _Run(self._blank.copy(), buffers, token, state, rendezvous, send, events)
        token.check()
        self._feed(run, feeds)
        with self._backend.scope():
            if self._recvs:
                self._run_machine(run)
            else:
                self._run_straight(run)
        fetches: dict[str, HostArray] = {}
        for fetch in self.plan.fetches:
            value = np.asarray(self._backend.to_host(run.slots[fetch.slot]))
            fetches[fetch.name] = value.copy() if fetch.copy else value
        self._backend.synchronize()
        self._settle(run)
        self._frames.append(buffers)
        return fetches

    def _settle(self, run: _Run) -> None:
        """Waits until nothing of this run's memory is being sent any more."""
        while run.sending:
            passage.settle(run.sending.popitem()[1], run.token)

    # --- bodies --------------------------------------------------------------------------------------------------

    def open(self, parent: _Run) -> _Run:
        """A run of this body within a run of the program that it belongs to; for any number of calls."""
        try:
            buffers = self._frames.pop()
        except IndexError:
            buffers = self._new_buffers(parent.state)
        return _Run([], buffers, parent.token, parent.state, parent.rendezvous, parent.send, parent.events)

    def call(self, run: _Run, values: Sequence[Any], frame: flow.Frame) -> list[Any]:
        """One run with `values` as arguments, by number. What it gives may share memory with `values`, and is not
        overwritten by the next call."""
        slots = run.slots = self._blank.copy()
        run.frame = frame
        for number, slot in self._arguments:
            slots[slot] = values[number]
        if self._recvs:
            self._run_machine(run)
        else:
            self._run_straight(run)
        self._settle(run)
        return [slots[slot] for slot in self._results]

    def close(self, run: _Run) -> None:
        """Gives the memory of a run back."""
        self._frames.append(run.buffers)

    def _new_buffers(self, state: StateStore) -> list[Any]:
        made: list[Any] = []
        try:
            for spec in self.plan.buffers:  # static: compile gives buffers to no others
                made.append(self._backend.empty(tuple(d or 0 for d in spec.shape or ()), spec.dtype))
        except MemoryError as error:
            told = f"out of memory ({error}); {memory.held(self.plan, (), made, state)}"
            wanting = next(i for i in self.plan.instructions if i.buffer == len(made))
            made.clear()
            self._backend.free_unused()
            raise self._explain(RunError(told), wanting) from None
        return made

    def _feed(self, run: _Run, feeds: Mapping[str, HostArray]) -> None:
        for feed in self.plan.feeds:
            if feed.name not in feeds:
                raise RunError(f"no value was fed for {feed.name}", op=feed.name, worker=self.task)
            value = feeds[feed.name]
            if not feed.spec.accepts(spec_of(value)):
                raise ShapeError(f"{feed.name} is {feed.spec}, but was fed {spec_of(value)}")
            run.slots[feed.slot] = self._backend.asarray(value)

    def _run_straight(self, run: _Run) -> None:
        slots, token = run.slots, run.token
        runners = self._runners_for(token)
        index = 0
        try:
            for index, (runner, frees) in enumerate(zip(runners, self._frees, strict=True)):  # noqa: B007  # see except
                if token.error is not None:
                    raise token.error
                runner(run)
                for slot in frees:
                    slots[slot] = None
        except MemoryError as error:
            raise self._out_of_memory(error, run, index) from None
        except Exception as error:
            raise self._explain(error, self.plan.instructions[index]) from error

    def _run_machine(self, run: _Run) -> None:
        machine = StepMachine(self._wiring)
        suffix = flow.suffix(run.frame)
        run.rendezvous.subscribe(run.token.step_id, [key + suffix for key in self._recvs], run.arrivals)
        arrived = run.arrived
        slots, token = run.slots, run.token
        runners = self._runners_for(token)
        parked: set[int] = set()  # recvs whose turn came before their tensor
        held = False  # whether a small tensor waits for one that goes with it
        while not machine.is_done:
            index = machine.take()
            if index is None:
                index = next((i for i in parked if i in arrived), None)
                if index is None:
                    held = not self._wait(run, parked) and held
                    continue
            instruction = self.plan.instructions[index]
            if token.error is not None:
                raise self._explain(token.error, instruction) from token.error
            if instruction.op == "recv":
                if index not in arrived:
                    self._drain(run)
                if index not in arrived:
                    parked.add(index)
                    continue
                parked.discard(index)
            elif held and index not in self._quick:
                run.rendezvous.flush()
                held = False
            held = held or index in self._followed
            try:
                runners[index](run)
            except MemoryError as error:
                raise self._out_of_memory(error, run, index) from None
            except Exception as error:
                raise self._explain(error, instruction) from error
            for slot in machine.complete(index):
                slots[slot] = None
        if held:
            run.rendezvous.flush()

    def _drain(self, run: _Run) -> None:
        while True:
            try:
                item = run.arrivals.get_nowait()
            except Empty:
                return
            self._accept(run, item)

    def _wait(self, run: _Run, parked: set[int]) -> bool:
        """Takes what comes next. Whether it had to be waited for: then all that was held back has gone."""
        try:
            item, waited = run.arrivals.get_nowait(), False
        except Empty:
            item, waited = self._wait_long(run, parked), True
        self._accept(run, item)
        return waited

    def _wait_long(self, run: _Run, parked: set[int]) -> Arrival:
        start = time.monotonic()
        run.rendezvous.waiting(run.token.step_id, True)
        try:
            return run.arrivals.get(timeout=max(run.token.deadline - start, 0.001))
        except Empty:
            waited = [self.plan.instructions[i] for i in sorted(parked)]
            names = ", ".join(f"{i.node} from {i.attrs['source']}" for i in waited) or "nothing"
            raise DeadlineExceeded(
                f"{self.task} waited for {names} until the step's deadline", device=self.device, worker=self.task
            ) from None
        finally:
            run.rendezvous.waiting(run.token.step_id, False)
            run.waited_s += time.monotonic() - start

    def _accept(self, run: _Run, item: Arrival) -> None:
        key, value, moved = item
        if key == "":
            raise value
        run.arrived[self._recvs[key.removesuffix(flow.suffix(run.frame))]] = (value, moved)

    def _runners_for(self, token: StepToken) -> tuple[Runner, ...]:
        runners = self._timed if token.trace else self._runners if token.times is None else self._looked_at
        if not token.check_numerics:
            return runners
        pairs = zip(self.plan.instructions, runners, strict=True)
        return tuple(numerics.checked(i, r, self._backend) for i, r in pairs)

    # --- binding -------------------------------------------------------------------------------------------------

    @functools.cached_property
    def _looked_at(self) -> tuple[Runner, ...]:
        pairs = zip(self.plan.instructions, self._runners, strict=True)
        return tuple(r if i.op in ("send", "recv", "copy") else self._with_look(i.node, r) for i, r in pairs)

    def _with_look(self, node: str, runner: Runner) -> Runner:
        """`runner`, which notes how long it took: a fraction of what a traced one costs."""
        clock, synchronize = time.perf_counter, self._backend.synchronize

        def looked_at(run: _Run) -> None:
            start = clock()
            runner(run)
            synchronize()
            took_s = clock() - start
            times = run.token.times
            if times is not None:
                times.append((node, took_s))

        return looked_at

    def _with_time(self, instruction: Instruction, runner: Runner) -> Runner:
        """`runner`, with an event that says how long it took: for traced steps only."""
        if instruction.op == "recv":
            return runner  # says itself how its tensor came
        node, device = instruction.node, self.device
        if instruction.op == "send":
            node = f"send {node}"

        def timed(run: _Run) -> None:
            start = time.monotonic()
            runner(run)
            self._backend.synchronize()
            value = run.slots[instruction.outputs[0]] if instruction.outputs else None
            nbytes = int(getattr(value, "nbytes", 0))
            run.events.append(NodeFinished(node, device, start, time.monotonic() - start, nbytes))

        return timed

    def _bind(self, index: int, instruction: Instruction) -> Runner:
        inputs, outputs = instruction.inputs, instruction.outputs
        if instruction.op == "send":
            return self._bind_send(index, instruction)
        if instruction.op == "recv":
            return self._bind_recv(index, instruction)
        if instruction.op == "copy":
            source, target = inputs[0], outputs[0]

            def copy(run: _Run) -> None:
                run.slots[target] = run.slots[source].copy()

            return copy
        if instruction.bodies:
            bodies = [Program(b, self._backend, self.task, body=True) for b in instruction.bodies]
            return flow.bind(instruction, bodies, self._backend)
        function = self._backend.table.get(instruction.op)
        if function is None:
            raise GraphError(f"{self.device} has no implementation of op {instruction.op!r}")
        definition = ops.get(instruction.op)
        if definition.stateful:
            return self._bind_stateful(instruction, function)
        if instruction.attrs:
            function = functools.partial(function, **instruction.attrs)
        if not definition.elementwise and not definition.alias and self._loose.intersection(inputs):
            function = self._on_contiguous(function, [n for n, slot in enumerate(inputs) if slot in self._loose])
        if len(outputs) != 1:
            return calls.many(function, inputs, outputs)
        if instruction.buffer >= 0:
            return calls.into(function, inputs, outputs[0], instruction.buffer)
        return calls.one(function, inputs, outputs[0], definition.elementwise)

    def _on_contiguous(self, function: Callable[..., Any], positions: list[int]) -> Callable[..., Any]:
        """`function` with some inputs in canonical memory order, as they are after a transfer. The order of a sum, and
        so its last bits, follows the memory: without this a result would depend on what was placed where."""
        contiguous = self._backend.contiguous

        def call(*values: Any, **out: Any) -> Any:
            listed = list(values)
            for position in positions:
                listed[position] = contiguous(listed[position])
            return function(*listed, **out)

        return call

    def _bind_stateful(self, instruction: Instruction, function: Callable[..., Any]) -> Runner:
        inputs, outputs = instruction.inputs, instruction.outputs
        attrs, key, seed = dict(instruction.attrs), instruction.key, self.plan.seed

        def stateful(run: _Run) -> None:
            slots = run.slots
            context = Context(key, seed, run.token.number, run.state, run.token.check, run.frame)
            values = [slots[i] for i in inputs]
            cell = values[0] if values and isinstance(values[0], Cell) else None
            if cell is None:
                result = function(context, *values, **attrs)
            else:
                # Two lanes (asynchronous replicas) may update one variable; each update is whole.
                with cell.lock:
                    result = function(context, *values, **attrs)
            if len(outputs) == 1:
                slots[outputs[0]] = result
            else:
                for slot, value in zip(outputs, result or (), strict=True):
                    slots[slot] = value

        return stateful

    def _bind_send(self, index: int, instruction: Instruction) -> Runner:
        key = str(instruction.attrs["key"])
        task = passage.destination_of(instruction)
        source = instruction.inputs[0] if instruction.inputs else -1
        compressed = str(instruction.attrs.get("compress", ""))
        more = index in self._followed
        token_value = np.empty(0, np.uint8)  # a control edge: something must arrive, nothing need be in it

        def send(run: _Run) -> None:
            value = token_value if source < 0 else np.asanyarray(self._backend.to_host(run.slots[source]))
            error = 0.0
            if compressed:
                value, error = passage.compress(value, compressed, measured=run.token.trace)
            sending = run.send(run.token.step_id, key + flow.suffix(run.frame), task, value, more, error)
            if sending is not None:
                run.sending[index] = sending

        return send

    def _bind_recv(self, index: int, instruction: Instruction) -> Runner:
        """What puts a tensor that has arrived in place: the machine sees to it that it has."""
        output, attrs, node = instruction.outputs[0], instruction.attrs, instruction.node
        compressed, dtype = str(attrs.get("compress", "")), attrs.get("dtype")
        key, source = str(attrs["key"]), str(attrs["source"])

        def recv(run: _Run) -> None:
            value, moved = run.arrived.pop(index)
            run.slots[output] = self._backend.asarray(passage.decompress(value, dtype, compressed, node))
            if run.token.trace:
                waited, run.waited_s = run.waited_s, 0.0
                name = key + flow.suffix(run.frame)
                run.events.append(passage.record(name, source, self.device, value.nbytes, moved, waited, compressed))

        return recv

    def _out_of_memory(self, error: MemoryError, run: _Run, index: int) -> Exception:
        """The error with what held the memory. Lets go of what the step made, so that the next one finds room."""
        held = memory.held(self.plan, run.slots, run.buffers, run.state)
        run.slots[:] = [None] * len(run.slots)
        run.buffers = []
        self._backend.free_unused()
        return self._explain(RunError(f"out of memory ({error}); {held}"), self.plan.instructions[index])

    def _explain(self, error: Exception, instruction: Instruction) -> Exception:
        """The error as the user should see it: with op, device, worker, cell and line."""
        if isinstance(error, (Cancelled, DeadlineExceeded)):
            error.device, error.worker = error.device or self.device, error.worker or self.task
            return error
        if isinstance(error, OpError):  # of an op in a body: it says more than its loop could
            return error
        # A lost peer is the machine's trouble, not the op's: whoever drives the step must see which worker it was.
        if isinstance(error, DataError | WorkerError):
            error.where = error.where or instruction.where
            return error
        if isinstance(error, NbflowError) and not isinstance(error, RunError):
            message = error.message
        else:
            message = f"{type(error).__name__}: {error}" if not isinstance(error, RunError) else error.message
        return OpError(
            f"{instruction.op} {instruction.node!r} on {self.device} failed: {message}",
            where=instruction.where,
            op=instruction.node,
            device=self.device,
            worker=self.task,
        )
