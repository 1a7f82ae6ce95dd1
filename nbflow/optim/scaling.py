"""Loss scaling: gradients of float16 computations that neither vanish nor overflow.

The loss is multiplied by a scale before the backward pass and the gradients divided by it after. A step whose gradients
are not all finite changes nothing but the scale. Micikevicius et al., arXiv 1710.03740, section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nbflow.errors import GraphError
from nbflow.graph import Node, Tensor
from nbflow.ops import all as all_of
from nbflow.ops import astype, isfinite, logical_and, logical_not, maximum, minimum, stack, where
from nbflow.variable import Variable


@dataclass(frozen=True, slots=True)
class DynamicLossScale:
    """A scale that halves when gradients overflow and doubles after `interval` steps that did not.

    - `initial`: the scale at first, a positive number; `least` and `most` bound it.
    - `interval`: steps; `factor`: what "doubles" and "halves" stand for, above 1.

    The variables should be float32 and the computation cast to float16: gradients of float16 variables are unscaled in
    float16, where small ones vanish all the same.
    """

    initial: float = 2.0**15
    interval: int = 2000
    factor: float = 2.0
    least: float = 1.0
    most: float = 2.0**24

    def __post_init__(self) -> None:
        if not (0 < self.least <= self.initial <= self.most and self.interval >= 1 and self.factor > 1):
            raise GraphError(
                "a loss scale needs 0 < least <= initial <= most, interval >= 1 and factor > 1, got "
                f"least={self.least}, initial={self.initial}, most={self.most}, interval={self.interval}, "
                f"factor={self.factor}"
            )

    def variables(self) -> tuple[Variable, Variable]:
        """`loss_scale` (float32) and `good_steps` (int64), the steps since the scale last changed."""
        return (
            Variable(np.float32(self.initial), name="loss_scale", trainable=False),
            Variable(np.int64(0), name="good_steps", trainable=False),
        )

    def moved(self, scale: Variable, good: Variable, finite: Tensor) -> list[Node]:
        """The ops that set both for the next step."""
        count = good.to_tensor() + 1
        full = logical_and(finite, count >= self.interval)
        larger = minimum(scale * self.factor, self.most)
        smaller = maximum(scale / self.factor, self.least)
        following = where(finite, where(full, larger, scale), smaller)
        kept = where(logical_and(finite, logical_not(full)), count, 0)
        return [scale.assign(following).node, good.assign(kept).node]


def unscaled(grads: Sequence[Tensor], scale: Tensor) -> list[Tensor]:
    """Each gradient divided by `scale`."""
    return [g / (scale if scale.dtype == g.dtype else astype(scale, g.dtype)) for g in grads]


def all_finite(grads: Sequence[Tensor]) -> Tensor:
    """A boolean scalar."""
    return all_of(stack([all_of(isfinite(g)) for g in grads]))
