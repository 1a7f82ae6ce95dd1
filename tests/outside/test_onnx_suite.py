"""ONNX's official suite against the table of exclusions: what is not in it passes, what is in it does not."""

from __future__ import annotations

import json
import subprocess
import unittest
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.backend.test.runner import Runner

import nbflow as nf
from tests.onnx_suite import cases, run
from tests.onnx_suite.exclusions import EXCLUDED, matches

# Thousands of models in one test: a busy machine takes minutes.
pytestmark = pytest.mark.timeout(600)

COUNTS = Path(__file__).resolve().parents[2] / "docs" / "onnx-suite.json"


def check(found: Sequence[run.Outcome], *kinds: str) -> None:
    wrong = [o.wrong for o in found if o.wrong]
    assert not wrong, "\n".join(line[:300] for line in wrong)
    counts = run.counts(found)["kinds"]
    noted = json.loads(COUNTS.read_text())
    if noted["onnx"] == onnx.__version__:
        assert {k: noted["kinds"][k] for k in kinds} == counts, "docs/onnx-suite.json is old: run scripts/onnx-suite"


@pytest.fixture(scope="module")
def files() -> list[cases.SuiteCase]:
    """The cases of the wheel of 1.20.0, fetched if need be and possible."""
    try:
        cases.fetch()
    except (subprocess.SubprocessError, OSError):
        pytest.skip(f"the cases as files are not here, and could not be fetched; {cases.HOW}")
    return cases.file_cases()


def test_the_cases_that_ship_as_files(files: list[cases.SuiteCase]) -> None:
    found = run.run_all(files)
    check(found, *cases.KINDS)
    passed = sum(o.passed for o in found if o.case.kind == "node")
    assert passed >= 1200
    assert sum(o.case.kind == "node" for o in found) == 1653


def test_the_cases_of_the_installed_package() -> None:
    check(run.run_all(cases.in_process_cases()), "in-process")


def test_the_models_without_weights() -> None:
    found = run.run_all(cases.light_cases())
    assert len(found) == 9
    check(found, "light")


def test_the_page_has_the_counts() -> None:
    page = COUNTS.with_name("onnx.md").read_text()
    assert run.with_tables(page, json.loads(COUNTS.read_text())) == page, "run scripts/onnx-suite"


def test_every_exclusion_covers_something(files: list[cases.SuiteCase]) -> None:
    ids = [c.id for c in (*files, *cases.in_process_cases())]
    idle = [e.pattern for e in EXCLUDED if not any(matches(e, i) for i in ids)]
    assert not idle, "exclusions of nothing"


def test_the_runner_of_onnx_takes_the_backend() -> None:
    """The suite as ONNX drives it: `Runner(nf.onnx.Backend)` makes unittest classes."""
    cases.in_process_cases()  # made once a process, with warnings of numpy that are errors here
    suite = Runner(nf.onnx.Backend, __name__).include("^test_(add|reshape_.*|conv_with_.*)_cpu$").test_suite
    result = suite.run(unittest.TestResult())
    assert result.wasSuccessful(), result.failures + result.errors
    assert result.testsRun - len(result.skipped) >= 10


def test_one_node_runs_by_itself() -> None:
    node = helper.make_node("Gemm", ["a", "b", ""], ["y"], transB=1)
    a, b = np.ones((2, 3), np.float32), np.full((4, 3), 2, np.float32)
    (y,) = nf.onnx.Backend.run_node(node, [a, b])
    np.testing.assert_array_equal(y, np.full((2, 4), 6, np.float32))
    assert nf.onnx.Backend.supports_device("CPU")
    assert not nf.onnx.Backend.supports_device("CUDA:0")


def test_a_model_runs_with_names_and_in_order() -> None:
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in "xyz"]
    model = helper.make_model(helper.make_graph([helper.make_node("Sub", ["x", "y"], ["z"])], "g", ends[:2], ends[2:]))
    x, y = np.array([3, 4], np.float32), np.array([1, 1], np.float32)
    by_order = nf.onnx.Backend.run_model(model, [x, y])
    by_name = nf.onnx.Backend.prepare(model).run({"y": y, "x": x})
    np.testing.assert_array_equal(by_order[0], [2, 3])
    np.testing.assert_array_equal(by_name.z, [2, 3])
