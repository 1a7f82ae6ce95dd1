"""nf.jvp and nf.hessian_vector_product against whole Jacobians and Hessians, and against autograd's."""

from __future__ import annotations

from collections.abc import Iterator

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

import nbflow as nf
from nbflow.errors import DTypeError, GraphError, ShapeError
from nbflow.graph import Graph, ancestors
from nbflow.testing import evaluate


@pytest.fixture
def graph() -> Iterator[Graph]:
    with Graph().as_default() as made:
        yield made


RNG = np.random.default_rng(0)
A, B, V = RNG.normal(size=(3, 4)), RNG.normal(size=(4, 2)), RNG.normal(size=(4,))
DA, DB = RNG.normal(size=A.shape), RNG.normal(size=B.shape)


def test_jvp_is_the_jacobian_times_the_tangents(graph: Graph) -> None:
    a, b = nf.placeholder("float64", (3, 4), name="a"), nf.placeholder("float64", (4, 2), name="b")
    ys = [nf.tanh(a @ b), nf.sum(a * a, axis=1)]
    found = nf.jvp(ys, [a, b], [nf.constant(DA), DB])
    one, two = evaluate(found, {a: A, b: B})
    h = 1e-6
    numeric = (np.tanh((A + h * DA) @ (B + h * DB)) - np.tanh((A - h * DA) @ (B - h * DB))) / (2 * h)
    np.testing.assert_allclose(one, numeric, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(two, 2 * (A * DA).sum(axis=1))
    # The values of what stands for u are not needed: nothing of size y is filled for it.
    needed = ancestors([t.node for t in found if t is not None])
    assert not any(n.op in ("full", "zeros_like") for n in needed)


def test_jvp_of_some(graph: Graph) -> None:
    a, b = nf.placeholder("float64", (3,), name="a"), nf.placeholder("float64", (3,), name="b")
    first, second, third = nf.jvp([a * b, nf.sin(b), nf.floor(a)], [a, b], [np.ones(3), None])
    assert second is None
    assert third is None
    np.testing.assert_allclose(evaluate(first, {a: np.ones(3), b: [1.0, 2.0, 3.0]}), [1, 2, 3])
    assert nf.jvp(nf.sin(b), a, np.ones(3)) == [None]


def test_jvp_of_lookups_unknown_shapes_and_second_order(graph: Graph) -> None:
    x, ids = nf.placeholder("float64", (None, 2), name="x"), nf.placeholder("int64", (None,), name="ids")
    y = nf.take(x, ids, axis=0) ** 3.0
    (first,) = nf.jvp(y, x, nf.ones_like(x))
    assert first is not None
    (second,) = nf.jvp(first, x, nf.ones_like(x))
    at = RNG.normal(size=(5, 2))
    one, two = evaluate([first, second], {x: at, ids: [4, 0, 4]})
    np.testing.assert_allclose(one, 3 * at[[4, 0, 4]] ** 2)
    np.testing.assert_allclose(two, 6 * at[[4, 0, 4]])


def test_hessian_vector_products_against_autograd(graph: Graph) -> None:
    def function(x):
        return anp.sum(anp.sin(x) * anp.exp(x[::-1])) + anp.prod(x)

    x = nf.placeholder("float64", (4,), name="x")
    y = nf.sum(nf.sin(x) * nf.exp(x[::-1])) + nf.prod(x)
    (found,) = nf.hessian_vector_product(y, x, DB[:, 0])
    wanted = autograd.hessian(function)(V) @ DB[:, 0]
    np.testing.assert_allclose(evaluate(found, {x: V}), wanted, rtol=1e-10)


def test_the_hessian_of_two_together(graph: Graph) -> None:
    a, b = nf.Variable(A, name="a"), nf.Variable(B, name="b")
    y = nf.sum(nf.sin(a @ b))

    def function(flat):
        return anp.sum(anp.sin(anp.dot(flat[:12].reshape(3, 4), flat[12:].reshape(4, 2))))

    whole = autograd.hessian(function)(np.concatenate([A.ravel(), B.ravel()]))
    for da, db in ((DA, DB), (None, DB), (DA, None)):
        found = nf.hessian_vector_product(y, [a, b], [da, db])
        flat = np.concatenate([(np.zeros_like(w) if d is None else d).ravel() for w, d in ((A, da), (B, db))])
        np.testing.assert_allclose(np.concatenate([f.ravel() for f in evaluate(found)]), whole @ flat, rtol=1e-9)
    linear = nf.sum(a @ nf.constant(B))
    assert nf.hessian_vector_product(linear, [a, b], [DA, None]) == [None, None]


def test_bad_arguments(graph: Graph) -> None:
    x = nf.placeholder("float64", (3,), name="x")
    i = nf.placeholder("int64", (3,), name="i")
    with pytest.raises(GraphError, match="2 entries for 1 xs"):
        nf.jvp(x * x, x, [np.ones(3), np.ones(3)])
    with pytest.raises(ShapeError, match=r"must be float64\[3\]"):
        nf.jvp(x * x, x, [np.ones(4)])
    with pytest.raises(GraphError, match="at least one tangent"):
        nf.jvp(x * x, x, [None])
    with pytest.raises(GraphError, match="empty"):
        nf.jvp([], [], [])
    with pytest.raises(GraphError, match="empty"):
        nf.hessian_vector_product(nf.sum(x), [], [])
    with pytest.raises(DTypeError, match="only floating"):
        nf.jvp(i, x, [np.ones(3)])
