"""Rows for the ops by which replicas meet; see `case.py`."""

from __future__ import annotations

from typing import Any

import numpy as np

import nbflow as nf
from nbflow.graph import Tensor
from nbflow.ops._build import build_node, convert
from nbflow.testing.cases.case import Case, f

OPS: list[Case] = []


def row(op: str, build: Any, inputs: Any, expect: Any) -> None:
    OPS.append(Case(op, build, tuple(inputs), expect, stateful=True, dynamic=False))


def _taken(how: str) -> Any:
    """What workers 2 and 0 gave, in that order, of three that gave something; worker 1's is for a step before."""

    def make(first: Tensor, second: Tensor, third: Tensor) -> Tensor:
        attrs = {"dtype": first.dtype, "shape": (None, *(first.shape or ())[1:])}
        holder = build_node("accumulator", (), {}).outputs[0]
        given: list[Any] = []
        for worker, (value, step, weight) in enumerate(((first, 5, 1.0), (second, 4, 9.0), (third, 5, 3.0))):
            with nf.control_dependencies(given):
                inputs = (holder, value, convert(np.int64(step)), convert(np.float64(weight)))
                given = [build_node("accumulator_apply", inputs, {**attrs, "worker": worker})]
        with nf.control_dependencies(given):
            inputs = (holder, convert(np.int64(5)), convert(np.array([2, 0])))
            return build_node("accumulator_take", inputs, {**attrs, "how": how}).outputs[0]

    return make


_VALUES = [f(2, 3), f(2, 3, seed=1), f(2, 3, seed=2)]
for _op in ("accumulator", "accumulator_apply", "accumulator_take"):
    row(_op, _taken("mean"), _VALUES, lambda a, b, c: 0.75 * c + 0.25 * a)
row("accumulator_take", _taken("share"), _VALUES, lambda a, b, c: np.concatenate([0.75 * c, 0.25 * a]))
row("accumulator_take", _taken("rows"), _VALUES, lambda a, b, c: np.concatenate([c, a]))


def _steps(*names: str) -> Any:
    """The results of the last of `names` on a coordinator of 3 replicas, after the others. `wait1`: worker 1's."""

    def make() -> Any:
        holder = build_node("coordinator", (), {"replicas": 3}).outputs[0]
        before: list[Any] = []
        for name in names:
            kind = name.rstrip("0123456789")
            attrs: dict[str, Any] = {}
            if kind in ("wait", "report", "pace", "tick", "leave"):
                attrs["worker"] = int(name[len(kind) :])
            if kind == "pace":
                attrs["staleness"] = 1
            if kind == "begin":
                attrs["count"] = 2
            inputs = (holder, convert(np.int64(0))) if kind in ("report", "advance") else (holder,)
            with nf.control_dependencies(before):
                before = [build_node(f"coordinator_{kind}", inputs, attrs)]
        return list(before[0].outputs)

    return make


_TWO = ("report2", "report0", "begin")
row("coordinator", _steps("wait1"), [], lambda: [np.int64(0)])
row("coordinator_wait", _steps("report1", "advance", "wait1"), [], lambda: [np.int64(1)])
row("coordinator_report", _steps(*_TWO), [], lambda: [np.int64(0), np.array([0, 2])])
row("coordinator_begin", _steps("report1", *_TWO), [], lambda: [np.int64(0), np.array([1, 2])])
row("coordinator_advance", _steps("advance", "advance", "wait0"), [], lambda: [np.int64(1)])
row("coordinator_pace", _steps("tick0", "pace0"), [], lambda: [np.int64(1)])
row("coordinator_tick", _steps("tick0", "tick1", "tick1", "tick2", "pace1"), [], lambda: [np.int64(2)])
row("coordinator_leave", _steps("leave1", "leave2", "tick0", "tick0", "pace0"), [], lambda: [np.int64(2)])
row("coordinator_open", _steps("close", "open", "wait0"), [], lambda: [np.int64(1)])
row("coordinator_close", _steps("close", "open", "wait2"), [], lambda: [np.int64(1)])
