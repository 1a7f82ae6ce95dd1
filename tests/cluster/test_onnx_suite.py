"""A sample of ONNX's suite with every node on another worker process than the one before: bit-equal to one process.

All of it: `scripts/onnx-suite --distributed`.
"""

from __future__ import annotations

import random

import pytest

from tests.onnx_suite import cases, distributed
from tests.onnx_suite.exclusions import excluded

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

# The same sample in every run; cases with several nodes, where something travels, are worth more than single ones.
SEED, EXPANDED, PLAIN = 0, 25, 15


def test_nodes_on_different_workers_do_not_change_a_bit() -> None:
    able = [c for c in cases.in_process_cases() if excluded(c) is None]
    expanded = [c for c in able if "expanded" in c.name]
    plain = [c for c in able if "expanded" not in c.name]
    drawn = random.Random(SEED)
    chosen = drawn.sample(expanded, EXPANDED) + drawn.sample(plain, PLAIN)
    found = distributed.run_all(chosen, workers=2)
    assert not [o.wrong for o in found if o.wrong]
