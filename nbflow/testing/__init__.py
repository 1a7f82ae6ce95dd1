"""What tests of nbflow and of things built on it may use: a gradient checker, a plain evaluator, conformance suites."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nbflow.testing.evaluate import Evaluator, evaluate
from nbflow.testing.gradients import check_gradients
from nbflow.testing.transport import check_transport

if TYPE_CHECKING:
    from nbflow.testing.backend import check_backend

__all__ = ["Evaluator", "check_backend", "check_gradients", "check_transport", "evaluate"]


def __getattr__(name: str) -> Any:
    # The table of cases is built from nbflow's own functions, so it can only be loaded after them.
    if name == "check_backend":
        return importlib.import_module("nbflow.testing.backend").check_backend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
