"""One op on values that are at hand, by numpy's implementation: what is computed while a run is being prepared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nbflow import op as ops
from nbflow.backends.numpy import TABLE

Array = np.ndarray[Any, Any]


def evaluate(op: str, inputs: Sequence[Array], attrs: Mapping[str, Any]) -> tuple[Array, ...] | None:
    """The outputs of `op`; None for an op that is stateful, that numpy does not implement, or that raises.

    What raises here raises again in the run, where the error gets its op, device, cell and line.
    """
    function = TABLE.get(op)
    if function is None or ops.get(op).stateful:
        return None
    try:
        with np.errstate(all="ignore"):
            found = function(*inputs, **attrs)
    except Exception:  # noqa: BLE001  # an implementation may raise anything; see above
        return None
    return tuple(np.asarray(v) for v in (found if isinstance(found, tuple) else (found,)))
