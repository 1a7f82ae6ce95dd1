"""Random graphs for property tests: many shapes of dataflow, views and updates in place, on random devices."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nbflow import ops
from nbflow.graph import Graph, Tensor, get_graph
from nbflow.variable import Variable

# Dimensions are small: the point is the shape of the graph, not the arithmetic.
DIMS = (1, 2, 3, 4)


@dataclass(frozen=True, slots=True)
class RandomProgram:
    """A graph's fetches, and values for its placeholders. `steps`: how often to run it, since variables change."""

    fetches: tuple[Tensor, ...]
    feeds: dict[Tensor, np.ndarray[Any, Any]]
    steps: int = 3


class _Maker:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.values = np.random.default_rng(seed)
        self.tensors: list[Tensor] = []
        self.feeds: dict[Tensor, np.ndarray[Any, Any]] = {}
        self.variables: list[Variable] = []
        self.updates: list[Tensor] = []

    def array(self) -> np.ndarray[Any, Any]:
        shape = tuple(self.random.choice(DIMS) for _ in range(2))
        return self.values.uniform(-2, 2, shape).astype(np.float32)

    def pick(self) -> Tensor:
        # Mostly recent ones: deep graphs with long-lived values here and there.
        recent = self.tensors[-4:] if self.random.random() < 0.7 else self.tensors
        return self.random.choice(recent)

    def source(self, number: int) -> None:
        kind = self.random.choice(("constant", "placeholder", "variable"))
        array = self.array()
        if kind == "constant":
            self.tensors.append(ops.constant(array, name=f"constant{number}"))
        elif kind == "placeholder":
            fed = ops.placeholder("float32", (None, array.shape[1]), name=f"fed{number}")
            self.feeds[fed] = array
            self.tensors.append(ops.clip(fed, -2.0, 2.0))
        else:
            variable = Variable(array, name=f"variable{number}")
            self.variables.append(variable)
            self.tensors.append(variable.to_tensor())

    def operation(self) -> Tensor:
        x = self.pick()
        unary: list[Callable[[Tensor], Tensor]] = [
            ops.tanh,
            ops.negative,
            ops.matrix_transpose,
            lambda t: ops.clip(t, -1.0, 1.0),
            lambda t: ops.reshape(t, (1, -1)),
            lambda t: t[::-1],
            lambda t: ops.sum(t, axis=0, keepdims=True),
            lambda t: ops.mean(t, axis=-1, keepdims=True),
            lambda t: ops.split(t, 1, axis=0)[0],
            lambda t: ops.where(t > 0.0, t, -t),
            lambda t: ops.matmul(t, ops.matrix_transpose(t)),
            lambda t: ops.concat([t, t], axis=1),
        ]
        binary: list[Callable[[Tensor, Tensor], Tensor]] = [ops.add, ops.multiply, ops.subtract, ops.maximum]
        if self.random.random() < 0.55:
            return self.random.choice(unary)(x)
        y = self.pick()
        # Any two tensors fit once each is a column and a row.
        column = ops.sum(x, axis=-1, keepdims=True)
        row = ops.sum(y, axis=0, keepdims=True)
        return ops.tanh(self.random.choice(binary)(column, row))

    def update(self) -> None:
        if not self.variables:
            return
        variable = self.random.choice(self.variables)
        change = ops.tanh(ops.mean(self.pick()))
        with get_graph().control_dependencies(self.updates[-1:]):
            filled = ops.broadcast_to(change, tuple(d or 0 for d in variable.shape or ()))
            updated = variable.assign_add(filled)
        self.updates.append(updated)
        if self.random.random() < 0.5:
            with get_graph().control_dependencies([updated]):
                self.tensors.append(variable.read())


def random_program(seed: int, devices: Sequence[str] = (), graph: Graph | None = None, size: int = 20) -> RandomProgram:
    """Builds a random graph from `seed` into `graph` (default: the current one), each op asking for a random one of
    `devices` or for none. The same seed gives the same computation whatever the devices."""
    graph = graph or get_graph()
    make = _Maker(seed)
    places = random.Random(seed + 1)
    with graph.as_default():
        for number in range(3):
            with graph.device(places.choice([None, *devices])):
                make.source(number)
        for _ in range(size):
            with graph.device(places.choice([None, *devices])):
                if make.random.random() < 0.15:
                    make.update()
                else:
                    make.tensors.append(make.operation())
        chosen = make.random.sample(make.tensors, min(4, len(make.tensors)))
    return RandomProgram((*chosen, *make.updates[-1:]), make.feeds)
