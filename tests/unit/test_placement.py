"""Where nodes go and why: constraints, conflicts that name both cells, variables by bytes, the cost rule."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import nbflow as nf
from nbflow import owner as owners
from nbflow.device import DeviceSpec, parse_device
from nbflow.errors import PlacementError
from nbflow.graph import Graph
from nbflow.owner import Owner
from nbflow.placement import place
from nbflow.transport import DeviceInfo


def devices(*names: str) -> list[DeviceInfo]:
    return [DeviceInfo(parse_device(n)) for n in names]


W0, W1, PS0, PS1 = (f"/job:{j}/task:{t}/cpu:0" for j, t in (("worker", 0), ("worker", 1), ("ps", 0), ("ps", 1)))


@pytest.fixture
def graph() -> Iterator[Graph]:
    with Graph().as_default() as made:
        yield made


def test_what_is_asked_for_is_done(graph: Graph) -> None:
    with nf.device("/job:worker/task:1"):
        a = nf.constant([1.0], name="a")
    with nf.colocate_with(a):
        nf.add(a, 1.0, name="b")
    placed = place(graph, devices(W0, W1, PS0))
    assert str(placed["a"].device) == W1
    assert placed["a"].why == "asked for /job:worker/task:1"
    assert str(placed["b"].device) == W1
    assert "follows a" in placed["b"].why


def test_nested_devices_merge(graph: Graph) -> None:
    with nf.device("/job:worker"), nf.device("/task:1"):
        nf.constant(1.0, name="a")
    assert str(place(graph, devices(W0, W1))["a"].device) == W1


def test_an_unknown_device_lists_those_that_are_there(graph: Graph) -> None:
    with nf.device("/job:worker/task:7"):
        nf.constant(1.0, name="a")
    with pytest.raises(PlacementError, match=r"'a' asks for /job:worker/task:7.*/job:worker/task:0/cpu:0"):
        place(graph, devices(W0, W1))


def test_a_conflict_names_both_nodes(graph: Graph) -> None:
    with nf.device("/job:worker/task:0"):
        a = nf.constant(1.0, name="a")
    with nf.colocate_with(a), nf.device("/job:worker/task:1"):
        nf.constant(2.0, name="b")
    with pytest.raises(PlacementError, match=r"'b'.*asked for /job:worker/task:1.*share a device with 'a'"):
        place(graph, devices(W0, W1))


def cells(graph: Graph, *bodies: Callable[[], None]) -> None:
    """Runs each body as a cell of its own: In[1], In[2] and so on."""
    for number, body in enumerate(bodies, 1):
        transaction = owners.begin(graph, Owner(f"cell:{number}", f"In[{number}]"))
        body()
        transaction.commit()


def conflict(graph: Graph, **options: Any) -> str:
    with pytest.raises(PlacementError) as caught:
        place(graph, devices(W0, W1, PS0), **options)
    return caught.value.message


def test_a_conflict_far_apart_names_both_cells_and_what_is_between_them(graph: Graph) -> None:
    """a, which is asked for here, with b, with c, with d, which is asked for there; each made by another cell."""

    def first() -> None:
        with nf.device("/job:worker/task:0"):
            nf.constant(1.0, name="a")

    def next_to(other: str, name: str) -> Callable[[], None]:
        def body() -> None:
            with nf.colocate_with(graph.node(other)):
                nf.constant(2.0, name=name)

        return body

    def last() -> None:
        with nf.colocate_with(graph.node("c")), nf.device("/job:worker/task:1"):
            nf.constant(4.0, name="d")

    cells(graph, first, next_to("a", "b"), next_to("b", "c"), last)
    text = conflict(graph)
    assert re.match(r"'d' \(In\[4\].*\) asked for /job:worker/task:1, but must share a device with 'a' \(In\[1\]", text)
    assert "which asked for /job:worker/task:0" in text
    for pair in ("'d' is colocated with 'c'", "'c' is colocated with 'b'", "'b' is colocated with 'a'"):
        assert pair in text
    assert "change or remove the nf.device block around 'd', or change or remove" in text


def test_state_that_lives_elsewhere_is_named_with_what_wants_it_here(graph: Graph) -> None:
    """A value does not move: what was asked for in a later cell must go to it."""

    def variable() -> None:
        nf.Variable(nf.zeros((3,)), name="w")

    def beside() -> None:
        with nf.colocate_with(graph.node("w")), nf.device("/job:worker/task:1"):
            nf.constant(1.0, name="a")

    cells(graph, variable, beside)
    text = conflict(graph, homes={"w": parse_device(PS0)})
    assert re.match(r"'a' \(In\[2\].*\) asked for /job:worker/task:1, but must share a device with 'w' \(In\[1\]", text)
    assert f"which has its value on {PS0}" in text
    assert "'a' is colocated with 'w'" in text
    assert "state does not move" in text


def test_an_op_that_only_another_device_can_run_is_named_with_who_wants_it_here(graph: Graph) -> None:
    def first() -> None:
        with nf.device("/job:worker/task:0"):
            nf.constant(1.0, name="a")

    def second() -> None:
        with nf.colocate_with(graph.node("a")):
            nf.exp(nf.constant(1.0, name="c"), name="b")

    cells(graph, first, second)
    gpu = DeviceInfo(parse_device("/job:worker/task:1/gpu:0"))
    with pytest.raises(PlacementError) as caught:
        place(graph, [*devices(W0), gpu], supports=lambda op, kind: op != "exp" or kind == "gpu")
    text = caught.value.message
    assert "op 'exp' ('b')" in text
    assert re.search(r"'a' \(In\[1\].*\) asked for /job:worker/task:0", text)
    assert "In[2]" in str(caught.value)


def test_variables_go_to_the_ps_tasks_greedily_by_bytes(graph: Graph) -> None:
    for name, rows in (("small", 10), ("big", 1000), ("middle", 600), ("tiny", 1)):
        nf.Variable(nf.zeros((rows, 10)), name=name)
    placed = place(graph, devices(W0, W1, PS0, PS1))
    where = {name: str(placed[name].device) for name in ("big", "middle", "small", "tiny")}
    assert where == {"big": PS0, "middle": PS1, "small": PS1, "tiny": PS1}
    assert "by bytes" in placed["big"].why
    assert placed["big/read"].device == placed["big"].device
    assert placed["big/read"].why == "follows Variable big"


def test_a_variable_stays_where_it_lives(graph: Graph) -> None:
    nf.Variable(nf.zeros((3,)), name="w")
    home = parse_device(W1)
    placed = place(graph, devices(W0, W1, PS0), homes={"w": home})
    assert placed["w"].device == home
    assert "has its value on" in placed["w"].why


def test_a_strategy_is_preferred_where_it_can_be_met(graph: Graph) -> None:
    nf.Variable(nf.zeros((3,)), name="w")
    placed = place(graph, devices(W0, W1, PS0), prefer={"w": "/job:worker/task:1"})
    assert str(placed["w"].device) == W1


def test_an_op_that_no_backend_has_is_an_error(graph: Graph) -> None:
    nf.add(nf.constant(1.0), 1.0, name="sum")
    with pytest.raises(PlacementError, match="no cpu device can run op 'add'"):
        place(graph, devices(W0), supports=lambda op, kind: op != "add")


def test_no_devices_is_an_error(graph: Graph) -> None:
    nf.constant(1.0)
    with pytest.raises(PlacementError, match="no devices"):
        place(graph, [])


def test_two_heavy_independent_branches_run_beside_each_other(graph: Graph) -> None:
    a = nf.placeholder("float32", (2000, 2000), name="a")
    with nf.device(W0):
        left = nf.matmul(a, a, name="left")
    right = nf.matmul(a, a, name="right")
    nf.add(left, right, name="both")
    placed = place(graph, devices(W0, W1))
    assert str(placed["right"].device) == W1
    assert "earlier" in placed["right"].why


def test_a_chain_of_cheap_ops_is_not_scattered(graph: Graph) -> None:
    x = nf.constant([1.0, 2.0])
    for _ in range(20):
        x = x + 1.0
    placed = place(graph, devices(W0, W1))
    assert len({p.device for p in placed.values()}) == 1


def test_placement_is_stable(graph: Graph) -> None:
    x = nf.placeholder("float32", (None, 100))
    for i in range(5):
        w = nf.Variable(nf.zeros((100, 100)), name=f"w{i}")
        x = nf.matmul(x, w)
    infos = devices(W0, W1, PS0, PS1)
    first = place(graph, infos)
    for _ in range(3):
        assert place(graph, infos) == first
    assert all(isinstance(p.device, DeviceSpec) and p.why for p in first.values())
