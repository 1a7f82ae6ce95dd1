"""A device that computes nothing and takes a stated time: coordination of many workers on a machine of few cores.

Everything around the ops is real: plans, placement, state under its keys, sends and recvs, steps, cancels. What ops
give are zeros of the right shape and dtype that take no memory. Three kinds of ops are really computed by numpy, since
what happens next hangs on them: those on at most `SMALL` elements, all of them real (counters, conditions, shapes);
datasets, queues and their like; and those whose shape depends on values.

A tensor of zeros travels as its description; the link is busy for as long as its bytes would take (`clock.Link`).
Time passes beside the thread that runs a plan, as on a GPU: it waits when a value leaves the device, and at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any

import numpy as np

from nbflow import op as ops
from nbflow.backends.base import Context, Implementation
from nbflow.backends.null.array import NullArray, zeros
from nbflow.backends.null.clock import Clock, Link
from nbflow.backends.numpy import TABLE as NUMPY
from nbflow.backends.numpy import random, rows, updates
from nbflow.backends.numpy.state import TABLE as STATE
from nbflow.cost import DeviceModel
from nbflow.machines import Machine, parse_machine
from nbflow.op import Attrs, Cost, OpDef
from nbflow.spec import TensorSpec
from nbflow.state import Cell

# Elements of an op's inputs and outputs together up to which it is computed.
SMALL = 1024
# Signatures of one op whose outputs and cost are kept.
_KEPT = 1024

_VARIABLES = frozenset((*STATE, *rows.TABLE, *updates.TABLE)) - {"variable"}


class NullBackend:
    """See `nbflow.backends.base.Backend`. One device, with one link: a task has one of its own."""

    def __init__(self, machine: Machine | str = "") -> None:
        self.machine = parse_machine(machine) if isinstance(machine, str) else machine
        self.clock = Clock()
        self.link = Link(self.machine)
        self._table = MappingProxyType({name: self._implementation(name) for name in NUMPY})

    @property
    def type(self) -> str:
        return "null"

    @property
    def table(self) -> Mapping[str, Implementation]:
        return self._table

    def asarray(self, value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return value if isinstance(value, NullArray) else np.asarray(value)

    def to_host(self, value: Any) -> np.ndarray[Any, Any]:
        self.clock.wait()
        return self.asarray(value)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NullArray | np.ndarray[Any, Any]:
        return zeros(shape, dtype) if math.prod(shape) > SMALL else np.empty(shape, dtype)

    def contiguous(self, value: Any) -> Any:
        return value

    def synchronize(self) -> None:
        self.clock.wait()

    def scope(self) -> AbstractContextManager[Any]:
        return np.errstate(all="ignore")

    def free_unused(self) -> None:
        """Zeros take no memory."""

    def _implementation(self, name: str) -> Implementation:
        op = _Op(ops.get(name), NUMPY[name], self.clock, self.machine.device)
        if not op.definition.stateful or name in random.TABLE:
            return op.draw if op.definition.stateful else op.run
        return op.update if name in _VARIABLES else NUMPY[name]


class _Op:
    """One op of the table."""

    def __init__(self, definition: OpDef, compute: Implementation, clock: Clock, device: DeviceModel) -> None:
        self.definition = definition
        self.compute = compute
        self.clock = clock
        self.device = device
        self.known: dict[Any, tuple[list[TensorSpec], float, bool]] = {}

    def run(self, *inputs: Any, out: Any = None, **attrs: Any) -> Any:
        return self._result(inputs, attrs, lambda values: self.compute(*values, **attrs))

    def draw(self, context: Context, *inputs: Any, **attrs: Any) -> Any:
        """Random numbers."""
        return self._result(inputs, attrs, lambda values: self.compute(context, *values, **attrs))

    def update(self, context: Context, *inputs: Any, **attrs: Any) -> Any:
        """What has the cell of a variable among its inputs: small variables hold real values, others zeros."""
        if self.definition.name == "initialize":
            return self._initialize(context, *inputs, **attrs)
        if self.definition.name == "read_variable" or not any(_is_null(v) for v in inputs):
            # numpy's too: it says what is wrong with a variable that has no value.
            self._spend(inputs, attrs)
            return self.compute(context, *inputs, **attrs)
        if self.definition.name == "assign":  # the first value, too: of a copy that a strategy made
            inputs[0].value = zeros(tuple(inputs[1].shape), inputs[1].dtype)
        specs, seconds, _ = self._signature(inputs, attrs)
        self.clock.spend(seconds)
        return _outputs(specs)

    def _initialize(self, context: Context, cell: Cell, value: Any, **attrs: Any) -> Any:
        """numpy would make room for a value of its own."""
        if not isinstance(value, NullArray):
            return self.compute(context, cell, value, **attrs)
        with cell.lock:
            if cell.value is None:
                cell.value = value
        return ()

    def _spend(self, inputs: Sequence[Any], attrs: Attrs) -> None:
        if any(isinstance(v, Cell) and v.value is None for v in inputs):
            return
        self.clock.spend(self._signature(inputs, attrs)[1])

    def _result(self, inputs: Sequence[Any], attrs: Attrs, compute: Callable[[Sequence[Any]], Any]) -> Any:
        specs, seconds, small = self._signature(inputs, attrs)
        self.clock.spend(seconds)
        static = all(s.is_static for s in specs)
        real = small and not any(isinstance(v, NullArray) for v in inputs)
        if static and not real and self.definition.name != "shape_of":
            return _outputs(specs)
        found = compute([np.asarray(v) if isinstance(v, NullArray) else v for v in inputs])
        if static and small:
            return found
        values = found if isinstance(found, tuple) else (found,)
        made = [v if np.size(v) <= SMALL else zeros(np.shape(v), v.dtype) for v in values]
        return tuple(made) if isinstance(found, tuple) else made[0]

    def _signature(self, inputs: Sequence[Any], attrs: Attrs) -> tuple[list[TensorSpec], float, bool]:
        """Output specs, seconds, and whether all of it is small."""
        try:
            key = (*[_spec(v) for v in inputs], *attrs.items())
            found = self.known.get(key)
        except TypeError:  # an attribute that is an array
            return self._infer([_spec(v) for v in inputs], attrs)
        if found is None:
            found = self._infer([_spec(v) for v in inputs], attrs)
            if len(self.known) < _KEPT:
                self.known[key] = found
        return found

    def _infer(self, specs: list[TensorSpec], attrs: Attrs) -> tuple[list[TensorSpec], float, bool]:
        outputs = list(self.definition.infer(specs, attrs))
        cost: Cost = self.definition.cost(specs, outputs, attrs)
        sizes = [s.size if s.size is not None else math.inf for s in (*specs, *outputs)]
        return outputs, self.device.seconds(cost), sum(sizes) <= SMALL


def _spec(value: Any) -> TensorSpec:
    if isinstance(value, Cell):
        return TensorSpec(tuple(value.value.shape), value.value.dtype, resource=True)
    return TensorSpec(np.shape(value), value.dtype)


def _is_null(value: Any) -> bool:
    return isinstance(value.value if isinstance(value, Cell) else value, NullArray)


def _outputs(specs: Sequence[TensorSpec]) -> Any:
    made = tuple(zeros(tuple(d or 0 for d in s.shape or ()), s.dtype) for s in specs)
    return made[0] if len(made) == 1 else made
