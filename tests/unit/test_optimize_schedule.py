"""The order of ops: what it may not change, what it gains, and that its model of memory is that of the plans."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import nbflow as nf
from nbflow import prepare
from nbflow.graph import Graph
from nbflow.optimize import schedule
from nbflow.session import Session
from nbflow.spec import TensorSpec

F32 = np.dtype(np.float32)


@pytest.fixture
def graph() -> Iterator[Graph]:
    with Graph().as_default() as made:
        yield made


def branches(x: nf.Tensor, count: int) -> nf.Tensor:
    """All branches are written first, then joined: as written, all are alive at once."""
    wide = [nf.tanh(x * float(n + 2)) for n in range(count)]
    return nf.add_n([nf.sum(w, axis=0) for w in wide])


def buffers(session: Session, fetches: list[nf.Tensor], specs: dict[nf.Tensor, TensorSpec]) -> int:
    prepared = session.prepare(fetches, specs)
    return sum(b.nbytes or 0 for bundle in prepared.bundles.values() for p in bundle.plans for b in p.buffers)


def test_branches_run_one_after_the_other(graph: Graph) -> None:
    x = nf.placeholder("float32", (512, 512), name="x")
    y = branches(x, 8)
    specs = {x: TensorSpec((512, 512), F32)}
    with Session(None, graph, passes="none") as as_written, Session(None, graph, passes="schedule") as scheduled:
        before, after = buffers(as_written, [y], specs), buffers(scheduled, [y], specs)
        assert before > 8 * 4 * 512 * 512
        assert after < 3 * 4 * 512 * 512
        ((device, (told_before, told_after)),) = peaks(scheduled, y).items()
        # The sum that is fetched is no buffer of the plan.
        assert (told_before, told_after) == (before + 2048, after + 2048), device
        value = np.random.default_rng(0).normal(size=(512, 512)).astype(F32)
        np.testing.assert_array_equal(as_written.run(y, {x: value}), scheduled.run(y, {x: value}))


def peaks(session: Session, y: nf.Tensor) -> schedule.Peaks:
    return prepare.peaks(session.graph, [y], prepare.Setting(session.cluster.devices(), {}, session.passes))


def test_a_small_graph_stays_as_it_was_written(graph: Graph) -> None:
    x = nf.placeholder("float32", (2, 2), name="x")
    y = branches(x, 4)
    with Session(None, graph, passes="schedule") as session:
        prepared = session.prepare([y], {x: TensorSpec((2, 2), F32)})
        assert list(prepared.graph.nodes.keys()) == [n for n in graph.nodes.keys() if n in prepared.graph.nodes.keys()]


def test_an_order_that_takes_more_is_not_taken(graph: Graph) -> None:
    x = nf.placeholder("float32", (512, 512), name="x")
    y = nf.sum(nf.tanh(nf.tanh(x)))
    with Session(None, graph, passes="schedule") as session:
        ((before, after),) = peaks(session, y).values()
        assert before == after


def test_looks_at_a_variable_stay_before_its_update(graph: Graph) -> None:
    w = nf.Variable(np.ones((600, 600), np.float32), name="w")
    views = [nf.sum(nf.matrix_transpose(w.to_tensor()) * float(n)) for n in range(4)]
    first = w.assign_add(np.ones((600, 600), np.float32))
    with nf.control_dependencies([first]):
        second = w.assign_sub(np.full((600, 600), 3.0, np.float32))
        late = w.read()
    fetches = [*views, nf.sum(first), nf.sum(second), nf.sum(late)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule, "_is_better", lambda after, before: True)
        with Session(None, graph, passes="schedule") as session:
            found = [float(v) / 360_000 for v in session.run(fetches)]
    assert found == [0.0, 1.0, 2.0, 3.0, 2.0, -1.0, 2.0]


def test_updates_that_nothing_orders_stay_in_the_order_in_which_they_were_made(graph: Graph) -> None:
    w = nf.Variable([1.0], name="w")
    first = w.assign([2.0])
    second = w.assign_add([5.0])

    def last_ready_first(model: schedule._Model) -> list[int]:
        order: list[int] = []
        while len(order) < len(model.before):
            order.append(max(i for i, b in enumerate(model.before) if i not in order and b <= set(order)))
        return order

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule, "WORTH_BYTES", 0)
        patch.setattr(schedule, "_is_better", lambda after, before: True)
        patch.setattr(schedule._Model, "greedy", last_ready_first)
        with Session(None, graph, passes="schedule") as session:
            found = session.run([second, first])
    assert [v.tolist() for v in found] == [[7.0], [2.0]]


def test_a_report_tells_what_a_run_takes(graph: Graph) -> None:
    x = nf.placeholder("float32", (512, 512), name="x")
    with Session(None, graph) as session:
        text = str(session.optimization([branches(x, 8)]))
    assert "memory on /job:local/task:0/cpu:0: 9.46M → 2.12M" in text
