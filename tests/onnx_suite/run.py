"""Runs cases of the official suite and says what came out."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx.backend.test.runner import Runner

from nbflow.errors import NbflowError
from nbflow.onnx.backend import Prepared
from tests.onnx_suite.cases import SuiteCase


@dataclass(frozen=True)
class Outcome:
    """`error` is empty for a case that passed."""

    case: SuiteCase
    opset: str
    error: str

    @property
    def passed(self) -> bool:
        return not self.error


def run_case(case: SuiteCase, prepare: Callable[[Any], Any] = Prepared, detail: bool = False) -> Outcome:
    """Runs one case against the outputs it expects, with the tolerance and the comparison of ONNX's own runner."""
    model = case.model()
    opset = ", ".join(f"{o.domain or 'ai.onnx'} {o.version}" for o in model.opset_import)
    try:
        ready = prepare(model)
        for inputs, expected in case.data(model):
            with np.errstate(all="ignore"):
                outputs = ready.run([np.asarray(i) if isinstance(i, np.generic) else i for i in inputs])
                compare(outputs, expected, case)
    except (
        NbflowError,
        AssertionError,
        ArithmeticError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        NotImplementedError,
    ) as error:
        notes = "".join(f" ({n})" for n in getattr(error, "__notes__", ()))
        text = traceback.format_exc() if detail else f"{type(error).__name__}: {error}{notes}"
        return Outcome(case, opset, text)
    return Outcome(case, opset, "")


def compare(outputs: Sequence[Any], expected: Sequence[Any], case: SuiteCase) -> None:
    """Raises AssertionError where ONNX's runner would."""
    Runner.assert_similar_outputs(expected, outputs, rtol=case.rtol, atol=case.atol)


def run_all(cases: Iterable[SuiteCase], prepare: Callable[[Any], Any] = Prepared) -> list[Outcome]:
    return [run_case(case, prepare) for case in cases]
