"""Gradient rules against central differences, first and second order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nbflow.autodiff import gradients
from nbflow.graph import Graph, Tensor
from nbflow.ops import add_n, constant, placeholder
from nbflow.ops import sum as sum_over
from nbflow.ops._build import convert, static_shape
from nbflow.spec import kind_of
from nbflow.testing.evaluate import Evaluator

A = np.ndarray[Any, Any]

# Central differences err by f''' h**2 / 6 + eps |f| / h, least near the cube root of the machine epsilon: about 1e-10.
STEP = 6e-6


def check_gradients(
    fn: Callable[..., Any],
    *arrays: Any,
    order: int = 2,
    rtol: float = 1e-5,
    atol: float = 1e-7,
) -> None:
    """Checks `nf.gradients` of `fn` at `arrays` against central differences, for derivatives 1 to `order`.

    `fn` takes tensors and gives one or several; floating arrays are differentiated, in float64, others are passed as
    they are. All outputs are reduced to one number by fixed random weights, so that no two errors cancel. Raises
    AssertionError that shows the worst element. Points where `fn` has a kink or a jump cannot be checked.
    """
    values = [np.asarray(a) for a in arrays]
    values = [v.astype(np.float64) if kind_of(v.dtype) == "f" else v for v in values]
    graph = Graph()
    with graph.as_default():
        inputs = [placeholder(v.dtype, v.shape, name=f"input.{i}") for i, v in enumerate(values)]
        floating = [t for t in inputs if kind_of(t.dtype) == "f"]
        if not floating:
            raise AssertionError("check_gradients needs at least one floating array")
        random = np.random.default_rng(0)
        function = _weighted(_outputs(fn(*inputs)), random)
        for degree in range(1, order + 1):
            found = gradients(function, floating)
            _compare(function, found, inputs, values, degree=degree, rtol=rtol, atol=atol)
            connected = [g for g in found if g is not None]
            if not connected:
                return
            function = _weighted(connected, random)


def _outputs(made: Any) -> list[Tensor]:
    items = list(made) if isinstance(made, (list, tuple)) else [made]
    tensors = [convert(item) for item in items]
    floating = [t for t in tensors if kind_of(t.dtype) == "f"]
    if not floating:
        raise AssertionError(f"check_gradients needs a floating output, got {[str(t.spec) for t in tensors]}")
    return floating


def _weighted(tensors: Sequence[Tensor], random: np.random.Generator) -> Tensor:
    """A scalar that depends on every element of `tensors`, each with a weight of its own in [0.5, 1.5]."""
    parts = []
    for tensor in tensors:
        shape = static_shape(tensor.shape)
        if shape is not None:
            weights = constant(random.uniform(0.5, 1.5, shape))
            parts.append(sum_over(tensor * weights))
        else:  # an unknown number of elements: weights that repeat
            flat = tensor.reshape(-1)
            parts.append(sum_over(flat * flat.dtype.type(random.uniform(0.5, 1.5))))
    return add_n(parts) if len(parts) > 1 else parts[0]


def _compare(
    function: Tensor,
    found: Sequence[Tensor | None],
    inputs: Sequence[Tensor],
    values: Sequence[A],
    *,
    degree: int,
    rtol: float,
    atol: float,
) -> None:
    evaluator = Evaluator()
    feeds = dict(zip(inputs, values, strict=True))
    exact = evaluator.run([g for g in found if g is not None], feeds)
    positions = [i for i, v in enumerate(values) if kind_of(v.dtype) == "f"]
    for position, grad in zip(positions, found, strict=True):
        numeric = _differences(evaluator, function, inputs, values, position)
        symbolic = np.zeros_like(numeric) if grad is None else exact.pop(0)
        if symbolic.shape != numeric.shape:
            raise AssertionError(
                f"derivative {degree} for input {position} has shape {symbolic.shape}, not {numeric.shape}"
            )
        if not numeric.size:
            continue
        # Rounding errors of the differences grow with the function's own value.
        floor = atol * max(1.0, abs(float(evaluator.run(function, feeds))), float(np.max(np.abs(numeric))))
        excess = np.abs(symbolic - numeric) - (floor + rtol * np.abs(numeric))
        excess = np.where(np.isfinite(symbolic) & np.isfinite(numeric), excess, np.inf)
        worst = np.unravel_index(np.argmax(excess), excess.shape)
        if excess[worst] > 0:
            place = f"[{', '.join(str(int(i)) for i in worst)}]"
            raise AssertionError(
                f"derivative {degree} for input {position} at element {place}, where the input is "
                f"{float(values[position][worst])!r}: the rules give {float(symbolic[worst])!r}, "
                f"central differences {float(numeric[worst])!r}"
                + (" (the rules find no connection)" if grad is None else "")
            )


def _differences(
    evaluator: Evaluator, function: Tensor, inputs: Sequence[Tensor], values: Sequence[A], position: int
) -> A:
    numeric = np.zeros_like(values[position])
    for index in np.ndindex(numeric.shape):
        step = STEP * max(1.0, abs(float(values[position][index])))
        results = []
        for sign in (1, -1):
            moved = [v.copy() if i == position else v for i, v in enumerate(values)]
            moved[position][index] += sign * step
            results.append(float(evaluator.run(function, dict(zip(inputs, moved, strict=True)))))
        numeric[index] = (results[0] - results[1]) / (2 * step)
    return numeric
