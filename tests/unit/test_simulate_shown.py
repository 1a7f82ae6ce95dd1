"""`nbflow simulate` and `%cluster simulate`: what they take, print and draw."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import nbflow as nf
from nbflow.errors import GraphError
from nbflow.graph import Graph
from nbflow.simulate.asked import Asked
from nbflow.simulate.plot import svg
from nbflow.simulate.zoo import step_of
from nbflow_kernel import simulation
from nbflow_kernel.magics import cluster
from nbflow_workers.cli import nbflow as command_line
from tests.unit.test_magics import Run, graph, run, shell  # noqa: F401  # fixtures

SCRIPT = """
import nbflow as nf
loss = nf.mean(nf.layers.dense(nf.random.normal((8, 4)), 1) ** 2)
step = nf.optim.SGD(0.1).minimize(loss)
"""


def call(*arguments: str) -> Result:
    return CliRunner().invoke(command_line, ["simulate", *arguments])


def test_the_command_prints_a_table_and_draws(tmp_path: Path) -> None:
    picture = tmp_path / "curve.svg"
    done = call("mlp", "--workers", "20", "--device", "k40/link=1e9", "--plot", str(picture))
    assert done.exit_code == 0, done.output
    assert "mlp, simulated" in done.output
    assert [line.split()[0] for line in done.output.splitlines()[-6:]] == ["1", "2", "4", "8", "16", "20"]
    root = ET.fromstring(picture.read_text())
    texts = {e.text for e in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"speed-up", "ideal", "share of the time in use"} <= texts
    assert "prefers-color-scheme: dark" in picture.read_text()


def test_the_command_prints_json_that_a_seed_repeats() -> None:
    asked = ("mlp", "-w", "2,4", "--stragglers", "lognormal:0.3", "--steps", "5", "--json")
    first, again, other = (json.loads(call(*asked, "--seed", seed).output) for seed in ("1", "1", "2"))
    assert first == again
    assert first["predictions"] != other["predictions"]
    assert [p["workers"] for p in first["predictions"]] == [1, 2, 4]
    backed = json.loads(call("mlp", "-w", "4", "--backups", "2", "--steps", "3", "--json").output)
    assert [p["backups"] for p in backed["predictions"]] == [0, 1, 2]


@pytest.mark.parametrize(
    ("device", "shown"),
    [
        ("op=1ms/link=1e9", "1 ms an op, link 1 GB/s"),
        ("flops=300", "300 FLOP/s"),
        ("flops=1e19/bytes=4.4e12", "1e+04 PFLOP/s, memory 4.4 TB/s"),
        ("latency=10us", "latency 10 µs"),
    ],
)
def test_the_command_takes_a_machine_of_which_little_is_known(device: str, shown: str) -> None:
    done = call("mlp", "-w", "2", "--device", device)
    assert done.exit_code == 0, done.output
    assert f"{device}: {shown}\n" in done.output


def test_the_command_takes_a_strategy() -> None:
    ring = call("mlp", "-w", "2,4", "--strategy", "ring")
    assert ring.exit_code == 0, ring.output
    assert "strategy: a ring of the workers" in ring.output
    wrong = call("mlp", "-w", "2", "--strategy", "rings")
    assert wrong.exit_code == 1
    assert "write sync, ring, async" in wrong.output


def test_the_command_takes_a_step_of_a_script(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    done = call(f"{script}:step", "-w", "2")
    assert done.exit_code == 0, done.output
    assert "train.py:step, simulated" in done.output
    assert "leaves no training step under 'loss'" in call(f"{script}:loss").output
    assert "there is no file" in call(f"{tmp_path}/none.py:step").output


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("alexnet",), "no model is called 'alexnet'; there are mlp"),
        (("--workers", "many"), "not numbers of workers: 'many'"),
        (("--workers", "0"), "not numbers of workers: '0'"),
        (("--device", "abacus"), "not a machine: 'abacus'"),
        (("--stragglers", "some"), "not a distribution of stragglers"),
        (("--plot", "curve.bmp"), "does not end in .svg"),
        (("--backups", "1", "--ps", "0"), "need ps tasks"),
    ],
)
def test_what_makes_no_sense_is_said_in_one_line(arguments: tuple[str, ...], text: str) -> None:
    done = call(*arguments)
    assert done.exit_code != 0
    assert text in done.output
    assert "Traceback" not in done.output


def test_a_drawing_of_backups() -> None:
    found = Asked("3", backups=2, steps=3, stragglers="slow:0.5,3").answer(step_of("mlp"), "mlp & co")
    text = svg(found)
    assert ET.fromstring(text) is not None
    assert "mlp &amp; co · 3 workers" in text
    assert "normalised speed-up" in text
    assert "shortest step with" in str(found)


def test_the_magic_shows_a_picture_and_a_table(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    shown: list[dict[str, Any]] = []
    monkeypatch.setattr(cluster, "publish_display_data", lambda data, metadata: shown.append(data))
    assert "there is no training step yet" in str(run("%cluster simulate").error)
    run("loss = nf.mean(nf.layers.dense(nf.random.normal((8, 4)), 1) ** 2)", "c1")
    run("step = nf.optim.SGD(0.1).minimize(loss, strategy=nf.train.DataParallel())", "c2")
    said = []
    for line in ("%cluster simulate --workers 8 --device a100", "%cluster simulate step -w 2,3 --ps 1"):
        found = run(line)
        assert found.error is None
        said.append(found.text)
    assert ["a100" in text for text in said] == [True, False]
    assert all(text.count("\n") > 3 for text in said), "a table, not only its title"
    assert all(data["text/plain"].startswith("a picture of") for data in shown)
    assert all(data["image/png"] for data in shown)
    assert "is no training step" in str(run("%cluster simulate loss").error)
    assert "not a machine" in str(run("%cluster simulate --device abacus").error)


def test_what_a_notebook_keeps(graph: Graph) -> None:  # noqa: F811
    loss = nf.mean(nf.layers.dense(nf.random.normal((8, 4)), 1) ** 2)
    first = nf.optim.SGD(0.1).minimize(loss, strategy=nf.train.DataParallel())
    nf.optim.Adam(0.1).minimize(loss)
    assert simulation.last_step(graph) is first
    data, metadata = simulation.bundle(simulation.answer(Asked("4")))
    assert set(data) == {"image/png", "text/plain"}
    assert metadata["image/png"]["width"] == 880
    assert "SGD/step, simulated" in data["text/plain"]
    with pytest.raises(GraphError, match="is no training step"):
        simulation.answer(Asked("4"), 3)
