"""Wrong shapes and dtypes are said when an op is built: with the op, all its inputs, the cell and the line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from nbflow.errors import DTypeError, ShapeError
from nbflow.graph import Graph, Node, Tensor
from nbflow.op import registered
from nbflow.spec import TensorSpec, spec
from nbflow.testing.cases import ROWS, build

# What stands in the place of an input, one at a time. Shapes that fit little: large primes, many dimensions, few.
WRONG: tuple[TensorSpec, ...] = (
    spec("float64", ()),
    spec("float64", (89,)),
    spec("float64", (89, 97)),
    spec("float64", (2, 89, 97)),
    spec("float64", (2, 3, 89, 97)),
    spec("float64", (2, 1, 3, 1, 89, 97)),
    spec("float64", (0,)),
    spec("float64", None),
    spec("bool", (89,)),
    spec("int8", (97,)),
    spec("complex64", (89,)),
    spec("bfloat16", (89, 97)),
    TensorSpec((89,), np.dtype(np.float32), resource=True),
)

# Ops that are defined for every value, and such as gradient rules add for what their own op took.
ANYTHING = {
    "abs", "all", "any", "checkpoint", "checkpoint_many", "count", "expand_dims", "fftshift", "flip", "identity",
    "ifftshift", "isfinite", "isinf", "isnan", "logical_not", "prod", "recompute_barrier", "roll", "round",
    "shape_of", "stop_gradient", "sum", "tile", "unique", "diagonal_grad", "getitem_grad", "max_pool_grad",
    "max_pool_pick", "max_unpool_grad", "pad_crop", "prod_others", "prod_others_grad", "random_uniform_like",
    "random_normal_like",     "resize_grad", "slice_dynamic_grad",
}  # fmt: skip


def first_rows() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for case in ROWS:
        found.setdefault(case.op, case)
    return found


FIRST = first_rows()


def node_of(case: Any, graph: Graph) -> Node:
    build(case, lambda a: a.shape)
    return next(n for n in graph.nodes.values() if n.op == case.op)


def stand_in(graph: Graph, wrong: TensorSpec, number: int) -> Tensor:
    """A tensor of any spec: a placeholder that is one, or the handle of a variable."""
    attrs = {"dtype": wrong.dtype, "shape": wrong.shape}
    if wrong.resource:
        return graph.add("variable", (), {**attrs, "trainable": True}, name=f"handle{number}").outputs[0]
    return graph.add("placeholder", (), attrs, name=f"wrong{number}").outputs[0]


def attempts(node: Node) -> Iterator[tuple[list[Tensor], Exception | None]]:
    """The op with each input replaced by each wrong one, and what came of it."""
    graph = node.graph
    for place in range(min(len(node.inputs), 4)):
        for number, wrong in enumerate(WRONG):
            inputs = list(node.inputs)
            inputs[place] = stand_in(graph, wrong, len(graph.nodes) * 100 + number)
            try:
                graph.add(node.op, inputs, node.attrs)
            except Exception as error:  # noqa: BLE001  # the test says which it may be
                yield inputs, error
            else:
                yield inputs, None


@pytest.mark.parametrize("name", [n for n in registered() if n in FIRST])
def test_wrong_inputs(name: str) -> None:
    with Graph().as_default() as graph:
        node = node_of(FIRST[name], graph)
        found = list(attempts(node))
    refused = [(inputs, error) for inputs, error in found if error is not None]
    for inputs, error in refused:
        told = f"{name} of {[str(t.spec) for t in inputs]}: {error!r}"
        assert isinstance(error, (ShapeError, DTypeError)), told
        assert error.message.startswith(f"{name} "), told
        assert all(str(t.spec) in error.message for t in inputs), told
        assert ", line " in error.where, told
    if node.inputs:
        values = [inputs for inputs, _ in refused if not any(t.name.startswith("handle") for t in inputs)]
        assert bool(values) != (name in ANYTHING), f"{name} takes {'something' if values else 'anything'}"


@pytest.mark.parametrize("name", [n for n in registered() if n in FIRST])
def test_handles_of_variables_are_no_values(name: str) -> None:
    with Graph().as_default() as graph:
        node = node_of(FIRST[name], graph)
        for place, tensor in enumerate(node.inputs):
            if tensor.spec.resource:
                continue
            inputs = list(node.inputs)
            inputs[place] = stand_in(graph, WRONG[-1], len(graph.nodes))
            with pytest.raises((DTypeError, ShapeError)):
                graph.add(node.op, inputs, node.attrs)
