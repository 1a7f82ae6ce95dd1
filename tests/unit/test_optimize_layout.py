"""Permutations that cancel, convolutions with their channels last, and the passes that may change last bits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import nbflow as nf
from nbflow.graph import Graph, Tensor
from nbflow.session import Session

F32 = np.float32


@pytest.fixture
def graph() -> Iterator[Graph]:
    with Graph().as_default() as made:
        yield made


def fed(*shape: int, name: str = "x") -> Tensor:
    return nf.placeholder("float32", shape, name=name)


def run(passes: str, y: Tensor, feeds: dict[Tensor, Any]) -> tuple[np.ndarray[Any, Any], Counter[str]]:
    """The value, and the ops that ran."""
    with Session(None, y.graph, passes=passes) as session:
        value = session.run(y, feeds)
        assert session.last is not None
        return value, Counter(n.op for n in session.last.graph.nodes)


def near(passes: str, y: Tensor, feeds: dict[Tensor, Any]) -> Counter[str]:
    """As `same_bits`, for passes that may change the last of them: here sums of at most 36 products of numbers near 1,
    twice in a row."""
    plain, _ = run("none", y, feeds)
    value, found = run(passes, y, feeds)
    assert value.dtype == plain.dtype
    np.testing.assert_allclose(value, plain, rtol=0, atol=36 * np.finfo(F32).eps * np.abs(plain).max() * 4)
    return found


def same_bits(passes: str, y: Tensor, feeds: dict[Tensor, Any]) -> Counter[str]:
    """The ops that ran with `passes`, whose result must be that without."""
    plain, _ = run("none", y, feeds)
    value, found = run(passes, y, feeds)
    assert value.shape == plain.shape
    assert value.dtype == plain.dtype
    assert np.ascontiguousarray(value).tobytes() == np.ascontiguousarray(plain).tobytes()
    return found


def array(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).normal(size=shape).astype(F32)


# --- permutations and reshapes ---------------------------------------------------------------------------------------

PERMUTED: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "there and back": (lambda x: nf.permute_dims(nf.permute_dims(x, (1, 2, 0)), (2, 0, 1)) * 2.0, 0),
    "two that do not commute": (lambda x: nf.permute_dims(nf.permute_dims(x, (1, 0, 2)), (0, 2, 1)), 1),
    "two become one": (lambda x: nf.permute_dims(nf.permute_dims(x, (1, 2, 0)), (1, 2, 0)), 1),
    "transposed twice": (lambda x: nf.matrix_transpose(nf.matrix_transpose(x)) + 1.0, 0),
    "mixed": (lambda x: nf.matrix_transpose(nf.permute_dims(x, (0, 2, 1))) + 1.0, 0),
    "through ops": (lambda x: nf.permute_dims(nf.tanh(nf.permute_dims(x, (1, 2, 0)) * 2.0), (2, 0, 1)), 0),
    "joined": (lambda x: nf.matrix_transpose(nf.matrix_transpose(x) * nf.exp(nf.matrix_transpose(x))), 0),
    "not undone": (lambda x: nf.sum(nf.tanh(nf.permute_dims(x, (1, 2, 0))), axis=0), 1),
    "only one side": (lambda x: nf.matrix_transpose(nf.matrix_transpose(x) + nf.tanh(x)[:, :1, :1]), 1),
}


@pytest.mark.parametrize("name", PERMUTED)
def test_permutations(graph: Graph, name: str) -> None:
    make, left = PERMUTED[name]
    x = fed(4, 5, 6)
    found = same_bits("transposes", make(x), {x: array(4, 5, 6)})
    # An operand that is put in another order counts as well: it is small.
    assert found["permute_dims"] + found["matrix_transpose"] == left


def test_a_bias_is_put_in_the_other_order(graph: Graph) -> None:
    x, bias = fed(2, 3, 8, 8), nf.Variable(array(3, 1), name="bias")
    y = nf.permute_dims(nf.permute_dims(x, (0, 3, 1, 2)) + bias.to_tensor(), (0, 2, 3, 1))
    found = same_bits("transposes", y, {x: array(2, 3, 8, 8)})
    assert found["permute_dims"] == 1


def test_reshapes_in_a_row(graph: Graph) -> None:
    x = fed(4, 6)
    y = nf.squeeze(nf.expand_dims(nf.reshape(nf.reshape(x, (2, 12)), (8, 3)), 0), 0) + 1.0
    assert same_bits("transposes", y, {x: array(4, 6)}) == {"placeholder": 1, "reshape": 1, "constant": 1, "add": 1}
    y = nf.reshape(nf.expand_dims(x, 0), (4, 6)) + 1.0
    assert same_bits("transposes", y, {x: array(4, 6)}) == {"placeholder": 1, "constant": 1, "add": 1}


def test_a_reshape_that_fails_still_fails(graph: Graph) -> None:
    x = fed(4, 6)
    wrong = nf.concat([nf.constant([5]), nf.astype(nf.sum(x), "int64")[None]], axis=0)
    y = nf.reshape(nf.reshape(x, wrong), (4, 6))
    with Session(None, graph) as session, pytest.raises(nf.errors.OpError, match="reshape"):
        session.run(y, {x: array(4, 6)})


# --- layout ----------------------------------------------------------------------------------------------------------


def chain(x: Tensor, padding: str, between: Callable[[Tensor], Tensor], **more: Any) -> Tensor:
    w = [nf.Variable(array(3, 3, c, d), name=f"w{c}{d}") for c, d in ((3, 4), (4, 5))]
    h = nf.nn.conv2d(x, w[0].to_tensor(), padding=padding, data_format="NCHW", **more)
    return nf.nn.conv2d(between(h), w[1].to_tensor(), padding=padding, data_format="NCHW", **more)


BETWEEN: dict[str, Callable[[Tensor], Tensor]] = {
    "nothing": lambda h: h,
    "relu": nf.nn.relu,
    "bias": lambda h: nf.nn.relu(h + nf.reshape(nf.constant(array(4)), (4, 1, 1))),
    "pool": lambda h: nf.nn.max_pool2d(nf.tanh(h), 2, data_format="NCHW"),
    "average": lambda h: nf.nn.avg_pool2d(h, 2, data_format="NCHW"),
    "residual": lambda h: h + nf.nn.relu(h),
    "batch norm": lambda h: nf.nn.batch_norm(h, *(nf.constant(np.abs(array(4)) + F32(n)) for n in range(4)), axis=1),
}


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_convolutions_in_a_row_have_their_channels_last(graph: Graph, between: str, padding: str) -> None:
    x = fed(2, 3, 12, 12)
    y = chain(x, padding, BETWEEN[between])
    found = near("layout,transposes", y, {x: array(2, 3, 12, 12)})
    # One on each side of the chain, and one for each operand of a batch norm that is not a scalar.
    assert found["permute_dims"] <= 2 + (4 if between == "batch norm" else 1)
    with Session(None, graph, passes="layout,transposes") as session:
        session.run(y, {x: array(2, 3, 12, 12)})
        assert session.last is not None
        assert {n.attrs["data_format"] for n in session.last.graph.nodes if n.op == "conv"} == {"NHWC"}


@pytest.mark.parametrize("more", [{"strides": 2}, {"dilation": 2}], ids=["strides", "dilation"])
def test_convolutions_with_strides(graph: Graph, more: dict[str, Any]) -> None:
    x = fed(1, 3, 24, 24)
    near("layout,transposes", chain(x, "VALID", nf.nn.relu, **more), {x: array(1, 3, 24, 24)})


def test_layouts_that_stay(graph: Graph) -> None:
    x = fed(2, 3, 12, 12)
    alone = nf.nn.conv2d(x, nf.constant(array(3, 3, 3, 4)), data_format="NCHW")
    assert same_bits("layout", alone, {x: array(2, 3, 12, 12)})["permute_dims"] == 0
    w = nf.Variable(array(3, 3, 4, 4), name="w")
    loss = nf.sum(nf.nn.conv2d(alone, w.to_tensor(), data_format="NCHW"))
    (gradient,) = nf.gradients(loss, [w.to_tensor()])
    assert same_bits("layout", gradient, {x: array(2, 3, 12, 12)})["permute_dims"] == 0


def test_pools_in_a_row_keep_every_bit(graph: Graph) -> None:
    x = fed(2, 3, 12, 12)
    y = nf.nn.avg_pool2d(nf.tanh(nf.nn.max_pool2d(x, 2, data_format="NCHW")), 3, data_format="NCHW")
    found = same_bits("layout,transposes", y, {x: array(2, 3, 12, 12)})
    assert found["permute_dims"] == 2
    assert "layout" not in nf.optimize.EXACT


# --- last bits -------------------------------------------------------------------------------------------------------


def test_products_read_transposed_matrices(graph: Graph) -> None:
    a, b = fed(30, 20, name="a"), fed(40, 30, name="b")
    y = nf.matmul(nf.matrix_transpose(a), nf.permute_dims(b, (1, 0)))
    feeds = {a: array(30, 20), b: array(40, 30)}
    plain, _ = run("none", y, feeds)
    value, found = run("matmul", y, feeds)
    assert found == {"placeholder": 2, "matmul": 1}
    bound = 30 * np.finfo(F32).eps * (np.abs(feeds[a].T) @ np.abs(feeds[b].T))
    assert (np.abs(value - plain) <= bound).all()
    assert run("all", y, feeds)[1]["matrix_transpose"] == 1, "it is off unless asked for"


def test_powers_that_are_products(graph: Graph) -> None:
    x = fed(1000)
    value = np.abs(array(1000)) * 10
    for number, op in ((1.0, None), (2.0, "square"), (-1.0, "reciprocal")):
        y = nf.exp(nf.pow(x, nf.constant(np.full(1, number, F32))))
        plain, _ = run("none", nf.log(y), {x: value / 10})
        other, found = run("power", nf.log(y), {x: value / 10})
        assert found["pow"] == 0
        assert op is None or found[op] == 1
        np.testing.assert_allclose(other, plain, rtol=1e-5)
    y = nf.pow(x, nf.constant(np.full(1, 0.5, F32)))
    assert run("power", y, {x: value})[1]["pow"] == 1, "-0 and -inf have other roots"
