"""Variables: initialising themselves, reading, assigning, standing in for tensors."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import pytest

from nbflow import random
from nbflow.autodiff import gradients
from nbflow.backends.base import Context
from nbflow.backends.numpy import TABLE
from nbflow.errors import DTypeError, GraphError, NameInUseError, OpError, ShapeError
from nbflow.graph import Graph, Tensor
from nbflow.ops import constant, group, placeholder, sum
from nbflow.state import Cell, StateStore
from nbflow.testing import Evaluator
from nbflow.variable import Variable, as_variables, global_variables, trainable_variables, variables_of


def initialised(*variables: Variable) -> Evaluator:
    runner = Evaluator()
    for variable in variables:
        runner.run(variable.graph.node(f"{variable.name}/initialize"))
    return runner


def test_names_and_attributes() -> None:
    with Graph().as_default() as graph:
        with graph.name_scope("layer"):
            w = Variable(np.ones((2, 3), np.float32), name="w", trainable=False)
        assert (w.name, w.shape, w.dtype, w.trainable, w.ndim) == ("layer/w", (2, 3), np.float32, False, 2)
        assert w.to_tensor().name == "layer/w/read"
        assert graph.node("layer/w/initialize").inputs[0] is w.handle
        assert w.handle.spec.resource
        for op in ("initialize", "read"):
            assert graph.node(f"layer/w/{op}").colocate == ("layer/w",)
        assert "layer/w float32(2, 3)" in repr(w)
        with pytest.raises(NameInUseError):
            Variable(1.0, name="layer/w")
        assert [Variable(0.0).name, Variable(0.0).name] == ["variable", "variable.1"]


@pytest.mark.parametrize(
    ("initial", "dtype", "expected"),
    [(1.5, None, "float32"), (3, None, "int64"), ([1.0, 2.0], "float64", "float64"), (np.float16(2), None, "float16")],
)
def test_dtype_of_the_initial_value(initial: Any, dtype: Any, expected: str) -> None:
    with Graph().as_default():
        v = Variable(initial, dtype=dtype)
        assert v.dtype == expected
        np.testing.assert_array_equal(initialised(v).run(v), np.asarray(initial, expected))


def test_a_tensor_as_initial_value_is_cast_when_asked() -> None:
    with Graph().as_default():
        v = Variable(constant(np.arange(3)), dtype="float32")
        assert v.dtype == np.float32


def test_the_initial_value_needs_a_static_shape() -> None:
    with Graph().as_default(), pytest.raises(ShapeError, match="variable w needs a static shape"):
        Variable(placeholder("float32", (None, 3)), name="w")


def test_initialise_only_once_and_copy() -> None:
    with Graph().as_default():
        source = placeholder("float32", (2,))
        v = Variable(source, name="v")
        runner = Evaluator()
        node = v.graph.node("v/initialize")
        value = np.array([1, 2], np.float32)
        runner.run(node, {source: value})
        value += 1
        np.testing.assert_array_equal(runner.run(v), [1, 2])
        runner.run(node, {source: value})
        np.testing.assert_array_equal(runner.run(v), [1, 2])


def test_reading_before_initialising_is_an_error() -> None:
    context = Context("v/read:0", 0, 1, StateStore(), lambda: None)
    for op, inputs in (("read_variable", ()), ("assign_add", (np.ones(()),))):
        attrs: dict[str, Any] = {"variable": "v"} if op == "read_variable" else {"variable": "v", "shape": ()}
        with pytest.raises(OpError, match="variable 'v' is not initialised"):
            TABLE[op](context, Cell(), *inputs, **attrs)
    cell = Cell()
    TABLE["assign"](context, cell, np.ones(()), variable="v", shape=())
    assert cell.value == 1


def test_assigning() -> None:
    with Graph().as_default():
        v = Variable([1.0, 2.0], name="v")
        runner = initialised(v)
        plus, minus, new = v.assign_add([1.0, 1.0]), v.assign_sub(np.array([3.0, 0.0])), v.assign([7, 8])
        assert plus.node.colocate == ("v",)
        np.testing.assert_array_equal(runner.run(plus), [2, 3])
        before = runner.run(v)
        np.testing.assert_array_equal(runner.run(minus), [-1, 3])
        np.testing.assert_array_equal(before, [2, 3])
        np.testing.assert_array_equal(runner.run(new), [7, 8])
        np.testing.assert_array_equal(runner.run(v), [7, 8])


def test_the_value_never_aliases_what_came_in_or_went_out() -> None:
    with Graph().as_default():
        fed = placeholder("float32", (2,))
        v = Variable([0.0, 0.0], name="v")
        runner = initialised(v)
        given = np.array([1, 2], np.float32)
        out = runner.run(v.assign(fed), {fed: given})
        given[:] = 9
        out[:] = 9
        np.testing.assert_array_equal(runner.run(v), [1, 2])
        cell = runner.state.cell("v:0")
        kept = cell.value
        runner.run(v.assign_add(fed), {fed: given})
        assert cell.value is kept  # in place


def test_reading_after_an_update() -> None:
    with Graph().as_default() as graph:
        v = Variable(1.0, name="v")
        with graph.control_dependencies([v.assign_add(1.0)]):
            after = v.read()
        assert after.node.control_inputs[0].op == "assign_add"
        assert float(initialised(v).run(after)) == 2


def test_values_that_do_not_fit() -> None:
    with Graph().as_default():
        v = Variable([1.0, 2.0], name="v")
        n = Variable(3, name="n")
        with pytest.raises(ShapeError, match=r"shape \(2,\).*\(3,\)"):
            v.assign([1.0, 2.0, 3.0])
        with pytest.raises(DTypeError, match="holds int64"):
            n.assign(1.5)
        with pytest.raises(DTypeError, match=r"holds float32.*is float64"):
            v.assign(constant(np.zeros(2)))
        unknown = placeholder("float32", (None,))
        op = v.assign(unknown)
        with pytest.raises(OpError, match=r"float32 \(2,\) and cannot take float32 \(3,\)"):
            initialised(v).run(op, {unknown: np.zeros(3)})


@pytest.mark.parametrize(
    "op",
    [
        operator.add,
        operator.sub,
        operator.mul,
        operator.truediv,
        operator.floordiv,
        operator.mod,
        operator.pow,
        operator.lt,
        operator.le,
        operator.gt,
        operator.ge,
        operator.eq,
        operator.ne,
    ],
)
def test_operators(op: Any) -> None:
    value = np.array([1.0, 2.0, 3.0], np.float32)
    other = np.array([3.0, 2.0, 1.0], np.float32)
    with Graph().as_default():
        v = Variable(value, name="v")
        runner = initialised(v)
        for made, expected in (
            (op(v, 2.0), op(value, np.float32(2))),
            (op(2.0, v), op(np.float32(2), value)),
            (op(v, other), op(value, other)),
            (op(other, v), op(other, value)),
            (op(constant(other), v), op(other, value)),
        ):
            assert isinstance(made, Tensor)
            np.testing.assert_allclose(runner.run(made), expected, rtol=1e-6)


def test_other_operators_and_methods() -> None:
    value = np.arange(6, dtype=np.float32).reshape(2, 3) - 2
    with Graph().as_default():
        v = Variable(value, name="v")
        bits = Variable([5, 6], name="bits")
        runner = initialised(v, bits)
        pairs = [
            (-v, -value),
            (+v, value),
            (abs(v), abs(value)),
            (v @ value.T, value @ value.T),
            (value.T @ v, value.T @ value),
            (v[0, 1:], value[0, 1:]),
            (v.T, value.T),
            (v.sum(axis=0), value.sum(0)),
            (v.mean(), value.mean()),
            (v.max(axis=1), value.max(1)),
            (v.min(), value.min()),
            (v.argmax(axis=1), value.argmax(1)),
            (v.reshape(3, 2), value.reshape(3, 2)),
            (v.astype("int32"), value.astype("int32")),
            (next(iter(v)), value[0]),
            (~bits, ~np.array([5, 6])),
            (bits & 3, np.array([1, 2])),
            (1 | bits, np.array([5, 7])),
            (bits ^ 1, np.array([4, 7])),
        ]
        for made, expected in pairs:
            np.testing.assert_allclose(runner.run(made), expected, rtol=1e-6)
        assert len(v) == 2
        assert len({v, bits}) == 2
        with pytest.raises(TypeError, match="no truth value"):
            bool(v)


def test_gradients_with_respect_to_variables() -> None:
    with Graph().as_default():
        v = Variable([1.0, 2.0], name="v")
        (grad,) = gradients(sum(v * v), [v])
        assert grad is not None
        np.testing.assert_allclose(initialised(v).run(grad), [2, 4])


def test_finding_variables() -> None:
    with Graph().as_default() as graph:
        b, a = Variable(1.0, name="b"), Variable(2.0, name="a")
        still = Variable(3.0, name="c", trainable=False)
        y = a * b + still
        assert [v.name for v in variables_of(y)] == ["a", "b", "c"]
        assert [v.name for v in variables_of(a * 2.0)] == ["a"]
        assert [v.name for v in variables_of(group(b.assign(1.0)))] == ["b"]
        assert [v.name for v in trainable_variables()] == ["a", "b"]
        assert [v.name for v in global_variables(graph)] == ["a", "b", "c"]
        assert Variable.from_node(a.node).to_tensor() is a.to_tensor()
        assert [v.name for v in as_variables([a, b.handle, still.to_tensor()])] == ["a", "b", "c"]
        with pytest.raises(GraphError, match="not a variable"):
            Variable.from_node(y.node)


def test_a_variable_belongs_to_no_step() -> None:
    """Control dependencies around a definition are not those of its initialiser or its read."""
    with Graph().as_default() as graph:
        before = constant(1.0)
        with graph.control_dependencies([before]):
            Variable(random.normal((2,)), name="v")
        for name in ("v", "v/initialize", "v/read"):
            assert not graph.node(name).control_inputs
