"""Each pass does its work and refuses what it must; which passes run; what is said about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import nbflow as nf
from nbflow import errors, optimize
from nbflow.backends.host import evaluate
from nbflow.graph import Graph, Node, Tensor
from nbflow.inprocess import InProcessCluster
from nbflow.optimize.values import filling, is_number, token
from nbflow.session import Session

F32 = np.float32


@pytest.fixture
def graph() -> Iterator[Graph]:
    with Graph().as_default() as made:
        yield made


def fed(*shape: int, dtype: str = "float32", name: str = "x") -> Tensor:
    return nf.placeholder(dtype, shape, name=name)


def after(passes: str, *wanted: Tensor | Node) -> optimize.Optimized:
    placeholders = [n.outputs[0] for n in nf.get_graph().nodes if n.op == "placeholder"]
    pruned = optimize.prune(nf.get_graph(), wanted, {t: t.spec for t in placeholders})
    mapped = [pruned.nodes[x.name] if isinstance(x, Node) else pruned.tensors[(x.node.name, x.index)] for x in wanted]
    return optimize.optimize(pruned.graph, mapped, optimize.settings.parse(passes), evaluate)


def ops_of(found: optimize.Optimized) -> Counter[str]:
    return Counter(n.op for n in found.graph.nodes.values())


# --- common subexpressions -------------------------------------------------------------------------------------------


def test_cse_merges_what_computes_the_same(graph: Graph) -> None:
    x = fed(3)
    y = nf.tanh(x * 2.0, name="first") + nf.tanh(x * 2.0, name="second")
    found = after("cse", y)
    assert ops_of(found)["tanh"] == 1
    assert ops_of(found)["multiply"] == 1
    assert found.report().fate["second"] == "is the same as first"
    assert len(graph.nodes) == 8, "the user's graph is as it was"


@pytest.mark.parametrize(
    "pair",
    [
        lambda x: (nf.sum(x, axis=0), nf.sum(x, axis=1)),
        lambda x: (x + 1.0, x + 2.0),
        lambda x: (x * 0.0, x * -0.0),
        lambda x: (nf.full((3,), 0.0), nf.full((3,), -0.0)),
        lambda x: (nf.full((3,), 1.0, dtype="float64"), nf.full((3,), 1, dtype="int64")),
        lambda x: (nf.random.uniform_like(x), nf.random.uniform_like(x)),
        lambda x: (nf.random.normal((3,)), nf.random.normal((3,))),
        lambda x: (x - 1.0, 1.0 - x),
    ],
)
def test_cse_leaves_what_differs(graph: Graph, pair: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    a, b = pair(fed(3, 3))
    assert not any(
        a.node.name in c.node or b.node.name in c.node for c in after("cse", a, b).report().of("cse").changes
    )


def test_cse_respects_devices_order_and_those_who_hold_a_node(graph: Graph) -> None:
    x, v = fed(3), nf.Variable([1.0, 2.0, 3.0], name="v")
    with nf.device("/job:worker/task:0"):
        a = nf.tanh(x)
    with nf.device("/job:worker/task:1"):
        b = nf.tanh(x)
    with nf.control_dependencies([v.assign_add(x)]):
        c = nf.tanh(x)
        d = v.read()
    e = nf.tanh(x, name="fetched as an op")
    found = after("cse", a + b + c + d + v, e.node)
    assert ops_of(found)["tanh"] == 4
    assert ops_of(found)["read_variable"] == 2


def test_cse_keeps_the_order_that_an_op_stands_for(graph: Graph) -> None:
    x, v = fed(3), nf.Variable([1.0, 2.0, 3.0], name="v")
    early = nf.tanh(x)
    with nf.control_dependencies([v.assign_add(x)]):
        after_update = nf.tanh(x)
    with nf.control_dependencies([after_update]):
        late = v.read()
    with Session(None, graph, passes="cse") as session:
        found = session.run([early, after_update, late], {x: np.ones(3, F32)})
    np.testing.assert_array_equal(found[2], [2.0, 3.0, 4.0])


def test_cse_of_ops_that_follow_others(graph: Graph) -> None:
    """Gradients are colocated with what they are gradients of: that alone ties nobody to a place."""
    x, v, w = fed(2, 2), nf.Variable(np.eye(2, dtype=F32), name="v"), nf.Variable(np.eye(2, dtype=F32), name="w")
    a, b = nf.exp(x), nf.sin(x)
    with nf.colocate_with(a):
        free = nf.tanh(x)
    with nf.colocate_with(b):
        same = nf.tanh(x)
    with nf.colocate_with(v):
        at_v = nf.tanh(x)
    with nf.colocate_with(w):
        at_w = nf.tanh(x)
    found = after("cse", a + b + free + same + at_v + at_w + v + w)
    assert ops_of(found)["tanh"] == 3


def test_who_ran_beside_an_op_that_is_gone_runs_beside_what_stands_for_it(graph: Graph) -> None:
    x = fed(2)
    with nf.device("/job:worker/task:1"):
        a, b = nf.exp(x), nf.exp(x)
        dead = nf.tanh(x)
    with nf.colocate_with(b):
        c = nf.sin(x)
    with nf.colocate_with(dead):
        d = nf.cos(x)
    found = after("cse,simplify", a + b + c + d + nf.where(x > 0.0, dead, dead) * 0.5)
    assert found.graph.nodes[c.node.name].colocate == (a.node.name,)
    found = after("cse,simplify", nf.maximum(d, d))
    assert found.graph.nodes[d.node.name].colocate in ((), ("tanh",))


def test_small_constants_stay_apart_but_what_reads_them_merges(graph: Graph) -> None:
    big = np.arange(1000, dtype=F32)
    x = fed(1000)
    y = (x * 2.0) + (x * 2.0) + (x * nf.constant(big)) * (x * nf.constant(big.copy()))
    found = after("cse", y)
    assert ops_of(found) == {"placeholder": 1, "constant": 2, "multiply": 3, "add": 2}


def test_what_is_computed_again_to_save_memory_is_not_merged(graph: Graph) -> None:
    x, w = fed(4, 4), nf.Variable(np.eye(4, dtype=F32), name="w")
    y = nf.sum(nf.checkpoint(lambda t: nf.tanh(nf.tanh(t @ w)))(x))
    found = after("all", y, *nf.gradients(y, [w.to_tensor()]))
    assert ops_of(found)["tanh"] == 4
    assert ops_of(found)["checkpoint"] == 0


# --- constant folding ------------------------------------------------------------------------------------------------


def test_fold_computes_what_is_known(graph: Graph) -> None:
    c = nf.constant([1.0, 4.0])
    y = fed(2) + nf.sqrt(c) * nf.sum(nf.arange(4, dtype="float32"))
    found = after("fold", y)
    assert ops_of(found) == {"placeholder": 1, "constant": 1, "add": 1}
    (constant,) = [n for n in found.graph.nodes if n.op == "constant"]
    np.testing.assert_array_equal(constant.attrs["value"], np.array([6.0, 12.0], F32))
    assert constant.name == "multiply"
    assert constant.owner is y.node.owner


@pytest.mark.parametrize(
    "make",
    [
        lambda c: nf.log(c - c),  # infinite: check_numerics names this op
        lambda c: nf.constant([0.0, 0.0]) / 0.0,
        lambda c: nf.reshape(c, nf.concat([nf.constant([3]), nf.constant([5])], axis=0)),  # raises
        lambda c: nf.take(c, nf.constant([7])),
        lambda c: nf.ones((1000, 1000)),  # travels with the plan
        lambda c: nf.random.normal((2,)),
    ],
)
def test_fold_leaves_what_is_not_finite_raises_or_is_large(graph: Graph, make: Callable[[Tensor], Tensor]) -> None:
    y = make(nf.constant([1.0, 2.0]))
    found = after("fold", nf.identity(y))
    assert found.graph.nodes[y.node.name].op == y.node.op


def test_fold_leaves_fetches_other_devices_and_what_waits(graph: Graph) -> None:
    c = nf.constant([1.0, 2.0])
    with nf.device("/gpu:0"):
        a = nf.tanh(c)
    with nf.control_dependencies([nf.Variable(1.0, name="v").assign_add(1.0)]):
        b = nf.tanh(c)
    d = nf.tanh(c)
    found = after("fold", nf.identity(a), nf.identity(b), d)
    assert ops_of(found)["tanh"] == 3


def test_fold_settles_shapes_that_are_known(graph: Graph) -> None:
    x = nf.placeholder("float32", (None, 6), name="x")
    y = nf.reshape(x, nf.concat([nf.shape_of(x)[:1], nf.constant([2, 3])], axis=0))
    pruned = optimize.prune(graph, [y], {x: nf.TensorSpec((5, 6), np.dtype(F32))})
    found = optimize.optimize(pruned.graph, [pruned.tensors[(y.node.name, 0)]], ("fold",), evaluate)
    assert ops_of(found) == {"placeholder": 1, "reshape": 1}
    assert found.wanted[0].shape == (5, 2, 3)  # type: ignore[union-attr]  # a tensor


# --- simplification --------------------------------------------------------------------------------------------------

GONE: dict[str, Callable[[Tensor], Tensor]] = {
    "x * 1": lambda x: x * 1.0,
    "1 * x": lambda x: 1.0 * x,
    "x * ones": lambda x: x * nf.ones((1, 3)),
    "x / 1": lambda x: x / 1.0,
    "x - 0": lambda x: x - 0.0,
    "x + -0": lambda x: x + -0.0,
    "--x": lambda x: nf.negative(nf.negative(x)),
    "where same": lambda x: nf.where(nf.isnan(x), x, x),
    "max of two": lambda x: nf.maximum(x, x),
    "identity": lambda x: nf.stop_gradient(nf.identity(x)),
    "wide and back": lambda x: nf.astype(nf.astype(x, "float64"), "float32"),
    "concat of one": lambda x: nf.concat([x], axis=0),
    "add_n of one": lambda x: nf.add_n([x]),
    "same shape": lambda x: nf.broadcast_to(nf.reshape(x, (2, 3)), (2, 3)),
    "clip without bounds": nf.clip,
    "pad by nothing": lambda x: nf.pad(x, (0, 0)),
    "tile once": lambda x: nf.tile(x, (1, 1)),
}
STAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "x + 0 (of -0)": lambda x: x + 0.0,
    "x - -0 (of -0)": lambda x: x - -0.0,
    "x * 0 (of NaN)": lambda x: x * 0.0,
    "0 - x": lambda x: 0.0 - x,
    "x - x": lambda x: x - x,
    "x / x": lambda x: x / x,
    "1 / x": lambda x: 1.0 / x,
    "x * -1": lambda x: x * -1.0,
    "x ** 1": lambda x: x**1.0,
    "x * 1 that broadcasts": lambda x: x * nf.ones((4, 2, 3)),
    "log(exp(x))": lambda x: nf.log(nf.exp(x)),
    "narrow and back": lambda x: nf.astype(nf.astype(x, "float16"), "float32"),
    "by way of int": lambda x: nf.astype(nf.astype(x, "int64"), "float32"),
    "where of two": lambda x: nf.where(nf.isnan(x), x, 1.0),
    "sum over length 1 (of -0)": lambda x: nf.sum(nf.expand_dims(x, 0), axis=0),
    "another dtype": lambda x: x * nf.ones((), dtype="float64"),
}


@pytest.mark.parametrize("name", GONE)
def test_simplify_finds(graph: Graph, name: str) -> None:
    x = fed(2, 3)
    found = after("simplify", GONE[name](x))
    assert found.wanted[0].node.op == "placeholder", name  # type: ignore[union-attr]  # a tensor


@pytest.mark.parametrize("name", STAYS)
def test_simplify_leaves(graph: Graph, name: str) -> None:
    x = fed(2, 3)
    y = STAYS[name](x)
    assert ops_of(after("simplify", y)) == Counter(n.op for n in graph.nodes.values())


@pytest.mark.parametrize(
    ("make", "goes"),
    [
        (lambda i: i + 0, True),
        (lambda i: i * 1, True),
        (lambda i: i // 1, True),
        (lambda i: i**1, True),
        (lambda i: i | 0, True),
        (lambda i: nf.bitwise_left_shift(i, 0), True),
        (lambda i: ~~i, True),
        (lambda i: nf.sum(nf.expand_dims(i, 0), axis=0), True),
        (lambda i: nf.astype(nf.astype(i, "float64"), "int64"), False),
        (lambda i: i & 0, False),
        (lambda i: i * 0, False),
    ],
)
def test_simplify_of_integers(graph: Graph, make: Callable[[Any], Tensor], goes: bool) -> None:
    found = after("simplify", make(fed(2, dtype="int64")))
    left = ops_of(found) - Counter(("placeholder", "expand_dims", "reshape"))
    assert (not left) is goes


def test_simplify_respects_devices_order_and_complex(graph: Graph) -> None:
    with nf.device("/job:worker/task:0"):
        x = fed(2)
    with nf.device("/job:worker/task:1"):
        moved = nf.identity(x)
    with nf.control_dependencies([nf.Variable(1.0, name="v").assign_add(1.0)]):
        late = nf.identity(x)
    z = nf.placeholder("complex64", (2,), name="z") * 1.0
    found = after("simplify", moved, late, z)
    assert ops_of(found)["identity"] == 2
    assert ops_of(found)["multiply"] == 1


def test_shapes_that_are_not_known_are_not_guessed(graph: Graph) -> None:
    x = nf.placeholder("float32", None, name="x")
    assert ops_of(after("simplify", x * nf.ones((1,))))["multiply"] == 1
    assert ops_of(after("simplify", x * 1.0))["multiply"] == 0


# --- state and order -------------------------------------------------------------------------------------------------


def test_a_read_before_an_update_keeps_its_value(graph: Graph) -> None:
    w = nf.Variable([1.0, 2.0], name="w")
    before = nf.identity(w * 1.0)
    with nf.control_dependencies([before]):
        updated = w.assign_add([10.0, 10.0])
    with Session(None, graph) as session:
        values = session.run([before, updated, w.to_tensor()])
        assert [v.tolist() for v in values[:2]] == [[1.0, 2.0], [11.0, 12.0]]
        assert session.run(before).tolist() == [11.0, 12.0]


def test_what_runs_after_a_removed_op_runs_after_what_stands_for_it(graph: Graph) -> None:
    x = fed(2)
    a, b = nf.tanh(x), nf.identity(nf.tanh(x))
    with nf.control_dependencies([b]):
        c = nf.exp(x)
    found = after("simplify,cse", c)
    assert [n.name for n in found.graph.nodes[c.node.name].control_inputs] == ["tanh.1"]
    found = after("simplify,cse", a + c)
    assert [n.name for n in found.graph.nodes[c.node.name].control_inputs] == ["tanh"]


# --- which passes run ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", optimize.EXACT),
        ("all", optimize.EXACT),
        ("none", ()),
        ("cse, fold", ("fold", "cse")),
        ("-cse,-fold", tuple(n for n in optimize.EXACT if n not in ("cse", "fold"))),
        ("+matmul", tuple(n for n in optimize.ORDER if n in (*optimize.EXACT, "matmul"))),
        ("all,-schedule", tuple(n for n in optimize.EXACT if n != "schedule")),
        (["cse"], ("cse",)),
        ([], ()),
    ],
)
def test_a_choice_of_passes(text: Any, names: tuple[str, ...]) -> None:
    assert optimize.settings.parse(text) == names


def test_a_pass_that_does_not_exist(graph: Graph) -> None:
    with pytest.raises(errors.GraphError, match="no pass is called 'csee'; there are trim, fold"):
        Session(None, graph, passes="csee")


def test_the_choice_is_the_sessions_then_the_process_then_the_environment(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(None, graph)
    assert session.passes == optimize.EXACT
    monkeypatch.setenv("NBFLOW_PASSES", "-cse")
    assert "cse" not in session.passes
    assert nf.set_passes("cse,fold") == ("fold", "cse")
    assert session.passes == ("fold", "cse")
    with optimize.disabled("cse") as left:
        assert left == session.passes == ("fold",)
        with optimize.disabled():
            assert session.passes == ()
    assert session.passes == ("fold", "cse")
    assert Session(None, graph, passes="simplify").passes == ("simplify",)
    nf.set_passes(None)
    assert session.passes == tuple(n for n in optimize.EXACT if n != "cse")
    session.close()


def test_another_choice_prepares_anew(graph: Graph) -> None:
    x = fed(3)
    y = nf.tanh(x) + nf.tanh(x)
    with Session(None, graph) as session:
        for passes, count in (("all", 1), ("none", 2)):
            nf.set_passes(passes)
            _, trace = session.run(y, {x: np.ones(3, F32)}, trace=True)
            assert sum(o.op == "tanh" for o in trace.ops if hasattr(o, "op")) == count or len(trace.ops) == count + 1
        nf.set_passes(None)


# --- what is said ----------------------------------------------------------------------------------------------------


def test_placement_says_what_became_of_each_op(graph: Graph) -> None:
    x = fed(2)
    y = nf.add(nf.tanh(x, name="a"), nf.tanh(x, name="b") * nf.sqrt(nf.constant(4.0), name="two"), name="y")
    nf.set_cluster(None)
    rows = {r.op: r for r in nf.placement(y)}
    assert set(rows) == {n.name for n in graph.nodes}
    assert rows["b"].why == "is the same as a"
    assert rows["b"].actual == rows["a"].actual
    assert rows["two"].why.startswith("is computed beforehand (sqrt); ")
    assert (rows["constant"].actual, rows["constant"].why) == ("", "nothing needs it any more")
    nodes = {n["name"]: n for n in nf.describe(y)["nodes"]}
    assert nodes["constant"]["device"] is None
    assert nodes["y"]["device"] == rows["y"].actual


def test_a_report_counts_and_tells(graph: Graph) -> None:
    x = fed(100)
    y = nf.identity(nf.tanh(x, name="a")) + nf.tanh(x, name="b") * 1.0
    report = nf.optimization(y)
    assert (report.before, report.after) == (7, 3)
    assert report.of("simplify").removed == 3  # identity, multiply and its 1
    assert report.of("cse").removed == 1
    assert report.of("cse").flops == 1000
    assert "cse: b (" in str(report)
    assert "is the same as a" in str(report)
    assert len(nf.optimization([])) == 0
    with pytest.raises(KeyError):
        report.of("matmul")


def test_an_error_names_an_op_of_the_user(graph: Graph) -> None:
    x = fed(2)
    one = nf.take(nf.identity(x), nf.constant([5]), name="taken")
    with Session(None, graph) as session, pytest.raises(errors.OpError, match="take 'taken'"):
        session.run(one * 1.0, {x: np.zeros(2, F32)})


def test_check_numerics_finds_the_op_that_made_it(graph: Graph) -> None:
    bad = nf.log(nf.constant([0.0]), name="bad")
    with Session(None, graph) as session, pytest.raises(errors.OpError, match=r"log 'bad'.*Inf"):
        session.run(nf.exp(bad), check_numerics=True)


# --- values ----------------------------------------------------------------------------------------------------------


def test_what_fills_a_tensor(graph: Graph) -> None:
    assert is_number(filling(nf.ones((10_000, 10_000))), 1)
    assert is_number(filling(nf.broadcast_to(nf.constant(1.0), (3, 3))), 1)
    assert is_number(filling(nf.constant([0.0, 0.0])), 0)
    assert not is_number(filling(nf.constant([0.0, -0.0])), 0)
    assert is_number(filling(nf.constant(-0.0)), 0, negative_zero=True)
    assert filling(nf.constant(np.zeros((0,), F32))) is None
    assert filling(fed(3)) is None


def test_tokens_are_equal_when_attributes_are() -> None:
    assert token((1, (2.0, "a"))) == token((1, (2.0, "a")))
    assert token(np.arange(1000)) == token(np.arange(1000))
    for a, b in ((1, 1.0), (1, True), (0.0, -0.0), (np.zeros(2), np.zeros(2, F32)), (np.zeros(2), np.zeros((1, 2)))):
        assert token(a) != token(b)
    thing = object()
    assert token(thing) == token(thing) != token(object())


def test_a_run_on_two_tasks_sends_no_more_than_before(graph: Graph) -> None:
    cluster = InProcessCluster(2, 0)
    x = fed(2)
    with nf.device("/job:worker/task:0"):
        a = nf.tanh(x) * 3.0
    with nf.device("/job:worker/task:1"):
        b = nf.tanh(x) * 3.0
    with Session(cluster, graph) as session:
        found = session.run([a, b], {x: np.ones(2, F32)})
        np.testing.assert_array_equal(*found)
        assert session.last is not None
        assert session.last.graph.nodes["tanh.1"].op == "tanh"
    cluster.close()
