"""What the documentation says is so: its Python runs, its links lead somewhere, its list of ops is up to date."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import nbflow as nf
from nbflow import op as ops
from nbflow.graph import Graph
from nbflow_kernel.magics import MAGICS
from nbflow_workers import spec
from nbflow_workers.cli import nbflow as command_line
from nbflow_workers.security import Token

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# The names of the public API that this release has: they must stay.
NAMES = re.findall(
    r"\S+",
    """
    placeholder constant Variable device name_scope control_dependencies colocate_with gradients
    stop_gradient group get_graph Graph set_seed run Session placement show set_cluster errors nn.relu
    nn.gelu nn.silu nn.sigmoid nn.softmax nn.log_softmax nn.dropout nn.conv2d nn.depthwise_conv2d
    nn.max_pool2d nn.avg_pool2d nn.batch_norm nn.layer_norm nn.embedding_lookup nn.attention
    nn.softmax_cross_entropy nn.sigmoid_cross_entropy random.normal random.uniform
    random.truncated_normal random.randint random.permutation random.bernoulli layers.dense
    layers.conv2d layers.embedding layers.batch_norm layers.layer_norm layers.multi_head_attention
    data.from_arrays data.Dataset.shuffle data.Dataset.repeat data.Dataset.batch data.Dataset.map
    data.Dataset.prefetch data.Dataset.next data.from_files data.from_generator queue feed Queue.enqueue
    Queue.dequeue Queue.close optim.SGD optim.Adam optim.AdamW optim.RMSProp optim.Adagrad
    optim.Optimizer.minimize train.DataParallel train.run train.Run.stop train.Run.pause train.Run.wait
    train.Run.history cluster.local cluster.attach testing.check_gradients testing.check_transport
    Variable.assign Variable.assign_add Variable.read Graph.as_default Graph.digest Graph.to_proto
    Graph.from_proto errors.NbflowError errors.GraphError errors.ShapeError errors.DTypeError
    errors.NameInUseError errors.StaleError errors.PlacementError errors.RunError errors.OpError
    errors.Cancelled errors.DeadlineExceeded errors.WorkerError errors.WorkerLost errors.Unauthenticated
    errors.VersionMismatch errors.Rejected errors.CheckpointError errors.DataError
    export load train.save train.restore train.Run.checkpoint
    """,
)


@pytest.fixture
def graph() -> Iterator[Graph]:
    nf.set_cluster(None)
    with Graph().as_default() as made:
        yield made
    nf.set_cluster(None)


def starts_processes(page: Path) -> bool:
    return "cluster.local(" in "".join(BLOCK.findall(page.read_text()))


def with_python() -> list[Any]:
    pages = [p for p in PAGES if BLOCK.search(p.read_text())]
    return [pytest.param(p, marks=[pytest.mark.cluster] * starts_processes(p), id=p.name) for p in pages]


@pytest.mark.parametrize("page", with_python())
def test_the_python_of_a_page_runs(
    page: Path, graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The blocks of a page are one program, as a reader would type them beside the examples' data."""
    text = page.read_text()
    (tmp_path / "data").symlink_to(ROOT / "examples" / "data")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    for block in BLOCK.finditer(text):
        line = text[: block.start(1)].count("\n")
        if re.search(r"^\s*[%!]", block[1], re.MULTILINE):
            continue  # magics: tests/kernel runs those
        exec(compile("\n" * line + block[1], str(page), "exec"), names)
    capsys.readouterr()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    links = [x for x in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if not x.startswith(("http:", "https:", "mailto:"))]
    missing = [x for x in links if not (page.parent / x).exists()]
    named = set(re.findall(r"`((?:docs|examples|scripts|benchmarks|tests)/[\w./-]+\w)`", text))
    missing += [x for x in named if not (ROOT / x).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_names_of_nf_exist(page: Path) -> None:
    code = re.findall(r"`([^`\n]+)`", text_of(page)) + BLOCK.findall(page.read_text())
    used = {m for piece in code for m in re.findall(r"\bnf((?:\.[A-Za-z_]\w*)+)", piece)}
    missing = [name for name in sorted(used) if not exists(name[1:])]
    assert not missing


def text_of(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def exists(dotted: str) -> bool:
    found: Any = nf
    for part in dotted.split("."):
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_there(name: str) -> None:
    assert exists(name), f"nf.{name} is promised"


def test_the_list_of_ops_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "ops-table"), "--check"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    page = (ROOT / "docs" / "ops.md").read_text()
    assert [name for name in ops.registered() if f"| `{name}` |" not in page] == []


def test_magics_and_commands_of_the_pages_exist() -> None:
    text = "".join(page.read_text() for page in PAGES)
    magics = {m for family in MAGICS for kind in family.magics.values() for m in kind}
    assert {m for m in re.findall(r"`%%?(\w+)", text) if m != "load_ext"} <= magics
    commands = set(re.findall(r"(?:`|^    )nbflow (\w+)", text, re.MULTILINE))
    assert commands <= set(command_line.list_commands(click.Context(command_line)))
    worker = command_line.get_command(click.Context(command_line), "worker")
    assert worker is not None
    options = {option for parameter in worker.params for option in parameter.opts}
    lines = [line for line in text.splitlines() if re.match(r"\s+nbflow worker ", line)]
    assert lines
    assert {option for line in lines for option in re.findall(r"--[\w-]+", line)} <= options


def test_cluster_files_of_several_workers_join_as_the_page_says(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "workers.md").read_text()
    names: dict[str, Any] = {}
    exec(next(block for block in BLOCK.findall(page) if "def join" in block), names)
    token = Token("0123456789abcdefghij")
    for number in range(2):
        entry = spec.Entry("worker", number, f"host{number}:7077")
        spec.Spec(f"w{number}", token, f"certificate {number}\n".encode(), (entry,)).save(tmp_path / f"w{number}.json")
    names["join"]([tmp_path / "w0.json", tmp_path / "w1.json"], tmp_path / "lab.json")
    whole = spec.load(tmp_path / "lab.json")
    assert [w.address for w in whole.workers] == ["host0:7077", "host1:7077"]
    assert whole.ca == b"certificate 0\ncertificate 1\n"
    assert os.stat(tmp_path / "lab.json").st_mode & 0o077 == 0
