"""Exponential moving averages of variables, which often predict better than the last values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from nbflow.errors import DTypeError, GraphError
from nbflow.graph import Node, Tensor
from nbflow.ops import astype, minimum
from nbflow.ops.creation import group
from nbflow.spec import kind_of
from nbflow.variable import Variable, as_variables


class ExponentialMovingAverage:
    """average = decay · average + (1 - decay) · value, from the variables' initial values on.

    - `decay`: at least 0 and below 1.
    - `warm_up`: the decay of step t is min(decay, (1 + t) / (10 + t)), so that early averages follow fast.

        ema = nf.optim.ExponentialMovingAverage(0.999)
        step = ema.after(nf.optim.Adam().minimize(loss), [w, b])     # trains, then moves the averages
        nf.run(ema.average(w)); nf.run(ema.swap_in())                # read one; or put them all in the variables' place
    """

    def __init__(self, decay: float = 0.999, warm_up: bool = False, name: str = "ema") -> None:
        if not 0 <= decay < 1:
            raise GraphError(f"the decay of an average is at least 0 and below 1, not {decay}")
        self.decay = float(decay)
        self.warm_up = warm_up
        self.name = name
        self._averages: dict[str, tuple[Variable, Variable]] = {}

    @property
    def averages(self) -> Mapping[str, Variable]:
        """The averages by the names of what they average; they are called `<variable>/<name>`."""
        return {name: average for name, (_, average) in self._averages.items()}

    def average(self, variable: Variable) -> Variable:
        """The average of `variable`. Raises GraphError when `after` was not called with it."""
        try:
            return self._averages[variable.name][1]
        except KeyError:
            raise GraphError(f"{variable.name!r} is not averaged; name it in ema.after(step, variables)") from None

    def after(self, step: Node, variables: Sequence[Variable | Tensor]) -> Node:
        """An op that runs the training step `step` and then moves the averages; it is what to train with.

        It has the strategy of `step`: the averages move once a step, with the joined values, however many replicas.
        Raises GraphError for an empty list and for a second call, DTypeError for variables that are not floating.
        """
        found = as_variables(variables)
        if not found or self._averages:
            raise GraphError("ema.after takes at least one variable" if not found else "ema.after is called once")
        for variable in found:
            if kind_of(variable.dtype) != "f":
                raise DTypeError(f"only floating variables have averages, {variable.name!r} is {variable.dtype}")
        graph = step.graph
        with graph.as_default(), graph.absolute_scope(graph.unique(f"{step.name}_{self.name}")):
            for variable in found:
                self._averages[variable.name] = (variable, self._made(variable))
            count = Variable(np.int64(0), name="iterations", trainable=False)
            with graph.control_dependencies([step]):
                moved = [self._moved(v, average, count.to_tensor()) for v, average in self._averages.values()]
            with graph.control_dependencies(moved):
                counted = count.assign_add(1, name="count").node
            attrs = {"strategy": step.attrs.get("strategy", ())}
            return graph.add("group", (), attrs, name="step", control_inputs=[step, *moved, counted])

    def swap_in(self) -> Node:
        """An op that copies each average into its variable. Training goes on from there: checkpoint first."""
        if not self._averages:
            raise GraphError("nothing is averaged yet; call ema.after(step, variables) first")
        return group(*[v.assign(average.to_tensor()) for v, average in self._averages.values()])

    def _made(self, variable: Variable) -> Variable:
        graph = variable.graph
        initial = graph.node(f"{variable.name}/initialize").inputs[1]
        with graph.absolute_scope(variable.name), graph.control_dependencies(None), graph.colocate_with(variable.node):
            return Variable(initial, name=self.name, trainable=False)

    def _moved(self, variable: Variable, average: Variable, count: Tensor) -> Node:
        graph = variable.graph
        with graph.device(None), graph.colocate_with(variable.node):
            difference = variable.read() - average
            if not self.warm_up:
                return average.assign_add(difference * (1 - self.decay)).node
            time = astype(count, "float64")
            rate = 1.0 - minimum((time + 1.0) / (time + 10.0), self.decay)
            return average.assign_add(difference * astype(rate, variable.dtype)).node
