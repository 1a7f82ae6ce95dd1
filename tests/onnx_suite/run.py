"""Runs cases of the official suite, says what came out, and holds it against the table of exclusions."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx.backend.test.runner import Runner

from nbflow.errors import NbflowError
from nbflow.onnx.backend import Prepared
from tests.onnx_suite.cases import WHEEL, SuiteCase
from tests.onnx_suite.exclusions import Exclusion, excluded

Prepare = Callable[[Any], Any]

# What a wrong or missing translation can raise. Anything else is a mistake in the harness, and stops it.
_FAILURES = (NbflowError, AssertionError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError)


@dataclass(frozen=True)
class Outcome:
    """`error` is empty for a case that passed."""

    case: SuiteCase
    opset: str
    error: str
    exclusion: Exclusion | None

    @property
    def passed(self) -> bool:
        return not self.error

    @property
    def wrong(self) -> str:
        """What contradicts the table of exclusions; empty when nothing does."""
        if self.passed and self.exclusion is not None:
            return f"{self.case.id} passes: take it out of the exclusions ({self.exclusion.reason})"
        if not self.passed and self.exclusion is None:
            return f"{self.case.id}: {self.error}"
        return ""


def run_case(case: SuiteCase, prepare: Prepare = Prepared, detail: bool = False) -> Outcome:
    """Runs one case against the outputs it expects, with the tolerance and the comparison of ONNX's own runner."""
    model = case.model()
    opset = next((f"{o.version}" for o in model.opset_import if o.domain in ("", "ai.onnx")), "other domains")
    error = ""
    try:
        ready = prepare(model)
        for inputs, expected in case.data(model):
            with np.errstate(all="ignore"):
                compare(ready.run(inputs), expected, case)
    except _FAILURES as failure:
        notes = "".join(f" ({n})" for n in getattr(failure, "__notes__", ()))
        error = traceback.format_exc() if detail else f"{type(failure).__name__}: {failure}{notes}"
    return Outcome(case, opset, error, excluded(case))


def compare(outputs: Sequence[Any], expected: Sequence[Any], case: SuiteCase) -> None:
    """Raises AssertionError where ONNX's runner would; which takes scalars in sequences for sequences themselves."""
    for right, found in zip(expected, outputs, strict=True):
        if isinstance(right, (list, tuple)):
            assert isinstance(found, (list, tuple)), type(found)
            compare(found, right, case)
        else:
            Runner.assert_similar_outputs([right], [found], rtol=case.rtol, atol=case.atol)


def run_all(cases: Iterable[SuiteCase], prepare: Prepare = Prepared) -> list[Outcome]:
    return [run_case(case, prepare) for case in cases]


def counts(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What docs/onnx-suite.json holds: passed and total by kind and by opset, and what is excluded why."""
    reasons = Counter((o.exclusion.kind, o.exclusion.reason) for o in outcomes if o.exclusion is not None)
    return {
        "onnx": onnx.__version__,
        "files of onnx": WHEEL,
        "kinds": _by(outcomes, lambda o: o.case.kind),
        "opsets": _by(outcomes, lambda o: o.opset),
        "excluded": [{"kind": k, "reason": r, "cases": n} for (k, r), n in sorted(reasons.items())],
    }


def _by(outcomes: Sequence[Outcome], key: Callable[[Outcome], str]) -> dict[str, dict[str, int]]:
    total, passed = Counter(map(key, outcomes)), Counter(key(o) for o in outcomes if o.passed)
    order = sorted(total, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))
    return {name: {"passed": passed[name], "total": total[name]} for name in order}


# What each kind of cases is, for people.
_KINDS = {
    "node": "single operators, files of {files}",
    "simple": "small models, files of {files}",
    "pytorch-operator": "operators written by PyTorch, files of {files}",
    "pytorch-converted": "layers written by PyTorch, files of {files}",
    "in-process": "single operators of onnx {onnx}",
    "light": "networks without weights of onnx {onnx}",
}


def with_tables(page: str, found: dict[str, Any]) -> str:
    """`page` with the tables between its marks made of `counts`."""
    versions = {"files": found["files of onnx"], "onnx": found["onnx"]}
    passed = ["| cases | pass | of |", "|---|---|---|"]
    for kind, about in _KINDS.items():
        count = found["kinds"][kind]
        passed.append(f"| {about.format(**versions)} | {count['passed']} | {count['total']} |")
    excluded = ["| cases | | reason |", "|---|---|---|"]
    excluded += [f"| {row['cases']} | {row['kind']} | {row['reason']} |" for row in found["excluded"]]
    for name, lines in (("passed", passed), ("excluded", excluded)):
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, _, rest = page.partition(start)
        page = before + start + "\n".join(lines) + "\n" + end + rest.partition(end)[2]
    return page
