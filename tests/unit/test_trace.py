"""A traced step as text and for Perfetto; what edges with 16 bits on the way cost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import nbflow as nf
from nbflow import passage
from nbflow.errors import DTypeError, GraphError, Rejected
from nbflow.events import NodeFinished, TensorMoved
from nbflow.inprocess import InProcessCluster
from nbflow.plan import Instruction
from nbflow.session import Session
from nbflow.spec import as_dtype
from nbflow.trace import Trace

W0, W1 = "/job:worker/task:0/cpu:0", "/job:worker/task:1/cpu:0"


@pytest.fixture
def cluster() -> InProcessCluster:
    return InProcessCluster(2)


def moved(**changes: object) -> TensorMoved:
    values = {"key": f"{W0};x:0;{W1}", "source": W0, "destination": W1, "nbytes": 2_000_000}
    return TensorMoved(**{**values, "start_s": 10.0, "duration_s": 0.001, **changes})  # type: ignore[arg-type]


# --- traces -----------------------------------------------------------------------------------------------------------


def test_a_traced_step_tells_of_its_transfers(cluster: InProcessCluster) -> None:
    with nf.Graph().as_default() as graph:
        with nf.device(W0):
            x = nf.identity(nf.constant(np.ones((10, 10), np.float32)))
        with nf.device(W1):
            y = x * 2.0
        with Session(cluster, graph, passes="none") as session:
            _, trace = session.run(y, trace=True)
            assert session.last_trace is trace
            session.run(y)
            assert session.last_trace is trace
    [one] = trace.transfers
    assert (one.source, one.destination, one.nbytes, one.via, one.compress) == (W0, W1, 400, "memory", "")
    assert one.duration_s >= 0
    assert one.waited_s >= 0
    assert {o.node for o in trace.ops if o.node.startswith("send ")} == {"send identity"}


def test_lanes_and_tables() -> None:
    trace = Trace(
        (
            NodeFinished("matmul", W0, 10.0, 0.5, 800),
            moved(start_s=10.5, duration_s=0.25, waited_s=0.75, via="shared memory", compress="float16", error=2e-4),
            NodeFinished("add", W1, 10.75, 0.25, 800),
        )
    )
    assert trace.text(8).splitlines() == [
        "1 s from the first event to the last",
        "worker:0  ████····   50 %",
        "worker:1  ░░░░░░██   25 %",
        "",
        "1 transfers, 2 MB:",
        "tensor  from      to        bytes  time    rate        waited  via",
        "x:0     worker:0  worker:1  2 MB   250 ms  0.008 GB/s  750 ms  shared memory, float16 (error 2.0e-04)",
        "",
        "2 ops, 750 ms on all devices:",
        "op      device    time    result",
        "matmul  worker:0  500 ms  800 B",
        "add     worker:1  250 ms  800 B",
    ]
    assert Trace(()).text() == "nothing was traced"


def test_clocks_that_have_nothing_in_common_start_together() -> None:
    trace = Trace((NodeFinished("a", W0, 10.0, 0.004), NodeFinished("b", W1, 90_000.0, 0.004)))
    assert trace.text(4).splitlines()[1:3] == ["worker:0  ████  100 %", "worker:1  ████  100 %"]


def test_long_traces_are_cut() -> None:
    events = [moved(key=f"{W0};t{n}:0;{W1}@{n}", duration_s=0.001 * n) for n in range(50)]
    lines = Trace(tuple(events)).text().splitlines()
    assert "50 transfers, 100 MB; the 20 that took longest:" in lines
    assert "t49:0@49" in "\n".join(lines)
    assert "t5:0" not in "\n".join(lines)


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1e6), st.integers(0, 2**60))))
def test_any_times_can_be_drawn(rows: list[tuple[float, float, float, int]]) -> None:
    events = [moved(start_s=a, duration_s=b, waited_s=c, nbytes=n) for a, b, c, n in rows]
    for line in Trace(tuple(events)).text(30).splitlines()[1 : 1 + bool(rows)]:
        assert len(line) == len("worker:1  ") + 30 + len("    0 %")


def test_the_file_for_perfetto(tmp_path: Path) -> None:
    trace = Trace((NodeFinished("a", W0, 1.0, 0.5, 8), moved(start_s=1.5, duration_s=0.25, waited_s=0.1, via="tcp")))
    trace.save(tmp_path / "t.json")
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["ph"] == "M"}
    assert names[1, 0] == W0
    assert names[2, 2] == "transfers"
    [op, move] = [e for e in events if e["ph"] == "X"]
    assert (op["pid"], op["tid"], op["ts"], op["dur"]) == (1, 1, 1e6, 5e5)
    assert move["args"]["via"] == "tcp"
    assert move["args"]["bytes"] == 2_000_000
    arrow = [(e["ph"], e["pid"], e["ts"]) for e in events if e["ph"] in "sf"]
    assert arrow == [("s", 1, 1.5e6), ("f", 2, 1.75e6)]


# --- 16 bits on the way -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 2**-8), ("float16", 2**-11)])
@pytest.mark.parametrize("of", ["float32", "float64"])
def test_an_edge_in_16_bits(cluster: InProcessCluster, dtype: str, bound: float, of: str) -> None:
    value = np.random.default_rng(0).standard_normal((50, 40)).astype(of)
    with nf.Graph().as_default() as graph:
        with nf.device(W0):
            x = nf.compressed(nf.identity(nf.constant(value)), dtype)
            here = x + 0.0
        with nf.device(W1):
            there = x + 0.0
        with Session(cluster, graph, passes="none") as session:
            (a, b), trace = session.run([here, there], trace=True)
    np.testing.assert_array_equal(a, value)
    np.testing.assert_array_equal(b, value.astype(as_dtype(dtype)).astype(of))
    assert (np.abs(b - value) <= bound * np.abs(value)).all()
    [one] = trace.transfers
    assert one.nbytes == 2 * value.size
    assert one.compress == dtype
    assert one.error == pytest.approx(np.abs(b - value).max() / np.abs(value).max())


def test_the_gradient_comes_back_the_same_way(cluster: InProcessCluster) -> None:
    with nf.Graph().as_default() as graph:
        with nf.device(W0):
            x = nf.identity(nf.constant(np.linspace(0, 1, 7, dtype=np.float32)))
            sent = nf.compressed(x)
        with nf.device(W1):
            y = nf.sum(sent * sent)
        [gradient] = nf.gradients(y, [x])
        with Session(cluster, graph, passes="none") as session:
            value = session.run(gradient)
            rounded = np.linspace(0, 1, 7, dtype=np.float32).astype(as_dtype("bfloat16")).astype(np.float32)
            np.testing.assert_allclose(value, 2 * rounded, rtol=2**-7)


def test_what_cannot_be_compressed() -> None:
    with nf.Graph().as_default():
        with pytest.raises(GraphError, match="bfloat16, float16"):
            nf.compressed(nf.constant(1.0), "int8")
        with pytest.raises(DTypeError, match="only floats"):
            nf.compressed(nf.constant(1))


@given(hnp.arrays(st.sampled_from([np.float32, np.float64]), hnp.array_shapes(max_dims=2)))
def test_the_error_is_what_was_lost(value: np.ndarray) -> None:  # type: ignore[type-arg]
    with np.errstate(all="ignore"):
        sent, error = passage.compress(value, "bfloat16", measured=True)
    assert sent.nbytes == 2 * value.size
    finite = np.abs(value[np.isfinite(value)])
    if finite.size and 1e-37 < finite.max() < 3e38:  # the range of bfloat16's normal numbers
        assert error <= 2**-8
    back = passage.decompress(sent, value.dtype, "bfloat16", "k")
    assert back.dtype == value.dtype
    np.testing.assert_array_equal(np.isnan(back), np.isnan(value))


def test_another_dtype_than_the_plan_expects_is_refused() -> None:
    with pytest.raises(Rejected, match="x should be float32, but float64 came"):
        passage.decompress(np.ones(3), np.dtype(np.float32), "", "x")
    with pytest.raises(Rejected, match="int8 came"):
        passage.decompress(np.ones(3, np.int8), np.dtype(np.float32), "bfloat16", "x")


# --- batches ----------------------------------------------------------------------------------------------------------


def instruction(op: str, destination: str = "") -> Instruction:
    attrs = {"key": "k", "destination": destination} if destination else {}
    return Instruction("n", op, (), (), attrs)  # type: ignore[arg-type]


def test_small_tensors_wait_only_for_others_that_follow_at_once() -> None:
    a, b = instruction("send", W0), instruction("send", W1)
    read, view, work = instruction("read_variable"), instruction("reshape"), instruction("matmul")
    #       0  1     2  3     4  5     6  7     8
    plan = [a, read, b, view, a, work, a, read, b]
    assert passage.followed(plan) == {0}
    assert passage.followed([a, work, a]) == frozenset()
    assert passage.followed([a, a, a]) == {0, 1}
    assert passage.followed([b, a, b, a]) == {0, 1}


def test_long_names_lose_their_middle_and_devices_that_are_not_usual_are_named() -> None:
    name = "everyone/gradients/everyone/dense_3/matmul/matmul.1"
    gpu = "/job:worker/task:1/gpu:0"
    trace = Trace((moved(key=f"{W0};{name}:0;{gpu}", destination=gpu), NodeFinished(name, gpu, 10.0, 0.5, 800)))
    transfer, op = (line for line in trace.text(8).splitlines() if "…" in line)
    assert transfer.startswith("everyone/g…3/matmul/matmul.1:0  worker:0  worker:1/gpu:0 ")
    assert op.startswith("everyone/g…e_3/matmul/matmul.1  worker:1/gpu:0 ")
