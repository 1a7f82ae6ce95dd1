"""What tests of nbflow and of things built on it may use: a gradient checker, a plain evaluator, conformance suites."""

from nbflow.testing.evaluate import Evaluator, evaluate
from nbflow.testing.gradients import check_gradients
from nbflow.testing.transport import check_transport

__all__ = ["Evaluator", "check_gradients", "check_transport", "evaluate"]
