"""Random graphs on random placements over real worker processes: bit-equal to one process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import nbflow_workers as nw
from nbflow.graph import Graph
from nbflow.session import Session
from nbflow.testing.random_graphs import random_program

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with nw.local(workers=2, ps=1) as made:
        yield made


def results(seed: int, cluster: Any, devices: list[str]) -> list[list[np.ndarray[Any, Any]]]:
    """The fetches of every step."""
    graph = Graph()
    program = random_program(seed, devices, graph)
    with Session(cluster, graph, deadline_s=30) as session:
        return [session.run(list(program.fetches), program.feeds) for _ in range(program.steps)]


@pytest.mark.parametrize("seed", range(1000, 1040))
def test_worker_processes_do_not_change_a_bit(cluster: Any, seed: int) -> None:
    devices = [str(i.spec) for i in cluster.devices()]
    for a, b in zip(results(seed, None, []), results(seed, cluster, devices), strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)
