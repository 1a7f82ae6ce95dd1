"""Random graphs on random placements, in process: bit-equal to one task, and to an interpreter without any of this."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbflow.graph import Graph
from nbflow.inprocess import InProcessCluster
from nbflow.session import Session
from nbflow.testing.random_graphs import random_program

CLUSTER = InProcessCluster(3, 1)
DEVICES = [str(i.spec) for i in CLUSTER.devices()]


def results(seed: int, cluster: Any, devices: list[str]) -> list[list[np.ndarray[Any, Any]]]:
    """The fetches of every step."""
    graph = Graph()
    program = random_program(seed, devices, graph)
    with Session(cluster, graph, deadline_s=30) as session:
        found = [session.run(list(program.fetches), program.feeds) for _ in range(program.steps)]
        for transport in session.transports.values():
            assert transport.rendezvous.in_flight() == 0  # type: ignore[attr-defined]  # in-process: an Executor
    return found


@given(st.integers(0, 100_000))
@settings(max_examples=150, deadline=None)
def test_placement_does_not_change_a_bit(seed: int) -> None:
    alone = results(seed, None, [])
    spread = results(seed, CLUSTER, DEVICES)
    for a, b in zip(alone, spread, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("seed", range(5))
def test_the_same_seed_gives_the_same_graph_wherever_it_runs(seed: int) -> None:
    def edges(devices: list[str]) -> list[tuple[str, tuple[str, ...]]]:
        graph = Graph()
        random_program(seed, devices, graph)
        return [(n.op, tuple(t.name for t in n.inputs)) for n in graph.nodes.values()]

    assert edges([]) == edges(DEVICES)
