"""Layers: names, shapes, initial values, training; and the ops of nf.nn that have no row in the table of cases."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import nbflow as nf
from nbflow import layers
from nbflow.errors import DTypeError, GraphError, NameInUseError, OpError, ShapeError
from nbflow.graph import Graph
from nbflow.session import Session
from nbflow.testing import Evaluator, check_gradients, evaluate

RNG = np.random.default_rng(3)


@pytest.fixture
def graph() -> Iterator[Graph]:
    with Graph().as_default() as made:
        yield made


def array(*shape: int) -> Any:
    return RNG.normal(size=shape).astype(np.float32)


def variables() -> dict[str, nf.Variable]:
    return {v.name: v for v in nf.variable.global_variables()}


def test_dense(graph: Graph) -> None:
    x = nf.placeholder("float32", (None, 3), name="x")
    y = layers.dense(x, 4, activation=nf.nn.relu, name="hidden")
    assert y.shape == (None, 4)
    assert sorted(variables()) == ["hidden/bias", "hidden/weights"]
    assert all(n.name.startswith("hidden/") for n in graph.nodes.values() if n.name != "x")
    value = array(5, 3)
    runner = Evaluator()
    w, b, found = runner.run([variables()["hidden/weights"], variables()["hidden/bias"], y], {x: value})
    np.testing.assert_allclose(found, np.maximum(value @ w + b, 0), rtol=1e-6)
    np.testing.assert_array_equal(b, np.zeros(4))
    assert np.abs(w).max() <= np.sqrt(6 / 7)
    assert layers.dense(x, 2, use_bias=False).name.startswith("dense/")
    assert layers.dense(x, 2).name.startswith("dense.1/")
    with pytest.raises(NameInUseError):
        layers.dense(x, 4, name="hidden")


def test_layers_nest_in_scopes(graph: Graph) -> None:
    with nf.name_scope("tower"):
        layers.dense(array(2, 3), 4, name="a")
    assert sorted(variables()) == ["tower/a/bias", "tower/a/weights"]


def test_initial_values_depend_on_the_name_and_the_seed(graph: Graph) -> None:
    x = nf.constant(array(1, 50))
    layers.dense(x, 40, name="a")
    layers.dense(x, 40, name="b")
    found = variables()
    a, b = Evaluator().run([found["a/weights"], found["b/weights"]])
    assert not np.array_equal(a, b)
    assert abs(a.std() - np.sqrt(6 / 90) / np.sqrt(3)) < 0.01
    graph.seed = 1
    assert not np.array_equal(a, Evaluator().run(found["a/weights"]))
    graph.seed = 0
    np.testing.assert_array_equal(a, Evaluator().run(found["a/weights"]))
    session = Session(graph=graph)
    session.run(x)
    np.testing.assert_array_equal(a, session.run(found["a/weights"]))
    session.close()


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_conv2d(graph: Graph, layout: str) -> None:
    shape = (None, 8, 8, 2) if layout == "NHWC" else (None, 2, 8, 8)
    x = nf.placeholder("float32", shape, name="x")
    y = layers.conv2d(x, 6, (3, 5), strides=2, activation=nf.nn.relu, data_format=layout, groups=2, name="c")
    assert variables()["c/weights"].shape == (3, 5, 1, 6)
    assert y.shape == ((None, 4, 4, 6) if layout == "NHWC" else (None, 6, 4, 4))
    assert Evaluator().run(y, {x: array(3, *shape[1:])}).shape[0] == 3


def test_embedding(graph: Graph) -> None:
    y = layers.embedding(np.array([[1, 1, 4]]), 5, 3, name="e")
    assert y.shape == (1, 3, 3)
    table, found = Evaluator().run([variables()["e/weights"], y])
    np.testing.assert_array_equal(found, table[[[1, 1, 4]]])


def test_layer_norm(graph: Graph) -> None:
    value = array(4, 6)
    found = evaluate(layers.layer_norm(value, name="n"))
    np.testing.assert_allclose(found.mean(-1), 0, atol=1e-6)
    np.testing.assert_allclose(found.std(-1), 1, atol=1e-3)
    assert sorted(variables()) == ["n/offset", "n/scale"]


def test_batch_norm_moves_its_averages_in_training_only(graph: Graph) -> None:
    x = nf.placeholder("float32", (None, 2), name="x")
    training = nf.placeholder("bool", (), name="training")
    y = layers.batch_norm(x, training=training, momentum=0.9, name="n")
    mean, variance = variables()["n/moving_mean"], variables()["n/moving_variance"]
    assert not mean.trainable
    session = Session(graph=graph)
    value = array(50, 2) * 3 + 1
    np.testing.assert_allclose(session.run(y, {x: value, training: False}), value / np.sqrt(1 + 1e-5), rtol=1e-5)
    np.testing.assert_array_equal(session.run(mean), [0, 0])
    found = session.run(y, {x: value, training: True})
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(session.run(mean), 0.1 * value.mean(0), rtol=1e-5)
    np.testing.assert_allclose(session.run(variance), 0.9 + 0.1 * value.var(0), rtol=1e-5)
    session.close()


def test_batch_norm_with_a_constant_mode(graph: Graph) -> None:
    value = array(2, 3, 4, 4)
    seen = evaluate(layers.batch_norm(value, axis=1, name="train"))
    np.testing.assert_allclose(seen.mean((0, 2, 3)), 0, atol=1e-6)
    used = evaluate(layers.batch_norm(value, training=False, axis=1, name="use"))
    np.testing.assert_allclose(used, value / np.sqrt(1 + 1e-5), rtol=1e-5)
    assert variables()["train/scale"].shape == (3,)


def test_multi_head_attention(graph: Graph) -> None:
    x = nf.placeholder("float32", (None, None, 8), name="x")
    y = layers.multi_head_attention(x, 2, causal=True, name="attend")
    assert y.spec.rank == 3
    runner = Evaluator()
    value = array(3, 5, 8)
    found = runner.run(y, {x: value})
    assert found.shape == (3, 5, 8)
    changed = value.copy()
    changed[:, 4] += 1  # the last position is hidden from the earlier ones
    again = runner.run(y, {x: changed})
    assert not np.allclose(found[:, 4], again[:, 4])
    fixed = nf.placeholder("float32", (None, 5, 8), name="fixed")
    z = layers.multi_head_attention(fixed, 2, causal=True, name="fixed_attend")
    one, two = runner.run(z, {fixed: value}), runner.run(z, {fixed: changed})
    np.testing.assert_allclose(one[:, :4], two[:, :4], rtol=1e-5)


@pytest.mark.parametrize("shape", [(2, 0, 8), (0, 5, 8), (0, 0, 8)])
def test_multi_head_attention_over_nothing(graph: Graph, shape: tuple[int, ...]) -> None:
    for n, dims in enumerate(((None, None, 8), shape)):
        x = nf.placeholder("float32", dims)
        y = layers.multi_head_attention(x, 2, causal=True, name=f"attend_{n}")
        (slope,) = nf.gradients(nf.sum(y), [x])
        for found in evaluate([y, slope], {x: np.zeros(shape, np.float32)}):
            assert found.shape == shape


def test_layers_learn(graph: Graph) -> None:
    """A little convolutional network separates horizontal from vertical bars."""
    images = np.zeros((40, 6, 6, 1), np.float32)
    labels = np.arange(40) % 2
    for n, label in enumerate(labels):
        place = n // 2 % 6
        images[n, place, :, 0] = 1 - label
        images[n, :, place, 0] += label
    batch = nf.data.from_arrays({"x": images, "y": labels}).shuffle(40, seed=0).repeat().batch(20).next()
    h = layers.conv2d(batch["x"], 8, 3, activation=nf.nn.relu, name="conv")
    h = nf.nn.max_pool2d(h, 2)
    h = nf.reshape(h, (-1, 72))
    h = layers.batch_norm(h, name="norm")
    logits = layers.dense(h, 2, name="logits")
    loss = nf.mean(nf.nn.softmax_cross_entropy(logits, batch["y"]))
    step = nf.optim.Adam(0.01).minimize(loss)
    session = Session(graph=graph)
    losses = [float(session.run([step, loss])[1]) for _ in range(60)]
    session.close()
    assert losses[-1] < 0.1 < losses[0]


def test_what_layers_refuse(graph: Graph) -> None:
    unknown = nf.placeholder("float32", (None, None), name="unknown")
    whole = nf.placeholder("int64", (None, 3), name="whole")
    with pytest.raises(ShapeError, match=r"dense needs to know dimension -1 of unknown, \(\?, \?\)"):
        layers.dense(unknown, 4)
    with pytest.raises(DTypeError, match=r"whole is int64; use nf\.astype"):
        layers.dense(whole, 4)
    with pytest.raises(GraphError, match="units is a positive integer, not 0"):
        layers.dense(array(2, 3), 0)
    with pytest.raises(DTypeError, match="integer ids"):
        layers.embedding(array(3), 4, 2)
    with pytest.raises(ShapeError, match="3 channels do not divide"):
        layers.conv2d(array(1, 4, 4, 3), 4, 3, groups=2)


# --- nf.nn -----------------------------------------------------------------------------------------------------------


def test_class_ids_out_of_range(graph: Graph) -> None:
    labels = nf.placeholder("int64", (None,), name="labels")
    loss = nf.nn.softmax_cross_entropy(array(2, 3), labels)
    for ids in ([0, 3], [-1, 0]):
        with pytest.raises(OpError, match="classes 0 to 2"):
            evaluate(loss, {labels: np.array(ids)})
    assert evaluate(nf.nn.softmax_cross_entropy(np.zeros((0, 3), np.float32), np.zeros(0, np.int64))).shape == (0,)


def test_labels_that_do_not_fit(graph: Graph) -> None:
    logits = nf.constant(array(4, 3))
    with pytest.raises(ShapeError, match=r"class ids \(4, 1\) do not fit logits \(4, 3\)"):
        nf.nn.softmax_cross_entropy(logits, np.zeros((4, 1), np.int64))
    with pytest.raises(ShapeError, match="class ids must be integers"):
        nf.nn.softmax_cross_entropy(logits, np.zeros(4, np.float32))
    with pytest.raises(DTypeError, match="integer class ids or"):
        nf.nn.softmax_cross_entropy(logits, np.zeros(4, bool))
    with pytest.raises(ShapeError, match=r"\(4, 1\) and \(4,\) differ"):
        nf.nn.mean_squared_error(array(4, 1), array(4))


def test_cross_entropies_do_not_overflow(graph: Graph) -> None:
    x = nf.constant(np.array([1e4, -1e4]))
    losses = nf.nn.sigmoid_cross_entropy(x, np.array([0.0, 1.0]))
    (grad,) = nf.gradients(losses, [x])
    value, slope = evaluate([losses, grad])
    np.testing.assert_allclose(value, [1e4, 1e4])
    np.testing.assert_allclose(slope, [1, -1])


def test_dropout(graph: Graph) -> None:
    x = nf.placeholder("float32", (None,), name="x")
    training = nf.placeholder("bool", (), name="training")
    y = nf.nn.dropout(x, 0.25, training)
    (grad,) = nf.gradients(y, [x])
    runner = Evaluator()
    value = np.full(20_000, 3.0, np.float32)
    found, slope = runner.run([y, grad], {x: value, training: True})
    np.testing.assert_allclose(np.unique(found), [0, 4])
    assert abs((found == 0).mean() - 0.25) < 0.02
    np.testing.assert_allclose(slope, found / 3, rtol=1e-6)  # the same elements are dropped on the way back
    again = runner.run(y, {x: value, training: True})
    assert not np.array_equal(again, found)
    np.testing.assert_array_equal(runner.run(y, {x: value, training: False}), value)
    assert nf.nn.dropout(x, 0.0).node.op == nf.nn.dropout(x, 0.5, training=False).node.op == "identity"
    for rate in (1.0, -0.1):
        with pytest.raises(GraphError, match="dropout rate"):
            nf.nn.dropout(x, rate)


def test_attention_masks(graph: Graph) -> None:
    q, k, v = array(3, 4), array(5, 4), array(5, 2)
    mask = np.array([True, False, True, True, False])
    np.testing.assert_allclose(
        evaluate(nf.nn.attention(q, k, v, mask)), evaluate(nf.nn.attention(q, k[mask], v[mask])), rtol=1e-5
    )
    hidden = evaluate(nf.nn.attention(q, k, v, np.zeros(5, bool)))
    np.testing.assert_array_equal(hidden, np.zeros((3, 2)))
    unknown = nf.placeholder("float32", (None, None), name="unknown")
    with pytest.raises(ShapeError, match="last dimension of unknown"):
        nf.nn.attention(unknown, unknown, unknown)
    with pytest.raises(ShapeError, match=r"4 heads .* do not divide among 3"):
        nf.nn.attention(array(1, 4, 2, 2), array(1, 3, 2, 2), array(1, 3, 2, 2))
    with pytest.raises(GraphError, match="softcap"):
        nf.nn.attention(q, k, v, softcap=0.0)
    with pytest.raises(GraphError, match="window is"):
        nf.nn.attention(q, k, v, window=2)  # type: ignore[arg-type]
    scaled = nf.nn.attention(unknown, unknown, unknown, scale=0.5)
    assert evaluate(scaled, {unknown: q}).shape == (3, 4)


def test_composed_ops_lie_in_a_scope(graph: Graph) -> None:
    x = nf.constant(array(2, 3))
    assert nf.nn.gelu(x, name="act").name.startswith("act/")
    assert nf.nn.gelu(x).name.startswith("gelu/")
    assert nf.nn.gelu(x).name.startswith("gelu.1/")


def test_elu_has_no_nan_gradient_far_out(graph: Graph) -> None:
    x = nf.constant(np.array([1000.0, -1000.0], np.float32))
    (grad,) = nf.gradients(nf.nn.elu(x), [x])
    np.testing.assert_array_equal(evaluate(grad), [1, 0])


def test_batch_norm_needs_both_moments(graph: Graph) -> None:
    with pytest.raises(GraphError, match="both mean and variance"):
        nf.nn.batch_norm(array(2, 3), mean=np.zeros(3))


def test_gradients_through_a_layer_norm_attention_block() -> None:
    def block(x: Any, w: Any) -> Any:
        h = nf.nn.layer_norm(x)
        return x + nf.nn.attention(h @ w, h, h, causal=True)

    check_gradients(block, RNG.normal(size=(2, 3, 4)), RNG.normal(size=(4, 4)), order=1)


@pytest.mark.parametrize(("n", "layer"), [(1, layers.conv1d), (3, layers.conv3d)])
def test_convolutions_of_other_dimensions(graph: Graph, n: int, layer: Any) -> None:
    shape = {1: (None, 6, 2), 3: (None, 4, 5, 3, 2)}[n]
    x = nf.placeholder("float32", shape, name="x")
    y = layer(x, 4, 3, padding="VALID" if n == 1 else "SAME", activation=nf.nn.relu, name="c")
    value = array(2, *shape[1:])
    w, b, found = Evaluator().run([variables()["c/weights"], variables()["c/bias"], y], {x: value})
    assert w.shape == (*(3,) * n, 2, 4)
    plain = evaluate(nf.nn.conv(value, w, 1, "VALID" if n == 1 else "SAME"))
    np.testing.assert_allclose(found, np.maximum(plain + b, 0), rtol=1e-5, atol=1e-6)
    with pytest.raises(ShapeError, match="number of channels"):
        layer(nf.placeholder("float32", (None,) * (n + 2), name="open"), 4, 3)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_depthwise_and_transposed_convolutions(graph: Graph, layout: str) -> None:
    x = nf.placeholder("float32", (None, 4, 6, 3) if layout == "NHWC" else (None, 3, 4, 6), name="x")
    each = layers.depthwise_conv2d(x, 3, 2, data_format=layout, name="each")
    large = layers.conv_transpose2d(x, 5, 2, 2, data_format=layout, name="large")
    assert variables()["each/weights"].shape == (3, 3, 1, 6)
    assert variables()["large/weights"].shape == (2, 2, 5, 3)
    assert each.shape == ((None, 4, 6, 6) if layout == "NHWC" else (None, 6, 4, 6))
    assert large.shape == ((None, 8, 12, 5) if layout == "NHWC" else (None, 5, 8, 12))
    step = nf.optim.SGD(0.1).minimize(nf.sum(nf.square(each)) + nf.sum(nf.square(large)))
    value = array(1, *(d for d in x.shape[1:] if d))
    with Session() as session:
        before = session.run([variables()["large/weights"], variables()["large/bias"]])
        session.run(step, {x: value})
        after = session.run([variables()["large/weights"], variables()["large/bias"]])
    assert all((a != b).any() for a, b in zip(before, after, strict=True))


def test_other_normalisations(graph: Graph) -> None:
    value = array(2, 3, 3, 4)
    made = [
        layers.group_norm(value, 2, name="g"),
        layers.instance_norm(value, name="i"),
        layers.rms_norm(value, name="r"),
    ]
    plain = [nf.nn.group_norm(value, 2), nf.nn.instance_norm(value), nf.nn.rms_norm(value)]
    for one, other in zip(evaluate(made), evaluate(plain), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert sorted(variables()) == ["g/offset", "g/scale", "i/offset", "i/scale", "r/scale"]


def test_attention_with_shared_heads_and_rotary_positions(graph: Graph) -> None:
    x = array(2, 5, 8)
    y = layers.multi_head_attention(x, 4, causal=True, kv_heads=2, rotary=True, use_bias=False, name="a")
    found = {n: evaluate(v) for n, v in variables().items()}
    assert {n: v.shape for n, v in found.items()} == {
        "a/query/weights": (8, 8), "a/key/weights": (8, 4), "a/value/weights": (8, 4), "a/output/weights": (8, 8),
    }  # fmt: skip
    q, k, v = (
        evaluate(nf.permute_dims(nf.reshape(x @ found[f"a/{n}/weights"], (2, 5, -1, 2)), (0, 2, 1, 3)))
        for n in ("query", "key", "value")
    )
    turned = [nf.nn.rotary_embedding(t) for t in (q, k)]
    seen = nf.nn.attention(*turned, v, causal=True)
    plain = nf.reshape(nf.permute_dims(seen, (0, 2, 1, 3)), (2, 5, 8)) @ nf.constant(found["a/output/weights"])
    np.testing.assert_allclose(evaluate(y), evaluate(plain), rtol=1e-4, atol=1e-5)
    with pytest.raises(ShapeError, match="4 heads of queries"):
        layers.multi_head_attention(x, 4, kv_heads=3)
    dropped = layers.multi_head_attention(x, 2, dropout=0.5, training=False, name="d")
    assert np.isfinite(evaluate(dropped)).all()
