"""Cells own their ops: re-running, failing, editing, deleting; by example."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import nbflow as nf
from nbflow import owner as owners
from nbflow.errors import GraphError, NameInUseError
from nbflow.graph import Graph, Tensor
from nbflow.owner import Change, Owner

Build = Callable[[dict[str, Any]], None]


@pytest.fixture
def graph() -> Iterator[Graph]:
    with Graph().as_default() as made:
        yield made


def bindings(names: dict[str, Any]) -> dict[str, Tensor]:
    tensors = {k: v.handle if isinstance(v, nf.Variable) else v for k, v in names.items()}
    return {k: v for k, v in tensors.items() if isinstance(v, Tensor)}


def run(graph: Graph, number: int, build: Build, names: dict[str, Any] | None = None, **options: Any) -> Change:
    names = {} if names is None else names
    before = bindings(names)
    transaction = owners.begin(graph, Owner(f"cell:{number}", f"In[{number}]"), **options)
    try:
        build(names)
    except BaseException:
        transaction.rollback()
        raise
    return transaction.commit(before, bindings(names))


def test_running_a_cell_again_makes_the_same_names(graph: Graph) -> None:
    def cell(names: dict[str, Any]) -> None:
        names["y"] = nf.placeholder("float32", (2,), name="x") * 2.0 + 1.0

    first = run(graph, 1, cell)
    before = list(graph.nodes.keys())
    again = run(graph, 1, cell)
    assert list(graph.nodes.keys()) == before
    assert set(first.added) == set(before)
    assert again.is_empty
    assert set(again.unchanged) == set(before)


def test_an_edited_cell_replaces_its_ops(graph: Graph) -> None:
    run(graph, 1, lambda n: n.update(a=nf.constant(1.0, name="a"), b=nf.constant(2.0, name="b")))
    change = run(graph, 1, lambda n: n.update(a=nf.constant(3.0, name="a"), c=nf.constant(2.0, name="c")))
    assert (change.added, change.removed, change.changed) == (("c",), ("b",), ("a",))
    assert set(graph.nodes.keys()) == {"a", "c"}


def test_a_cell_that_no_longer_builds_leaves_nothing(graph: Graph) -> None:
    run(graph, 1, lambda n: n.update(a=nf.constant(1.0)))
    run(graph, 1, lambda n: None)
    assert not graph.nodes


def test_a_failing_cell_changes_nothing(graph: Graph) -> None:
    names: dict[str, Any] = {}
    run(graph, 1, lambda n: n.update(a=nf.constant(1.0, name="a")), names)
    before, version, digest = dict(graph.nodes), graph.version, graph.digest()

    def half(n: dict[str, Any]) -> None:
        n["a"] = nf.constant(5.0, name="a")
        raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        run(graph, 1, half, dict(names))
    assert graph.nodes == before
    assert graph.digest() == digest
    assert graph.version > version  # what was compiled for the failed run must not be found again
    lost: dict[str, Any] = {}
    with pytest.raises(RuntimeError):
        run(graph, 1, half, lost)
    with pytest.raises(GraphError, match=r"no longer in the graph: In\[1\] ran again, or failed"):
        nf.add(lost["a"], 1.0)


def test_names_of_other_cells_are_taken(graph: Graph) -> None:
    run(graph, 1, lambda n: n.update(a=nf.constant(1.0, name="a")))
    with pytest.raises(NameInUseError, match=r"'a' is defined by In\[1\].*%%graph --replace"):
        run(graph, 2, lambda n: n.update(a=nf.constant(2.0, name="a")))
    assert graph.nodes["a"].owner.id == "cell:1"


def test_a_name_twice_in_one_cell(graph: Graph) -> None:
    with pytest.raises(NameInUseError, match=r"used twice in In\[1\]"):
        run(graph, 1, lambda n: n.update(a=nf.constant(1.0, name="a"), b=nf.constant(1.0, name="a")))


def test_taking_over_a_name_takes_the_cells_ops(graph: Graph) -> None:
    names: dict[str, Any] = {}
    run(graph, 1, lambda n: n.update(a=nf.constant(1.0, name="a"), b=nf.constant(2.0, name="b")), names)
    run(graph, 2, lambda n: n.update(c=n["a"] + n["a"], d=n["b"] + n["b"]), names)
    change = run(graph, 3, lambda n: n.update(a=nf.constant(3.0, name="a")), names, replace=True)
    assert [o.label for o in change.replaced_cells] == ["In[1]"]
    assert change.changed == ("a",)
    assert change.removed == ("b",)
    assert graph.nodes["a"].owner.label == "In[3]"
    assert names["c"].node.inputs[0] is names["a"]
    assert names["d"].node.stale
    # The first cell makes none of it again until its text is changed.
    with pytest.raises(NameInUseError):
        run(graph, 1, lambda n: n.update(a=nf.constant(1.0, name="a")), names)


def test_a_failed_take_over_changes_nothing(graph: Graph) -> None:
    run(graph, 1, lambda n: n.update(a=nf.constant(1.0, name="a")))
    before = dict(graph.nodes)

    def cell(n: dict[str, Any]) -> None:
        nf.constant(2.0, name="a")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        run(graph, 2, cell, replace=True)
    assert graph.nodes == before
    with pytest.raises(NameInUseError):
        run(graph, 2, lambda n: n.update(a=nf.constant(2.0, name="a")))


def test_own_old_ops_cannot_be_built_on(graph: Graph) -> None:
    names: dict[str, Any] = {}
    run(graph, 1, lambda n: n.update(x=nf.placeholder("float32", (2,))), names)
    run(graph, 2, lambda n: n.update(x=n["x"] * 2.0), names)
    with pytest.raises(GraphError, match=r"made when In\[2\] ran before, and this run replaces it"):
        run(graph, 2, lambda n: n.update(x=n["x"] * 2.0), names)


# --- consumers in other cells ----------------------------------------------------------------------------------------


def test_consumers_of_given_names_are_rebound(graph: Graph) -> None:
    names: dict[str, Any] = {}
    run(graph, 1, lambda n: n.update(a=nf.constant(1.0, name="a")), names)
    run(graph, 2, lambda n: n.update(b=n["a"] + 1.0), names)
    change = run(graph, 1, lambda n: n.update(a=nf.constant(7.0, name="a"), more=nf.constant(0.0)), names)
    assert change.rebound == (names["b"].name,)
    assert not change.stale
    assert names["b"].node.inputs[0] is names["a"]
    assert nf.run(names["b"]) == 8.0


def test_consumers_follow_python_names(graph: Graph) -> None:
    names: dict[str, Any] = {}
    run(graph, 1, lambda n: n.update(x=nf.constant(1.0) + 1.0, y=nf.constant(1.0) + 2.0), names)
    run(graph, 2, lambda n: n.update(z=n["x"] * 10.0), names)
    # The other way round: what was `add` is now `add.1`.
    run(graph, 1, lambda n: n.update(y=nf.constant(1.0) + 2.0, x=nf.constant(1.0) + 1.0), names)
    assert names["z"].node.inputs[0] is names["x"]
    assert nf.run(names["z"]) == 20.0


def test_consumers_of_anonymous_ops_survive_the_same_ops(graph: Graph) -> None:
    names: dict[str, Any] = {}

    def cell(value: float) -> Build:
        def build(n: dict[str, Any]) -> None:
            n["outer"] = {"inner": nf.constant(value) + 1.0}

        return build

    run(graph, 1, cell(1.0), names)
    run(graph, 2, lambda n: n.update(z=n["outer"]["inner"] * 10.0), names)
    assert run(graph, 1, cell(2.0), names).rebound
    assert nf.run(names["z"]) == 30.0


def test_other_shapes_make_consumers_stale(graph: Graph) -> None:
    names: dict[str, Any] = {}
    run(graph, 1, lambda n: n.update(a=nf.constant([1.0, 2.0], name="a")), names)
    run(graph, 2, lambda n: n.update(b=n["a"] + 1.0), names)
    run(graph, 3, lambda n: n.update(c=n["b"] + 1.0), names)
    change = run(graph, 1, lambda n: n.update(a=nf.constant([1.0, 2.0, 3.0], name="a")), names)
    assert [o.label for o in change.stale_cells] == ["In[2]"]
    with pytest.raises(nf.errors.StaleError, match=r"In\[2\]"):
        nf.run(names["c"])
    run(graph, 2, lambda n: n.update(b=n["a"] + 1.0), names)
    run(graph, 3, lambda n: n.update(c=n["b"] + 1.0), names)
    assert nf.run(names["c"]).tolist() == [3.0, 4.0, 5.0]


def test_a_circle_is_not_closed(graph: Graph) -> None:
    names: dict[str, Any] = {}
    run(graph, 1, lambda n: n.update(a=nf.constant(1.0, name="a")), names)
    run(graph, 2, lambda n: n.update(b=n["a"] + 1.0), names)
    change = run(graph, 1, lambda n: n.update(a=nf.identity(n["b"], name="a")), names)
    assert change.stale == (names["b"].name,)
    assert "itself" in names["b"].node.stale


def test_deleting_a_cell(graph: Graph) -> None:
    names: dict[str, Any] = {}
    run(graph, 1, lambda n: n.update(a=nf.constant(1.0, name="a")), names)
    run(graph, 2, lambda n: n.update(b=n["a"] + 1.0), names)
    change = owners.delete(graph, "cell:1")
    assert change.removed == ("a",)
    assert names["b"].node.stale
    assert owners.delete(graph, "cell:1").is_empty


def test_deleting_while_a_cell_runs(graph: Graph) -> None:
    names: dict[str, Any] = {}
    run(graph, 1, lambda n: n.update(a=nf.constant(1.0, name="a")), names)

    def cell(n: dict[str, Any]) -> None:
        n["b"] = n["a"] + 1.0
        owners.delete(graph, "cell:1")

    run(graph, 2, cell, names)
    assert "a" not in graph.nodes
    assert names["b"].node.stale


def test_reset_while_a_cell_runs(graph: Graph) -> None:
    run(graph, 1, lambda n: n.update(a=nf.constant(1.0, name="a")))

    def cell(n: dict[str, Any]) -> None:
        nf.constant(2.0, name="b")
        owners.reset(graph)
        nf.constant(3.0, name="a")

    run(graph, 2, cell)
    assert list(graph.nodes.keys()) == ["a"]


# --- what reads other ops, not their values --------------------------------------------------------------------------


def test_gradients_go_stale_with_what_they_were_taken_through(graph: Graph) -> None:
    names: dict[str, Any] = {}
    run(graph, 1, lambda n: n.update(w=nf.Variable(np.float32(3.0), name="w")), names)
    run(graph, 2, lambda n: n.update(y=nf.multiply(n["w"], n["w"], name="y")), names)
    run(graph, 3, lambda n: n.update(g=nf.gradients(n["y"], n["w"])[0]), names)
    assert nf.run(names["g"]) == 6.0
    # Same name, same shape: a consumer of values would follow.
    change = run(graph, 2, lambda n: n.update(y=nf.add(n["w"], n["w"], name="y")), names)
    assert [o.label for o in change.stale_cells] == ["In[3]"]
    with pytest.raises(nf.errors.StaleError, match=r"In\[3\]"):
        nf.run(names["g"])


def test_gradients_survive_an_unchanged_cell(graph: Graph) -> None:
    names: dict[str, Any] = {}
    run(graph, 1, lambda n: n.update(w=nf.Variable(np.float32(3.0), name="w")), names)

    def forward(n: dict[str, Any]) -> None:
        n["y"] = nf.multiply(n["w"], n["w"], name="y")

    run(graph, 2, forward, names)
    run(graph, 3, lambda n: n.update(g=nf.gradients(n["y"], n["w"])[0]), names)
    assert not run(graph, 2, forward, names).stale
    assert nf.run(names["g"]) == 6.0


# --- variables -------------------------------------------------------------------------------------------------------


def variable(size: int, value: float = 1.0, **options: Any) -> Build:
    def build(n: dict[str, Any]) -> None:
        n["w"] = nf.Variable(np.full(size, value, np.float32), name="w", **options)

    return build


def test_an_unchanged_variable_keeps_its_value(graph: Graph) -> None:
    names: dict[str, Any] = {}
    run(graph, 1, variable(2), names)
    run(graph, 2, lambda n: n.update(more=n["w"].assign_add([1.0, 1.0])), names)
    nf.run(names["more"])
    change = run(graph, 1, variable(2, value=9.0), names)
    assert change.kept_variables == ("w",)
    assert nf.run(names["w"]).tolist() == [2.0, 2.0]


def test_reinit_starts_anew(graph: Graph) -> None:
    names: dict[str, Any] = {}
    run(graph, 1, variable(2), names)
    nf.run(names["w"])
    change = run(graph, 1, variable(2, value=9.0), names, reinit=True)
    assert change.reset_variables == ("w",)
    assert change.dropped_state == ("w:0",)
    assert nf.run(names["w"]).tolist() == [9.0, 9.0]


def test_another_shape_starts_anew_even_within_the_run(graph: Graph) -> None:
    names: dict[str, Any] = {}
    run(graph, 1, variable(2), names)
    nf.run(names["w"])
    values = []

    def cell(n: dict[str, Any]) -> None:
        variable(3, value=5.0)(n)
        values.append(nf.run(n["w"]).tolist())

    change = run(graph, 1, cell, names)
    assert values == [[5.0, 5.0, 5.0]]
    assert change.reset_variables == ("w",)
    assert change.dropped_state == ("w:0",)


def test_a_failed_run_gives_the_old_value_back(graph: Graph) -> None:
    names: dict[str, Any] = {}
    run(graph, 1, variable(2, value=4.0), names)
    nf.run(names["w"])

    def cell(size: int) -> Build:
        def build(n: dict[str, Any]) -> None:
            variable(size)(n)
            nf.run(n["w"])
            raise RuntimeError

        return build

    for size in (3, 5):  # each attempt has state of its own
        with pytest.raises(RuntimeError):
            run(graph, 1, cell(size), dict(names))
    assert nf.run(names["w"]).tolist() == [4.0, 4.0]


def test_a_failed_first_run_leaves_no_value(graph: Graph) -> None:
    def cell(n: dict[str, Any]) -> None:
        variable(3)(n)
        nf.run(n["w"])
        raise RuntimeError

    with pytest.raises(RuntimeError):
        run(graph, 1, cell)
    names: dict[str, Any] = {}
    run(graph, 1, variable(2, value=7.0), names)
    assert nf.run(names["w"]).tolist() == [7.0, 7.0]


def test_a_removed_variable_does_not_come_back(graph: Graph) -> None:
    names: dict[str, Any] = {}
    run(graph, 1, variable(2), names)
    nf.run(names["w"])
    assert run(graph, 1, lambda n: None, names).dropped_state == ("w:0",)
    run(graph, 1, variable(2, value=3.0), names)
    assert nf.run(names["w"]).tolist() == [3.0, 3.0]


def test_training_goes_on_after_the_model_cell_ran_again(graph: Graph) -> None:
    names: dict[str, Any] = {}
    run(graph, 1, variable(1, value=1.0), names)

    def train(n: dict[str, Any]) -> None:
        n["step"] = nf.optim.SGD(0.5).minimize(nf.sum(n["w"] * 1.0))

    run(graph, 2, train, names)
    nf.run(names["step"])
    change = run(graph, 1, variable(1, value=1.0), names)
    assert not change.stale
    nf.run(names["step"])
    assert nf.run(names["w"]).tolist() == [0.0]


def test_data_start_anew_with_their_cell(graph: Graph) -> None:
    names: dict[str, Any] = {}

    def data(n: dict[str, Any]) -> None:
        n["batch"] = nf.data.from_arrays({"x": np.arange(6.0)}).batch(2).next()["x"]

    run(graph, 1, data, names)
    run(graph, 2, lambda n: n.update(y=n["batch"] + 0.0), names)
    assert nf.run(names["y"]).tolist() == [0.0, 1.0]
    run(graph, 1, data, names)
    assert nf.run(names["y"]).tolist() == [0.0, 1.0]
    assert nf.run(names["y"]).tolist() == [2.0, 3.0]


# --- the protocol ----------------------------------------------------------------------------------------------------


def test_one_cell_at_a_time(graph: Graph) -> None:
    transaction = owners.begin(graph, Owner("a", "In[1]"))
    with pytest.raises(GraphError, match=r"In\[1\] is still running"):
        owners.begin(graph, Owner("b", "In[2]"))
    transaction.rollback()
    with pytest.raises(GraphError, match="over already"):
        transaction.commit()
    owners.begin(graph, Owner("b", "In[2]")).commit()
    assert graph.owner.id == "script"


def test_large_arrays_are_compared_whole(graph: Graph) -> None:
    def cell(index: int) -> Build:
        values = np.zeros(5000, np.float32)
        values[index] = 1.0
        return lambda n: n.update(a=nf.constant(values, name="a"))

    run(graph, 1, cell(2500))
    assert run(graph, 1, cell(2501)).changed == ("a",)
    assert run(graph, 1, cell(2501)).is_empty


def test_old_and_new_are_not_mixed_in_one_run(graph: Graph) -> None:
    names: dict[str, Any] = {}
    run(graph, 1, lambda n: n.update(a=nf.constant(1.0, name="a")), names)
    run(graph, 2, lambda n: n.update(b=nf.identity(n["a"], name="b")), names)

    def cell(n: dict[str, Any]) -> None:
        n["a"] = nf.constant(2.0, name="a")
        with pytest.raises(GraphError, match="as the running cell made it, and as it was before"):
            nf.run([n["a"], n["b"]])
        assert nf.run(n["a"]) == 2.0

    run(graph, 1, cell, names)
    assert [float(v) for v in nf.run([names["a"], names["b"]])] == [2.0, 2.0]


def test_iterating_over_a_graph_gives_its_nodes() -> None:
    with Graph().as_default() as graph:
        x = nf.constant(1.0, name="x")
        y = nf.negative(x, name="y")
    assert [(n.name, n.op) for n in graph.nodes] == [("x", "constant"), ("y", "negative")]
    assert list(graph.nodes.keys()) == ["x", "y"]
    assert "x" in graph.nodes
    assert y.node in graph.nodes
    assert graph.nodes["x"] is x.node
    assert dict(graph.nodes) == {"x": x.node, "y": y.node}
