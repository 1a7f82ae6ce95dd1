"""Placement and memory: what is in use at once on a device fits, or an error says when it would not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nbflow as nf
from nbflow.device import DeviceSpec
from nbflow.errors import PlacementError
from nbflow.graph import Graph, Tensor
from nbflow.op import nbytes_of
from nbflow.optimize import chosen
from nbflow.optimize.schedule import peak_of
from nbflow.prepare import Prepared, Setting, prepare
from nbflow.transport import DeviceInfo

KB = 1000


@pytest.fixture
def graph() -> Iterator[Graph]:
    with Graph().as_default() as made:
        yield made


def workers(*memory: float) -> list[DeviceInfo]:
    return [DeviceInfo(DeviceSpec("worker", n, "cpu", 0), memory_bytes=int(m)) for n, m in enumerate(memory)]


def prepared(graph: Graph, leaves: Sequence[Any], infos: Sequence[DeviceInfo]) -> Prepared:
    feeds = {n.outputs[0]: n.outputs[0].spec for n in graph.nodes.values() if n.op == "placeholder"}
    return prepare(graph, leaves, feeds, Setting(infos, {}, chosen()), session="room")


def all_alive(count: int = 8) -> Tensor:
    """`count` vectors of 4 KB, each of which is needed again once a sum over all of them is there."""
    x = nf.placeholder("float32", (1000,), name="x")
    vectors = [nf.exp(x * float(n), name=f"v{n}") for n in range(count)]
    total = nf.sum(nf.stack([nf.sum(v) for v in vectors]))
    return nf.sum(nf.stack([nf.sum(nf.exp(v * total)) for v in vectors]), name="out")


def used(found: Prepared) -> set[str]:
    return {p.device.task_name for p in found.placement.values()}


def test_what_is_alive_at_once_is_counted(graph: Graph) -> None:
    """8 vectors, and while the first product is made its buffer, of which more are not needed: 9 times 4,000 bytes."""
    found = prepared(graph, [all_alive()], workers(10**9))
    device = DeviceSpec("worker", 0, "cpu", 0)
    devices = dict.fromkeys(found.graph.nodes.keys(), device)
    peak = peak_of(found.graph, devices, [], device)
    assert peak is not None
    assert 36_000 <= peak.nbytes < 36_000 + 200  # and some scalars
    assert sum(t.spec.shape == (1000,) for t in peak.values) >= 8
    assert peak_of(found.graph, devices, [], DeviceSpec("worker", 1, "cpu", 0)) is None


def test_a_small_step_that_does_not_fit_on_one_device_is_spread(graph: Graph) -> None:
    """It would stay together, for a message takes longer than all of it."""
    out = all_alive()
    assert len(used(prepared(graph, [out], workers(40 * KB, 40 * KB)))) == 1
    found = prepared(graph, [out], workers(26 * KB, 26 * KB))
    assert len(used(found)) == 2
    check_fits(found, workers(26 * KB, 26 * KB))


def test_what_fits_nowhere_is_said_with_the_op_and_what_is_alive(graph: Graph) -> None:
    with pytest.raises(PlacementError) as caught:
        prepared(graph, [all_alive()], workers(20 * KB))
    text = caught.value.message
    assert "/job:worker/task:0/cpu:0 has 20 KB, and the step needs 36" in text
    assert "of variables and constants" in text
    assert "(4 KB)" in text
    assert "Smaller batches, nf.checkpoint" in text


def test_an_op_that_was_asked_for_there_is_no_freer_for_that(graph: Graph) -> None:
    with nf.device("/job:worker/task:1"):
        out = all_alive()
    with pytest.raises(PlacementError, match=r"/job:worker/task:1/cpu:0 has 20 KB"):
        prepared(graph, [out], workers(10**9, 20 * KB))


def test_variables_and_constants_are_held_beside_it(graph: Graph) -> None:
    w = nf.Variable(np.zeros(2000, np.float32), name="w")
    y = nf.exp(w * 2.0) + nf.constant(np.arange(2000, dtype=np.float32))
    # Two buffers, and what is fetched, which goes to none.
    assert prepared(graph, [y], workers(41 * KB)).placement
    with pytest.raises(PlacementError, match=r"needs 40 KB there at once: 16 KB of .* and 24 KB while 'add' .* runs"):
        prepared(graph, [y], workers(39 * KB))


def test_sizes_that_are_not_known_are_no_reason_to_refuse(graph: Graph) -> None:
    """Unknown dims are guessed to choose a place, and count as nothing where an error would follow."""
    x = nf.placeholder("float32", (None, 1000), name="x")
    feeds: dict[Tensor, Any] = {x.node.outputs[0]: x.spec}
    y = nf.sum(nf.exp(x) * 2.0)
    assert prepare(graph, [y], feeds, Setting(workers(10 * KB), {}, chosen()), session="room").placement


def check_fits(found: Prepared, infos: Sequence[DeviceInfo]) -> None:
    """By another count than the placer's: values alive from the op that makes them, or the first that reads them on
    another device, to the last that reads them there."""
    order = list(found.graph.nodes.values())
    held = {i.spec: 0.0 for i in infos}
    lives: list[tuple[DeviceSpec, float, int, int]] = []
    for at, node in enumerate(order):
        home = found.placement[node.name].device
        for tensor in node.outputs:
            nbytes = nbytes_of([tensor.spec])
            if node.op in ("constant", "variable"):
                held[home] += nbytes
                continue
            # A feed is there anyway, and a view is memory of what it shows.
            is_view = node.definition.alias or any(t.spec.resource for t in node.inputs[:1])
            outside = node.op == "placeholder" or is_view
            reads: dict[DeviceSpec, list[int]] = {} if outside else {home: [at]}
            for later, reader in enumerate(order):
                if any(t is tensor for t in reader.inputs):
                    reads.setdefault(found.placement[reader.name].device, []).append(later)
            if outside:
                reads.pop(home, None)
            lives += [(device, nbytes, min(when), max(when)) for device, when in reads.items()]
    for info in infos:
        mine = [life for life in lives if life[0] == info.spec]
        most = max((sum(b for _, b, first, last in mine if first <= at <= last) for at in range(len(order))), default=0)
        assert held[info.spec] + most <= info.memory_bytes, info


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_whatever_is_placed_fits(data: st.DataObject) -> None:
    """Random graphs on devices of random memory: refused, or within the limits by an independent count."""
    with Graph().as_default() as graph:
        values = [nf.placeholder("float32", (data.draw(st.sampled_from([100, 1000])),), name="x")]
        for number in range(data.draw(st.integers(4, 14))):
            kind = data.draw(st.sampled_from(["exp", "join", "sum", "weight"]))
            one = data.draw(st.sampled_from(values))
            if kind == "join":
                other = data.draw(st.sampled_from(values))
                values.append(nf.concat([nf.reshape(one, (-1,)), nf.reshape(other, (-1,))], axis=0))
            elif kind == "sum":
                values.append(nf.sum(one, keepdims=True))
            elif kind == "weight":
                w = nf.Variable(np.zeros(data.draw(st.sampled_from([10, 3000])), np.float32), name=f"w{number}")
                values.append(nf.sum(w) + one)
            else:
                values.append(nf.exp(one))
        out = nf.sum(nf.stack([nf.sum(v) for v in values]))
        infos = workers(*[data.draw(st.integers(2, 80)) * KB for _ in range(data.draw(st.integers(1, 3)))])
        try:
            found = prepared(graph, [out], infos)
        except PlacementError:
            return
        check_fits(found, infos)
