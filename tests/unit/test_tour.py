"""The tour runs, quickly, and shows every stage; a plan prints as what it does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

import nbflow as nf
from nbflow.compile import compile_part
from nbflow.explain import explain_plan
from nbflow.graph import Graph
from nbflow.inprocess import InProcessCluster
from nbflow.partition import partition
from nbflow.placement import place

TOUR = Path(__file__).parents[2] / "examples" / "00_tour.py"
STAGES = ["A cell", "The graph", "Prune", "Replicate", "Partition", "Compile", "Execute", "Events", "Draw"]
# Under 5 s on a machine of its own, which a machine that runs other tests at the same time is not.
LIMIT_S = 20.0


def test_the_tour_runs_and_shows_every_stage(tmp_path: Path) -> None:
    picture = tmp_path / "graph.png"
    done = subprocess.run(
        [sys.executable, "-W", "error", str(TOUR), str(picture)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    titles = [line.split(". ", 1)[1] for line in done.stdout.splitlines() if line[:1].isdigit()]
    assert len(titles) == len(STAGES)
    assert all(title.startswith(stage) for title, stage in zip(titles, STAGES, strict=True)), titles
    assert "Traceback" not in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_a_plan_prints_feeds_constants_instructions_buffers_and_fetches() -> None:
    with Graph().as_default() as graph:
        x = nf.placeholder("float32", (4, 3), name="x")
        with nf.device("/job:worker/task:0"):
            hidden = nf.matmul(x, nf.constant(np.ones((3, 2), np.float32), name="ones"), name="hidden")
            wide = nf.matmul(hidden, nf.constant(np.ones((2, 5), np.float32)), name="wide")
        with nf.device("/job:worker/task:1"):
            total = nf.sum(wide, name="total")
    infos = InProcessCluster(workers=2).devices()
    placement = place(graph, infos)
    first, second = partition(graph, placement, frozenset({("total", 0)}))
    text = explain_plan(compile_part(first, graph, {}))
    assert text.startswith("/job:worker/task:0/cpu:0: 3 instructions")
    assert "= x  float32[4,3]" in text
    assert "= float32 array of shape (2, 5)" in text
    assert "b0 float32[4,2]" in text
    assert "in b0" in text
    assert "send s4 to /job:worker/task:1/cpu:0" in text
    assert next(line for line in text.splitlines() if "# hidden" in line).split()[1:4] == ["s2", "=", "matmul(s0,"]
    other = explain_plan(compile_part(second, graph, {total.name: ("total", 0)}))
    assert "s0 = recv from /job:worker/task:0/cpu:0" in other
    assert other.splitlines()[-1] == "  fetch  total = s1"
