"""How nbflow's ops become ONNX nodes: a table of rules a family, and a table of the ops that have none, with reasons.

`tests/unit/test_onnx_export.py` holds that every registered op stands in exactly one of them.
"""

from __future__ import annotations

from nbflow.onnx.exporting import (
    boxes,
    control,
    dynamic,
    elementwise,
    indexing,
    nn,
    reductions,
    shaping,
    state,
    windows,
)
from nbflow.onnx.exporting.state import REASONS, UPDATES
from nbflow.onnx.exporting.writer import Rule

RULES: dict[str, Rule] = {}
for _family in (elementwise, shaping, indexing, dynamic, reductions, nn, windows, boxes, control, state):
    assert not RULES.keys() & _family.RULES.keys(), "an op has rules in two families"
    RULES.update(_family.RULES)

__all__ = ["REASONS", "RULES", "UPDATES"]
