"""What a session knows of costs: the devices as they report themselves, and times of earlier runs. Traced steps add to
the latter, for sessions to come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nbflow.cost import CostModel, DeviceModel, LinkModel
from nbflow.graph import Graph
from nbflow.placement import Placement
from nbflow.profile import Key, Profile, chosen, factor_of
from nbflow.trace import Trace
from nbflow.transport import Cluster, DeviceInfo, Links


class Costs:
    """`profile`: a file, `off`, or None for what NBFLOW_PROFILE says. It is read once, when it is first needed: a
    session's placements do not change because of what it measures."""

    def __init__(self, profile: str | Path | None = None) -> None:
        self._asked = profile
        self._profile: Profile | None = None

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
        measured: dict[Key, list[float]] = {}
        for name, seconds in seconds_by_op(trace).items():
            node = graph.nodes.get(name)
            device = models.get(placement[name].device) if node is not None else None
            # What moves tensors, or nothing, is no measure of the op.
            if node is None or device is None or placement[name].device.type == "null":
                continue
            found = factor_of(node, device, seconds)
            if found is not None:
                measured.setdefault(found[0], []).append(found[1])
        self.profile.note({key: sorted(factors)[len(factors) // 2] for key, factors in measured.items()})


def _models(links: Links) -> dict[tuple[str, str], LinkModel]:
    return {pair: LinkModel.of(info) for pair, info in links.items()}


def seconds_by_op(trace: Trace) -> dict[str, float]:
    """Op -> how long it ran. A send goes by the name of what it sends, and comes later."""
    found: dict[str, float] = {}
    for event in trace.ops:
        found.setdefault(event.node, event.duration_s)
    return found
