"""Functions of one element as graphs: how what `map` and `filter` are given becomes attributes that can travel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from nbflow.data.apply import Function
from nbflow.data.blocks import Array
from nbflow.errors import DataError, NbflowError
from nbflow.graph import Graph, Tensor
from nbflow.ops import placeholder
from nbflow.ops._build import as_tensor
from nbflow.spec import TensorSpec

Components = tuple[tuple[str, TensorSpec], ...]
MapFunction = Callable[[dict[str, Tensor]], Mapping[str, Any]]
# (the graph's bytes, names of the inputs, names of the outputs): what a stage's description holds
Program = tuple[Array, tuple[str, ...], tuple[str, ...]]

# Filled by `nbflow.functions`: how a program becomes a function. (program, name and seed for random ops) -> function
BIND: dict[str, Callable[[Program, str, int], Function]] = {}


def traced(fn: Callable[[dict[str, Tensor]], Any], components: Components, what: str) -> tuple[Program, Components]:
    """`fn` of one element with `components` as a program, and the components of what it gives.

    `fn` returns a dict of tensors, or a tensor, which is then called `value`. Raises DataError when it returns
    anything else, or uses tensors of the notebook's graph: a program runs where the dataset does.
    """
    with Graph().as_default() as graph:
        inputs = {name: placeholder(spec.dtype, spec.shape, name=f"element/{name}") for name, spec in components}
        try:
            made = fn(dict(inputs))
        except NbflowError as error:
            if "belongs to another graph" not in str(error):
                raise
            raise DataError(
                f"the function given to {what} uses a tensor or variable of the graph ({error}); before other stages "
                "it sees elements and constants only. As the last stage, without parallel=, it may use the graph"
            ) from error
        found = tensors_of(made, what)
        outputs = {name: tensor for name, tensor in found.items() if tensor.graph is graph}
        if len(outputs) < len(found):
            raise DataError(
                f"the function given to {what} returns {sorted(set(found) - set(outputs))} of another graph"
            )
        data = graph.to_proto().SerializeToString(deterministic=True)
    program = (
        np.frombuffer(data, np.uint8),
        tuple(t.name for t in inputs.values()),
        tuple(t.name for t in outputs.values()),
    )
    return program, tuple((name, tensor.spec) for name, tensor in outputs.items())


def tensors_of(made: Any, what: str) -> dict[str, Tensor]:
    """What a function returned, as tensors by name. Raises DataError."""
    given = made if isinstance(made, Mapping) else {"value": made}
    found = {str(name): as_tensor(value) for name, value in given.items()}
    wrong = [name for name, tensor in found.items() if tensor is None]
    if wrong or not found or (not isinstance(made, Mapping) and what == "map"):
        raise DataError(f"the function given to {what} must return a dict of tensors, it returned {_said(made)}")
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _said(made: Any) -> str:
    if isinstance(made, Mapping):
        return (
            "a dict of " + ", ".join(f"{k}: {type(v).__name__}" for k, v in made.items()) if made else "an empty dict"
        )
    return type(made).__name__


def bind(program: Sequence[Any], name: str, seed: int) -> Function:
    """The function that `program` describes. Raises DataError where no backend is loaded."""
    if not BIND:
        raise DataError("nothing is loaded that runs the functions of a dataset; import nbflow")
    (made,) = BIND.values()
    return made((program[0], tuple(program[1]), tuple(program[2])), name, seed)
