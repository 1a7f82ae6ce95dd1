"""Bundles, commands, results, loops, events and errors as bytes: there and back, and what damage does."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbflow import errors, wire
from nbflow.errors import NbflowError, Rejected, RunError, VersionMismatch, WorkerError
from nbflow.events import EVENT_TYPES, Event
from nbflow.plan import Bundle, Constant, Feed, Fetch, Instruction, Plan
from nbflow.proto import wire_pb2 as pb
from nbflow.spec import TensorSpec
from nbflow.transport import Evaluation, Loop, MetricSource, SavedShard, Saving, StepCommand, StepResult
from tests.unit.test_codec import arrays, attributes, same

ROOT = Path(__file__).parents[2]
names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
tasks = st.sampled_from(["/job:worker/task:0", "/job:worker/task:1", "/job:ps/task:0"])
finite = st.floats(allow_nan=False)
specs = st.builds(
    TensorSpec,
    st.none() | st.lists(st.none() | st.integers(0, 99), max_size=3).map(tuple),
    st.sampled_from([np.dtype("float32"), np.dtype("int64")]),
    st.booleans(),
)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    slots = draw(st.integers(1, 9))
    slot = st.integers(0, slots - 1)
    many = st.lists(slot, max_size=3).map(tuple)
    buffers = tuple(draw(st.lists(specs, max_size=3)))
    made = []
    for number in range(draw(st.integers(0, 4))):
        made.append(
            Instruction(
                draw(names),
                draw(st.sampled_from(["add", "matmul", "anything"])),
                draw(many),
                draw(many),
                draw(st.dictionaries(names, attributes, max_size=3)),
                tuple(draw(st.lists(st.integers(0, number - 1), max_size=2))) if number else (),
                draw(many),
                draw(names),
                draw(st.integers(-1, len(buffers) - 1)),
                draw(names),
            )
        )
    return Plan(
        draw(tasks) + "/cpu:0",
        tuple(made),
        slots,
        tuple(Constant(draw(slot), value) for value in draw(st.lists(arrays, max_size=3))),
        tuple(Feed(name, draw(slot), draw(specs)) for name in draw(st.lists(names, max_size=2))),
        tuple(Fetch(name, draw(slot), draw(st.booleans())) for name in draw(st.lists(names, max_size=2))),
        buffers,
        draw(st.integers(-(2**62), 2**62)),
    )


bundles = st.builds(Bundle, names, tasks, st.lists(plans(), max_size=2).map(tuple))
tensors = st.dictionaries(names, arrays, max_size=3)
events: st.SearchStrategy[Event] = st.one_of(
    [
        st.builds(
            kind,
            **{
                f.name: {
                    "int": st.integers(-(2**62), 2**62),
                    "float": finite,
                    "str": names,
                    "tuple[str, ...]": st.lists(names, max_size=3).map(tuple),
                    "tuple[float, ...]": st.lists(finite, max_size=3).map(tuple),
                }[str(f.type)]
                for f in dataclasses.fields(kind)
            },
        )
        for kind in EVENT_TYPES
    ]
)
commands = st.builds(
    StepCommand, names, names, names, st.integers(0, 2**62), tensors, st.booleans(), st.floats(1e-3, 1e9)
)
results = st.builds(StepResult, names, tensors, st.lists(events, max_size=3).map(tuple))
savings = st.builds(
    Saving,
    names,
    st.lists(
        st.builds(
            SavedShard,
            st.dictionaries(tasks, names, min_size=1),
            st.lists(st.builds(MetricSource, names, tasks, names), max_size=2).map(tuple),
        ),
        max_size=2,
    ).map(tuple),
    st.integers(1, 2**40),
    st.integers(0, 2**40),
    st.just('{"graph": {}}'),
)
evaluations = st.builds(
    Evaluation,
    st.dictionaries(tasks, names, min_size=1),
    st.lists(st.builds(MetricSource, names, tasks, names), max_size=2).map(tuple),
    st.integers(1, 2**40),
    st.integers(1, 2**40),
    st.integers(0, 2**40),
)
loops = st.builds(
    Loop,
    names,
    names,
    st.dictionaries(tasks, names, min_size=1),
    st.dictionaries(tasks, names),
    st.lists(st.builds(MetricSource, names, tasks, names), max_size=2).map(tuple),
    st.integers(0, 2**40),
    st.integers(0, 2**40),
    st.integers(1, 2**40),
    st.booleans(),
    names,
    evaluation=st.none() | evaluations,
    saving=st.none() | savings,
)


def equal(a: Any, b: Any) -> bool:
    """Dataclasses field by field, arrays bit for bit."""
    if dataclasses.is_dataclass(a):
        return type(a) is type(b) and all(equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(equal, a, b))
    return same(a, b)


@given(bundles | commands | results | loops | events)
def test_everything_comes_back(value: Any) -> None:
    assert equal(wire.loads(wire.dumps(value)), value)


@given(bundles | commands | results | loops | events, st.data())
def test_damage_is_refused_or_another_value(value: Any, data: st.DataObject) -> None:
    """Never a crash, and never another error: whatever a flipped or missing byte makes of it."""
    raw = bytearray(wire.dumps(value))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(Rejected, VersionMismatch):
        wire.loads(bytes(raw[: data.draw(st.integers(0, len(raw)))]))


@given(st.binary(max_size=200))
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises((Rejected, VersionMismatch)):
        wire.loads(noise)


def test_another_version_is_named() -> None:
    data = wire.dumps(Bundle("b", "/job:worker/task:0"), version=wire.WIRE_VERSION + 1)
    with pytest.raises(VersionMismatch, match=rf"version {wire.WIRE_VERSION + 1}, this one {wire.WIRE_VERSION}"):
        wire.loads(data)


def test_large_constants_travel_by_content() -> None:
    value = np.random.default_rng(0).random((200, 200), np.float32).T
    attr = Instruction("n", "add", (), (), {"table": (value, 1)})
    plan = Plan("/job:worker/task:0/cpu:0", (attr,), 1, (Constant(0, value), Constant(0, np.ones(3))))
    blobs = wire.Blobs()
    data = wire.dumps(Bundle("b", "/job:worker/task:0", (plan,)), blobs.put)
    digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
    assert list(blobs.arrays) == [digest]
    assert len(data) < 2000
    assert dict(wire.blobs_of(wire.open_envelope(data))) == {digest: value.nbytes}
    here = {digest: np.ascontiguousarray(blobs.arrays[digest]).tobytes()}
    back = wire.loads(data, wire.blob_reader(here.get))
    assert isinstance(back, Bundle)
    np.testing.assert_array_equal(back.plans[0].constants[0].value, value)
    np.testing.assert_array_equal(back.plans[0].instructions[0].attrs["table"][0], value)
    with pytest.raises(Rejected, match="send them first"):
        wire.loads(data, wire.blob_reader({}.get))
    with pytest.raises(Rejected, match="bytes"):
        wire.loads(data, wire.blob_reader({digest: b"short"}.get))


def bundle_message(**changes: Any) -> bytes:
    """A small plan, with one thing about it wrong."""
    item = {"node": "n", "op": "add", "inputs": [0], "outputs": [1], "buffer": -1, **changes.pop("item", {})}
    plan = {"device": "/job:worker/task:0/cpu:0", "slots": 2, "instructions": [pb.Instruction(**item)], **changes}
    bundle = pb.Bundle(id="b", task="/job:worker/task:0", plans=[pb.Plan(**plan)])
    envelope = pb.Envelope(magic=wire._MAGIC, version=wire.WIRE_VERSION, bundle=bundle)
    return bytes(envelope.SerializeToString())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"item": {"inputs": [2]}}, "slot 2 of 2"),
        ({"item": {"outputs": [9]}}, "slot 9 of 2"),
        ({"item": {"frees": [5]}}, "slot 5 of 2"),
        ({"item": {"after": [0]}}, "waits for itself"),
        ({"item": {"buffer": 0}}, "buffer 0 of 0"),
        ({"item": {"buffer": -2}}, "buffer -2 of 0"),
        ({"item": {"op": "send"}}, "does not say"),
        ({"device": "/job:worker"}, "full device"),
        ({"device": "/moon:0"}, "not a device"),
        ({"slots": wire.MAX_SLOTS + 1}, "slots"),
        ({"fetches": [pb.Fetch(name="f", slot=2)]}, "a fetch"),
        ({"feeds": [pb.Feed(name="f", slot=2, spec=pb.TensorSpec(dtype="int8"))]}, "a feed"),
        ({"constants": [pb.Constant(slot=2, value=pb.Tensor(dtype="bool", data=b"1"))]}, "a constant"),
    ],
)
def test_plans_that_do_not_hold_together_are_refused(changes: dict[str, Any], says: str) -> None:
    wire.loads(bundle_message())
    with pytest.raises(Rejected, match=says):
        wire.loads(bundle_message(**changes))


def test_ops_that_nobody_knows_are_refused() -> None:
    assert wire.loads(bundle_message(), knows={"add"}.__contains__)
    with pytest.raises(Rejected, match="'add'"):
        wire.loads(bundle_message(), knows=set().__contains__)


@pytest.mark.parametrize("deadline_s", [0.0, -1.0, float("nan"), float("inf")])
def test_a_step_needs_a_deadline(deadline_s: float) -> None:
    with pytest.raises(Rejected, match="deadline"):
        wire.loads(wire.dumps(StepCommand("b", "l", "s", 0, deadline_s=deadline_s)))


ERRORS = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, NbflowError)]


@pytest.mark.parametrize("kind", ERRORS)
def test_every_error_comes_back(kind: type[NbflowError]) -> None:
    made = kind("what", where="In[3], line 2")
    if isinstance(made, RunError):
        made.op, made.device, made.worker = "n", "/job:a/task:0/cpu:0", "/job:a/task:0"
    if isinstance(made, WorkerError):
        made.worker = "/job:a/task:0"
    back = wire.loads(wire.dumps(made))
    assert type(back) is kind
    assert vars(back) == vars(made)
    assert str(back) == "what (made by In[3], line 2)"


def test_foreign_and_unknown_errors_come_as_run_errors() -> None:
    assert "ZeroDivisionError: x" in str(wire.decode_error(wire.encode_error(ZeroDivisionError("x"))))
    back = wire.decode_error(pb.Error(type="SystemExit", message="m"))
    assert type(back) is RunError
    assert "SystemExit: m" in str(back)
    assert "?" in wire.encode_error(NbflowError("\ud800")).message


def test_generated_modules_are_up_to_date(tmp_path: Path) -> None:
    """`scripts/generate-protos` gives what is committed."""
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed (extra: dev)")
    shell = shutil.which("sh")
    assert shell is not None
    environment = {**os.environ, "PYTHON": sys.executable}
    command = [shell, str(ROOT / "scripts/generate-protos"), str(tmp_path)]
    subprocess.run(command, check=True, env=environment, timeout=60)
    for module in ("nbflow/proto/wire_pb2", "workers/nbflow_workers/proto/worker_pb2"):
        for suffix in (".py", ".pyi"):
            made, kept = ((root / (module + suffix)).read_text() for root in (tmp_path, ROOT))
            if _protobuf_version(made) != _protobuf_version(kept):
                pytest.skip("another version of protoc made the committed modules")
            assert made == kept, f"{module}{suffix} is out of date: run scripts/generate-protos"


def _protobuf_version(text: str) -> str:
    return next((line for line in text.splitlines() if line.startswith("# Protobuf Python Version")), "")


def test_the_digest_of_an_array_that_stays_is_worked_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []
    real = wire.hashlib.sha256
    monkeypatch.setattr(wire.hashlib, "sha256", lambda data: hashed.append(len(data)) or real(data))
    stays, changes = np.arange(10), np.arange(10)
    stays.flags.writeable = False
    assert wire.digest_of(stays) == wire.digest_of(stays) == wire.digest_of(changes)
    assert hashed == [80, 80]
    changes[0] = 1
    assert wire.digest_of(changes) != wire.digest_of(stays)
    before = len(wire._digests)
    del stays
    assert len(wire._digests) == before - 1
