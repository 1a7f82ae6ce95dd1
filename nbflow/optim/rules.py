"""The optimizers: hyperparameters, slots and the update op of each. The arithmetic is in the backends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nbflow.errors import GraphError
from nbflow.graph import Node, Tensor
from nbflow.ops._build import build_node
from nbflow.optim.optimizer import LearningRate, Optimizer
from nbflow.spec import kind_of
from nbflow.variable import Variable


def _fraction(value: float, what: str) -> float:
    if not 0 <= value < 1:
        raise GraphError(f"{what} is at least 0 and below 1, not {value}")
    return float(value)


def _positive(value: float, what: str) -> float:
    if not value > 0:
        raise GraphError(f"{what} is positive, not {value}")
    return float(value)


# Which variables decay: a bias or a scale usually should not. `lambda v: v.ndim > 1`
DecayMask = Callable[[Variable], bool]


def _decay(rate: float, mask: DecayMask | None, variable: Variable) -> float:
    return rate if mask is None or mask(variable) else 0.0


def _update(
    op: str, variable: Variable, inputs: Sequence[Tensor], grad: Sequence[Tensor], attrs: Mapping[str, Any]
) -> Node:
    """`op`, or its form for a sparse gradient: values and row numbers in the place of the gradient."""
    sparse = len(grad) > 1 and kind_of(grad[1].dtype) in "iu"
    inputs = (variable.handle, *inputs, *grad)
    return build_node(f"{op}_sparse" if sparse else op, inputs, {"variable": variable.name, **attrs})


class SGD(Optimizer):
    """Stochastic gradient descent: w -= lr · g.

    With `momentum`: m = momentum · m + g; w -= lr · m (Sutskever et al., ICML 2013), or with `nesterov`
    w -= lr · (momentum · m + g). `weight_decay` · w is added to g first, for variables that `decay_mask` is true for.
    """

    def __init__(
        self,
        learning_rate: LearningRate = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        decay_mask: DecayMask | None = None,
    ) -> None:
        super().__init__(learning_rate)
        self.momentum = _fraction(momentum, "momentum")
        self.nesterov = nesterov
        self.weight_decay = float(weight_decay)
        self.decay_mask = decay_mask
        if nesterov and not momentum:
            raise GraphError("nesterov=True needs a momentum above 0")

    @property
    def slots(self) -> Mapping[str, float]:
        return {"m": 0.0} if self.momentum else {}

    @property
    def counts_steps(self) -> bool:
        return False

    def lazy(self, variable: Variable) -> bool:
        return _decay(self.weight_decay, self.decay_mask, variable) == 0

    def update(
        self, variable: Variable, slots: Sequence[Tensor], scalars: Sequence[Tensor], grad: Sequence[Tensor]
    ) -> Node:
        attrs: dict[str, Any] = {"weight_decay": _decay(self.weight_decay, self.decay_mask, variable)}
        if not self.momentum:
            return _update("apply_sgd", variable, scalars, grad, attrs)
        attrs |= {"momentum": self.momentum, "nesterov": self.nesterov}
        return _update("apply_momentum", variable, (*slots, *scalars), grad, attrs)


class Adam(Optimizer):
    """Adam, Algorithm 1 of Kingma and Ba, arXiv 1412.6980.

    m = β₁ m + (1 - β₁) g; v = β₂ v + (1 - β₂) g²; w -= lr · m̂ / (√v̂ + ε), with m̂ = m / (1 - β₁ᵗ), v̂ = v / (1 - β₂ᵗ).
    """

    def __init__(
        self,
        learning_rate: LearningRate = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
    ) -> None:
        super().__init__(learning_rate)
        self.beta1 = _fraction(beta1, "beta1")
        self.beta2 = _fraction(beta2, "beta2")
        self.epsilon = _positive(epsilon, "epsilon")

    @property
    def slots(self) -> Mapping[str, float]:
        return {"m": 0.0, "v": 0.0}

    @property
    def counts_steps(self) -> bool:
        return True

    @property
    def op(self) -> str:
        """The op that updates."""
        return "apply_adam"

    def decay(self, variable: Variable) -> float:
        """Decoupled weight decay."""
        return 0.0

    def lazy(self, variable: Variable) -> bool:
        return self.decay(variable) == 0

    def update(
        self, variable: Variable, slots: Sequence[Tensor], scalars: Sequence[Tensor], grad: Sequence[Tensor]
    ) -> Node:
        attrs = {
            "beta1": self.beta1,
            "beta2": self.beta2,
            "epsilon": self.epsilon,
            "weight_decay": self.decay(variable),
        }
        return _update(self.op, variable, (*slots, *scalars), grad, attrs)


class AdamW(Adam):
    """Adam, and w also shrinks by lr · weight_decay · w. Loshchilov and Hutter, arXiv 1711.05101.

    `decay_mask`: a function from a variable to whether it shrinks; all of them do when left out.
    """

    def __init__(
        self,
        learning_rate: LearningRate = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.01,
        decay_mask: DecayMask | None = None,
    ) -> None:
        super().__init__(learning_rate, beta1, beta2, epsilon)
        self.weight_decay = float(weight_decay)
        self.decay_mask = decay_mask

    def decay(self, variable: Variable) -> float:
        return _decay(self.weight_decay, self.decay_mask, variable)


class RMSProp(Optimizer):
    """v = ρ v + (1 - ρ) g²; w -= lr · g / (√v + ε). Tieleman and Hinton, Coursera lecture 6.5, 2012.

    With `momentum`: m = momentum · m + lr · g / (√v + ε); w -= m. With `centered`, √(v - mean² + ε) stands for √v + ε,
    mean = ρ mean + (1 - ρ) g: divided by the deviation of g, not its size. Graves, arXiv 1308.0850, section 4.2.
    """

    def __init__(
        self,
        learning_rate: LearningRate = 1e-3,
        rho: float = 0.9,
        epsilon: float = 1e-7,
        momentum: float = 0.0,
        centered: bool = False,
    ) -> None:
        super().__init__(learning_rate)
        self.rho = _fraction(rho, "rho")
        self.epsilon = _positive(epsilon, "epsilon")
        self.momentum = _fraction(momentum, "momentum")
        self.centered = centered

    @property
    def slots(self) -> Mapping[str, float]:
        if self.centered:
            return {"v": 0.0, "mean": 0.0, "m": 0.0}
        return {"v": 0.0, "m": 0.0} if self.momentum else {"v": 0.0}

    @property
    def counts_steps(self) -> bool:
        return False

    def update(
        self, variable: Variable, slots: Sequence[Tensor], scalars: Sequence[Tensor], grad: Sequence[Tensor]
    ) -> Node:
        attrs = {"rho": self.rho, "epsilon": self.epsilon}
        if self.centered or self.momentum:
            op = "apply_rmsprop_centered" if self.centered else "apply_rmsprop_momentum"
            return _update(op, variable, (*slots, *scalars), grad, {**attrs, "momentum": self.momentum})
        return _update("apply_rmsprop", variable, (*slots, *scalars), grad, attrs)


class Adagrad(Optimizer):
    """sum += g²; w -= lr · g / (√sum + ε). Duchi, Hazan and Singer, JMLR 12, 2011."""

    def __init__(self, learning_rate: LearningRate = 0.01, initial_sum: float = 0.1, epsilon: float = 1e-7) -> None:
        super().__init__(learning_rate)
        self.initial_sum = float(initial_sum)
        self.epsilon = _positive(epsilon, "epsilon")

    @property
    def slots(self) -> Mapping[str, float]:
        return {"sum": self.initial_sum}

    @property
    def counts_steps(self) -> bool:
        return False

    def lazy(self, variable: Variable) -> bool:
        return True

    def update(
        self, variable: Variable, slots: Sequence[Tensor], scalars: Sequence[Tensor], grad: Sequence[Tensor]
    ) -> Node:
        return _update("apply_adagrad", variable, (*slots, *scalars), grad, {"epsilon": self.epsilon})


class Lamb(AdamW):
    """AdamW whose step for each variable is scaled to the variable's norm: large batches. You et al., arXiv 1904.00962.

    w -= lr · (‖w‖ / ‖u‖) · u with u = m̂ / (√v̂ + ε) + weight_decay · w; the ratio is 1 where a norm is 0.
    """

    def __init__(
        self,
        learning_rate: LearningRate = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-6,
        weight_decay: float = 0.01,
        decay_mask: DecayMask | None = None,
    ) -> None:
        super().__init__(learning_rate, beta1, beta2, epsilon, weight_decay, decay_mask)

    @property
    def op(self) -> str:
        return "apply_lamb"

    def lazy(self, variable: Variable) -> bool:
        return False  # the ratio is that of norms over all rows


class Lion(Optimizer):
    """w -= lr · (sign(β₁ m + (1 - β₁) g) + weight_decay · w); m = β₂ m + (1 - β₂) g. Chen et al., arXiv 2302.06675."""

    def __init__(
        self,
        learning_rate: LearningRate = 1e-4,
        beta1: float = 0.9,
        beta2: float = 0.99,
        weight_decay: float = 0.0,
        decay_mask: DecayMask | None = None,
    ) -> None:
        super().__init__(learning_rate)
        self.beta1 = _fraction(beta1, "beta1")
        self.beta2 = _fraction(beta2, "beta2")
        self.weight_decay = float(weight_decay)
        self.decay_mask = decay_mask

    @property
    def slots(self) -> Mapping[str, float]:
        return {"m": 0.0}

    @property
    def counts_steps(self) -> bool:
        return False

    def update(
        self, variable: Variable, slots: Sequence[Tensor], scalars: Sequence[Tensor], grad: Sequence[Tensor]
    ) -> Node:
        decay = _decay(self.weight_decay, self.decay_mask, variable)
        attrs = {"beta1": self.beta1, "beta2": self.beta2, "weight_decay": decay}
        return _update("apply_lion", variable, (*slots, *scalars), grad, attrs)


class LARS(Optimizer):
    """Momentum whose rate for each variable follows the variable's norm. You et al., arXiv 1708.03888.

    m = momentum · m + lr · ratio · (g + weight_decay · w); w -= m, where
    ratio = trust · ‖w‖ / (‖g‖ + weight_decay · ‖w‖ + ε), or 1 where ‖w‖ or ‖g‖ is 0.
    """

    def __init__(
        self,
        learning_rate: LearningRate = 0.1,
        momentum: float = 0.9,
        trust: float = 1e-3,
        epsilon: float = 1e-9,
        weight_decay: float = 0.0,
        decay_mask: DecayMask | None = None,
    ) -> None:
        super().__init__(learning_rate)
        self.momentum = _fraction(momentum, "momentum")
        self.trust = _positive(trust, "trust")
        self.epsilon = _positive(epsilon, "epsilon")
        self.weight_decay = float(weight_decay)
        self.decay_mask = decay_mask

    @property
    def slots(self) -> Mapping[str, float]:
        return {"m": 0.0}

    @property
    def counts_steps(self) -> bool:
        return False

    def update(
        self, variable: Variable, slots: Sequence[Tensor], scalars: Sequence[Tensor], grad: Sequence[Tensor]
    ) -> Node:
        attrs = {
            "momentum": self.momentum,
            "trust": self.trust,
            "epsilon": self.epsilon,
            "weight_decay": _decay(self.weight_decay, self.decay_mask, variable),
        }
        return _update("apply_lars", variable, (*slots, *scalars), grad, attrs)
