"""The optimizers: hyperparameters, slots and the update op of each. The arithmetic is in the backends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nbflow.errors import GraphError
from nbflow.graph import Node, Tensor
from nbflow.ops._build import build_node
from nbflow.optim.optimizer import LearningRate, Optimizer
from nbflow.variable import Variable


def _fraction(value: float, what: str) -> float:
    if not 0 <= value < 1:
        raise GraphError(f"{what} is at least 0 and below 1, not {value}")
    return float(value)


def _positive(value: float, what: str) -> float:
    if not value > 0:
        raise GraphError(f"{what} is positive, not {value}")
    return float(value)


def _update(op: str, variable: Variable, inputs: Sequence[Tensor], attrs: Mapping[str, Any]) -> Node:
    return build_node(op, (variable.handle, *inputs), {"variable": variable.name, **attrs})


class SGD(Optimizer):
    """Stochastic gradient descent: w -= lr · g.

    With `momentum`: m = momentum · m + g; w -= lr · m (Sutskever et al., ICML 2013), or with `nesterov`
    w -= lr · (momentum · m + g). `weight_decay` · w is added to g first.
    """

    def __init__(
        self,
        learning_rate: LearningRate = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(learning_rate)
        self.momentum = _fraction(momentum, "momentum")
        self.nesterov = nesterov
        self.weight_decay = float(weight_decay)
        if nesterov and not momentum:
            raise GraphError("nesterov=True needs a momentum above 0")

    @property
    def slots(self) -> Mapping[str, float]:
        return {"m": 0.0} if self.momentum else {}

    @property
    def counts_steps(self) -> bool:
        return False

    def update(self, variable: Variable, slots: Sequence[Tensor], scalars: Sequence[Tensor], grad: Tensor) -> Node:
        attrs: dict[str, Any] = {"weight_decay": self.weight_decay}
        if not self.momentum:
            return _update("apply_sgd", variable, (*scalars, grad), attrs)
        attrs |= {"momentum": self.momentum, "nesterov": self.nesterov}
        return _update("apply_momentum", variable, (*slots, *scalars, grad), attrs)


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
    def decay(self) -> float:
        """Decoupled weight decay."""
        return 0.0

    def update(self, variable: Variable, slots: Sequence[Tensor], scalars: Sequence[Tensor], grad: Tensor) -> Node:
        attrs = {
            "beta1": self.beta1,
            "beta2": self.beta2,
            "epsilon": self.epsilon,
            "weight_decay": self.decay,
        }
        return _update("apply_adam", variable, (*slots, *scalars, grad), attrs)


class AdamW(Adam):
    """Adam, and w also shrinks by lr · weight_decay · w. Loshchilov and Hutter, arXiv 1711.05101."""

    def __init__(
        self,
        learning_rate: LearningRate = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(learning_rate, beta1, beta2, epsilon)
        self.weight_decay = float(weight_decay)

    @property
    def decay(self) -> float:
        return self.weight_decay


class RMSProp(Optimizer):
    """v = ρ v + (1 - ρ) g²; w -= lr · g / (√v + ε). Tieleman and Hinton, Coursera lecture 6.5, 2012."""

    def __init__(self, learning_rate: LearningRate = 1e-3, rho: float = 0.9, epsilon: float = 1e-7) -> None:
        super().__init__(learning_rate)
        self.rho = _fraction(rho, "rho")
        self.epsilon = _positive(epsilon, "epsilon")

    @property
    def slots(self) -> Mapping[str, float]:
        return {"v": 0.0}

    @property
    def counts_steps(self) -> bool:
        return False

    def update(self, variable: Variable, slots: Sequence[Tensor], scalars: Sequence[Tensor], grad: Tensor) -> Node:
        attrs = {"rho": self.rho, "epsilon": self.epsilon}
        return _update("apply_rmsprop", variable, (*slots, *scalars, grad), attrs)


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

    def update(self, variable: Variable, slots: Sequence[Tensor], scalars: Sequence[Tensor], grad: Tensor) -> Node:
        return _update("apply_adagrad", variable, (*slots, *scalars, grad), {"epsilon": self.epsilon})
