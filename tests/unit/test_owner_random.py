"""Random notebooks: cells edited, run, failing, deleted in any order, against a simple model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

import nbflow as nf
from nbflow import owner as owners
from nbflow.errors import NbflowError
from nbflow.graph import Graph, Tensor, topological
from nbflow.owner import Owner

PYTHON_NAMES = ("a", "b", "c")
GRAPH_NAMES = ("n0", "n1", "n2")
CELLS = 4


@dataclass(frozen=True)
class Constant:
    python: str
    size: int
    name: str | None


@dataclass(frozen=True)
class Double:
    python: str
    source: str
    name: str | None


@dataclass(frozen=True)
class Weights:
    python: str
    size: int
    name: str


@dataclass(frozen=True)
class Slope:
    python: str
    of: str
    to: str


@dataclass(frozen=True)
class Fail:
    pass


Source = tuple[Any, ...]


def execute(source: Source, names: dict[str, Tensor]) -> None:
    for s in source:
        match s:
            case Constant():
                names[s.python] = nf.ones((s.size,), name=s.name)
            case Double():
                names[s.python] = nf.multiply(names[s.source], 2.0, name=s.name)
            case Weights():
                names[s.python] = nf.Variable(nf.ones((s.size,)), name=s.name).to_tensor()
            case Slope():
                (found,) = nf.gradients(names[s.of], names[s.to])
                if found is not None:
                    names[s.python] = found
            case Fail():
                raise RuntimeError("a cell that fails")


python_names = st.sampled_from(PYTHON_NAMES)
optional_names = st.none() | st.sampled_from(GRAPH_NAMES)
sizes = st.integers(1, 2)
statements = st.one_of(
    st.builds(Constant, python_names, sizes, optional_names),
    st.builds(Double, python_names, python_names, optional_names),
    st.builds(Weights, python_names, sizes, st.sampled_from(GRAPH_NAMES)),
    st.builds(Slope, python_names, python_names, python_names),
)
sources = st.lists(statements, max_size=4).map(tuple) | st.lists(statements, max_size=3).map(lambda s: (*s, Fail()))
edits = st.lists(
    st.tuples(st.integers(0, CELLS - 1), sources | st.none(), st.booleans(), st.booleans()), min_size=1, max_size=12
)


class Notebook:
    """Runs cells as the extension does, and keeps beside the graph what a person expects of it."""

    def __init__(self) -> None:
        self.graph = Graph()
        self.names: dict[str, Tensor] = {}
        self.cells: dict[int, Source] = {}
        self.owned: dict[int, set[str]] = {}  # cell -> the ops of its last good run
        self.variables: dict[str, tuple[Any, str]] = {}  # name -> its spec, and the key of its state
        self.keys: set[str] = set()  # all keys that ever held state

    def run(self, cell: int, source: Source, *, reinit: bool = False, replace: bool = False) -> bool:
        self.cells[cell] = source
        before, digest = dict(self.names), self.graph.digest()
        transaction = owners.begin(self.graph, Owner(f"cell:{cell}", f"In[{cell}]"), reinit=reinit, replace=replace)
        try:
            with self.graph.as_default():
                execute(source, self.names)
        except (NbflowError, RuntimeError, KeyError):
            seen = [self._key(n.name) for n in transaction.made.values() if n.op == "variable"]
            transaction.rollback()
            self.names = before
            assert self.graph.digest() == digest
            self._check_keys(seen)
            return False
        made = set(transaction.made)
        change = transaction.commit(before, self.names)
        for gone in change.replaced_cells:
            self.owned.pop(int(gone.id.removeprefix("cell:")), None)
        self.owned[cell] = made
        self._check_change(change, reinit=reinit)
        return True

    def delete(self, cell: int) -> None:
        self.cells.pop(cell, None)
        owners.delete(self.graph, f"cell:{cell}")
        self.owned.pop(cell, None)
        self.variables = {n: v for n, v in self.variables.items() if n in self.graph.nodes}

    def _key(self, name: str) -> str:
        return f"{name}:{self.graph.generations.get(name, 0)}"

    def _check_keys(self, attempted: list[str]) -> None:
        """Another attempt never meets the state that a failed one left, unless it goes on with a kept variable."""
        known = {key for _, key in self.variables.values()}
        self.keys.update(k for k in attempted if k not in known)
        for name, (_, key) in self.variables.items():
            assert self._key(name) == key

    def _check_change(self, change: owners.Change, *, reinit: bool) -> None:
        now = {n.name: n.outputs[0].spec for n in self.graph.nodes.values() if n.op == "variable"}
        mine = {n.name for n in self.graph.nodes.values() if n.op == "variable" and n.owner.id == change.owner.id}
        after: dict[str, tuple[Any, str]] = {}
        for name, spec in now.items():
            key = self._key(name)
            old = self.variables.get(name)
            keeps = old is not None and old[0] == spec and not (reinit and name in mine)
            if keeps:
                assert old is not None
                assert key == old[1]
            else:
                assert key not in self.keys
            self.keys.add(key)
            after[name] = (spec, key)
        self.variables = after

    def check(self) -> None:
        graph = self.graph
        assert set(graph.nodes.keys()) == set().union(*self.owned.values())
        assert all(graph.nodes[name].owner.id == f"cell:{c}" for c, names in self.owned.items() for name in names)
        topological(graph.nodes.values())
        for node in graph.nodes.values():
            inside = all(graph.nodes.get(t.node.name) is t.node for t in node.inputs)
            assert inside or node.stale
            for tensor in node.inputs:
                if not node.stale:
                    assert tensor.node.outputs[tensor.index] is tensor
        assert graph.pending is None
        assert graph.on_add is None


def fresh(cells: dict[int, Source]) -> tuple[Notebook, bool]:
    notebook = Notebook()
    ran = [notebook.run(c, cells[c]) for c in sorted(cells)]
    return notebook, all(ran)


@settings(max_examples=300, deadline=None)
@given(edits)
def test_any_order_of_edits(actions: list[tuple[int, Source | None, bool, bool]]) -> None:
    notebook = Notebook()
    for cell, source, reinit, replace in actions:
        if source is None:
            notebook.delete(cell)
        else:
            notebook.run(cell, source, reinit=reinit, replace=replace)
        notebook.check()


@settings(max_examples=300, deadline=None)
@given(edits)
def test_running_all_again_is_as_a_restart(actions: list[tuple[int, Source | None, bool, bool]]) -> None:
    notebook = Notebook()
    for cell, source, _, _ in actions:
        if source is None:
            notebook.delete(cell)
        else:
            notebook.run(cell, source)
    restarted, good = fresh(dict(notebook.cells))
    if not good:
        return
    notebook.names = {}  # what a cell needs, an earlier cell makes: it did after the restart
    for cell in sorted(notebook.cells):
        # Names that moved between cells are taken over on the way.
        assert notebook.run(cell, notebook.cells[cell], replace=True)
        notebook.check()
    again = [notebook.run(cell, notebook.cells[cell], replace=True) for cell in sorted(notebook.cells)]
    assert all(again)
    assert not [n.name for n in notebook.graph.nodes.values() if n.stale]
    assert notebook.graph.digest() == restarted.graph.digest()
