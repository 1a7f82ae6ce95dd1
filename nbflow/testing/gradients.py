"""Gradient rules against central differences, first and second order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nbflow.autodiff import differentiable, gradients
from nbflow.graph import Graph, Tensor
from nbflow.ops import add_n, constant, imag, placeholder, real
from nbflow.ops import sum as sum_over
from nbflow.ops._build import convert, static_shape
from nbflow.spec import kind_of
from nbflow.testing.evaluate import Evaluator

A = np.ndarray[Any, Any]

# Central differences err by f''' h**2 / 6 + eps |f| / h, least near the cube root of the machine epsilon: about 1e-10.
STEP = 6e-6
# What is differentiated, and in which precision.
_WIDE = {"f": np.float64, "c": np.complex128}


def check_gradients(
    fn: Callable[..., Any],
    *arrays: Any,
    order: int = 2,
    rtol: float = 1e-5,
    atol: float = 1e-7,
    directions: int = 0,
) -> None:
    """Checks `nf.gradients` of `fn` at `arrays` against central differences, for derivatives 1 to `order`.

    `fn` takes tensors and gives one or several; floating arrays are differentiated, in float64 (complex ones in
    complex128, their real and imaginary parts one after the other), others are passed as they are. All outputs are
    reduced to one number by fixed random weights, so that no two errors cancel. Raises AssertionError that shows the
    worst element. Points where `fn` has a kink or a jump cannot be checked.

    `directions`: instead of each element, move all of an array at once along so many random directions. That is
    quicker for large arrays, and finds the same errors but does not say at which element.
    """
    values = [np.asarray(a) for a in arrays]
    values = [v.astype(_WIDE[kind]) if (kind := kind_of(v.dtype)) in _WIDE else v for v in values]
    graph = Graph()
    with graph.as_default():
        inputs = [placeholder(v.dtype, v.shape, name=f"input.{i}") for i, v in enumerate(values)]
        floating = [t for t in inputs if differentiable(t)]
        if not floating:
            raise AssertionError("check_gradients needs at least one floating array")
        random = np.random.default_rng(0)
        function = _weighted(_outputs(fn(*inputs)), random)
        for degree in range(1, order + 1):
            found = gradients(function, floating)
            if directions:
                tolerance = (rtol, atol)
                _compare_along(function, found, inputs, values, random, directions, degree=degree, tolerance=tolerance)
            else:
                _compare(function, found, inputs, values, degree=degree, rtol=rtol, atol=atol)
            connected = [g for g in found if g is not None]
            if not connected:
                return
            function = _weighted(connected, random)


def _outputs(made: Any) -> list[Tensor]:
    items = list(made) if isinstance(made, (list, tuple)) else [made]
    tensors = [convert(item) for item in items]
    floating = [t for t in tensors if differentiable(t)]
    if not floating:
        raise AssertionError(f"check_gradients needs a floating output, got {[str(t.spec) for t in tensors]}")
    return floating


def _weighted(tensors: Sequence[Tensor], random: np.random.Generator) -> Tensor:
    """A scalar that depends on every element of `tensors`, each with a weight of its own in [0.5, 1.5]."""
    parts = []
    for tensor in [part for t in tensors for part in ((real(t), imag(t)) if kind_of(t.dtype) == "c" else (t,))]:
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
    positions = [i for i, v in enumerate(values) if kind_of(v.dtype) in _WIDE]
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
                f"{values[position][worst].item()!r}: the rules give {symbolic[worst].item()!r}, "
                f"central differences {numeric[worst].item()!r}"
                + (" (the rules find no connection)" if grad is None else "")
            )


def _differences(
    evaluator: Evaluator, function: Tensor, inputs: Sequence[Tensor], values: Sequence[A], position: int
) -> A:
    """The derivative for each element; of complex ones that for the real part, and i times that for the imaginary."""
    numeric = np.zeros_like(values[position])
    for index in np.ndindex(numeric.shape):
        step = STEP * max(1.0, float(np.abs(values[position][index])))
        for unit in (1, 1j) if kind_of(numeric.dtype) == "c" else (1,):
            change = np.zeros_like(numeric)
            change[index] = unit
            numeric[index] += unit * _slope(evaluator, function, inputs, values, position, change, step)
    return numeric


def _slope(
    evaluator: Evaluator,
    function: Tensor,
    inputs: Sequence[Tensor],
    values: Sequence[A],
    position: int,
    change: A,
    step: float,
) -> float:
    """The central difference of `function` when input `position` changes by `change` times a small number."""
    results = []
    for sign in (1, -1):
        moved = [v + sign * step * change if i == position else v for i, v in enumerate(values)]
        results.append(float(evaluator.run(function, dict(zip(inputs, moved, strict=True)))))
    return (results[0] - results[1]) / (2 * step)


def _compare_along(
    function: Tensor,
    found: Sequence[Tensor | None],
    inputs: Sequence[Tensor],
    values: Sequence[A],
    random: np.random.Generator,
    directions: int,
    *,
    degree: int,
    tolerance: tuple[float, float],
) -> None:
    evaluator = Evaluator()
    feeds = dict(zip(inputs, values, strict=True))
    value, exact = evaluator.run((function, [g for g in found if g is not None]), feeds)
    positions = [i for i, v in enumerate(values) if kind_of(v.dtype) in _WIDE]
    for position, grad in zip(positions, found, strict=True):
        at = values[position]
        symbolic = np.zeros_like(at) if grad is None else exact.pop(0)
        if symbolic.shape != at.shape:
            raise AssertionError(f"derivative {degree} for input {position} has shape {symbolic.shape}, not {at.shape}")
        if not np.isfinite(symbolic).all():
            raise AssertionError(f"derivative {degree} for input {position} is not finite: {symbolic}")
        for _ in range(directions if at.size else 0):
            change: A = np.asarray(random.uniform(-1, 1, at.shape))
            if kind_of(at.dtype) == "c":
                change = change + 1j * random.uniform(-1, 1, at.shape)
            numeric = _slope(evaluator, function, inputs, values, position, change, STEP)
            along = float(np.sum(np.real(np.conj(symbolic) * change)))
            floor = tolerance[1] * max(1.0, abs(float(value)))
            if not abs(along - numeric) <= floor + tolerance[0] * abs(numeric):
                raise AssertionError(
                    f"derivative {degree} for input {position} along a random direction: the rules give {along!r}, "
                    f"central differences {numeric!r}" + (" (the rules find no connection)" if grad is None else "")
                )
