"""One table of cases drives the op tests of every backend: value, shape rule, gradient, `out=`, aliasing.

A file a family, and one row or more for each registered op: `ROWS` has them all. What is expected comes from numpy
functions that the op does not call, or from plain loops. It is big, so `nbflow.testing` loads it when it is asked for.
"""

from __future__ import annotations

from nbflow.testing.cases import (
    attention,
    boxes,
    composed,
    core,
    dynamic,
    image,
    layers,
    linalg,
    losses,
    nn,
    replicas,
    rows,
    state,
    windows,
)
from nbflow.testing.cases.case import Case, build, ids

__all__ = ["NOT_COMPUTED", "NO_VALUE", "ROWS", "Case", "build", "ids"]

ROWS: list[Case] = [
    *core.OPS,
    *composed.OPS,
    *dynamic.OPS,
    *image.OPS,
    *boxes.OPS,
    *losses.OPS,
    *attention.OPS,
    *layers.OPS,
    *linalg.OPS,
    *nn.OPS,
    *replicas.OPS,
    *rows.OPS,
    *state.OPS,
    *windows.OPS,
]

# Ops that no backend computes, and why.
NOT_COMPUTED = {
    "argument": "given by the op that runs the body",
    "cond": "run by programs (nbflow/flow.py); see test_control_flow.py",
    "loop": "run by programs (nbflow/flow.py); see test_control_flow.py",
    "placeholder": "always fed",
    "send": "the executor moves the tensor",
    "recv": "the executor waits for the tensor",
}
# Computed, but without an output to compare.
NO_VALUE = {"group": "joins control inputs; see test_ops.py"}
