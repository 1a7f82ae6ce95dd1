"""Links: which pairs are measured, for whom they stand, and what the placer does with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

import nbflow as nf
from nbflow.cost import CLIENT as CLIENT_DEVICE
from nbflow.cost import LINK, CostModel, LinkModel
from nbflow.device import parse_device
from nbflow.errors import WorkerLost
from nbflow.explain import links_rows, placement_table
from nbflow.graph import Graph
from nbflow.inprocess import InProcessCluster
from nbflow.placement import place
from nbflow.transport import CLIENT, DeviceInfo, LinkInfo, Transport
from nbflow_workers import links

FAST = LinkInfo(5e-5, 8e9, "shared memory")


def test_the_name_of_the_client_is_one() -> None:
    assert CLIENT_DEVICE.task_name == CLIENT


def test_links_are_measured_by_what_goes_over_them() -> None:
    cluster = InProcessCluster(workers=3)
    ends = links.ends_of(cluster, {d.spec.task_name: "here" for d in cluster.devices()})
    found = links.measure(cluster, ends, {})
    tasks = [e.task for e in ends]
    assert set(found) == {(a, b) for a, b, *_ in [(CLIENT, t) for t in tasks]} | {
        (tasks[0], tasks[1]),
        (tasks[0], tasks[2]),
        (tasks[1], tasks[2]),
    }
    for link in found.values():
        assert 0 < link.latency_s < 0.5
        assert 1e6 < link.bytes_per_s < 1e13
    known = dict.fromkeys(found, FAST)
    assert links.measure(cluster, ends, known) == known
    cluster.close()


def test_devices_that_only_pretend_are_left_out() -> None:
    cluster = InProcessCluster(workers=2, null="h100")
    assert links.ends_of(cluster, {d.spec.task_name: "here" for d in cluster.devices()}) == []


def ends(*hosts: str) -> list[links.End]:
    return [links.End(parse_device(f"/job:worker/task:{n}/cpu:0"), h) for n, h in enumerate(hosts)]


def test_with_many_workers_one_pair_stands_for_its_hosts() -> None:
    many = ends(*["a"] * 12, *["b"] * 12)
    pairs, alike = links._chosen(many)
    assert alike
    assert len(pairs) == 3  # within a, within b, between
    found = {links._names(*p): LinkInfo(n + 1.0, 1.0) for n, p in enumerate(pairs)}
    spread = links._spread({**found, (CLIENT, many[0].task): FAST}, many, alike)
    assert len(spread) == 24 * 23 // 2 + 12
    between = {spread[links._names(a, b)] for a in many[:12] for b in many[12:]}
    assert len(between) == 1
    assert between != {spread[links._names(many[0], many[1])]}
    few, alike = links._chosen(ends("a", "a", "b"))
    assert (len(few), alike) == (3, False)


def test_what_cannot_be_measured_is_no_error() -> None:
    class Broken(InProcessCluster):
        def connect(self, session: str) -> Mapping[str, Transport]:
            raise WorkerLost("gone", worker="/job:worker/task:0")

    cluster = Broken(workers=2)
    assert links.measure(cluster, ends("a", "a"), {}) == {}


def test_measuring_again_gives_the_same_link() -> None:
    once, again = LinkModel.of(LinkInfo(1.5e-4, 4.2e9)), LinkModel.of(LinkInfo(1.6e-4, 4.9e9))
    assert once == again
    assert once.latency_s == pytest.approx(1.5e-4, rel=0.2)
    assert once.bytes_per_s == pytest.approx(4.2e9, rel=0.2)


def two_towers(size: int) -> tuple[Graph, list[Any]]:
    with Graph().as_default() as graph:
        tops = []
        for _ in range(2):
            x = nf.random.normal((size, size))
            for _ in range(4):
                x = x @ x
            tops.append(nf.sum(x))
        total = tops[0] + tops[1]
    return graph, [total]


def _infos(tasks: int) -> list[DeviceInfo]:
    return [DeviceInfo(parse_device(f"/job:worker/task:{t}/cpu:0")) for t in range(tasks)]


def _used(graph: Graph, model: CostModel, infos: Sequence[DeviceInfo]) -> int:
    return len({p.device for p in place(graph, infos, cost=lambda: model).values()})


def test_links_are_measured_only_where_they_can_change_something() -> None:
    asked = []

    def measure() -> dict[tuple[str, str], LinkModel]:
        asked.append(1)
        return {}

    infos = _infos(2)
    model = CostModel(CostModel.of(infos).devices, measure=measure)
    _used(two_towers(16)[0], model, infos)
    with Graph().as_default() as chain:
        x = nf.random.normal((512, 512))
        for _ in range(4):
            x = x @ x
    _used(chain, model, infos)
    assert not asked
    assert _used(two_towers(512)[0], model, infos) == 2
    assert asked == [1]


def test_a_slow_link_keeps_together_what_a_fast_one_spreads() -> None:
    graph, _ = two_towers(256)
    infos = _infos(2)
    pair = (infos[0].spec.task_name, infos[1].spec.task_name)
    slow, fast = ({pair: LinkModel(latency_s, 1e9)} for latency_s in (0.5, 1e-5))
    devices = CostModel.of(infos).devices
    assert _used(graph, CostModel(devices, measure=lambda: slow), infos) == 1
    assert _used(graph, CostModel(devices, measure=lambda: fast), infos) == 2


def test_it_is_said_which_links_were_measured() -> None:
    infos = _infos(2)
    pair = (infos[0].spec.task_name, infos[1].spec.task_name)
    rows = links_rows({pair: FAST}, [i.spec.task_name for i in infos])
    assert [how for *_, how in rows] == ["assumed", "assumed", "measured"]
    assert rows[2][:2] == ("worker:0 – worker:1", "50 µs, 8 GB/s, shared memory")
    graph, _ = two_towers(16)
    model = CostModel.of(infos, {pair: LinkModel.of(FAST)})
    table = placement_table(graph, place(graph, infos), model)
    assert "measured worker:0 – worker:1" in repr(table)
    assert "2 assumed to have 300 µs, 1 GB/s" in table.links
    assert placement_table(graph, place(graph, infos[:1]), CostModel.of(infos[:1])).links == ""
    assert LINK.latency_s == 3e-4
