"""Which cell runs, what its names mean, and the line about what it did."""

from __future__ import annotations

from typing import Any

import pytest

import nbflow as nf
from nbflow.graph import Graph
from nbflow.owner import Change, Owner
from nbflow_kernel import cell

A, B = Owner("cell:a", "In[5]"), Owner("cell:b", "In[7]")


# --- identity --------------------------------------------------------------------------------------------------------


def test_the_notebooks_id_wins() -> None:
    who = cell.Identities()
    first = who.identify("x = 1", cell_id="abc", number=3)
    edited = who.identify("%%graph model\nx = 2", cell_id="abc", number=9)
    assert (first.id, first.label) == ("cell:abc", "In[3]")
    assert (edited.id, edited.label) == ("cell:abc", "In[9] (model)")


def test_without_an_id_the_name_in_the_header_counts() -> None:
    who = cell.Identities()
    first = who.identify("%%graph model\nx = 1", cell_id=None, number=1)
    assert first.id == who.identify("%%graph model --reinit\nx = 2", cell_id=None, number=2).id
    assert first.id != who.identify("%%graph other\nx = 1", cell_id=None, number=3).id


def test_without_both_the_text_counts() -> None:
    who = cell.Identities()
    first = who.identify("x = 1\n", cell_id=None, number=1)
    assert first.id == who.identify("\n\nx = 1   ", cell_id=None, number=2).id
    assert first.id != who.identify("x = 2", cell_id=None, number=3).id


def test_a_headless_runner_never_runs_a_cell_twice() -> None:
    who = cell.Identities()
    ids = {who.identify("x = x + 1", cell_id=None, number=n, headless=True).id for n in range(3)}
    assert len(ids) == 3


@pytest.mark.parametrize(
    ("source", "header"),
    [
        ("x = 1", None),
        ("", None),
        ("%%graphics\nx", None),
        ("%%graph", cell.Header()),
        ("\n\n%%graph model\nx", cell.Header("model")),
        ("%%graph --reinit 'my model'\nx", cell.Header("my model", reinit=True)),
        ("%%graph --replace", cell.Header(replace=True)),
    ],
)
def test_headers(source: str, header: cell.Header | None) -> None:
    assert cell.parse_header(source) == header


@pytest.mark.parametrize("line", ["%%graph a b", "%%graph --nonsense", "%%graph 'open"])
def test_headers_that_cannot_be_read(line: str) -> None:
    with pytest.raises(cell.UsageError, match="usage: %%graph"):
        cell.parse_header(f"{line}\nx = 1")
    lines = [f"{line}\n", "x = 1\n"]
    assert cell.without_header(lines) == lines  # left for the magic to complain about


def test_taking_off_the_header_keeps_the_line_numbers() -> None:
    assert cell.without_header(["%%graph model\n", "x = 1\n"]) == ["\n", "x = 1\n"]
    assert cell.without_header(["\n", "%%graph model\n", "x = 1\n"]) == ["\n", "\n", "x = 1\n"]
    assert cell.without_header(["x = 1\n"]) == ["x = 1\n"]


# --- names -----------------------------------------------------------------------------------------------------------


def test_bindings_look_one_level_deep() -> None:
    with Graph().as_default() as graph:
        a, b = nf.constant(1.0), nf.constant(2.0)
        w = nf.Variable(1.0, name="w")
        before = len(graph.nodes)
        names = {
            "a": a,
            "batch": {"x": b, 3: a},
            "pair": (a, [b]),
            "w": w,
            "_": a,
            "Out": {1: a},
            "n": 5,
            "W": nf.Variable,
        }
        found = cell.bindings(names)
        assert {k: v.name for k, v in found.items()} == {
            "a": a.name,
            "batch['x']": b.name,
            "batch[3]": a.name,
            "pair[0]": a.name,
            "w": "w",
        }
        assert len(graph.nodes) == before  # looking builds nothing


def test_restoring_gives_back_what_the_failed_run_replaced() -> None:
    with Graph().as_default():
        old, kept, new = nf.constant(1.0), nf.constant(2.0), nf.constant(3.0)
        namespace: dict[str, Any] = {"x": old, "d": {"k": old}, "same": kept, "number": 1}
        before = cell.snapshot(namespace)
        assert set(before) == {"x", "d", "same"}
        namespace.update(x=new, d={"k": new}, fresh=new, number=2)
        restored = cell.restore(namespace, before, lambda node: node is new.node)
        assert sorted(restored) == ["d", "x"]
        assert namespace["x"] is old
        assert namespace["d"]["k"] is old
        assert namespace["fresh"] is new
        assert namespace["number"] == 2


def test_restoring_leaves_what_the_user_deleted_or_reused() -> None:
    with Graph().as_default():
        old, new = nf.constant(1.0), nf.constant(3.0)
        namespace: dict[str, Any] = {"x": old, "y": old}
        before = cell.snapshot(namespace)
        del namespace["x"]
        namespace["y"] = 5
        assert cell.restore(namespace, before, lambda node: node is new.node) == []
        assert namespace == {"y": 5}


# --- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (Change(A), ""),
        (Change(A, added=("a",)), "graph: +1 op"),
        (
            Change(
                A,
                added=tuple("abcdefghijkl"),
                removed=("x", "y", "z"),
                changed=("w",),
                variables=("w", "v", "u", "t"),
                kept_variables=("v", "u"),
                reset_variables=("w",),
                stale=("s",),
                stale_cells=(A,),
            ),
            "graph: +12 −3 ~1 ops, 4 variables (2 kept, 1 reset), stale: In[5] — run it again",
        ),
        (
            Change(A, unchanged=("a", "b"), variables=("a",), kept_variables=("a",)),
            "graph: 2 unchanged ops, 1 variable (1 kept)",
        ),
        (
            Change(A, removed=("a",), stale=("s", "t"), stale_cells=(A, B)),
            "graph: −1 op, stale: In[5] and In[7] — run them again",
        ),
        (Change(A, changed=("a",), replaced_cells=(B,)), "graph: ~1 op, took over from In[7]"),
    ],
)
def test_summary(change: Change, line: str) -> None:
    assert cell.summary(change) == line


def test_failure() -> None:
    assert cell.failure(A, 3, had=False, restored=[]) == (
        "graph: unchanged; In[5] failed, and what it had built (3 ops) is gone"
    )
    assert cell.failure(A, 1, had=True, restored=["h", "loss"]) == (
        "graph: unchanged; In[5] failed, so its ops from the last run stay (h, loss as before)"
    )
