"""What is known of each op, found by trying: the table of cases in every dtype, and nbflow.onnx's rules."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nbflow import op as ops
from nbflow.backends.available import CONTROL_FLOW, backends, supports
from nbflow.errors import DTypeError
from nbflow.graph import Graph, Node, ancestors
from nbflow.onnx.exporting import REASONS, RULES
from nbflow.onnx.exporting.writer import Site, Writer, all_nodes
from nbflow.ops import placeholder
from nbflow.ops._build import build_node
from nbflow.spec import BFLOAT16, TensorSpec, kind_of
from nbflow.testing import Evaluator
from nbflow.testing.cases import ROWS

ROOT = Path(__file__).resolve().parent.parent
GROUPS = {
    "bool": ["bool"],
    "int": ["int8", "int16", "int32", "int64"],
    "uint": ["uint8", "uint16", "uint32", "uint64"],
    "float": ["float16", "bfloat16", "float32", "float64"],
    "complex": ["complex64", "complex128"],
}
DTYPES = {name: BFLOAT16 if name == "bfloat16" else np.dtype(name) for names in GROUPS.values() for name in names}
# Rows of an op that are tried in every dtype: the first few differ most.
TRIED = 3
# The opset whose names are shown, and what is between the lines of every rule.
OPSET = 21
PLUMBING = ("Cast", "CastLike", "Constant", "Identity")
# ONNX operators that are listed; a longer rule is cut.
LISTED = 4


@dataclass(frozen=True, slots=True)
class Facts:
    """One op: the dtypes its data inputs may have, the orders of derivatives that tests check, where it runs, and the
    operators it becomes in ONNX."""

    dtypes: str
    orders: int
    devices: str
    onnx: str


def all_facts() -> dict[str, Facts]:
    rows: dict[str, list[Any]] = {}
    for case in ROWS:
        rows.setdefault(case.op, []).append(case)
    matrix = _matrix()
    return {name: _facts(name, rows.get(name, []), name in matrix) for name in ops.registered()}


def _matrix() -> set[str]:
    """Ops whose first and second derivatives the gradient matrix checks."""
    groups = importlib.import_module("tests.gradient_rows").GROUPS
    return {row[0] for rows in groups.values() for row in rows()}


def _facts(name: str, rows: Sequence[Any], in_matrix: bool) -> Facts:
    orders = max([case.differentiable for case in rows] + [2 * in_matrix])
    devices = ", ".join(kind for kind in sorted(backends()) if supports(name, kind))
    return Facts(_dtypes(name, rows[:TRIED]), orders, devices, _onnx(name, rows))


# --- dtypes ----------------------------------------------------------------------------------------------------------


def _dtypes(name: str, rows: Sequence[Any]) -> str:
    taken: set[str] = set()
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in rows:
            taken |= _of_row(name, case)
    shown = []
    for group, members in GROUPS.items():
        inside = [m for m in members if m in taken]
        shown += [group] if inside == members else inside
    return " ".join(shown)


def _of_row(name: str, case: Any) -> set[str]:
    """The dtypes in which the node that a row makes can be made, and its values computed."""
    with Graph().as_default() as graph:
        _, feeds = _build(case, [np.asarray(a) for a in case.inputs])
        node = next(n for n in graph.nodes.values() if n.op == name)
        computed = not any(n.definition.stateful for n in ancestors([node]))
        values = Evaluator().run(list(node.inputs), feeds) if computed and name not in CONTROL_FLOW else None
    old = _data(node)
    if old is None:
        return set()
    found = {old.name} & DTYPES.keys()
    for dtype in DTYPES.values():
        try:
            _make(node, old, dtype, values)
        except Exception:  # noqa: BLE001  # however it says so, it does not take the dtype
            continue
        found.add(dtype.name)
    return found


def _data(node: Node) -> np.dtype[Any] | None:
    """The dtype of the inputs that are data, not indices or masks: that of what an update changes, or of the first
    output where an input has it; for an op without inputs, of its output. None: the op has neither."""
    outputs = [t.dtype for t in node.outputs]
    inputs = [t.dtype for t in node.inputs]
    if node.op in ("iterator", "queue") or any(t.spec.resource and t.node.op != "variable" for t in node.inputs):
        return None
    handles = [t.dtype for t in node.inputs if t.spec.resource]
    if handles:
        return handles[0]
    if not inputs:
        return outputs[0] if outputs else None
    return outputs[0] if outputs and outputs[0] in inputs else inputs[0]


def _make(node: Node, old: np.dtype[Any], new: np.dtype[Any], values: Sequence[Any] | None) -> None:
    """The node with inputs of dtype `new` in place of `old`, and its values, where it has values without a session.

    Attributes follow where no input says the dtype. Raises what the rule or the implementation raises.
    """
    attrs = dict(node.attrs)
    if not node.inputs:
        attrs = {key: new if isinstance(value, np.dtype) else value for key, value in attrs.items()}
        attrs = {key: v.astype(new) if isinstance(v, np.ndarray) else v for key, v in attrs.items()}
    specs = [TensorSpec(t.shape, new if t.dtype == old else t.dtype, t.spec.resource) for t in node.inputs]
    inferred = node.definition.infer(specs, attrs)
    if not node.inputs and any(spec.dtype != new for spec in inferred):
        raise DTypeError("the op gives one dtype only")
    if values is None or not node.inputs:
        return
    with Graph().as_default():
        cast = [v.astype(new) if v.dtype == old else v for v in values]
        inputs = [placeholder(v.dtype, v.shape, name=f"x{n}") for n, v in enumerate(cast)]
        made = build_node(node.op, inputs, attrs)
        Evaluator().run(list(made.outputs), dict(zip(inputs, cast, strict=True)))


def _build(case: Any, arrays: Sequence[np.ndarray[Any, Any]]) -> tuple[list[Any], dict[Any, Any]]:
    inputs = [placeholder(a.dtype, a.shape, name=f"x{n}") for n, a in enumerate(arrays)]
    made = case.build(*inputs)
    outputs = list(made) if isinstance(made, (list, tuple)) else [made]
    return outputs, dict(zip(inputs, arrays, strict=True))


# --- ONNX ------------------------------------------------------------------------------------------------------------


def _onnx(name: str, rows: Sequence[Any]) -> str:
    """The ONNX operators that the op becomes, of the first row that its rule takes; empty where there is none."""
    if name in REASONS or name not in RULES:
        return ""
    for case in sorted(rows, key=lambda c: not any(kind_of(np.asarray(a).dtype) == "f" for a in c.inputs)):
        with Graph().as_default() as graph:
            _build(case, [np.asarray(a) for a in case.inputs])
            node = next(n for n in graph.nodes.values() if n.op == name)
            written = _written(node)
        if written is not None:
            return " ".join(written[:LISTED]) + (" …" if len(written) > LISTED else "")
    return ""


def _written(node: Node) -> list[str] | None:
    writer = Writer(OPSET, RULES)
    try:
        RULES[node.op](Site(writer, node), *[f"x{n}" for n in range(len(node.inputs))])
    except Exception:  # noqa: BLE001  # a row with what ONNX cannot say; another may do
        return None
    found = list(dict.fromkeys(n.op for n in all_nodes(writer.nodes)))
    return [n for n in found if n not in PLUMBING] or found or ["Constant" if not node.inputs else "Identity"]
