"""Recurrent cells over sequences.

A sequence is (n, time, features). What the inputs contribute is one matrix product for all steps; only the part that
depends on the state is made in turn: by one copy of the cell a step where the steps are few and their number is known,
else by `scan`, whose graph holds the cell once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nbflow.errors import GraphError, ShapeError
from nbflow.graph import Tensor
from nbflow.ops._build import ArrayLike, convert, require_kind
from nbflow.ops.comparison import clip as clipped
from nbflow.ops.comparison import greater, where
from nbflow.ops.creation import arange, zeros
from nbflow.ops.elementwise import tanh
from nbflow.ops.joining import split, stack
from nbflow.ops.linalg import matmul
from nbflow.ops.loops import scan
from nbflow.ops.manipulation import expand_dims, permute_dims
from nbflow.ops.nn import op_scope, sigmoid
from nbflow.ops.shape import reshape, shape_of
from nbflow.spec import format_shape, shape_accepts

Activation = Callable[..., Tensor]
# (what the inputs contribute at one step, states) -> new states; the first state is the output.
_Step = Callable[[Tensor, Sequence[Tensor]], Sequence[Tensor]]

# Up to so many steps, copies of the cell run faster than a loop, and the graph stays small.
_UNROLLED = 8


def rnn(
    x: ArrayLike,
    weights: ArrayLike,
    recurrent: ArrayLike,
    bias: ArrayLike | None = None,
    state: ArrayLike | None = None,
    reverse: bool = False,
    lengths: ArrayLike | None = None,
    activation: Activation = tanh,
    clip: float | None = None,
    *,
    name: str | None = None,
) -> tuple[Tensor, Tensor]:
    """h' = activation(x · weights + h · recurrent + bias), step by step. Elman, Cognitive Science 14, 1990.

    x (n, time, features), weights (features, units), recurrent (units, units) → outputs (n, time, units), last h.
    `lengths`, `reverse` and `clip` are those of lstm.
    """

    def step(given: Tensor, states: Sequence[Tensor]) -> Sequence[Tensor]:
        return [activation(_clip(given + matmul(states[0], inner), clip))]

    inner = convert(recurrent)
    run = _Run(x, weights, inner, bias, [state], lengths, reverse, 1)
    outputs, states = run.over(step, name, "rnn")
    return outputs, states[0]


def lstm(
    x: ArrayLike,
    weights: ArrayLike,
    recurrent: ArrayLike,
    bias: ArrayLike | None = None,
    state: tuple[ArrayLike, ArrayLike] | None = None,
    reverse: bool = False,
    lengths: ArrayLike | None = None,
    peepholes: ArrayLike | None = None,
    activations: Sequence[Activation] = (sigmoid, tanh, tanh),
    clip: float | None = None,
    couple: bool = False,
    *,
    name: str | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Long short-term memory: outputs (n, time, units) and the last (h, c).

    (i, f, g, o) = the four quarters of x · weights + h · recurrent + bias; c' = σ(f) · c + σ(i) · tanh(g);
    h' = σ(o) · tanh(c'). Gers et al., Neural Computation 12, 2000.

    - x: (n, time, features). `weights`: (features, 4 units). `recurrent`: (units, 4 units).
    - `state`: (h, c), each (n, units); zeros when left out.
    - `reverse`: from the last step to the first; outputs stay in the order of x.
    - `lengths`: (n,) integers, how many steps each sequence has. Outputs beyond are 0 and states stay what they were.
    - `peepholes`: (3 units,), by which c is added to i and f, and c' to o. Gers et al., JMLR 3, 2002.
    - `activations`: of the gates, of g and of c'. `clip`: bounds what they are applied to. `couple`: f is 1 - σ(i).

    Raises ShapeError for weights that do not fit.
    """
    inner = convert(recurrent)
    gate, candidate, result = _checked(activations, 3)
    peep = None if peepholes is None else split(convert(peepholes, like=inner), 3, axis=0)

    def step(given: Tensor, states: Sequence[Tensor]) -> Sequence[Tensor]:
        h, c = states
        i, f, g, o = split(given + matmul(h, inner), 4, axis=-1)
        if peep is not None:
            i, f = i + peep[0] * c, f + peep[1] * c
        take = gate(_clip(i, clip))
        keep = 1.0 - take if couple else gate(_clip(f, clip))
        cell = keep * c + take * candidate(_clip(g, clip))
        if peep is not None:
            o = o + peep[2] * cell
        return [gate(_clip(o, clip)) * result(cell), cell]

    first = [None, None] if state is None else list(state)
    run = _Run(x, weights, inner, bias, first, lengths, reverse, 4)
    outputs, states = run.over(step, name, "lstm")
    return outputs, (states[0], states[1])


def gru(
    x: ArrayLike,
    weights: ArrayLike,
    recurrent: ArrayLike,
    bias: ArrayLike | None = None,
    recurrent_bias: ArrayLike | None = None,
    state: ArrayLike | None = None,
    reverse: bool = False,
    lengths: ArrayLike | None = None,
    reset_after: bool = True,
    activations: Sequence[Activation] = (sigmoid, tanh),
    clip: float | None = None,
    *,
    name: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Gated recurrent units: outputs (n, time, units) and the last h. Cho et al., arXiv 1406.1078.

    (r, z, a) = the thirds of x · weights + bias; (r', z', b) = those of h · recurrent + recurrent_bias;
    k = σ(z + z'); h' = k · h + (1 - k) · tanh(a + σ(r + r') · b).

    - x: (n, time, features). `weights`: (features, 3 units). `recurrent`: (units, 3 units).
    - `state`: (n, units), zeros when left out.
    - `reset_after`: the reset stands after the product, as above and in cuDNN; else b is (σ(r + r') · h) · recurrent
      + recurrent_bias, as in the paper.
    - `activations`: of the gates and of the candidate. `lengths`, `reverse` and `clip` are those of lstm.
    """
    inner = convert(recurrent)
    gate, candidate = _checked(activations, 2)
    inner_bias = None if recurrent_bias is None else convert(recurrent_bias, like=inner)
    late = None if reset_after else _late(inner, inner_bias)

    def step(given: Tensor, states: Sequence[Tensor]) -> Sequence[Tensor]:
        (h,) = states
        r, z, a = split(given, 3, axis=-1)
        if late is None:
            before = matmul(h, inner)
            r_, z_, b = split(before if inner_bias is None else before + inner_bias, 3, axis=-1)
            b = gate(_clip(r + r_, clip)) * b
        else:
            r_, z_ = split(late[0](h), 2, axis=-1)
            b = late[1](gate(_clip(r + r_, clip)) * h)
        keep = gate(_clip(z + z_, clip))
        return [keep * h + (1.0 - keep) * candidate(_clip(a + b, clip))]

    run = _Run(x, weights, inner, bias, [state], lengths, reverse, 3)
    outputs, states = run.over(step, name, "gru")
    return outputs, states[0]


def _late(recurrent: Tensor, bias: Tensor | None) -> tuple[Activation, Activation]:
    """What the state contributes to the gates, and the reset state to the candidate."""
    units = _units(recurrent, 3)
    parts = split(recurrent, (2 * units, units), axis=-1)
    biases = (None, None) if bias is None else split(bias, (2 * units, units), axis=-1)

    def product(number: int) -> Activation:
        part, added = parts[number], biases[number]
        return lambda h: matmul(h, part) if added is None else matmul(h, part) + added

    return product(0), product(1)


def _checked(activations: Sequence[Activation], count: int) -> Sequence[Activation]:
    if len(activations) != count:
        raise GraphError(f"{count} activations are wanted, {len(activations)} are given")
    return activations


def _clip(x: Tensor, bound: float | None) -> Tensor:
    return x if bound is None else clipped(x, -bound, bound)


def _units(recurrent: Tensor, gates: int) -> int:
    """Raises ShapeError unless the recurrent weights are (units, gates · units)."""
    units = recurrent.shape[0] if recurrent.shape is not None and len(recurrent.shape) == 2 else None
    if units is None or recurrent.shape != (units, gates * units):
        raise ShapeError(f"the recurrent weights are (units, {gates} · units), not {format_shape(recurrent.shape)}")
    return units


class _Run:
    """One pass over sequences: its inputs checked, and the way the steps are taken."""

    def __init__(
        self,
        x: ArrayLike,
        weights: ArrayLike,
        recurrent: Tensor,
        bias: ArrayLike | None,
        states: Sequence[ArrayLike | None],
        lengths: ArrayLike | None,
        reverse: bool,
        gates: int,
    ) -> None:
        self.series = convert(x)
        self.weights = convert(weights, like=self.series)
        self.bias = None if bias is None else convert(bias, like=self.series)
        self.states = [None if s is None else convert(s, like=self.series) for s in states]
        self.lengths = None if lengths is None else convert(lengths)
        self.reverse = reverse
        self.units = _units(recurrent, gates)
        shape, rank = self.series.shape, self.weights.spec.rank
        if (shape is not None and len(shape) != 3) or rank not in (2, None):
            raise ShapeError(
                f"a recurrent op takes (n, time, features) and weights (features, {gates} · units), not "
                f"{self.series.name} {format_shape(shape)} and {format_shape(self.weights.shape)}",
                where=self.series.node.where,
            )
        if not shape_accepts((None, gates * self.units), self.weights.shape):
            raise ShapeError(
                f"weights {format_shape(self.weights.shape)} and recurrent weights {format_shape(recurrent.shape)} do "
                f"not fit: they have {gates} · units columns each"
            )
        if self.lengths is not None:
            require_kind(self.lengths.spec, "iu", "lengths are integers")
            if not shape_accepts((None if shape is None else shape[0],), self.lengths.shape):
                raise ShapeError(
                    f"lengths {format_shape(self.lengths.shape)} are not one number for each of the sequences "
                    f"{format_shape(shape)}"
                )

    def over(self, step: _Step, name: str | None, kind: str) -> tuple[Tensor, list[Tensor]]:
        """(outputs (n, time, units), last states)."""
        time = None if self.series.shape is None else self.series.shape[1]
        with op_scope(name, kind, self.series):
            given = matmul(self.series, self.weights)
            if self.bias is not None:
                given = given + self.bias
            rows = None if self.series.shape is None else self.series.shape[0]
            zero = zeros((shape_of(self.series)[0] if rows is None else rows, self.units), dtype=given.dtype)
            start = [zero if s is None else s for s in self.states]
            if time is not None and 0 < time <= _UNROLLED:
                return self._unrolled(step, given, start, time)
            return self._scanned(step, given, start)

    def _unrolled(self, step: _Step, given: Tensor, states: list[Tensor], time: int) -> tuple[Tensor, list[Tensor]]:
        outputs: list[Tensor] = []
        for moment in reversed(range(time)) if self.reverse else range(time):
            output, states = self._step(step, given[:, moment], states, moment)
            outputs.append(output)
        return stack(outputs[::-1] if self.reverse else outputs, axis=1), states

    def _scanned(self, step: _Step, given: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        def one(carry: Any, row: Any) -> tuple[Any, Any]:
            moment, inputs = row
            output, after = self._step(step, inputs, list(carry), moment)
            return after, output

        rows = permute_dims(given, (1, 0, 2))
        moments = arange(shape_of(rows)[0])
        last, outputs = scan(one, states, (moments, rows), reverse=self.reverse)
        made = permute_dims(outputs, (1, 0, 2))
        if self.series.shape is None or self.series.shape[0] is None:
            # A loop of no steps knows nothing of the rows it would have made.
            sizes = shape_of(self.series)
            made = reshape(made, (sizes[0], sizes[1], self.units))
        return made, list(last)

    def _step(
        self, step: _Step, given: Tensor, states: list[Tensor], moment: int | Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """(output, states after one step), in which sequences that are over stay as they are."""
        after = list(step(given, states))
        if self.lengths is None:
            return after[0], after
        runs = expand_dims(greater(self.lengths, moment), axis=-1)
        return where(runs, after[0], 0.0), [where(runs, new, old) for new, old in zip(after, states, strict=True)]
