"""Every row of the `cases` modules: value, shape rule, gradient, `out=`, aliasing; and no op lacks one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nbflow import op
from nbflow.autodiff import gradients
from nbflow.backends.numpy import NumpyBackend
from nbflow.graph import Graph, Node, Tensor
from nbflow.ops import placeholder
from nbflow.spec import TensorSpec, spec_of
from nbflow.testing import Evaluator, check_gradients
from tests import (
    cases,
    cases_attention,
    cases_boxes,
    cases_composed,
    cases_dynamic,
    cases_image,
    cases_layers,
    cases_linalg,
    cases_losses,
    cases_nn,
    cases_replicas,
    cases_rows,
    cases_windows,
)
from tests.cases import Case

ROWS: list[Case] = [
    *cases.OPS,
    *cases_composed.OPS,
    *cases_dynamic.OPS,
    *cases_image.OPS,
    *cases_boxes.OPS,
    *cases_losses.OPS,
    *cases_attention.OPS,
    *cases_layers.OPS,
    *cases_linalg.OPS,
    *cases_nn.OPS,
    *cases_replicas.OPS,
    *cases_rows.OPS,
    *cases_windows.OPS,
]


def ids(rows: list[Case]) -> list[str]:
    seen: dict[str, int] = {}
    out = []
    for case in rows:
        seen[case.op] = seen.get(case.op, 0) + 1
        out.append(f"{case.op}-{seen[case.op]}")
    return out


every = pytest.mark.parametrize("case", ROWS, ids=ids(ROWS))


def build(case: Case, shape_of: Any) -> tuple[list[Tensor], dict[Tensor, Any]]:
    """The outputs of `case` on placeholders whose shapes are `shape_of(array)`, and the feeds."""
    arrays = [np.asarray(a) for a in case.inputs]
    inputs = [placeholder(a.dtype, shape_of(a), name=f"x{n}") for n, a in enumerate(arrays)]
    made = case.build(*inputs)
    outputs = list(made) if isinstance(made, (list, tuple)) else [made]
    return outputs, dict(zip(inputs, case.inputs, strict=True))


def tolerance(case: Case, dtype: np.dtype[Any]) -> float:
    if case.rtol is not None:
        return case.rtol
    return 64 * float(np.finfo(dtype).eps) if dtype.kind in "fc" else 0.0


def compare(case: Case, outputs: list[Tensor], values: list[np.ndarray]) -> None:
    for tensor, value in zip(outputs, values, strict=True):
        actual = spec_of(value)
        assert tensor.dtype == actual.dtype
        assert tensor.spec.accepts(actual), f"the rule says {tensor.spec}, the value is {actual}"
    if case.expect is None:
        return
    wanted = case.expect(*[np.asarray(a) for a in case.inputs])
    wanted = list(wanted) if isinstance(wanted, (list, tuple)) else [wanted]
    assert len(wanted) == len(values)
    for value, right in zip(values, map(np.asarray, wanted), strict=True):
        assert value.shape == right.shape
        assert value.dtype == right.dtype
        np.testing.assert_allclose(value, right, rtol=tolerance(case, value.dtype), atol=tolerance(case, value.dtype))


@every
def test_value_and_shape(case: Case) -> None:
    with Graph().as_default() as graph, np.errstate(all="ignore"):
        outputs, feeds = build(case, lambda a: a.shape)
        assert any(n.op == case.op for n in graph.nodes.values()), f"the row makes no {case.op}"
        compare(case, outputs, Evaluator().run(outputs, feeds))


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
    with Graph().as_default(), np.errstate(all="ignore"):
        outputs, feeds = build(case, lambda a: (None,) * a.ndim if unknown == "dims" else None)
        compare(case, outputs, Evaluator().run(outputs, feeds))


DIFFERENTIABLE = [c for c in ROWS if c.differentiable]


@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=ids(DIFFERENTIABLE))
def test_gradients(case: Case) -> None:
    assert op.get(case.op).gradient is not None
    check_gradients(case.build, *case.inputs, order=case.differentiable)


@with_unknowns(DIFFERENTIABLE)
def test_gradients_with_unknown_shapes(case: Case, unknown: str) -> None:
    """First derivatives equal those with static shapes."""
    static = gradient_values(case, lambda a: a.shape)
    dynamic = gradient_values(case, lambda a: (None,) * a.ndim if unknown == "dims" else None)
    for mine, right in zip(dynamic, static, strict=True):
        np.testing.assert_allclose(mine, right, rtol=1e-12, atol=1e-12)


def gradient_values(case: Case, shape_of: Any) -> list[np.ndarray]:
    with Graph().as_default():
        outputs, feeds = build(case, shape_of)
        floating = [t for t in feeds if t.dtype.kind == "f"]
        found = gradients([t for t in outputs if t.dtype.kind == "f"], floating)
        values: list[np.ndarray] = Evaluator().run([g for g in found if g is not None], feeds)
        for grad, value in zip([g for g in found if g is not None], values, strict=True):
            assert grad.spec.accepts(spec_of(value)), f"the rule says {grad.spec}, the value is {spec_of(value)}"
        return values


@every
def test_implementations_keep_their_promises(case: Case) -> None:
    """Each op of the row: specs equal the rule's, `out=` is filled and given back, inputs stay, views are declared."""
    backend = NumpyBackend()

    def observe(node: Node, inputs: list[Any], outputs: list[Any]) -> None:
        definition = node.definition
        for tensor, value in zip(node.outputs, outputs, strict=True):
            if not tensor.spec.resource:
                assert tensor.spec.accepts(spec_of(np.asarray(value))), (node, tensor.spec, spec_of(np.asarray(value)))
        if definition.stateful:
            return
        arrays = [x for x in inputs if isinstance(x, np.ndarray)]
        if not definition.alias and node.op != "constant":
            shared = [o for o in outputs for x in arrays if np.may_share_memory(np.asarray(o), x) and x.size]
            assert not shared, f"{node.op} gives a view of an input, but is not declared alias"
        if definition.out:
            check_out(node, inputs, np.asarray(outputs[0]))

    def check_out(node: Node, inputs: list[Any], wanted: np.ndarray) -> None:
        kept = [np.array(x) for x in inputs]
        target = np.full(wanted.shape, 77, wanted.dtype)
        given = backend.table[node.op](*inputs, **node.attrs, out=target)
        assert given is target, f"{node.op} does not give `out` back"
        np.testing.assert_array_equal(target, wanted)
        for before, after in zip(kept, inputs, strict=True):
            np.testing.assert_array_equal(before, after)

    with Graph().as_default(), np.errstate(all="ignore"):
        outputs, feeds = build(case, lambda a: a.shape)
        kept = [np.array(a) for a in case.inputs]
        Evaluator(backend, observe).run(outputs, feeds)
        for before, after in zip(kept, case.inputs, strict=True):
            np.testing.assert_array_equal(before, after)


def test_every_op_has_a_case_and_an_implementation() -> None:
    computed = set(op.registered()) - set(cases.NOT_COMPUTED)
    assert computed - {c.op for c in ROWS} - set(cases.NO_VALUE) == set(), "registered ops without a row"
    assert computed - set(NumpyBackend().table) == set(), "registered ops without an implementation"
    assert set(NumpyBackend().table) - computed == set(), "implementations of ops that are not registered"


def test_every_op_is_documented() -> None:
    for name in op.registered():
        assert op.get(name).doc.strip(), name


def test_costs_are_numbers_that_grow() -> None:
    for case in ROWS:
        with Graph().as_default() as graph, np.errstate(all="ignore"):
            build(case, lambda a: a.shape)
            for node in graph.nodes.values():
                outputs: list[TensorSpec] = [t.spec for t in node.outputs]
                cost = node.definition.cost([t.spec for t in node.inputs], outputs, node.attrs)
                assert cost.flops >= 0
                assert cost.nbytes >= 0
