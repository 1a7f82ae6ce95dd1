"""Recurrent cells, and their unrolling over time.

A sequence is (n, time, features) and its number of steps must be known: the graph holds one copy of the cell a step.
What the inputs contribute is one matrix product for all steps; only the part that depends on the state is made in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nbflow.errors import ShapeError
from nbflow.graph import Tensor
from nbflow.ops._build import ArrayLike, convert
from nbflow.ops.creation import zeros_like
from nbflow.ops.elementwise import tanh
from nbflow.ops.joining import split, stack
from nbflow.ops.linalg import matmul
from nbflow.ops.nn import op_scope, sigmoid
from nbflow.spec import format_shape

# (what the inputs contribute at one step, states) -> new states; the first state is the output.
_Step = Callable[[Tensor, Sequence[Tensor]], Sequence[Tensor]]


def rnn(
    x: ArrayLike,
    weights: ArrayLike,
    recurrent: ArrayLike,
    bias: ArrayLike | None = None,
    state: ArrayLike | None = None,
    reverse: bool = False,
    *,
    name: str | None = None,
) -> tuple[Tensor, Tensor]:
    """h' = tanh(x · weights + h · recurrent + bias), step by step. Elman, Cognitive Science 14, 1990.

    x (n, time, features), weights (features, units), recurrent (units, units) → outputs (n, time, units), last h.
    """

    def step(given: Tensor, states: Sequence[Tensor]) -> Sequence[Tensor]:
        return [tanh(given + matmul(states[0], inner))]

    inner = convert(recurrent)
    outputs, states = _unrolled(x, weights, inner, bias, [state], step, reverse, (name, "rnn"), 1)
    return outputs, states[0]


def lstm(
    x: ArrayLike,
    weights: ArrayLike,
    recurrent: ArrayLike,
    bias: ArrayLike | None = None,
    state: tuple[ArrayLike, ArrayLike] | None = None,
    reverse: bool = False,
    *,
    name: str | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Long short-term memory: outputs (n, time, units) and the last (h, c).

    (i, f, g, o) = the four quarters of x · weights + h · recurrent + bias; c' = σ(f) · c + σ(i) · tanh(g);
    h' = σ(o) · tanh(c'). Gers et al., Neural Computation 12, 2000.

    - x: (n, time, features), time known. `weights`: (features, 4 units). `recurrent`: (units, 4 units).
    - `state`: (h, c), each (n, units); zeros when left out.
    - `reverse`: from the last step to the first; outputs stay in the order of x.
    """
    inner = convert(recurrent)

    def step(given: Tensor, states: Sequence[Tensor]) -> Sequence[Tensor]:
        h, c = states
        i, f, g, o = split(given + matmul(h, inner), 4, axis=-1)
        cell = sigmoid(f) * c + sigmoid(i) * tanh(g)
        return [sigmoid(o) * tanh(cell), cell]

    first = [None, None] if state is None else list(state)
    outputs, states = _unrolled(x, weights, inner, bias, first, step, reverse, (name, "lstm"), 4)
    return outputs, (states[0], states[1])


def gru(
    x: ArrayLike,
    weights: ArrayLike,
    recurrent: ArrayLike,
    bias: ArrayLike | None = None,
    recurrent_bias: ArrayLike | None = None,
    state: ArrayLike | None = None,
    reverse: bool = False,
    *,
    name: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Gated recurrent units: outputs (n, time, units) and the last h. Cho et al., arXiv 1406.1078.

    (r, z, a) = the thirds of x · weights + bias; (r', z', b) = those of h · recurrent + recurrent_bias;
    k = σ(z + z'); h' = k · h + (1 - k) · tanh(a + σ(r + r') · b).
    The reset stands after the product, as in cuDNN and PyTorch.

    - x: (n, time, features), time known. `weights`: (features, 3 units). `recurrent`: (units, 3 units).
    - `state`: (n, units), zeros when left out. `reverse`: from the last step to the first.
    """
    inner = convert(recurrent)
    inner_bias = None if recurrent_bias is None else convert(recurrent_bias, like=inner)

    def step(given: Tensor, states: Sequence[Tensor]) -> Sequence[Tensor]:
        (h,) = states
        before = matmul(h, inner)
        before = before if inner_bias is None else before + inner_bias
        (r, z, a), (r_, z_, b) = split(given, 3, axis=-1), split(before, 3, axis=-1)
        keep = sigmoid(z + z_)
        return [keep * h + (1.0 - keep) * tanh(a + sigmoid(r + r_) * b)]

    outputs, states = _unrolled(x, weights, inner, bias, [state], step, reverse, (name, "gru"), 3)
    return outputs, states[0]


def _unrolled(
    x: ArrayLike,
    weights: ArrayLike,
    recurrent: Tensor,
    bias: ArrayLike | None,
    states: Sequence[ArrayLike | None],
    step: _Step,
    reverse: bool,
    scope: tuple[str | None, str],
    gates: int,
) -> tuple[Tensor, Sequence[Tensor]]:
    series = convert(x)
    time = series.shape[1] if series.shape is not None and len(series.shape) == 3 else None
    if not time:
        raise ShapeError(
            f"a recurrent op takes (n, time, features) with a known number of steps, not {series.name} "
            f"{format_shape(series.shape)}; pad or cut the sequences to one length",
            where=series.node.where,
        )
    units = recurrent.shape[0] if recurrent.shape is not None and len(recurrent.shape) == 2 else None
    if units is None or recurrent.shape != (units, gates * units):
        raise ShapeError(f"the recurrent weights are (units, {gates} · units), not {format_shape(recurrent.shape)}")
    with op_scope(*scope, series):
        given = matmul(series, convert(weights, like=series))
        if bias is not None:
            given = given + convert(bias, like=given)
        zero = zeros_like(given[:, 0, :units])
        now: Sequence[Tensor] = [zero if s is None else convert(s, like=series) for s in states]
        outputs: list[Tensor] = []
        for moment in reversed(range(time)) if reverse else range(time):
            now = step(given[:, moment], now)
            outputs.append(now[0])
        return stack(outputs[::-1] if reverse else outputs, axis=1), now
