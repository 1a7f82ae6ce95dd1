"""Random programs of loops and branches, in each other, with state, draws and gradients, on random devices."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from nbflow import ops
from nbflow.autodiff import gradients
from nbflow.graph import Graph, Tensor, get_graph
from nbflow.ops.random import uniform
from nbflow.testing.random_graphs import RandomProgram
from nbflow.variable import Variable

# One shape for all: what is tested is who runs what, how often and in which order.
SHAPE = (2, 3)
DEPTH = 2


class _Maker:
    """Two streams: `random` decides what is computed, `places` where."""

    def __init__(self, seed: int, devices: Sequence[str], state: bool) -> None:
        self.state = state
        self.random = random.Random(seed)
        self.places = random.Random(seed + 1)
        self.devices = devices
        self.variables: list[Variable] = []

    def somewhere(self) -> str | None:
        return self.places.choice([None, *self.devices])

    def operation(self, known: list[Tensor], depth: int, *, smooth: bool) -> Tensor:
        """One op on some of `known`. `smooth`: without draws and state, to be differentiated."""
        with get_graph().device(self.somewhere()):
            x, y = self.random.choice(known), self.random.choice(known[-3:])
            kinds = ["tanh", "add", "multiply", "mix", "transpose"]
            if depth < DEPTH:
                kinds += ["cond", "while", "scan", "map"]
            if not smooth:
                kinds += ["draw", *(["read", "write"] if self.state else [])]
            return self.make(self.random.choice(kinds), x, y, known, depth, smooth)

    def make(self, kind: str, x: Tensor, y: Tensor, known: list[Tensor], depth: int, smooth: bool) -> Tensor:
        def steps(more: list[Tensor]) -> Tensor:
            """A few ops on what a body is given and on what is around it."""
            seen = [*known, *more]
            for _ in range(self.random.randint(1, 3)):
                seen.append(self.operation(seen, depth + 1, smooth=smooth))
            return ops.tanh(seen[-1])

        if kind == "tanh":
            return ops.tanh(x)
        if kind in ("add", "multiply"):
            return ops.tanh(ops.add(x, y) if kind == "add" else ops.multiply(x, y))
        if kind == "mix":
            return ops.tanh(ops.matmul(ops.matmul(x, ops.matrix_transpose(y)), y))
        if kind == "transpose":
            return ops.matrix_transpose(ops.reshape(x, (3, 2)))
        if kind == "draw":
            return ops.add(x, uniform(SHAPE, dtype="float64"))
        if kind == "read":
            return ops.multiply(self.random.choice(self.variables).read(), x)
        if kind == "write":
            return self.random.choice(self.variables).assign_add(ops.tanh(ops.multiply(x, 0.1)))
        if kind == "cond":
            # On single elements: a sum's last bit, which follows the memory's order, must not decide.
            made: Tensor = ops.cond(x[0, 0] > y[-1, -1], lambda: steps([y]), lambda: steps([x]))
            return made
        if kind == "while":
            # A number of iterations that depends on the values, and ends.
            limit = ops.astype(ops.clip(ops.abs(x[0, 1]) * 3.0, 0.0, 3.0), "int64")
            looped: tuple[Tensor, Tensor] = ops.while_loop(
                lambda i, v: i < limit, lambda i, v: (i + 1, steps([v])), (0, y)
            )
            return looped[1]
        if kind == "scan":
            rows = ops.stack([x, y])
            last, every = ops.scan(lambda c, row: (steps([c, row]), c), x, rows, reverse=self.random.random() < 0.5)
            return ops.tanh(ops.add(last, ops.sum(every, axis=0)))
        mapped: Tensor = ops.map(lambda row: steps([row]), ops.stack([x, y, x]))
        return ops.tanh(ops.sum(mapped, axis=0))


def random_flow(
    seed: int, devices: Sequence[str] = (), graph: Graph | None = None, size: int = 4, *, state: bool = True
) -> RandomProgram:
    """Builds a random program from `seed` into `graph` (default: the current one), each op asking for a random one of
    `devices` or for none. The same seed gives the same computation whatever the devices. `state`: with reads and
    updates of variables on the way, whose order the pipeline chooses."""
    graph = graph or get_graph()
    make = _Maker(seed, devices, state)
    values = np.random.default_rng(seed)
    with graph.as_default():
        fed = ops.placeholder("float64", SHAPE, name="fed")
        for number in range(2):
            with graph.device(make.somewhere()):
                make.variables.append(Variable(values.uniform(-1, 1, SHAPE), name=f"variable{number}"))
        known = [fed, ops.constant(values.uniform(-1, 1, SHAPE))]
        smooth = [fed, *(v.to_tensor() for v in make.variables)]
        for _ in range(size):
            known.append(make.operation(known, 0, smooth=False))
            smooth.append(make.operation(smooth, 0, smooth=True))
        found = gradients(ops.sum(smooth[-1]), smooth[:3])
    fetches = (*known[2:], smooth[-1], *(g for g in found if g is not None))
    return RandomProgram(fetches, {fed: values.uniform(-1, 1, SHAPE)}, steps=2)
