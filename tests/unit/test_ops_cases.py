"""Every row of the table of cases: value, shape rule, gradient, `out=`, aliasing; and no op lacks one."""

from __future__ import annotations

import numpy as np
import pytest

from nbflow import op
from nbflow.backends.numpy import NumpyBackend
from nbflow.graph import Graph
from nbflow.spec import TensorSpec
from nbflow.testing import check_gradients
from nbflow.testing.backend import check_promises, check_value, derivatives
from nbflow.testing.cases import NO_VALUE, NOT_COMPUTED, ROWS, Case, build, ids

BACKEND = NumpyBackend()

every = pytest.mark.parametrize("case", ROWS, ids=ids(ROWS))


def unknown_shape(array: np.ndarray, unknown: str) -> tuple[None, ...] | None:
    return (None,) * array.ndim if unknown == "dims" else None


@every
def test_value_and_shape(case: Case) -> None:
    check_value(BACKEND, case)


def with_unknowns(rows: list[Case]) -> pytest.MarkDecorator:
    """Each row with unknown dimensions, and with unknown rank, where it works with them."""
    pairs = []
    for case, name in zip(rows, ids(rows), strict=True):
        if case.dynamic and case.inputs:
            pairs.append(pytest.param(case, "dims", id=f"{name}-dims"))
            if case.unranked:
                pairs.append(pytest.param(case, "rank", id=f"{name}-rank"))
    return pytest.mark.parametrize(("case", "unknown"), pairs)


@with_unknowns(ROWS)
def test_unknown_shapes(case: Case, unknown: str) -> None:
    """With dimensions, or ranks, that are unknown until the run, values are the same and rules never contradict."""
    check_value(BACKEND, case, lambda a: unknown_shape(np.asarray(a), unknown))


DIFFERENTIABLE = [c for c in ROWS if c.differentiable]


@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=ids(DIFFERENTIABLE))
def test_gradients(case: Case) -> None:
    assert op.get(case.op).gradient is not None
    check_gradients(case.build, *case.inputs, order=case.differentiable)


@with_unknowns(DIFFERENTIABLE)
def test_gradients_with_unknown_shapes(case: Case, unknown: str) -> None:
    """First derivatives equal those with static shapes."""
    static = derivatives(BACKEND, case)
    dynamic = derivatives(BACKEND, case, lambda a: unknown_shape(np.asarray(a), unknown))
    for mine, right in zip(dynamic, static, strict=True):
        np.testing.assert_allclose(mine, right, rtol=1e-12, atol=1e-12)


@every
def test_implementations_keep_their_promises(case: Case) -> None:
    check_promises(BACKEND, case)


def test_every_op_has_a_case_and_an_implementation() -> None:
    computed = set(op.registered()) - set(NOT_COMPUTED)
    assert computed - {c.op for c in ROWS} - set(NO_VALUE) == set(), "registered ops without a row"
    assert computed - set(BACKEND.table) == set(), "registered ops without an implementation"
    assert set(BACKEND.table) - computed == set(), "implementations of ops that are not registered"


def test_every_op_is_documented() -> None:
    for name in op.registered():
        assert op.get(name).doc.strip(), name


def test_costs_are_numbers_that_grow() -> None:
    for case in ROWS:
        with Graph().as_default() as graph, np.errstate(all="ignore"):
            build(case, np.shape)
            for node in graph.nodes.values():
                outputs: list[TensorSpec] = [t.spec for t in node.outputs]
                cost = node.definition.cost([t.spec for t in node.inputs], outputs, node.attrs)
                assert cost.flops >= 0
                assert cost.nbytes >= 0
