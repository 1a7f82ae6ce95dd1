"""Random graphs for property tests: many shapes of dataflow, views and updates in place, on random devices."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nbflow import ops
from nbflow.graph import Graph, Tensor, get_graph
from nbflow.ops.conv import conv
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

    def redundant(self) -> Tensor:
        """What the optimizer's passes act on, or must not act on: the same twice, neutral numbers and those that only
        look so, constants, casts there and back, permutations, convolutions in both layouts."""
        x = self.pick()
        again: Callable[[Tensor], Tensor] = self.random.choice(
            [ops.tanh, ops.exp, ops.negative, lambda t: ops.clip(t, -1.0, 1.0)]
        )
        number = float(self.random.choice([0.0, -0.0, 1.0, -1.0]))
        known = ops.constant(self.array())
        kinds: list[Callable[[Tensor], Tensor]] = [
            lambda t: again(t) - again(t) * 0.5,
            lambda t: self.random.choice([ops.add, ops.subtract, ops.multiply])(t, number),
            lambda t: self.random.choice([ops.add, ops.subtract])(t * 0.0, number),  # zeros of both signs
            lambda t: self.random.choice([ops.add, ops.multiply])(ops.constant(np.float32(number)), t),
            lambda t: t / self.random.choice([1.0, 2.0]),
            lambda t: ops.negative(ops.negative(t)),
            lambda t: ops.where(t > 0.0, t, t),
            lambda t: ops.maximum(t, t),
            lambda t: ops.abs(ops.abs(t)),
            lambda t: ops.astype(ops.astype(t, self.random.choice(["float64", "float16", "int32"])), "float32"),
            lambda t: ops.identity(ops.stop_gradient(t)),
            lambda t: ops.concat([ops.add_n([t])], axis=0),
            lambda t: ops.sum(t, axis=0, keepdims=True) + ops.sum(ops.tanh(known) * ops.tanh(known), axis=None),
            lambda t: ops.reshape(ops.reshape(t, (-1,)), ops.shape_of(t)),
            lambda t: ops.broadcast_to(ops.max(t), ops.shape_of(t)) + ops.mean(t),
            lambda t: ops.matrix_transpose(ops.tanh(ops.matrix_transpose(t)) * 2.0),
            lambda t: ops.matmul(ops.matrix_transpose(t), t),
            lambda t: ops.squeeze(ops.permute_dims(ops.expand_dims(t, 1), (2, 1, 0)), 1),
            self.convolved,
        ]
        return self.random.choice(kinds)(x)

    def convolved(self, x: Tensor) -> Tensor:
        """Two convolutions with what is between them, in one layout or one in each."""
        filters = [ops.constant(self.values.uniform(-1, 1, s).astype(np.float32)) for s in ((2, 2, 1, 3), (2, 1, 3, 1))]
        layouts = [self.random.choice(["NHWC", "NCHW"])] * 2 if self.random.random() < 0.8 else ["NCHW", "NHWC"]
        image = ops.expand_dims(x, (0, 3) if layouts[0] == "NHWC" else (0, 1))
        inner = build_conv(image, filters[0], layouts[0])
        between: list[Callable[[Tensor], Tensor]] = [ops.tanh, lambda t: t * 0.5 + t, lambda t: ops.maximum(t, 0.0)]
        inner = self.random.choice(between)(inner)
        if layouts[0] != layouts[1]:
            inner = ops.permute_dims(inner, (0, 2, 3, 1))
        made = build_conv(inner, filters[1], layouts[1])
        return ops.squeeze(made, (0, 3) if layouts[1] == "NHWC" else (0, 1))

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


def build_conv(image: Tensor, filters: Tensor, layout: str) -> Tensor:
    """A convolution that keeps height and width."""
    return conv(image, filters, data_format=layout)


def random_program(
    seed: int,
    devices: Sequence[str] = (),
    graph: Graph | None = None,
    size: int = 20,
    *,
    redundant: bool = False,
) -> RandomProgram:
    """Builds a random graph from `seed` into `graph` (default: the current one), each op asking for a random one of
    `devices` or for none. The same seed gives the same computation whatever the devices.

    `redundant`: half of the ops are such as the optimizer's passes act on.
    """
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
                elif redundant and make.random.random() < 0.5:
                    make.tensors.append(make.redundant())
                else:
                    make.tensors.append(make.operation())
        chosen = make.random.sample(make.tensors, min(4, len(make.tensors)))
    return RandomProgram((*chosen, *make.updates[-1:]), make.feeds)
