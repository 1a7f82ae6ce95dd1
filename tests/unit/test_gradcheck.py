"""The gradient checker itself: right rules pass, a rule that is wrong by 0.1 % is caught, at each order."""

from __future__ import annotations

import numpy as np
import pytest

import nbflow as nf
from nbflow import op
from nbflow.backends import numpy as numpy_backend
from nbflow.graph import Tensor
from nbflow.ops._build import build, convert, same_infer
from nbflow.testing import check_gradients

X = np.array([0.3, -1.2, 2.5])


def scaled_sine(x: Tensor, factor: float, second: float = 1.0) -> Tensor:
    """sin(x), whose first derivative is wrong by `factor`, and its second by `second`."""
    return build("test_sine", (convert(x),), {"factor": factor, "second": second})


@pytest.fixture(autouse=True)
def _wrong_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    def sine_rule(node, grads):
        cosine = build("test_cosine", node.inputs, {"factor": node.attrs["second"]})
        return [grads[0] * cosine * node.attrs["factor"]]

    def cosine_rule(node, grads):
        return [-grads[0] * nf.sin(node.inputs[0]) * node.attrs["factor"]]

    monkeypatch.setattr(op, "_REGISTRY", dict(op._REGISTRY))
    op.define("test_sine", infer=same_infer, gradient=sine_rule, doc="sin")
    op.define("test_cosine", infer=same_infer, gradient=cosine_rule, doc="cos")
    backend = {"test_sine": lambda x, **_: np.sin(x), "test_cosine": lambda x, **_: np.cos(x)}
    monkeypatch.setattr(numpy_backend, "TABLE", {**numpy_backend.TABLE, **backend})


def test_a_right_rule_passes() -> None:
    check_gradients(lambda x: scaled_sine(x, 1.0), X)


@pytest.mark.parametrize("factor", [1.001, 0.999, -1.0, 0.0, np.nan])
def test_a_wrong_first_derivative_is_caught(factor: float) -> None:
    with pytest.raises(AssertionError, match=r"derivative 1 for input 0 at element \[\d\].*the rules give"):
        check_gradients(lambda x: scaled_sine(x, factor), X)


@pytest.mark.parametrize("second", [1.001, 0.999])
def test_a_wrong_second_derivative_is_caught(second: float) -> None:
    with pytest.raises(AssertionError, match="derivative 2 for input 0"):
        check_gradients(lambda x: scaled_sine(x, 1.0, second), X)
    check_gradients(lambda x: scaled_sine(x, 1.0, second), X, order=1)


def test_one_wrong_element_among_many_is_caught() -> None:
    mask = np.ones(30)
    mask[17] = 1.001

    def mixed(x: Tensor) -> Tensor:
        # Element 17 goes through the wrong rule.
        wrong = scaled_sine(x, 1.001)
        return nf.where(nf.constant(mask > 1), wrong, nf.sin(x))

    with pytest.raises(AssertionError, match=r"at element \[17\]"):
        check_gradients(mixed, np.linspace(0.1, 1.4, 30))


def test_a_missing_connection_is_caught() -> None:
    with pytest.raises(AssertionError, match=r"the rules give 0\.0"):
        check_gradients(lambda x: nf.sin(nf.stop_gradient(x)) + nf.sum(x) * 0, X)
    with pytest.raises(AssertionError, match=r"input 1 .*find no connection"):
        check_gradients(lambda x, y: x * nf.stop_gradient(y), X, X + 1)


def test_several_inputs_outputs_and_integers() -> None:
    check_gradients(lambda x, i, y: (x * y, nf.take(x, i, axis=0)), X, np.array([2, 0, 0]), X + 1)
    with pytest.raises(AssertionError, match="derivative 1 for input 2"):
        check_gradients(lambda x, i, y: (x * y, scaled_sine(y, 1.001)), X, np.array([1]), X)


def test_large_and_small_values() -> None:
    check_gradients(lambda x: x * x, np.array([1e4, -3e3]))
    check_gradients(nf.exp, np.array([1e-6, 0.0]))
    with pytest.raises(AssertionError, match="derivative 1"):
        check_gradients(lambda x: scaled_sine(x, 1.001) * 1e6, X)


def test_nothing_to_check_is_an_error() -> None:
    with pytest.raises(AssertionError, match="at least one floating array"):
        check_gradients(lambda i: nf.astype(i, "float64"), np.array([1, 2]))
    with pytest.raises(AssertionError, match="floating output"):
        check_gradients(lambda x: x > 0, X)
