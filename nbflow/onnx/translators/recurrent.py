"""RNN, GRU and LSTM: one or two directions, on nbflow's recurrent ops.

ONNX has weights (directions, gates · units, features) with its own order of the gates, nbflow (features, gates ·
units).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from nbflow import ops
from nbflow.errors import GraphError
from nbflow.graph import Tensor
from nbflow.onnx.registry import Call, translates
from nbflow.ops import nn
from nbflow.ops.activations import softsign, thresholded_relu
from nbflow.ops.recurrent import gru, lstm, rnn

# Activations by name: (function of x, alpha, beta; alpha; beta), with ONNX's defaults.
_ACTIVATIONS: dict[str, tuple[Callable[[Tensor, float, float], Tensor], float, float]] = {
    "affine": (lambda x, a, b: x * a + b, 1.0, 0.0),
    "elu": (lambda x, a, b: nn.elu(x, a), 1.0, 0.0),
    "hardsigmoid": (lambda x, a, b: ops.clip(x * a + b, 0, 1), 0.2, 0.5),
    "leakyrelu": (lambda x, a, b: nn.leaky_relu(x, a), 0.01, 0.0),
    "relu": (lambda x, a, b: nn.relu(x), 0.0, 0.0),
    "scaledtanh": (lambda x, a, b: ops.tanh(x * b) * a, 1.0, 1.0),
    "sigmoid": (lambda x, a, b: nn.sigmoid(x), 0.0, 0.0),
    "softplus": (lambda x, a, b: nn.softplus(x), 0.0, 0.0),
    "softsign": (lambda x, a, b: softsign(x), 0.0, 0.0),
    "tanh": (lambda x, a, b: ops.tanh(x), 0.0, 0.0),
    "thresholdedrelu": (lambda x, a, b: thresholded_relu(x, a), 1.0, 0.0),
}
# How many of the numbers in activation_alpha and activation_beta each takes.
_TAKES_ALPHA = {"affine", "elu", "hardsigmoid", "leakyrelu", "scaledtanh", "thresholdedrelu"}
_TAKES_BETA = {"affine", "hardsigmoid", "scaledtanh"}

Activation = Callable[..., Tensor]


def _activations(c: Call, default: Sequence[str], directions: int) -> Iterator[list[Activation]]:
    """The activations of each direction."""
    names = [n.lower() for n in c.attrs.get("activations") or list(default) * directions]
    alphas, betas = iter(c.attrs.get("activation_alpha") or ()), iter(c.attrs.get("activation_beta") or ())
    made: list[Activation] = []
    for name in names:
        if name not in _ACTIVATIONS:
            raise GraphError(f"{c.what} has an activation {name!r}; ONNX has {', '.join(_ACTIVATIONS)}")
        function, alpha, beta = _ACTIVATIONS[name]
        alpha = next(alphas, alpha) if name in _TAKES_ALPHA else alpha
        beta = next(betas, beta) if name in _TAKES_BETA else beta
        made.append(lambda x, f=function, a=alpha, b=beta: f(x, a, b))
    for n in range(directions):
        yield made[n * len(default) : (n + 1) * len(default)]


def _reordered(x: Tensor, order: Sequence[int], axis: int) -> Tensor:
    """The gates in nbflow's order, `order[i]` being where its gate i stands in ONNX's."""
    parts = ops.split(x, len(order), axis=axis)
    return ops.concat([parts[n] for n in order], axis=axis) if len(order) > 1 else x


# nbflow's gates by their place among ONNX's: i f g o among i o f c; r z a among z r h.
_ORDER = {"RNN": (0,), "GRU": (1, 0, 2), "LSTM": (0, 2, 3, 1)}
_DEFAULTS = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}


@translates("RNN", "GRU", "LSTM")
def _recurrent(c: Call) -> Any:
    kind, batch_first = c.proto.op_type, bool(c.attr("layout", 0))
    x = c[0] if batch_first else ops.permute_dims(c[0], (1, 0, 2))
    direction = c.attr("direction", "forward")
    backwards = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]
    outputs, lasts = [], []
    for n, activations in enumerate(_activations(c, _DEFAULTS[kind], len(backwards))):
        made, last = _one(c, kind, x, n, backwards[n], activations)
        outputs.append(made)  # (batch, time, units)
        lasts.append(last)  # each (batch, units)
    if batch_first:
        sequence = ops.stack(outputs, axis=2)
        states = [ops.stack(s, axis=1) for s in zip(*lasts, strict=True)]
    else:
        sequence = ops.permute_dims(ops.stack(outputs, axis=1), (2, 1, 0, 3))
        states = [ops.stack(s, axis=0) for s in zip(*lasts, strict=True)]
    return [sequence, *states]


def _one(
    c: Call, kind: str, x: Tensor, n: int, reverse: bool, activations: list[Activation]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Outputs and last states of direction `n`."""
    order = _ORDER[kind]
    weights = ops.matrix_transpose(_reordered(c[1][n], order, 0))
    inner = ops.matrix_transpose(_reordered(c[2][n], order, 0))
    bias, recurrent_bias = None, None
    given = c.get(3)
    if given is not None:
        first, second = ops.split(given[n], 2, axis=0)
        bias, recurrent_bias = _reordered(first, order, 0), _reordered(second, order, 0)
    common: dict[str, Any] = {"reverse": reverse, "lengths": c.get(4), "clip": c.attrs.get("clip")}
    state = _state(c, 5, n)
    if kind == "GRU":
        reset_after = bool(c.attr("linear_before_reset", 0))
        made, last = gru(
            x, weights, inner, bias, recurrent_bias, state, reset_after=reset_after, activations=activations, **common
        )
        return made, (last,)
    total = None if bias is None or recurrent_bias is None else bias + recurrent_bias
    if kind == "RNN":
        made, last = rnn(x, weights, inner, total, state, activation=activations[0], **common)
        return made, (last,)
    cell, peepholes = _state(c, 6, n), c.get(7)
    if (state is None) != (cell is None):
        state = ops.zeros_like(cell) if state is None else state
        cell = ops.zeros_like(state) if cell is None else cell
    made, (h, last) = lstm(
        x,
        weights,
        inner,
        total,
        None if state is None else (state, cell),
        peepholes=None if peepholes is None else _reordered(peepholes[n], (0, 2, 1), 0),
        activations=activations,
        couple=bool(c.attr("input_forget", 0)),
        **common,
    )
    return made, (h, last)


def _state(c: Call, index: int, n: int) -> Tensor | None:
    """The initial state of direction `n`."""
    given = c.get(index)
    if given is None:
        return None
    return given[:, n] if c.attr("layout", 0) else given[n]
