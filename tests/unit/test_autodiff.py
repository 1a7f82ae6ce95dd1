"""`nf.gradients`: connections, accumulation, names, devices; against autograd as a second opinion."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

import nbflow as nf
from nbflow import op
from nbflow.errors import DTypeError, GraphError, ShapeError
from nbflow.graph import Graph
from nbflow.ops._build import build, same_infer
from nbflow.testing import check_gradients, evaluate


@pytest.fixture
def graph() -> Iterator[Graph]:
    with Graph().as_default() as made:
        yield made


def test_chain_and_broadcast(graph: Graph) -> None:
    x = nf.placeholder("float64", (None, 3), name="x")
    w = nf.placeholder("float64", (3, 2), name="w")
    b = nf.placeholder("float64", (2,), name="b")
    loss = nf.mean(nf.tanh(x @ w + b) ** 2)
    values = [np.linspace(-1, 1, n).reshape(s) for n, s in ((12, (4, 3)), (6, (3, 2)), (2, (2,)))]
    found = evaluate(nf.gradients(loss, [x, w, b]), dict(zip([x, w, b], values, strict=True)))
    wanted = autograd.grad(lambda x, w, b: anp.mean(anp.tanh(x @ w + b) ** 2), (0, 1, 2))(*values)
    for mine, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12)


def test_fan_out_is_added_in_one_node(graph: Graph) -> None:
    x = nf.placeholder("float64", (2,), name="x")
    (grad,) = nf.gradients(nf.sum(x * x) + nf.sum(nf.sin(x)) + nf.sum(x[:1]), [x])
    assert grad is not None
    assert grad.node.op == "add_n"
    assert len(grad.node.inputs) == 4
    assert evaluate(grad, {x: [0.5, 2.0]}) == pytest.approx([1 + np.cos(0.5) + 1, 4 + np.cos(2.0)])


def test_not_connected_is_none(graph: Graph) -> None:
    x, y = nf.placeholder("float32", (3,), name="x"), nf.placeholder("float32", (3,), name="y")
    assert nf.gradients(nf.sum(x), [y]) == [None]
    assert nf.gradients(nf.sum(nf.stop_gradient(x)), [x]) == [None]
    assert nf.gradients(nf.sum(nf.floor(x)), [x]) == [None]
    assert nf.gradients(nf.sum(nf.astype(nf.astype(x, "int32"), "float32")), [x]) == [None]
    assert nf.gradients(nf.sum(nf.take(x, nf.argmax(x)[None], axis=0)), [y]) == [None]
    index = nf.argmax(y)
    assert nf.gradients(nf.sum(nf.take(x, index[None], axis=0)), [x, index])[1] is None


def test_a_blocked_path_beside_an_open_one(graph: Graph) -> None:
    x = nf.placeholder("float64", (2,), name="x")
    (grad,) = nf.gradients(nf.sum(x * nf.stop_gradient(x) + nf.floor(x)), [x])
    np.testing.assert_array_equal(evaluate(grad, {x: [3.5, -2.0]}), [3.5, -2.0])


def test_an_x_on_the_way_to_another(graph: Graph) -> None:
    x = nf.placeholder("float64", (), name="x")
    h = x * x
    y = h * x
    found = nf.gradients(y, [x, h, y])
    assert evaluate(found, {x: 3.0}) == [27.0, 3.0, 1.0]


def test_several_ys_and_given_gradients(graph: Graph) -> None:
    x = nf.placeholder("float64", (2,), name="x")
    (grad,) = nf.gradients([x * 2, x * x], [x], grad_ys=[np.array([1.0, 10.0]), None])
    np.testing.assert_array_equal(evaluate(grad, {x: [1.0, 2.0]}), [4.0, 24.0])
    (grad,) = nf.gradients(x * x, x, grad_ys=3.0 * nf.ones_like(x))
    np.testing.assert_array_equal(evaluate(grad, {x: [1.0, 2.0]}), [6.0, 12.0])


def test_multi_output_nodes(graph: Graph) -> None:
    x = nf.placeholder("float64", (4,), name="x")
    first, _, last = nf.split(x, (1, 1, 2))
    (grad,) = nf.gradients(nf.sum(first * 3) + nf.sum(last * last), [x])
    np.testing.assert_array_equal(evaluate(grad, {x: [1.0, 2.0, 3.0, 4.0]}), [3.0, 0.0, 6.0, 8.0])


def test_third_order(graph: Graph) -> None:
    x = nf.placeholder("float64", (), name="x")
    y = nf.sin(x) * x**3.0
    for _ in range(3):
        (y,) = nf.gradients(y, [x])
    at, (s, c) = 0.7, (np.sin(0.7), np.cos(0.7))
    assert evaluate(y, {x: at}) == pytest.approx(6 * s + 18 * at * c - 9 * at**2 * s - at**3 * c)


@pytest.mark.parametrize("axis", [None, 0, -1, (0, 1), ()])
def test_products_have_derivatives_of_any_order(axis: Any) -> None:
    """Also where elements are 0. The function given is a gradient already: orders 2, 3 and 4 of the product."""
    at = np.array([[0.0, 1.5, 2.0], [0.5, 0.0, -1.0]])

    def slope(x: nf.Tensor) -> nf.Tensor | None:
        return nf.gradients(nf.sum(nf.prod(x, axis=axis, keepdims=True) * (x + 1.0)), [x])[0]

    check_gradients(slope, at, order=3)


def test_variables(graph: Graph) -> None:
    w = nf.Variable(np.array([1.0, 2.0]), name="w")
    (grad,) = nf.gradients(nf.sum(w * w), [w])
    np.testing.assert_array_equal(evaluate(grad), [2.0, 4.0])


def test_names_and_devices_follow_the_forward_op(graph: Graph) -> None:
    x = nf.placeholder("float32", (2, 3), name="x")
    with graph.name_scope("model"), graph.device("gpu:0"):
        y = nf.matmul(x, nf.ones((3, 2)), name="product")
    with graph.name_scope("elsewhere"), graph.device("cpu:0"):
        nf.gradients(nf.sum(nf.exp(y)), [x])
    made = [n for n in graph.nodes.values() if n.name.startswith("gradients/")]
    assert "gradients/model/product/matmul" in graph.nodes
    for node in made:
        assert node.auto_named
        assert not str(node.device)
        forward = node.colocate[0]
        assert node.name.startswith(f"gradients/{forward}/")


def test_nothing_unused_stays_in_the_graph(graph: Graph) -> None:
    x = nf.placeholder("float32", (None, 3), name="x")
    w = nf.placeholder("float32", (3, 2), name="w")
    (grad,) = nf.gradients(nf.mean(nf.maximum(x @ w, 0)), [w])
    assert grad is not None
    needed = {n.name for n in nf.graph.ancestors([grad.node])}
    assert {n for n in graph.nodes.keys() if n.startswith("gradients/")} <= needed


def test_same_cell_same_names(graph: Graph) -> None:
    def build_once() -> list[str]:
        with Graph().as_default() as made:
            x = nf.placeholder("float32", (None, 3), name="x")
            nf.gradients(nf.mean(nf.exp(x) * x + x), [x])
            return list(made.nodes.keys())

    assert build_once() == build_once()


def test_bad_arguments(graph: Graph) -> None:
    x = nf.placeholder("float32", (3,), name="x")
    with pytest.raises(DTypeError, match="only floating tensors"):
        nf.gradients(nf.argmax(x), [x])
    with pytest.raises(ShapeError, match=r"must be float32\[3\]"):
        nf.gradients(x * 2, [x], grad_ys=[np.ones(4, "float32")])
    with pytest.raises(GraphError, match="1 entries for 2"):
        nf.gradients([x, x * 2], [x], grad_ys=[None])
    with pytest.raises(GraphError, match="tensors or variables, not 3"):
        nf.gradients(x, [3])
    with Graph().as_default():
        other = nf.placeholder("float32", (3,), name="x")
    with pytest.raises(GraphError, match="another graph"):
        nf.gradients(x, [other])


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda node, grads: [], "gives 0 gradients for 1 inputs"),
        (lambda node, grads: [nf.sum(grads[0])], r"gives float32\(\) for its input x"),
        (lambda node, grads: [nf.astype(grads[0], "float64")], "gives float64"),
    ],
)
def test_a_broken_rule_is_named(graph: Graph, monkeypatch: pytest.MonkeyPatch, rule: object, message: str) -> None:
    monkeypatch.setattr(op, "_REGISTRY", dict(op._REGISTRY))
    op.define("test_broken", infer=same_infer, gradient=rule, doc="broken")  # type: ignore[arg-type]
    x = nf.placeholder("float32", (3,), name="x")
    with pytest.raises(GraphError, match=f"rule of test_broken {message}"):
        nf.gradients(build("test_broken", (x,)), [x])


def test_ties_and_kinks(graph: Graph) -> None:
    x = nf.placeholder("float64", (4,), name="x")
    (grad,) = nf.gradients(nf.max(x), [x])
    np.testing.assert_array_equal(evaluate(grad, {x: [1.0, 3.0, 3.0, 0.0]}), [0, 0.5, 0.5, 0])
    both = nf.gradients(nf.sum(nf.maximum(x, x * 1.0)), [x])
    np.testing.assert_array_equal(evaluate(both[0], {x: [1.0, 2.0, 3.0, 4.0]}), [1, 1, 1, 1])
    (grad,) = nf.gradients(nf.sum(nf.abs(x)), [x])
    np.testing.assert_array_equal(evaluate(grad, {x: [0.0, -1.0, 2.0, 0.0]}), [0, -1, 1, 0])


def test_a_small_network_against_autograd() -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=s) for s in ((5, 4), (4, 6), (6,), (6, 3))]

    def network(x, w, b, v):
        h = nf.maximum(x @ w + b, 0.01 * (x @ w))
        z = h @ v
        return nf.logsumexp(z, axis=-1) - z[:, 0]

    check_gradients(network, *arrays)


def test_a_chain_of_thousands_does_not_recurse(graph: Graph) -> None:
    x = nf.placeholder("float64", (), name="x")
    y = x
    for _ in range(3000):
        y = nf.identity(y)
    (grad,) = nf.gradients(y, [x])
    assert evaluate(grad, {x: 1.0}) == 1.0


def test_the_gradient_for_a_variable_counts_all_its_reads() -> None:
    with Graph().as_default():
        w = nf.Variable(np.array([1.0, 2.0]), name="w")
        again = w.read()
        y = nf.sum(w * w) + 3.0 * nf.sum(again)
        both, one = nf.gradients(y, [w, again])
        moved = nf.jvp(w * again, w, np.array([1.0, 1.0]))
        rows = nf.sum(nf.take(w, [0, 0])) + nf.sum(nf.take(again, [1]))
        (sparse,) = nf.gradients(rows, w, sparse=True)
        assert isinstance(sparse, nf.IndexedSlices)
        found = evaluate([both, one, *moved, sparse.to_dense()])
    for got, wanted in zip(found, ([5.0, 7.0], [3.0, 3.0], [2.0, 4.0], [2.0, 1.0]), strict=True):
        np.testing.assert_array_equal(got, wanted)
