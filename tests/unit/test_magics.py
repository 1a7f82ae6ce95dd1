"""The extension in a shell of this process: hooks, magics, their help and completion, short errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from traitlets.config import Config

import nbflow as nf
from nbflow.graph import Graph
from nbflow_kernel import extension
from nbflow_kernel.magics.graph import diff

Run = Callable[..., Any]


@pytest.fixture
def graph() -> Iterator[Graph]:
    with Graph().as_default() as made:
        yield made


@pytest.fixture
def shell(graph: Graph) -> Iterator[InteractiveShell]:
    # Without history: its database and thread would outlive the test.
    made = InteractiveShell(
        config=Config({"HistoryManager": {"enabled": False}, "InteractiveShell": {"colors": "nocolor"}})
    )
    extension.load(made)
    made.user_ns["nf"] = nf
    yield made
    extension.unload(made)


class Result:
    """What a cell printed and raised."""

    def __init__(self, shell: InteractiveShell, source: str, cell_id: str | None) -> None:
        with capture_output() as captured:
            self.result = shell.run_cell(source, store_history=True, cell_id=cell_id)
        self.text = captured.stdout + captured.stderr
        self.error = self.result.error_before_exec or self.result.error_in_exec


@pytest.fixture
def run(shell: InteractiveShell) -> Run:
    return lambda source, cell_id=None: Result(shell, source, cell_id)


# --- hooks -----------------------------------------------------------------------------------------------------------


def test_a_cell_says_what_it_built(run: Run, graph: Graph) -> None:
    assert run("x = nf.constant(1.0, name='x')", "c1").text == "graph: +1 op\n"
    assert graph.nodes["x"].owner.label == "In[1]"
    assert run("x = nf.constant(1.0, name='x')", "c1").text == "graph: 1 unchanged op\n"
    assert run("1 + 1").error is None
    assert run("print('hi')").text == "hi\n"


def test_editing_a_cell_replaces_its_ops(run: Run, graph: Graph) -> None:
    run("x = nf.constant([1.0], name='x')", "c1")
    run("y = nf.identity(x, name='y')", "c2")
    assert run("x = nf.constant([1.0, 2.0], name='x')", "c1").text == "graph: ~1 op, stale: In[2] — run it again\n"
    assert list(graph.nodes.keys()) == ["y", "x"]
    stale = run("nf.run(y)")
    assert isinstance(stale.error, nf.errors.StaleError)
    assert "In[2]" in stale.text


def test_a_failing_cell_keeps_ops_and_names(run: Run, graph: Graph, shell: InteractiveShell) -> None:
    run("x = nf.constant(1.0, name='x')", "c1")
    before = shell.user_ns["x"]
    failed = run("x = nf.constant(2.0, name='x')\n1 / 0", "c1")
    assert "graph: unchanged; In[2] failed, so its ops from the last run stay (x as before)" in failed.text
    assert shell.user_ns["x"] is before
    assert nf.run(before) == 1.0


def test_a_failing_first_run_leaves_nothing(run: Run, graph: Graph) -> None:
    failed = run("x = nf.constant(2.0, name='x')\n1 / 0", "c1")
    assert "In[1] failed, and what it had built (1 op) is gone" in failed.text
    assert not graph.nodes
    assert "no longer in the graph: In[1] ran again, or failed" in run("nf.run(x)").text


def test_an_interrupt_keeps_what_was_built(run: Run, graph: Graph) -> None:
    run("x = nf.constant(2.0, name='x')\nraise KeyboardInterrupt", "c1")
    assert list(graph.nodes.keys()) == ["x"]


@pytest.mark.parametrize("source", ["x = nf.constant(1.0, name='x'", "%nonsense", "", "   "])
def test_cells_that_never_start(run: Run, graph: Graph, source: str) -> None:
    run(source, "c1")
    assert graph.pending is None
    run("x = nf.constant(1.0, name='x')", "c1")
    assert graph.pending is None
    assert list(graph.nodes.keys()) == ["x"]


def test_a_cell_run_by_a_cell_belongs_to_it(run: Run, graph: Graph) -> None:
    run("a = nf.constant(1.0, name='a')\nget_ipython().run_cell(\"b = nf.constant(2.0, name='b')\")", "c1")
    assert {n.owner.id for n in graph.nodes.values()} == {"cell:c1"}
    assert graph.pending is None


def test_a_cell_that_unloads_the_extension(run: Run, graph: Graph, shell: InteractiveShell) -> None:
    run("a = nf.constant(1.0, name='a')", "c1")
    extension.unload(shell)
    assert "%cluster" not in shell.magics_manager.magics["line"]
    run("b = nf.constant(1.0, name='b')", "c2")
    assert graph.nodes["b"].owner.id == "script"
    extension.load(shell)


def test_the_header_names_the_cell(run: Run, graph: Graph) -> None:
    run("%%graph model\nw = nf.Variable([1.0], name='w')\nnf.run(w.assign([5.0]))")
    assert graph.nodes["w"].owner.id == "name:model"
    assert "(1 kept)" in run("%%graph model\nw = nf.Variable([2.0], name='w')").text
    assert nf.run(graph.nodes["w/read"].outputs[0]) == 5.0
    assert "(1 reset)" in run("%%graph model --reinit\nw = nf.Variable([2.0], name='w')").text
    assert nf.run(graph.nodes["w/read"].outputs[0]) == 2.0


def test_the_header_keeps_line_numbers(run: Run, graph: Graph) -> None:
    run("%%graph model\n\nx = nf.constant(1.0, name='x')")
    assert graph.nodes["x"].line == 3


def test_taking_over(run: Run, graph: Graph) -> None:
    run("x = nf.constant(1.0, name='x')", "c1")
    assert "defined by In[1]" in run("x = nf.constant(2.0, name='x')", "c2").text
    assert "took over from In[1]" in run("%%graph --replace\nx = nf.constant(2.0, name='x')", "c2").text


def test_a_bad_header_explains_itself(run: Run) -> None:
    answer = run("%%graph a b\nx = 1")
    assert "UsageError" in answer.text
    assert "usage: %%graph" in answer.text


def test_cells_of_other_threads_belong_to_the_running_one(run: Run, graph: Graph, shell: InteractiveShell) -> None:
    def subshell() -> None:
        hooks = extension.loaded(shell).cells
        hooks.pre_run_cell(None)
        hooks.post_run_cell(None)

    shell.user_ns["subshell"] = subshell
    answer = run(
        "import threading\nt = threading.Thread(target=subshell); t.start(); t.join()\nx = nf.constant(1.0, name='x')",
        "c1",
    )
    assert answer.text == "graph: +1 op\n"
    assert graph.nodes["x"].owner.id == "cell:c1"


# --- magics ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("magic", ["%cluster", "%graph", "%placement", "%%graph"])
def test_help(shell: InteractiveShell, magic: str) -> None:
    found = shell.object_inspect(magic)
    assert found["found"]
    assert "usage: %" in found["docstring"]


def test_unknown_verbs_list_what_exists(run: Run) -> None:
    for magic in ("cluster", "graph"):
        text = run(f"%{magic} nonsense").text
        assert "UsageError" in text
        assert "nonsense" in text
        for verb in {"cluster": ("up", "attach", "down"), "graph": ("show", "gc", "reset")}[magic]:
            assert verb in text


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("%cluster ", {"up", "attach", "ps", "devices", "down", "save", "scale", "detach"}),
        ("%cluster a", {"attach"}),
        ("%cluster up ", {"local"}),
        ("%cluster up local --", {"--ps", "--gpus", "--name"}),
        ("%graph r", {"reset"}),
        ("%placement lo", {"loss"}),
    ],
)
def test_completion(shell: InteractiveShell, line: str, wanted: set[str]) -> None:
    shell.user_ns["loss"] = nf.constant(1.0)
    with provisionalcompleter():
        found = {line[: c.start] + c.text for c in shell.Completer.completions(line, len(line))}
    assert {line[: line.rfind(" ") + 1] + word for word in wanted} <= found


def test_without_a_cluster(run: Run) -> None:
    assert "no cluster: everything runs in this process" in run("%cluster").text
    for verb in ("ps", "devices", "down", "scale -w 2"):
        assert "WorkerError" in run(f"%cluster {verb}").text
    assert "no launcher is called 'slurm9'" in run("%cluster up slurm9").text
    assert "NBFLOW_NOT_SET is not set" in run("%cluster attach h:1 --token-env NBFLOW_NOT_SET").text


def test_placement_of_names_and_of_the_last_run(run: Run, shell: InteractiveShell) -> None:
    assert "nothing has run yet" in run("%placement").text
    run("y = nf.constant(1.0, name='x') + nf.placeholder('float32', (), name='p')")
    table = shell.run_line_magic("placement", "y")
    assert [row[0] for row in table.rows] == ["p", "x", "add"]
    assert all(row[2].endswith("cpu:0") for row in table.rows)
    assert str(table).splitlines()[1].split() == ["op", "asked", "actual", "predicted", "measured", "why"]
    assert "<table>" in table.html()
    run("nf.run(y, {'p': 1.0} and {nf.get_graph().nodes['p'].outputs[0]: 1.0})")
    assert "add" in [row[0] for row in shell.run_line_magic("placement", "").rows]
    assert "neither a Python name" in run("%placement nonsense").text


def test_graph_gc_and_reset(run: Run, graph: Graph, shell: InteractiveShell) -> None:
    run("x = nf.constant(1.0, name='x')", "c1")
    run("y = nf.identity(x, name='y')", "c2")
    run("z = nf.constant(1.0, name='z')", "c3")
    run("del y, z")
    assert [row[0] for row in shell.run_line_magic("graph", "gc").rows] == ["In[2]", "In[3]"]
    assert set(graph.nodes.keys()) == {"x", "y", "z"}
    shell.run_line_magic("graph", "gc -f")
    assert set(graph.nodes.keys()) == {"x"}
    assert "1 ops are gone" in run("%graph reset").text
    assert not graph.nodes
    assert run("x = nf.constant(1.0, name='x')", "c1").text == "graph: +1 op\n"


def test_graph_diff_shows_what_the_optimizer_did(run: Run, graph: Graph) -> None:
    assert "nothing has run yet" in run("%graph diff").text
    run("x = nf.placeholder('float32', (3,), name='x')\ny = nf.add(nf.tanh(x, name='a'), nf.tanh(x, name='b') * 1.0)")
    shown = run("%graph diff y").text
    assert "6 ops before the passes, 3 after:" in shown
    assert "In[2], line 2" in shown
    assert "is the same as a" in shown
    run("nf.run(y, {x: [1, 2, 3]})")
    assert "is the same as a" in run("%graph diff").text
    assert "neither a Python name" in run("%graph diff nothing").text
    with nf.optimize.disabled():
        assert "no pass is on" in run("%graph diff y").text
    tables = diff([graph.nodes["add"].outputs[0]])
    assert "<td" in tables[0].html()
    assert "is the same as a" in tables[1].html()


# --- errors ----------------------------------------------------------------------------------------------------------


def test_errors_are_short_and_complete(run: Run) -> None:
    run("x = nf.placeholder('float32', (3,), name='x')", "c1")
    answer = run("\ny = nf.matmul(\n    x, nf.constant([[1.0]], name='c'))", "c2")
    assert "ShapeError" in answer.text
    assert "(1, 3) and (1, 1) do not multiply" in answer.text
    assert "In[2], line" in answer.text
    assert "ops/linalg.py" not in answer.text
    assert len(answer.text.splitlines()) < 10
    full = run("%tb").text
    assert "linalg.py" in full


def test_other_errors_look_as_ever(run: Run) -> None:
    assert "ZeroDivisionError" in run("1 / 0").text
    assert "KeyboardInterrupt" in run("raise KeyboardInterrupt").text


def test_a_graph_shows_itself(run: Run, shell: InteractiveShell, graph: Graph) -> None:
    run("x = nf.constant(1.0, name='x')", "c1")
    data, _ = shell.display_formatter.format(graph)
    assert {"image/png", "text/plain"} <= set(data)
    assert data["text/plain"].startswith("1 op")


# --- %timeline -------------------------------------------------------------------------------------------------------


def test_timeline_shows_the_last_traced_step(run: Run, tmp_path: Any) -> None:
    assert "run a step with trace=True" in run("%timeline").text
    run("x = nf.constant([1.0, 2.0])\ny = nf.negative(x)")
    assert run("value, _ = nf.run(y, trace=True)").error is None
    shown = run(f"%timeline -w 20 --save {tmp_path}/t.json").text
    assert "from the first event to the last" in shown
    assert "ops, " in shown
    assert "ui.perfetto.dev" in shown
    assert (tmp_path / "t.json").stat().st_size > 0
    assert "between 10 and 1000" in run("%timeline -w 3").text
