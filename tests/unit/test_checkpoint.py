"""Saving and restoring variables: what comes back, what differs, and training that goes on as if nothing had been."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nbflow as nf
from nbflow.errors import CheckpointError, GraphError
from nbflow.graph import Graph
from nbflow.inprocess import InProcessCluster
from nbflow.spec import BFLOAT16
from nbflow.weights import MANIFEST, Folder


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    with Graph().as_default():
        yield
    nf.set_cluster(None)


def variables() -> dict[str, nf.Variable]:
    rng = np.random.default_rng(0)
    made = {
        "net/w": rng.normal(size=(3, 4)).astype(np.float32),
        "net/b": np.arange(4, dtype=np.float16),
        "net/half": np.arange(3).astype(BFLOAT16),
        "mask": np.array([True, False]),
        "z": np.array([1 + 2j]),
        "count": np.int64(7),
        "empty": np.zeros((0, 2), np.float32),
    }
    return {name: nf.Variable(value, name=name) for name, value in made.items()}


def test_values_come_back(tmp_path: Path) -> None:
    saved = variables()
    nf.run([saved["net/w"].assign_add(np.ones((3, 4))), saved["count"].assign_add(1)])
    nf.train.save(tmp_path / "c")
    before = nf.run(saved)
    with Graph().as_default():
        restored = {name: nf.Variable(np.zeros(v.shape, v.dtype), name=name) for name, v in saved.items()}
        report = nf.train.restore(tmp_path / "c")
        after = nf.run(restored)
    assert sorted(report.restored) == sorted(saved)
    assert (report.missing, report.extra, report.mismatched) == ((), (), ())
    for name in saved:
        assert (after[name].dtype, after[name].tobytes()) == (before[name].dtype, before[name].tobytes())
    assert not report.same_graph


def test_saving_initialises_and_names_a_graph_that_is_the_same(tmp_path: Path) -> None:
    w = nf.Variable(nf.random.normal((4,)), name="w")
    cleared = w.assign(np.zeros(4))
    nf.train.save(tmp_path)
    first = nf.run(w)
    nf.run(cleared)
    report = nf.train.restore(tmp_path)
    assert report.same_graph
    np.testing.assert_array_equal(nf.run(w), first)


def test_initialisers_of_restored_variables_do_not_run(tmp_path: Path) -> None:
    nf.Variable(3.0, name="w")
    nf.train.save(tmp_path)
    with Graph().as_default():
        x = nf.placeholder("float32", (), name="never fed")
        w = nf.Variable(x, name="w")
        with pytest.raises(GraphError, match="feed a value for 'never fed'"):
            nf.run(w)
        nf.train.restore(tmp_path)
        assert nf.run(w) == 3.0


def test_values_are_placed_where_runs_find_them(tmp_path: Path) -> None:
    cluster = InProcessCluster(2, 1)
    nf.set_cluster(cluster)
    big, small = nf.Variable(np.ones(1000), name="big"), nf.Variable(2.0, name="small")
    with nf.device("/job:worker/task:1"):
        far = nf.Variable(3.0, name="far")
    nf.train.save(tmp_path)
    with Graph().as_default():
        big, small = nf.Variable(np.zeros(1000), name="big"), nf.Variable(0.0, name="small")
        with nf.device("/job:worker/task:1"):
            far = nf.Variable(0.0, name="far")
        nf.train.restore(tmp_path)
        assert [float(v) for v in nf.run([big[0], small, far])] == [1.0, 2.0, 3.0]
        table = {row.op: row.actual for row in nf.placement([big, small, far])}
    assert table["far"] == "/job:worker/task:1/cpu:0"
    assert table["big"] == "/job:ps/task:0/cpu:0"
    nf.set_cluster(None)
    cluster.close()


def test_many_shards(tmp_path: Path) -> None:
    for i in range(5):
        nf.Variable(np.full(10, i, np.float64), name=f"v{i}")
    nf.train.save(tmp_path, shard_bytes=160)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    with Graph().as_default():
        made = [nf.Variable(np.zeros(10), name=f"v{i}") for i in range(5)]
        nf.train.restore(tmp_path)
        assert [v[0] for v in nf.run(made)] == [0, 1, 2, 3, 4]


def test_everything_that_differs_is_named_with_both_shapes(tmp_path: Path) -> None:
    nf.Variable(np.zeros((3, 4), np.float32), name="w")
    nf.Variable(np.zeros(2, np.float32), name="b")
    nf.Variable(0.0, name="old")
    nf.train.save(tmp_path)
    with Graph().as_default():
        w = nf.Variable(np.ones((3, 5), np.float32), name="w")
        b = nf.Variable(np.ones(2, np.float64), name="b")
        new = nf.Variable(1.0, name="new")
        with pytest.raises(CheckpointError) as caught:
            nf.train.restore(tmp_path)
        text = str(caught.value)
        assert "w is float32 (3, 5) in the graph, float32 (3, 4) in the checkpoint" in text
        assert "b is float64 (2,) in the graph, float32 (2,) in the checkpoint" in text
        assert "in the graph, not in the checkpoint: new" in text
        assert "in the checkpoint, not in the graph: old" in text
        assert nf.run([w, b, new])[0][0, 0] == 1.0, "nothing was set"
        report = nf.train.restore(tmp_path, strict=False)
        assert report.restored == ()
        assert (report.missing, report.extra, sorted(report.mismatched)) == (("new",), ("old",), ["b", "w"])
        assert "missing: new" in repr(report)


def test_some_variables_and_other_names(tmp_path: Path) -> None:
    nf.Variable(1.0, name="encoder/w")
    nf.Variable(2.0, name="decoder/w")
    nf.train.save(tmp_path)
    with Graph().as_default():
        a, b, c = (nf.Variable(0.0, name=n) for n in ("encoder/w", "other/w", "twin/w"))
        nf.train.restore(tmp_path, [a])
        assert [float(v) for v in nf.run([a, b, c])] == [1, 0, 0]
        names = {"other/w": "decoder/w", "twin/w": "decoder/w"}
        assert nf.train.restore(tmp_path, names=names).extra == ()
        assert [float(v) for v in nf.run([a, b, c])] == [1, 2, 2]
        with pytest.raises(CheckpointError, match="the graph has no variable nothing to restore"):
            nf.train.restore(tmp_path, names={"nothing": "w"})
        with pytest.raises(CheckpointError, match=r"not in the checkpoint: other/w \(as lost\)"):
            nf.train.restore(tmp_path, [b], names={"other/w": "lost"})


def test_nothing_is_set_from_a_damaged_checkpoint(tmp_path: Path) -> None:
    w, v = nf.Variable(np.zeros(20), name="w"), nf.Variable(np.zeros(20), name="v")
    nf.train.save(tmp_path, shard_bytes=160)
    nf.run([w.assign(np.ones(20)), v.assign(np.ones(20))])
    last = sorted(tmp_path.glob("*.safetensors"))[-1]
    data = bytearray(last.read_bytes())
    data[-1] ^= 1
    last.write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"{last.name} is damaged"):
        nf.train.restore(tmp_path)
    assert nf.run([w[0], v[0]]) == [1, 1]


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        nf.train.restore(tmp_path / "nowhere")
    nf.Variable(1.0, name="w")
    nf.train.save(tmp_path)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    assert manifest["tensors"]["w"]["dtype"] == "float32"
    assert manifest["files"][0]["sha256"]
    (tmp_path / MANIFEST).write_text("{}")
    with pytest.raises(CheckpointError, match="damaged"):
        nf.train.restore(tmp_path)


def test_only_variables_are_saved(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="not a variable"):
        nf.train.save(tmp_path, [nf.constant(1.0)])
    assert not (tmp_path / MANIFEST).exists()


# --- going on ---------------------------------------------------------------------------------------------------------


def model() -> Any:
    """A step with dropout, moments, a schedule and a shuffled dataset: all kinds of state."""
    rng = np.random.default_rng(7)
    data = nf.data.from_arrays({"x": rng.normal(size=(30, 4)).astype(np.float32)}).shuffle(30).repeat().batch(8)
    x = data.prefetch(2).next()["x"]
    h = nf.nn.dropout(nf.layers.dense(x, 6, activation=nf.nn.relu, name="h"), 0.5)
    loss = nf.mean(nf.square(nf.layers.dense(h, 1, name="out")))
    rate = nf.optim.schedule.exponential(0.05, steps=5, factor=0.9)
    return loss, nf.optim.Adam(rate).minimize(loss, strategy=nf.train.DataParallel())


def losses_of(loss: Any, step: Any, count: int) -> list[bytes]:
    return [nf.run([loss, step])[0].tobytes() for _ in range(count)]


def weights_now() -> dict[str, bytes]:
    return {v.name: nf.run(v).tobytes() for v in nf.variable.global_variables()}


def after_the_break(folder: Path) -> list[str]:
    """Ten steps from what is in `folder`: their losses, and the weights."""
    loss, step = model()
    assert nf.train.restore(folder).same_graph
    return [*(b.hex() for b in losses_of(loss, step, 10)), *(f"{n} {b.hex()}" for n, b in weights_now().items())]


@pytest.mark.parametrize("workers", [0, 3])
def test_restored_training_is_bit_for_bit_the_same(workers: int, tmp_path: Path) -> None:
    """Without a break, and with one: in another session, on another number of workers, in another process."""
    cluster = InProcessCluster(workers, min(workers, 1))
    nf.set_cluster(cluster)
    loss, step = model()
    losses_of(loss, step, 10)
    digest = nf.get_graph().digest()
    nf.train.save(tmp_path)
    nf.train.save(tmp_path)  # looking changes nothing
    assert nf.get_graph().digest() == digest
    expected = [*(b.hex() for b in losses_of(loss, step, 10)), *(f"{n} {b.hex()}" for n, b in weights_now().items())]
    with Graph().as_default():
        assert after_the_break(tmp_path) == expected
    nf.set_cluster(None)
    cluster.close()


RESUMED = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_checkpoint import after_the_break
print("\\n".join(after_the_break(Path(sys.argv[1]))))
"""


def test_another_process_goes_on(tmp_path: Path) -> None:
    loss, step = model()
    losses_of(loss, step, 10)
    nf.train.save(tmp_path)
    expected = [*(b.hex() for b in losses_of(loss, step, 10)), *(f"{n} {b.hex()}" for n, b in weights_now().items())]
    done = subprocess.run(
        [sys.executable, "-c", RESUMED, str(tmp_path), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == expected


def test_the_manifest_says_how_to_go_on(tmp_path: Path) -> None:
    loss, step = model()
    losses_of(loss, step, 3)
    nf.train.save(tmp_path)
    folder = Folder(tmp_path)
    assert folder.manifest["session"]["steps"] == 3
    assert folder.manifest["graph"]["digest"] == nf.get_graph().digest()
    assert folder.manifest["iterators"] == ["iterator"]
    assert {"h/weights", "h/weights/Adam/m", "h/weights/Adam/v", "Adam/iterations"} <= folder.tensors.keys()


def test_iterators_that_only_one_side_has(tmp_path: Path) -> None:
    nf.Variable(1.0, name="w")
    nf.data.from_arrays({"x": np.arange(4)}).next()
    nf.train.save(tmp_path)
    with Graph().as_default():
        w = nf.Variable(0.0, name="w")
        with pytest.raises(CheckpointError, match="in the checkpoint, not in the graph: iterator"):
            nf.train.restore(tmp_path)
        nf.train.restore(tmp_path, [w])
        assert nf.run(w) == 1.0
