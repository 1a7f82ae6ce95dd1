"""What a session knows of costs: the devices as they report themselves, their links, and times of earlier runs. Its
steps add to the latter, for sessions to come: traced ones, and a few of the others (`executor.LOOK_EVERY`)."""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from nbflow.cost import CostModel, DeviceModel, LinkModel
from nbflow.device import DeviceSpec
from nbflow.events import Event, OpTimes
from nbflow.graph import Graph
from nbflow.ops.waiting import WAITING
from nbflow.placement import Placement
from nbflow.plan import Bundle
from nbflow.profile import Key, Profile, chosen, factor_of
from nbflow.trace import Trace
from nbflow.transport import Cluster, DeviceInfo, Links

# What was heard goes to the file this often, and when the session ends.
KEEP_EVERY_S = 60.0
# Steps that wait for that.
HEARD = 256
# How long these run says what they waited for.
_WAITS = WAITING | {"iterator_next"}


class Ready(Protocol):
    """What is used here of `prepare.Prepared`."""

    @property
    def graph(self) -> Graph: ...
    @property
    def placement(self) -> Placement: ...
    @property
    def bundles(self) -> Mapping[str, Bundle]: ...


class Costs:
    """`profile`: a file, `off`, or None for what NBFLOW_PROFILE says. It is read once, when it is first needed: a
    session's placements do not change because of what it measures."""

    def __init__(self, profile: str | Path | None = None) -> None:
        self._asked = profile
        self._profile: Profile | None = None
        self._heard = _Heard(chosen(profile))
        # Runs when the interpreter ends too: most notebooks never close their session.
        self.close = weakref.finalize(self, self._heard.keep)

    @property
    def profile(self) -> Profile:
        if self._profile is None:
            self._profile = Profile.read(chosen(self._asked))
        return self._profile

    def model(self, cluster: Cluster) -> CostModel:
        """What things take on the devices of `cluster`. Its links are measured when somebody needs them."""
        made = CostModel.of(cluster.devices(), _models(cluster.links(measure=False)), self.profile)
        return replace(made, measure=lambda: _models(cluster.links()))

    def learn(self, trace: Trace, graph: Graph, placement: Placement, infos: Sequence[DeviceInfo]) -> None:
        """Keeps what a traced step of `graph` measured."""
        models = {i.spec: DeviceModel.of(i) for i in infos}
        self.profile.note(_medians(_factors(seconds_by_op(trace).items(), graph, placement, models)))

    def watch(self, ready: Ready, infos: Sequence[DeviceInfo]) -> None:
        """From now on steps of `ready`, on devices `infos`, are learned from."""
        self._heard.watch(ready, infos)

    def hear(self, event: Event) -> None:
        """What the session's workers say."""
        if isinstance(event, OpTimes):
            self._heard.hear(event)


class _Heard:
    """What ops took, until it is kept. Hearing costs a step next to nothing, keeping some milliseconds."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._ready: weakref.WeakValueDictionary[str, Ready] = weakref.WeakValueDictionary()
        self._models: dict[DeviceSpec, DeviceModel] = {}
        self._steps: deque[tuple[OpTimes, Graph, Placement]] = deque(maxlen=HEARD)
        self._kept_s = time.monotonic()

    def watch(self, ready: Ready, infos: Sequence[DeviceInfo]) -> None:
        if self._path is not None:
            self._models = {i.spec: DeviceModel.of(i) for i in infos}
            for bundle in ready.bundles.values():
                self._ready[bundle.id] = ready

    def hear(self, event: OpTimes) -> None:
        ready = self._ready.get(event.bundle)
        if ready is None:
            return
        self._steps.append((event, ready.graph, ready.placement))
        if time.monotonic() - self._kept_s > KEEP_EVERY_S:
            self.keep()

    def keep(self) -> None:
        """Adds what was heard to the file."""
        self._kept_s = time.monotonic()
        found: dict[Key, list[float]] = {}
        while self._steps:
            event, graph, placement = self._steps.popleft()
            times = zip(event.nodes, event.seconds, strict=False)
            for key, factors in _factors(times, graph, placement, self._models).items():
                found.setdefault(key, []).extend(factors)
        Profile(self._path).note(_medians(found))


def _factors(
    times: Iterable[tuple[str, float]],
    graph: Graph,
    placement: Placement,
    models: Mapping[DeviceSpec, DeviceModel],
) -> dict[Key, list[float]]:
    found: dict[Key, list[float]] = {}
    for name, seconds in times:
        node = graph.nodes.get(name)
        device = models.get(placement[name].device) if node is not None else None
        # What moves tensors, waits, or does nothing, is no measure of the op.
        if node is None or device is None or node.op in _WAITS or placement[name].device.type == "null":
            continue
        factor = factor_of(node, device, seconds)
        if factor is not None:
            found.setdefault(factor[0], []).append(factor[1])
    return found


def _medians(found: Mapping[Key, Sequence[float]]) -> dict[Key, float]:
    return {key: sorted(factors)[len(factors) // 2] for key, factors in found.items()}


def _models(links: Links) -> dict[tuple[str, str], LinkModel]:
    return {pair: LinkModel.of(info) for pair, info in links.items()}


def seconds_by_op(trace: Trace) -> dict[str, float]:
    """Op -> how long it ran. A send goes by the name of what it sends, and comes later."""
    found: dict[str, float] = {}
    for event in trace.ops:
        found.setdefault(event.node, event.duration_s)
    return found
