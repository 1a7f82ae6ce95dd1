"""Graph JSON → scope tree → boxes: the same table of cases as the browser's side, and properties of the layout."""

import itertools
import json
import pathlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbflow_widgets.layout import Flow, fold, isotonic, layered, ranks
from nbflow_widgets.scopes import Edge, Tree, producer, shares, short_device

_TABLE = pathlib.Path(__file__).parents[2] / "widgets" / "test" / "scopes.json"
CASES = json.loads(_TABLE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_tree_is_the_one_in_the_table(case: dict[str, Any]) -> None:
    tree = Tree(case["graph"])
    levels = {}
    for item in tree.items.values():
        if item.kind == "op":
            continue
        level = tree.level(item)

        def rows(edges: Any) -> list[list[Any]]:
            def row(edge: Edge) -> list[Any]:
                return [edge.source.id, edge.target.id, edge.tensors, edge.controls, edge.crosses]

            return sorted(map(row, edges))

        levels[item.id] = {
            **{name: getattr(item, name) for name in ("label", "kind", "ops", "stale", "depth")},
            "main": [child.id for child in level.main],
            "aux": [child.id for child in level.aux],
            "edges": rows(level.edges),
            "hidden": rows(level.hidden),
        }
    assert levels == case["expected"]["levels"]
    assert tree.initial_expansion() == case["expected"]["initial"]


def test_names_of_inputs_and_devices() -> None:
    assert [producer(name) for name in ("a/b", "^a/b", "a/b:1", "a:b", "a:b:12")] == ["a/b", "a/b", "a/b", "a:b", "a:b"]
    assert short_device("/job:worker/task:1/gpu:0") == "worker:1/gpu:0"
    assert short_device("/job:ps") == "ps"


def test_shares_count_ops_by_device() -> None:
    tree = Tree(next(case["graph"] for case in CASES if case["name"] == "replicas"))
    assert shares(tree, tree.root) == {"worker:0/cpu:0": 5, "worker:1/cpu:0": 3}
    assert shares(tree, tree.items["replica_1/"]) == {"worker:1/cpu:0": 3}


names = st.lists(st.sampled_from("ab"), min_size=1, max_size=4).map("/".join)


@given(st.lists(names, unique=True, max_size=12), st.data())
def test_every_edge_is_counted_once_whatever_the_names(chosen: list[str], data: st.DataObject) -> None:
    nodes: list[dict[str, Any]] = []
    for i, name in enumerate(chosen):
        sources = data.draw(st.lists(st.sampled_from(chosen[:i]), max_size=3)) if i else []
        nodes.append({"name": name, "op": "add", "inputs": sources, "device": None, "stale": ""})
    tree = Tree({"nodes": nodes})
    assert tree.root.ops == len(nodes)
    counted = 0
    for item in tree.items.values():
        level = tree.level(item)
        assert set(level.main) | set(level.aux) == set(item.children)
        for edge in (*level.edges, *level.hidden):
            assert edge.source.parent is item
            assert edge.target.parent is item
            counted += edge.tensors
    assert counted == sum(len(node["inputs"]) for node in nodes)


edge_lists = st.integers(1, 25).flatmap(
    lambda n: st.tuples(st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=50))
)


@given(edge_lists)
def test_layout_never_overlaps_boxes_and_stays_inside(graph: tuple[int, list[tuple[int, int]]]) -> None:
    n, edges = graph
    sizes = [(50.0 + 7 * (i % 5), 30.0 + 11 * (i % 3)) for i in range(n)]
    layout = layered(sizes, edges, 40, 10)
    for i, ((x, y), (w, h)) in enumerate(zip(layout.nodes, sizes, strict=True)):
        assert w / 2 - 1e-6 <= x <= layout.width - w / 2 + 1e-6
        assert h / 2 - 1e-6 <= y <= layout.height - h / 2 + 1e-6
        for (u, v), (p, q) in zip(layout.nodes[:i], sizes[:i], strict=True):
            assert abs(x - u) >= (w + p) / 2 - 1e-6 or abs(y - v) >= (h + q) / 2 - 1e-6


@given(edge_lists)
def test_ranks_follow_every_edge_of_an_acyclic_graph(graph: tuple[int, list[tuple[int, int]]]) -> None:
    n, pairs = graph
    edges = [(a, b) for a, b in pairs if a < b]
    rank = ranks(n, edges)
    assert all(rank[a] < rank[b] for a, b in edges)


@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(0.1, 10)), min_size=1, max_size=30))
def test_isotonic_is_sorted_and_keeps_the_weighted_mean(pairs: list[tuple[float, float]]) -> None:
    values, weights = zip(*pairs, strict=True)
    result = isotonic(values, weights)
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(result))
    before = sum(v * w for v, w in pairs)
    assert sum(v * w for v, w in zip(result, weights, strict=True)) == pytest.approx(before, abs=1e-6)


def test_long_edges_pass_columns_beside_their_boxes() -> None:
    layout = layered([(100.0, 40.0)] * 4, [(0, 1), (1, 2), (2, 3), (0, 3)], 40, 10)
    bends = layout.bends[3]
    assert len(bends) == 4
    assert bends[0][1] == bends[1][1]
    assert abs(bends[0][1] - layout.nodes[1][1]) > 20
    assert bends[1][0] - bends[0][0] == pytest.approx(100)


def chain(n: int) -> tuple[Flow, list[tuple[float, float]], list[tuple[int, int]]]:
    """`n` boxes in a row, and one line that skips from the third to the last."""
    edges = [(i, i + 1) for i in range(n - 1)] + [(2, n - 1)]
    nodes = [(50.0 + 140 * i, 20.0) for i in range(n)]
    lines = [[(nodes[a][0] + 50, 20.0), (nodes[b][0] - 50, 20.0)] for a, b in edges]
    return Flow(nodes, lines, 140.0 * n - 40, 40.0), [(100.0, 40.0)] * n, edges


def test_a_long_chain_is_folded_and_its_lines_stay_outside_of_boxes() -> None:
    flow, sizes, edges = chain(40)
    folded = fold(flow, sizes, edges)
    assert folded.width < flow.width / 3
    assert folded.width / folded.height < 6
    for line, (a, b) in zip(folded.lines, edges, strict=True):
        assert line[0] == (folded.nodes[a][0] + 50, folded.nodes[a][1])
        assert line[-1] == (folded.nodes[b][0] - 50, folded.nodes[b][1])
        for (px, py), (qx, qy) in itertools.pairwise(line):
            for x, y in folded.nodes:
                beside = max(px, qx) <= x - 49 or min(px, qx) >= x + 49
                assert beside or max(py, qy) <= y - 19 or min(py, qy) >= y + 19


def test_what_fits_and_what_has_one_great_box_is_not_folded() -> None:
    flow, sizes, edges = chain(8)
    assert fold(flow, sizes, edges) is flow
    flow, sizes, edges = chain(40)
    sizes[20] = (3000.0, 40.0)
    assert fold(flow, sizes, edges) is flow
