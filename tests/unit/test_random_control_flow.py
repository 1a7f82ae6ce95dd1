"""Random loops and branches on random placements, in process: bit-equal to one task, and to the interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nbflow.graph import Graph
from nbflow.inprocess import InProcessCluster
from nbflow.session import Session
from nbflow.testing import Evaluator
from nbflow.testing.random_flow import random_flow

CLUSTER = InProcessCluster(3, 1)
DEVICES = [str(i.spec) for i in CLUSTER.devices()]


def results(seed: int, cluster: Any, devices: list[str], *, state: bool = True) -> list[list[np.ndarray[Any, Any]]]:
    """The fetches of every step."""
    graph = Graph()
    program = random_flow(seed, devices, graph, state=state)
    with Session(cluster, graph, deadline_s=30) as session:
        found = [session.run(list(program.fetches), program.feeds) for _ in range(program.steps)]
        for transport in session.transports.values():
            assert transport.rendezvous.in_flight() == 0  # type: ignore[attr-defined]  # in-process: an Executor
    return found


def compare(one: list[list[Any]], other: list[list[Any]]) -> None:
    for a, b in zip(one, other, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


@given(st.integers(0, 100_000))
@settings(max_examples=40, deadline=None)
def test_placement_does_not_change_a_bit(seed: int) -> None:
    compare(results(seed, None, []), results(seed, CLUSTER, DEVICES))


@given(st.integers(0, 100_000))
@settings(max_examples=40, deadline=None)
def test_a_plan_computes_what_the_interpreter_does(seed: int) -> None:
    graph = Graph()
    program = random_flow(seed, [], graph, state=False)
    with graph.as_default():
        oracle = Evaluator()
        wanted = [oracle.run(list(program.fetches), program.feeds) for _ in range(program.steps)]
    compare(results(seed, None, [], state=False), wanted)
