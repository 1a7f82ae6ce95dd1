"""Building ops: conversion, promotion, weak scalars, operators, and the errors that name what is wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest

import nbflow as nf
from nbflow.errors import DTypeError, GraphError, NbflowError, OpError, ShapeError
from nbflow.graph import Graph, Tensor
from nbflow.operators import TENSOR_METHODS
from nbflow.ops.shape import unbroadcast
from nbflow.testing import evaluate


@pytest.fixture(autouse=True)
def graph() -> Iterator[Graph]:
    with Graph().as_default() as made:
        yield made


def x32(*shape: int | None, name: str = "x") -> Tensor:
    return nf.placeholder("float32", shape, name=name)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (1, "int64"),
        (1.0, "float32"),
        (True, "bool"),
        (1j, "complex64"),
        ([1, 2.5], "float32"),
        ([[True], [False]], "bool"),
        ([], "float32"),
        (np.float64(1), "float64"),
        (np.ones(2, "float16"), "float16"),
        ([np.float64(1)], "float64"),
        (np.ones(2, ">i4"), "int32"),
    ],
)
def test_constants_have_these_dtypes(value: object, dtype: str) -> None:
    assert nf.constant(value).dtype == np.dtype(dtype)


def test_constants_are_copies() -> None:
    array = np.ones(3)
    c = nf.constant(array)
    array[:] = 5
    np.testing.assert_array_equal(evaluate(c), np.ones(3))
    assert not c.node.attrs["value"].flags.writeable


@pytest.mark.parametrize("value", ["text", None, object(), [1, "a"], np.array(["a"]), [[1], [2, 3]], 2**70])
def test_what_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(DTypeError):
        nf.constant(value)


def test_lists_of_tensors_stack() -> None:
    x = nf.placeholder("float64", (), name="x")
    assert evaluate(nf.add([x, 1.0], [1.0, x * 2]), {x: 3.0}).tolist() == [4.0, 7.0]


def test_python_scalars_are_weak() -> None:
    for dtype in ("float16", "float32", "float64"):
        x = nf.placeholder(dtype, (2,))
        for made in (x + 1, 1.5 * x, x**2, 2.0**x, nf.where(x > 0, x, 0), nf.maximum(0, x), nf.clip(x, 0, 1)):
            assert made.dtype == np.dtype(dtype)
    assert (nf.placeholder("int8", (2,)) + 1).dtype == np.dtype("int8")
    assert (nf.placeholder("complex64", (2,)) * 1j).dtype == np.dtype("complex64")


@pytest.mark.parametrize(
    ("dtype", "scalar"), [("int32", 1.5), ("bool", 1), ("float32", True), ("float16", 1j), ("uint8", -1), ("int8", 300)]
)
def test_scalars_that_do_not_fit_are_refused(dtype: str, scalar: object) -> None:
    with pytest.raises(DTypeError):
        nf.placeholder(dtype, (2,)) + scalar


def test_kinds_do_not_mix_and_the_error_names_both_ops() -> None:
    x, k = x32(2), nf.placeholder("int64", (2,), name="k")
    with pytest.raises(DTypeError, match=r"float32 and int64 do not mix; use nf.astype.*x is float32\[2\].*k is int64"):
        x + k
    assert (x + nf.placeholder("float64", (2,))).dtype == np.float64
    assert (k + nf.placeholder("int8", (2,))).dtype == np.int64
    with pytest.raises(DTypeError, match="do not mix"):
        k + nf.placeholder("uint64", (2,))


def test_shape_errors_name_both_ops_and_where() -> None:
    x, w = x32(None, 3), x32(4, 2, name="w")
    with pytest.raises(ShapeError, match=r"3 columns, 4 rows.*x is float32\[\?,3\].*w is float32\[4,2\]") as caught:
        x @ w
    assert "line" in caught.value.where
    with pytest.raises(ShapeError, match="do not broadcast"):
        x32(3, name="a") + x32(4, name="b")


def test_mean_of_integers_says_what_to_do() -> None:
    with pytest.raises(DTypeError, match=r"use nf.astype\(x, 'float32'\)"):
        nf.mean(nf.placeholder("int64", (3,)))


BAD = {
    "reshape": lambda x: nf.reshape(x, (4, 2)),
    "reshape of two unknowns": lambda x: nf.reshape(x, (-1, -1)),
    "reshape to a word": lambda x: nf.reshape(x, "ab"),
    "expand": lambda x: nf.expand_dims(x, 7),
    "squeeze": lambda x: nf.squeeze(x, 0),
    "axis": lambda x: nf.sum(x, axis=2),
    "axis twice": lambda x: nf.sum(x, axis=(0, -2)),
    "index": lambda x: x[5],
    "indices": lambda x: x[0, 0, 0],
    "two ellipses": lambda x: x[..., ...],
    "mask of another shape": lambda x: x[x[0] > 0],
    "mask of many": lambda x: x[x > 0, 0],
    "float index": lambda x: x[1.0],
    "concat": lambda x: nf.concat([x, x[:1, :1]], axis=0),
    "concat of nothing": lambda x: nf.concat([]),
    "stack": lambda x: nf.stack([x, x[0]]),
    "split": lambda x: nf.split(x, 4),
    "split sizes": lambda x: nf.split(x, (1, 1)),
    "permute": lambda x: nf.permute_dims(x, (0, 0)),
    "tile": lambda x: nf.tile(x, -1),
    "repeat": lambda x: nf.repeat(x, 0),
    "pad": lambda x: nf.pad(x, ((1, 1),) * 3),
    "broadcast": lambda x: nf.broadcast_to(x, (3, 4)),
    "take": lambda x: nf.take(x, nf.constant([0])),
    "float indices": lambda x: nf.take(x, x, axis=0),
    "matmul": lambda x: nf.matmul(x, 2.0),
    "transpose": lambda x: x[0].T,
    "cumulative": nf.cumulative_sum,
    "argmax": lambda x: nf.argmax(x, axis=(0, 1)),
    "bits": lambda x: x & x,
    "where": lambda x: nf.where(x, x, x),
    "clip": lambda x: nf.clip(nf.astype(x, "int32"), 0.5, 1),
    "add_n": lambda x: nf.add_n([x, x[0]]),
    "weights": lambda x: nf.weighted_sum([x], [x]),
    "one_hot": lambda x: nf.one_hot(x, 3),
    "moveaxis": lambda x: nf.moveaxis(x, (0, 1), 0),
    "tensordot": lambda x: nf.tensordot(x, x, axes=((0,), (0, 1))),
    "arange": lambda x: nf.arange(0, 5, 0),
    "negative shape": lambda x: nf.zeros((-1,)),
    "placeholder": lambda x: nf.placeholder("float32", (-2,)),
    "dtype": lambda x: nf.astype(x, "datetime64[s]"),
    "imaginary part": lambda x: nf.astype(nf.astype(x, "complex64"), "float32"),
    "unstack": lambda x: nf.unstack(nf.placeholder("float32", (None,))),
}


@pytest.mark.parametrize("build", BAD.values(), ids=BAD.keys())
def test_bad_calls_raise_our_errors_and_leave_no_node(graph: Graph, build: object) -> None:
    x = x32(3, 5)
    with pytest.raises(NbflowError) as caught:
        build(x)  # type: ignore[operator]
    assert isinstance(caught.value, (ShapeError, DTypeError))
    assert len(str(caught.value)) > 20


def test_indices_out_of_range_at_run_time() -> None:
    x, k = x32(3, 2), nf.placeholder("int64", (None,), name="k")
    with pytest.raises(OpError, match="take"):
        evaluate(nf.take(x, k, axis=0), {x: np.ones((3, 2)), k: [3]})
    with pytest.raises(OpError, match="scatter_add"):
        evaluate(nf.scatter_add(x, k, nf.take(x, k * 0, axis=0)), {x: np.ones((3, 2)), k: [-4]})


def test_every_tensor_method_is_filled() -> None:
    x, y, k = x32(2, 2), x32(2, 2, name="y"), nf.placeholder("int64", (2, 2), name="k")
    made = [x + y, x - y, x * y, x / y, x // y, x % y, x**y, x @ y, -x, +x, abs(x), x < y, x <= y, x > y, x >= y]
    made += [x == y, x != y, k & 1, k | 1, k ^ 1, ~k, x.sum(0), x.mean(), x.max(1), x.min(), x.argmax(0), x.T, x[0]]
    made += [x.reshape(4), x.reshape(2, 2), x.reshape((1, -1)), x.astype("int8"), 1 + x, 1 - x, 2 / x, 7 // x, 7 % x]
    made += [np.ones((2, 2), "float32") @ x, np.float32(2) * x, 3 & k, 3 | k, 3 ^ k]
    assert all(isinstance(t, Tensor) for t in made)
    assert set(TENSOR_METHODS) >= {"add", "getitem", "matmul", "astype", "matrix_transpose"}
    values = {x: np.full((2, 2), 3.0), y: np.full((2, 2), 2.0)}
    assert evaluate([7 - x, 6 / x, 2**x, 7 // y, 7 % x], values)[2][0, 0] == 8
    assert [v[0, 0] for v in evaluate([7 - x, 6 / x, 7 // y, 7 % x], values)] == [4, 2, 3, 1]


def test_iterating_and_truth() -> None:
    x = x32(3, 2)
    assert len(list(x)) == len(x) == 3
    with pytest.raises(TypeError, match="no truth value"):
        bool(x > 0)
    with pytest.raises(TypeError, match="first dimension is unknown"):
        iter(nf.placeholder("float32", (None,)))


def test_group_waits_for_all(graph: Graph) -> None:
    a, b = nf.constant(1), nf.constant(2)
    node = nf.group(a, b.node, name="both")
    assert set(node.control_inputs) == {a.node, b.node}
    assert node.outputs == ()
    assert evaluate(node) is None


def test_names(graph: Graph) -> None:
    x = x32(2)
    assert nf.exp(x, name="grown").name == "grown"
    assert nf.std(x, name="spread").name == "spread"
    assert nf.logsumexp(x, name="soft").name == "soft"
    assert nf.constant(1.0, name="one").name == "one"
    assert [nf.sin(x).name, nf.sin(x).name] == ["sin", "sin.1"]


def test_ops_go_to_the_graph_of_their_inputs() -> None:
    with Graph().as_default() as other:
        x = x32(2)
    assert (x + 1.0).graph is other
    with pytest.raises(GraphError, match="another graph"):
        x + x32(2)


def test_unbroadcast_builds_nothing_where_shapes_prove_it(graph: Graph) -> None:
    g, batch, row = x32(None, 3), x32(None, 3, name="b"), x32(3, name="r")
    assert unbroadcast(g, batch, (3,)) is g
    assert unbroadcast(g, batch, ()) is g
    assert unbroadcast(g, batch, (1, 3)) is g
    assert unbroadcast(g, batch, (None, 3)) is not g
    assert unbroadcast(g, row, (None, 3)).node.op == "sum_to_shape"
    assert unbroadcast(g, row, (None, 3)).shape == (3,)


def test_powers_that_have_an_op_of_their_own() -> None:
    x = x32(2)
    assert [(x**2).node.op, (x**0.5).node.op, (x**3).node.op] == ["square", "sqrt", "pow"]


def test_linspace_and_moveaxis_shapes() -> None:
    assert nf.linspace(0, 1, 7).shape == (7,)
    x = nf.placeholder("float32", (2, None, 4))
    assert nf.moveaxis(x, 0, 1).shape == (None, 2, 4)


def test_erf_is_exact_to_six_units_in_the_last_place() -> None:
    points = np.concatenate([np.linspace(-7, 7, 20001), np.logspace(-300, 0, 500)])
    x = nf.placeholder("float64", (None,))
    found = evaluate(nf.erf(x), {x: points})
    wanted = np.array([math.erf(p) for p in points])
    assert np.max(np.abs(found - wanted) / np.spacing(np.maximum(np.abs(wanted), 1e-300))) <= 6
    special = evaluate(nf.erf(x), {x: [np.nan, np.inf, -np.inf, 0.0]})
    np.testing.assert_array_equal(special, [np.nan, 1, -1, 0])


def test_arrays_beside_scalars_make_one_constant_each(graph: Graph) -> None:
    made = nf.add(np.ones(2), 1)
    assert made.dtype == np.float64
    assert [n.op for n in graph.nodes.values()] == ["constant", "constant", "add"]
    with Graph().as_default():
        x = x32(2)
    assert nf.maximum(x, np.zeros(2, "float32")).graph is x.graph
