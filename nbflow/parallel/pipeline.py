"""Pipeline parallelism: a model in stages on several devices, and each batch in micro-batches that follow each other.

A stage computes forward and backward in the order "one forward, one backward" (1F1B): as many micro-batches forward as
there are stages from it to the last, then a backward and a forward in turn, so that it holds the activations of no more
than that many. Narayanan et al., "PipeDream" (2019), with one update a batch as in Huang et al., "GPipe" (2019): the
gradient is the mean over the micro-batches, so the losses are those of one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from nbflow.device import DeviceSpec, parse_device
from nbflow.errors import GraphError
from nbflow.graph import Graph, Node, Tensor, ancestors
from nbflow.op import AttrValue
from nbflow.parallel.base import ALL, Expanded, Role, keep_only
from nbflow.parallel.joining import join_all
from nbflow.parallel.replicate import Replication

KIND = "pipeline"
# Where autodiff puts the gradients of an op.
_BACKWARD = "gradients/"
# What reads data, or is there already.
_NO_WORK = ("constant", "iterator", "iterator_next")


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Spreads a training step over `stages`, partial devices from first to last, in `microbatches` parts of each batch.

    Ops for which the user asked no job are cut into stages of about as many floating point operations each, in the
    order in which they were made. A variable lives with the first stage that reads it. The data must come from a
    dataset; each micro-batch has an iterator of its own. More micro-batches keep the stages busier: of the time, a part
    (stages - 1) / (microbatches + stages - 1) is spent waiting.

    Raises GraphError for fewer than one micro-batch or no stage, and when the step is run: for two stages on one
    device, a stage without ops, and batches of fewer rows than micro-batches.
    """

    stages: tuple[str, ...] = ("/job:worker/task:0", "/job:worker/task:1")
    microbatches: int = 4

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        if not self.stages or any(not parse_device(s).job for s in self.stages):
            raise GraphError(f"the stages of a pipeline are devices, such as '/job:worker/task:0', not {self.stages!r}")
        if isinstance(self.microbatches, bool) or int(self.microbatches) != self.microbatches or self.microbatches < 1:
            raise GraphError(f"microbatches is at least 1, not {self.microbatches!r}")

    def to_attrs(self) -> tuple[AttrValue, ...]:
        return (KIND, self.stages, self.microbatches)

    @staticmethod
    def from_attrs(attrs: Sequence[AttrValue]) -> Pipeline:
        return Pipeline(tuple(str(s) for s in attrs[1]), int(attrs[2]))

    @property
    def separate(self) -> bool:
        return False

    def replica_devices(self, available: Sequence[DeviceSpec]) -> list[DeviceSpec]:
        """The devices of the stages."""
        found: list[DeviceSpec] = []
        for stage in map(parse_device, self.stages):
            matching = [d for d in available if stage.matches(d)]
            if not matching:
                have = ", ".join(str(d) for d in available)
                raise GraphError(f"no device is {stage}, a stage of the pipeline; there are {have}")
            if matching[0] in found:
                raise GraphError(
                    f"stages {found.index(matching[0])} and {len(found)} of the pipeline are both {matching[0]}; name "
                    f"a device of its own for each, not {self.stages!r}"
                )
            found.append(matching[0])
        return found

    def expand(
        self,
        graph: Graph,
        step: Node,
        fetches: Sequence[Node | Tensor],
        available: Sequence[DeviceSpec],
        role: Role = ALL,
    ) -> Expanded:
        """`graph` with a copy of forward and backward for each micro-batch, placed and ordered."""
        devices = self.replica_devices(available)
        replication, prefer = in_stages(graph, step, fetches, [devices], self.microbatches)
        join_all(replication, None)
        return ended(replication, prefer, devices)


def in_stages(
    graph: Graph,
    step: Node,
    fetches: Sequence[Node | Tensor],
    groups: Sequence[Sequence[DeviceSpec]],
    microbatches: int,
) -> tuple[Replication, dict[str, str]]:
    """A copy of forward and backward for each micro-batch of each pipeline, the stages of which are the devices of a
    group, placed and ordered; a pipeline's copies follow each other. And where variables are in the first one."""
    firsts = [devices[0] for devices in groups for _ in range(microbatches)]
    replication = Replication(graph, step, fetches, firsts, what="micro-batches")
    stages = _Stages(replication, groups[0])

    def device_of(node: Node, index: int) -> DeviceSpec | None:
        return None if node.op == "constant" else groups[index // microbatches][stages.of[node.name]]

    replication.device_of = device_of
    replication.early()
    for index in range(len(firsts)):
        replication.replica(index)
    if replication.weights() is None:
        message = f"{step.name!r} reads no dataset, so a batch of it cannot be cut into micro-batches"
        raise GraphError(message, where=step.where)
    stages.check_all_compute()
    for number, devices in enumerate(groups):
        for stage, device in enumerate(devices):
            stages.order(stage, device, range(number * microbatches, (number + 1) * microbatches))
    return replication, stages.prefer()


def ended(replication: Replication, prefer: dict[str, str], devices: Sequence[DeviceSpec]) -> Expanded:
    """What comes after the joins, and nothing that nobody asked for."""
    replication.rest()
    keep_only(replication.made, [replication.stands_for(f) for f in replication.fetches])
    made = replication.expanded(prefer)
    return Expanded(made.graph, made.tensors, made.nodes, made.prefer, tuple(str(d) for d in devices))


class _Stages:
    """Which copied op belongs to which stage, and whether it goes forward."""

    def __init__(self, replication: Replication, devices: Sequence[DeviceSpec]) -> None:
        self.replication = replication
        self.devices = devices
        self.of: dict[str, int] = {}
        mine = [n for n in replication.order if n.name in replication.copied]
        self.backward: set[str] = set()
        for node in mine:
            if node.name.startswith(_BACKWARD) or any(t.node.name in self.backward for t in node.inputs):
                self.backward.add(node.name)
        forward = [n for n in mine if n.name not in self.backward]
        # What only metrics need is no work of the model's.
        model = {n.name for n in ancestors([n for n in mine if n.name in self.backward])}
        total = sum(_flops(n) for n in forward if n.name in model) or 1.0
        done = 0.0
        for node in forward:
            done += _flops(node) / 2 if node.name in model else 0.0
            self.of[node.name] = self._forward(node, min(int(done / total * len(devices)), len(devices) - 1))
            done += _flops(node) / 2 if node.name in model else 0.0
        self.working = [n for n in forward if n.name in model and n.op not in _NO_WORK]
        for node in mine:
            if node.name in self.backward:
                self.of[node.name] = self._backward(node)

    def check_all_compute(self) -> None:
        """Raises GraphError for a stage without a part of the model."""
        idle = [s for s in range(len(self.devices)) if all(self.of[n.name] != s for n in self.working)]
        if idle:
            raise GraphError(
                f"stage {idle[0]} of the pipeline, {self.devices[idle[0]]}, would have nothing to compute: the "
                f"{len(self.working)} ops of the model are cut into {len(self.devices)} stages by their floating point "
                "operations and the devices that were asked for; use fewer stages, or put ops there with nf.device",
                where=self.replication.step.where,
            )

    def _forward(self, node: Node, cut: int) -> int:
        before = max((self.of.get(t.node.name, 0) for t in node.inputs if t.node.op != "constant"), default=0)
        if node.device.job is None:
            # Where the data comes from is the first stage's.
            return 0 if node.op in ("iterator", "iterator_next") else max(cut, before)
        found = next((s for s, d in enumerate(self.devices) if node.device.matches(d)), None)
        if found is None or found < before:
            where = (
                "a device of no stage" if found is None else f"stage {found}, but reads what stage {before} computes"
            )
            raise GraphError(f"{node.name!r} is on {where}; stages go from first to last", where=node.where)
        return found

    def _backward(self, node: Node) -> int:
        beside = [self.of[name] for name in node.colocate if name in self.of]
        before = [self.of[t.node.name] for t in node.inputs if t.node.name in self.of]
        return beside[0] if beside else min(before, default=len(self.devices) - 1)

    def prefer(self) -> dict[str, str]:
        """Variables live with the first stage that reads them."""
        found: dict[str, int] = {}
        for node in self.replication.order:
            for tensor in node.inputs:
                if tensor.node.op == "read_variable" and node.name in self.of:
                    name = tensor.node.inputs[0].node.name
                    found[name] = min(found.get(name, len(self.devices)), self.of[node.name])
        return {name: str(self.devices[stage]) for name, stage in found.items()}

    def order(self, stage: int, device: DeviceSpec, copies: range) -> None:
        """Orders the work of `stage` of the pipeline whose micro-batches are `copies`, which `device` does, by control
        edges: one forward, one backward."""
        made, count = self.replication.made, len(copies)
        first = min(count, len(self.devices) - stage)
        turns = [(False, j) for j in range(first)]
        for j in range(count):
            turns += [(True, j), *([(False, first + j)] if first + j < count else [])]
        names = {
            backward: [n for n, s in self.of.items() if s == stage and (n in self.backward) == backward]
            for backward in (False, True)
        }
        for (back, earlier), (next_back, later) in pairwise(turns):
            before = [made.nodes[f"replica_{copies[earlier]}/{n}"] for n in names[back]]
            after = [made.nodes[f"replica_{copies[later]}/{n}"] for n in names[next_back]]
            if before and after:
                kind = "backward" if back else "forward"
                name = f"pipeline/{stage}/{kind}_{copies[earlier]}"
                done = made.add("group", (), {}, name=name, control_inputs=_ends(before))
                done.device = device
                for node in _beginnings(after):
                    node.control_inputs = (*node.control_inputs, done)


def _ends(nodes: Sequence[Node]) -> list[Node]:
    """Those of `nodes` that no other of them reads."""
    read = {t.node.name for n in nodes for t in n.inputs}
    return [n for n in nodes if n.name not in read]


def _beginnings(nodes: Sequence[Node]) -> list[Node]:
    """Those of `nodes` that compute, and read none of the others that do."""
    computing = [n for n in nodes if n.op not in ("constant", "iterator")]
    names = {n.name for n in computing}
    return [n for n in computing if not any(t.node.name in names for t in n.inputs)]


def _flops(node: Node) -> float:
    return node.definition.cost([t.spec for t in node.inputs], [t.spec for t in node.outputs], node.attrs).flops
