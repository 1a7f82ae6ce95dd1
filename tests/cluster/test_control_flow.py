"""Loops and branches whose bodies span worker processes: bit-equal to one process; and they end when told to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import nbflow as nf
import nbflow_workers as nw
from nbflow.driver import Driver
from nbflow.errors import Cancelled, DeadlineExceeded
from nbflow.graph import Graph
from nbflow.session import Session
from nbflow.testing.random_flow import random_flow

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with nw.local(workers=2, ps=1) as made:
        yield made


def results(seed: int, cluster: Any, devices: list[str]) -> list[list[np.ndarray[Any, Any]]]:
    """The fetches of every step."""
    graph = Graph()
    program = random_flow(seed, devices, graph, size=3)
    with Session(cluster, graph, deadline_s=60) as session:
        return [session.run(list(program.fetches), program.feeds) for _ in range(program.steps)]


@pytest.mark.parametrize("seed", range(2000, 2020))
def test_worker_processes_do_not_change_a_bit(cluster: Any, seed: int) -> None:
    devices = [str(i.spec) for i in cluster.devices()]
    for a, b in zip(results(seed, None, []), results(seed, cluster, devices), strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


def endless(graph: Graph) -> Any:
    """A loop over two workers that never ends."""

    def body(v: Any) -> Any:
        with nf.device("/job:worker/task:1"):
            half = v * 0.5
        return half * 2.0

    with graph.as_default(), graph.device("/job:worker/task:0"):
        return nf.while_loop(lambda v: v > 0.0, body, [np.float64(1)])


def test_a_loop_over_two_workers_meets_its_deadline(cluster: Any) -> None:
    graph = Graph()
    out = endless(graph)
    with Session(cluster, graph) as session:
        with pytest.raises(DeadlineExceeded):
            session.run(out, deadline_s=1.0)
        with graph.as_default():
            assert session.run(nf.constant(2.0) * 3.0) == 6.0


def test_a_loop_over_two_workers_is_cancelled(cluster: Any) -> None:
    graph = Graph()
    (out,) = endless(graph)
    with Session(cluster, graph) as session:
        prepared = session.prepare([out], {})
        pending = Driver(session.transports, "cancelled").start(prepared.bundle_ids, 0, {}, deadline_s=60)
        answers = pending.cancel("the test wants it to end")
        assert {a.task for a in answers} == {"/job:worker/task:0", "/job:worker/task:1"}
        assert not any(a.error for a in answers)
        with pytest.raises(Cancelled, match="the test wants it to end"):
            pending.wait()
        with graph.as_default():
            assert session.run(nf.constant(2.0) * 3.0) == 6.0
