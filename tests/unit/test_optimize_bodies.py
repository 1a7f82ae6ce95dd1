"""The passes inside the bodies of loops and branches, and around them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

import nbflow as nf
from nbflow.body import bodies_of
from nbflow.graph import Graph, Tensor
from nbflow.inprocess import InProcessCluster
from nbflow.optimize import EXACT
from nbflow.session import Session

F32 = np.float32


@pytest.fixture
def graph() -> Iterator[Graph]:
    with Graph().as_default() as made:
        yield made


def inside(session: Session) -> Counter[str]:
    """The ops in the bodies of what ran last."""
    assert session.last is not None
    found: Counter[str] = Counter()
    todo = list(session.last.graph.nodes)
    while todo:
        for body in bodies_of(todo.pop()).values():
            found.update(n.op for n in body.graph.nodes)
            todo += list(body.graph.nodes)
    return found


def results(
    graph: Graph, fetches: Sequence[Any], feeds: Any, passes: Sequence[str], cluster: Any = None
) -> list[bytes]:
    with Session(cluster, graph, passes=passes) as session:
        steps = [session.run(list(fetches), feeds) for _ in range(3)]
    return [np.asarray(v).tobytes() for step in steps for v in step if v is not None]


def test_a_loop_runs_less(graph: Graph) -> None:
    x = nf.placeholder("float32", (3,), name="x")
    two = nf.sqrt(nf.constant(4.0))

    def body(i: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        known = nf.sqrt(nf.constant(9.0)) + 1.0
        return i + 1, nf.identity(nf.tanh(h * two) + nf.tanh(h * two) * 1.0 - known)

    _, y = nf.while_loop(lambda i, h: i < 4, body, (nf.constant(0), x))
    value = {x: np.array([0.1, -0.0, 3.0], F32)}
    assert results(graph, [y], value, ()) == results(graph, [y], value, EXACT)
    with Session(None, graph) as session:
        session.run(y, value)
        found = inside(session)
        assert (found["tanh"], found["identity"], found["sqrt"], found["multiply"]) == (1, 0, 0, 1)
        report = session.optimization([y])
    assert any(c.node.startswith("while_loop/") and "is the same as" in c.what for c in report.of("cse").changes)


def test_branches_that_fail_or_draw_are_left_as_they_are(graph: Graph) -> None:
    x = nf.placeholder("float32", (4,), name="x")

    def one() -> Tensor:
        return nf.random.uniform((4,)) - nf.random.uniform((4,)) + nf.log(nf.constant(0.0)) * x

    y = nf.cond(nf.sum(x) > 0.0, one, lambda: nf.take(x, nf.constant([0, 1, 2, 3])) * 1.0)
    for sign in (1.0, -1.0):
        value = {x: np.full(4, sign, F32)}
        assert results(graph, [y], value, ()) == results(graph, [y], value, EXACT)
    with Session(None, graph) as session:
        session.run(y, value)
        assert inside(session)["random_uniform"] == 2
        assert inside(session)["log"] == 1


@pytest.mark.parametrize("passes", [*[(name,) for name in EXACT], EXACT], ids=[*EXACT, "all"])
def test_training_through_loops_gives_the_same_bits(graph: Graph, passes: tuple[str, ...]) -> None:
    x = nf.placeholder("float32", (5, 3, 4), name="x")
    w = nf.Variable(np.random.default_rng(0).normal(size=(4, 4)).astype(F32), name="w")
    count = nf.Variable(0.0, name="count")

    def step(h: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        h = nf.tanh(nf.matmul(h, w.to_tensor()) + t * 1.0) + nf.random.normal((3, 4), stddev=0.1)
        out = nf.cond(nf.sum(h) > 0.0, lambda: h * nf.nn.sigmoid(h) + nf.nn.sigmoid(h), lambda: nf.negative(-h))
        return out, out * h

    _, y = nf.scan(step, nf.zeros((3, 4)), x)
    loss = nf.mean(nf.square(y))
    fetches = [loss, nf.optim.Adam(0.01).minimize(loss), count.assign_add(loss)]
    value = {x: np.random.default_rng(1).normal(size=(5, 3, 4)).astype(F32)}
    expected = results(graph, fetches, value, ())
    assert results(graph, fetches, value, passes) == expected
    if passes == EXACT:
        cluster = InProcessCluster(2, 1)
        assert results(graph, fetches, value, passes, cluster) == expected
        cluster.close()
