"""Cells in a real kernel: edited, run again, failing, interrupted, deleted."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

import pytest

from tests.kernel.conftest import Frontend, is_progress

pytestmark = pytest.mark.kernel

DATA = """import numpy as np, nbflow as nf
X, Y = np.random.default_rng(0).normal(size=(64, 12)).astype("float32"), np.arange(64) % 10
batch = nf.data.from_arrays({"x": X, "y": Y}).repeat().batch(16).next()"""
MODEL = """h = nf.layers.dense(batch["x"], UNITS, activation=nf.nn.relu, name="hidden")
logits = nf.layers.dense(h, 10, name="logits")
loss = nf.mean(nf.nn.softmax_cross_entropy(logits, batch["y"]))"""
STEP = "step = nf.optim.SGD(0.1).minimize(loss)"
TRAIN = "run = nf.train.run(step, steps=20, metrics={'loss': loss}, every=5)"


def value(kernel: Frontend, expression: str) -> Any:
    answer = kernel.run(f"print(repr({expression}))")
    assert not answer.error, answer.text
    return ast.literal_eval(answer.text.strip())


def names(kernel: Frontend) -> set[str]:
    return set(value(kernel, "list(nf.get_graph().nodes.keys())"))


def run_all(kernel: Frontend) -> None:
    cells = [(DATA, "data"), (MODEL.replace("UNITS", "8"), "model"), (STEP, "step"), (TRAIN, "train")]
    for code, cell_id in cells:
        answer = kernel.run(code, cell_id)
        assert not answer.error, answer.text


def test_editing_the_hidden_units(kernel: Frontend) -> None:
    run_all(kernel)
    before = names(kernel)
    bias = value(kernel, "nf.run(nf.get_graph().nodes['logits/bias/read'].outputs[0]).tolist()")
    assert any(bias), "training moved it"
    model = kernel.run(MODEL.replace("UNITS", "16"), "model")
    assert "4 variables (1 kept, 3 reset)" in model.text
    assert "stale: In[3] — run it again" in model.text
    stale = kernel.run("nf.run(step)", "other")
    assert stale.error == "StaleError"
    assert "In[3]" in stale.text
    again = kernel.run(STEP, "step")
    assert not again.error
    assert "stale" not in again.text
    assert names(kernel) == before  # no hidden_1, no hidden.1
    assert value(kernel, "nf.run(nf.get_graph().nodes['logits/bias/read'].outputs[0]).tolist()") == bias
    assert value(kernel, "nf.run(nf.get_graph().nodes['hidden/bias/read'].outputs[0]).tolist()") == [0.0] * 16
    assert not kernel.run(TRAIN, "train").error
    assert value(kernel, "run.status") == "done"


def test_restart_and_run_all_gives_the_same_graph(kernel: Frontend, frontend: Callable[[str], Frontend]) -> None:
    run_all(kernel)
    kernel.run(MODEL.replace("UNITS", "16"), "model")
    kernel.run(MODEL.replace("UNITS", "8"), "model")
    kernel.run(STEP, "step")
    restarted = frontend("nbflow")
    run_all(restarted)
    assert value(kernel, "nf.get_graph().digest()") == value(restarted, "nf.get_graph().digest()")


def test_a_failing_cell_keeps_the_old_subgraph(kernel: Frontend) -> None:
    run_all(kernel)
    digest = value(kernel, "nf.get_graph().digest()")
    failed = kernel.run(MODEL.replace("UNITS", "16") + "\n1 / 0", "model")
    assert failed.error == "ZeroDivisionError"
    assert "In[6] failed, so its ops from the last run stay" in failed.text
    assert value(kernel, "nf.get_graph().digest()") == digest
    assert value(kernel, "nf.run(loss).shape") == ()
    assert not kernel.run(TRAIN, "train").error


def test_bad_input_names_op_cell_and_line(kernel: Frontend) -> None:
    kernel.run(DATA, "data")
    wrong = kernel.run("# one\nz = nf.matmul(batch['x'], nf.zeros((3, 4)), name='z')", "bad")
    assert wrong.error == "ShapeError"
    assert "'z'" in wrong.text
    assert "In[2], line 2" in wrong.text
    assert len(wrong.text.splitlines()) < 12
    twice = kernel.run("a = nf.zeros((2,), name='a')", "c1")
    assert not twice.error
    taken = kernel.run("a = nf.zeros((2,), name='a')", "c2")
    assert taken.error == "NameInUseError"
    assert "In[3]" in taken.text
    fed = kernel.run("nf.run(a, {a: np.zeros(5, 'float32')})")
    assert fed.error == "ShapeError"


def test_deleted_cells_take_their_ops_along(kernel: Frontend) -> None:
    kernel.run(DATA, "data")
    kernel.run("a = nf.zeros((2,), name='größe')", "c1")
    answer = kernel.run("1", "c2", deleted=["c1", "never seen"])
    assert "In[2] was deleted" in answer.text
    assert "größe" not in names(kernel)


def test_without_cell_ids(kernel: Frontend) -> None:
    kernel.run("import nbflow as nf")
    # A person who runs the same text again re-runs it ...
    kernel.run("a = nf.zeros((2,), name='a')")
    assert not kernel.run("a = nf.zeros((2,), name='a')").error
    kernel.run("%%graph weights\nw = nf.zeros((2,), name='w')")
    assert not kernel.run("%%graph weights\nw = nf.zeros((3,), name='w')").error
    # ... a program that runs a notebook does not.
    kernel.run("x = nf.zeros(())", stdin=False)
    for _ in range(2):
        assert not kernel.run("x = x + 1.0", stdin=False).error
    assert value(kernel, "float(nf.run(x))") == 2.0


def test_an_interrupt_leaves_the_session_usable(kernel: Frontend) -> None:
    run_all(kernel)
    request = kernel.start("run = nf.train.run(step, steps=10_000_000, metrics={'loss': loss}, every=1)", "train")
    kernel.finish(request, until=is_progress)
    kernel.manager.interrupt_kernel()
    answer = kernel.finish(request)
    assert answer.error == "KeyboardInterrupt"
    assert "cancelled on /job:local/task:0; stopped at step" in answer.text
    assert value(kernel, "nf.train.run is not None and run.status") == "done"  # the last run that returned
    assert value(kernel, "nf.run(loss).shape") == ()
    assert not kernel.run(TRAIN, "train").error


def test_completion_and_help(kernel: Frontend) -> None:
    request = kernel.client.complete("%cluster at", 11)
    assert any(m.endswith("attach") for m in kernel.reply(request)["matches"])
    request = kernel.client.inspect("%cluster", 8)
    content = kernel.reply(request)
    assert content["found"]
    assert "usage: %cluster" in content["data"]["text/plain"]
    page = kernel.run("%cluster?")
    assert "attach" in str(page.reply["payload"])
    kernel.run("import nbflow as nf")
    request = kernel.client.inspect("nf.train.run", 12)
    assert "metrics" in kernel.reply(request)["data"]["text/plain"]


def test_the_stock_kernel_with_the_extension(frontend: Callable[[str], Frontend]) -> None:
    stock = frontend("python3")
    assert not stock.run("%load_ext nbflow", "ext").error
    run_all(stock)
    assert "stale: In[4]" in stock.run(MODEL.replace("UNITS", "16"), "model").text
    assert not stock.run(STEP, "step").error
    assert value(stock, "sorted(n for n in nf.get_graph().nodes.keys() if n.startswith('hidden_'))") == []
    assert not stock.run("%unload_ext nbflow").error
    assert stock.run("%cluster").text.count("not found") == 1
