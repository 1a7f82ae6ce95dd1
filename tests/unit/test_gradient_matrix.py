"""Every gradient rule over a product of shapes, axes and broadcasting: orders 1 and 2 against central differences.

Rows of the op cases (`test_ops_cases.py`) say at which element a rule is wrong; here it is moved along random
directions, which is quick enough for some thousand rows. The second half asks HIPS autograd.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

import nbflow as nf
from nbflow import op
from nbflow.graph import Graph
from nbflow.spec import kind_of
from nbflow.testing import check_gradients, evaluate
from nbflow.testing.cases import ROWS as CASES
from nbflow.testing.cases import build
from tests.gradient_rows import GROUPS, Row, both_signs, reals

A = np.ndarray[Any, Any]


def rows_by_op() -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for rows in GROUPS.values():
        for row in rows():
            found.setdefault(row[0], []).append(row)
    return found


MATRIX = rows_by_op()


@pytest.mark.parametrize("name", MATRIX)
def test_matrix(name: str) -> None:
    for number, (_, function, arrays) in enumerate(MATRIX[name]):
        try:
            check_gradients(function, *arrays, directions=1, atol=3e-7)
        except Exception as error:
            error.add_note(f"row {number} of {name}, shapes {[a.shape for a in arrays]}")
            raise


# Differentiable ops whose gradients are checked elsewhere.
ELSEWHERE = {
    "cond": "test_control_flow.py",
    "loop": "test_control_flow.py",
    "real": "test_complex_gradients.py",
    "imag": "test_complex_gradients.py",
    "conj": "test_complex_gradients.py",
    "sign": "test_complex_gradients.py; of real numbers it has none",
    "fftn": "test_complex_gradients.py",
    "ifftn": "test_complex_gradients.py",
    "rfftn": "test_complex_gradients.py",
    "irfftn": "test_complex_gradients.py",
    "relu_grad": "order 2 of relu",
    "max_unpool_grad": "order 2 of max_unpool",
    "prod_others_grad": "order 2 of prod_others",
}


def test_every_gradient_rule_is_checked() -> None:
    rules = {name for name in op.registered() if op.get(name).gradient is not None}
    checked = {c.op for c in CASES if c.differentiable} | set(MATRIX)
    assert rules - checked - set(ELSEWHERE) == set(), "gradient rules that nothing checks"
    assert set(ELSEWHERE) - rules == set(), "ops that have no gradient rule any more"


# Ops that take and give floating point numbers and have no gradient, and why.
WITHOUT = {
    **dict.fromkeys(("floor", "ceil", "trunc", "round", "floor_divide"), "0 off the jumps"),
    **dict.fromkeys(
        ("count", "random_uniform_like", "random_normal_like"),
        "does not depend on the numbers, only on how many there are",
    ),
    **dict.fromkeys(("assign", "assign_add", "assign_sub"), "changes state; gradients are for what is read"),
    **dict.fromkeys(("gradient_join", "sparse_join"), "stands behind the backward pass"),
    "nextafter": "a step between numbers, not a function",
    "stop_gradient": "that is what it is for",
}


def test_ops_without_a_gradient_have_a_reason() -> None:
    found = set()
    for case in CASES:
        with Graph().as_default() as graph, np.errstate(all="ignore"):
            build(case, lambda a: a.shape)
            for node in graph.nodes.values():
                takes = any(kind_of(t.dtype) in "fc" and not t.spec.resource for t in node.inputs)
                gives = any(kind_of(t.dtype) in "fc" for t in node.outputs)
                if node.definition.gradient is None and takes and gives:
                    found.add(node.op)
    assert found == set(WITHOUT)


# --- a second opinion ------------------------------------------------------------------------------------------------

POSITIVE, X, Y = reals((3, 4), 0.3, 2.0), both_signs((3, 4)), both_signs((3, 4), seed=5)
SQUARE = reals((4, 4)) + 3 * np.eye(4)

AUTOGRAD: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[A, ...]]] = {
    "add": (lambda x, y: x + y[0], lambda x, y: x + y[0], (X, Y)),
    "multiply": (lambda x, y: x * y[:, :1], lambda x, y: x * y[:, :1], (X, Y)),
    "divide": (lambda x, y: x / y, lambda x, y: x / y, (X, Y)),
    "power": (lambda x, y: x**y, lambda x, y: x**y, (POSITIVE, Y)),
    "sqrt": (nf.sqrt, anp.sqrt, (POSITIVE,)),
    "exp": (nf.exp, anp.exp, (X,)),
    "expm1": (nf.expm1, anp.expm1, (X,)),
    "log": (nf.log, anp.log, (POSITIVE,)),
    "log1p": (nf.log1p, anp.log1p, (POSITIVE,)),
    "log2": (nf.log2, anp.log2, (POSITIVE,)),
    "sin": (nf.sin, anp.sin, (X,)),
    "tan": (nf.tan, anp.tan, (X / 2,)),
    "tanh": (nf.tanh, anp.tanh, (X,)),
    "sinh": (nf.sinh, anp.sinh, (X,)),
    "arcsin": (nf.asin, anp.arcsin, (X / 3,)),
    "arctan": (nf.atan, anp.arctan, (X,)),
    "arccosh": (nf.acosh, anp.arccosh, (POSITIVE + 1,)),
    "arctan2": (nf.atan2, anp.arctan2, (X, Y)),
    "logaddexp": (nf.logaddexp, anp.logaddexp, (X, Y)),
    "abs": (nf.abs, anp.abs, (X,)),
    "maximum": (nf.maximum, anp.maximum, (X, Y)),
    "minimum": (nf.minimum, anp.minimum, (X, Y)),
    "clip": (lambda x: nf.clip(x, -1.0, 1.0), lambda x: anp.clip(x, -1.0, 1.0), (X,)),
    "where": (lambda x, y: nf.where(x > 0, x * y, y), lambda x, y: anp.where(x > 0, x * y, y), (X, Y)),
    "sigmoid": (nf.nn.sigmoid, lambda x: 1 / (1 + anp.exp(-x)), (X,)),
    "softmax": (nf.nn.softmax, lambda x: anp.exp(x) / anp.sum(anp.exp(x), axis=-1, keepdims=True), (X,)),
    "sum": (lambda x: nf.sum(x * x, axis=0), lambda x: anp.sum(x * x, axis=0), (X,)),
    "mean": (lambda x: nf.mean(x * x, axis=1, keepdims=True), lambda x: anp.mean(x * x, axis=1, keepdims=True), (X,)),
    "prod": (lambda x: nf.prod(x, axis=1), lambda x: anp.prod(x, axis=1), (X,)),
    "max": (lambda x: nf.max(x * x, axis=1), lambda x: anp.max(x * x, axis=1), (X,)),
    "var": (lambda x: nf.var(x, axis=0), lambda x: anp.var(x, axis=0), (X,)),
    "std": (lambda x: nf.std(x, axis=1), lambda x: anp.std(x, axis=1), (X,)),
    "cumsum": (lambda x: nf.cumulative_sum(x * x, axis=1), lambda x: anp.cumsum(x * x, axis=1), (X,)),
    "logsumexp": (lambda x: nf.logsumexp(x, axis=1), lambda x: anp.log(anp.sum(anp.exp(x), axis=1)), (X,)),
    "sort": (lambda x: nf.sort(x[0] * x[0]), lambda x: anp.sort(x[0] * x[0]), (X,)),
    "getitem": (lambda x: x[::-2, 1:] ** 2.0, lambda x: x[::-2, 1:] ** 2.0, (X,)),
    "index arrays": (
        lambda x: x[np.array([0, 2, 0]), np.array([1, 1, 1])] ** 2.0,
        lambda x: x[np.array([0, 2, 0]), np.array([1, 1, 1])] ** 2.0,
        (X,),
    ),
    "concatenate": (lambda x, y: nf.concat([x * y, y]), lambda x, y: anp.concatenate([x * y, y]), (X, Y)),
    "stack": (lambda x, y: nf.stack([x * y, y], axis=1), lambda x, y: anp.stack([x * y, y], axis=1), (X, Y)),
    "reshape": (lambda x: nf.reshape(x * x, (2, 6)), lambda x: anp.reshape(x * x, (2, 6)), (X,)),
    "transpose": (lambda x: nf.permute_dims(x * x, (1, 0)), lambda x: anp.transpose(x * x), (X,)),
    "roll": (lambda x: nf.roll(x * x, 2, axis=1), lambda x: anp.roll(x * x, 2, axis=1), (X,)),
    "tile": (lambda x: nf.tile(x * x, (2, 3)), lambda x: anp.tile(x * x, (2, 3)), (X,)),
    "repeat": (lambda x: nf.repeat(x * x, 3, axis=1), lambda x: anp.repeat(x * x, 3, axis=1), (X,)),
    "pad": (lambda x: nf.pad(x * x, [(1, 2), (0, 1)]), lambda x: anp.pad(x * x, [(1, 2), (0, 1)], "constant"), (X,)),
    "tril": (lambda x: nf.tril(x * x, k=1), lambda x: anp.tril(x * x, k=1), (X,)),
    "matmul": (lambda x, y: x @ nf.matrix_transpose(y), lambda x, y: x @ y.T, (X, Y)),
    "tensordot": (lambda x, y: nf.tensordot(x, y, axes=2), lambda x, y: anp.tensordot(x, y, axes=2), (X, Y)),
    "einsum": (lambda x, y: nf.einsum("ij,kj->ik", x, y), lambda x, y: anp.einsum("ij,kj->ik", x, y), (X, Y)),
    "norm": (lambda x: nf.linalg.vector_norm(x, axis=1), lambda x: anp.linalg.norm(x, axis=1), (X,)),
    "inv": (nf.linalg.inv, anp.linalg.inv, (SQUARE,)),
    "det": (nf.linalg.det, anp.linalg.det, (SQUARE,)),
    "slogdet": (lambda x: nf.linalg.slogdet(x).logabsdet, lambda x: anp.linalg.slogdet(x)[1], (SQUARE,)),
    "solve": (nf.linalg.solve, anp.linalg.solve, (SQUARE, reals((4, 2)))),
    "cholesky": (
        lambda x: nf.linalg.cholesky(x @ nf.matrix_transpose(x)),
        lambda x: anp.linalg.cholesky(x @ x.T),
        (SQUARE,),
    ),
    "eigvalsh": (
        lambda x: nf.linalg.eigvalsh(x + nf.matrix_transpose(x)),
        lambda x: anp.linalg.eigh(x + x.T)[0],
        (SQUARE,),
    ),
    "svd": (nf.linalg.svdvals, lambda x: anp.linalg.svd(x, compute_uv=False), (X,)),
    "pinv": (nf.linalg.pinv, anp.linalg.pinv, (X,)),
}


@pytest.mark.parametrize("name", AUTOGRAD)
def test_against_autograd(name: str) -> None:
    mine, theirs, arrays = AUTOGRAD[name]
    weights = reals(np.shape(theirs(*arrays)), 0.5, 1.5, seed=3)
    wanted = autograd.grad(lambda *xs: anp.sum(theirs(*xs) * weights), tuple(range(len(arrays))))(*arrays)
    with Graph().as_default():
        inputs = [nf.placeholder("float64", a.shape) for a in arrays]
        found = nf.gradients(nf.sum(mine(*inputs) * weights), inputs)
        for value, right in zip(evaluate(found, dict(zip(inputs, arrays, strict=True))), wanted, strict=True):
            np.testing.assert_allclose(value, right, rtol=1e-9, atol=1e-11)
