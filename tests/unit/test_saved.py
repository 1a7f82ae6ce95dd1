"""`nf.export` and `nf.load`: what comes back, in a process that never saw the code, and what damage is called."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nbflow as nf
from nbflow import weights
from nbflow.errors import CheckpointError, DTypeError, GraphError, ShapeError
from nbflow.graph import Graph
from nbflow.inprocess import InProcessCluster
from nbflow.spec import BFLOAT16
from nbflow.weights import MANIFEST


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    with Graph().as_default():
        yield
    nf.set_cluster(None)


X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)


def trained() -> tuple[Any, Any, Any]:
    """(x, y, score) of a model that was trained on a dataset; x is its batch's tensor."""
    rng = np.random.default_rng(0)
    data = {"x": rng.normal(size=(20, 4)).astype(np.float32), "label": rng.normal(size=20).astype(np.float32)}
    batch = nf.data.from_arrays(data).repeat().batch(5).next()
    h = nf.layers.dense(batch["x"], 6, activation=nf.tanh, name="h")
    y = nf.layers.dense(h, 2, name="y")
    loss = nf.mean(nf.square(y[:, 0] - batch["label"]))
    nf.train.run(nf.optim.Adam(0.1).minimize(loss), steps=5, show=False)
    return batch["x"], y, nf.max(nf.nn.softmax(y), axis=1)


def test_a_model_comes_back(tmp_path: Path) -> None:
    x, y, score = trained()
    folder = nf.export(tmp_path, {"predict": ({"x": x}, {"y": y, "score": score}), "logits": ({"x": x}, y)})
    assert folder == tmp_path / "1"
    expected = nf.run([y, score], {x: X})
    model = nf.load(tmp_path)
    found = model.predict(x=X)
    assert list(found) == ["y", "score"]
    assert found["y"].tobytes() == expected[0].tobytes()
    assert found["score"].tobytes() == expected[1].tobytes()
    assert model.logits(x=X).tobytes() == expected[0].tobytes()
    assert model.version == 1
    assert "predict(x: float32[?,4]) -> y: float32[?,2], score: float32[?]" in repr(model)
    assert {"predict", "logits"} <= set(dir(model))


def test_only_what_is_needed_is_there(tmp_path: Path) -> None:
    x, y, _ = trained()
    nf.export(tmp_path, {"predict": ({"x": x}, {"y": y})})
    model = nf.load(tmp_path)
    assert sorted(v.name for v in model.variables) == ["h/bias", "h/weights", "y/bias", "y/weights"]
    ops = {node.op for node in model.graph.nodes}
    assert ops.isdisjoint({"iterator", "iterator_next", "apply_adam", "initialize", "random_normal"})


LOADED = """
import sys
import numpy as np
import nbflow as nf
model = nf.load(sys.argv[1])
x = np.load(sys.argv[2])
print(model.predict(x=x)["y"].tobytes().hex())
"""


def test_a_process_that_never_saw_the_code(tmp_path: Path) -> None:
    x, y, _ = trained()
    nf.export(tmp_path / "m", {"predict": ({"x": x}, {"y": y})})
    np.save(tmp_path / "x.npy", X)
    done = subprocess.run(
        [sys.executable, "-c", LOADED, str(tmp_path / "m"), str(tmp_path / "x.npy")],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == nf.run(y, {x: X}).tobytes().hex()


def test_versions(tmp_path: Path) -> None:
    w = nf.Variable(1.0, name="w")
    up = w.assign_add(1.0)
    for version in (1, 2, 10):
        nf.export(tmp_path, {"value": ({}, w)}, version=version)
        nf.run(up)
    assert nf.load(tmp_path).value() == 3.0
    assert nf.load(tmp_path).version == 10
    assert nf.load(tmp_path, version=2).value() == 2.0
    assert nf.load(tmp_path / "2").value() == 2.0
    with pytest.raises(CheckpointError, match=r"holds no model of version 3; versions there: 1, 2, 10"):
        nf.load(tmp_path, version=3)
    with pytest.raises(CheckpointError, match=r"holds no model; versions there: none"):
        nf.load(tmp_path / "nowhere")
    nf.export(tmp_path, {"value": ({}, w)}, version=2)
    assert nf.load(tmp_path, version=2).value() == 4.0, "a version that is exported again is replaced"
    assert len(list((tmp_path / "2").iterdir())) == 3


def test_training_goes_on_from_a_loaded_model(tmp_path: Path) -> None:
    x, y, _ = trained()
    nf.export(tmp_path, {"predict": ({"x": x}, {"y": y})})
    model = nf.load(tmp_path)
    before = model.predict(x=X)["y"]
    with model.graph.as_default():
        signature = model.signatures["predict"]
        loss = nf.mean(nf.square(signature.outputs["y"] - 3.0))
        step = nf.optim.SGD(0.1).minimize(loss)
        feeds = {signature.inputs["x"]: X}
        first = nf.run(loss, feeds)
        for _ in range(20):
            nf.run(step, feeds)
        assert nf.run(loss, feeds) < first / 2
    after = model.predict(x=X)["y"]
    assert abs(after - 3).mean() < abs(before - 3).mean()
    np.testing.assert_array_equal(nf.load(tmp_path).predict(x=X)["y"], before)


def test_another_cluster_starts_from_the_folder(tmp_path: Path) -> None:
    with nf.device("cpu:0"):
        w = nf.Variable(np.arange(3.0), name="w")
    nf.export(tmp_path, {"value": ({}, w)})
    model = nf.load(tmp_path)
    cluster = InProcessCluster(2, 1)
    nf.set_cluster(cluster)
    np.testing.assert_array_equal(model.value(), [0, 1, 2])
    nf.set_cluster(None)
    cluster.close()
    np.testing.assert_array_equal(model.value(), [0, 1, 2])


def test_devices_stay_behind(tmp_path: Path) -> None:
    cluster = InProcessCluster(2, 1)
    nf.set_cluster(cluster)
    with nf.device("/job:worker/task:1"):
        w = nf.Variable(2.0, name="w")
        y = w * 3.0
    nf.export(tmp_path, {"value": ({}, y)})
    nf.set_cluster(None)
    cluster.close()
    assert nf.load(tmp_path).value() == 6.0


def test_any_tensor_can_be_an_input(tmp_path: Path) -> None:
    """One that another signature computes is fed; one that nobody computes is cut off."""
    x = nf.placeholder("float32", (None, 2), name="x")
    hidden = x * 2.0
    y = hidden + 1.0
    signatures = {"whole": ({"x": x}, {"y": y}), "rest": ({"hidden": hidden}, {"y": y}), "same": ({"x": x}, {"x": x})}
    nf.export(tmp_path, signatures)
    model = nf.load(tmp_path)
    np.testing.assert_array_equal(model.whole(x=[[1, 2]])["y"], [[3, 5]])
    np.testing.assert_array_equal(model.rest(hidden=[[1, 2]])["y"], [[2, 3]])
    np.testing.assert_array_equal(model.same(x=[[1, 2]])["x"], [[1, 2]])


def test_large_constants_do_not_pass_through_protobuf(tmp_path: Path) -> None:
    table = np.random.default_rng(0).normal(size=(300, 100)).astype(np.float32)
    same = nf.constant(table.view(np.int32))  # the same bytes, meaning something else
    ids = nf.placeholder("int64", (None,), name="ids")
    rows = nf.take(nf.constant(table), ids, axis=0)
    nf.export(tmp_path, {"rows": ({"ids": ids}, {"rows": rows, "bits": nf.take(same, ids, axis=0)})}, shard_bytes=1000)
    (graph,) = (tmp_path / "1").glob("*graph.pb")
    assert graph.stat().st_size < 5000
    found = nf.load(tmp_path).rows(ids=[7, 0])
    np.testing.assert_array_equal(found["rows"], table[[7, 0]])
    np.testing.assert_array_equal(found["bits"], table.view(np.int32)[[7, 0]])


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16, np.complex128, np.bool_, np.uint8], ids=str)
def test_dtypes(dtype: Any, tmp_path: Path) -> None:
    value = np.array([[0, 1, 2]]).astype(dtype)
    w = nf.Variable(value, name="w")
    x = nf.placeholder(dtype, (None, 3), name="x")
    nf.export(tmp_path, {"both": ({"x": x}, {"w": w, "x": nf.reshape(x, (-1,))})})
    found = nf.load(tmp_path).both(x=value)
    assert (found["w"].dtype, found["w"].tobytes()) == (np.dtype(dtype), value.tobytes())
    assert (found["x"].dtype, found["x"].tobytes()) == (np.dtype(dtype), value.tobytes())


def test_loops_and_branches(tmp_path: Path) -> None:
    x = nf.placeholder("float32", (), name="x")
    w = nf.Variable(2.0, name="w")
    total = nf.while_loop(lambda i, t: i < 4, lambda i, t: (i + 1, t * w), [nf.constant(0), x])[1]
    sign = nf.cond(x > 0.0, lambda: total, lambda: -total)
    nf.export(tmp_path, {"f": ({"x": x}, sign)})
    model = nf.load(tmp_path)
    assert model.f(x=3.0) == 48.0
    assert model.f(x=-1.0) == 16.0


def test_calls_that_do_not_fit(tmp_path: Path) -> None:
    x = nf.placeholder("float32", (None, 4), name="x")
    nf.export(tmp_path, {"predict": ({"x": x}, {"y": x * 2.0})})
    model = nf.load(tmp_path)
    with pytest.raises(GraphError, match=r"predict\(x: float32\[\?,4\]\) -> .* was called without x and with z"):
        model.predict(z=X)
    with pytest.raises(ShapeError, match=r"x has shape \(\?, 4\), but was fed \(2, 3\)"):
        model.predict(x=np.zeros((2, 3), np.float32))
    with pytest.raises(DTypeError, match="complex"):
        model.predict(x=X * 1j)
    with pytest.raises(AttributeError, match=r"no signature 'classify'; it has: predict"):
        model.classify(x=X)


def test_signatures_that_cannot_be_exported(tmp_path: Path) -> None:
    x = nf.placeholder("float32", (None, 4), name="x")
    other = nf.placeholder("float32", (), name="other")
    w = nf.Variable(1.0, name="w")
    batch = nf.data.from_arrays({"x": X}).batch(2).next()
    for signatures, message in (
        ({}, "needs a signature"),
        ({"f": ({"x": x}, {"y": x + other})}, r"signature 'f' needs a value for 'other' \(float32\[\]\); add it"),
        ({"f": ({}, {"y": batch["x"]})}, "reads from the iterator"),
        ({"f": ({"not a name": x}, {"y": x})}, "'not a name' is not a name"),
        ({"_f": ({"x": x}, {"y": x})}, "'_f' is not a name"),
        ({"f": ({"x": x}, {})}, "has no outputs"),
        ({"f": ({"x": x}, {"y": 3})}, "'y' is not a tensor"),
        ({"f": ({"x": x}, {"y": w.handle})}, "is the handle of state"),
        ({"f": {"x": x}}, "inputs and outputs"),
    ):
        with pytest.raises(GraphError, match=message):
            nf.export(tmp_path, signatures)  # type: ignore[arg-type]  # what a user may write
    for version in (0, -1, "1", True):
        with pytest.raises(GraphError, match="a version is a positive integer"):
            nf.export(tmp_path, {"f": ({"x": x}, {"y": x})}, version=version)  # type: ignore[arg-type]  # as above
    assert list(tmp_path.iterdir()) == []


def exported(folder: Path) -> Path:
    w = nf.Variable(np.arange(20.0), name="w")
    return nf.export(folder, {"value": ({}, w)})


@pytest.mark.parametrize("kind", ["*.safetensors", "*graph.pb", MANIFEST])
def test_one_flipped_bit_is_found(kind: str, tmp_path: Path) -> None:
    (path,) = exported(tmp_path).glob(kind)
    data = bytearray(path.read_bytes())
    for at in (0, len(data) // 2, len(data) - 1):
        damaged = bytearray(data)
        damaged[at] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged"):
            nf.load(tmp_path)
    path.write_bytes(data)
    assert nf.load(tmp_path).value()[3] == 3.0


def test_missing_files(tmp_path: Path) -> None:
    for path in exported(tmp_path).iterdir():
        data = path.read_bytes()
        path.unlink()
        with pytest.raises(CheckpointError, match=r"cannot be read|holds no model"):
            nf.load(tmp_path)
        path.write_bytes(data)


def rewritten(folder: Path, **changes: Any) -> None:
    """The manifest with other content and a digest that fits."""
    whole = {**json.loads((folder / MANIFEST).read_text()), **changes}
    whole["sha256"] = weights._manifest_digest(whole)
    (folder / MANIFEST).write_text(json.dumps(whole))


def test_manifests_that_do_not_hold_together(tmp_path: Path) -> None:
    folder = exported(tmp_path)
    whole = json.loads((folder / MANIFEST).read_text())
    described = whole["signatures"]["value"]
    missing = {"value": {**described, "outputs": {"output": {"tensor": "nothing"}}}}
    for changes, message in (
        ({"version": 2}, r"in version 2 of its format; this nbflow reads up to version 1: upgrade nbflow"),
        ({"format": "nbflow.checkpoint"}, "is of format 'nbflow.checkpoint', not 'nbflow.model'"),
        ({"signatures": missing}, "no node called 'nothing'"),
        ({"signatures": {"value": {}}}, "does not hold together: KeyError"),
        ({"variables": ["w/read"]}, "does not hold together"),
        ({"graph": {**whole["graph"], "digest": "0"}}, "another digest"),
    ):
        rewritten(folder, **{**whole, **changes})
        with pytest.raises(CheckpointError, match=message):
            nf.load(tmp_path)


def test_a_version_that_was_cut_off_does_not_count(tmp_path: Path) -> None:
    exported(tmp_path)
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "model-1234-00001.safetensors").write_bytes(b"half")
    assert nf.load(tmp_path).version == 1


def test_exports_at_once(tmp_path: Path) -> None:
    """Each writes files of its own; whichever replaces the manifest last is what is there, whole."""
    errors: list[Exception] = []

    def work(value: int) -> None:
        try:
            with Graph().as_default():
                nf.export(tmp_path, {"value": ({}, nf.Variable(np.full(100, value), name="w"))})
        except Exception as error:  # noqa: BLE001  # of any thread, to be seen below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    value = nf.load(tmp_path).value()
    assert len(set(value)) == 1
