"""One row of the table of cases, and the arrays that rows are about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nbflow.graph import Tensor
from nbflow.ops import placeholder

Array = Any


@dataclass(frozen=True)
class Case:
    """One call of one op.

    - `op`: the registered op that the row is about; `build` makes it (and perhaps others) from placeholders.
    - `inputs`: arrays, fed. `expect`: the same in numpy; None: the value is checked elsewhere (say where in `note`).
    - `differentiable`: orders checked by check_gradients (0: none).
    - `dynamic`: also build with unknown dimensions, and with unknown rank (`unranked`), and expect the same value.
    - `rtol`: relative error allowed; None: that of the dtype.
    """

    op: str
    build: Callable[..., Any]
    inputs: tuple[Array, ...]
    expect: Callable[..., Any] | None
    differentiable: int = 0
    dynamic: bool = True
    unranked: bool = True
    rtol: float | None = None
    note: str = ""
    stateful: bool = field(default=False)


def f(*shape: int, low: float = -2.0, high: float = 2.0, dtype: str = "float64", seed: int = 0) -> np.ndarray:
    """Reals in [low, high], no two alike."""
    return np.random.default_rng([seed, *shape]).uniform(low, high, shape).astype(dtype)


def i(*shape: int, low: int = -5, high: int = 6, dtype: str = "int64", seed: int = 0) -> np.ndarray:
    """Integers in [low, high)."""
    return np.random.default_rng([seed, *shape]).integers(low, high, shape).astype(dtype)


def b(*shape: int, seed: int = 0) -> np.ndarray:
    """Booleans."""
    return i(*shape, low=0, high=2, seed=seed).astype(bool)


def ids(rows: list[Case]) -> list[str]:
    """A name for each: its op, and which of the op's rows it is."""
    seen: dict[str, int] = {}
    out = []
    for case in rows:
        seen[case.op] = seen.get(case.op, 0) + 1
        out.append(f"{case.op}-{seen[case.op]}")
    return out


def build(case: Case, shape_of: Callable[[Array], Any]) -> tuple[list[Tensor], dict[Tensor, Array]]:
    """The outputs of `case` on placeholders whose shapes are `shape_of(array)`, and the feeds, which are read-only."""
    arrays = [_read_only(np.asarray(a)) for a in case.inputs]
    inputs = [placeholder(a.dtype, shape_of(a), name=f"x{n}") for n, a in enumerate(arrays)]
    made = case.build(*inputs)
    outputs = list(made) if isinstance(made, (list, tuple)) else [made]
    return outputs, dict(zip(inputs, arrays, strict=True))


def _read_only(array: Array) -> Array:
    """A view with the same strides: an implementation that writes into it fails, and the table stays as it is."""
    view = array.view()
    view.flags.writeable = False
    return view
