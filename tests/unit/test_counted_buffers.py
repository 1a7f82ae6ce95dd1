"""What is counted as needed for the buffers of a plan is what the plan has."""

from __future__ import annotations

import pytest

from nbflow.compile import compile_part
from nbflow.device import parse_device
from nbflow.graph import Graph
from nbflow.op import nbytes_of
from nbflow.optimize.schedule import peak_bytes
from nbflow.partition import partition
from nbflow.placement import place
from nbflow.testing.random_graphs import random_program
from nbflow.transport import DeviceInfo

NAMES = ("/job:worker/task:0", "/job:worker/task:1", "/job:ps/task:0")


@pytest.mark.parametrize("seed", range(12))
def test_no_plan_has_more_in_buffers_than_is_counted(seed: int) -> None:
    graph = Graph()
    program = random_program(seed, list(NAMES), graph, size=60)
    placed = place(graph, [DeviceInfo(parse_device(f"{name}/cpu:0")) for name in NAMES])
    devices = {name: where.device for name, where in placed.items()}
    total: dict[bool, float] = {}
    for tight in (False, True):
        counted = peak_bytes(graph, devices, program.fetches, tight=tight)
        values = frozenset((t.node.name, t.index) for t in program.fetches)
        total[tight] = 0.0
        for part in partition(graph, placed, values):
            here = {
                t.name: (t.node.name, t.index) for t in program.fetches if placed[t.node.name].device == part.device
            }
            plan = compile_part(part, graph, here, tight=tight)
            held = nbytes_of(plan.buffers)
            total[tight] += held
            assert held <= counted[str(part.device)]
    assert total[True] <= total[False]
