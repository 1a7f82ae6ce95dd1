"""Recurrent layers: one cell after the other, in one direction or both, in one layer or several.

A layer of one cell has the variables `weights`, `recurrent` and `bias`; of several, those of each are in a scope
`layer_0`, `layer_1` … and `forward` or `backward`.
"""

from __future__ import annotations

from collections.abc import Callable

from nbflow import nn
from nbflow.errors import GraphError
from nbflow.graph import Tensor
from nbflow.layers.common import (
    Activation,
    Initializer,
    count,
    floating,
    forget_ones,
    known,
    layer_scope,
    variable,
    weight_variable,
    zeros_variable,
)
from nbflow.ops import concat
from nbflow.ops._build import ArrayLike
from nbflow.variable import Variable

# (x, the scope of its variables: "" or "…/", reverse) -> (outputs, last output)
_Cell = Callable[[Tensor, str, bool], tuple[Tensor, Tensor]]


def rnn(
    x: ArrayLike,
    units: int,
    return_sequences: bool = True,
    reverse: bool = False,
    initializer: Initializer | None = None,
    activation: Activation = nn.tanh,
    bidirectional: bool = False,
    layers: int = 1,
    lengths: ArrayLike | None = None,
    *,
    name: str | None = None,
) -> Tensor:
    """Elman's network over (n, time, features): (n, time, units), or the last step's (n, units).

    The other arguments are those of lstm. See nf.nn.rnn for the formula.
    """
    tensor = floating(x, "rnn")

    def cell(given: Tensor, scope: str, back: bool) -> tuple[Tensor, Tensor]:
        w, u = _recurrent(given, "rnn", units, 1, initializer, scope)
        bias = zeros_variable(scope + "bias", (units,), given.dtype)
        return nn.rnn(given, w, u, bias, None, back, lengths, activation)

    with layer_scope(tensor, name, "rnn"):
        count(units, "units")
        outputs, last = _layers(tensor, cell, reverse, bidirectional, layers)
        return outputs if return_sequences else last


def lstm(
    x: ArrayLike,
    units: int,
    return_sequences: bool = True,
    reverse: bool = False,
    initializer: Initializer | None = None,
    bidirectional: bool = False,
    layers: int = 1,
    lengths: ArrayLike | None = None,
    peepholes: bool = False,
    *,
    name: str | None = None,
) -> Tensor:
    """Long short-term memory over (n, time, features): (n, time, units), or the last step's (n, units).

    - `reverse`: from the last step to the first. `bidirectional`: both, side by side: (…, 2 units).
    - `layers`: so many, each over the outputs of the one before.
    - `lengths`: (n,) integers, where each sequence ends; outputs beyond are 0, and its last step is its own.
    - `peepholes`: the gates see the cell's state as well.

    `time` need not be known. The forget gate's bias starts at 1 (Jozefowicz et al., ICML 2015). See nf.nn.lstm.
    """
    tensor = floating(x, "lstm")

    def cell(given: Tensor, scope: str, back: bool) -> tuple[Tensor, Tensor]:
        w, u = _recurrent(given, "lstm", units, 4, initializer, scope)
        bias = variable(scope + "bias", (4 * units,), given.dtype, forget_ones)
        peep = zeros_variable(scope + "peepholes", (3 * units,), given.dtype) if peepholes else None
        outputs, (last, _) = nn.lstm(given, w, u, bias, None, back, lengths, peep)
        return outputs, last

    with layer_scope(tensor, name, "lstm"):
        count(units, "units")
        outputs, last = _layers(tensor, cell, reverse, bidirectional, layers)
        return outputs if return_sequences else last


def gru(
    x: ArrayLike,
    units: int,
    return_sequences: bool = True,
    reverse: bool = False,
    initializer: Initializer | None = None,
    bidirectional: bool = False,
    layers: int = 1,
    lengths: ArrayLike | None = None,
    *,
    name: str | None = None,
) -> Tensor:
    """Gated recurrent units over (n, time, features): (n, time, units), or the last step's (n, units).

    The other arguments are those of lstm. See nf.nn.gru for the formulas.
    """
    tensor = floating(x, "gru")

    def cell(given: Tensor, scope: str, back: bool) -> tuple[Tensor, Tensor]:
        w, u = _recurrent(given, "gru", units, 3, initializer, scope)
        bias, inner = (zeros_variable(scope + b, (3 * units,), given.dtype) for b in ("bias", "recurrent_bias"))
        return nn.gru(given, w, u, bias, inner, None, back, lengths)

    with layer_scope(tensor, name, "gru"):
        count(units, "units")
        outputs, last = _layers(tensor, cell, reverse, bidirectional, layers)
        return outputs if return_sequences else last


def _layers(x: Tensor, cell: _Cell, reverse: bool, bidirectional: bool, layers: int) -> tuple[Tensor, Tensor]:
    """(outputs, last output) of the last layer."""
    if bidirectional and reverse:
        raise GraphError("a layer is bidirectional or reverse, not both")
    last = x
    for number in range(count(layers, "layers")):
        scope = f"layer_{number}/" if layers > 1 else ""
        if bidirectional:
            ways = [cell(x, scope + "forward/", False), cell(x, scope + "backward/", True)]
            x, last = (concat(list(parts), axis=-1) for parts in zip(*ways, strict=True))
        else:
            x, last = cell(x, scope, reverse)
    return x, last


def _recurrent(
    x: Tensor, layer: str, units: int, gates: int, initializer: Initializer | None, scope: str
) -> tuple[Variable, Variable]:
    """The weights of the inputs and of the state."""
    features = known(x, -1, layer)
    inputs = weight_variable(scope + "weights", (features, gates * units), x.dtype, features, units, initializer)
    return inputs, weight_variable(scope + "recurrent", (units, gates * units), x.dtype, units, units, initializer)
