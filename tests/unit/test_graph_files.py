"""Graphs as bytes: the same digest in every process and version of Python, and nothing lost on the way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nbflow as nf
from nbflow.body import bodies_of
from nbflow.graph import Graph, Node
from nbflow.testing import Evaluator
from nbflow.testing.random_graphs import random_program
from tests.golden.make import HERE, golden
from tests.processes import lines_of


def comparable(node: Node) -> dict[str, Any]:
    """Everything about a node but its line, which depends on how Python counts those of a long expression."""
    made = {
        name: value
        for name in ("name", "op", "device", "colocate", "owner", "auto_named")
        for value in [getattr(node, name)]
    }
    made["inputs"] = [t.name for t in node.inputs]
    made["controls"] = [n.name for n in node.control_inputs]
    made["outputs"] = [t.spec for t in node.outputs]
    made["bodies"] = {k: [comparable(n) for n in b.graph.nodes.values()] for k, b in bodies_of(node).items()}
    return made


def assert_same(a: Graph, b: Graph) -> None:
    assert [comparable(n) for n in a.nodes.values()] == [comparable(n) for n in b.nodes.values()]
    assert (a.seed, a.generations) == (b.seed, b.generations)
    assert a.digest() == b.digest()


def test_the_golden_file_is_read() -> None:
    """What an earlier version saved means what it meant."""
    read = Graph.from_proto((HERE / "graph.pb").read_bytes())
    assert read.digest() == (HERE / "digest.txt").read_text().strip()
    assert_same(read, golden())


def test_the_golden_graph_has_something_of_everything() -> None:
    graph = golden()
    ops = {n.op for n in graph.nodes.values()}
    assert {"constant", "variable", "cond", "loop", "split", "random_uniform", "assign_add"} <= ops
    assert any(n.control_inputs for n in graph.nodes.values())
    assert any(n.colocate for n in graph.nodes.values())
    assert any(str(n.device) for n in graph.nodes.values())


@pytest.mark.parametrize("redundant", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_random_graphs_come_back(seed: int, redundant: bool) -> None:
    graph = Graph()
    program = random_program(seed, ["/job:worker/task:1", "/gpu:0"], graph, redundant=redundant)
    data = graph.to_proto().SerializeToString()
    back = Graph.from_proto(data)
    assert_same(graph, back)
    assert_same(back, Graph.from_proto(back.to_proto()))
    there = [back.node(t.node.name).outputs[t.index] for t in program.fetches]
    feeds = {back.node(t.node.name).outputs[t.index]: value for t, value in program.feeds.items()}
    expected = Evaluator().run(list(program.fetches), program.feeds)
    for mine, right in zip(Evaluator().run(there, feeds), expected, strict=True):
        np.testing.assert_array_equal(mine, right)


WORK = """
import hashlib
from nbflow.graph import Graph
from nbflow.testing.random_graphs import random_program
from tests.golden.make import HERE, golden
graphs = [golden(), Graph.from_proto((HERE / "graph.pb").read_bytes())]
for seed in range(5):
    graphs.append(Graph())
    random_program(seed, ["/job:ps"], graphs[-1], redundant=True)
for graph in graphs:
    data = graph.to_proto().SerializeToString(deterministic=True)
    print(graph.digest(), hashlib.sha256(data).hexdigest(), Graph.from_proto(data).digest())
"""


def test_digests_and_bytes_do_not_depend_on_the_process() -> None:
    first, second = lines_of(WORK, "1"), lines_of(WORK, "2")
    assert first == second
    digests = [(line.split()[0], line.split()[2]) for line in first]
    assert all(a == b for a, b in digests)
    assert digests[0][0] == digests[1][0] == golden().digest()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ab", "a"),
        (("a", "b"), ("ab",)),
        (1, 1.0),
        (True, 1),
        (0.0, -0.0),
        ("1", 1),
        (np.dtype("float32"), "float32"),
        (None, "None"),
        (((1,), 2), (1, (2,))),
        (np.zeros(2, np.int32), np.zeros(1, np.int64)),
        ("ü", "u\u0308"),
    ],
)
def test_attributes_that_differ_have_different_digests(one: Any, other: Any) -> None:
    def digest(value: Any) -> str:
        graph = Graph()
        node = graph.add("constant", (), {"value": np.zeros(1)})
        node.attrs["more"] = value
        return graph.digest()

    assert digest(one) != digest(other)


def test_numpys_scalars_count_as_pythons() -> None:
    with Graph().as_default() as graph:
        graph.add("placeholder", (), {"dtype": np.dtype(np.int8), "shape": (np.int64(2), None)})
        x = nf.placeholder("float32", (2,))
        nf.clip(x, np.float32(0.5), 1.0)
    assert Graph.from_proto(graph.to_proto()).digest() == graph.digest()


def test_seeds_are_of_64_bits() -> None:
    with Graph().as_default() as graph:
        for seed in (-(2**63), 2**63 - 1):
            nf.set_seed(seed)
            assert Graph.from_proto(graph.to_proto()).seed == seed
        with pytest.raises(nf.errors.GraphError, match="a seed is an integer of 64 bits"):
            nf.set_seed(2**63)
