"""Cutting and compiling: the invariants hold for real graphs, and each check finds what it is there to find."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

import nbflow as nf
from nbflow.compile import check_plan, compile_part
from nbflow.device import parse_device
from nbflow.errors import GraphError
from nbflow.graph import Graph
from nbflow.partition import Part, check_partition, moved, partition
from nbflow.placement import Placed, place
from nbflow.plan import Fetch, Instruction, Plan
from nbflow.spec import spec
from nbflow.transport import DeviceInfo
from nbflow.verify import check_graph

W0, W1 = "/job:worker/task:0/cpu:0", "/job:worker/task:1/cpu:0"
INFOS = [DeviceInfo(parse_device(W0)), DeviceInfo(parse_device(W1))]


@pytest.fixture
def graph() -> Iterator[Graph]:
    with Graph().as_default() as made:
        yield made


def cut(graph: Graph) -> tuple[list[Part], dict[str, Placed]]:
    placement = place(graph, INFOS)
    parts = partition(graph, placement)
    check_partition(parts, graph, placement)
    return parts, placement


def kinds(part: Part) -> list[str]:
    return [i.kind for i in part.items]


def test_a_tensor_moves_once_however_many_read_it(graph: Graph) -> None:
    with nf.device(W0):
        x = nf.tanh(nf.constant([1.0, 2.0]), name="x")
    with nf.device(W1):
        a, b, c = x + 1.0, x * 2.0, nf.negative(x)
        nf.concat([a, b, c], axis=0)
    parts, _ = cut(graph)
    assert [kinds(p).count("send") for p in parts] == [1, 0]
    assert [kinds(p).count("recv") for p in parts] == [0, 1]
    assert moved(parts) == {f"{W0} → {W1}": 1}


def test_a_control_edge_moves_nothing_but_a_token(graph: Graph) -> None:
    with nf.device(W0):
        first = nf.constant(1.0) + 1.0
    with nf.device(W1), nf.control_dependencies([first]):
        nf.constant(2.0) * 2.0
    parts, _ = cut(graph)
    send = next(i for p in parts for i in p.items if i.kind == "send")
    assert send.value[1] == -1
    plan = compile_part(next(p for p in parts if str(p.device) == W0), graph, {})
    assert next(i for i in plan.instructions if i.op == "send").inputs == ()


def test_check_partition_finds_what_is_wrong(graph: Graph) -> None:
    with nf.device(W0):
        x = nf.tanh(nf.constant([1.0]), name="x")
    with nf.device(W1):
        nf.negative(x, name="y")
    parts, placement = cut(graph)
    w0, w1 = parts
    for broken, rule in [
        ([w0], "every node is in a part"),
        ([w0, Part(w1.device, [i for i in w1.items if i.kind != "recv"])], "comes after what it needs|pair up|at hand"),
        ([w0, Part(w1.device, w1.items + w1.items[:1])], "one recv per tensor"),
        ([Part(w1.device, w0.items), w1], "runs where it was placed"),
        ([Part(w0.device, w0.items[::-1]), w1], "comes after what it needs"),
    ]:
        with pytest.raises(GraphError, match=rule):
            check_partition(broken, graph, placement)


def test_check_graph_finds_what_is_wrong_and_shows_the_neighbours(graph: Graph) -> None:
    x = nf.constant(np.zeros((2, 3), np.float32), name="x")
    y = nf.negative(x, name="y")
    nf.tanh(y, name="z")
    check_graph(graph)
    good = y.spec
    y.spec = spec("float32", (2, 4))
    with pytest.raises(GraphError, match=r"(?s)outputs are what the shape rule gives: 'y'.*→ y: .*z = tanh"):
        check_graph(graph)
    y.spec = good
    graph.nodes["other"] = graph.nodes.pop("z")
    with pytest.raises(GraphError, match="under its own name"):
        check_graph(graph)
    graph.nodes["z"] = graph.nodes.pop("other")
    del graph.nodes["x"]
    with pytest.raises(GraphError, match="input x is not in the graph"):
        check_graph(graph)


def deep(graph: Graph, layers: int) -> Plan:
    with nf.device(W0):
        x = nf.placeholder("float32", (8, 16), name="x")
        for _ in range(layers):
            x = nf.tanh(nf.add(x, 1.0))
        nf.identity(x, name="last")
    parts, _ = cut(graph)
    plan = compile_part(parts[0], graph, {"last": ("last", 0)})
    check_plan(plan)
    return plan


def test_a_deep_chain_needs_as_many_buffers_as_a_short_one(graph: Graph) -> None:
    plan = deep(graph, 50)
    assert len(plan.instructions) == 101
    assert len(plan.buffers) == 2
    assert plan.instructions[-2].buffer == -1  # what is fetched, through a view, is nobody's buffer
    assert plan.fetches[0].copy  # a view is copied


def test_a_long_lived_value_keeps_its_buffer(graph: Graph) -> None:
    with nf.device(W0):
        x = nf.placeholder("float32", (4, 4), name="x")
        early = nf.tanh(x, name="early")
        view = nf.reshape(early, (16,), name="view")
        y = x
        for _ in range(6):
            y = nf.negative(nf.add(y, 1.0))
        nf.sum(nf.reshape(y, (16,)) + view, name="last")
    parts, _ = cut(graph)
    plan = compile_part(parts[0], graph, {"last": ("last", 0)})
    check_plan(plan)
    kept = next(i for i in plan.instructions if i.node == "early").buffer
    assert kept >= 0
    assert sum(i.buffer == kept for i in plan.instructions) == 1


@pytest.mark.parametrize("tight", [False, True])
def test_memory_is_not_given_on_where_that_makes_one_tensor_wait_for_another(graph: Graph, tight: bool) -> None:
    """Two tensors come from elsewhere; what is made of the second needs nothing of the first, and could be there before
    it. Only where memory is short do they share a buffer, and an order."""
    with nf.device(W1):
        here = [nf.placeholder("float32", (4, 4), name=f"x{n}") for n in range(2)]
        sent = [nf.tanh(x, name=f"sent{n}") for n, x in enumerate(here)]
    with nf.device(W0):
        made = [nf.negative(nf.tanh(x, name=f"one{n}"), name=f"two{n}") for n, x in enumerate(sent)]
        nf.identity(nf.stack([nf.sum(x) for x in made]), name="last")
    parts, _ = cut(graph)
    part = next(p for p in parts if str(p.device) == W0)
    plan = compile_part(part, graph, {"last": ("last", 0)}, tight=tight)
    check_plan(plan)
    number = {ins.node: n for n, ins in enumerate(plan.instructions) if ins.op != "recv"}
    needed = {number["one1"]}
    for index in range(number["one1"], -1, -1):
        needed |= set(plan.instructions[index].after) if index in needed else set()
    waits = {plan.instructions[n].node for n in needed if plan.instructions[n].op == "recv"}
    assert waits == ({"sent0", "sent1"} if tight else {"sent1"})
    assert len(plan.buffers) == (3 if tight else 4)


def test_check_plan_finds_what_is_wrong(graph: Graph) -> None:
    plan = deep(graph, 4)
    one, two = plan.instructions[0], plan.instructions[1]

    def broken(index: int, instruction: Instruction) -> Plan:
        listed = list(plan.instructions)
        listed[index] = instruction
        return replace(plan, instructions=tuple(listed))

    for bad, rule in [
        (broken(0, replace(one, inputs=two.outputs)), "written, then read"),
        (broken(1, replace(two, outputs=one.outputs)), "written once"),
        (broken(0, replace(one, frees=one.outputs)), "not read after it was freed"),
        (broken(0, replace(one, after=(1,))), "comes after earlier ones"),
        (broken(0, replace(one, buffer=99)), "a buffer exists"),
        (broken(1, replace(two, buffer=one.buffer)), "one value at a time"),
        (replace(plan, fetches=(Fetch("no", 999, False),)), "there at the end"),
    ]:
        with pytest.raises(GraphError, match=rule):
            check_plan(bad)


def test_shapes_that_are_not_known_get_no_buffer(graph: Graph) -> None:
    with nf.device(W0):
        x = nf.placeholder("float32", (None, 16), name="x")
        nf.sum(nf.tanh(x), name="last")
    parts, _ = cut(graph)
    plan = compile_part(parts[0], graph, {"last": ("last", 0)})
    assert plan.buffers == ()


def test_ten_thousand_ops_are_cut_without_recursion(graph: Graph) -> None:
    x = nf.constant(np.ones(2, np.float32))
    for number in range(5000):
        with nf.device((W0, W1)[number % 2]):
            x = nf.add(x, x)
    parts, _ = cut(graph)
    assert sum(len(p.items) for p in parts) == 5001 + 2 * 4999
    for part in parts:
        check_plan(compile_part(part, graph, {}))
