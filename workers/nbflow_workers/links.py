"""The links of a cluster, measured by what goes over them anyway: small graphs whose tensors go there and back.

A scalar goes back and forth between two tasks for the latency, a large tensor goes once for the bandwidth; one task's
clock times both. Pairs come one after the other, so that they do not take each other's way. The client's link is that
of its feeds and fetches. Nothing here is an error: what cannot be measured is assumed, as before.
"""

from __future__ import annotations

import itertools
import logging
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

import nbflow as nf
from nbflow.device import DeviceSpec
from nbflow.errors import NbflowError
from nbflow.graph import Graph, Node
from nbflow.session import Session
from nbflow.trace import Trace
from nbflow.transport import CLIENT, Cluster, LinkInfo

log = logging.getLogger("nbflow.links")

# Large enough that a link's bandwidth is what is seen, small enough for 100 ms a worker on one host.
LARGE_BYTES = 4 << 20
# First, so that a slow link is not asked for more than it carries in `PATIENCE_S`.
MEDIUM_BYTES = 256 << 10
PATIENCE_S = 0.03
ROUND_TRIPS = 3
# The first step of each graph touches fresh memory, and is thrown away.
STEPS = 3
# With more workers, one pair stands for all of its two hosts.
EACH_PAIR = 16
DEADLINE_S = 5.0


@dataclass(frozen=True, slots=True)
class End:
    """A task, the device that its tensors come from, and the name of its host; that of the client may be the same."""

    device: DeviceSpec
    host: str

    @property
    def task(self) -> str:
        return self.device.task_name


Pair = tuple[End, End]


def ends_of(cluster: Cluster, hosts: Mapping[str, str]) -> list[End]:
    """One device a task: its CPU, where it has one. Tasks whose devices only pretend are left out: their links are
    described, not measured. `hosts`: task -> host."""
    found: dict[str, End] = {}
    for info in cluster.devices():
        known = found.get(info.spec.task_name)
        if info.spec.type != "null" and (known is None or (info.spec.type == "cpu" and known.device.type != "cpu")):
            found[info.spec.task_name] = End(info.spec, hosts[info.spec.task_name])
    return list(found.values())


def measure(
    cluster: Cluster, ends: Sequence[End], known: Mapping[tuple[str, str], LinkInfo]
) -> dict[tuple[str, str], LinkInfo]:
    """The links among `ends` and to the client: those `known`, and the others as far as they can be measured."""
    pairs, alike = _chosen(ends)
    pairs = [p for p in pairs if _names(*p) not in known]
    clients = [e for e in _one_a_host(ends) if (CLIENT, e.task) not in known]
    found: dict[tuple[str, str], LinkInfo] = {}
    if not pairs and not clients:
        return dict(known)
    try:
        with Session(cluster, Graph(), passes="none", profile="off", deadline_s=DEADLINE_S) as session:
            probe = _Probe(session)
            found |= probe.pairs(pairs) if pairs else {}
            found |= {(CLIENT, e.task): probe.client(e) for e in clients}
    except NbflowError as error:
        log.info("links could not be measured: %s", error)
    return _spread({**known, **found}, ends, alike)


def _chosen(ends: Sequence[End]) -> tuple[list[Pair], bool]:
    """The pairs to measure, and whether each stands for all pairs of its hosts."""
    pairs = list(itertools.combinations(ends, 2))
    if len(ends) <= EACH_PAIR:
        return pairs, False
    by_host: dict[tuple[str, ...], Pair] = {}
    for pair in pairs:
        by_host.setdefault(tuple(sorted(e.host for e in pair)), pair)
    return list(by_host.values()), True


def _one_a_host(ends: Sequence[End]) -> list[End]:
    return list({e.host: e for e in reversed(ends)}.values())


def _spread(
    found: Mapping[tuple[str, str], LinkInfo], ends: Sequence[End], alike: bool
) -> dict[tuple[str, str], LinkInfo]:
    """Gives what was measured on one pair to those that it stands for."""
    host = {e.task: e.host for e in ends}
    made = dict(found)
    for (a, b), link in found.items():
        if a == CLIENT:
            made |= {(CLIENT, e.task): link for e in ends if e.host == host[b]}
    if alike:
        by_host = {tuple(sorted((host[a], host[b]))): link for (a, b), link in found.items() if a != CLIENT}
        for one, other in itertools.combinations(ends, 2):
            link_between = by_host.get(tuple(sorted((one.host, other.host))))
            if link_between is not None:
                made[_names(one, other)] = link_between
    return made


def _names(a: End, b: End) -> tuple[str, str]:
    return (a.task, b.task) if a.task < b.task else (b.task, a.task)


class _Probe:
    """A session whose graph grows by what is measured."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._graph = session.graph

    def pairs(self, pairs: Sequence[Pair]) -> dict[tuple[str, str], LinkInfo]:
        """The links between `pairs`."""
        latency_s, _ = self._there_and_back(pairs, 4, ROUND_TRIPS)
        # Within a host nothing is slow enough to ask carefully.
        far = [p for p in pairs if p[0].host != p[1].host]
        found = self._rates(far, MEDIUM_BYTES, latency_s)
        slow = {p for p, link in found.items() if LARGE_BYTES / link.bytes_per_s > PATIENCE_S}
        found |= self._rates([p for p in pairs if p not in slow], LARGE_BYTES, latency_s)
        return {_names(*pair): link for pair, link in found.items()}

    def client(self, end: End) -> LinkInfo:
        """What feeding a task and fetching from it takes, each way."""
        small_s = self._fed(end, 4)
        medium = _rate(MEDIUM_BYTES, self._fed(end, MEDIUM_BYTES), small_s, "")
        if LARGE_BYTES / medium.bytes_per_s > PATIENCE_S:
            return medium
        return _rate(LARGE_BYTES, self._fed(end, LARGE_BYTES), small_s, "")

    def _rates(self, pairs: Sequence[Pair], nbytes: int, latency_s: Mapping[Pair, float]) -> dict[Pair, LinkInfo]:
        if not pairs:
            return {}
        seconds, via = self._there_and_back(pairs, nbytes, 1)
        return {p: _rate(nbytes, seconds[p], latency_s[p], via[p]) for p in pairs}

    def _there_and_back(
        self, pairs: Sequence[Pair], nbytes: int, times: int
    ) -> tuple[dict[Pair, float], dict[Pair, str]]:
        """Seconds of one way of `nbytes` between each pair, the shortest of some; and by which way."""
        ways: dict[Pair, tuple[Node, Node]] = {}
        last: list[Node] = []
        with self._graph.as_default():
            for a, b in pairs:
                with nf.control_dependencies(last), nf.device(str(a.device)):
                    sent = value = nf.full((nbytes // 4,), 1.0, dtype="float32")
                for _ in range(times):
                    with nf.device(str(b.device)):
                        there = nf.identity(value)
                    with nf.device(str(a.device)):
                        value = nf.identity(there)
                ways[a, b] = (sent.node, value.node)
                last = [value.node]
        seconds = dict.fromkeys(pairs, float("inf"))
        via: dict[Pair, str] = {}
        for number in range(STEPS):
            trace: Trace = self._session.run(last, trace=True)[1]
            at = {e.node: e for e in trace.ops if not e.node.startswith("send ")}
            for pair, (first, end) in ways.items():
                took_s = at[end.name].start_s - at[first.name].start_s - at[first.name].duration_s
                if number:
                    seconds[pair] = min(seconds[pair], took_s / (2 * times))
            ends = {(t.source, t.destination): t.via for t in trace.transfers if t.nbytes}
            via |= {p: ends.get((str(p[0].device), str(p[1].device)), "") for p in pairs}
        return seconds, via

    def _fed(self, end: End, nbytes: int) -> float:
        with self._graph.as_default(), nf.device(str(end.device)):
            x = nf.placeholder("float32", (nbytes // 4,))
            y = nf.identity(x)
        value, times = np.ones(nbytes // 4, np.float32), []
        for _ in range(STEPS):
            start = time.perf_counter()
            self._session.run(y, {x: value})
            times.append(time.perf_counter() - start)
        return statistics.median_low(times[1:]) / 2


def _rate(nbytes: int, seconds: float, latency_s: float, via: str) -> LinkInfo:
    # A large tensor that took less than a small one was lucky: the clock says no more than this.
    return LinkInfo(latency_s, nbytes / max(seconds - latency_s, 0.1 * seconds, 1e-9), via)
