"""What running a node, or moving a tensor, is estimated to take. Seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nbflow.device import DeviceSpec
from nbflow.graph import Node, Tensor
from nbflow.op import nbytes_of
from nbflow.transport import DeviceInfo

# One core of a server CPU at float32 with numpy: about 50 GFLOP/s in matrix products, 10 GB/s from memory
# (docs/decisions/0003). A device that reports its own speed is taken at its word.
CPU_FLOPS = 5e10
GPU_FLOPS = 1e13
BYTES_PER_S = 1e10
# A small message between two processes of a host, and a large one (shared memory, one copy).
LINK_LATENCY_S = 3e-4
LINK_BYTES_PER_S = 1e9
# Starting any op at all, from Python.
OP_S = 2e-6


@dataclass(frozen=True, slots=True)
class CostModel:
    """Estimates from what the ops declare and what the devices report."""

    devices: Mapping[DeviceSpec, DeviceInfo]

    def run_s(self, node: Node, device: DeviceSpec) -> float:
        """Seconds to run `node` on `device`."""
        cost = node.definition.cost([t.spec for t in node.inputs], [t.spec for t in node.outputs], node.attrs)
        flops = self.devices[device].flops or (GPU_FLOPS if device.type == "gpu" else CPU_FLOPS)
        return OP_S + max(cost.flops / flops, cost.nbytes / BYTES_PER_S)

    def move_s(self, tensor: Tensor, source: DeviceSpec, destination: DeviceSpec) -> float:
        """Seconds to move `tensor`; 0 within a device."""
        if source == destination:
            return 0.0
        return LINK_LATENCY_S + nbytes_of([tensor.spec]) / LINK_BYTES_PER_S
