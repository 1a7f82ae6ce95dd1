"""`nf.onnx.save`: whole models, names, free dimensions, two files, and what it refuses. Ops are in `…_cases.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import nbflow as nf
from nbflow.errors import DTypeError, GraphError, ShapeError
from nbflow.graph import Graph, Owner, Tensor
from nbflow.onnx import save

Array = np.ndarray[Any, Any]


@pytest.fixture(autouse=True)
def graph() -> Any:
    with Graph().as_default() as made:
        yield made


def numbers(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def run(path: Path, **feeds: Array) -> list[Array]:
    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def shapes(path: Path) -> dict[str, list[Any]]:
    graph = onnx.load(path).graph
    return {
        v.name: [d.dim_value if d.HasField("dim_value") else d.dim_param for d in v.type.tensor_type.shape.dim]
        for v in (*graph.input, *graph.output)
    }


# --- models ----------------------------------------------------------------------------------------------------------


def _images(x: Tensor) -> Tensor:
    y = nf.layers.conv2d(x, 4, 3, strides=2, activation=nf.nn.relu)
    y = nf.layers.batch_norm(y, training=False)
    y = nf.nn.avg_pool2d(nf.nn.max_pool2d(y, 2, 1, "SAME"), 2)
    return nf.layers.dense(nf.reshape(y, (-1, 16)), 3, activation=nf.nn.softmax)


def _channels_first(x: Tensor) -> Tensor:
    y = nf.layers.conv2d(x, 6, 3, padding="VALID", data_format="NCHW", groups=3)
    y = nf.layers.batch_norm(y, training=False, axis=1)
    return nf.nn.global_avg_pool(y, "NCHW")


def _words(x: Tensor) -> Tensor:
    y = nf.layers.embedding(x, 11, 8)
    y = nf.layers.layer_norm(y + nf.layers.multi_head_attention(y, heads=2, causal=True))
    return nf.layers.dense(y, 4, activation=nf.nn.gelu)


def _sequence(x: Tensor) -> Tensor:
    return nf.concat([nf.layers.lstm(x, 3), nf.layers.gru(x, 2, reverse=True)], axis=-1)


def _normed(x: Tensor) -> Tensor:
    y = nf.nn.group_norm(x, 2) + nf.nn.rms_norm(x)
    return nf.nn.dropout(nf.nn.silu(y) - nf.nn.leaky_relu(y) * nf.nn.elu(y), 0.5, training=False)


MODELS: dict[str, tuple[Any, tuple[int | None, ...], Array]] = {
    "images": (_images, (None, 8, 8, 3), numbers(2, 8, 8, 3)),
    "channels first": (_channels_first, (None, 3, 6, 5), numbers(2, 3, 6, 5)),
    "words": (_words, (None, 5), np.array([[1, 2, 3, 10, 0], [7, 7, 1, 0, 2]])),
    "sequence": (_sequence, (None, 4, 3), numbers(2, 4, 3)),
    "norms": (_normed, (None, 3, 4), numbers(2, 3, 4)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("opset", [18, 21, 23])
def test_models_of_layers(name: str, opset: int, tmp_path: Path) -> None:
    build, shape, value = MODELS[name]
    x = nf.placeholder(value.dtype, shape, name="x")
    y = build(x)
    save(tmp_path / "m.onnx", {"x": x}, {"y": y}, opset=opset)
    np.testing.assert_allclose(run(tmp_path / "m.onnx", x=value)[0], nf.run(y, {x: value}), rtol=1e-5, atol=1e-5)
    assert shapes(tmp_path / "m.onnx")["x"] == ["x_0", *shape[1:]]
    assert onnx.load(tmp_path / "m.onnx").opset_import[0].version == opset


def test_a_trained_model(tmp_path: Path) -> None:
    """Values are those that training left, in the session of `nf.run` or in another."""
    images, labels = numbers(64, 12), np.arange(64) % 3
    images[np.arange(64), labels] += 3
    x, y = nf.placeholder("float32", (None, 12), name="x"), nf.placeholder("int64", (None,), name="y")
    logits = nf.layers.dense(nf.layers.dense(x, 16, activation=nf.nn.relu), 3)
    loss = nf.mean(nf.nn.softmax_cross_entropy(logits, y))
    step = nf.optim.Adam(0.05).minimize(loss)
    feeds = {x: images, y: labels}
    save(tmp_path / "before.onnx", [x], {"logits": logits})
    for _ in range(40):
        nf.run(step, feeds)
    save(tmp_path / "after.onnx", {"x": x, "y": y}, {"logits": logits, "loss": loss})
    before = run(tmp_path / "before.onnx", x=images)[0]
    after, error = run(tmp_path / "after.onnx", x=images, y=labels)
    assert (before.argmax(1) == labels).mean() < 0.9 < (after.argmax(1) == labels).mean()
    np.testing.assert_allclose(after, nf.run(logits, feeds), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(error, nf.run(loss, feeds), rtol=1e-4)
    with nf.Session() as other:
        save(tmp_path / "other.onnx", {"x": x}, {"logits": logits}, session=other)
    assert np.abs(run(tmp_path / "other.onnx", x=images)[0] - after).max() > 0.1


def test_training_is_a_value(tmp_path: Path) -> None:
    """A model that a fed boolean switches between training and inference is saved with the boolean fixed."""
    x, training = nf.placeholder("float32", (None, 3), name="x"), nf.placeholder("bool", (), name="training")
    y = nf.nn.dropout(nf.layers.batch_norm(x, training=training), 0.5, training=training)
    value = numbers(4, 3)
    save(tmp_path / "m.onnx", [x], {"y": y}, feeds={training: False})
    want = nf.run(y, {x: value, training: False})
    np.testing.assert_allclose(run(tmp_path / "m.onnx", x=value)[0], want, rtol=1e-5, atol=1e-6)


# --- names and shapes ------------------------------------------------------------------------------------------------


def test_names_are_those_of_the_caller(tmp_path: Path) -> None:
    with nf.name_scope("net"):
        x = nf.placeholder("float32", (None, 2), name="x")
        y = nf.multiply(x, 2.0, name="y")
    z = nf.add(y, 1.0, name="out")
    save(tmp_path / "m.onnx", {"out": x}, {"net/y": z, "double": y, "again": y, "same": x})
    value = numbers(3, 2)
    found = run(tmp_path / "m.onnx", out=value)
    for got, want in zip(found, [value * 2 + 1, value * 2, value * 2, value], strict=True):
        np.testing.assert_array_equal(got, want)
    assert [v.name for v in onnx.load(tmp_path / "m.onnx").graph.output] == ["net/y", "double", "again", "same"]
    save(tmp_path / "list.onnx", [x], [y, z])
    graph = onnx.load(tmp_path / "list.onnx").graph
    assert [v.name for v in (*graph.input, *graph.output)] == ["net/x", "net/y", "out"]


def test_values_are_called_as_the_nodes_that_made_them(tmp_path: Path) -> None:
    x = nf.placeholder("float32", (2,), name="x")
    save(tmp_path / "m.onnx", [x], {"y": nf.exp(nf.expm1(x, name="before"))})
    assert "before" in {name for n in onnx.load(tmp_path / "m.onnx").graph.node for name in n.input}


def test_free_dimensions_have_names(tmp_path: Path) -> None:
    a, b = nf.placeholder("float32", (None, None, 3), name="a"), nf.placeholder("float32", (None, 3), name="b")
    outputs = {"sum": a + 1.0, "product": nf.matmul(a, b, transpose_b=True), "flat": nf.reshape(a, (-1,))}
    save(tmp_path / "m.onnx", {"a": a, "b": b}, {**outputs, "ids": nf.nonzero(b[:, 0])[0]})
    found = shapes(tmp_path / "m.onnx")
    assert found["a"] == ["a_0", "a_1", 3]
    assert found["b"] == ["b_0", 3]
    assert found["sum"] == ["a_0", "a_1", 3]
    assert found["product"] == ["a_0", "a_1", "b_0"]
    assert found["flat"] == ["flat_0"]
    assert found["ids"] == ["ids_0"]
    for rows, columns in ((1, 1), (4, 2)):
        value, other = numbers(rows, columns, 3), numbers(5, 3)
        np.testing.assert_allclose(run(tmp_path / "m.onnx", a=value, b=other)[1], value @ other.T, rtol=1e-5)


def test_an_input_may_be_any_tensor(tmp_path: Path) -> None:
    """What computes it is left out, also what could not be written; also where it is a variable."""
    x = nf.placeholder("float32", (3, 3), name="x")
    w = nf.Variable(np.ones((3, 3), "float32"), name="w")
    middle = nf.linalg.inv(x)
    save(tmp_path / "m.onnx", {"middle": middle, "w": w}, {"y": middle @ w})
    value, weights = numbers(3, 3), numbers(3, 3, seed=1)
    np.testing.assert_allclose(run(tmp_path / "m.onnx", middle=value, w=weights)[0], value @ weights, rtol=1e-5)


def test_equal_constants_are_one(tmp_path: Path) -> None:
    x = nf.placeholder("float32", (2,), name="x")
    save(tmp_path / "m.onnx", [x], {"y": (x + 1.0) * (x + 1.0)})
    assert len(onnx.load(tmp_path / "m.onnx").graph.initializer) == 1


def test_half_precision_and_bfloat16_weights(tmp_path: Path) -> None:
    for dtype in ("float16", "bfloat16"):
        x = nf.placeholder("float32", (2, 3))
        w = nf.Variable(nf.astype(nf.constant(numbers(3, 4)), dtype))
        y = x @ nf.astype(w, "float32")
        save(tmp_path / "m.onnx", {"x": x}, {"y": y})
        value = numbers(2, 3)
        np.testing.assert_allclose(run(tmp_path / "m.onnx", x=value)[0], nf.run(y, {x: value}), rtol=1e-5)


def test_a_region_of_interest(tmp_path: Path) -> None:
    """The other size than that of the row in the table, which onnxruntime copies."""
    x = nf.placeholder("float32", (None, 3, 4), name="x")
    y = nf.image.resample(x, (1, 2), (5, 2), roi=(0.5, 0.1, 1.5, 1), coordinates="tf_crop_and_resize", outside=7.0)
    save(tmp_path / "m.onnx", [x], {"y": y})
    value = numbers(2, 3, 4)
    np.testing.assert_allclose(run(tmp_path / "m.onnx", x=value)[0], nf.run(y, {x: value}), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("padding", ["SAME", "SAME_LOWER", "VALID", ((1, 0), (0, 1))])
def test_transposed_convolution_of_any_size(padding: Any, tmp_path: Path) -> None:
    x = nf.placeholder("float32", (None, None, None, 2), name="x")
    w = nf.Variable(numbers(3, 4, 3, 2), name="w")
    y = nf.nn.conv_transpose(x, w, (2, 3), padding)
    for size in ((4, 5), (1, 3)):
        same_as_onnxruntime(tmp_path / "m.onnx", {"x": x}, {"y": y}, x=numbers(2, *size, 2))


INTEGERS: dict[str, Any] = {
    "where": lambda x: nf.where(x > 1, x, x[::-1]),
    "arithmetic": lambda x: x * x + x - x[::-1],
    "extremes": lambda x: nf.maximum(nf.minimum(x, x[::-1]), nf.clip(x, 1, 2)),
    "powers": lambda x: nf.pow(x, x),
    "negative": lambda x: -x,
    "pad": lambda x: nf.pad(x, ((1, 2),), constant_values=3),
    "relu": nf.nn.relu,
    "matmul": lambda x: nf.matmul(nf.reshape(x, (1, 3)), nf.reshape(x, (3, 1))),
    "modulo": lambda x: nf.concat([nf.remainder(x, x[::-1]), nf.floor_divide(x, x[::-1])]),
    "reductions": lambda x: nf.stack([nf.sum(x, axis=0, dtype=x.dtype), nf.prod(x, axis=0, dtype=x.dtype)]),
}


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
def test_integers_of_every_size(dtype: str, tmp_path: Path) -> None:
    """Runtimes lack kernels for some of them: these go through int64, and wrap around as they do here."""
    x = nf.placeholder(dtype, (3,), name="x")
    value = np.array([1, 7, 12]).astype(dtype)
    with np.errstate(all="ignore"):
        same_as_onnxruntime(tmp_path / "m.onnx", {"x": x}, {n: f(x) for n, f in INTEGERS.items()}, x=value)


def test_booleans(tmp_path: Path) -> None:
    x = nf.placeholder("bool", (3,), name="x")
    y = x[::-1]
    outputs = {"add": x + y, "product": x * y, "max": nf.maximum(x, y), "min": nf.minimum(x, y), "less": x < y,
               "abs": nf.abs(x), "where": nf.where(x, y, x)}  # fmt: skip
    same_as_onnxruntime(tmp_path / "m.onnx", {"x": x}, outputs, x=np.array([True, False, False]))


# --- large models ----------------------------------------------------------------------------------------------------


def test_weights_in_a_file_of_their_own(tmp_path: Path) -> None:
    x = nf.placeholder("float32", (None, 40), name="x")
    y = nf.layers.dense(x, 30)
    for _ in range(2):  # the second writes over the first
        save(tmp_path / "m.onnx", [x], {"y": y}, external_data_over_bytes=1000)
    assert (tmp_path / "m.onnx").stat().st_size < 1000
    assert 4800 <= (tmp_path / "m.onnx.data").stat().st_size < 9000
    value = numbers(2, 40)
    np.testing.assert_allclose(run(tmp_path / "m.onnx", x=value)[0], nf.run(y, {x: value}), rtol=1e-5, atol=1e-6)
    save(tmp_path / "one.onnx", [x], {"y": y})
    assert not (tmp_path / "one.onnx.data").exists()


# --- random numbers --------------------------------------------------------------------------------------------------


def test_random_numbers_have_their_distribution(tmp_path: Path) -> None:
    x = nf.placeholder("float32", (None,), name="x")
    outputs = {
        "uniform": nf.random.uniform((10_000,), -1.0, 3.0),
        "normal": nf.random.normal((10_000,), 2.0, 0.5),
        "bernoulli": nf.random.bernoulli((10_000,), 0.3),
        "like": nf.random.uniform_like(x),
        "normal_like": nf.random.normal_like(x, -1.0, 2.0),
        "dropout": nf.nn.dropout(x, 0.25),
    }
    save(tmp_path / "m.onnx", [x], outputs)
    uniform, normal, bernoulli, like, normal_like, dropout = run(tmp_path / "m.onnx", x=np.ones(10_000, "float32"))
    assert -1 <= uniform.min() < -0.9 < 2.9 < uniform.max() <= 3
    assert abs(normal.mean() - 2) < 0.05
    assert abs(normal.std() - 0.5) < 0.05
    assert bernoulli.dtype == bool
    assert abs(bernoulli.mean() - 0.3) < 0.05
    assert like.shape == (10_000,)
    assert 0 <= like.min() < like.max() <= 1
    assert normal_like.shape == (10_000,)
    assert abs(normal_like.mean() + 1) < 0.1
    assert abs(normal_like.std() - 2) < 0.1
    assert abs((dropout == 0).mean() - 0.25) < 0.05
    assert set(np.round(np.unique(dropout), 4)) == {0, np.float32(1.3333)}


# --- branches and loops ----------------------------------------------------------------------------------------------


def same_as_onnxruntime(path: Path, inputs: dict[str, Tensor], outputs: dict[str, Tensor], **feeds: Array) -> None:
    save(path, inputs, outputs)
    wanted = nf.run(list(outputs.values()), {inputs[name]: value for name, value in feeds.items()})
    for found, right in zip(run(path, **feeds), wanted, strict=True):
        assert found.dtype == right.dtype
        assert found.shape == right.shape
        np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-6)


def test_branches(tmp_path: Path) -> None:
    x, up = nf.placeholder("float32", (None, 2), name="x"), nf.placeholder("bool", (), name="up")
    w = nf.Variable(np.float32([2, 3]), name="w")
    y, z = nf.cond(up, lambda: (x * w, x), lambda: (nf.cond(nf.sum(x) > 0, lambda: x, lambda: -x), x[:1]))
    for flag in (True, False):
        for sign in (1, -1):
            feeds = {"x": sign * np.abs(numbers(3, 2)), "up": np.array(flag)}
            same_as_onnxruntime(tmp_path / "m.onnx", {"x": x, "up": up}, {"y": y, "z": z, "again": y + 1.0}, **feeds)


def test_while_loops(tmp_path: Path) -> None:
    x, bound = nf.placeholder("float32", (2,), name="x"), nf.placeholder("float32", (), name="bound")
    w = nf.Variable(np.float32([1.5, 2]), name="w")
    doubled, steps = nf.while_loop(
        lambda v, n: nf.max(v) < bound, lambda v, n: (v * w.read(), n + 1), (nf.abs(x), np.int64(0))
    )
    limited = nf.while_loop(lambda v: nf.max(v) < bound, lambda v: v + x * x, x, maximum_iterations=3)
    grown = nf.while_loop(lambda v: nf.shape_of(v)[0] < 9, lambda v: nf.concat([v, v]), x, shape_invariants=(None,))
    outputs = {"doubled": doubled, "steps": steps, "limited": limited, "grown": grown}
    for value in (0.1, 10.0, 1000.0):
        same_as_onnxruntime(
            tmp_path / "m.onnx", {"x": x, "bound": bound}, outputs, x=numbers(2), bound=np.array(value, "float32")
        )


def test_scans_and_maps(tmp_path: Path) -> None:
    x, start = nf.placeholder("float32", (None, 2), name="x"), nf.placeholder("float32", (2,), name="start")
    w = nf.Variable(np.float32([[1, 0.5], [0, 1]]), name="w")
    outputs = {}
    for name, options in (("plain", {}), ("reverse", {"reverse": True}), ("short", {"length": 2, "reverse": True})):
        last, seen = nf.scan(lambda c, r: (nf.tanh(c @ w + r), (c, r * 2.0)), start, x, **options)
        outputs |= {f"{name} last": last, f"{name} carry": seen[0], f"{name} row": seen[1]}
    outputs["powers"] = nf.scan(lambda c, r: (c * 2.0, c), start, length=4)[1]
    outputs["mapped"] = nf.map(lambda r: nf.scan(lambda c, v: (c + v, c), nf.sum(r), r)[1], x)
    for rows in (3, 5):
        same_as_onnxruntime(
            tmp_path / "m.onnx", {"x": x, "start": start}, outputs, x=numbers(rows, 2), start=numbers(2, seed=1)
        )


def test_a_loop_that_changes_state_is_refused(tmp_path: Path) -> None:
    v = nf.Variable(np.float32(1), name="v")
    total = nf.while_loop(lambda n: n < 3, lambda n: n + nf.astype(v.assign_add(np.float32(1)), "int64"), np.int64(0))
    with pytest.raises(GraphError, match=r"assign_add .*keeps no state"):
        save(tmp_path / "m.onnx", [], {"total": total})


# --- refusals --------------------------------------------------------------------------------------------------------


def test_errors_name_op_node_and_cell(graph: Graph, tmp_path: Path) -> None:
    graph.owner = Owner("cell-3", "In[3]")
    x = nf.placeholder("float32", (2, 2), name="x")
    y = nf.linalg.inv(x, name="inverse")
    with pytest.raises(GraphError, match=r"^inv 'inverse' cannot be written as ONNX: .*In\[3\]"):
        save(tmp_path / "m.onnx", [x], {"y": y})
    loose = nf.placeholder("float32", (2,), name="loose")
    with pytest.raises(GraphError, match=r"'loose'.*none of the inputs.*feeds="):
        save(tmp_path / "m.onnx", [x], {"y": x + loose})
    with pytest.raises(DTypeError, match=r"complex64.*nf\.astype.*In\[3\]"):
        save(tmp_path / "m.onnx", [x], {"y": nf.astype(x, "complex64")})
    anything = nf.placeholder("float32", None, name="anything")
    with pytest.raises(GraphError, match=r"matrix_transpose .*rank of anything is unknown"):
        save(tmp_path / "m.onnx", [anything], {"y": nf.matrix_transpose(anything)})
    assert not (tmp_path / "m.onnx").exists()


def test_state_that_changes_is_refused(tmp_path: Path) -> None:
    w = nf.Variable(np.zeros(2, "float32"), name="w")
    changed = w.assign_add(np.ones(2, "float32"))
    with pytest.raises(GraphError, match="keeps no state"):
        save(tmp_path / "m.onnx", [], {"y": changed * 2.0})
    with nf.control_dependencies([changed]):
        after = w.read()
    with pytest.raises(GraphError, match=r"reads variable 'w' after assign_add"):
        save(tmp_path / "m.onnx", [], {"y": after})
    np.testing.assert_array_equal(nf.run(w), [0, 0])


def test_what_is_asked_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    x = nf.placeholder("float32", (2,), name="x")
    y = nf.exp(x, name="y")
    for inputs, outputs, message in (
        ([x], [], "at least one output"),
        ({"a": x}, {"a": y}, "input and of an output"),
        ([x, x], [y], "twice"),
        (x, [y], "dict of names and tensors"),
        ([x], ["y"], "outputs are tensors, not str"),
    ):
        with pytest.raises(GraphError, match=message):
            save(path, inputs, outputs)
    for opset in (17, 1000):
        with pytest.raises(GraphError, match="opset is 18 to"):
            save(path, [x], [y], opset=opset)
    with pytest.raises(DTypeError, match="float64"):
        save(path, [], [y], feeds={x: np.zeros(2)})
    with pytest.raises(ShapeError, match=r"\(3,\)"):
        save(path, [], [y], feeds={x: [1, 2, 3]})
    with Graph().as_default():
        other = nf.placeholder("float32", (2,), name="other")
    with pytest.raises(GraphError, match="another graph"):
        save(path, [other], [y])
    save(path, [], [y], feeds={x: [0, 1]})
    np.testing.assert_allclose(run(path)[0], np.exp([0, 1]), rtol=1e-6)
