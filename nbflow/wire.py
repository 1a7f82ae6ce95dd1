"""Plans, steps, loops, events and errors ↔ bytes. No sockets here, and no pickle.

`dumps` and `loads` make self-contained bytes of one value, versioned; the workers' protocol embeds the same messages
in its own (`encode_*`, `decode_*`). Decoding trusts nothing: damaged bytes raise Rejected, those of another version
VersionMismatch.
"""

from __future__ import annotations

import hashlib
import json
import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError, Message

from nbflow import codec, errors
from nbflow.codec import Get, HostArray, Put
from nbflow.device import parse_device
from nbflow.errors import NbflowError, PlacementError, Rejected, RunError, VersionMismatch, WorkerError
from nbflow.events import EVENT_TYPES, Event
from nbflow.plan import Bundle, Constant, Feed, Fetch, Instruction, Plan
from nbflow.proto import wire_pb2 as pb
from nbflow.transport import Evaluation, Loop, MetricSource, SavedShard, Saving, StepCommand, StepResult

WIRE_VERSION = 1
_MAGIC = int.from_bytes(b"nbfl", "little")

# Instructions that plans hold beside registered ops: partition puts them there.
PLAN_OPS = frozenset({"send", "recv"})
# Those that have bodies, and no others do.
BODY_OPS = frozenset({"cond", "loop"})
# A plan of this size would be hours of Python; larger is damage or an attack.
MAX_SLOTS = 16_000_000

Value = Bundle | StepCommand | StepResult | Loop | Event | NbflowError


# --- one value as bytes -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Blobs:
    """Arrays that are moved once per worker: their bytes' SHA-256 (hex) → the array."""

    arrays: dict[str, HostArray] = field(default_factory=dict)

    def put(self, message: pb.Tensor, value: HostArray) -> None:
        """A `Put` that refers to `value` by content."""
        digest = digest_of(value)
        self.arrays[digest] = value
        message.blob = digest


# Of arrays that are not written to, such as a dataset's: every plan that uses one would read all of it again.
_digests: dict[int, tuple[weakref.ref[HostArray], str]] = {}


def digest_of(value: HostArray) -> str:
    """SHA-256 (hex) of an array's bytes in C order; of one that is read-only, worked out once."""
    number = id(value)
    known = _digests.get(number)
    if known is not None and known[0]() is value:
        return known[1]
    found = hashlib.sha256(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data).hexdigest()
    if not value.flags.writeable:
        _digests[number] = (weakref.ref(value, lambda _: _digests.pop(number, None)), found)
    return found


def blob_reader(find: Callable[[str], bytes | bytearray | memoryview | None]) -> Get:
    """A `Get` for arrays by content. The arrays share the memory that `find` gives."""

    def get(message: pb.Tensor) -> HostArray:
        data = find(message.blob) if message.WhichOneof("content") == "blob" else None
        if data is None:
            raise Rejected(f"the bytes of a constant are not here (blob {message.blob[:12]}); send them first")
        return codec.array_from(message, data)

    return get


def dumps(value: Value, put: Put | None = None, *, version: int = WIRE_VERSION) -> bytes:
    """`value` as bytes; `put` (such as `Blobs().put`) takes arrays of 64 KiB and more, if given."""
    envelope = pb.Envelope(magic=_MAGIC, version=version)
    if isinstance(value, Bundle):
        encode_bundle(value, envelope.bundle, put)
    elif isinstance(value, StepCommand):
        encode_command(value, envelope.command, put)
    elif isinstance(value, StepResult):
        encode_result(value, envelope.result, put)
    elif isinstance(value, Loop):
        envelope.loop.CopyFrom(encode_loop(value))
    elif isinstance(value, NbflowError):
        envelope.error.CopyFrom(encode_error(value))
    else:
        envelope.event.CopyFrom(encode_event(value))
    data: bytes = envelope.SerializeToString(deterministic=True)
    return data


def loads(data: bytes, get: Get | None = None, *, knows: Callable[[str], bool] | None = None) -> Value:
    """The value in `data`. Raises Rejected for damaged bytes, VersionMismatch for those of another version.

    `get` finds arrays that are not inside; `knows(op)` says whether a plan may name an op.
    """
    envelope = open_envelope(data)
    kind = envelope.WhichOneof("value")
    if kind == "bundle":
        return decode_bundle(envelope.bundle, get, knows=knows)
    if kind == "command":
        return decode_command(envelope.command, get)
    if kind == "result":
        return decode_result(envelope.result, get)
    if kind == "loop":
        return decode_loop(envelope.loop)
    if kind == "event":
        return decode_event(envelope.event)
    if kind == "error":
        return decode_error(envelope.error)
    raise Rejected("a message without a value was sent")


def open_envelope(data: bytes) -> pb.Envelope:
    """The envelope in `data`, checked for magic and version. Raises Rejected, VersionMismatch."""
    envelope: pb.Envelope = parse(pb.Envelope, data)
    if envelope.magic != _MAGIC:
        raise Rejected("these bytes are not nbflow's: they do not start with its mark")
    check_version(envelope.version)
    return envelope


def check_version(version: int, *, mine: int = WIRE_VERSION, worker: str = "") -> None:
    """Raises VersionMismatch when the other side speaks another version of these messages."""
    if version != mine:
        raise VersionMismatch(
            f"the other side speaks wire version {version}, this one {mine}; install the same nbflow on both",
            worker=worker,
        )


def parse(message_type: Any, data: bytes) -> Any:
    """A protobuf message from bytes. Raises Rejected."""
    message = message_type()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise Rejected(f"damaged bytes: not a {message_type.DESCRIPTOR.name} ({error})") from None
    return message


def blobs_of(envelope: pb.Envelope) -> Iterator[tuple[str, int]]:
    """(digest, bytes) of every constant that a bundle refers to. Raises Rejected."""
    for plan in envelope.bundle.plans:
        for tensor in _tensors_of(plan):
            if tensor.WhichOneof("content") == "blob":
                yield tensor.blob, codec.array_layout(tensor)[2]


def _tensors_of(plan: pb.Plan) -> Iterator[pb.Tensor]:
    for constant in plan.constants:
        yield constant.value
    for instruction in plan.instructions:
        for body in instruction.bodies:
            yield from _tensors_of(body)
    todo = [attr for instruction in plan.instructions for attr in instruction.attrs.values()]
    while todo:
        attr = todo.pop()
        kind = attr.WhichOneof("kind")
        if kind == "array":
            yield attr.array
        elif kind == "items":
            todo.extend(attr.items.items)


# --- plans ------------------------------------------------------------------------------------------------------------


def encode_bundle(bundle: Bundle, message: pb.Bundle, put: Put | None = None) -> None:
    """Fills `message`. Raises GraphError for attributes that cannot be sent."""
    message.id = bundle.id
    message.task = bundle.task
    for plan in bundle.plans:
        _encode_plan(plan, message.plans.add(), put)


def _encode_plan(plan: Plan, message: pb.Plan, put: Put | None) -> None:
    message.device = plan.device
    message.slots = plan.slots
    message.seed = plan.seed
    for item in plan.instructions:
        made = message.instructions.add(
            node=item.node,
            op=item.op,
            inputs=item.inputs,
            outputs=item.outputs,
            after=item.after,
            frees=item.frees,
            key=item.key,
            buffer=item.buffer,
            where=item.where,
        )
        codec.encode_attrs(item.attrs, made.attrs, put)
        for body in item.bodies:
            _encode_plan(body, made.bodies.add(), put)
    for constant in plan.constants:
        codec.encode_array(constant.value, put, to=message.constants.add(slot=constant.slot).value)
    for feed in plan.feeds:
        message.feeds.add(name=feed.name, slot=feed.slot, spec=codec.encode_spec(feed.spec))
    for fetch in plan.fetches:
        message.fetches.add(name=fetch.name, slot=fetch.slot, copy=fetch.copy)
    message.buffers.extend(codec.encode_spec(s) for s in plan.buffers)


def decode_bundle(message: pb.Bundle, get: Get | None = None, *, knows: Callable[[str], bool] | None = None) -> Bundle:
    """A Bundle. Raises Rejected for slots out of range, unknown ops and whatever else does not hold together."""
    if not message.id:
        raise Rejected("a bundle without an id was sent")
    return Bundle(message.id, message.task, tuple(_decode_plan(p, get, knows) for p in message.plans))


def _decode_plan(message: pb.Plan, get: Get | None, knows: Callable[[str], bool] | None) -> Plan:
    try:
        full = parse_device(message.device).is_full
    except PlacementError as error:
        raise Rejected(f"a plan for no device was sent: {error.message}") from None
    if not full or message.slots > MAX_SLOTS:
        raise Rejected(f"a plan needs a full device and at most {MAX_SLOTS} slots, got {message.device!r}")
    plan = Plan(
        message.device,
        tuple(_decode_instruction(item, get, knows) for item in message.instructions),
        message.slots,
        tuple(Constant(c.slot, codec.decode_array(c.value, get)) for c in message.constants),
        tuple(Feed(f.name, f.slot, codec.decode_spec(f.spec)) for f in message.feeds),
        tuple(Fetch(f.name, f.slot, f.copy) for f in message.fetches),
        tuple(codec.decode_spec(s) for s in message.buffers),
        message.seed,
    )
    _check_plan(plan, knows)
    return plan


def _decode_instruction(item: pb.Instruction, get: Get | None, knows: Callable[[str], bool] | None) -> Instruction:
    return Instruction(
        item.node,
        item.op,
        tuple(item.inputs),
        tuple(item.outputs),
        codec.decode_attrs(item.attrs, get),
        tuple(item.after),
        tuple(item.frees),
        item.key,
        item.buffer,
        item.where,
        tuple(_decode_plan(body, get, knows) for body in item.bodies),
    )


def _check_plan(plan: Plan, knows: Callable[[str], bool] | None) -> None:
    """What an executor relies on without looking: numbers in range, known ops."""

    def slots(numbers: Sequence[int], what: str) -> None:
        if any(n >= plan.slots for n in numbers):
            raise Rejected(f"{what} of a plan for {plan.device} names slot {max(numbers)} of {plan.slots}")

    for number, item in enumerate(plan.instructions):
        for numbers in (item.inputs, item.outputs, item.frees):
            slots(numbers, f"instruction {item.node!r}")
        if any(i >= number for i in item.after):
            raise Rejected(f"instruction {item.node!r} of a plan waits for itself or a later one")
        if not -1 <= item.buffer < len(plan.buffers):
            raise Rejected(f"instruction {item.node!r} of a plan names buffer {item.buffer} of {len(plan.buffers)}")
        if knows is not None and item.op not in PLAN_OPS and not knows(item.op):
            raise Rejected(
                f"the plan uses op {item.op!r} ({item.node!r}), which this worker does not have; "
                "install the same nbflow on both sides",
                where=item.where,
            )
        if item.op in PLAN_OPS and not _is_transfer(item):
            raise Rejected(f"instruction {item.node!r} moves a tensor, but does not say which, and where to or from")
        if bool(item.bodies) != (item.op in BODY_OPS) or (item.bodies and not _is_control(item)):
            raise Rejected(
                f"instruction {item.node!r} ({item.op}) does not say what its bodies are given, and how often"
            )
    slots([c.slot for c in plan.constants], "a constant")
    slots([f.slot for f in plan.feeds], "a feed")
    slots([f.slot for f in plan.fetches], "a fetch")


def _is_control(item: Instruction) -> bool:
    attrs = item.attrs
    positions, inputs, home = attrs.get("given"), attrs.get("inputs"), attrs.get("home")
    if not isinstance(inputs, int) or not isinstance(positions, tuple) or not isinstance(home, str):
        return False
    if len(positions) != len(item.inputs) or not all(isinstance(p, int) and 0 <= p < inputs for p in positions):
        return False
    leading = 1 if item.op == "cond" or attrs.get("limited") is True else 0
    names = [f.name for b in item.bodies for f in b.feeds]
    if not all(n.isdecimal() and int(n) < inputs - leading for n in names):
        return False
    if item.op == "cond":
        sized = home or all(_outputs(b) == len(item.outputs) for b in item.bodies)
        return bool(len(item.bodies) == 2 and sized)
    tested = attrs.get("tested") is True
    carried, scanned, rows = attrs.get("carried"), attrs.get("scanned"), attrs.get("stacked")
    if not isinstance(carried, int) or not isinstance(scanned, int) or not isinstance(rows, tuple):
        return False
    if len(item.bodies) != 1 + tested or min(carried, scanned) < 0 or carried + scanned > inputs - leading:
        return False
    if home:
        return True
    if tested and _outputs(item.bodies[0]) != 1:
        return False
    padded = attrs.get("padded")
    if not isinstance(padded, tuple) or len(padded) != len(rows) or not all(isinstance(p, bool) for p in padded):
        return False
    ends = tested or scanned > 0 or leading == 1
    return ends and _outputs(item.bodies[-1]) == carried + len(rows) == len(item.outputs) - 1 - sum(padded)


def _outputs(plan: Plan) -> int:
    """How many outputs a body has; -1 when they are not numbered from 0 on."""
    names = sorted(int(f.name) if f.name.isdecimal() else -1 for f in plan.fetches)
    return len(names) if names == list(range(len(names))) else -1


def _is_transfer(item: Instruction) -> bool:
    other = "destination" if item.op == "send" else "source"
    return isinstance(item.attrs.get("key"), str) and isinstance(item.attrs.get(other), str)


# --- steps and loops --------------------------------------------------------------------------------------------------


def encode_command(command: StepCommand, message: pb.StepCommand, put: Put | None = None) -> None:
    """Fills `message`."""
    message.bundle = command.bundle
    message.lane = command.lane
    message.step_id = command.step_id
    message.number = command.number
    message.trace = command.trace
    message.deadline_s = command.deadline_s
    message.check_numerics = command.check_numerics
    _encode_tensors(command.feeds, message.feeds, put)


def decode_command(message: pb.StepCommand, get: Get | None = None) -> StepCommand:
    """A StepCommand. Raises Rejected."""
    if not message.step_id or not message.bundle:
        raise Rejected("a step needs an id and a bundle")
    if not 0 < message.deadline_s < math.inf:
        raise Rejected(f"a step needs a deadline in the future, got {message.deadline_s} s")
    feeds = _decode_tensors(message.feeds, get)
    return StepCommand(
        message.bundle,
        message.lane,
        message.step_id,
        message.number,
        feeds,
        message.trace,
        message.deadline_s,
        message.check_numerics,
    )


def encode_result(result: StepResult, message: pb.StepResult, put: Put | None = None) -> None:
    """Fills `message`."""
    message.step_id = result.step_id
    _encode_tensors(result.fetches, message.fetches, put)
    message.events.extend(encode_event(e) for e in result.events)


def decode_result(message: pb.StepResult, get: Get | None = None) -> StepResult:
    """A StepResult. Raises Rejected."""
    return StepResult(
        message.step_id, _decode_tensors(message.fetches, get), tuple(decode_event(e) for e in message.events)
    )


def _encode_tensors(values: Mapping[str, HostArray], target: Any, put: Put | None) -> None:
    for name, value in values.items():
        codec.encode_array(np.asarray(value), put, to=target[name])


def _decode_tensors(source: Any, get: Get | None) -> dict[str, HostArray]:
    return {name: codec.decode_array(source[name], get) for name in sorted(source)}


def encode_loop(loop: Loop) -> pb.Loop:
    """A Loop as a message."""
    return pb.Loop(
        id=loop.id,
        run=loop.run,
        step=dict(loop.step),
        report=dict(loop.report),
        metrics=_encode_metrics(loop.metrics),
        first=loop.first,
        steps=loop.steps,
        every=loop.every,
        stop_on_nan=loop.stop_on_nan,
        replica=loop.replica,
        finish=dict(loop.finish),
        about=loop.about,
        evaluation=None if loop.evaluation is None else _encode_evaluation(loop.evaluation),
        saving=None if loop.saving is None else _encode_saving(loop.saving),
    )


def decode_loop(message: pb.Loop) -> Loop:
    """A Loop. Raises Rejected."""
    if not message.id or message.steps < 0 or message.every < 1 or not message.step:
        raise Rejected(
            f"not a loop: id {message.id!r}, {message.steps} steps over {len(message.step)} tasks, "
            f"a report every {message.every}"
        )
    return Loop(
        message.id,
        message.run,
        dict(sorted(message.step.items())),
        dict(sorted(message.report.items())),
        _decode_metrics(message.metrics),
        message.first,
        message.steps,
        message.every,
        message.stop_on_nan,
        message.replica,
        dict(sorted(message.finish.items())),
        message.about,
        _decode_evaluation(message.evaluation) if message.HasField("evaluation") else None,
        _decode_saving(message.saving) if message.HasField("saving") else None,
    )


def _encode_evaluation(evaluation: Evaluation) -> pb.Evaluation:
    return pb.Evaluation(
        plan=dict(evaluation.plan),
        metrics=_encode_metrics(evaluation.metrics),
        every=evaluation.every,
        batches=evaluation.batches,
        last=evaluation.last,
    )


def _decode_evaluation(message: pb.Evaluation) -> Evaluation:
    if not message.plan or message.every < 1 or message.batches < 1:
        raise Rejected(
            f"not an evaluation: {message.batches} batches over {len(message.plan)} tasks, every {message.every}"
        )
    plan = dict(sorted(message.plan.items()))
    return Evaluation(plan, _decode_metrics(message.metrics), message.every, message.batches, message.last)


def _encode_saving(saving: Saving) -> pb.Saving:
    shards = [pb.SavedShard(plan=dict(s.plan), values=_encode_metrics(s.values)) for s in saving.shards]
    return pb.Saving(folder=saving.folder, shards=shards, every=saving.every, last=saving.last, about=saving.about)


def _decode_saving(message: pb.Saving) -> Saving:
    try:
        is_about = isinstance(json.loads(message.about), dict)
    except ValueError:
        is_about = False
    if not message.folder or message.every < 1 or not is_about or not all(s.plan for s in message.shards):
        raise Rejected(f"nothing that can be saved, every {message.every} steps: {message.about[:60]!r}")
    shards = tuple(SavedShard(dict(sorted(s.plan.items())), _decode_metrics(s.values)) for s in message.shards)
    return Saving(message.folder, shards, message.every, message.last, message.about)


def _encode_metrics(metrics: Sequence[MetricSource]) -> list[pb.MetricSource]:
    return [pb.MetricSource(name=m.name, task=m.task, fetch=m.fetch) for m in metrics]


def _decode_metrics(messages: Iterable[pb.MetricSource]) -> tuple[MetricSource, ...]:
    return tuple(MetricSource(m.name, m.task, m.fetch) for m in messages)


# --- events and errors ------------------------------------------------------------------------------------------------


def _snake(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")


_EVENT_FIELDS: dict[str, type] = {_snake(t.__name__): t for t in EVENT_TYPES}


def encode_event(event: Event) -> pb.Event:
    """An event as a message: the one of its class's name, field by field."""
    message = pb.Event()
    target: Message = getattr(message, _snake(type(event).__name__))
    target.SetInParent()
    for item in fields(event):
        value = getattr(event, item.name)
        if isinstance(value, tuple):
            getattr(target, item.name).extend(value)
        else:
            setattr(target, item.name, value)
    return message


def decode_event(message: pb.Event) -> Event:
    """An event. Raises Rejected for none, such as one of a class this version does not know."""
    kind = message.WhichOneof("kind")
    made = _EVENT_FIELDS.get(kind or "")
    if kind is None or made is None:
        raise Rejected("an event of no known kind was sent")
    source = getattr(message, kind)
    values = {item.name: getattr(source, item.name) for item in fields(made)}
    # Lists are tuples here: events are values.
    event: Event = made(**{n: v if isinstance(v, (str, int, float)) else tuple(v) for n, v in values.items()})
    return event


def encode_error(error: BaseException) -> pb.Error:
    """An error as a message. What is not nbflow's becomes a RunError that says its type."""
    if not isinstance(error, NbflowError):
        return pb.Error(type="RunError", message=_utf8(f"{type(error).__name__}: {error}"))
    message = pb.Error(type=type(error).__name__, message=_utf8(error.message), where=_utf8(error.where))
    if isinstance(error, RunError):
        message.op, message.device = error.op, error.device
    if isinstance(error, RunError | WorkerError):
        message.worker = error.worker
    return message


def _utf8(text: str) -> str:
    # A message may quote anything; it must not fail to arrive because of a lone surrogate.
    return text.encode("utf-8", "replace").decode()


def decode_error(message: pb.Error) -> NbflowError:
    """The error. An unknown class becomes a RunError that says so."""
    found = getattr(errors, message.type, None)
    if not (isinstance(found, type) and issubclass(found, NbflowError)):
        return RunError(f"{message.type}: {message.message}", where=message.where, worker=message.worker)
    if issubclass(found, RunError):
        return found(message.message, where=message.where, op=message.op, device=message.device, worker=message.worker)
    if issubclass(found, WorkerError):
        return found(message.message, where=message.where, worker=message.worker)
    return found(message.message, where=message.where)
