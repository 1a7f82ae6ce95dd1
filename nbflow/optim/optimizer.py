"""What all optimizers share: gradients, slots, one fused update op per variable, and the node that joins them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from nbflow.autodiff import gradients
from nbflow.errors import DTypeError, GraphError, ShapeError
from nbflow.graph import Graph, Node, Tensor
from nbflow.op import AttrValue
from nbflow.ops import astype, equal, full, logical_and, where, zeros_like
from nbflow.ops._build import as_tensor, build, convert
from nbflow.ops.rows import sparse_join
from nbflow.ops.slices import Gradient, IndexedSlices, dense
from nbflow.optim.clip import Clip, Clipper, summed
from nbflow.optim.scaling import DynamicLossScale, all_finite, unscaled
from nbflow.spec import format_shape, kind_of
from nbflow.variable import Variable, as_variables, variables_of

# A number, a scalar tensor or variable, or a function from the step count (an int64 scalar tensor) to one.
LearningRate = float | Tensor | Variable | Callable[[Tensor], Tensor]


@runtime_checkable
class Strategy(Protocol):
    """How a training step is spread over workers; see `nbflow/parallel`."""

    def to_attrs(self) -> tuple[AttrValue, ...]: ...


class Optimizer(ABC):
    """Makes the training step of a loss. Immutable; one optimizer may make several steps, each with its own slots.

    The gradient of a table of which rows are looked up is sparse. It travels as rows; where `lazy(table)` only these
    rows, and these of the slots, are touched, so that what decays (momentum, Adam's averages) waits in the others until
    they are looked up again. Other updates get a dense gradient, made on the table's device.
    """

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

    def lazy(self, variable: Variable) -> bool:
        """Whether `update` takes a sparse gradient for `variable` as it is. Not where all rows move: weight decay."""
        return False

    @abstractmethod
    def update(
        self, variable: Variable, slots: Sequence[Tensor], scalars: Sequence[Tensor], grad: Sequence[Tensor]
    ) -> Node:
        """The update op of one variable. `scalars`: the step count if `counts_steps`, then the learning rate; `grad`:
        the gradient (values and row numbers if it is sparse, for which `lazy` must be true), and where not every run
        of the step updates, a boolean that says whether this one does."""

    def minimize(
        self,
        loss: Tensor,
        variables: Sequence[Variable | Tensor] | None = None,
        strategy: Strategy | None = None,
        name: str | None = None,
        *,
        clip: Clip | Clipper | None = None,
        accumulate: int = 1,
        loss_scale: DynamicLossScale | None = None,
    ) -> Node:
        """The training step: an op that, when run, moves `variables` once against the gradient of `loss`.

        - `loss`: a floating scalar.
        - `variables`: all trainable ones that the loss depends on when left out. Those without a gradient stay.
        - `strategy`: how the step is spread over workers, such as nf.train.DataParallel().
        - `name`: the scope of the step's ops; the step itself is `<name>/step`.
        - `clip`: nf.optim.Clip(…), or a function from the list of gradients to as many; it sees the joined gradients
          of the whole batch, or of all batches accumulated. A function gets dense ones.
        - `accumulate`: variables move at each so many-th run, by the mean of the gradients since the last move. The sum
          of sparse gradients is kept dense.
        - `loss_scale`: for float16; a run whose gradients are not finite moves nothing, and is not counted by
          `accumulate`.

        Raises ShapeError or DTypeError for another loss, GraphError when nothing can be trained, and for what is no
        strategy.
        """
        scalar = _checked_loss(loss)
        how = _strategy_attrs(strategy)
        graph = scalar.graph
        trained = _trained(scalar, variables)
        with graph.as_default(), graph.absolute_scope(graph.scoped(name) if name else graph.unique(self.kind)):
            scope = graph.scoped("")[:-1]
            stages = _Stages(clip, accumulate, loss_scale)
            grads = gradients(stages.scaled(scalar), [v.to_tensor() for v in trained], sparse=True)
            pairs = [(v, g) for v, g in zip(trained, grads, strict=True) if g is not None]
            if not pairs:
                names = ", ".join(v.name for v in trained)
                raise GraphError(
                    f"the loss {scalar.name} has no gradient for any of {names}: every path goes through an op "
                    "without one (such as argmax, astype to integers or stop_gradient)",
                    where=scalar.node.where,
                )
            steps = self._applied(stages.passed(pairs, scope), scope, stages.gate)
            with graph.control_dependencies(steps):
                steps += stages.after()
            return graph.add("group", (), {"strategy": how}, name="step", control_inputs=steps)

    def _applied(
        self, pairs: Sequence[tuple[Variable, Gradient]], scope: str, gate: Sequence[Tensor] = ()
    ) -> list[Node]:
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
                slots = [_slot(variable, f"{scope}/{slot}", value).handle for slot, value in self.slots.items()]
                scalars = [*(count if self.counts_steps else ()), rates[variable.dtype]]
                with graph.name_scope("update"), graph.name_scope(variable.name):
                    if isinstance(grad, IndexedSlices) and self.lazy(variable):
                        taken: tuple[Tensor, ...] = (grad.values, grad.indices)
                    else:
                        taken = (dense(grad),)
                    applied.append(self.update(variable, slots, scalars, (*taken, *gate)))
        if iterations is not None:
            # Last, so that every update of this step sees the same count.
            with graph.control_dependencies(applied):
                one = astype(gate[0], "int64") if gate else 1
                applied.append(iterations.assign_add(one, name="count").node)
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


class _Stages:
    """What happens to gradients between the backward pass and the updates, behind the point where replicas join."""

    def __init__(self, clip: Clip | Clipper | None, accumulate: int, loss_scale: DynamicLossScale | None) -> None:
        if isinstance(accumulate, bool) or int(accumulate) != accumulate or accumulate < 1:
            raise GraphError(f"accumulate is a positive number of steps, not {accumulate!r}")
        self.clip = clip
        self.accumulate = int(accumulate)
        self.loss_scale = loss_scale
        self.scale: tuple[Variable, Variable] | None = None
        self.gate: list[Tensor] = []  # one boolean, where not every run updates
        self.finite: Tensor | None = None  # whether the gradients of this run are finite, where that is asked
        self.totals: list[tuple[Variable, Tensor]] = []
        self.micro: Variable | None = None

    def scaled(self, loss: Tensor) -> Tensor:
        if self.loss_scale is None:
            return loss
        self.scale = self.loss_scale.variables()
        factor = self.scale[0].to_tensor()
        # A float16 loss is widened first: the scaled one may be beyond its range.
        wide = astype(loss, "float32") if loss.dtype.itemsize < 4 else loss
        return wide * (factor if wide.dtype == factor.dtype else astype(factor, wide.dtype))

    def passed(self, pairs: Sequence[tuple[Variable, Gradient]], scope: str) -> list[tuple[Variable, Gradient]]:
        """The gradients that the updates get."""
        if self.clip is None and self.accumulate == 1 and self.scale is None:
            # The update itself is where a dense gradient is joined.
            return [(v, _joined(v, g) if isinstance(g, IndexedSlices) else g) for v, g in pairs]
        variables = [v for v, _ in pairs]
        grads = [_joined(v, g) for v, g in pairs]
        if self.scale is not None:
            grads = self._unscaled(variables, grads, self.scale[0].to_tensor())
        if self.accumulate > 1:
            grads = self._accumulated(variables, grads, scope)
        if self.clip is not None:
            grads = self._clipped(self.clip, grads)
        return list(zip(variables, grads, strict=True))

    def _unscaled(self, variables: Sequence[Variable], grads: Sequence[Gradient], scale: Tensor) -> list[Gradient]:
        """Divided by the loss scale, if all are finite: the sums of repeated rows, too."""
        once: list[Gradient] = []
        for variable, grad in zip(variables, grads, strict=True):
            with variable.graph.device(None), variable.graph.colocate_with(variable.node):
                once.append(summed(grad))
        values = [g.values if isinstance(g, IndexedSlices) else g for g in once]
        self.finite = all_finite(values)
        self.gate = [self.finite]
        return [
            g.with_values(v) if isinstance(g, IndexedSlices) else v
            for g, v in zip(once, unscaled(values, scale), strict=True)
        ]

    def _clipped(self, clip: Clip | Clipper, grads: list[Gradient]) -> list[Gradient]:
        with _graph_of(grads[0]).name_scope("clip"):
            made: Sequence[Gradient] = clip(grads) if isinstance(clip, Clip) else clip([dense(g) for g in grads])
        if [(g.shape, g.dtype) for g in made] != [(g.shape, g.dtype) for g in grads]:
            raise GraphError(f"clip gives as many gradients of the same shapes and dtypes, got {made} for {grads}")
        return list(made)

    def _accumulated(self, variables: Sequence[Variable], grads: Sequence[Gradient], scope: str) -> list[Gradient]:
        self.micro = Variable(np.int64(0), name="micro_step", trainable=False)
        last = equal(self.micro.to_tensor(), self.accumulate - 1)
        self.gate = [last if self.finite is None else logical_and(last, self.finite)]
        for variable, grad in zip(variables, grads, strict=True):
            with variable.graph.device(None), variable.graph.colocate_with(variable.node):
                kept = _slot(variable, f"{scope}/accumulated", 0.0)
                self.totals.append((kept, self._added(kept, grad)))
        return [total for _, total in self.totals]

    def _added(self, kept: Variable, grad: Gradient) -> Tensor:
        part = (grad.values if isinstance(grad, IndexedSlices) else grad) / self.accumulate
        if self.finite is not None:
            part = where(self.finite, part, 0)
        if not isinstance(grad, IndexedSlices):
            return kept.assign_add(part)
        added = kept.scatter_add(grad.indices, part)
        with kept.graph.control_dependencies([added]):
            return kept.read()

    def after(self) -> list[Node]:
        """What is made ready for the next run, when the updates are done."""
        made: list[Node] = []
        if self.scale is not None and self.loss_scale is not None:
            assert self.finite is not None  # where there is a scale it was asked
            made += self.loss_scale.moved(*self.scale, self.finite)
        if self.micro is not None:
            for kept, total in self.totals:
                with kept.graph.device(None), kept.graph.colocate_with(kept.node):
                    made.append(kept.assign(where(self.gate[0], zeros_like(total), total)).node)
            counted = 1 if self.finite is None else astype(self.finite, "int64")
            following = where(self.gate[0], 0, self.micro.to_tensor() + counted)
            made.append(self.micro.assign(following).node)
        return made


def _joined(variable: Variable, grad: Gradient) -> Gradient:
    graph = variable.graph
    with graph.device(None), graph.name_scope("joined"), graph.name_scope(variable.name):
        if isinstance(grad, IndexedSlices):
            with graph.colocate_with(grad.values):
                flat = grad.flat()
            with graph.colocate_with(variable.node):
                return sparse_join(flat, variable.handle, variable.name)
        with graph.colocate_with(variable.node):
            return build("gradient_join", (grad, variable.handle), {"variable": variable.name})


def _graph_of(gradient: Gradient) -> Graph:
    return gradient.values.graph if isinstance(gradient, IndexedSlices) else gradient.graph


def _is_schedule(rate: LearningRate) -> bool:
    return callable(rate) and not isinstance(rate, (Tensor, Variable))


def _strategy_attrs(strategy: Strategy | None) -> tuple[AttrValue, ...]:
    if strategy is None:
        return ()
    if isinstance(strategy, type) or not isinstance(strategy, Strategy):
        raise GraphError(
            f"{strategy!r} is no strategy; use an object such as nf.train.DataParallel(), nf.train.LocalSGD() or "
            "nf.train.Pipeline(), or None for a step in one piece"
        )
    return strategy.to_attrs()


def _checked_loss(loss: Tensor) -> Tensor:
    tensor = as_tensor(loss)
    if tensor is None:
        raise GraphError(f"the loss is a tensor, not {type(loss).__name__} {loss!r:.60}")
    where = tensor.node.where
    if tensor.shape != ():
        raise ShapeError(
            f"the loss {tensor.name} is a scalar, not {format_shape(tensor.shape)}; use nf.mean(loss)", where=where
        )
    if kind_of(tensor.dtype) != "f":
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


def _slot(variable: Variable, name: str, value: float) -> Variable:
    """A slot called `<variable>/<name>`, on the variable's device."""
    graph = variable.graph
    with graph.absolute_scope(variable.name), graph.control_dependencies(None):
        with graph.name_scope(name):
            initial = full(variable.shape, value, dtype=variable.dtype)
        return Variable(initial, name=name, trainable=False)
