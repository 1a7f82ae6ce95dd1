"""Every row of the `cases` modules as an ONNX file, run by onnxruntime; and no op is without a rule or a reason."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from nbflow import op
from nbflow.errors import DTypeError, GraphError
from nbflow.graph import Graph, Tensor, ancestors
from nbflow.onnx import save
from nbflow.onnx.exporting import REASONS, RULES
from nbflow.ops import placeholder
from nbflow.ops._build import convert
from nbflow.spec import kind_of
from nbflow.testing import Evaluator
from nbflow.testing.cases import NOT_COMPUTED, ROWS, Case, ids

Array = np.ndarray[Any, Any]

# ONNX operators that onnxruntime's CPU has in single precision only: rows that make them run in it.
SINGLE = {"Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "AveragePool", "Conv", "ConvTranspose", "Cosh", "Det",
          "Erf", "Resize", "Sinh", "Tan"}  # fmt: skip

# Rows whose values differ, by op: what their inputs have, and why.
DIFFERENT: dict[str, tuple[Callable[[Case], bool], str]] = {
    "erf": (lambda c: c.inputs[0].dtype == np.int64, "onnxruntime's Erf has no double precision"),
    "bitcast": (lambda c: c.inputs[0].dtype == np.uint8, "onnxruntime's BitCast has no formats of 8 bits"),
    "mean": (lambda c: np.size(c.inputs[0]) == 0, "onnxruntime's mean of nothing is 0"),
    "max": (lambda c: bool(np.isnan(c.inputs[0]).any()), "onnxruntime's ReduceMax passes over a NaN"),
    "max_pool_argmax": (lambda c: bool(np.isnan(c.inputs[0]).any()), "onnxruntime's MaxPool passes over a NaN"),
    "resize": (lambda c: c.inputs[0].shape == (3, 2), "onnxruntime copies what keeps its size, whatever the roi"),
    "searchsorted": (lambda c: bool((np.diff(c.inputs[0]) < 0).any()), "the vector is not sorted"),
    "unique": (lambda c: bool(np.isnan(c.inputs[0]).any()), "onnxruntime's Unique takes all NaNs for one"),
    **dict.fromkeys(
        ("random_uniform", "random_uniform_like", "random_normal", "random_normal_like", "random_bernoulli"),
        (lambda c: True, "other numbers are drawn; test_onnx_export.py looks at their distribution"),
    ),
}


def outputs_of(case: Case, arrays: list[Array], shape_of: Any) -> tuple[list[Tensor], list[Tensor]]:
    inputs = [placeholder(a.dtype, shape_of(a), name=f"in{n}") for n, a in enumerate(arrays)]
    made = case.build(*inputs)
    return inputs, [convert(t) for t in (made if isinstance(made, (list, tuple)) else [made])]


def writable(outputs: list[Tensor]) -> bool:
    """No op that stands in the table of reasons, and no complex number, computes `outputs`."""
    for node in ancestors([t.node for t in outputs]):
        if node.op in REASONS and node.op not in ("placeholder", "read_variable", "variable"):
            return False
        if any(kind_of(t.dtype) == "c" or t.dtype == np.longdouble for t in node.outputs):
            return False
    return True


def write(case: Case, arrays: list[Array], shape_of: Any, path: Path) -> tuple[list[Array], list[Tensor]] | None:
    """nbflow's values, and the outputs; None when the row cannot be written, and `save` says so."""
    with Graph().as_default(), np.errstate(all="ignore"):
        inputs, outputs = outputs_of(case, arrays, shape_of)
        named = {f"x{n}": t for n, t in enumerate(inputs)}, {f"y{n}": t for n, t in enumerate(outputs)}
        if not outputs:
            assert case.op in REASONS
            return None
        if not writable(outputs):
            with pytest.raises((GraphError, DTypeError), match=r"ONNX"):
                save(path, *named)
            return None
        save(path, *named, opset=26 if case.op == "bitcast" else 21)
        return Evaluator().run(outputs, dict(zip(inputs, arrays, strict=True))), outputs


def evaluate(path: Path, arrays: list[Array], op: str) -> list[Array]:
    options = onnxruntime.SessionOptions()
    if op == "resize":
        # Else it moves transpositions behind a cubic Resize, and has no kernel for what comes out.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {f"x{n}": a for n, a in enumerate(arrays)}))


def narrowed(case: Case, path: Path) -> list[Array] | None:
    """The row's inputs in single precision, where onnxruntime needs them so and the row has floating inputs."""
    arrays = [np.asarray(a) for a in case.inputs]
    if {n.op_type for n in onnx.load(path).graph.node} & SINGLE and any(a.dtype == np.float64 for a in arrays):
        return [a.astype("float32") if a.dtype == np.float64 else a for a in arrays]
    return None


def check(case: Case, shape_of: Any, path: Path) -> None:
    arrays = [np.asarray(a) for a in case.inputs]
    written = write(case, arrays, shape_of, path)
    if written is None:
        return
    single = narrowed(case, path)
    if single is not None:
        arrays = single
        written = write(case, arrays, shape_of, path)
        assert written is not None
    wanted, outputs = written
    differs = DIFFERENT.get(case.op)
    if differs is not None and differs[0](case):
        pytest.skip(differs[1])
    for tensor, found, right in zip(outputs, evaluate(path, arrays, case.op), map(np.asarray, wanted), strict=True):
        assert found.dtype == right.dtype == tensor.dtype
        assert found.shape == right.shape
        tolerance = 0.0
        if kind_of(right.dtype) == "f":
            tolerance = max(case.rtol or 0, 128 * float(np.finfo(right.dtype).eps))
        np.testing.assert_allclose(found, right, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("case", ROWS, ids=ids(ROWS))
def test_same_values_in_onnxruntime(case: Case, tmp_path: Path) -> None:
    check(case, lambda a: a.shape, tmp_path / "m.onnx")


DYNAMIC = [c for c in ROWS if c.dynamic and c.inputs]
# Ops that some rows can write only with known sizes.
SIZED = {"conv_input_grad", "avg_pool", "broadcast_dims", "unfold"}


@pytest.mark.parametrize("case", DYNAMIC, ids=ids(DYNAMIC))
def test_same_values_with_free_dimensions(case: Case, tmp_path: Path) -> None:
    try:
        check(case, lambda a: (None,) * a.ndim, tmp_path / "m.onnx")
    except GraphError as error:
        if case.op not in SIZED or not re.search("sizes|known number", error.message):
            raise
        pytest.skip(error.message)


def test_every_op_has_a_rule_or_a_reason() -> None:
    ops = {*op.registered(), *NOT_COMPUTED}
    assert not RULES.keys() & REASONS.keys(), "ops with a rule and a reason for having none"
    assert ops - RULES.keys() - REASONS.keys() == set(), "registered ops that save knows nothing of"
    assert (RULES.keys() | REASONS.keys()) - ops == set(), "rules and reasons of ops that are not registered"
