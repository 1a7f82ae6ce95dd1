"""What the ops of a prepared step take on described machines, by what they declare or by what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from nbflow.cost import CostModel, Times
from nbflow.device import DeviceSpec, parse_device
from nbflow.errors import NbflowError
from nbflow.graph import Graph, Node
from nbflow.machines import Machine
from nbflow.op import Cost, nbytes_of
from nbflow.spec import TensorSpec


@dataclass(frozen=True, slots=True)
class Measured:
    """Implements `nbflow.cost.Times`: seconds by node, for those that were measured. Names are as the user's graph has
    them, so that a step of one process tells what each replica's takes."""

    seconds: Mapping[str, float]

    def correct(self, node: Node, work: Cost, kind: str, declared_s: float) -> float:
        return self.seconds.get(_plain(node.name), declared_s)


class StepTimes:
    """Implements `model.Times` by the cost model that the placer uses. `machines`: job → machine. `rows`: what unknown
    dimensions of fed and read data are, for each replica; None: costs count them as `nbflow.op.UNKNOWN_DIM`."""

    def __init__(
        self,
        graph: Graph,
        machines: Mapping[str, Machine],
        *,
        rows: int | None = None,
        measured: Times | None = None,
    ) -> None:
        self._graph = graph
        self._devices = {job: machine.device for job, machine in machines.items()}
        self._cost = CostModel({}, times=measured)
        self._specs: dict[str, list[TensorSpec]] = {}
        for node in graph.nodes.values():
            self._specs[node.name] = self._infer(node, rows)

    def run_s(self, node: str, device: DeviceSpec) -> float:
        known = self._graph.nodes[node]
        return self._seconds(known, [self._spec(t.node.name, t.index) for t in known.inputs], device)

    def nbytes(self, node: str, output: int) -> float:
        return nbytes_of([self._spec(node, output)])

    def join_s(self, node: str, device: str, sources: Set[str], copies: int) -> float:
        """Seconds of an op that gets `copies` more of each input from one of `sources`."""
        known = self._graph.nodes[node]
        specs = [self._spec(t.node.name, t.index) for t in known.inputs]
        more = [s for s, t in zip(specs, known.inputs, strict=True) if t.node.name in sources]
        return self._seconds(known, [*specs, *more * copies], parse_device(device))

    def _seconds(self, node: Node, inputs: Sequence[TensorSpec], device: DeviceSpec) -> float:
        work = node.definition.cost(inputs, self._specs[node.name], node.attrs)
        return self._cost.seconds_on(self._devices[device.job or ""], node, work)

    def _spec(self, node: str, output: int) -> TensorSpec:
        return self._specs[node][output]

    def _infer(self, node: Node, rows: int | None) -> list[TensorSpec]:
        declared = [t.spec for t in node.outputs]
        if rows is None:
            return declared
        if node.op in ("iterator_next", "placeholder", "queue_dequeue_many", "queue_dequeue_up_to"):
            return [_filled(s, rows) for s in declared]
        inputs = [self._spec(t.node.name, t.index) for t in node.inputs]
        if inputs == [t.spec for t in node.inputs]:
            return declared
        try:
            found = list(node.definition.infer(inputs, node.attrs))
        except NbflowError:  # what is fed does not fit `rows`: the shapes that were declared still do
            return declared
        return found if len(found) == len(declared) else declared


def _filled(spec: TensorSpec, rows: int) -> TensorSpec:
    if spec.shape is None or None not in spec.shape:
        return spec
    return TensorSpec(tuple(rows if d is None else d for d in spec.shape), spec.dtype, spec.resource)


def _plain(name: str) -> str:
    head, slash, rest = name.partition("/")
    return rest if slash and head.startswith("replica_") and head[8:].isdecimal() else name
