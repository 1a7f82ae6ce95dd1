"""What all optimizers share: gradients, slots, one fused update op per variable, and the node that joins them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from nbflow.autodiff import gradients
from nbflow.errors import DTypeError, GraphError, ShapeError
from nbflow.graph import Node, Tensor
from nbflow.op import AttrValue
from nbflow.ops import astype, full
from nbflow.ops._build import as_tensor, convert
from nbflow.spec import format_shape
from nbflow.variable import Variable, as_variables, variables_of

# A number, a scalar tensor or variable, or a function from the step count (an int64 scalar tensor) to one.
LearningRate = float | Tensor | Variable | Callable[[Tensor], Tensor]


class Strategy(Protocol):
    """How a training step is spread over workers; see `nbflow/parallel`."""

    def to_attrs(self) -> tuple[AttrValue, ...]: ...


class Optimizer(ABC):
    """Makes the training step of a loss. Immutable; one optimizer may make several steps, each with its own slots."""

    def __init__(self, learning_rate: LearningRate) -> None:
        if isinstance(learning_rate, (int, float)) and not learning_rate >= 0:
            raise GraphError(f"a learning rate is not negative, got {learning_rate}")
        self.learning_rate = learning_rate

    @property
    def kind(self) -> str:
        """What the step is called when it has no name: `Adam`."""
        return type(self).__name__

    @property
    @abstractmethod
    def slots(self) -> Mapping[str, float]:
        """Names of the variables kept for each trained one, and what they are filled with at first."""

    @property
    @abstractmethod
    def counts_steps(self) -> bool:
        """True when the update depends on the number of steps made."""

    @abstractmethod
    def update(self, variable: Variable, slots: Sequence[Tensor], scalars: Sequence[Tensor], grad: Tensor) -> Node:
        """The update op of one variable. `scalars`: the step count if `counts_steps`, then the learning rate."""

    def minimize(
        self,
        loss: Tensor,
        variables: Sequence[Variable | Tensor] | None = None,
        strategy: Strategy | None = None,
        name: str | None = None,
    ) -> Node:
        """The training step: an op that, when run, moves `variables` once against the gradient of `loss`.

        - `loss`: a floating scalar.
        - `variables`: all trainable ones that the loss depends on when left out. Those without a gradient stay.
        - `strategy`: how the step is spread over workers, such as nf.train.DataParallel().
        - `name`: the scope of the step's ops; the step itself is `<name>/step`.

        Raises ShapeError or DTypeError for another loss, GraphError when nothing can be trained.
        """
        scalar = _checked_loss(loss)
        graph = scalar.graph
        trained = _trained(scalar, variables)
        with graph.as_default(), graph.absolute_scope(graph.scoped(name) if name else graph.unique(self.kind)):
            scope = graph.scoped("")[:-1]
            grads = gradients(scalar, [v.to_tensor() for v in trained])
            pairs = [(v, g) for v, g in zip(trained, grads, strict=True) if g is not None]
            if not pairs:
                names = ", ".join(v.name for v in trained)
                raise GraphError(
                    f"the loss {scalar.name} has no gradient for any of {names}: every path goes through an op "
                    "without one (such as argmax, astype to integers or stop_gradient)",
                    where=scalar.node.where,
                )
            steps = self._applied(pairs, scope)
            attrs = {"strategy": strategy.to_attrs() if strategy is not None else ()}
            return graph.add("group", (), attrs, name="step", control_inputs=steps)

    def _applied(self, pairs: Sequence[tuple[Variable, Tensor]], scope: str) -> list[Node]:
        """The update ops, and what counts the steps."""
        graph = pairs[0][0].graph
        iterations: Variable | None = None
        count: list[Tensor] = []
        if self.counts_steps or _is_schedule(self.learning_rate):
            iterations = Variable(np.int64(0), name="iterations", trainable=False)
            count = [iterations.to_tensor()]
        rates = self._rates({v.dtype for v, _ in pairs}, count)
        applied: list[Node] = []
        for variable, grad in pairs:
            # On the variable's device, whatever device scope surrounds `minimize`.
            with graph.device(None), graph.colocate_with(variable.node):
                slots = [_slot(variable, f"{scope}/{slot}", value) for slot, value in self.slots.items()]
                scalars = [*(count if self.counts_steps else ()), rates[variable.dtype]]
                with graph.name_scope("update"), graph.name_scope(variable.name):
                    applied.append(self.update(variable, slots, scalars, grad))
        if iterations is not None:
            # Last, so that every update of this step sees the same count.
            with graph.control_dependencies(applied):
                applied.append(iterations.assign_add(1, name="count").node)
        return applied

    def _rates(self, dtypes: set[np.dtype[Any]], count: Sequence[Tensor]) -> dict[np.dtype[Any], Tensor]:
        """The learning rate in each of the variables' dtypes."""
        given = self.learning_rate
        if callable(given) and not isinstance(given, (Tensor, Variable)):
            given = given(count[0])
        ordered = sorted(dtypes, key=str)
        found = as_tensor(given)
        if found is None:
            return {dtype: convert(given, dtype) for dtype in ordered}
        if found.shape not in ((), None):
            raise ShapeError(f"the learning rate {found.name} is a scalar, not {format_shape(found.shape)}")
        return {dtype: found if found.dtype == dtype else astype(found, dtype) for dtype in ordered}


def _is_schedule(rate: LearningRate) -> bool:
    return callable(rate) and not isinstance(rate, (Tensor, Variable))


def _checked_loss(loss: Tensor) -> Tensor:
    tensor = as_tensor(loss)
    if tensor is None:
        raise GraphError(f"the loss is a tensor, not {type(loss).__name__} {loss!r:.60}")
    where = tensor.node.where
    if tensor.shape != ():
        raise ShapeError(
            f"the loss {tensor.name} is a scalar, not {format_shape(tensor.shape)}; use nf.mean(loss)", where=where
        )
    if tensor.dtype.kind != "f":
        raise DTypeError(f"the loss {tensor.name} is floating, not {tensor.dtype}", where=where)
    return tensor


def _trained(loss: Tensor, variables: Sequence[Variable | Tensor] | None) -> list[Variable]:
    if variables is not None:
        found = as_variables(variables)
        if not found:
            raise GraphError("minimize got an empty list of variables")
        return found
    found = [v for v in variables_of(loss) if v.trainable]
    if not found:
        raise GraphError(
            f"the loss {loss.name} depends on no trainable variable; make one with nf.Variable or nf.layers",
            where=loss.node.where,
        )
    return found


def _slot(variable: Variable, name: str, value: float) -> Tensor:
    """The handle of a slot called `<variable>/<name>`, on the variable's device."""
    graph = variable.graph
    with graph.absolute_scope(variable.name), graph.control_dependencies(None):
        with graph.name_scope(name):
            initial = full(variable.shape, value, dtype=variable.dtype)
        return Variable(initial, name=name, trainable=False).handle
