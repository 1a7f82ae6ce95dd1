"""What running a node, or moving a tensor, is estimated to take. Seconds.

The placer and the simulator share it: flops and bytes as the ops declare them, over the rates of a device, corrected by
times that were measured in earlier runs; and links with a latency and a bandwidth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from nbflow.device import DeviceSpec
from nbflow.node import Node
from nbflow.op import Cost
from nbflow.transport import DeviceInfo, LinkInfo

# One core of a server CPU at float32 with numpy: about 50 GFLOP/s in matrix products, 10 GB/s from memory
# (docs/decisions/0003). A device that reports its own speed is taken at its word.
CPU_FLOPS = 5e10
CPU_BYTES_PER_S = 1e10
GPU_FLOPS = 1e13
GPU_BYTES_PER_S = 1e12
# Starting any op at all, from Python.
OP_S = 2e-6
# Starting one on a GPU: a kernel's launch, from Python.
GPU_OP_S = 1e-5
# Where the client's feeds come from and its fetches go: in `transfer_seconds`, a place like any device.
CLIENT = DeviceSpec("client", 0, "cpu", 0)
# Ops that are no instruction: their value is there before the step starts.
VALUES = frozenset({"constant", "placeholder"})


@dataclass(frozen=True, slots=True)
class DeviceModel:
    """How fast one device is. Rates are per second.

    `op_s`: what starting any op takes. `memory_bytes`: 0 when unknown. `kind`: devices of one kind are equally fast;
    times measured on one of them hold for all.
    """

    flops: float = CPU_FLOPS
    bytes_per_s: float = CPU_BYTES_PER_S
    op_s: float = OP_S
    memory_bytes: float = 0.0
    kind: str = "cpu"

    @staticmethod
    def of(info: DeviceInfo) -> DeviceModel:
        """The model of a device from what its worker says of it."""
        on_gpu = info.spec.type == "gpu"
        return DeviceModel(
            info.flops or (GPU_FLOPS if on_gpu else CPU_FLOPS),
            GPU_BYTES_PER_S if on_gpu else CPU_BYTES_PER_S,
            GPU_OP_S if on_gpu else OP_S,
            memory_bytes=float(info.memory_bytes),
            kind=f"{info.spec.type or 'cpu'} {info.description}".strip(),
        )

    def seconds(self, work: Cost) -> float:
        """As declared: arithmetic and memory overlap, so the slower of the two counts."""
        return self.op_s + max(work.flops / self.flops, work.nbytes / self.bytes_per_s)


@dataclass(frozen=True, slots=True)
class LinkModel:
    """A way for tensors, one after the other in each direction."""

    latency_s: float
    bytes_per_s: float

    @staticmethod
    def of(info: LinkInfo) -> LinkModel:
        """What was measured, to the nearest half power of two: measuring again gives about as much again, and must
        not move ops."""
        return LinkModel(_rounded(info.latency_s), _rounded(info.bytes_per_s))

    def seconds(self, nbytes: float) -> float:
        return self.latency_s + nbytes / self.bytes_per_s


# Between two processes: a small message, and a large one through shared memory with a copy on each side.
LINK = LinkModel(3e-4, 1e9)
# Between two devices of one process: a hand-over between threads, and one copy.
WITHIN_TASK = LinkModel(3e-5, 5e9)


class Times(Protocol):
    """Measured times. `nbflow.profile.Profile` is one."""

    def correct(self, node: Node, work: Cost, kind: str, declared_s: float) -> float:
        """What `node`, which declares `work`, takes on a device of `kind`; `declared_s` where nothing was measured."""
        ...


@dataclass(frozen=True, slots=True)
class CostModel:
    """Devices, the links between them, and what was measured.

    `links` maps pairs of task names (`/job:worker/task:0`; the client's is `CLIENT.task_name`) to links; a pair that is
    there in one direction only counts for both, and one that is not there at all is `link`. `measure` gives links that
    are not measured yet, which takes a moment; None: there are none.
    """

    devices: Mapping[DeviceSpec, DeviceModel]
    links: Mapping[tuple[str, str], LinkModel] = field(default_factory=dict)
    link: LinkModel = LINK
    within_task: LinkModel = WITHIN_TASK
    times: Times | None = None
    measure: Callable[[], Mapping[tuple[str, str], LinkModel]] | None = None

    def measured(self) -> CostModel:
        """The same with all links measured that can be."""
        return self if self.measure is None else replace(self, links=self.measure(), measure=None)

    @staticmethod
    def of(
        infos: Sequence[DeviceInfo],
        links: Mapping[tuple[str, str], LinkModel] | None = None,
        times: Times | None = None,
    ) -> CostModel:
        """The model of a cluster from what its workers say of their devices."""
        return CostModel({i.spec: DeviceModel.of(i) for i in infos}, links or {}, times=times)

    def compute_seconds(self, node: Node, device: DeviceSpec) -> float:
        """What `node` takes on `device`. Raises KeyError for a device that is not in the model."""
        return self.seconds_on(self.devices[device], node, work_of(node))

    def seconds_on(self, model: DeviceModel, node: Node, work: Cost) -> float:
        """The same, for who has `work_of(node)` at hand already."""
        if node.op in VALUES:
            return 0.0
        declared_s = model.seconds(work)
        return declared_s if self.times is None else self.times.correct(node, work, model.kind, declared_s)

    def transfer_seconds(self, nbytes: float, source: DeviceSpec, destination: DeviceSpec) -> float:
        """From one device to another, or from and to CLIENT; 0 within a device."""
        return 0.0 if source == destination else self.link_between(source, destination).seconds(nbytes)

    def link_between(self, source: DeviceSpec, destination: DeviceSpec) -> LinkModel:
        a, b = source.task_name, destination.task_name
        if a == b:
            return self.within_task
        return self.links.get((a, b)) or self.links.get((b, a)) or self.link


def _rounded(value: float) -> float:
    return 2.0 ** (round(2 * math.log2(value)) / 2) if value > 0 else value


def work_of(node: Node) -> Cost:
    """Flops and bytes as the op declares them; unknown dims count as `nbflow.op.UNKNOWN_DIM`."""
    return node.definition.cost([t.spec for t in node.inputs], [t.spec for t in node.outputs], node.attrs)
