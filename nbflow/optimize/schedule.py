"""The order of ops, chosen so that less memory is in use at once. Values do not depend on it.

A list scheduler: of the ops that are ready, the one that adds least to the bytes alive goes first (Hu, "Parallel
Sequencing and Assembly Line Problems", 1961, is the scheme; the priority is that of Ahn et al., "Ordering Chaos:
Memory-Aware Scheduling of Irregularly Wired Neural Networks", 2020, without its search). Greed can lose, and a plan's
buffers are given on only to values of the same shape and dtype; so the order is taken only where what the plan will
take, counted with both, is lower on some device and higher on none.

Beside data and control edges it keeps what partitioning will ask for: whoever looks at a variable's memory stays before
the update that came after it, and ops on one resource stay in the order in which they were made. A tensor from another
device takes memory from its first reader on: partitioning puts its recv right before that one.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from nbflow.body import is_stateful, writes_state
from nbflow.device import DeviceSpec
from nbflow.graph import Graph, Node, NodeMap, Tensor
from nbflow.op import nbytes_of
from nbflow.ops.waiting import WAITING
from nbflow.optimize.sharing import last_fitting
from nbflow.spec import TensorSpec

# Below this there is nothing to be gained, and the written order is the one that people expect.
WORTH_BYTES = 1 << 20
# By how much the peak must fall: an order that saves a percent is not worth the surprise.
WORTH_PART = 0.05

Devices = Mapping[str, DeviceSpec]
Peaks = dict[str, tuple[float, float]]  # device -> bytes before and after


def schedule(graph: Graph, devices: Devices, fetched: Sequence[Tensor], *, tight: bool = False) -> Peaks:
    """Reorders the nodes of `graph`, which is changed, where running then takes less memory.

    `devices`: node name -> where it runs. `tight`: as for `nbflow.compile`. Gives what each device needs before and
    after, in bytes.
    """
    model = _Model(graph, devices, fetched, tight=tight)
    before = model.peaks(range(len(model.nodes)))
    after = before
    if sum(before.values()) >= WORTH_BYTES:
        found = model.greedy()
        peaks = model.peaks(found)
        if _is_better(peaks, before):
            after = peaks
            ordered = NodeMap()
            for index in found:
                ordered[model.nodes[index].name] = model.nodes[index]
            graph.nodes = ordered
    return {str(d): (before[d], after[d]) for d in before}


def written_peaks(graph: Graph, devices: Devices, fetched: Sequence[Tensor], *, tight: bool = False) -> Peaks:
    """What `schedule` gives, where the order stays as it is."""
    return {device: (peak, peak) for device, peak in peak_bytes(graph, devices, fetched, tight=tight).items()}


def _is_better(after: Mapping[DeviceSpec, float], before: Mapping[DeviceSpec, float]) -> bool:
    lower = sum(after.values()) <= (1 - WORTH_PART) * sum(before.values())
    return lower and all(after[d] <= before[d] for d in before)


@dataclass(frozen=True, slots=True)
class Peak:
    """The moment at which most is in use on a device: while `node` runs, with `values` alive, the largest first."""

    nbytes: float
    node: Node
    values: tuple[Tensor, ...]


def peak_of(
    graph: Graph, devices: Devices, fetched: Sequence[Tensor], device: DeviceSpec, *, tight: bool = False
) -> Peak | None:
    """When most is in use on `device`, in the order of `graph`. What has no known size counts as nothing: that much is
    sure. None for a device without ops."""
    return _Model(graph, devices, fetched, sure=True, tight=tight).peak_of(device)


def peak_bytes(graph: Graph, devices: Devices, fetched: Sequence[Tensor], *, tight: bool = False) -> dict[str, float]:
    """What running in the order of `graph` takes on each device, at most: buffers and what is alive beside them.
    Constants, feeds and state are not counted: they are there anyway."""
    model = _Model(graph, devices, fetched, tight=tight)
    return {str(d): peak for d, peak in model.peaks(range(len(model.nodes))).items()}


@dataclass(slots=True)
class _Memory:
    """What one value, and all views of it, take on one device. `buffer`: the spec of the plan's buffer that it goes to,
    when it goes to one. `readers`: how many ops read it; `total`: the sum of their indices, which is that of the last
    one when the others are done."""

    device: DeviceSpec
    nbytes: float
    kept: bool = False
    buffer: TensorSpec | None = None
    readers: int = 0
    total: int = 0


class _Model:
    def __init__(
        self, graph: Graph, devices: Devices, fetched: Sequence[Tensor], *, sure: bool = False, tight: bool = False
    ) -> None:
        self.sure = sure
        self.values: list[Tensor] = []  # what each memory was made for
        self.nodes = list(graph.nodes.values())
        self.devices = {devices[n.name]: None for n in self.nodes}
        self.memories: list[_Memory] = []
        self.makes: list[list[int]] = [[] for _ in self.nodes]  # memory that a node's own outputs take
        self.reads: list[list[int]] = [[] for _ in self.nodes]
        self.index = {node: i for i, node in enumerate(self.nodes)}
        self._of_value: dict[tuple[Node, int, DeviceSpec], int] = {}
        for i, node in enumerate(self.nodes):
            self._account(i, node, devices[node.name])
        for tensor in fetched:
            memory = self.memories[self._of_value[(tensor.node, tensor.index, devices[tensor.node.name])]]
            memory.kept, memory.buffer = True, None
        self.before = self._edges()
        self.waits = [0] * len(self.nodes) if tight else self._waits(devices)

    # --- memory --------------------------------------------------------------------------------------------------

    def _account(self, i: int, node: Node, device: DeviceSpec) -> None:
        read = dict.fromkeys(self._read(t, device) for t in node.inputs)
        self.reads[i] = list(read)
        for number in read:
            self.memories[number].readers += 1
            self.memories[number].total += i
        shares = bool(node.inputs) and (node.definition.alias or node.inputs[0].spec.resource)
        for tensor in node.outputs:
            key = (node, tensor.index, device)
            if shares:
                self._of_value[key] = self._read(node.inputs[0], device)
                continue
            outside = node.op in ("constant", "placeholder") or tensor.spec.resource
            self._of_value[key] = len(self.memories)
            memory = _Memory(device, 0.0 if outside else self._bytes(tensor), kept=outside)
            self.values.append(tensor)
            memory.buffer = tensor.spec if _takes_buffer(node) else None
            self.memories.append(memory)
            self.makes[i].append(self._of_value[key])

    def _read(self, tensor: Tensor, device: DeviceSpec) -> int:
        """The memory in which a node on `device` finds `tensor`: the maker's, or that of what was received."""
        key = (tensor.node, tensor.index, device)
        found = self._of_value.get(key)
        if found is None:
            found = self._of_value[key] = len(self.memories)
            self.memories.append(_Memory(device, self._bytes(tensor)))
            self.values.append(tensor)
        return found

    def _bytes(self, tensor: Tensor) -> float:
        return nbytes_of([tensor.spec]) if tensor.spec.is_static or not self.sure else 0.0

    def peaks(self, order: Sequence[int]) -> dict[DeviceSpec, float]:
        """What running in this order takes on each device: its buffers, which are kept from step to step and given to
        one value of their spec after the other, and the most that is alive at once beside them."""
        whole, most = dict.fromkeys(self.devices, 0.0), dict.fromkeys(self.devices, 0.0)
        for _, buffers, live, _ in self._run(order):
            whole = buffers
            for device, nbytes in live.items():
                most[device] = max(most[device], nbytes)
        return {d: whole[d] + most[d] for d in whole}

    def peak_of(self, device: DeviceSpec) -> Peak | None:
        """When most is in use on `device`, in the order in which the nodes are."""
        best, at, alive = -1.0, 0, list[int]()
        for i, buffers, live, here in self._run(range(len(self.nodes))):
            if device in buffers and buffers[device] + live[device] > best:
                best, at = buffers[device] + live[device], i
                alive = [m for m, is_here in enumerate(here) if is_here and self._takes(m, device)]
        if best < 0:
            return None
        largest = sorted(alive, key=lambda m: (-self.memories[m].nbytes, m))
        return Peak(best, self.nodes[at], tuple(self.values[m] for m in largest))

    def _takes(self, number: int, device: DeviceSpec) -> bool:
        return self.memories[number].nbytes > 0 and self.memories[number].device == device

    def _run(
        self, order: Sequence[int]
    ) -> Iterator[tuple[int, dict[DeviceSpec, float], dict[DeviceSpec, float], list[bool]]]:
        """Each node in turn, when what it reads and makes is there: the bytes of the buffers so far and of what is
        alive beside them, on each device, and which memories are in use."""
        left = [m.readers for m in self.memories]
        here = [False] * len(self.memories)
        free: dict[tuple[DeviceSpec, TensorSpec], list[int]] = {}  # what those wait for who read a buffer last
        waited = [0] * len(self.memories)
        buffers = dict.fromkeys(self.devices, 0.0)
        live = dict(buffers)
        for i in order:
            both = (*self.makes[i], *self.reads[i])
            for m in both:
                memory = self.memories[m]
                if here[m]:
                    continue
                here[m] = True
                if memory.buffer is None:
                    live[memory.device] += memory.nbytes
                    continue
                pool = free.get((memory.device, memory.buffer), [])
                given = last_fitting(pool, self.waits[i])
                if given is None:
                    buffers[memory.device] += memory.nbytes
                else:
                    del pool[given]
            yield i, buffers, live, here
            for m in self.reads[i]:
                left[m] -= 1
            for m in both:
                waited[m] |= self.waits[i]
                memory = self.memories[m]
                if left[m] == 0 and not memory.kept:
                    left[m] = -1  # freed
                    here[m] = False
                    if memory.buffer is None:
                        live[memory.device] -= memory.nbytes
                    else:
                        free.setdefault((memory.device, memory.buffer), []).append(waited[m])

    def _waits(self, devices: Devices) -> list[int]:
        """For each node the tensors from other devices that it needs, and ops that wait for others: a set, as bits."""
        bits: dict[object, int] = {}

        def bit(what: object) -> int:
            return bits.setdefault(what, 1 << len(bits))

        found: list[int] = []
        for i, node in enumerate(self.nodes):
            device = devices[node.name]
            mask = bit(node) if node.op in WAITING else 0
            needed = [*((t.node, t.index) for t in node.inputs), *((c, -1) for c in node.control_inputs)]
            for other, output in needed:
                here = devices[other.name] == device
                mask |= found[self.index[other]] if here else bit((other, output, device))
            for before in self.before[i]:
                if devices[self.nodes[before].name] == device:
                    mask |= found[before]
            found.append(mask)
        return found

    # --- edges ---------------------------------------------------------------------------------------------------

    def _edges(self) -> list[set[int]]:
        """For each node those that must come before it."""
        before: list[set[int]] = []
        for node in self.nodes:
            found = {self.index[t.node] for t in node.inputs}
            found.update(self.index[c] for c in node.control_inputs)
            before.append(found)
        looks = self._looks()
        last: dict[str, int] = {}  # resource -> who changed it last
        for i, node in enumerate(self.nodes):
            for resource in self._changed(node):
                before[i].update(j for j in looks.get(resource, ()) if j < i)
                if resource in last:
                    before[i].add(last[resource])
                last[resource] = i
        return before

    def _looks(self) -> dict[str, list[int]]:
        """Resource -> the nodes that may look at its memory: its readers, and what reads views of what they give."""
        looks: dict[str, list[int]] = {}
        shows: dict[Node, tuple[str, ...]] = {}  # a node whose outputs may be a resource's memory
        for i, node in enumerate(self.nodes):
            found: dict[str, None] = {}
            for tensor in node.inputs:
                if tensor.spec.resource:
                    found[tensor.node.name] = None
                found.update(dict.fromkeys(shows.get(tensor.node, ())))
            for resource in found:
                looks.setdefault(resource, []).append(i)
            if found and node.definition.alias:
                shows[node] = tuple(found)
        return looks

    def _changed(self, node: Node) -> list[str]:
        """Resources whose state `node` may change; one name for all state that has no handle."""
        if not is_stateful(node):
            return []
        found = [t.node.name for k, t in enumerate(node.inputs) if t.spec.resource and writes_state(node, k)]
        free = node.op.startswith("random_") or node.op in ("recompute_barrier", "variable", "read_variable")
        if not free and not any(t.spec.resource for t in node.inputs):
            found.append("")
        return found

    # --- the order -----------------------------------------------------------------------------------------------

    def greedy(self) -> list[int]:
        """The ready node that adds least goes first; among equals the one that was made first."""
        waits = [len(b) for b in self.before]
        followers: list[list[int]] = [[] for _ in self.nodes]
        for i, found in enumerate(self.before):
            for j in found:
                followers[j].append(i)
        left = [m.readers for m in self.memories]
        total = [m.total for m in self.memories]
        here = [False] * len(self.memories)
        done = [False] * len(self.nodes)

        def adds(i: int) -> float:
            taken = sum(self.memories[m].nbytes for m in (*self.makes[i], *self.reads[i]) if not here[m])
            freed = [m for m in self.reads[i] if left[m] == 1 and not self.memories[m].kept]
            return taken - sum(self.memories[m].nbytes for m in freed)

        ready = [(adds(i), i) for i, n in enumerate(waits) if n == 0]
        heapq.heapify(ready)
        order: list[int] = []
        while ready:
            _, i = heapq.heappop(ready)
            if done[i]:
                continue  # an older entry of a node that got cheaper
            done[i] = True
            order.append(i)
            for m in (*self.makes[i], *self.reads[i]):
                here[m] = True
            for m in self.reads[i]:
                left[m] -= 1
                total[m] -= i
                if left[m] == 1 and waits[total[m]] == 0:
                    heapq.heappush(ready, (adds(total[m]), total[m]))
            for j in followers[i]:
                waits[j] -= 1
                if waits[j] == 0:
                    heapq.heappush(ready, (adds(j), j))
        return order


def _takes_buffer(node: Node) -> bool:
    """Whether `nbflow.compile` gives the output a buffer of the plan."""
    definition = node.definition
    if len(node.outputs) != 1 or not definition.out or definition.stateful:
        return False
    return node.outputs[0].spec.is_static and bool(node.outputs[0].shape)
