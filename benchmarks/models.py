"""The models of the benchmarks, written for every side from the same initial weights and batches.

Weights are float32 `(inputs, units)`, biases `(units,)`; a model is its list of units, with ReLU between the layers
and softmax cross entropy at the end. Training is plain SGD with `RATE`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import nbflow as nf

Array = np.ndarray[Any, Any]
Layers = list[tuple[Array, Array]]
RATE = np.float32(0.01)


@dataclass(frozen=True, slots=True)
class Model:
    """`units` from the input to the classes."""

    name: str
    units: tuple[int, ...]
    batch: int

    def weights(self) -> Layers:
        """The same for everybody."""
        rng = np.random.default_rng(0)
        return [
            ((rng.standard_normal((n, m)) / np.sqrt(n)).astype(np.float32), np.zeros(m, np.float32))
            for n, m in zip(self.units[:-1], self.units[1:], strict=True)
        ]

    def batches(self, count: int = 8) -> list[tuple[Array, Array]]:
        """Inputs in [0, 1) and class ids (int64)."""
        rng = np.random.default_rng(1)
        return [
            (rng.random((self.batch, self.units[0]), np.float32), rng.integers(0, self.units[-1], self.batch))
            for _ in range(count)
        ]


SOFTMAX = Model("softmax regression 784-10, batch 100", (784, 10), 100)
MLP = Model("MLP 784-512-512-10, batch 128", (784, 512, 512, 10), 128)
DIGITS = Model("MLP 784-128-10, batch 64", (784, 128, 10), 64)


def nbflow_loss(layers: Layers, x: nf.Tensor, y: nf.Tensor) -> nf.Tensor:
    """The mean loss of a batch, as a graph."""
    h = x
    for number, (w, b) in enumerate(layers):
        with nf.name_scope(f"layer{number}"):
            h = nf.matmul(h, nf.Variable(w, name="w")) + nf.Variable(b, name="b")
            if number < len(layers) - 1:
                h = nf.nn.relu(h)
    return nf.mean(nf.nn.softmax_cross_entropy(h, y))


class ByHand:
    """The same in numpy as one would write it with care: results go into arrays that are kept."""

    def __init__(self, model: Model) -> None:
        self.layers = model.weights()
        self.hidden = [np.empty((model.batch, m), np.float32) for m in model.units[1:]]
        self.deltas = [np.empty((model.batch, m), np.float32) for m in model.units[1:]]
        self.w_grads = [np.empty_like(w) for w, _ in self.layers]
        self.rows = np.arange(model.batch)

    def step(self, x: Array, y: Array) -> float:
        """One step of training; returns the loss before it."""
        inputs: Sequence[Array] = [x, *self.hidden[:-1]]
        last = len(self.layers) - 1
        for n, (w, b) in enumerate(self.layers):
            h = np.matmul(inputs[n], w, out=self.hidden[n])
            h += b
            if n < last:
                np.maximum(h, 0, out=h)
        logits = self.hidden[last]
        logits -= logits.max(axis=1, keepdims=True)
        picked = logits[self.rows, y]
        delta = np.exp(logits, out=self.deltas[last])
        total = delta.sum(axis=1, keepdims=True)
        loss = float(np.mean(np.log(total[:, 0]) - picked))
        delta /= total
        delta[self.rows, y] -= 1
        delta *= np.float32(1 / len(y))
        for n in range(last, -1, -1):
            w, b = self.layers[n]
            delta = self.deltas[n]
            gradient = np.matmul(inputs[n].T, delta, out=self.w_grads[n])
            bias_gradient = delta.sum(axis=0)
            if n:
                below = np.matmul(delta, w.T, out=self.deltas[n - 1])
                below *= self.hidden[n - 1] > 0
            gradient *= RATE
            w -= gradient
            bias_gradient *= RATE
            b -= bias_gradient
        return loss
